import { describe, expect, test } from 'vitest';
import type { ClientMessage, UpdateMetrics } from '../../src/words/protocol';
import { Upload, WINDOW, type Wire } from '../../src/gateway/upload';

const METRICS: UpdateMetrics = {
  predictions: [1],
  examples: 1,
  mismatched_images: 0,
  trained_images: 0,
  loss_first: null,
  loss_last: null,
  predict_s: 0,
  train_s: 0, platform: 'browser' as const
};
const CHUNK = 10;

class RecordingWire implements Wire {
  messages: ClientMessage[] = [];
  offsets: number[] = [];
  received = new Uint8Array(95);

  send(message: ClientMessage): void {
    this.messages.push(message);
  }

  sendBytes(frame: Uint8Array<ArrayBuffer>): void {
    const view = new DataView(frame.buffer);
    expect(view.getUint32(0, true)).toBe(3);
    const offset = Number(view.getBigUint64(4, true));
    this.offsets.push(offset);
    this.received.set(frame.subarray(12), offset);
  }
}

function begun(): { upload: Upload; wire: RecordingWire; bytes: Uint8Array<ArrayBuffer> } {
  const bytes = Uint8Array.from({ length: 95 }, (_, k) => k + 1);
  const upload = new Upload('lease', 3, bytes, 'digest', METRICS);
  const wire = new RecordingWire();
  upload.begin(wire);
  return { upload, wire, bytes };
}

describe('an upload', () => {
  test('sends all bytes in order, never more than the window ahead, and commits once', () => {
    const { upload, wire, bytes } = begun();
    expect(wire.messages).toEqual([{ type: 'upload.begin', lease: 'lease', upload: 3, size: 95, sha256: 'digest' }]);
    upload.offset(0, CHUNK, wire);
    expect(wire.offsets).toEqual([0, 10, 20, 30]);
    for (let at = 10; at <= 90; at += 10) {
      upload.offset(at, CHUNK, wire);
      expect(wire.offsets.length).toBeLessThanOrEqual(at / 10 + WINDOW);
      expect(upload.acknowledged).toBe(at);
    }
    upload.offset(95, CHUNK, wire);
    upload.offset(95, CHUNK, wire);
    expect(wire.received).toEqual(bytes);
    expect(wire.offsets).toEqual([0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
    expect(wire.messages.slice(1)).toEqual([{ type: 'upload.commit', lease: 'lease', upload: 3, metrics: METRICS }]);
  });

  test('goes on at the offset that the gateway names after a cut, and sends nothing before', () => {
    const { upload, wire } = begun();
    upload.offset(0, CHUNK, wire);
    upload.offset(10, CHUNK, wire);
    const again = new RecordingWire();
    upload.begin(again);
    expect(again.offsets).toEqual([]);
    upload.offset(20, CHUNK, again);
    expect(again.offsets).toEqual([20, 30, 40, 50]);
  });

  test('commits at once when the gateway has all bytes already', () => {
    const { upload, wire } = begun();
    upload.offset(95, CHUNK, wire);
    expect(wire.offsets).toEqual([]);
    expect(wire.messages.at(-1)?.type).toBe('upload.commit');
  });

  test('sends again from an offset that went back', () => {
    const { upload, wire } = begun();
    upload.offset(0, CHUNK, wire);
    upload.offset(30, CHUNK, wire);
    wire.offsets = [];
    upload.offset(10, CHUNK, wire);
    expect(wire.offsets).toEqual([10, 20, 30, 40]);
  });

  test('asks again when the gateway owes an answer for ten seconds, and not while bytes go', () => {
    let now = 0;
    const wire = new RecordingWire();
    const upload = new Upload('lease', 3, new Uint8Array(5), 'digest', METRICS, () => now);
    upload.begin(wire);
    now = 9_999;
    upload.tick(wire);
    expect(wire.messages).toHaveLength(1);
    now = 10_000;
    upload.tick(wire);
    upload.tick(wire);
    expect(wire.messages.map(({ type }) => type)).toEqual(['upload.begin', 'upload.begin']);
    upload.offset(0, CHUNK, wire);
    now = 90_000;
    upload.tick(wire);
    expect(wire.messages).toHaveLength(2);
    upload.offset(5, CHUNK, wire);
    now = 100_000;
    upload.tick(wire);
    expect(wire.messages.map(({ type }) => type).slice(2)).toEqual(['upload.commit', 'upload.begin']);
  });
});
