import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { filesOf, offered, ORT_TRAINING, parseManifest } from '../../src/training/manifest';

const SHIPPED = JSON.parse(
  readFileSync(new URL('../../../artifacts/default/manifest.json', import.meta.url), 'utf-8'),
) as { files: Record<string, unknown> };
const file = (letter: string) => ({ size: 1, sha256: letter.repeat(64) });
const parsed = (changes: object = {}) => parseManifest(JSON.stringify({ ...SHIPPED, ...changes }));
const SPLIT = {
  prefix: { input: 'x', output: 'h', shape: [3] },
  files: {
    ...SHIPPED.files,
    prefix_model: file('a'),
    suffix_training_model: file('b'),
    suffix_eval_model: file('c'),
    suffix_checkpoint: file('d'),
  },
};

describe('a manifest', () => {
  test('that does not say which engines have their files offers what they show', () => {
    const whole = ['training_model', 'eval_model', 'checkpoint', 'optimizer_model'];
    expect(offered(parsed({ engines: undefined }))).toEqual({ [ORT_TRAINING]: whole });
    expect([...filesOf(parsed({ engines: {} }), ORT_TRAINING).keys()]).toEqual(whole);
  });

  test('of a split model offers the parts and not the whole', () => {
    expect([...filesOf(parsed({ engines: {}, ...SPLIT }), ORT_TRAINING).keys()]).toEqual([
      'prefix_model',
      'suffix_training_model',
      'suffix_eval_model',
      'suffix_checkpoint',
      'optimizer_model',
    ]);
  });

  test('without the files of an engine does not offer it', () => {
    const { optimizer_model: _, ...files } = SHIPPED.files;
    expect(offered(parsed({ engines: {}, files }))).toEqual({});
    expect(offered(parsed({ engines: {}, files: { ...files, optimizer_model: null } }))).toEqual({});
  });

  test('that names engines offers those, with the files that it says', () => {
    const manifest = parsed({ engines: { step: ['step'] }, files: { ...SHIPPED.files, step: file('e') } });
    expect(offered(manifest)).toEqual({ step: ['step'] });
    expect([...filesOf(manifest, 'step')]).toEqual([['step', file('e')]]);
  });

  test('that names a file which it does not have is refused', () => {
    expect(() => filesOf(parsed({ engines: { step: ['step'] } }), 'step')).toThrow('there is no step');
  });
});
