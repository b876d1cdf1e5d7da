import { expect, test, vi } from 'vitest';
import { RunFeed } from '../../src/dashboard/run_feed';
import { beforeARun } from '../../src/dashboard/run_panel';
import { newRunView } from '../../src/dashboard/run_view';

test('until the gateway has answered nobody says that there is no run', async () => {
  let answer: (response: Response) => void = () => undefined;
  const changed = vi.fn();
  const feed = new RunFeed('http://gateway/', () => new Promise((resolve) => (answer = resolve)), changed);
  feed.tick();
  expect(beforeARun(feed.view, feed.answered)[1]).toBe('connecting…');
  answer(Response.json([]));
  await vi.waitFor(() => expect(changed).toHaveBeenCalled());
  expect(beforeARun(feed.view, feed.answered)[0]).toBe('No run yet');
});

test('a run of which no event has come shows no figures', () => {
  expect(beforeARun(newRunView('shop'), true)).toEqual(['Run shop', 'connecting…']);
});
