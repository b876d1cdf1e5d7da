/** The engine `ort-training`: onnxruntime-web's training sessions (WebAssembly on the CPU). */
import type * as Ort from 'onnxruntime-web/training';
import { type Engine, EngineError, type EngineFiles, type EngineMaker, type EngineOptions } from '../engine';
import { withLearningRate } from '../learning_rate';
import { type Manifest, ORT_TRAINING } from '../manifest';
import { forwardBatch } from '../memory';
import { patiently } from '../../objects/patiently';

const BINARY = 'ort-training-wasm-simd-threaded';

export const ENGINE: EngineMaker = {
  opens: ORT_TRAINING,
  preference: 0,
  whyNot: () => Promise.resolve('WebAssembly' in globalThis ? null : 'this browser has no WebAssembly'),
  async label({ threads }) {
    const ort = await runtime();
    return `onnxruntime-web ${ort.env.versions.web ?? ''} wasm, ${threads === 1 ? '1 thread' : `${threads} threads`}`;
  },
  async open(manifest, files, options) {
    const ort = await runtime();
    await load(ort, options);
    const prefix = files.get('prefix_model');
    return new OrtTraining(ort, manifest, files, prefix === undefined ? null : await openPrefix(ort, prefix));
  },
};

/** The JavaScript of onnxruntime-web; its binary, the large part, is fetched with the first session. */
function runtime(): Promise<typeof Ort> {
  return import('onnxruntime-web/training');
}

/** Fetches what onnxruntime-web would fetch by itself: it tries that once, and a second session fails like the first. */
async function load(ort: typeof Ort, { wasmFolder, threads }: EngineOptions): Promise<void> {
  ort.env.wasm.wasmPaths = wasmFolder;
  ort.env.wasm.numThreads = threads;
  await patiently(() => import(/* @vite-ignore */ `${wasmFolder}${BINARY}.mjs`));
  ort.env.wasm.wasmBinary ??= await patiently(async () => {
    const response = await fetch(`${wasmFolder}${BINARY}.wasm`);
    if (!response.ok) throw new EngineError(`the gateway gives no ${BINARY}.wasm (${response.status})`);
    return response.arrayBuffer();
  });
}

class OrtTraining implements Engine {
  #session: Ort.TrainingSession | null = null;
  #rate = NaN;
  #used = false;
  #sound = true;

  constructor(
    private readonly ort: typeof Ort,
    private readonly manifest: Manifest,
    private readonly files: EngineFiles,
    private readonly prefix: Ort.InferenceSession | null,
  ) {}

  async begin(base: Float32Array, learningRate: number): Promise<void> {
    const { manifest } = this;
    if (base.length !== manifest.trainable_count) {
      throw new EngineError(
        `the base model has ${base.length} parameters, the artifacts train ${manifest.trainable_count}`,
      );
    }
    // A session can neither change its optimizer model nor clear Adam's moments: only a new one starts afresh.
    // And a gradient that is no number stays in its buffers, whatever comes after it.
    if (this.#used || !this.#sound || learningRate !== this.#rate) await this.#close();
    this.#session ??= await this.#open(learningRate);
    this.#rate = learningRate;
    this.#used = false;
    this.#sound = true;
    await this.#session.loadParametersBuffer(new Uint8Array(base.buffer, base.byteOffset, base.byteLength), true);
  }

  async features(inputs: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array<ArrayBuffer>> {
    const { manifest } = this;
    if (this.prefix === null || manifest.prefix === null) return inputs;
    const { input, output, shape } = manifest.prefix;
    const { channels, image_size } = manifest.model;
    const size = inputs.length / count;
    const all = new Float32Array(count * shape.reduce((product, extent) => product * extent, 1));
    const step = forwardBatch(manifest);
    for (let at = 0; at < count; at += step) {
      const images = Math.min(step, count - at);
      const part = inputs.subarray(at * size, (at + images) * size);
      const results = await this.prefix.run({
        [input]: new this.ort.Tensor('float32', part, [images, channels, image_size, image_size]),
      });
      all.set(results[output]!.data as Float32Array, (at * all.length) / count);
    }
    return all;
  }

  async predict(features: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array> {
    const session = this.#opened();
    const logits = new Float32Array(count * this.manifest.model.classes.length);
    const size = features.length / count;
    const step = forwardBatch(this.manifest);
    for (let at = 0; at < count; at += step) {
      const images = Math.min(step, count - at);
      const feeds = this.#feeds(features.subarray(at * size, (at + images) * size), new BigInt64Array(images));
      // Results are keyed by the training model's output names, and all outputs must be taken.
      const results = await session.runEvalStep(feeds);
      logits.set(results[session.trainingOutputNames[1]!]!.data as Float32Array, (at * logits.length) / count);
    }
    return logits;
  }

  async trainStep(features: Float32Array<ArrayBuffer>, targets: readonly number[]): Promise<number> {
    const session = this.#opened();
    this.#used = !this.manifest.optimizer.stateless;
    this.#sound = false;
    const results = await session.runTrainStep(this.#feeds(features, BigInt64Array.from(targets, BigInt)));
    await session.runOptimizerStep();
    await session.lazyResetGrad();
    return (results[session.trainingOutputNames[0]!]!.data as Float32Array)[0]!;
  }

  async parameters(): Promise<Float32Array<ArrayBuffer>> {
    const value = (await this.#opened().getContiguousParameters(true)) as Ort.Tensor;
    const parameters = Float32Array.from(value.data as Float32Array);
    this.#sound = parameters.every(Number.isFinite);
    return parameters;
  }

  async release(): Promise<void> {
    await this.#close();
    await this.prefix?.release();
  }

  #opened(): Ort.TrainingSession {
    if (this.#session === null) throw new EngineError('no task has begun');
    return this.#session;
  }

  #feeds(features: Float32Array, labels: BigInt64Array): Record<string, Ort.Tensor> {
    const { manifest, ort } = this;
    const { channels, image_size } = manifest.model;
    const split = this.prefix === null ? null : manifest.prefix;
    const shape = split === null ? [channels, image_size, image_size] : split.shape;
    return {
      [split?.output ?? manifest.inputs[0]!]: new ort.Tensor('float32', features, [labels.length, ...shape]),
      [manifest.inputs[1]!]: new ort.Tensor('int64', labels, [labels.length]),
    };
  }

  async #open(learningRate: number): Promise<Ort.TrainingSession> {
    const { manifest } = this;
    const part = this.prefix === null ? '' : 'suffix_';
    const initializer = manifest.optimizer.learning_rate_initializer;
    const session = await this.ort.TrainingSession.create({
      checkpointState: this.#file(`${part}checkpoint`),
      trainModel: this.#file(`${part}training_model`),
      evalModel: this.#file(`${part}eval_model`),
      optimizerModel: withLearningRate(this.#file('optimizer_model'), initializer, learningRate),
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

  #file(role: string): Uint8Array<ArrayBuffer> {
    const file = this.files.get(role);
    if (file === undefined) throw new EngineError(`there is no file for ${role}`);
    return file;
  }

  async #close(): Promise<void> {
    const session = this.#session;
    this.#session = null;
    await session?.release();
  }
}

function openPrefix(ort: typeof Ort, model: Uint8Array): Promise<Ort.InferenceSession> {
  return ort.InferenceSession.create(model, { executionProviders: ['wasm'] }).catch((error: unknown) => {
    throw new EngineError(`onnxruntime-web cannot open the frozen part: ${String(error)}`);
  });
}
