import { describe, expect, test } from 'vitest';
import { pixelTable, toPixelValues } from '../../src/training/pixels';
import { floats, vectors } from '../vectors';

interface Case {
  mean: number[];
  std: number[];
  table: string;
}

describe('pixel values', () => {
  test.each(vectors<Case[]>('pixels'))(
    'the table has the same bits as in Python: mean $mean',
    ({ mean, std, table }) => {
      const expected = floats(table);
      expect(pixelTable(mean, std).map((row) => [...row])).toEqual(
        mean.map((_, channel) => [...expected.subarray(256 * channel, 256 * (channel + 1))]),
      );
    },
  );

  test('channels move in front of rows', () => {
    const table = [Float32Array.from({ length: 256 }, (_, u) => u), Float32Array.from({ length: 256 }, (_, u) => -u)];
    const data = Uint8Array.from([1, 10, 2, 20, 3, 30, 4, 40]);
    const values = toPixelValues({ count: 2, height: 1, width: 2, channels: 2, data }, table);
    expect([...values]).toEqual([1, 2, -10, -20, 3, 4, -30, -40]);
  });
});
