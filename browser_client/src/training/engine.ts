/** What a training engine can do; task.ts knows no more of it than this. */
import type { Manifest } from './manifest';

/** The bytes of the files that an engine opens, by their role in the manifest. */
export type EngineFiles = ReadonlyMap<string, Uint8Array<ArrayBuffer>>;

/** One trainable copy of the model; calls come one at a time. */
export interface Engine {
  /**
   * Sets the trainable parameters and forgets whatever an earlier task left in the optimizer. `learningRate` is that of
   * all steps until the next `begin`.
   */
  begin(base: Float32Array, learningRate: number): Promise<void>;
  /**
   * What the trained part takes for the model's inputs of `count` examples: the activations of the frozen part that
   * comes first, or, without one, the inputs themselves.
   */
  features(inputs: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array<ArrayBuffer>>;
  /** The model's outputs for the features of `count` examples. */
  predict(features: Float32Array<ArrayBuffer>, count: number): Promise<Float32Array>;
  /** Takes one optimizer step on a batch with a target for each example; gives the loss before it. */
  trainStep(features: Float32Array<ArrayBuffer>, targets: readonly number[]): Promise<number>;
  /** A copy of the trainable parameters. */
  parameters(): Promise<Float32Array<ArrayBuffer>>;
  /** Gives its memory back; nothing is called after that. */
  release(): Promise<void>;
}

/** What an engine may need of the page. */
export interface EngineOptions {
  /** Folder with the binaries beside the page, ending in a slash. */
  readonly wasmFolder: string;
  /** More than one needs a cross-origin isolated page. */
  readonly threads: number;
}

/** What a module of `engines/` says of its engine, as `ENGINE`, and how it opens one; only that loads its code. */
export interface EngineMaker {
  /** Whose files it opens, as manifests offer them: often its own name, but engines may share theirs. */
  readonly opens: string;
  /** Of several that can be used the one with the largest is. */
  readonly preference: number;
  /** Why it cannot run in this browser; nothing when it can. */
  whyNot(): Promise<string | null>;
  /** Name and version, for the gateway; at most 64 characters. */
  label(options: EngineOptions): Promise<string>;
  /** An engine with the model of these files; throws EngineError where they are not what it takes. */
  open(manifest: Manifest, files: EngineFiles, options: EngineOptions): Promise<Engine>;
}

/** The artifacts, or what came after them, do not fit the engine. */
export class EngineError extends Error {
  override readonly name = 'EngineError';
}
