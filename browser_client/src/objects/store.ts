/** Fetches objects by digest: streamed, resumed after a cut, verified, and kept in Cache Storage for every tab. */
import { sha256Hex } from './digest';
import { ATTEMPTS, pauseMs } from './patiently';
import type { Ref } from '../words/protocol';

const CACHE_NAME = 'fedbus-objects';
/** A download that brings no byte for this long is cut and begun anew where it stopped. */
const SILENCE_MS = 20_000;

export type ObjectErrorCode = 'object_missing' | 'object_corrupt' | 'object_unreachable';

export class ObjectError extends Error {
  override readonly name = 'ObjectError';
  constructor(
    readonly code: ObjectErrorCode,
    message: string,
  ) {
    super(message);
  }
}

export type OnDownload = (ref: Ref, loaded: number) => void;

/** The part of Cache Storage's `Cache` that is used. */
export type ObjectCache = Pick<Cache, 'match' | 'put' | 'delete'>;

/** The browser's persistent cache, or null where there is none: an insecure context, or storage that is blocked. */
export async function openObjectCache(): Promise<ObjectCache | null> {
  if (!('caches' in globalThis)) return null;
  return caches.open(CACHE_NAME).catch(() => null);
}

export class ObjectStore {
  readonly #pending = new Map<string, Promise<Uint8Array<ArrayBuffer>>>();

  /** `folder` is the URL before the digest, ending in a slash. */
  constructor(
    private readonly folder: string,
    private readonly cache: ObjectCache | null,
    private readonly onDownload: OnDownload = () => undefined,
    private readonly fetchFrom: typeof fetch = (...args) => fetch(...args),
    private readonly sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms)),
  ) {}

  /** The verified bytes of an object; throws ObjectError. Two calls for one object share one download. */
  get(ref: Ref): Promise<Uint8Array<ArrayBuffer>> {
    let pending = this.#pending.get(ref.sha256);
    if (pending === undefined) {
      pending = this.#get(ref).finally(() => this.#pending.delete(ref.sha256));
      this.#pending.set(ref.sha256, pending);
    }
    return pending;
  }

  async #get(ref: Ref): Promise<Uint8Array<ArrayBuffer>> {
    const url = this.folder + ref.sha256;
    const cached = await this.cache?.match(url);
    if (cached !== undefined) {
      const bytes = new Uint8Array(await cached.arrayBuffer());
      if ((await sha256Hex(bytes)) === ref.sha256) return bytes;
      await this.cache?.delete(url);
    }
    const bytes = await this.#download(url, ref);
    if ((await sha256Hex(bytes)) !== ref.sha256) {
      throw new ObjectError('object_corrupt', `object ${ref.sha256} arrived with another digest`);
    }
    const headers = { 'content-length': String(bytes.length), 'content-type': 'application/octet-stream' };
    // A full disk or quota only means that the next tab downloads again.
    await this.cache?.put(url, new Response(bytes, { headers })).catch(() => undefined);
    return bytes;
  }

  async #download(url: string, ref: Ref): Promise<Uint8Array<ArrayBuffer>> {
    const into = new PartialObject(ref, this.onDownload);
    for (let attempt = 0; ; attempt++) {
      const before = into.loaded;
      try {
        await this.#attempt(url, into);
        if (into.complete) return into.bytes;
      } catch (error) {
        if (error instanceof ObjectError) throw error;
      }
      // What counts are attempts without progress: a large download may be cut often and still end.
      if (into.loaded > before) attempt = 0;
      if (attempt >= ATTEMPTS) {
        throw new ObjectError(
          'object_unreachable',
          `object ${ref.sha256} stopped at byte ${into.loaded} of ${ref.size}`,
        );
      }
      await this.sleep(pauseMs(attempt));
    }
  }

  /** One request for what is missing; ends or throws where the connection is cut. */
  async #attempt(url: string, into: PartialObject): Promise<void> {
    const watchdog = new Watchdog(SILENCE_MS);
    try {
      const response = await this.fetchFrom(url, {
        headers: into.loaded > 0 ? { range: `bytes=${into.loaded}-` } : {},
        cache: this.cache === null ? 'default' : 'no-store',
        signal: watchdog.signal,
      });
      if ([401, 403, 404].includes(response.status))
        throw new ObjectError('object_missing', `the gateway gives no object ${into.ref.sha256} (${response.status})`);
      if (!response.ok || response.body === null) return;
      if (response.status !== 206) into.restart();
      const reader = response.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        watchdog.feed();
        into.add(part.value);
      }
    } finally {
      watchdog.stop();
    }
  }
}

/** The bytes of one object that have arrived so far. */
class PartialObject {
  readonly bytes: Uint8Array<ArrayBuffer>;
  loaded = 0;

  constructor(
    readonly ref: Ref,
    private readonly onDownload: OnDownload,
  ) {
    this.bytes = new Uint8Array(ref.size);
  }

  get complete(): boolean {
    return this.loaded === this.ref.size;
  }

  restart(): void {
    this.loaded = 0;
  }

  add(part: Uint8Array): void {
    if (this.loaded + part.length > this.ref.size) {
      throw new ObjectError('object_corrupt', `object ${this.ref.sha256} is longer than ${this.ref.size} bytes`);
    }
    this.bytes.set(part, this.loaded);
    this.loaded += part.length;
    this.onDownload(this.ref, this.loaded);
  }
}

/** Aborts its signal when it is not fed for a while. */
class Watchdog {
  readonly #controller = new AbortController();
  #timer: ReturnType<typeof setTimeout>;

  constructor(private readonly patienceMs: number) {
    this.#timer = setTimeout(() => this.#controller.abort(), patienceMs);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  feed(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#controller.abort(), this.patienceMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}
