/** What a training engine can do; task.ts knows no more of it than this. */
import type { Manifest } from './manifest';

/** The bytes of the artifacts that an engine opens: of the whole model, or of its suffix beside `prefixModel`. */
export interface EngineFiles {
  readonly trainingModel: Uint8Array;
  readonly evalModel: Uint8Array;
  readonly checkpoint: Uint8Array;
  readonly prefixModel: Uint8Array | null;
}

/** One trainable copy of the model; calls come one at a time. */
export interface Engine {
  /** Name and version, for the gateway; at most 64 characters. */
  readonly name: string;
  /** Takes another model; what was loaded before is released. */
  load(manifest: Manifest, files: EngineFiles): Promise<void>;
  /** The optimizer model from the next `begin` on: it carries the round's learning rate. */
  setOptimizer(model: Uint8Array): void;
  /** Sets the trainable parameters and forgets whatever an earlier task left in the optimizer. */
  begin(base: Float32Array): Promise<void>;
  /**
   * What the trained part takes for pixel values [count, channels, height, width]: the activations of the frozen part
   * that comes first, or, without one, the pixel values themselves.
   */
  features(pixelValues: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array<ArrayBuffer>>;
  /** Logits [count, classes] for the features of as many images. */
  predict(features: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array>;
  /** Takes one optimizer step on a batch with one label; gives the loss before it. */
  trainStep(features: Float32Array<ArrayBuffer>, count: number, label: number): Promise<number>;
  /** A copy of the trainable parameters. */
  parameters(): Promise<Float32Array<ArrayBuffer>>;
}

/** The engine was used before it was loaded, or the artifacts do not fit it. */
export class EngineError extends Error {
  override readonly name = 'EngineError';
}
