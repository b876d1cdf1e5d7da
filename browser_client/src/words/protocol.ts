/** The messages between gateway and clients, as agents/core/exchange/messages.py defines them. */
import {
  type Checked,
  CheckError,
  flag,
  integer,
  list,
  literal,
  optional,
  parseJson,
  real,
  record,
  text,
} from './checks';

export const PROTOCOL_VERSION = 1;
const MAX_IMAGES_PER_USER = 1_000;
/** A reason is cut to this many characters, or the gateway refuses the message. */
export const MAX_REASON = 500;
/** Codes of a rejected update that say only that somebody else was faster, or that the round ended meanwhile. */
export const NO_FAULT: readonly string[] = ['stale', 'duplicate'];
const CHUNK_HEADER_BYTES = 12;
export const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;

const name = text(NAME);
const sha256 = text(/^[0-9a-f]{64}$/);
const lease = text(/^[A-Za-z0-9._-]{1,250}$/);
const uploadNumber = integer(0, 2 ** 32 - 1);
const shortText = text(null, MAX_REASON);

export const ref = record({ size: integer(0), sha256 });
/** The digest and size of an object: all that a client needs to fetch it. */
export type Ref = Checked<typeof ref>;

const augmentationSpec = record({
  flip: flag,
  shift: integer(0, 1024),
  cos: list(integer(-(2 ** 20), 2 ** 20), 1, 361),
  sin: list(integer(-(2 ** 20), 2 ** 20), 1, 361),
  inverse_scale: list(integer(-(2 ** 20), 2 ** 20), 1, 361),
  brightness: integer(0, 255),
  contrast: integer(0, 255),
});
export type AugmentationSpec = Checked<typeof augmentationSpec>;

export const taskSpec = record({
  run: name,
  round: integer(0),
  artifacts: ref,
  base_model: ref,
  kind: optional(name),
  learning_rate: real,
  epochs: integer(1, 100),
  augmentations: integer(0, 63),
  augmentation: augmentationSpec,
  encoding: text(null, 32),
});
/** What all tasks of one round share. */
export type TaskSpec = Checked<typeof taskSpec>;

const task = record({
  run: name,
  round: integer(0),
  user: name,
  shard: ref,
  labels: list(optional(integer(0)), 0, MAX_IMAGES_PER_USER),
  spec: ref,
  seed: integer(0, 2 ** 32 - 1),
});
export type Task = Checked<typeof task>;

const serverMessages = {
  welcome: record({
    type: literal('welcome'),
    protocol: integer(0),
    heartbeat_s: real,
    lease_s: real,
    chunk_bytes: integer(1),
    resumed: list(lease),
  }),
  assignment: record({ type: literal('assignment'), lease, task }),
  'upload.offset': record({ type: literal('upload.offset'), upload: uploadNumber, offset: integer(0) }),
  'upload.accepted': record({ type: literal('upload.accepted'), lease, upload: uploadNumber }),
  'upload.rejected': record({
    type: literal('upload.rejected'),
    lease,
    upload: uploadNumber,
    code: text(null, 32),
    reason: shortText,
  }),
  'task.revoked': record({ type: literal('task.revoked'), lease, reason: shortText }),
  pong: record({ type: literal('pong') }),
  error: record({ type: literal('error'), code: text(null, 32), message: shortText }),
} as const;

export type Welcome = Checked<(typeof serverMessages)['welcome']>;
export type Assignment = Checked<(typeof serverMessages)['assignment']>;
export type ServerMessage = {
  [K in keyof typeof serverMessages]: Checked<(typeof serverMessages)[K]>;
}[keyof typeof serverMessages];

/** agents.words.events.UpdateMetrics. */
export interface UpdateMetrics {
  readonly predictions: readonly number[];
  readonly examples: number;
  readonly mismatched_images: number;
  readonly trained_images: number;
  readonly loss_first: number | null;
  readonly loss_last: number | null;
  readonly predict_s: number;
  readonly train_s: number;
  readonly platform: 'browser';
}

export type Phase = 'predict' | 'train' | 'upload';
export type ClientMessage =
  | { type: 'hello'; protocol: number; token: string; client: string; engine: string; resume: readonly string[] }
  | { type: 'ready' }
  | {
      type: 'progress';
      lease: string;
      phase: Phase;
      images_seen: number;
      mismatched_images: number;
      trained_images: number;
      loss: number | null;
    }
  | { type: 'upload.begin'; lease: string; upload: number; size: number; sha256: string }
  | { type: 'upload.commit'; lease: string; upload: number; metrics: UpdateMetrics }
  | { type: 'task.failed'; lease: string; reason: string }
  | { type: 'leave' }
  | { type: 'ping' };

/** What the gateway said; throws CheckError for anything that is no message of the protocol. */
export function parseServerMessage(body: string): ServerMessage {
  const { type } = parseJson(body, record({ type: text(null, 32) }), 'message');
  const check = Object.hasOwn(serverMessages, type) ? serverMessages[type as keyof typeof serverMessages] : null;
  if (check === null) throw new CheckError(`message.type: unknown type ${JSON.stringify(type)}`);
  return parseJson<ServerMessage>(body, check, type);
}

/** The binary frame that carries `data` for `upload` at `offset`: u32 upload, u64 offset, little-endian, the bytes. */
export function encodeChunk(upload: number, offset: number, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(CHUNK_HEADER_BYTES + data.length);
  const view = new DataView(frame.buffer);
  view.setUint32(0, upload, true);
  view.setBigUint64(4, BigInt(offset), true);
  frame.set(data, CHUNK_HEADER_BYTES);
  return frame;
}
