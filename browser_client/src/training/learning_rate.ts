/**
 * Sets the learning rate in the bytes of an optimizer model: the same bytes as artifacts/learning_rate.py, which says how.
 *
 * JavaScript can set no other rate: the training session reads its model once and feeds it a rate of its own.
 */

const MODEL_GRAPH = 7;
const GRAPH_INITIALIZER = 5;
enum TensorField {
  Dims = 1,
  Type = 2,
  Name = 8,
  Raw = 9,
}
const FLOAT = 1;
enum Wire {
  Varint = 0,
  EightBytes = 1,
  Length = 2,
  FourBytes = 5,
}
const LONGEST_VARINT = 10;

/** An optimizer model is malformed or has no learning rate to set, or the rate is none. */
export class OptimizerModelError extends Error {
  override readonly name = 'OptimizerModelError';
}

/** A field of a message: a number, or the bytes from `start` to before `end`. */
type Field = { readonly number: number } & ({ readonly value: number } | { readonly start: number; readonly end: number });

/** The optimizer model with another learning rate; throws OptimizerModelError where it has no raw float32 [1] of this name. */
export function withLearningRate(
  model: Uint8Array,
  initializer: string,
  learningRate: number,
): Uint8Array<ArrayBuffer> {
  const rate = Math.fround(learningRate);
  if (!(rate > 0 && rate < Infinity)) {
    throw new OptimizerModelError(`the learning rate ${learningRate} is not a positive finite number`);
  }
  const changed = Uint8Array.from(model);
  new DataView(changed.buffer).setFloat32(place(model, initializer), rate, true);
  return changed;
}

/** Where the four bytes of the initializer begin. */
function place(model: Uint8Array, name: string): number {
  for (const graph of fields(model, 0, model.length)) {
    if (graph.number !== MODEL_GRAPH || !('start' in graph)) continue;
    for (const tensor of fields(model, graph.start, graph.end)) {
      if (tensor.number !== GRAPH_INITIALIZER || !('start' in tensor)) continue;
      const at = rawFloat(model, tensor.start, tensor.end, name);
      if (at !== null) return at;
    }
  }
  throw new OptimizerModelError(`the optimizer model has no float32 [1] initializer ${JSON.stringify(name)}`);
}

/** Where a tensor's raw value begins, if it is the float32 [1] of this name. */
function rawFloat(model: Uint8Array, start: number, end: number, name: string): number | null {
  let named = false;
  let type = 0;
  let raw: number | null = null;
  const dims: number[] = [];
  for (const field of fields(model, start, end)) {
    if ('value' in field) {
      if (field.number === TensorField.Type) type = field.value;
      if (field.number === TensorField.Dims) dims.push(field.value);
    } else if (field.number === TensorField.Name) {
      named = new TextDecoder().decode(model.subarray(field.start, field.end)) === name;
    } else if (field.number === TensorField.Raw) {
      raw = field.end - field.start === 4 ? field.start : null;
    }
  }
  return named && type === FLOAT && dims.length === 1 && dims[0] === 1 ? raw : null;
}

/** Numbers and bytes among the fields of a message; other fields are skipped. */
function* fields(model: Uint8Array, start: number, end: number): Generator<Field> {
  let at = start;
  while (at < end) {
    const key = varint(model, at, end);
    at = key.next;
    const number = Math.floor(key.value / 8);
    const wire = key.value % 8;
    if (wire === Wire.Varint) {
      const { value, next } = varint(model, at, end);
      at = next;
      yield { number, value };
      continue;
    }
    let size = wire === Wire.EightBytes ? 8 : 4;
    if (wire === Wire.Length) {
      const length = varint(model, at, end);
      at = length.next;
      size = length.value;
    } else if (wire !== Wire.EightBytes && wire !== Wire.FourBytes) {
      throw new OptimizerModelError('the optimizer model is not an ONNX model');
    }
    if (size > end - at) throw new OptimizerModelError('the optimizer model is not an ONNX model: it is cut');
    if (wire === Wire.Length) yield { number, start: at, end: at + size };
    at += size;
  }
}

/** The number that begins at a byte, and where the next thing begins; past 2^53 it is too large for anything here. */
function varint(model: Uint8Array, at: number, end: number): { readonly value: number; readonly next: number } {
  let value = 0;
  for (let index = 0; index < LONGEST_VARINT && at + index < end; index++) {
    const byte = model[at + index]!;
    value += (byte & 0x7f) * 2 ** (7 * index);
    if (byte < 0x80) return { value, next: at + index + 1 };
  }
  throw new OptimizerModelError('the optimizer model is not an ONNX model: a number does not end');
}
