/**
 * Augmentation in integer arithmetic: the same pixels as agents/core/learning/augment.py, bit for bit.
 *
 * The rules stand in that module. Here positions are integers in float64: exact far beyond 32 bits, so no table of
 * rotations or zooms can overflow them. `Math.floor(x / 2**k)` is the arithmetic shift `x >> k`.
 */
import type { AugmentationSpec } from '../words/protocol';
import { type Images, imageAt } from './safetensors';

const MAX_SIDE = 1024;
const MAX_COPIES = 63;
const GOLDEN = 0x9e3779b9;
const ONE = 65_536;
enum Slot {
  Flip,
  ShiftX,
  ShiftY,
  Rotation,
  Zoom,
  Brightness,
  Contrast,
}

/** The 32-bit finaliser lowbias32, unsigned. */
export function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** A draw from 0 to n - 1. The product has at most 43 bits, which float64 holds exactly. */
function below(key: number, image: number, copy: number, slot: Slot, n: number): number {
  const counter = 1 + slot + 8 * (copy + 64 * image);
  return Math.floor((mix((key + Math.imul(counter, GOLDEN)) | 0) * n) / 2 ** 32);
}

/**
 * The training batch of image `index`: the original and `copies` augmented copies.
 *
 * Throws RangeError when a side is longer than MAX_SIDE or `copies` is not 0 to MAX_COPIES.
 */
export function augment(images: Images, index: number, copies: number, seed: number, spec: AugmentationSpec): Images {
  const { height, width, channels } = images;
  if (Math.max(height, width) > MAX_SIDE || copies < 0 || copies > MAX_COPIES) {
    throw new RangeError(
      `sides up to ${MAX_SIDE} and up to ${MAX_COPIES} copies, not ${height}x${width} and ${copies}`,
    );
  }
  const original = imageAt(images, index);
  const data = new Uint8Array((1 + copies) * original.length);
  data.set(original);
  const key = mix(seed);
  for (let copy = 1; copy <= copies; copy++) {
    const draw = (slot: Slot, n: number): number => below(key, index, copy, slot, n);
    const sign = spec.flip ? 1 - 2 * draw(Slot.Flip, 2) : 1;
    const shiftX = draw(Slot.ShiftX, 2 * spec.shift + 1) - spec.shift;
    const shiftY = draw(Slot.ShiftY, 2 * spec.shift + 1) - spec.shift;
    const rotation = draw(Slot.Rotation, spec.cos.length);
    const zoom = spec.inverse_scale[draw(Slot.Zoom, spec.inverse_scale.length)]!;
    const offset = draw(Slot.Brightness, 2 * spec.brightness + 1) - spec.brightness;
    const gain = 256 + draw(Slot.Contrast, 2 * spec.contrast + 1) - spec.contrast;
    const a = Math.floor((spec.cos[rotation]! * zoom + ONE / 2) / ONE);
    const b = Math.floor((spec.sin[rotation]! * zoom + ONE / 2) / ONE);
    const out = data.subarray(copy * original.length, (copy + 1) * original.length);
    warp(original, out, { height, width, channels, a, b, sign, shiftX, shiftY });
    tone(out, gain, offset);
  }
  return { count: 1 + copies, height, width, channels, data };
}

interface Warp {
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  readonly a: number;
  readonly b: number;
  readonly sign: number;
  readonly shiftX: number;
  readonly shiftY: number;
}

/** Rotates, zooms, flips and shifts `source` into `out`, both [height, width, channels]. */
function warp(source: Uint8Array, out: Uint8Array, by: Warp): void {
  const { height, width, channels, a, b, sign } = by;
  const originX = (width - 1 - 2 * by.shiftX) * ONE;
  const originY = (height - 1 - 2 * by.shiftY) * ONE;
  let at = 0;
  for (let row = 0; row < height; row++) {
    const dy = 2 * row - (height - 1);
    for (let column = 0; column < width; column++) {
      const dx = sign * (2 * column - (width - 1));
      const x = a * dx + b * dy + originX;
      const y = a * dy - b * dx + originY;
      const x0 = Math.floor(x / (2 * ONE));
      const y0 = Math.floor(y / (2 * ONE));
      const fx = Math.floor(x / 512) & 255;
      const fy = Math.floor(y / 512) & 255;
      const left = clamp(x0, width - 1) * channels;
      const right = clamp(x0 + 1, width - 1) * channels;
      const top = clamp(y0, height - 1) * width * channels;
      const bottom = clamp(y0 + 1, height - 1) * width * channels;
      for (let channel = 0; channel < channels; channel++) {
        const upper = source[top + left + channel]! * (256 - fx) + source[top + right + channel]! * fx;
        const lower = source[bottom + left + channel]! * (256 - fx) + source[bottom + right + channel]! * fx;
        out[at++] = (upper * (256 - fy) + lower * fy + ONE / 2) >> 16;
      }
    }
  }
}

/** Changes contrast around the mean, and brightness, in place. */
function tone(pixels: Uint8Array, gain: number, offset: number): void {
  let sum = 0;
  for (const value of pixels) sum += value;
  const mean = Math.floor(sum / pixels.length);
  for (let at = 0; at < pixels.length; at++) {
    pixels[at] = clamp(mean + (((pixels[at]! - mean) * gain + 128) >> 8) + offset, 255);
  }
}

function clamp(value: number, maximum: number): number {
  return value < 0 ? 0 : value > maximum ? maximum : value;
}
