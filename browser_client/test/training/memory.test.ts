import { describe, expect, test } from 'vitest';
import type { Manifest } from '../../src/training/manifest';
import { forwardBatch, memoryNeed, whyTooLarge } from '../../src/training/memory';

const file = (size: number) => ({ size, sha256: 'a'.repeat(64) });
const GIB = 2 ** 30;
const FILES = [file(6)];

function manifest(memory: Manifest['memory'], split = false): Manifest {
  const suffix = split ? file(7) : null;
  return {
    version: 1,
    name: 'vit',
    model: { image_size: 4, channels: 1, classes: ['a', 'b'], mean: [0.5], std: [0.5] },
    inputs: ['x', 'y'],
    outputs: ['loss', 'logits'],
    optimizer: { stateless: true, learning_rate_initializer: 'rate' },
    trainable_count: 1,
    files: {
      training_model: file(1),
      eval_model: file(2),
      checkpoint: file(3),
      optimizer_model: file(4),
      prefix_model: suffix,
      suffix_training_model: suffix,
      suffix_eval_model: suffix,
      suffix_checkpoint: suffix,
    },
    engines: null,
    prefix: split ? { input: 'x', output: 'h', shape: [3] } : null,
    memory,
  };
}

describe('the memory of a model', () => {
  test('counts parameters, files and the larger of forward pass and step', () => {
    const facts = { parameters: 1000, forward_per_image: 2 ** 29, step_per_image: 10 };
    expect(memoryNeed(manifest(facts), [file(1), file(5)], 7)).toBe(1000 + 6 + 2 ** 29);
    expect(memoryNeed(manifest({ ...facts, forward_per_image: 1, step_per_image: 2 ** 30 }), [file(6)], 7)).toBe(1006 + 7 * 2 ** 30);
  });

  test('bounds the images of a forward pass, never below one', () => {
    const facts = { parameters: 1, forward_per_image: 2 ** 28, step_per_image: 1 };
    expect(forwardBatch(manifest(facts))).toBe(2);
    expect(forwardBatch(manifest({ ...facts, forward_per_image: 2 ** 28 + 1 }))).toBe(1);
    expect(forwardBatch(manifest({ ...facts, forward_per_image: 2 ** 40 }))).toBe(1);
  });

  test('is said in words when the browser cannot hold it', () => {
    const fits = manifest({ parameters: 3 * GIB, forward_per_image: 1, step_per_image: 1 });
    expect(whyTooLarge(fits, FILES, 7, undefined)).toBeNull();
    expect(whyTooLarge(fits, FILES, 7, 8)).toBeNull();
    expect(whyTooLarge(fits, FILES, 7, 2)).toContain('needs about 3.5 GiB of memory to train, this browser has 2.0 GiB');
    const large = manifest({ parameters: 4 * GIB, forward_per_image: 1, step_per_image: 1 });
    expect(whyTooLarge(large, FILES, 7, undefined)).toContain('native client');
  });
});
