import { describe, expect, test } from 'vitest';
import { augment } from '../../src/training/augment';
import type { Engine } from '../../src/training/engine';
import { kindOf } from '../../src/training/kind';
import { pixelTable, toPixelValues } from '../../src/training/pixels';
import { parseJson } from '../../src/words/checks';
import { type Task, type TaskSpec, taskSpec } from '../../src/words/protocol';
import type { Images } from '../../src/training/safetensors';
import { runTask, type TaskProgress } from '../../src/training/task';
import { shardOf, vectors } from '../vectors';

const SPEC = parseJson(JSON.stringify(vectors<{ spec: unknown }>('protocol').spec), taskSpec, 'spec');
const TABLE = pixelTable([0.5], [0.5]);
const KIND = kindOf({ kind: null })({ image_size: 6, channels: 1, classes: ['a', 'b', 'c'], mean: [0.5], std: [0.5] });
const BASE = Float32Array.of(1, 2, 3);
const data = Uint8Array.from({ length: 5 * 36 }, (_, k) => (k * 31) % 256);
const IMAGES: Images = { count: 5, height: 6, width: 6, channels: 1, data };

/** Predicts class 1 for every image (classes 1 and 2 tie) and adds one half to each parameter at each step. */
class WritingEngine implements Engine {
  rate = NaN;
  readonly predicted: number[] = [];
  readonly steps: { pixels: Float32Array; targets: readonly number[] }[] = [];
  #values = Float32Array.of(NaN, NaN, NaN);

  async begin(base: Float32Array, learningRate: number): Promise<void> {
    this.rate = learningRate;
    this.#values = Float32Array.from(base);
  }
  async features(pixels: Float32Array<ArrayBuffer>): Promise<Float32Array<ArrayBuffer>> {
    return pixels;
  }
  async predict(_: Float32Array, count: number): Promise<Float32Array> {
    this.predicted.push(count);
    return Float32Array.from({ length: 3 * count }, (__, k) => (k % 3 === 0 ? 0 : 5));
  }
  async trainStep(pixels: Float32Array, targets: readonly number[]): Promise<number> {
    this.steps.push({ pixels, targets });
    this.#values = this.#values.map((value) => value + 0.5);
    return this.steps.length;
  }
  async parameters(): Promise<Float32Array<ArrayBuffer>> {
    return Float32Array.from(this.#values);
  }
  async release(): Promise<void> {}
}

async function run(labels: Task['labels'], changes: Partial<TaskSpec> = {}) {
  const engine = new WritingEngine();
  const said: TaskProgress[] = [];
  const ref = { size: 1, sha256: 'a'.repeat(64) };
  const task: Task = { run: 'r', round: 1, user: 'u', shard: ref, labels, spec: ref, seed: 77 };
  const shard = KIND.decode(shardOf(IMAGES));
  const inputs = { task, spec: { ...SPEC, augmentations: 2, ...changes }, shard, base: BASE };
  const result = await runTask(inputs, KIND, engine, (progress) => void said.push(progress));
  return { engine, said, result };
}

describe('a task', () => {
  test('trains on labelled mismatches only, in the order of the shard, on the original and its copies', async () => {
    const { engine, result } = await run([1, 0, null, 2, 1]);
    expect(engine.predicted).toEqual([5]);
    expect(engine.steps.map(({ targets }) => targets)).toEqual([
      [0, 0, 0],
      [2, 2, 2],
    ]);
    expect(engine.rate).toBe(SPEC.learning_rate);
    const expected = [1, 3].map((index) => toPixelValues(augment(IMAGES, index, 2, 77, SPEC.augmentation), TABLE));
    expect(engine.steps.map(({ pixels }) => pixels)).toEqual(expected);
    expect([...result.delta]).toEqual([1, 1, 1]);
    expect(result.metrics).toMatchObject({
      predictions: [1, 1, 1, 1, 1],
      examples: 4,
      mismatched_images: 2,
      trained_images: 6,
      loss_first: 1,
      loss_last: 2,
    });
  });

  test('repeats all mismatches in each epoch', async () => {
    const { engine, said, result } = await run([0, 1, 1, 1, 2], { epochs: 3 });
    expect(engine.steps.map(({ targets }) => targets[0])).toEqual([0, 2, 0, 2, 0, 2]);
    expect(result.metrics.trained_images).toBe(18);
    expect(said.map(({ phase, trained_images, loss }) => [phase, trained_images, loss])).toEqual([
      ['predict', 0, null],
      ...[1, 2, 3, 4, 5, 6].map((step) => ['train', 3 * step, step]),
    ]);
    expect(said.at(-1)?.share).toBe(1);
  });

  test('a user without a mismatch gives back a delta of zeros', async () => {
    const { engine, result } = await run([1, 1, null, 1, 1]);
    expect(engine.steps).toEqual([]);
    expect([...result.delta]).toEqual([0, 0, 0]);
    expect(result.metrics).toMatchObject({ loss_first: null, loss_last: null, trained_images: 0, examples: 4 });
  });

  test('labels and images that differ in number are refused', async () => {
    await expect(run([1, 1])).rejects.toThrow('2 labels for 5 examples');
  });
});
