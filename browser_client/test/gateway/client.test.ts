import { beforeEach, describe, expect, test } from 'vitest';
import { Client } from '../../src/gateway/client';
import type { ServerMessage, UpdateMetrics } from '../../src/words/protocol';
import type { Trainer, TrainerCommand, TrainerEvent } from '../../src/training/trainer';
import { FakeNetwork, WELCOME } from '../fakes';

const REF = { size: 1, sha256: 'a'.repeat(64) };
const METRICS: UpdateMetrics = {
  predictions: [1],
  examples: 1,
  mismatched_images: 1,
  trained_images: 7,
  loss_first: 2,
  loss_last: 1,
  predict_s: 0,
  train_s: 0, platform: 'browser' as const
};
const IMAGES = { count: 1, height: 1, width: 1, channels: 1, data: new Uint8Array(1) };

class FakeTrainer implements Trainer {
  onEvent: (event: TrainerEvent) => void = () => undefined;
  onCrash: (reason: string) => void = () => undefined;
  readonly commands: TrainerCommand[] = [];

  post(command: TrainerCommand): void {
    this.commands.push(command);
  }

  asked(): string[] {
    return this.commands.map((command) => `${command.type} ${'lease' in command ? command.lease : ''}`);
  }

  finish(lease: string): void {
    const bytes = Uint8Array.from({ length: 20 }, (_, k) => k);
    this.onEvent({ type: 'done', lease, bytes, sha256: 'b'.repeat(64), metrics: METRICS });
  }
}

let network: FakeNetwork;
let trainer: FakeTrainer;
let client: Client;

const hear = (message: ServerMessage): void => network.socket.hear(message);
const assign = (lease: string): void =>
  hear({
    type: 'assignment',
    lease,
    task: { run: 'r', round: 1, user: lease, shard: REF, labels: [0], spec: REF, seed: 1 },
  });

beforeEach(() => {
  network = new FakeNetwork();
  trainer = new FakeTrainer();
  client = new Client(
    trainer,
    (handlers) => network.connection(handlers),
    () => undefined,
  );
  client.start();
  trainer.onEvent({ type: 'ready', engine: 'engine', reason: 'the only one' });
  network.welcome();
});

