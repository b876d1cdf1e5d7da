/** Does tasks with an engine: fetches what they need, runs them in turn, and gives up those that were dropped. */
import { fetchFiles } from './artifacts';
import { sha256Hex } from '../objects/digest';
import { encodeUpdate } from './encoding';
import type { Engine } from './engine';
import { type Manifest, parseManifest } from './manifest';
import type { ObjectStore } from '../objects/store';
import { pixelTable } from './pixels';
import { CheckError, parseJson } from '../words/checks';
import { whyTooLarge } from './memory';
import { type Task, type TaskSpec, taskSpec } from '../words/protocol';
import { readImages } from './safetensors';
import { runTask } from './task';
import type { TrainerEvent } from './trainer';

/** What all tasks of one round share, fetched. */
interface RoundInputs {
  readonly spec: TaskSpec;
  readonly manifest: Manifest;
  readonly base: Float32Array;
  readonly optimizer: Uint8Array;
}

class Dropped extends Error {}

export class TaskRunner {
  #current: { readonly lease: string; dropped: boolean } | null = null;
  #round: { readonly spec: string; readonly inputs: Promise<RoundInputs> } | null = null;
  #loaded: string | null = null;
  #turn: Promise<void> = Promise.resolve();

  constructor(
    private readonly engine: Engine,
    private readonly objects: ObjectStore,
    private readonly say: (event: TrainerEvent, transfer?: Transferable[]) => void,
    private readonly deviceGigabytes: number | undefined,
  ) {}

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
    const { spec, manifest, base, optimizer } = await this.#roundInputs(task);
    const images = readImages(await this.objects.get(task.shard));
    this.say({ type: 'started', lease, images, classes: manifest.model.classes });
    await this.#load(spec.artifacts.sha256, manifest);
    this.engine.setOptimizer(optimizer);
    const table = pixelTable(manifest.model.mean, manifest.model.std);
    const { delta, metrics } = await runTask(
      { task, spec, images, base, table },
      this.engine,
      async (progress, predictions) => {
        this.say({ type: 'progress', lease, progress, predictions });
        await otherEvents();
        if (this.#current?.dropped) throw new Dropped();
      },
    );
    const bytes = encodeUpdate(delta, spec.encoding);
    this.say({ type: 'done', lease, bytes, sha256: await sha256Hex(bytes), metrics }, [bytes.buffer]);
  }

  async #load(artifacts: string, manifest: Manifest): Promise<void> {
    if (this.#loaded === artifacts) return;
    this.#loaded = null;
    await this.engine.load(manifest, await fetchFiles(manifest, this.objects));
    this.#loaded = artifacts;
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

  async #fetchRound(task: Task): Promise<RoundInputs> {
    const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
    const spec = parseJson(decode(await this.objects.get(task.spec)), taskSpec, 'spec');
    const manifest = parseManifest(decode(await this.objects.get(spec.artifacts)));
    const tooLarge = whyTooLarge(manifest, 1 + spec.augmentations, this.deviceGigabytes);
    if (tooLarge !== null) throw new CheckError(tooLarge);
    const [base, optimizer] = await Promise.all([spec.base_model, spec.optimizer].map((ref) => this.objects.get(ref)));
    return {
      spec,
      manifest,
      base: new Float32Array(base!.buffer, base!.byteOffset, base!.byteLength / 4),
      optimizer: optimizer!,
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
