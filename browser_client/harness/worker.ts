/** Runs the client's own modules for browser tests: tasks with a record of their batches, or get/load/train cycles. */
import { fetchFiles } from '../src/training/artifacts';
import { parseJson } from '../src/words/checks';
import { sha256Hex } from '../src/objects/digest';
import { OrtTrainingEngine } from '../src/training/engines/ort_training';
import { parseManifest } from '../src/training/manifest';
import { ObjectStore } from '../src/objects/store';
import { pixelTable, toPixelValues } from '../src/training/pixels';
import { type Ref, type Task, taskSpec } from '../src/words/protocol';
import { readImages } from '../src/training/safetensors';
import { runTask } from '../src/training/task';

export interface HarnessCommand {
  /** Done one after another by one engine, which loads the artifacts of the first. */
  readonly tasks: readonly Task[];
  readonly threads: number;
  /** Zero: run the tasks. Otherwise so many cycles of get, load and train on the first one's first image. */
  readonly cycles: number;
}

/** Notes the digest of every input that the model sees. */
class RecordingEngine extends OrtTrainingEngine {
  batches: string[] = [];

  override async predict(pixelValues: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array> {
    this.batches.push(await sha256Hex(new Uint8Array(pixelValues.buffer)));
    return super.predict(pixelValues, count);
  }

  override async trainStep(pixelValues: Float32Array<ArrayBuffer>, count: number, label: number): Promise<number> {
    this.batches.push(await sha256Hex(new Uint8Array(pixelValues.buffer)));
    return super.trainStep(pixelValues, count, label);
  }
}

const folder = new URL('../', self.location.href).href;
const objects = new ObjectStore(`${folder}objects/`, null);
const json = async (ref: Ref): Promise<string> => new TextDecoder().decode(await objects.get(ref));

async function run({ tasks, threads, cycles }: HarnessCommand): Promise<unknown> {
  const engine = new RecordingEngine({ wasmFolder: folder, threads });
  const first = parseJson(await json(tasks[0]!.spec), taskSpec, 'spec');
  const manifest = parseManifest(await json(first.artifacts));
  await engine.load(manifest, await fetchFiles(manifest, objects));
  const table = pixelTable(manifest.model.mean, manifest.model.std);
  const results: unknown[] = [];
  for (const task of tasks) {
    const spec = parseJson(await json(task.spec), taskSpec, 'spec');
    const images = readImages(await objects.get(task.shard));
    const base = new Float32Array((await objects.get(spec.base_model)).buffer);
    engine.setOptimizer(await objects.get(spec.optimizer));
    if (cycles > 0) return cycle(engine, toPixelValues({ ...images, count: 1 }, table), base, cycles);
    engine.batches = [];
    const { delta, metrics } = await runTask({ task, spec, images, base, table }, engine, () => undefined);
    results.push({ delta: [...delta], metrics, batches: engine.batches });
  }
  return results;
}

/** The losses of many rounds through the functions that corrupted the heap. */
async function cycle(
  engine: RecordingEngine,
  pixels: Float32Array<ArrayBuffer>,
  base: Float32Array,
  cycles: number,
): Promise<number[]> {
  const losses: number[] = [];
  for (let parameters = base; losses.length < cycles; parameters = await engine.parameters()) {
    await engine.begin(parameters);
    losses.push(await engine.trainStep(pixels, 1, 0));
  }
  return losses;
}

self.onmessage = (message: MessageEvent<HarnessCommand>) => {
  run(message.data).then(
    (result) => self.postMessage({ result }),
    (error: unknown) => self.postMessage({ error: String(error instanceof Error ? error.stack : error) }),
  );
};
