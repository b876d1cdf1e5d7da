/** What a client does with one task; follows agents/core/learning/task.py step by step. */
import { CheckError } from '../words/checks';
import type { Task, TaskSpec, UpdateMetrics } from '../words/protocol';
import type { Engine } from './engine';
import type { Batch, Shard, TaskKind } from './kind';

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
  readonly shard: Shard;
  readonly base: Float32Array;
}

/** Called after the prediction, which it gets, and after each step; it may throw to give the task up. */
export type OnProgress = (progress: TaskProgress, predictions: readonly number[]) => Promise<void> | void;

interface Step {
  readonly features: Float32Array<ArrayBuffer>;
  readonly targets: readonly number[];
}

/**
 * Predicts all examples at once. Then takes, `spec.epochs` times, the steps that the kind makes of the examples that it
 * chooses. Throws CheckError when shard and labels differ in number.
 */
export async function runTask(
  inputs: TaskInputs,
  kind: TaskKind,
  engine: Engine,
  onProgress: OnProgress,
): Promise<TaskResult> {
  const { task, spec, shard, base } = inputs;
  if (shard.count !== task.labels.length) {
    throw new CheckError(`task: ${task.labels.length} labels for ${shard.count} examples`);
  }
  const started = performance.now();
  await engine.begin(base, spec.learning_rate);
  const known = shard.count === 0 ? new Float32Array() : await engine.features(shard.inputs(), shard.count);
  const predictions =
    shard.count === 0 ? [] : kind.predictions(await engine.predict(known, shard.count), shard.count);
  const chosen = kind.choose(predictions, task.labels);
  const predicted = performance.now();
  const seen = { images_seen: shard.count, mismatched_images: chosen.length };
  await onProgress({ phase: 'predict', ...seen, trained_images: 0, loss: null, share: 0 }, predictions);

  const losses: number[] = [];
  let trained = 0;
  const take = async ({ features, targets }: Step): Promise<void> => {
    const loss = await engine.trainStep(features, targets);
    losses.push(loss);
    trained += targets.length;
    const share = losses.length / (spec.epochs * chosen.length);
    await onProgress({ phase: 'train', ...seen, trained_images: trained, loss, share }, predictions);
  };
  // Features are computed once: those of the shard's own examples with the prediction, others in the first epoch.
  const steps: Step[] = [];
  for (const batch of shard.batches(chosen, task, spec)) {
    steps.push({ features: await featuresOf(engine, known, shard.count, batch), targets: batch.targets });
    await take(steps.at(-1)!);
  }
  for (let epoch = 1; epoch < spec.epochs; epoch++) for (const step of steps) await take(step);
  const delta =
    losses.length > 0
      ? (await engine.parameters()).map((value, index) => value - base[index]!)
      : new Float32Array(base.length);
  return {
    delta,
    metrics: {
      predictions,
      examples: task.labels.filter((label) => label !== null).length,
      mismatched_images: chosen.length,
      trained_images: trained,
      loss_first: losses[0] ?? null,
      loss_last: losses.at(-1) ?? null,
      predict_s: (predicted - started) / 1000,
      train_s: (performance.now() - predicted) / 1000,
      platform: 'browser',
    },
  };
}

/** Features of a batch; `known` are those of all `count` examples of the shard. */
async function featuresOf(
  engine: Engine,
  known: Float32Array<ArrayBuffer>,
  count: number,
  { own, inputs, made }: Batch,
): Promise<Float32Array<ArrayBuffer>> {
  const size = known.length / count;
  const rest = made === 0 ? new Float32Array() : await engine.features(inputs, made);
  const all = new Float32Array(own.length * size + rest.length);
  for (const [at, place] of own.entries()) all.set(known.subarray(place * size, (place + 1) * size), at * size);
  all.set(rest, own.length * size);
  return all;
}
