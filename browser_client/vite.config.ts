/** How the page is built: relative URLs, nothing inlined, so that it runs under a strict Content-Security-Policy. */
import { defineConfig } from 'vitest/config';
import { copyOrtPlugin } from './plugins/copy-ort.ts';
import { patchOrtPlugin } from './plugins/patch-ort.ts';

export default defineConfig(({ mode }) => ({
  base: './',
  plugins: [patchOrtPlugin(), copyOrtPlugin()],
  worker: { format: 'es', plugins: () => [patchOrtPlugin()] },
  optimizeDeps: { exclude: ['onnxruntime-web'] },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
    chunkSizeWarningLimit: 1_000,
    rolldownOptions: { input: mode === 'harness' ? 'harness.html' : 'index.html' },
  },
  test: { include: ['test/**/*.test.ts'], environment: 'node' },
}));
