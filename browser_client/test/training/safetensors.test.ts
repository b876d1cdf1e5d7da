import { describe, expect, test } from 'vitest';
import { imageAt, readImages } from '../../src/training/safetensors';

function file(header: unknown, data: readonly number[]): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const out = new Uint8Array(8 + text.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(text.length), true);
  out.set(text, 8);
  out.set(data, 8 + text.length);
  return out;
}

const images = (shape: number[], end: number): unknown => ({ images: { dtype: 'U8', shape, data_offsets: [0, end] } });

describe('shards', () => {
  test('gives images in order', () => {
    const shard = readImages(file(images([2, 1, 2, 1], 4), [1, 2, 3, 4]));
    expect([shard.count, shard.height, shard.width, shard.channels]).toEqual([2, 1, 2, 1]);
    expect([...imageAt(shard, 1)]).toEqual([3, 4]);
  });

  test('finds the tensor where its offsets say', () => {
    const header = {
      __metadata__: { format: 'np' },
      labels: { dtype: 'I64', shape: [1], data_offsets: [0, 8] },
      images: { dtype: 'U8', shape: [1, 1, 1, 2], data_offsets: [8, 10] },
    };
    expect([...readImages(file(header, [0, 0, 0, 0, 0, 0, 0, 0, 7, 8])).data]).toEqual([7, 8]);
  });

  test.each([
    ['a file without header', new Uint8Array(4)],
    ['a header that is cut', file(images([1, 1, 1, 1], 1), [1]).slice(0, 20)],
    ['floats', file({ images: { dtype: 'F32', shape: [1, 1, 1, 1], data_offsets: [0, 4] } }, [0, 0, 0, 0])],
    ['data that is cut', file(images([2, 1, 2, 1], 4), [1, 2, 3])],
    ['a shape that does not fit', file(images([2, 1, 2, 3], 4), [1, 2, 3, 4])],
    ['no images', file({}, [])],
  ])('refuses %s', (_, shard) => {
    expect(() => readImages(shard as Uint8Array<ArrayBuffer>)).toThrow(expect.objectContaining({ name: 'CheckError' }));
  });
});
