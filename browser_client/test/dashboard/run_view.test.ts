import { describe, expect, test } from 'vitest';
import { kindOf } from '../../src/dashboard/engine_kind';
import {
  accuracyByRound,
  currentRound,
  foldEvent,
  foldProgress,
  newRunView,
  runJson,
  type RunView,
  type StoredEvent,
} from '../../src/dashboard/run_view';
import { vectors } from '../vectors';

interface Case {
  readonly name: string;
  readonly run: string;
  readonly entries: readonly (StoredEvent | { readonly progress: unknown })[];
  readonly views: readonly { readonly after: number; readonly view: unknown }[];
}

const cases = vectors<Case[]>('run_views');

function take(view: RunView, entry: Case['entries'][number]): void {
  if ('progress' in entry) foldProgress(view, entry.progress);
  else foldEvent(view, entry);
}

function folded(name: string): RunView {
  const found = cases.find((one) => one.name === name)!;
  const view = newRunView(found.run);
  for (const entry of found.entries) take(view, entry);
  return view;
}

describe('the view of a run', () => {
  test.each(cases)('is the one that Python computes: $name', ({ run, entries, views }) => {
    const view = newRunView(run);
    const expected = new Map(views.map((one) => [one.after, one.view]));
    let compared = 0;
    for (let taken = 0; taken <= entries.length; taken += 1) {
      if (taken > 0) take(view, entries[taken - 1]!);
      if (!expected.has(taken)) continue;
      expect(JSON.parse(JSON.stringify(runJson(view))), `after ${taken} entries`).toEqual(expected.get(taken));
      compared += 1;
    }
    expect(compared).toBe(expected.size);
  });

  test('knows the round that was planned last, and the accuracy of every model', () => {
    const view = folded('a whole run');
    expect(currentRound(view)!.round).toBe(2);
    expect([...accuracyByRound(view)]).toEqual([
      [0, 0.5],
      [1, 0.625],
      [2, 0.75],
    ]);
  });

  test('an event that nobody knows says nothing, and a damaged one is refused and changes nothing', () => {
    const view = folded('every event twice');
    const before = JSON.stringify(runJson(view));
    const event = (type: string, data: unknown): StoredEvent => ({ sequence: 999, time: '', event: { type, data } });
    expect(foldEvent(view, event('fedbus.coffee.made', { run: view.run }))).toBe(false);
    expect(foldEvent(view, event('constructor', { run: view.run }))).toBe(false);
    const damaged = expect.objectContaining({ name: 'CheckError' }) as unknown;
    expect(() => foldEvent(view, event('fedbus.round.planned', { run: view.run, round: 2 }))).toThrow(damaged);
    expect(() => foldProgress(view, { run: view.run, round: 'one' })).toThrow(damaged);
    expect(JSON.stringify(runJson(view))).toBe(before);
  });
});

test.each(vectors<{ engine: string; kind: string }[]>('engine_kinds'))(
  'the engine "$engine" is of the kind $kind',
  ({ engine, kind }) => {
    expect(kindOf(engine)).toBe(kind);
  },
);
