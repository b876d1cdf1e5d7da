import { describe, expect, test } from 'vitest';
import { withLearningRate } from '../../src/training/learning_rate';
import { bytes, vectors } from '../vectors';

interface Case {
  name: string;
  initializer: string;
  rate: number;
  model: string;
  changed: string;
}

const CASES = vectors<Case[]>('learning_rates');
const { model, initializer } = CASES[0]!;
const refused = expect.objectContaining({ name: 'OptimizerModelError' });

describe('the learning rate of an optimizer model', () => {
  test.each(CASES)('is set to the same bytes as in Python: $name', (one) => {
    expect(withLearningRate(bytes(one.model), one.initializer, one.rate)).toEqual(bytes(one.changed));
  });

  test('leaves the model that it came from as it is', () => {
    const before = bytes(model);
    withLearningRate(before, initializer, 7);
    expect(before).toEqual(bytes(model));
  });

  test.each([0, -1, NaN, Infinity, 1e-60, 1e60])('is not %d', (rate) => {
    expect(() => withLearningRate(bytes(model), initializer, rate)).toThrow(refused);
  });

  test.each([
    ['no bytes', new Uint8Array()],
    ['text', new TextEncoder().encode('no model at all')],
    ['ones', new Uint8Array(64).fill(255)],
    ['a cut model', bytes(model).slice(0, -40)],
  ])('is not found in %s', (_, content) => {
    expect(() => withLearningRate(content, initializer, 0.1)).toThrow(refused);
  });

  test('is not found under another name', () => {
    expect(() => withLearningRate(bytes(model), 'another', 0.1)).toThrow('no float32 [1] initializer "another"');
  });

  test('is found or refused wherever a model is cut or a byte is wrong', () => {
    const whole = bytes(model);
    for (let at = 0; at < whole.length; at++) {
      const wrong = Uint8Array.from(whole);
      wrong[at]! ^= 0xff;
      for (const content of [whole.slice(0, at), wrong]) {
        try {
          expect(withLearningRate(content, initializer, 0.1)).toHaveLength(content.length);
        } catch (error) {
          expect(error).toEqual(refused);
        }
      }
    }
  });
});
