import { readFileSync, readdirSync, rmSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'vite';
import { describe, expect, test } from 'vitest';
import { ortFolder } from '../../plugins/copy-ort';
import { PATCHED_FILE, patchOrt, REPLACEMENTS } from '../../plugins/patch-ort';

const original = readFileSync(join(ortFolder(), PATCHED_FILE), 'utf-8');
const count = (code: string, part: string): number => code.split(part).length - 1;

describe('the patch of onnxruntime-web', () => {
  test('takes exactly the two wrong calls out of the installed file', () => {
    const patched = patchOrt(original);
    expect(patched).toHaveLength(original.length - ',n._free(l)'.length - ',o._free(f)'.length);
    for (const { from, to } of REPLACEMENTS) {
      expect(count(patched, from)).toBe(0);
      expect(count(patched, to)).toBe(1);
    }
  });

  test.each(REPLACEMENTS)('throws when $from is missing or there twice', ({ from }) => {
    expect(() => patchOrt(original.replace(from, ''))).toThrow('0 times');
    expect(() => patchOrt(original + from)).toThrow('2 times');
  });

  test('is in the worker that the build writes, and the unpatched text is nowhere', { timeout: 60_000 }, async () => {
    const outDir = mkdtempSync(join(tmpdir(), 'fedbus-dist-'));
    try {
      await build({ root: join(import.meta.dirname, '../..'), logLevel: 'error', build: { outDir, emptyOutDir: true } });
      const scripts = readdirSync(join(outDir, 'assets')).filter((name) => name.endsWith('.js'));
      const code = scripts.map((name) => readFileSync(join(outDir, 'assets', name), 'utf-8')).join('\n');
      // The minifier renames variables: what identifies the two places are the calls around them.
      expect(code).toMatch(/\w\._free\(\w\),\w\.stackRestore\(\w\)\}/);
      expect(code).toMatch(/\w\.stackRestore\(\w\),\w\._free\(\w\)\}/);
      expect(code).not.toMatch(/\w\._free\(\w\),\w\._free\(\w\),\w\.stackRestore\(\w\)/);
      expect(code).not.toMatch(/\w\.stackRestore\(\w\),\w\._free\(\w\),\w\._free\(\w\)/);
      const root = readdirSync(outDir);
      expect(root).toEqual(expect.arrayContaining(['index.html', 'ort-training-wasm-simd-threaded.wasm']));
      expect(readFileSync(join(outDir, 'index.html'), 'utf-8')).not.toMatch(/<script(?![^>]*src=)|<style|style=/);
    } finally {
      rmSync(outDir, { recursive: true });
    }
  });
});