describe('the client', () => {
  test('connects only once the engine is there and a person asked for it', () => {
    const idle = new FakeNetwork();
    const fresh = new FakeTrainer();
    const other = new Client(
      fresh,
      (handlers) => idle.connection(handlers),
      () => undefined,
    );
    other.start();
    expect(idle.sockets).toHaveLength(0);
    fresh.onEvent({ type: 'ready', engine: 'engine', reason: 'the only one' });
    expect(idle.sockets).toHaveLength(1);
  });

  test('says why nothing can train here, and does not connect', () => {
    const idle = new FakeNetwork();
    const fresh = new FakeTrainer();
    const other = new Client(
      fresh,
      (handlers) => idle.connection(handlers),
      () => undefined,
    );
    other.start();
    fresh.onEvent({ type: 'unable', reason: 'engine_unknown: there is no engine "quick"' });
    expect(other.view).toMatchObject({ stuck: true, problem: 'engine_unknown: there is no engine "quick"' });
    expect(idle.sockets).toHaveLength(0);
  });

  test('asks for one task, and for the next while the first one trains', () => {
    expect(network.socket.types()).toEqual(['hello', 'ready']);
    assign('a');
    expect(network.socket.types()).toEqual(['hello', 'ready', 'ready']);
    assign('b');
    expect(network.socket.types()).toEqual(['hello', 'ready', 'ready']);
    expect(trainer.asked()).toEqual(['prepare a', 'run a', 'prepare b']);
  });

  test('trains the next task while the update of the first goes up', () => {
    assign('a');
    assign('b');
    trainer.finish('a');
    expect(trainer.asked().at(-1)).toBe('run b');
    expect(network.socket.types().slice(3)).toEqual(['upload.begin', 'ready']);
    hear({ type: 'upload.offset', upload: 1, offset: 0 });
    expect(network.socket.frames).toHaveLength(3);
    hear({ type: 'upload.offset', upload: 1, offset: 20 });
    expect(network.socket.types().at(-1)).toBe('upload.commit');
    hear({ type: 'upload.accepted', lease: 'a', upload: 1 });
    expect(client.view).toMatchObject({ done: 1, uploads: [] });
  });

  test('tells how far a task is', () => {
    assign('a');
    trainer.onEvent({ type: 'started', lease: 'a', images: IMAGES, classes: ['x'] });
    const progress = {
      phase: 'train',
      images_seen: 1,
      mismatched_images: 1,
      trained_images: 7,
      loss: 2,
      share: 1,
    } as const;
    trainer.onEvent({ type: 'progress', lease: 'a', progress, predictions: [1] });
    const { share: _, ...sent } = progress;
    expect(network.socket.sent.at(-1)).toEqual({ type: 'progress', lease: 'a', ...sent });
    expect(client.view.shown?.progress).toEqual(progress);
  });

  test('after a cut goes on with what is still its own and drops the rest', () => {
    assign('a');
    assign('b');
    trainer.finish('a');
    network.socket.cut();
    expect(client.view.connection).toBe('waiting');
    network.now = 60_000;
    client.tick();
    network.welcome(['a']);
    expect(network.socket.sent[0]).toMatchObject({ type: 'hello', resume: ['a', 'b'] });
    expect(network.socket.types().slice(1)).toEqual(['upload.begin', 'ready']);
    expect(trainer.asked().at(-1)).toBe('drop b');
    hear({ type: 'upload.offset', upload: 1, offset: 16 });
    expect(network.socket.frames).toHaveLength(1);
  });

  test('finishes training while it is cut off, and uploads afterwards', () => {
    assign('a');
    network.socket.cut();
    trainer.finish('a');
    network.now = 60_000;
    client.tick();
    network.welcome(['a']);
    expect(network.socket.types()).toEqual(['hello', 'upload.begin', 'ready']);
  });

  test('drops a revoked task, running or not', () => {
    assign('a');
    assign('b');
    hear({ type: 'task.revoked', lease: 'b', reason: 'the round is over' });
    expect(trainer.asked()).toEqual(['prepare a', 'run a', 'prepare b']);
    hear({ type: 'task.revoked', lease: 'a', reason: 'the round is over' });
    expect(trainer.asked().at(-1)).toBe('drop a');
    trainer.finish('a');
    expect(network.socket.types()).not.toContain('upload.begin');
  });

  test('gives a task back that failed, and stops after three in a row', () => {
    for (const lease of ['a', 'b', 'c']) {
      assign(lease);
      trainer.onEvent({ type: 'failed', lease, reason: 'x'.repeat(900) });
      expect(network.socket.sent.filter(({ type }) => type === 'task.failed').at(-1)).toEqual({
        type: 'task.failed',
        lease,
        reason: 'x'.repeat(500),
      });
    }
    expect(client.view).toMatchObject({ stuck: true, running: false, connection: 'closed' });
  });

  test('paused, it finishes its task, gives the queued one back and takes no other', () => {
    assign('a');
    assign('b');
    client.pause();
    expect(network.socket.sent.at(-1)).toEqual({ type: 'task.failed', lease: 'b', reason: 'the client paused' });
    trainer.finish('a');
    expect(network.socket.types().slice(-2)).toEqual(['task.failed', 'upload.begin']);
    assign('c');
    expect(network.socket.sent.at(-1)).toMatchObject({ type: 'task.failed', lease: 'c' });
    client.start();
    expect(network.socket.types().at(-1)).toBe('ready');
  });

  test('counts a rejected update and says why', () => {
    assign('a');
    trainer.finish('a');
    hear({ type: 'upload.rejected', lease: 'a', upload: 1, code: 'norm', reason: 'too large' });
    expect(client.view).toMatchObject({ done: 0, rejected: 1, problem: expect.stringContaining('too large') });
  });

  test.each(['stale', 'duplicate'])('says nothing of a lost race (%s)', (code) => {
    assign('a');
    trainer.finish('a');
    hear({ type: 'upload.rejected', lease: 'a', upload: 1, code, reason: 'the task was over' });
    expect(client.view).toMatchObject({ done: 0, rejected: 0, problem: '', uploads: [] });
  });

  test.each(['token', 'version', 'replaced'])('a refusal that stays (%s) is not tried again', (code) => {
    hear({ type: 'error', code, message: 'no' });
    network.now = 600_000;
    client.tick();
    expect(client.view).toMatchObject({ stuck: true, problem: `${code}: no` });
    expect(network.sockets).toHaveLength(1);
  });

  test('another refusal is shown, and the client comes back after the close', () => {
    hear({ type: 'error', code: 'full', message: 'later' });
    network.socket.cut();
    network.now = 60_000;
    client.tick();
    expect(client.view).toMatchObject({ stuck: false, problem: 'full: later' });
    expect(network.sockets).toHaveLength(2);
  });

  test('an assignment that comes twice is one task', () => {
    assign('a');
    assign('a');
    expect(trainer.asked()).toEqual(['prepare a', 'run a']);
  });

  test('a crash of the trainer stops the client', () => {
    trainer.onCrash('out of memory');
    expect(client.view).toMatchObject({ stuck: true, problem: 'the trainer stopped, reload the page: out of memory' });
  });

  test('the welcome names the chunk size', () => {
    expect(WELCOME.chunk_bytes).toBe(8);
    assign('a');
    trainer.finish('a');
    hear({ type: 'upload.offset', upload: 1, offset: 0 });
    expect(network.socket.frames.map(({ length }) => length - 12)).toEqual([8, 8, 4]);
  });
});
