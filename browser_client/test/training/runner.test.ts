import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import type { Engine, EngineMaker } from '../../src/training/engine';
import { ObjectStore } from '../../src/objects/store';
import type { Ref, Task } from '../../src/words/protocol';
import { type RunnerOptions, TaskRunner } from '../../src/training/runner';
import type { TrainerEvent } from '../../src/training/trainer';
import { MemoryCache } from '../fakes';
import { vectors } from '../vectors';

/** Predicts class 0 for every image and counts what it is asked to do. */
class CountingEngine implements Engine {
  constructor(private readonly calls: string[]) {}

  async begin(_: Float32Array, learningRate: number): Promise<void> {
    this.calls.push(`begin ${learningRate}`);
  }
  async features(pixels: Float32Array<ArrayBuffer>): Promise<Float32Array<ArrayBuffer>> {
    return pixels;
  }
  async predict(_: Float32Array, count: number): Promise<Float32Array> {
    return new Float32Array(2 * count);
  }
  async trainStep(): Promise<number> {
    this.calls.push('step');
    return 1;
  }
  async parameters(): Promise<Float32Array<ArrayBuffer>> {
    return Float32Array.of(3);
  }
  async release(): Promise<void> {
    this.calls.push('release');
  }
}

class World {
  readonly objects = new Map<string, Uint8Array<ArrayBuffer>>();
  readonly fetched: string[] = [];
  readonly calls: string[] = [];
  readonly maker: EngineMaker = {
    opens: 'counting',
    preference: 0,
    whyNot: async () => null,
    label: async () => 'counting engine',
    open: async (_, files) => {
      this.calls.push(`open ${[...files].map(([role, bytes]) => `${role}=${new TextDecoder().decode(bytes)}`).join()}`);
      return new CountingEngine(this.calls);
    },
  };
  readonly options: { -readonly [K in keyof RunnerOptions]: RunnerOptions[K] } = {
    engines: new Map([['counting', this.maker]]),
    wanted: '',
    deviceGigabytes: 8,
    wasmFolder: './',
    threads: 1,
  };
  readonly events: TrainerEvent[] = [];
  onEvent: (event: TrainerEvent) => void = () => undefined;
  stepBytes = 10;
  readonly runner = new TaskRunner(
    this.options,
    new ObjectStore(
      'http://gateway/objects/',
      new MemoryCache(),
      undefined,
      (async (url: string) => {
        const digest = url.slice(-64);
        this.fetched.push(digest);
        const body = this.objects.get(digest);
        return new Response(body ?? null, { status: body === undefined ? 404 : 200 });
      }) as typeof fetch,
      () => Promise.resolve(),
    ),
    (event) => {
      this.events.push(event);
      this.onEvent(event);
    },
  );

  put(data: string | Uint8Array): Ref {
    const bytes = Uint8Array.from(Buffer.from(data));
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    this.objects.set(sha256, bytes);
    return { size: bytes.length, sha256 };
  }

  spec(changes: object = {}, manifestChanges: object = {}): Ref {
    const manifest = {
      version: 1,
      name: 'm',
      model: { image_size: 1, channels: 1, classes: ['a', 'b'], mean: [0.5], std: [0.5] },
      inputs: ['x', 'y'],
      outputs: ['loss', 'logits'],
      optimizer: { stateless: true, learning_rate_initializer: 'rate' },
      trainable_count: 1,
      files: { weights: this.put('the weights'), trainable: this.put('never fetched') },
      engines: { counting: ['weights'] },
      memory: { parameters: 100, forward_per_image: 10, step_per_image: this.stepBytes },
      ...manifestChanges,
    };
    return this.put(
      JSON.stringify({
        ...vectors<{ spec: object }>('protocol').spec,
        artifacts: this.put(JSON.stringify(manifest)),
        base_model: this.put(new Uint8Array(Float32Array.of(1).buffer)),
        ...changes,
      }),
    );
  }

  task(labels: number[], spec = this.spec()): Task {
    const header = JSON.stringify({
      images: { dtype: 'U8', shape: [labels.length, 1, 1, 1], data_offsets: [0, labels.length] },
    });
    const file = Buffer.concat([Buffer.alloc(8), Buffer.from(header), Buffer.alloc(labels.length)]);
    file.writeBigUInt64LE(BigInt(header.length));
    return { run: 'r', round: 1, user: 'u', shard: this.put(file), labels, spec, seed: 1 };
  }

  kinds(): string[] {
    return this.events.map(({ type }) => type);
  }
}

