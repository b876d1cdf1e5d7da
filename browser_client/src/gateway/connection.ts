/** The WebSocket to the gateway: says hello, keeps alive, notices silence, and comes back after a cut. */
import { CheckError } from '../words/checks';
import { type ClientMessage, parseServerMessage, PROTOCOL_VERSION, type ServerMessage, type Welcome } from '../words/protocol';
import type { Wire } from './upload';

const ANSWER_MS = 10_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
/** The gateway counts a client as gone after this many silent heartbeats, and the client the gateway. */
const SILENT_HEARTBEATS = 3;
/** The gateway closes a connection with this code when a newer one has the client's name. */
const REPLACED = 4001;

export type ConnectionState = 'closed' | 'connecting' | 'open' | 'waiting';

/** The part of WebSocket that is used, so that tests can run a fake one. */
export type Socket = Pick<WebSocket, 'send' | 'close' | 'onopen' | 'onmessage' | 'onclose' | 'onerror' | 'binaryType'>;

export interface ConnectionOptions {
  readonly url: string;
  readonly token: string;
  readonly client: string;
  readonly engine: () => string;
  /** Leases that the client still holds, asked at each hello. */
  readonly resume: () => readonly string[];
  readonly onWelcome: (welcome: Welcome) => void;
  readonly onMessage: (message: Exclude<ServerMessage, Welcome>) => void;
  readonly onState: (state: ConnectionState) => void;
  readonly open?: (url: string) => Socket;
  readonly now?: () => number;
  readonly random?: () => number;
}

/** All waiting happens in `tick`, which the owner calls a few times a second: a hidden page's timers are throttled. */
export class Connection implements Wire {
  #state: ConnectionState = 'closed';
  #socket: Socket | null = null;
  #welcome: Welcome | null = null;
  #attempt = 0;
  #deadline = 0;
  #lastSent = 0;
  #lastHeard = 0;

  constructor(private readonly options: ConnectionOptions) {}

  get state(): ConnectionState {
    return this.#state;
  }

  get chunkBytes(): number {
    return this.#welcome?.chunk_bytes ?? 0;
  }

  start(): void {
    if (this.#state === 'closed') this.#connect();
  }

  /** Closes for good; `start` begins again. */
  stop(): void {
    this.#drop();
    this.#attempt = 0;
    this.#become('closed');
  }

  tick(): void {
    const now = this.#now();
    if (this.#state === 'waiting' && now >= this.#deadline) this.#connect();
    else if (this.#state === 'connecting' && now >= this.#deadline) this.#lost();
    else if (this.#state === 'open') {
      const heartbeat = this.#welcome!.heartbeat_s * 1000;
      if (now - this.#lastHeard >= SILENT_HEARTBEATS * heartbeat) this.#lost();
      else if (now - this.#lastSent >= heartbeat) this.send({ type: 'ping' });
    }
  }

  /** Lost when the connection is not open: whoever sends learns of it by the next welcome. */
  send(message: ClientMessage): void {
    if (this.#state === 'open') this.#transmit(JSON.stringify(message));
  }

  sendBytes(frame: Uint8Array<ArrayBuffer>): void {
    if (this.#state === 'open') this.#transmit(frame);
  }

  #transmit(data: string | Uint8Array<ArrayBuffer>): void {
    this.#lastSent = this.#now();
    this.#socket?.send(data);
  }

  #connect(): void {
    this.#welcome = null;
    this.#deadline = this.#now() + ANSWER_MS;
    this.#become('connecting');
    const socket = (this.options.open ?? ((url) => new WebSocket(url)))(this.options.url);
    this.#socket = socket;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
      const { token, client } = this.options;
      const [engine, resume] = [this.options.engine(), this.options.resume()];
      const hello: ClientMessage = { type: 'hello', protocol: PROTOCOL_VERSION, token, client, engine, resume };
      this.#transmit(JSON.stringify(hello));
    };
    socket.onmessage = (event: MessageEvent) => this.#heard(event.data);
    socket.onclose = ({ code }: CloseEvent) => {
      const message = "another connection has this client's name";
      if (code === REPLACED) this.options.onMessage({ type: 'error', code: 'replaced', message });
      this.#lost();
    };
    socket.onerror = () => this.#lost();
  }

  #heard(data: unknown): void {
    this.#lastHeard = this.#now();
    let message: ServerMessage;
    try {
      message = parseServerMessage(String(data));
    } catch (error) {
      if (!(error instanceof CheckError)) throw error;
      this.options.onMessage({
        type: 'error',
        code: 'bad_message',
        message: `the gateway said nonsense: ${error.message}`,
      });
      this.#lost();
      return;
    }
    if (message.type !== 'welcome') this.options.onMessage(message);
    else if (this.#state === 'connecting') {
      this.#welcome = message;
      this.#attempt = 0;
      this.#become('open');
      this.options.onWelcome(message);
    }
  }

  #lost(): void {
    if (this.#state !== 'connecting' && this.#state !== 'open') return;
    this.#drop();
    const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt);
    this.#attempt += 1;
    // Jitter: clients that were cut together must not come back together.
    this.#deadline = this.#now() + longest * (0.5 + 0.5 * (this.options.random ?? Math.random)());
    this.#become('waiting');
  }

  #drop(): void {
    const socket = this.#socket;
    this.#socket = null;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    socket.close();
  }

  #become(state: ConnectionState): void {
    this.#state = state;
    this.options.onState(state);
  }

  #now(): number {
    return (this.options.now ?? (() => performance.now()))();
  }
}
