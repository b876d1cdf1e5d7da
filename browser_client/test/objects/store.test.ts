import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { type ObjectCache, ObjectStore } from '../../src/objects/store';
import type { Ref } from '../../src/words/protocol';
import { MemoryCache } from '../fakes';

const DATA = Buffer.from(Array.from({ length: 300_000 }, (_, k) => (k * 7) % 251));
const REF: Ref = { size: DATA.length, sha256: createHash('sha256').update(DATA).digest('hex') };

let server: Server | null = null;
const asked: (string | undefined)[] = [];

async function serving(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<string> {
  asked.length = 0;
  server = createServer((request, response) => {
    asked.push(request.headers.range);
    answer(request, response);
  });
  await new Promise<void>((resolve) => server!.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/objects/`;
}

/** Sends from the range's start, and cuts the connection before byte `until`. */
function part(request: IncomingMessage, response: ServerResponse, until: number): void {
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
  response.writeHead(start > 0 ? 206 : 200, { 'content-length': DATA.length - start });
  const body = DATA.subarray(start, until);
  if (until >= DATA.length) response.end(body);
  else response.write(body, () => setTimeout(() => response.destroy(), 30));
}

const store = (
  folder: string,
  cache: ObjectCache | null = null,
  onDownload?: (ref: Ref, loaded: number) => void,
): ObjectStore => new ObjectStore(folder, cache, onDownload, fetch, () => Promise.resolve());

afterEach(() => {
  server?.closeAllConnections();
  server?.close();
  server = null;
});

describe('objects', () => {
  test('arrive whole, with their progress', async () => {
    const folder = await serving((request, response) => part(request, response, DATA.length));
    const loaded: number[] = [];
    const bytes = await store(folder, null, (_, at) => loaded.push(at)).get(REF);
    expect(Buffer.from(bytes).equals(DATA)).toBe(true);
    expect(loaded.at(-1)).toBe(DATA.length);
  });

  test('go on with a range where a cut stopped them', async () => {
    const cuts = [100_000, 200_000, DATA.length];
    const folder = await serving((request, response) => part(request, response, cuts.shift()!));
    const bytes = await store(folder).get(REF);
    expect(Buffer.from(bytes).equals(DATA)).toBe(true);
    expect(asked).toEqual([undefined, 'bytes=100000-', 'bytes=200000-']);
  });

  test('start over when the gateway knows no ranges', async () => {
    let first = true;
    const folder = await serving((request, response) => {
      delete request.headers.range;
      part(request, response, first ? 100_000 : DATA.length);
      first = false;
    });
    expect(Buffer.from(await store(folder).get(REF)).equals(DATA)).toBe(true);
  });

  test('are fetched once and come from the cache after that, for another tab too', async () => {
    const folder = await serving((request, response) => part(request, response, DATA.length));
    const cache = new MemoryCache();
    const objects = store(folder, cache);
    await Promise.all([objects.get(REF), objects.get(REF)]);
    await objects.get(REF);
    await store(folder, cache).get(REF);
    expect(asked).toHaveLength(1);
  });

  test('a damaged cache entry is fetched again', async () => {
    const folder = await serving((request, response) => part(request, response, DATA.length));
    const cache = new MemoryCache();
    await cache.put(folder + REF.sha256, new Response('damaged'));
    expect(Buffer.from(await store(folder, cache).get(REF)).equals(DATA)).toBe(true);
    expect(asked).toHaveLength(1);
  });

  test('a cache that is full does no harm', async () => {
    const folder = await serving((request, response) => part(request, response, DATA.length));
    const cache = new MemoryCache();
    cache.put = () => Promise.reject(new Error('quota exceeded'));
    expect(await store(folder, cache).get(REF)).toHaveLength(DATA.length);
  });

  test('another digest is refused, and not kept', async () => {
    const folder = await serving((request, response) => part(request, response, DATA.length));
    const cache = new MemoryCache();
    const other = { ...REF, sha256: '0'.repeat(64) };
    await expect(store(folder, cache).get(other)).rejects.toMatchObject({ code: 'object_corrupt' });
    expect(cache.kept.size).toBe(0);
  });

  test('more bytes than the reference says are refused', async () => {
    const folder = await serving((request, response) => part(request, response, DATA.length));
    await expect(store(folder).get({ ...REF, size: 1000 })).rejects.toMatchObject({ code: 'object_corrupt' });
  });

  test('a missing object is an error at once', async () => {
    const folder = await serving((_, response) => response.writeHead(404).end());
    await expect(store(folder).get(REF)).rejects.toMatchObject({ code: 'object_missing' });
    expect(asked).toHaveLength(1);
  });

  test('a gateway that always fails is given up after some attempts', async () => {
    const folder = await serving((_, response) => response.writeHead(503).end());
    await expect(store(folder).get(REF)).rejects.toMatchObject({ code: 'object_unreachable' });
    expect(asked).toHaveLength(7);
  });
});
