/** Repairs onnxruntime-web 1.19.2 at build time: it frees stack pointers, which corrupts its heap. */
import type { Plugin } from 'vite';

/** The build of onnxruntime-web that the client imports, as it ends in a module's id. */
export const PATCHED_FILE = 'ort.training.wasm.min.mjs';

/** `getContiguousParameters` and `loadParametersBuffer` each free what `stackAlloc` gave; nobody may free that. */
export const REPLACEMENTS: readonly { readonly from: string; readonly to: string }[] = [
  { from: 'n._free(u),n._free(l),n.stackRestore(o)', to: 'n._free(u),n.stackRestore(o)' },
  { from: 'o.stackRestore(r),o._free(u),o._free(f)', to: 'o.stackRestore(r),o._free(u)' },
];

/** `code` without the two wrong calls; throws unless each text stands there exactly once. */
export function patchOrt(code: string): string {
  return REPLACEMENTS.reduce((patched, { from, to }) => {
    const found = patched.split(from).length - 1;
    if (found !== 1) {
      throw new Error(
        `${PATCHED_FILE} has ${found} times ${JSON.stringify(from)}, expected once: this is not the ` +
          'onnxruntime-web that the patch was made for. Install the version in package-lock.json with "npm ci".',
      );
    }
    return patched.replace(from, () => to);
  }, code);
}

/** Applies `patchOrt` to onnxruntime-web's training build, in the page and in workers. */
export function patchOrtPlugin(): Plugin {
  return {
    name: 'fedbus:patch-ort',
    enforce: 'pre',
    transform(code, id) {
      if (!id.split('?')[0]!.endsWith(PATCHED_FILE)) return null;
      // The source map of the published file points to sources that are not in the package.
      return { code: patchOrt(code), map: null };
    },
  };
}
