/** Does tasks with an engine: fetches what they need, runs them in turn, and gives up those that were dropped. */
import { sha256Hex } from '../objects/digest';
import type { ObjectStore } from '../objects/store';
import { CheckError, parseJson } from '../words/checks';
import { type Task, type TaskSpec, taskSpec } from '../words/protocol';
import { type Choice, choose, type Engines } from './choice';
import { encodeUpdate } from './encoding';
import type { Engine, EngineOptions } from './engine';
import { kindOf, type TaskKind } from './kind';
import { filesOf, type Manifest, offered, parseManifest } from './manifest';
import { whyTooLarge } from './memory';
import { runTask } from './task';
import type { TrainerEvent } from './trainer';

/** What a runner trains with. */
export interface RunnerOptions extends EngineOptions {
  readonly engines: Engines;
  /** The name of the engine that was asked for, or empty. */
  readonly wanted: string;
  /** What the browser says of its memory, if anything. */
  readonly deviceGigabytes: number | undefined;
}

/** What all tasks of one round share, fetched. */
interface RoundInputs {
  readonly spec: TaskSpec;
  readonly manifest: Manifest;
  readonly kind: TaskKind;
  readonly choice: Choice;
  readonly base: Float32Array;
}

class Dropped extends Error {}

export class TaskRunner {
  #current: { readonly lease: string; dropped: boolean } | null = null;
  #round: { readonly spec: string; readonly inputs: Promise<RoundInputs> } | null = null;
  #opened: { readonly artifacts: string; readonly engine: Engine } | null = null;
  #turn: Promise<void> = Promise.resolve();

  constructor(
    private readonly options: RunnerOptions,
    private readonly objects: ObjectStore,
    private readonly say: (event: TrainerEvent, transfer?: Transferable[]) => void,
  ) {}

  /** Says which engine will train, as far as that is known before the artifacts are; throws EngineChoiceError. */
  async announce(): Promise<void> {
    await this.#tell(await choose(this.options.wanted, null, this.options.engines));
  }

  /** Fetches ahead. A failure shows again, and is reported, when the task runs. */
  async prepare(task: Task): Promise<void> {
    await Promise.allSettled([this.#roundInputs(task), this.objects.get(task.shard)]);
  }

  /** Runs the task after those before it; never rejects. */
  run(lease: string, task: Task): Promise<void> {
    this.#turn = this.#turn.then(() => this.#run(lease, task));
    return this.#turn;
  }

  /** Gives up the running task at its next step. */
  drop(lease: string): void {
    if (this.#current?.lease === lease) this.#current.dropped = true;
  }

  async #run(lease: string, task: Task): Promise<void> {
    this.#current = { lease, dropped: false };
    try {
      await this.#train(lease, task);
    } catch (error) {
      if (error instanceof Dropped) this.say({ type: 'dropped', lease });
      else
        this.say({ type: 'failed', lease, reason: error instanceof Error ? error.message : `error ${String(error)}` });
    } finally {
      this.#current = null;
    }
  }

  async #train(lease: string, task: Task): Promise<void> {
    const round = await this.#roundInputs(task);
    const { spec, manifest, kind, base } = round;
    const shard = kind.decode(await this.objects.get(task.shard));
    this.say({ type: 'started', lease, images: shard.pictures, classes: manifest.model.classes });
    const engine = await this.#open(round);
    const { delta, metrics } = await runTask({ task, spec, shard, base }, kind, engine, async (progress, predictions) => {
      this.say({ type: 'progress', lease, progress, predictions });
      await otherEvents();
      if (this.#current?.dropped) throw new Dropped();
    });
    const bytes = encodeUpdate(delta, spec.encoding);
    this.say({ type: 'done', lease, bytes, sha256: await sha256Hex(bytes), metrics }, [bytes.buffer]);
  }

  /** Keeps the engine from task to task while they are of one model. */
  async #open({ spec, manifest, choice }: RoundInputs): Promise<Engine> {
    if (this.#opened?.artifacts === spec.artifacts.sha256) return this.#opened.engine;
    const before = this.#opened;
    this.#opened = null;
    await before?.engine.release();
    const files = [...filesOf(manifest, choice.maker.opens)];
    const bytes = await Promise.all(files.map(async ([role, ref]) => [role, await this.objects.get(ref)] as const));
    const engine = await choice.maker.open(manifest, new Map(bytes), this.options);
    this.#opened = { artifacts: spec.artifacts.sha256, engine };
    await this.#tell(choice);
    return engine;
  }

  async #tell({ name, maker, reason }: Choice): Promise<void> {
    this.say({ type: 'ready', engine: await maker.label(this.options), reason: `${name}, ${reason}` });
  }

  /** Kept for the newest round only; a failure is forgotten, so that the next task tries again. */
  #roundInputs(task: Task): Promise<RoundInputs> {
    if (this.#round?.spec !== task.spec.sha256) {
      const inputs = this.#fetchRound(task);
      const round = { spec: task.spec.sha256, inputs };
      this.#round = round;
      inputs.catch(() => {
        if (this.#round === round) this.#round = null;
      });
    }
    return this.#round!.inputs;
  }

  /** Whatever this client cannot do shows before anything large is fetched. */
  async #fetchRound(task: Task): Promise<RoundInputs> {
    const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
    const spec = parseJson(decode(await this.objects.get(task.spec)), taskSpec, 'spec');
    const openKind = kindOf(spec);
    const manifest = parseManifest(decode(await this.objects.get(spec.artifacts)));
    const choice = await choose(this.options.wanted, Object.keys(offered(manifest)), this.options.engines);
    const files = filesOf(manifest, choice.maker.opens).values();
    const tooLarge = whyTooLarge(manifest, files, 1 + spec.augmentations, this.options.deviceGigabytes);
    if (tooLarge !== null) throw new CheckError(tooLarge);
    const base = await this.objects.get(spec.base_model);
    return {
      spec,
      manifest,
      kind: openKind(manifest.model),
      choice,
      base: new Float32Array(base.buffer, base.byteOffset, base.byteLength / 4),
    };
  }
}

/** Lets messages in: awaiting the engine alone never returns to the worker's event loop. */
function otherEvents(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
