import { describe, expect, test } from 'vitest';
import { augment, mix } from '../../src/training/augment';
import { sha256Hex } from '../../src/objects/digest';
import type { AugmentationSpec } from '../../src/words/protocol';
import type { Images } from '../../src/training/safetensors';
import { bytes, vectors } from '../vectors';

interface Case {
  name: string;
  shape: [number, number, number, number];
  indices: number[];
  copies: number;
  seed: number;
  spec: AugmentationSpec;
  sha256: string;
  batches: string | null;
}

const cases = vectors<Case[]>('augment');

/** The same pattern as make_vectors.py makes up. */
function pattern([count, height, width, channels]: Case['shape']): Images {
  const data = Uint8Array.from(
    { length: count * height * width * channels },
    (_, k) => Math.floor((k * k + 31 * k) / 7) % 256,
  );
  return { count, height, width, channels, data };
}

function batches({ shape, indices, copies, seed, spec }: Case): Uint8Array<ArrayBuffer> {
  const images = pattern(shape);
  const parts = indices.map((index) => augment(images, index, copies, seed, spec).data);
  return Uint8Array.from(Buffer.concat(parts));
}

describe('augmentation', () => {
  test.each(cases)('computes the same bytes as Python: $name', async (one) => {
    const computed = batches(one);
    if (one.batches !== null) expect(computed).toEqual(bytes(one.batches));
    expect(await sha256Hex(computed)).toBe(one.sha256);
  });

  test('another seed gives another batch', async () => {
    const one = cases[0]!;
    expect(await sha256Hex(batches({ ...one, seed: one.seed + 1 }))).not.toBe(one.sha256);
  });

  test('lowbias32 stays an unsigned 32-bit number', () => {
    for (const value of [0, 1, 0x7fffffff, 0x80000000, 0xffffffff]) {
      expect(mix(value)).toBeGreaterThanOrEqual(0);
      expect(mix(value)).toBeLessThan(2 ** 32);
    }
  });

  test('sides and copies beyond the limits are refused', () => {
    const { spec } = cases[0]!;
    expect(() => augment(pattern([1, 1025, 1, 1]), 0, 1, 0, spec)).toThrow(RangeError);
    expect(() => augment(pattern([1, 2, 2, 1]), 0, 64, 0, spec)).toThrow(RangeError);
  });
});
