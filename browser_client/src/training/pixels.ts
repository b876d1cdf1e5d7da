/** Normalisation of uint8 pixels by a table: the same float32 bits as artifacts/pixels.py. */
import type { Images } from './safetensors';

/** Per channel 256 values: (u/255 - mean) / std in float64, rounded once to float32. */
export function pixelTable(mean: readonly number[], std: readonly number[]): Float32Array[] {
  return mean.map((m, channel) => Float32Array.from({ length: 256 }, (_, u) => (u / 255 - m) / std[channel]!));
}

/** Pixel values [count, channels, height, width] of images [count, height, width, channels]. */
export function toPixelValues(images: Images, table: readonly Float32Array[]): Float32Array<ArrayBuffer> {
  const { count, height, width, channels, data } = images;
  const plane = height * width;
  const out = new Float32Array(count * channels * plane);
  for (let image = 0; image < count; image++) {
    for (let channel = 0; channel < channels; channel++) {
      const values = table[channel]!;
      const to = (image * channels + channel) * plane;
      const from = image * plane * channels + channel;
      for (let pixel = 0; pixel < plane; pixel++) out[to + pixel] = values[data[from + pixel * channels]!]!;
    }
  }
  return out;
}
