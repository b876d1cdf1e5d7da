/** One update on its way to the gateway: chunks in a small window, resumed at the gateway's offset after a cut. */
import { type ClientMessage, encodeChunk, type UpdateMetrics } from '../words/protocol';

/** Chunks that may be on their way before the gateway acknowledged them. */
export const WINDOW = 4;
/** A question that is not answered for this long is asked again: a busy gateway may have refused it. */
const ANSWER_MS = 10_000;

/** What an upload writes to. */
export interface Wire {
  send(message: ClientMessage): void;
  sendBytes(frame: Uint8Array<ArrayBuffer>): void;
}

export class Upload {
  #state: 'waiting' | 'sending' | 'committed' = 'waiting';
  #asked = 0;
  #sent = 0;
  #acknowledged = 0;

  constructor(
    readonly lease: string,
    readonly number: number,
    private readonly bytes: Uint8Array<ArrayBuffer>,
    private readonly sha256: string,
    private readonly metrics: UpdateMetrics,
    private readonly now = (): number => performance.now(),
  ) {}

  get size(): number {
    return this.bytes.length;
  }

  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Asks where to go on; again after each reconnect. */
  begin(wire: Wire): void {
    this.#ask('waiting');
    const { lease, number, size, sha256 } = this;
    wire.send({ type: 'upload.begin', lease, upload: number, size, sha256 });
  }

  /** The gateway has the bytes up to `offset`: sends on from there, or commits when it has them all. */
  offset(offset: number, chunkBytes: number, wire: Wire): void {
    if (this.#state === 'committed') return;
    // The first answer says where to begin; a later one that goes back says that chunks were lost.
    if (this.#state === 'waiting' || offset < this.#acknowledged) this.#sent = Math.min(offset, this.size);
    this.#acknowledged = Math.min(offset, this.size);
    this.#state = 'sending';
    while (this.#sent < this.size && this.#sent - this.#acknowledged < WINDOW * chunkBytes) {
      const end = Math.min(this.size, this.#sent + chunkBytes);
      wire.sendBytes(encodeChunk(this.number, this.#sent, this.bytes.subarray(this.#sent, end)));
      this.#sent = end;
    }
    if (this.#acknowledged === this.size) {
      this.#ask('committed');
      wire.send({ type: 'upload.commit', lease: this.lease, upload: this.number, metrics: this.metrics });
    }
  }
  /** Begins anew when the gateway owes an answer for too long; call it now and then. */
  tick(wire: Wire): void {
    if (this.#state !== 'sending' && this.now() - this.#asked >= ANSWER_MS) this.begin(wire);
  }

  #ask(state: 'waiting' | 'committed'): void {
    this.#state = state;
    this.#asked = this.now();
  }
}
