/** A WebSocket, a clock and a cache that tests hold in their hands. */
import { Connection, type ConnectionOptions, type Socket } from '../src/gateway/connection';
import type { ObjectCache } from '../src/objects/store';
import type { ClientMessage, ServerMessage } from '../src/words/protocol';

export class FakeSocket implements Socket {
  binaryType: BinaryType = 'blob';
  onopen: Socket['onopen'] = null;
  onmessage: Socket['onmessage'] = null;
  onclose: Socket['onclose'] = null;
  onerror: Socket['onerror'] = null;
  closed = false;
  readonly sent: ClientMessage[] = [];
  readonly frames: Uint8Array[] = [];

  send(data: Parameters<Socket['send']>[0]): void {
    if (typeof data === 'string') this.sent.push(JSON.parse(data) as ClientMessage);
    else this.frames.push(data as Uint8Array);
  }

  close(): void {
    this.closed = true;
  }

  open(): void {
    this.onopen?.call(this as unknown as WebSocket, new Event('open'));
  }

  hear(message: ServerMessage | string): void {
    const data = typeof message === 'string' ? message : JSON.stringify(message);
    this.onmessage?.call(this as unknown as WebSocket, { data } as MessageEvent);
  }

  cut(): void {
    this.onclose?.call(this as unknown as WebSocket, {} as CloseEvent);
  }

  types(): string[] {
    return this.sent.map(({ type }) => type);
  }
}

export const WELCOME = {
  type: 'welcome',
  protocol: 1,
  heartbeat_s: 5,
  lease_s: 30,
  chunk_bytes: 8,
  resumed: [],
} as const;

export class FakeNetwork {
  now = 0;
  readonly sockets: FakeSocket[] = [];

  connection(handlers: Partial<ConnectionOptions> = {}): Connection {
    return new Connection({
      url: 'ws://gateway/ws',
      token: 'secret',
      client: 'tab-1',
      engine: () => 'engine',
      resume: () => [],
      onWelcome: () => undefined,
      onMessage: () => undefined,
      onState: () => undefined,
      open: () => {
        this.sockets.push(new FakeSocket());
        return this.socket;
      },
      now: () => this.now,
      random: () => 1,
      ...handlers,
    });
  }

  get socket(): FakeSocket {
    return this.sockets.at(-1)!;
  }

  /** Lets the newest socket in. */
  welcome(resumed: readonly string[] = []): void {
    this.socket.open();
    this.socket.hear({ ...WELCOME, resumed });
  }
}

export class MemoryCache implements ObjectCache {
  readonly kept = new Map<string, Response>();
  async match(url: RequestInfo | URL): Promise<Response | undefined> {
    return this.kept.get(String(url))?.clone();
  }
  async put(url: RequestInfo | URL, response: Response): Promise<void> {
    this.kept.set(String(url), response);
  }
  async delete(url: RequestInfo | URL): Promise<boolean> {
    return this.kept.delete(String(url));
  }
}
