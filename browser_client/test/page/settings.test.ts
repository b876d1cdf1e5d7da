import { describe, expect, test } from 'vitest';
import { NAME } from '../../src/words/protocol';
import { readSettings, type Settings, socketUrl, type Surroundings } from '../../src/page/settings';

function memory(): Surroundings['storage'] {
  const kept = new Map<string, string>();
  return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => void kept.set(key, value) };
}

const read = (href: string, changes: Partial<Surroundings> = {}): Settings =>
  readSettings({ href, storage: memory(), isolated: true, processors: 8, random: () => 0.5, ...changes });

describe('settings', () => {
  test.each([
    ['http://h:8700/', 'http://h:8700/', 'ws://h:8700/ws'],
    ['https://h/sub/index.html?x=1#token=t', 'https://h/sub/', 'wss://h/sub/ws'],
    ['http://h/?gateway=https://g:1', 'https://g:1/', 'wss://g:1/ws'],
    ['http://h/?gateway=ws://g:1/base/ws', 'http://g:1/base/', 'ws://g:1/base/ws'],
    ['http://h/?gateway=/other/', 'http://h/other/', 'ws://h/other/ws'],
  ])('the gateway of %s is %s', (href, gateway, socket) => {
    expect(read(href).gateway).toBe(gateway);
    expect(socketUrl(gateway)).toBe(socket);
  });

  test('token and drawn name survive a reload, a given name wins', () => {
    const storage = memory();
    const first = read('http://h/#token=s%2Bt', { storage });
    expect(first.token).toBe('s+t');
    expect(first.client).toMatch(NAME);
    const second = read('http://h/', { storage, random: () => 0.9 });
    expect([second.token, second.client]).toEqual([first.token, first.client]);
    expect(read('http://h/?client=me', { storage }).client).toBe('me');
  });

  test('a name that breaks the rules is not used', () => {
    expect(read('http://h/?client=a/b').client).toMatch(NAME);
  });

  test.each([
    ['', true, 8, 2],
    ['', true, 1, 1],
    ['?threads=4', true, 8, 4],
    ['?threads=64', true, 8, 8],
    ['?threads=0', true, 8, 1],
    ['?threads=many', true, 8, 1],
    ['?threads=4', false, 8, 1],
  ])('with %j, isolated %s, on %d processors it uses %d threads', (query, isolated, processors, threads) => {
    expect(read(`http://h/${query}`, { isolated, processors }).threads).toBe(threads);
  });

  test('the engine is the one of the address, or left to the trainer', () => {
    expect(read('http://h/?engine=ort-training').engine).toBe('ort-training');
    expect(read('http://h/').engine).toBe('');
  });
});