describe('the task runner', () => {
  test('says that a model is too large before it downloads it', async () => {
    const world = new World();
    world.stepBytes = 2 ** 40;
    await world.runner.run('a', world.task([0, 1]));
    const reason = world.events.map((event) => (event.type === 'failed' ? event.reason : '')).join('');
    expect(reason).toMatch(/needs about \d+\.\d GiB .* this browser has 3\.6 GiB/);
    expect(world.calls).toEqual([]);
    // Shard, spec and manifest alone.
    expect(new Set(world.fetched).size).toBeLessThanOrEqual(3);
  });

  test('hands back the encoded delta with its digest', async () => {
    const world = new World();
    await world.runner.run('a', world.task([0, 1]));
    expect(world.kinds()).toEqual(['started', 'ready', 'progress', 'progress', 'done']);
    const bytes = new Uint8Array(Float32Array.of(2).buffer);
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    expect(world.events.at(-1)).toMatchObject({ lease: 'a', bytes, sha256, metrics: { mismatched_images: 1 } });
  });

  test('opens one engine for all rounds of a model, and tells it the rate of each', async () => {
    const world = new World();
    await world.runner.run('a', world.task([0], world.spec({ learning_rate: 0.5 })));
    await world.runner.run('b', world.task([1], world.spec({ learning_rate: 0.25 })));
    expect(world.calls).toEqual(['open weights=the weights', 'begin 0.5', 'begin 0.25', 'step']);
    expect(world.events.find(({ type }) => type === 'ready')).toMatchObject({
      engine: 'counting engine',
      reason: 'counting, the only one there is',
    });
  });

  test('releases the engine of one model before it opens that of another', async () => {
    const world = new World();
    await world.runner.run('a', world.task([0]));
    await world.runner.run('b', world.task([0], world.spec({}, { name: 'another' })));
    expect(world.calls.map((call) => call.split(' ')[0])).toEqual(['open', 'begin', 'release', 'open', 'begin']);
  });

  test.each([
    ['an unknown kind of task', { kind: 'poetry' }, {}, 'there is no kind of task "poetry"'],
    ['artifacts for other engines', {}, { engines: { other: ['weights'] } }, 'files for other and not for counting'],
  ])('refuses %s before it fetches anything large', async (_, spec, manifest, reason) => {
    const world = new World();
    await world.runner.run('a', world.task([0, 1], world.spec(spec, manifest)));
    expect(world.events.at(-1)).toMatchObject({ type: 'failed', reason: expect.stringContaining(reason) });
    expect(world.calls).toEqual([]);
    expect(world.fetched.length).toBeLessThanOrEqual(2);
  });

  test('announces the engine, and refuses one that there is not, before it fetches anything', async () => {
    const world = new World();
    await world.runner.announce();
    expect(world.events).toEqual([
      { type: 'ready', engine: 'counting engine', reason: 'counting, the only one there is' },
    ]);
    world.options.wanted = 'another';
    await expect(world.runner.announce()).rejects.toMatchObject({ code: 'engine_unknown' });
    expect(world.fetched).toEqual([]);
  });

  test('fetches ahead what the task needs, so that running it waits for nothing', async () => {
    const world = new World();
    const [first, second] = [world.task([0]), world.task([0, 1])];
    await world.runner.run('a', first);
    await world.runner.prepare(second);
    world.fetched.length = 0;
    world.objects.clear();
    await world.runner.run('b', second);
    expect(world.fetched).toEqual([]);
    expect(world.kinds().at(-1)).toBe('done');
  });

  test('gives a dropped task up at its next step and goes on with the next one', async () => {
    const world = new World();
    world.onEvent = (event) => {
      if (event.type === 'progress' && event.lease === 'a') world.runner.drop('a');
    };
    await Promise.all([world.runner.run('a', world.task([1, 1, 1])), world.runner.run('b', world.task([0]))]);
    expect(world.calls.filter((call) => call === 'step')).toHaveLength(0);
    expect(world.kinds()).toEqual(['started', 'ready', 'progress', 'dropped', 'started', 'progress', 'done']);
  });

  test('a drop for another lease changes nothing', async () => {
    const world = new World();
    world.onEvent = () => world.runner.drop('b');
    await world.runner.run('a', world.task([1]));
    expect(world.kinds().at(-1)).toBe('done');
  });

  test.each([
    ['a missing object', (world: World) => world.task([0], { size: 1, sha256: '0'.repeat(64) }), 'gives no object'],
    ['a damaged spec', (world: World) => world.task([0], world.put('{}')), 'spec.run'],
    ['an unknown encoding', (world: World) => world.task([0], world.spec({ encoding: 'zip' })), 'unknown encoding "zip"'],
  ])('reports %s and stays able to work', async (_, broken, reason) => {
    const world = new World();
    await world.runner.run('a', broken(world));
    expect(world.events.at(-1)).toMatchObject({ type: 'failed', lease: 'a', reason: expect.stringContaining(reason) });
    await world.runner.run('b', world.task([0]));
    expect(world.kinds().at(-1)).toBe('done');
  });
});
