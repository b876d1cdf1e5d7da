/** Reads the vectors that the Python side writes (tests/vectors/make_vectors.py), and makes shards. */
import { readFileSync } from 'node:fs';
import type { Images } from '../src/training/safetensors';

export function vectors<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`../../tests/vectors/${name}.json`, import.meta.url), 'utf-8')) as T;
}

export function bytes(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(Buffer.from(base64, 'base64'));
}

export function floats(base64: string): Float32Array<ArrayBuffer> {
  return new Float32Array(bytes(base64).buffer);
}

/** The safetensors file of a shard with these images. */
export function shardOf({ count, height, width, channels, data }: Images): Uint8Array<ArrayBuffer> {
  const header = JSON.stringify({
    images: { dtype: 'U8', shape: [count, height, width, channels], data_offsets: [0, data.length] },
  });
  const file = Buffer.concat([Buffer.alloc(8), Buffer.from(header), data]);
  file.writeBigUInt64LE(BigInt(header.length));
  return Uint8Array.from(file);
}
