/** Puts onnxruntime-web's WebAssembly binary and its loader beside the page, where the worker looks for them. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { Plugin } from 'vite';

const FILES = ['ort-training-wasm-simd-threaded.mjs', 'ort-training-wasm-simd-threaded.wasm'];

/** The folder of onnxruntime-web's builds. */
export function ortFolder(): string {
  return dirname(createRequire(import.meta.url).resolve('onnxruntime-web'));
}

/** Emits the files under their own names; onnxruntime-web builds their URLs itself, so they must not be hashed. */
export function copyOrtPlugin(): Plugin {
  return {
    name: 'fedbus:copy-ort',
    generateBundle() {
      for (const fileName of FILES) {
        this.emitFile({ type: 'asset', fileName, source: readFileSync(join(ortFolder(), fileName)) });
      }
    },
  };
}
