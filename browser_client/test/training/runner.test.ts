import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import type { Engine, EngineFiles } from '../../src/training/engine';
import { ObjectStore } from '../../src/objects/store';
import type { Ref, Task } from '../../src/words/protocol';
import { TaskRunner } from '../../src/training/runner';
import type { TrainerEvent } from '../../src/training/trainer';
import { MemoryCache } from '../fakes';
import { vectors } from '../vectors';

/** Predicts class 0 for every image and counts what it is asked to do. */
class CountingEngine implements Engine {
  readonly name = 'counting';
  readonly calls: string[] = [];

  async load(_: unknown, files: EngineFiles): Promise<void> {
    this.calls.push(`load ${new TextDecoder().decode(files.checkpoint)}`);
  }
  setOptimizer(model: Uint8Array): void {
    this.calls.push(`optimizer ${new TextDecoder().decode(model)}`);
  }
  async begin(): Promise<void> {
    this.calls.push('begin');
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
}

class World {
  readonly objects = new Map<string, Uint8Array<ArrayBuffer>>();
  readonly fetched: string[] = [];
  readonly engine = new CountingEngine();
  readonly events: TrainerEvent[] = [];
  onEvent: (event: TrainerEvent) => void = () => undefined;
  stepBytes = 10;
  readonly runner = new TaskRunner(
    this.engine,
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
    8,
  );

  put(data: string | Uint8Array): Ref {
    const bytes = Uint8Array.from(Buffer.from(data));
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    this.objects.set(sha256, bytes);
    return { size: bytes.length, sha256 };
  }

  spec(learningRate = 'slow', encoding = 'float32'): Ref {
    const files = { training_model: this.put('t'), eval_model: this.put('e'), checkpoint: this.put('checkpoint') };
    const manifest = {
      version: 1,
      name: 'm',
      model: { image_size: 1, channels: 1, classes: ['a', 'b'], mean: [0.5], std: [0.5] },
      inputs: ['x', 'y'],
      outputs: ['loss', 'logits'],
      optimizer: { stateless: true },
      trainable_count: 1,
      files,
      memory: { parameters: 100, forward_per_image: 10, step_per_image: this.stepBytes },
    };
    return this.put(
      JSON.stringify({
        ...vectors<{ spec: object }>('protocol').spec,
        artifacts: this.put(JSON.stringify(manifest)),
        base_model: this.put(new Uint8Array(Float32Array.of(1).buffer)),
        optimizer: this.put(learningRate),
        encoding,
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
    expect(world.engine.calls).toEqual([]);
    // Shard, spec and manifest alone.
    expect(new Set(world.fetched).size).toBeLessThanOrEqual(3);
  });

  test('hands back the encoded delta with its digest', async () => {
    const world = new World();
    await world.runner.run('a', world.task([0, 1]));
    expect(world.kinds()).toEqual(['started', 'progress', 'progress', 'done']);
    const bytes = new Uint8Array(Float32Array.of(2).buffer);
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    expect(world.events.at(-1)).toMatchObject({ lease: 'a', bytes, sha256, metrics: { mismatched_images: 1 } });
  });

  test('loads artifacts once for all rounds, and each round with its own optimizer', async () => {
    const world = new World();
    await world.runner.run('a', world.task([0]));
    await world.runner.run('b', world.task([1], world.spec('slower')));
    expect(world.engine.calls).toEqual([
      'load checkpoint',
      'optimizer slow',
      'begin',
      'optimizer slower',
      'begin',
      'step',
    ]);
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
    expect(world.engine.calls.filter((call) => call === 'step')).toHaveLength(0);
    expect(world.kinds()).toEqual(['started', 'progress', 'dropped', 'started', 'progress', 'done']);
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
    ['an unknown encoding', (world: World) => world.task([0], world.spec('slow', 'zip')), 'unknown encoding "zip"'],
  ])('reports %s and stays able to work', async (_, broken, reason) => {
    const world = new World();
    await world.runner.run('a', broken(world));
    expect(world.events.at(-1)).toMatchObject({ type: 'failed', lease: 'a', reason: expect.stringContaining(reason) });
    await world.runner.run('b', world.task([0]));
    expect(world.kinds().at(-1)).toBe('done');
  });
});
