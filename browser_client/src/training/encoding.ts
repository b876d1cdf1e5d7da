/** The encodings of an update: the same bytes as agents/core/learning/encodings.py, which describes them. */

const BLOCK = 1024;
const HALF_MAX = 65_504;

/** The task asks for an encoding that this client does not know, or the update cannot be encoded. */
export class EncodingError extends Error {
  override readonly name = 'EncodingError';
}

/** The bytes of `delta`; throws EncodingError for an unknown encoding and for values that are not finite. */
export function encodeUpdate(delta: Float32Array<ArrayBuffer>, encoding: string): Uint8Array<ArrayBuffer> {
  if (!delta.every(Number.isFinite)) throw new EncodingError('the update has a NaN or an infinity');
  if (encoding === 'float32') return new Uint8Array(delta.buffer, delta.byteOffset, delta.byteLength);
  if (encoding === 'float16') return encodeHalf(delta);
  if (encoding === 'int8') return encodeInt8(delta);
  const fraction = Number(/^topk:((?:0|1)(?:\.[0-9]{1,9})?)$/.exec(encoding)?.[1]);
  if (fraction > 0 && fraction <= 1) return encodeTopK(delta, fraction);
  throw new EncodingError(
    `unknown encoding ${JSON.stringify(encoding)} of updates; reload the page for a newer client`,
  );
}

function encodeHalf(delta: Float32Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Uint16Array.from(delta, halfBits).buffer);
}

/** IEEE 754 half precision, rounded to nearest, ties to even. */
function halfBits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  // Subnormal halves are multiples of 2**-24, others have 11 significant bits.
  const exponent = magnitude < 2 ** -14 ? -14 : Math.floor(Math.log2(magnitude));
  const rounded = roundToEven(magnitude / 2 ** (exponent - 10)) * 2 ** (exponent - 10);
  if (rounded > HALF_MAX) throw new EncodingError(`a value is past ±${HALF_MAX} and does not fit float16`);
  if (rounded < 2 ** -14) return sign | (rounded / 2 ** -24);
  const stored = Math.floor(Math.log2(rounded));
  return sign | ((stored + 15) << 10) | (rounded / 2 ** (stored - 10) - 1024);
}

function encodeInt8(delta: Float32Array): Uint8Array<ArrayBuffer> {
  const blocks = Math.ceil(delta.length / BLOCK);
  const scales = new Float32Array(blocks);
  const quantised = new Int8Array(delta.length);
  for (let block = 0; block < blocks; block++) {
    const end = Math.min(delta.length, (block + 1) * BLOCK);
    let largest = 0;
    for (let at = block * BLOCK; at < end; at++) largest = Math.max(largest, Math.abs(delta[at]!));
    scales[block] = largest / 127;
    const scale = scales[block]!;
    if (scale === 0) continue;
    for (let at = block * BLOCK; at < end; at++) {
      quantised[at] = Math.max(-127, Math.min(127, roundToEven(delta[at]! / scale)));
    }
  }
  const out = new Uint8Array(scales.byteLength + quantised.length);
  out.set(new Uint8Array(scales.buffer));
  out.set(new Uint8Array(quantised.buffer), scales.byteLength);
  return out;
}

function encodeTopK(delta: Float32Array, fraction: number): Uint8Array<ArrayBuffer> {
  const kept = Math.min(delta.length, Math.max(1, Math.ceil(fraction * delta.length - 1e-9)));
  const largestFirst = Uint32Array.from(delta.keys()).sort(
    (a, b) => Math.abs(delta[b]!) - Math.abs(delta[a]!) || a - b,
  );
  const indices = largestFirst.slice(0, kept).sort();
  const out = new Uint8Array(8 * kept);
  out.set(new Uint8Array(indices.buffer));
  out.set(new Uint8Array(Float32Array.from(indices, (index) => delta[index]!).buffer), 4 * kept);
  return out;
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}
