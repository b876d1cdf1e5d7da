/** What a kind of task is: what lies in a shard, what the outputs say, what to train on; see agents/core/learning/contracts.py. */
import type { Task, TaskSpec } from '../words/protocol';
import type { Manifest } from './manifest';
import { moduleName } from './module_name';
import type { Images } from './safetensors';

/** What one step trains on: examples of the shard as they are, then others that were made from them. */
export interface Batch {
  /** Places in the shard; their features are known from the prediction. */
  readonly own: readonly number[];
  /** The model's inputs of `made` further examples. */
  readonly inputs: Float32Array<ArrayBuffer>;
  readonly made: number;
  /** What the loss compares the outputs of all with. */
  readonly targets: readonly number[];
}

/** The examples of one user. */
export interface Shard {
  readonly count: number;
  /** What the page shows of them; of count 0 where there is nothing to see. */
  readonly pictures: Images;
  /** What the model takes for all of them. */
  inputs(): Float32Array<ArrayBuffer>;
  /** The steps of one epoch, one for each of the chosen examples. */
  batches(chosen: readonly number[], task: Task, spec: TaskSpec): Iterable<Batch>;
}

/** One kind of task for one model. */
export interface TaskKind {
  /** What the bytes of a shard hold; throws CheckError when they are none of this kind. */
  decode(shard: Uint8Array<ArrayBuffer>): Shard;
  /** What the outputs of `count` examples say, comparable with labels. */
  predictions(outputs: Float32Array, count: number): number[];
  /** The places of the examples to train on, in the order of the steps; a label that is null was dropped. */
  choose(predictions: readonly number[], labels: Task['labels']): number[];
}

/** What a module of `kinds/` has as `openKind`. */
export type OpenKind = (model: Manifest['model']) => TaskKind;

/** The kind of a task whose spec names none. */
const DEFAULT_KIND = 'image-classification';

/** The task is of a kind that this client does not know. */
export class TaskKindError extends Error {
  override readonly name = 'TaskKindError';
  readonly code = 'task_kind_unknown';
}

const MODULES = import.meta.glob<OpenKind>('./kinds/*.ts', { eager: true, import: 'openKind' });
const KINDS = new Map(Object.entries(MODULES).map(([path, open]) => [moduleName(path), open]));

/** The kind that a spec names; throws TaskKindError for one that is not among the modules of `kinds/`. */
export function kindOf(spec: Pick<TaskSpec, 'kind'>): OpenKind {
  const name = spec.kind ?? DEFAULT_KIND;
  const open = KINDS.get(name);
  if (open !== undefined) return open;
  const known = [...KINDS.keys()].sort().join(', ');
  throw new TaskKindError(`there is no kind of task ${JSON.stringify(name)}; there is ${known}. Reload the page.`);
}
