import { describe, expect, test } from 'vitest';
import { augment } from '../../../src/training/augment';
import { kindOf } from '../../../src/training/kind';
import { firstMaxima } from '../../../src/training/kinds/image_classification';
import { pixelTable, toPixelValues } from '../../../src/training/pixels';
import type { Images } from '../../../src/training/safetensors';
import { parseJson } from '../../../src/words/checks';
import { type Task, taskSpec } from '../../../src/words/protocol';
import { shardOf, vectors } from '../../vectors';

const SPEC = parseJson(JSON.stringify(vectors<{ spec: unknown }>('protocol').spec), taskSpec, 'spec');
const MODEL = { image_size: 6, channels: 1, classes: ['a', 'b', 'c'], mean: [0.5], std: [0.5] };
const TABLE = pixelTable([0.5], [0.5]);
const IMAGES: Images = {
  count: 3,
  height: 6,
  width: 6,
  channels: 1,
  data: Uint8Array.from({ length: 3 * 36 }, (_, k) => (k * 31) % 256),
};
const ref = { size: 1, sha256: 'a'.repeat(64) };
const TASK: Task = { run: 'r', round: 1, user: 'u', shard: ref, labels: [0, 2, null], spec: ref, seed: 77 };
const kind = kindOf({ kind: 'image-classification' })(MODEL);

describe('kinds of task', () => {
  test('a spec that names none is of image classification', () => {
    expect(kindOf({ kind: null })).toBe(kindOf({ kind: 'image-classification' }));
  });

  test('an unknown kind is refused with those that there are', () => {
    expect(() => kindOf({ kind: 'poetry' })).toThrow(
      expect.objectContaining({ code: 'task_kind_unknown', message: expect.stringContaining('image-classification') }),
    );
  });
});

describe('image classification', () => {
  test('decodes the images of a shard, shows them and gives the model their pixels', () => {
    const shard = kind.decode(shardOf(IMAGES));
    expect(shard.count).toBe(3);
    expect(shard.pictures).toEqual(IMAGES);
    expect(shard.inputs()).toEqual(toPixelValues(IMAGES, TABLE));
  });

  test('refuses images of other channels than the model has', () => {
    const colour = { ...IMAGES, channels: 3, width: 2 };
    expect(() => kind.decode(shardOf(colour))).toThrow('3 channels for a model of 1');
  });

  test('chooses the labelled images whose prediction differs, in their order', () => {
    expect(kind.choose([1, 1, 1], [0, 1, null])).toEqual([0]);
    expect(kind.choose([1, 1, 1], [2, null, 0])).toEqual([0, 2]);
  });

  test('makes a step of an image and its augmented copies, all with its label', () => {
    const spec = { ...SPEC, augmentations: 2 };
    const steps = [...kind.decode(shardOf(IMAGES)).batches([1], TASK, spec)];
    const whole = toPixelValues(augment(IMAGES, 1, 2, 77, spec.augmentation), TABLE);
    expect(steps).toEqual([{ own: [1], inputs: whole.slice(36), made: 2, targets: [2, 2, 2] }]);
  });

  test('the first of equal logits wins', () => {
    expect(firstMaxima(Float32Array.of(1, 3, 3, -1, -2, -1), 2)).toEqual([1, 0]);
    expect(kind.predictions(Float32Array.of(1, 3, 3, -1, -2, -1), 2)).toEqual([1, 0]);
  });
});
