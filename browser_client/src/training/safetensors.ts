/** Reads a user's shard: the uint8 tensor `images` of a safetensors file. */
import { CheckError, integer, list, literal, parseJson, record } from '../words/checks';

/** Images [count, height, width, channels], row-major. */
export interface Images {
  readonly count: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

const header = record({
  images: record({ dtype: literal('U8'), shape: list(integer(0), 4, 4), data_offsets: list(integer(0), 2, 2) }),
});

/** The images of the shard; throws CheckError when the file is damaged or has no such tensor. */
export function readImages(file: Uint8Array<ArrayBuffer>): Images {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const headerBytes = file.length >= 8 ? Number(view.getBigUint64(0, true)) : Infinity;
  if (8 + headerBytes > file.length) throw new CheckError('shard: the safetensors header is cut');
  const { images } = parseJson(new TextDecoder().decode(file.subarray(8, 8 + headerBytes)), header, 'shard');
  const [count, height, width, channels] = images.shape as unknown as [number, number, number, number];
  const [start, end] = images.data_offsets as unknown as [number, number];
  const data = file.slice(8 + headerBytes + start, 8 + headerBytes + end);
  if (data.length !== count * height * width * channels) {
    throw new CheckError(`shard: ${data.length} bytes for images of shape [${images.shape.join(', ')}]`);
  }
  return { count, height, width, channels, data };
}

/** Image `index` of the shard, [height, width, channels], without a copy. */
export function imageAt(images: Images, index: number): Uint8Array<ArrayBuffer> {
  const size = images.height * images.width * images.channels;
  return images.data.subarray(index * size, (index + 1) * size);
}
