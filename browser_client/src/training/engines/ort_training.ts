/** The engine on onnxruntime-web's training sessions (WebAssembly on the CPU). */
import * as ort from 'onnxruntime-web/training';
import { type Engine, EngineError, type EngineFiles } from '../engine';
import type { Manifest } from '../manifest';
import { forwardBatch } from '../memory';

export interface OrtOptions {
  /** Folder with `ort-training-wasm-simd-threaded.*`, ending in a slash. */
  readonly wasmFolder: string;
  /** More than one needs a cross-origin isolated page. */
  readonly threads: number;
}

export class OrtTrainingEngine implements Engine {
  readonly name: string;
  #model: { readonly manifest: Manifest; readonly files: EngineFiles } | null = null;
  #session: ort.TrainingSession | null = null;
  #prefix: ort.InferenceSession | null = null;
  #optimizer: Uint8Array | null = null;
  #used = false;

  constructor(options: OrtOptions) {
    ort.env.wasm.wasmPaths = options.wasmFolder;
    ort.env.wasm.numThreads = options.threads;
    const threads = options.threads === 1 ? '1 thread' : `${options.threads} threads`;
    this.name = `onnxruntime-web ${ort.env.versions.web ?? ''} wasm, ${threads}`;
  }

  async load(manifest: Manifest, files: EngineFiles): Promise<void> {
    await this.#close();
    await this.#prefix?.release();
    this.#model = { manifest, files };
    this.#prefix = files.prefixModel === null ? null : await openPrefix(files.prefixModel);
  }

  setOptimizer(model: Uint8Array): void {
    if (this.#optimizer !== null && sameBytes(this.#optimizer, model)) return;
    this.#optimizer = model;
    this.#used = true;
  }

  async begin(base: Float32Array): Promise<void> {
    const { manifest } = this.#loaded();
    if (base.length !== manifest.trainable_count) {
      throw new EngineError(
        `the base model has ${base.length} parameters, the artifacts train ${manifest.trainable_count}`,
      );
    }
    // A session can neither change its optimizer model nor clear Adam's moments: only a new one starts afresh.
    if (this.#session !== null && this.#used) await this.#close();
    this.#session ??= await this.#open();
    this.#used = false;
    await this.#session.loadParametersBuffer(new Uint8Array(base.buffer, base.byteOffset, base.byteLength), true);
  }

  async features(pixelValues: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array<ArrayBuffer>> {
    const { manifest } = this.#loaded();
    if (this.#prefix === null || manifest.prefix === null) return pixelValues;
    const { input, output, shape } = manifest.prefix;
    const { channels, image_size } = manifest.model;
    const size = pixelValues.length / count;
    const all = new Float32Array(count * shape.reduce((product, extent) => product * extent, 1));
    const step = forwardBatch(manifest);
    for (let at = 0; at < count; at += step) {
      const images = Math.min(step, count - at);
      const part = pixelValues.subarray(at * size, (at + images) * size);
      const results = await this.#prefix.run({
        [input]: new ort.Tensor('float32', part, [images, channels, image_size, image_size]),
      });
      all.set(results[output]!.data as Float32Array, (at * all.length) / count);
    }
    return all;
  }

  async predict(features: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array> {
    const { manifest } = this.#loaded();
    const session = this.#opened();
    const logits = new Float32Array(count * manifest.model.classes.length);
    const size = features.length / count;
    const step = forwardBatch(manifest);
    for (let at = 0; at < count; at += step) {
      const images = Math.min(step, count - at);
      const feeds = this.#feeds(features.subarray(at * size, (at + images) * size), new BigInt64Array(images));
      // Results are keyed by the training model's output names, and all outputs must be taken.
      const results = await session.runEvalStep(feeds);
      logits.set(results[session.trainingOutputNames[1]!]!.data as Float32Array, (at * logits.length) / count);
    }
    return logits;
  }

  async trainStep(features: Float32Array<ArrayBuffer>, count: number, label: number): Promise<number> {
    const session = this.#opened();
    this.#used = !this.#loaded().manifest.optimizer.stateless;
    const labels = new BigInt64Array(count).fill(BigInt(label));
    const results = await session.runTrainStep(this.#feeds(features, labels));
    await session.runOptimizerStep();
    await session.lazyResetGrad();
    return (results[session.trainingOutputNames[0]!]!.data as Float32Array)[0]!;
  }

  async parameters(): Promise<Float32Array<ArrayBuffer>> {
    const value = (await this.#opened().getContiguousParameters(true)) as ort.Tensor;
    return Float32Array.from(value.data as Float32Array);
  }

  #loaded(): { readonly manifest: Manifest; readonly files: EngineFiles } {
    if (this.#model === null) throw new EngineError('no model is loaded');
    return this.#model;
  }

  #opened(): ort.TrainingSession {
    if (this.#session === null) throw new EngineError('no task has begun');
    return this.#session;
  }

  #feeds(features: Float32Array, labels: BigInt64Array): Record<string, ort.Tensor> {
    const { manifest } = this.#loaded();
    const { channels, image_size } = manifest.model;
    const split = this.#prefix === null ? null : manifest.prefix;
    const shape = split === null ? [channels, image_size, image_size] : split.shape;
    return {
      [split?.output ?? manifest.inputs[0]!]: new ort.Tensor('float32', features, [labels.length, ...shape]),
      [manifest.inputs[1]!]: new ort.Tensor('int64', labels, [labels.length]),
    };
  }

  async #open(): Promise<ort.TrainingSession> {
    const { manifest, files } = this.#loaded();
    if (this.#optimizer === null) throw new EngineError('no optimizer model is set');
    const session = await ort.TrainingSession.create({
      checkpointState: files.checkpoint,
      trainModel: files.trainingModel,
      evalModel: files.evalModel,
      optimizerModel: this.#optimizer,
    }).catch((error: unknown) => {
      // onnxruntime-web throws bare numbers for artifacts that it cannot open.
      throw new EngineError(`onnxruntime-web cannot open the artifacts: ${String(error)}`);
    });
    const found = await session.getParametersSize(true);
    if (found !== manifest.trainable_count) {
      await session.release();
      throw new EngineError(`the artifacts train ${found} parameters, their manifest says ${manifest.trainable_count}`);
    }
    return session;
  }

  async #close(): Promise<void> {
    const session = this.#session;
    this.#session = null;
    await session?.release();
  }
}

function openPrefix(model: Uint8Array): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(model, { executionProviders: ['wasm'] }).catch((error: unknown) => {
    throw new EngineError(`onnxruntime-web cannot open the frozen part: ${String(error)}`);
  });
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}
