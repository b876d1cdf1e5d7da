import { describe, expect, test } from 'vitest';
import { EncodingError, encodeUpdate } from '../../src/training/encoding';
import { bytes, floats, vectors } from '../vectors';

interface Case {
  name: string;
  encoding: string;
  delta: string;
  bytes: string;
}

describe('encodings of an update', () => {
  test.each(vectors<Case[]>('encodings'))(
    'gives the same bytes as Python: $name',
    ({ encoding, delta, bytes: expected }) => {
      expect(encodeUpdate(floats(delta), encoding)).toEqual(bytes(expected));
    },
  );

  test.each(['float64', 'topk:', 'topk:0', 'topk:2', ''])('refuses the unknown encoding %j', (encoding) => {
    expect(() => encodeUpdate(Float32Array.of(1), encoding)).toThrow(EncodingError);
  });

  test('refuses what is not finite, and what is too large for a half', () => {
    expect(() => encodeUpdate(Float32Array.of(1, NaN), 'float32')).toThrow(EncodingError);
    expect(() => encodeUpdate(Float32Array.of(65_520), 'float16')).toThrow(EncodingError);
  });
});
