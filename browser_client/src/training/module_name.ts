/** Engines and kinds of task are called after their modules. */

/** `./engines/ort_training.ts` is `ort-training`. */
export function moduleName(path: string): string {
  return path.replace(/^.*\/|\.ts$/g, '').replaceAll('_', '-');
}
