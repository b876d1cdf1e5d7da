import { describe, expect, test } from 'vitest';
import { foldEvent, foldProgress, newRunView, type RunView } from '../../src/dashboard/run_view';

const event = (type: string, data: Record<string, unknown>): string =>
  JSON.stringify({ specversion: '1.0', id: 'x', source: 's', type: `fedbus.${type}`, data: { run: 'r', ...data } });
const submitted = (user: string, round = 1): string =>
  event('update.submitted', {
    round,
    user,
    client: 'tab-1',
    metrics: { predictions: [0, 1], mismatched_images: 1, trained_images: 7 },
  });

function running(): RunView {
  const view = newRunView('r');
  foldEvent(view, event('run.started', { users: 2, config: { rounds: 3, seed: 0 } }));
  foldEvent(view, event('images.labelled', { user: 'a' }));
  foldEvent(view, event('round.planned', { round: 1, users: 2, quorum: 1, deadline: 'soon' }));
  foldEvent(view, event('task.assigned', { round: 1, user: 'a' }));
  foldEvent(view, event('task.assigned', { round: 1, user: 'b' }));
  return view;
}

describe('the view of a run', () => {
  test('follows a round from its plan to its model', () => {
    const view = running();
    expect(view).toMatchObject({ status: 'running', users: 2, rounds: 3, labelled: 1 });
    expect([...view.round!.states]).toEqual([
      ['a', 'waiting'],
      ['b', 'waiting'],
    ]);
    foldProgress(view, JSON.stringify({ round: 1, user: 'b', client: 'tab-1', phase: 'train' }));
    foldEvent(view, submitted('a'));
    expect([...view.round!.states]).toEqual([
      ['a', 'done'],
      ['b', 'working'],
    ]);
    foldEvent(view, event('round.closed', { round: 1, reason: 'quorum' }));
    foldEvent(
      view,
      event('model.evaluated', { round: 1, base: { accuracy: 0.6, loss: 1 }, updated: { accuracy: 0.7, loss: 1 } }),
    );
    foldEvent(view, event('run.finished', { status: 'completed', reason: '' }));
    expect(view.round).toMatchObject({ submitted: 1, mismatched: 1, trained: 7, ended: 'quorum' });
    expect([...view.accuracy]).toEqual([
      [0, 0.6],
      [1, 0.7],
    ]);
    expect(view.status).toBe('completed');
    expect(view.latest).toEqual([{ user: 'a', client: 'tab-1', round: 1, mismatched: 1, images: 2 }]);
  });

  test('counts a user once, and not in another round', () => {
    const view = running();
    foldEvent(view, submitted('a'));
    foldEvent(view, submitted('a'));
    foldEvent(view, submitted('b', 7));
    expect(view.round!.submitted).toBe(1);
  });

  test('progress that comes late does not bring a finished user back', () => {
    const view = running();
    foldEvent(view, submitted('a'));
    foldProgress(view, JSON.stringify({ round: 1, user: 'a', client: 'tab-1' }));
    expect(view.round!.states.get('a')).toBe('done');
  });

  test('an event that nobody knows says nothing, and a damaged one is refused', () => {
    const view = running();
    foldEvent(view, event('coffee.made', {}));
    expect(() => foldEvent(view, event('round.planned', { round: 2 }))).toThrow(
      expect.objectContaining({ name: 'CheckError' }),
    );
    expect(view.round!.number).toBe(1);
  });
});
