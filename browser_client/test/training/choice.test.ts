import { describe, expect, test } from 'vitest';
import { choose, engines } from '../../src/training/choice';
import type { EngineMaker } from '../../src/training/engine';
import { moduleName } from '../../src/training/module_name';

function maker(opens: string, preference: number, obstacle: string | null = null): EngineMaker {
  const never = async (): Promise<never> => {
    throw new Error('nothing is opened to choose');
  };
  return { opens, preference, whyNot: async () => obstacle, label: never, open: never };
}

const FAST = maker('step', 2);
const SLOW = maker('ort-training', 1);
const BOTH = new Map([
  ['fast', FAST],
  ['slow', SLOW],
]);

describe('the choice of an engine', () => {
  test('takes the preferred one whose files the artifacts have', async () => {
    expect((await choose('', ['step', 'ort-training'], BOTH)).name).toBe('fast');
    expect((await choose('', ['ort-training'], BOTH)).name).toBe('slow');
    expect((await choose('', null, BOTH)).name).toBe('fast');
  });

  test('says why, and why not the others', async () => {
    const known = new Map([
      ['fast', maker('step', 2, 'no graphics card')],
      ['slow', SLOW],
    ]);
    expect((await choose('', null, known)).reason).toContain('fast cannot be used: no graphics card');
    expect((await choose('slow', null, BOTH)).reason).toBe('it was asked for');
  });

  test('refuses an unknown name with the names that there are', async () => {
    await expect(choose('quick', null, BOTH)).rejects.toMatchObject({
      code: 'engine_unknown',
      message: 'there is no engine "quick"; there is fast, slow',
    });
  });

  test.each([
    ['fast', ['ort-training'], BOTH, 'files for ort-training and not for step'],
    ['fast', null, new Map([['fast', maker('step', 2, 'no graphics card')]]), 'no graphics card'],
    ['', [], BOTH, 'files for no engine'],
  ] as const)('refuses what cannot be used: %s of %j', async (wanted, offered, known, reason) => {
    const found = choose(wanted, offered, known);
    await expect(found).rejects.toMatchObject({ code: 'engine_unavailable', message: expect.stringContaining(reason) });
  });

  test('finds the engines of this client by their modules', async () => {
    expect([...engines().keys()]).toContain('ort-training');
    expect(moduleName('./engines/ort_training.ts')).toBe('ort-training');
    expect(await engines().get('ort-training')!.whyNot()).toBeNull();
  });
});
