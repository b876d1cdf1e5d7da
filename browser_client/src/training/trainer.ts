/** What page and worker say to each other, and the page's end of it. */
import type { Ref, Task, UpdateMetrics } from '../words/protocol';
import { LastingWorker } from './lasting_worker';
import type { Images } from './safetensors';
import type { TaskProgress } from './task';

export interface TrainerSettings {
  readonly objectsFolder: string;
  readonly token: string;
  readonly wasmFolder: string;
  readonly threads: number;
  /** The name of the engine that was asked for, or empty. */
  readonly engine: string;
}

export type TrainerCommand =
  | { readonly type: 'settings'; readonly settings: TrainerSettings }
  /** Fetch what the task needs, while another one may be training. */
  | { readonly type: 'prepare'; readonly lease: string; readonly task: Task }
  | { readonly type: 'run'; readonly lease: string; readonly task: Task }
  | { readonly type: 'drop'; readonly lease: string };

export type TrainerEvent =
  /** What trains, and why: said before the first task, and again when an engine was opened for a model. */
  | { readonly type: 'ready'; readonly engine: string; readonly reason: string }
  /** Nothing can train here. */
  | { readonly type: 'unable'; readonly reason: string }
  | { readonly type: 'download'; readonly ref: Ref; readonly loaded: number }
  | { readonly type: 'started'; readonly lease: string; readonly images: Images; readonly classes: readonly string[] }
  | {
      readonly type: 'progress';
      readonly lease: string;
      readonly progress: TaskProgress;
      readonly predictions: readonly number[];
    }
  | {
      readonly type: 'done';
      readonly lease: string;
      readonly bytes: Uint8Array<ArrayBuffer>;
      readonly sha256: string;
      readonly metrics: UpdateMetrics;
    }
  | { readonly type: 'dropped'; readonly lease: string }
  | { readonly type: 'failed'; readonly lease: string; readonly reason: string };

/** Does tasks one after another and tells how they go. */
export interface Trainer {
  onEvent: (event: TrainerEvent) => void;
  /** Nothing more comes from it. */
  onCrash: (reason: string) => void;
  post(command: TrainerCommand): void;
}

/** The trainer in a module worker: a training step blocks its thread, and the page must stay alive. */
export class WorkerTrainer implements Trainer {
  onEvent: (event: TrainerEvent) => void = () => undefined;
  onCrash: (reason: string) => void = () => undefined;
  readonly #worker = new LastingWorker(
    () => new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'trainer' }),
    (data) => this.onEvent(data as TrainerEvent),
    (reason) => this.onCrash(reason),
  );

  post(command: TrainerCommand): void {
    this.#worker.post(command);
  }
}
