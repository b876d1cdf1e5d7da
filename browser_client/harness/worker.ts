/** Runs the client's own modules for browser tests: tasks with a record of their batches, or get/load/train cycles. */
import { sha256Hex } from '../src/objects/digest';
import { ObjectStore } from '../src/objects/store';
import { choose, engines } from '../src/training/choice';
import type { Engine } from '../src/training/engine';
import { kindOf } from '../src/training/kind';
import { filesOf, offered, parseManifest } from '../src/training/manifest';
import { runTask } from '../src/training/task';
import { parseJson } from '../src/words/checks';
import { type Ref, type Task, type TaskSpec, taskSpec } from '../src/words/protocol';

export interface HarnessCommand {
  /** Done one after another by one engine, which is kept while their artifacts stay the same. */
  readonly tasks: readonly Task[];
  readonly threads: number;
  /** Zero: run the tasks. Otherwise so many cycles of get, load and train on the first one's first image. */
  readonly cycles: number;
}

/** Notes the digest of every input that the model sees. */
class RecordingEngine implements Engine {
  batches: string[] = [];

  constructor(private readonly engine: Engine) {}

  async predict(features: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array> {
    this.batches.push(await sha256Hex(new Uint8Array(features.buffer)));
    return this.engine.predict(features, count);
  }

  async trainStep(features: Float32Array<ArrayBuffer>, targets: readonly number[]): Promise<number> {
    this.batches.push(await sha256Hex(new Uint8Array(features.buffer)));
    return this.engine.trainStep(features, targets);
  }

  begin(base: Float32Array, learningRate: number): Promise<void> {
    return this.engine.begin(base, learningRate);
  }

  features(inputs: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array<ArrayBuffer>> {
    return this.engine.features(inputs, count);
  }

  parameters(): Promise<Float32Array<ArrayBuffer>> {
    return this.engine.parameters();
  }

  release(): Promise<void> {
    return this.engine.release();
  }
}

const folder = new URL('../', self.location.href).href;
const objects = new ObjectStore(`${folder}objects/`, null);
const json = async (ref: Ref): Promise<string> => new TextDecoder().decode(await objects.get(ref));
const specOf = async (task: Task): Promise<TaskSpec> => parseJson(await json(task.spec), taskSpec, 'spec');

interface Opened {
  readonly artifacts: string;
  readonly engine: RecordingEngine;
}

async function run({ tasks, threads, cycles }: HarnessCommand): Promise<unknown> {
  const results: unknown[] = [];
  let opened: Opened | null = null;
  for (const task of tasks) {
    const spec = await specOf(task);
    const manifest = parseManifest(await json(spec.artifacts));
    if (opened === null || opened.artifacts !== spec.artifacts.sha256) {
      await opened?.engine.release();
      const { maker } = await choose('', Object.keys(offered(manifest)), engines());
      const files = await Promise.all(
        [...filesOf(manifest, maker.opens)].map(async ([role, ref]) => [role, await objects.get(ref)] as const),
      );
      const engine = await maker.open(manifest, new Map(files), { wasmFolder: folder, threads });
      opened = { artifacts: spec.artifacts.sha256, engine: new RecordingEngine(engine) };
    }
    const { engine }: Opened = opened;
    const kind = kindOf(spec)(manifest.model);
    const shard = kind.decode(await objects.get(task.shard));
    const base = new Float32Array((await objects.get(spec.base_model)).buffer);
    if (cycles > 0) {
      const first = shard.inputs().slice(0, shard.inputs().length / shard.count);
      return cycle(engine, first, base, spec.learning_rate, cycles);
    }
    engine.batches = [];
    const { delta, metrics } = await runTask({ task, spec, shard, base }, kind, engine, () => undefined);
    results.push({ delta: [...delta], metrics, batches: engine.batches });
  }
  return results;
}

/** The losses of many rounds through the functions that corrupted the heap. */
async function cycle(
  engine: Engine,
  inputs: Float32Array<ArrayBuffer>,
  base: Float32Array,
  rate: number,
  cycles: number,
): Promise<number[]> {
  const losses: number[] = [];
  for (let parameters = base; losses.length < cycles; parameters = await engine.parameters()) {
    await engine.begin(parameters, rate);
    losses.push(await engine.trainStep(inputs, [0]));
  }
  return losses;
}

self.onmessage = (message: MessageEvent<HarnessCommand>) => {
  run(message.data).then(
    (result) => self.postMessage({ result }),
    (error: unknown) => self.postMessage({ error: String(error instanceof Error ? error.stack : error) }),
  );
};
