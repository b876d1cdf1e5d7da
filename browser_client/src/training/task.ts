/** What a client does with one task; follows agents/core/learning/task.py step by step. */
import { augment } from './augment';
import { CheckError } from '../words/checks';
import type { Engine } from './engine';
import { toPixelValues } from './pixels';
import type { Task, TaskSpec, UpdateMetrics } from '../words/protocol';
import type { Images } from './safetensors';

/** How far a task is; `loss` is that of the latest step, `share` how much of the training is done. */
export interface TaskProgress {
  readonly phase: 'predict' | 'train';
  readonly images_seen: number;
  readonly mismatched_images: number;
  readonly trained_images: number;
  readonly loss: number | null;
  readonly share: number;
}

/** What a task gives back: `delta` is trained minus base. */
export interface TaskResult {
  readonly delta: Float32Array<ArrayBuffer>;
  readonly metrics: UpdateMetrics;
}

export interface TaskInputs {
  readonly task: Task;
  readonly spec: TaskSpec;
  readonly images: Images;
  readonly base: Float32Array;
  readonly table: readonly Float32Array[];
}

/** Called after the prediction, which it gets, and after each step; it may throw to give the task up. */
export type OnProgress = (progress: TaskProgress, predictions: readonly number[]) => Promise<void> | void;

/**
 * Predicts all images in one batch (the first of equal logits wins). Then, `spec.epochs` times and in the order of the
 * shard, takes one step for each labelled image whose prediction differs from its label, on the original and its
 * `spec.augmentations` copies. Throws CheckError when shard and labels differ in number.
 */
export async function runTask(inputs: TaskInputs, engine: Engine, onProgress: OnProgress): Promise<TaskResult> {
  const { task, spec, images, base, table } = inputs;
  if (images.count !== task.labels.length || images.channels !== table.length) {
    throw new CheckError(
      `task: ${task.labels.length} labels for ${images.count} images of ${images.channels} channels`,
    );
  }
  const started = performance.now();
  await engine.begin(base);
  const known = await featuresOf(engine, images, table);
  const predictions = images.count === 0 ? [] : firstMaxima(await engine.predict(known, images.count), images.count);
  const wrong = predictions.flatMap((prediction, index) => {
    const label = task.labels[index] ?? null;
    return label !== null && label !== prediction ? [{ index, label }] : [];
  });
  const predicted = performance.now();
  const seen = { images_seen: images.count, mismatched_images: wrong.length };
  await onProgress({ phase: 'predict', ...seen, trained_images: 0, loss: null, share: 0 }, predictions);

  const losses: number[] = [];
  const batches: Float32Array<ArrayBuffer>[] = [];
  const size = known.length / images.count;
  const count = 1 + spec.augmentations;
  for (let epoch = 0; epoch < spec.epochs; epoch++) {
    for (const [at, { index, label }] of wrong.entries()) {
      // Features are computed once: those of the original with the prediction, those of the copies in the first epoch.
      batches[at] ??= joined(
        known.subarray(index * size, (index + 1) * size),
        await featuresOf(engine, copiesOf(augment(images, index, spec.augmentations, task.seed, spec.augmentation)), table),
      );
      const loss = await engine.trainStep(batches[at], count, label);
      losses.push(loss);
      const trained = losses.length * count;
      const share = losses.length / (spec.epochs * wrong.length);
      await onProgress({ phase: 'train', ...seen, trained_images: trained, loss, share }, predictions);
    }
  }
  const delta =
    losses.length > 0
      ? (await engine.parameters()).map((value, index) => value - base[index]!)
      : new Float32Array(base.length);
  return {
    delta,
    metrics: {
      predictions,
      examples: task.labels.filter((label) => label !== null).length,
      mismatched_images: wrong.length,
      trained_images: losses.length * count,
      loss_first: losses[0] ?? null,
      loss_last: losses.at(-1) ?? null,
      predict_s: (predicted - started) / 1000,
      train_s: (performance.now() - predicted) / 1000,
    },
  };
}

async function featuresOf(engine: Engine, images: Images, table: readonly Float32Array[]): Promise<Float32Array<ArrayBuffer>> {
  return images.count === 0 ? new Float32Array() : engine.features(toPixelValues(images, table), images.count);
}

/** The augmented copies of a batch, without the original that comes first. */
function copiesOf(batch: Images): Images {
  return { ...batch, count: batch.count - 1, data: batch.data.subarray(batch.data.length / batch.count) };
}

function joined(first: Float32Array, rest: Float32Array): Float32Array<ArrayBuffer> {
  const all = new Float32Array(first.length + rest.length);
  all.set(first);
  all.set(rest, first.length);
  return all;
}

/** For each row of logits [count, classes] the place of its largest value, the first of equals. */
export function firstMaxima(logits: Float32Array, count: number): number[] {
  const classes = logits.length / count;
  return Array.from({ length: count }, (_, row) => {
    let best = 0;
    for (let at = 1; at < classes; at++) {
      if (logits[row * classes + at]! > logits[row * classes + best]!) best = at;
    }
    return best;
  });
}
