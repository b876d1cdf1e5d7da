import { expect, test } from 'vitest';
import { LastingWorker, type WorkerLike } from '../../src/training/lasting_worker';
import { ATTEMPTS, patiently, pauseMs } from '../../src/objects/patiently';

class FakeWorker implements WorkerLike {
  onmessage: WorkerLike['onmessage'] = null;
  onerror: WorkerLike['onerror'] = null;
  readonly heard: unknown[] = [];
  ended = false;
  handled = false;

  postMessage(message: unknown): void {
    this.heard.push(message);
  }

  terminate(): void {
    this.ended = true;
  }

  say(data: unknown): void {
    this.onmessage?.call(this as unknown as Worker, { data } as MessageEvent);
  }

  fail(message: string): void {
    const error = { message, preventDefault: () => (this.handled = true) };
    this.onerror?.call(this as unknown as Worker, error as unknown as ErrorEvent);
  }
}

function lasting() {
  const made: FakeWorker[] = [];
  const [said, crashes, pauses]: [unknown[], string[], number[]] = [[], [], []];
  const make = (): FakeWorker => made[made.push(new FakeWorker()) - 1]!;
  const later = (work: () => void, ms: number): void => {
    pauses.push(ms);
    work();
  };
  const worker = new LastingWorker(
    make,
    (data) => said.push(data),
    (reason) => crashes.push(reason),
    later,
  );
  return { worker, made, said, crashes, pauses };
}

test('a worker that does not load is made anew and told again what it was told', () => {
  const { worker, made, said, crashes, pauses } = lasting();
  worker.post('settings');
  made[0]!.fail('not loaded');
  worker.post('more');
  made[1]!.say('ready');

  expect(made.map(({ ended, handled }) => [ended, handled])).toEqual([
    [true, true],
    [false, false],
  ]);
  expect(made[1]!.heard).toEqual(['settings', 'more']);
  expect([said, crashes, pauses]).toEqual([['ready'], [], [pauseMs(0)]]);
});

test('a worker that has said something and fails then is not made anew', () => {
  const { made, crashes } = lasting();
  made[0]!.say('ready');
  made[0]!.fail('a mistake');

  expect(made[0]!.ended).toBe(false);
  expect([made.length, crashes]).toEqual([1, ['a mistake']]);
});

test('a worker that never loads is given up', () => {
  const { made, crashes } = lasting();
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) made.at(-1)!.fail('not loaded');
  expect([made.length, crashes]).toEqual([ATTEMPTS + 1, []]);
  made.at(-1)!.fail('');
  expect([made.length, crashes]).toEqual([ATTEMPTS + 1, ['it did not load']]);
});

test.each([
  { failures: ATTEMPTS, ends: 'done' },
  { failures: ATTEMPTS + 1, ends: 'lost' },
])('work that fails $failures times is $ends', async ({ failures, ends }) => {
  const pauses: number[] = [];
  let tries = 0;
  const work = (): Promise<string> => (tries++ < failures ? Promise.reject(new Error('lost')) : Promise.resolve('done'));
  const sleep = (ms: number): Promise<void> => Promise.resolve(void pauses.push(ms));

  expect(await patiently(work, sleep).catch((error: Error) => error.message)).toBe(ends);
  expect(pauses).toEqual([250, 500, 1_000, 2_000, 4_000, 8_000]);
});
