/** What a model takes of a browser's memory, so that one that cannot hold it is told before it downloads anything. */
import type { Ref } from '../words/protocol';
import type { Manifest } from './manifest';

/** WebAssembly addresses 4 GiB; some of it is code, stack and fragments. */
const WASM_BYTES = 0.9 * 2 ** 32;
/** Results of one forward pass; larger batches are no faster. The native client has the same rule. */
const FORWARD_BYTES = 512 * 2 ** 20;

/** How many images a forward pass takes at a time. */
export function forwardBatch(manifest: Manifest): number {
  return Math.max(1, Math.floor(FORWARD_BYTES / manifest.memory.forward_per_image));
}

/** Estimated bytes for training on batches of `batch` images: parameters with their gradients, the files, results. */
export function memoryNeed(manifest: Manifest, files: Iterable<Ref>, batch: number): number {
  const { memory } = manifest;
  const opened = [...files].reduce((sum, file) => sum + file.size, 0);
  const forward = forwardBatch(manifest) * memory.forward_per_image;
  return memory.parameters + opened + Math.max(forward, batch * memory.step_per_image);
}

/**
 * Why this browser cannot train the model of these files, in words; nothing when it can. `deviceGigabytes` is what it
 * says of itself.
 */
export function whyTooLarge(
  manifest: Manifest,
  files: Iterable<Ref>,
  batch: number,
  deviceGigabytes: number | undefined,
): string | null {
  const limit = Math.min(WASM_BYTES, deviceGigabytes === undefined ? Infinity : deviceGigabytes * 2 ** 30);
  const need = memoryNeed(manifest, files, batch);
  if (need <= limit) return null;
  const gigabytes = (bytes: number): string => (bytes / 2 ** 30).toFixed(1);
  return (
    `${manifest.name} needs about ${gigabytes(need)} GiB of memory to train, this browser has ${gigabytes(limit)} GiB: ` +
    'train it with a native client, or train fewer of its parameters'
  );
}
