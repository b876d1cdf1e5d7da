import { describe, expect, test } from 'vitest';
import { parseJson } from '../../src/words/checks';
import { parseManifest } from '../../src/training/manifest';
import { type ClientMessage, encodeChunk, parseServerMessage, taskSpec } from '../../src/words/protocol';
import { readFileSync } from 'node:fs';
import { bytes, vectors } from '../vectors';

interface Samples {
  server: Record<string, unknown>[];
  client: ClientMessage[];
  spec: Record<string, unknown>;
  chunk: { upload: number; offset: number; data: string; frame: string };
}

const samples = vectors<Samples>('protocol');
const assignment = samples.server.find(({ type }) => type === 'assignment')!;

describe('protocol', () => {
  test.each(samples.server)('understands $type as the gateway writes it', (sample) => {
    expect(sample).toMatchObject(parseServerMessage(JSON.stringify(sample)) as unknown as Record<string, unknown>);
  });

  test('understands a task spec as the dispatcher writes it', () => {
    const spec = parseJson(JSON.stringify(samples.spec), taskSpec, 'spec');
    expect({ kind: null, ...samples.spec }).toMatchObject(spec as unknown as Record<string, unknown>);
    expect(spec.augmentation.cos).toHaveLength(21);
  });

  test('understands the shipped manifest', () => {
    const file = new URL('../../../artifacts/default/manifest.json', import.meta.url);
    const manifest = parseManifest(readFileSync(file, 'utf-8'));
    expect(manifest.model.classes).toHaveLength(10);
    expect(manifest.optimizer.stateless).toBe(true);
  });

  test.each([
    ['no JSON', '{'],
    ['no object', '[]'],
    ['no type', '{}'],
    ['a type that is not of the gateway', '{"type":"hello"}'],
    ['a type that every object has', '{"type":"constructor"}'],
    ['a lease with a slash', JSON.stringify({ ...assignment, lease: 'a/b' })],
    ['a seed past 32 bits', JSON.stringify({ ...assignment, task: { ...(assignment.task as object), seed: 2 ** 32 } })],
    ['a negative label', JSON.stringify({ ...assignment, task: { ...(assignment.task as object), labels: [-1] } })],
    ['a fractional offset', '{"type":"upload.offset","upload":1,"offset":0.5}'],
  ])('refuses %s', (_, body) => {
    expect(() => parseServerMessage(body)).toThrow(expect.objectContaining({ name: 'CheckError' }));
  });

  test('a field that this version does not know does no harm', () => {
    expect(parseServerMessage('{"type":"pong","load":3}')).toEqual({ type: 'pong' });
  });

  test("a chunk's frame has the same bytes as in Python", () => {
    const { upload, offset, data, frame } = samples.chunk;
    expect(encodeChunk(upload, offset, bytes(data))).toEqual(bytes(frame));
  });
});
