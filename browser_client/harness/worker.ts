/** Runs the client's own modules for browser tests: one task with a record of its batches, or many get/load/train cycles. */
import { parseJson } from '../src/checks';
import { sha256Hex } from '../src/digest';
import { OrtTrainingEngine } from '../src/engines/ort_training';
import { parseManifest } from '../src/manifest';
import { ObjectStore } from '../src/objects';
import { pixelTable, toPixelValues } from '../src/pixels';
import { type Task, taskSpec } from '../src/protocol';
import { readImages } from '../src/safetensors';
import { runTask } from '../src/task';

export interface HarnessCommand {
  readonly task: Task;
  readonly threads: number;
  /** Zero: run the task. Otherwise so many cycles of get, load and train on its first image. */
  readonly cycles: number;
}

/** Notes the digest of every input that the model sees. */
class RecordingEngine extends OrtTrainingEngine {
  readonly batches: string[] = [];

  override async predict(pixelValues: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array> {
    this.batches.push(await sha256Hex(new Uint8Array(pixelValues.buffer)));
    return super.predict(pixelValues, count);
  }

  override async trainStep(pixelValues: Float32Array<ArrayBuffer>, count: number, label: number): Promise<number> {
    this.batches.push(await sha256Hex(new Uint8Array(pixelValues.buffer)));
    return super.trainStep(pixelValues, count, label);
  }
}

async function run({ task, threads, cycles }: HarnessCommand): Promise<unknown> {
  const folder = new URL('../', self.location.href).href;
  const objects = new ObjectStore(`${folder}objects/`, null);
  const decoder = new TextDecoder();
  const spec = parseJson(decoder.decode(await objects.get(task.spec)), taskSpec, 'spec');
  const manifest = parseManifest(decoder.decode(await objects.get(spec.artifacts)));
  const images = readImages(await objects.get(task.shard));
  const base = new Float32Array((await objects.get(spec.base_model)).buffer);
  const engine = new RecordingEngine({ wasmFolder: folder, threads });
  await engine.load(manifest, {
    trainingModel: await objects.get(manifest.files.training_model),
    evalModel: await objects.get(manifest.files.eval_model),
    checkpoint: await objects.get(manifest.files.checkpoint),
  });
  engine.setOptimizer(await objects.get(spec.optimizer));
  const table = pixelTable(manifest.model.mean, manifest.model.std);
  if (cycles === 0) {
    const { delta, metrics } = await runTask({ task, spec, images, base, table }, engine, () => undefined);
    return { delta: [...delta], metrics, batches: engine.batches };
  }
  const pixels = toPixelValues({ ...images, count: 1 }, table);
  const losses: number[] = [];
  let parameters: Float32Array = base;
  for (let cycle = 0; cycle < cycles; cycle++) {
    await engine.begin(parameters);
    losses.push(await engine.trainStep(pixels, 1, task.labels[0] ?? 0));
    parameters = await engine.parameters();
  }
  return { losses };
}

self.onmessage = (message: MessageEvent<HarnessCommand>) => {
  run(message.data).then(
    (result) => self.postMessage({ result }),
    (error: unknown) => self.postMessage({ error: String(error instanceof Error ? error.stack : error) }),
  );
};
