import { describe, expect, test } from 'vitest';
import type { ServerMessage } from '../../src/words/protocol';
import { FakeNetwork } from '../fakes';

describe('the connection', () => {
  test('says hello first and is open after the welcome', () => {
    const network = new FakeNetwork();
    const connection = network.connection({ resume: () => ['r.1.u.1'] });
    connection.start();
    expect(connection.state).toBe('connecting');
    connection.send({ type: 'ready' });
    network.welcome();
    expect(network.socket.sent).toEqual([
      { type: 'hello', protocol: 1, token: 'secret', client: 'tab-1', engine: 'engine', resume: ['r.1.u.1'] },
    ]);
    expect(connection.state).toBe('open');
    expect(connection.chunkBytes).toBe(8);
  });

  test('pings after a silent heartbeat and only then', () => {
    const network = new FakeNetwork();
    const connection = network.connection();
    connection.start();
    network.welcome();
    network.now = 4_999;
    connection.tick();
    expect(network.socket.types()).toEqual(['hello']);
    network.now = 5_000;
    connection.tick();
    connection.tick();
    expect(network.socket.types()).toEqual(['hello', 'ping']);
  });

  test('takes a gateway that is silent for three heartbeats as gone', () => {
    const network = new FakeNetwork();
    const connection = network.connection();
    connection.start();
    network.welcome();
    for (network.now = 0; network.now < 14_900; network.now += 100) connection.tick();
    expect(connection.state).toBe('open');
    network.now = 15_000;
    connection.tick();
    expect([connection.state, network.socket.closed]).toEqual(['waiting', true]);
  });

  test('an answer keeps it alive', () => {
    const network = new FakeNetwork();
    const connection = network.connection();
    connection.start();
    network.welcome();
    network.now = 14_000;
    network.socket.hear({ type: 'pong' });
    network.now = 20_000;
    connection.tick();
    expect(connection.state).toBe('open');
  });

  test('comes back after longer and longer waits, at most half a minute, and starts over once it was let in', () => {
    const network = new FakeNetwork();
    const connection = network.connection();
    connection.start();
    const waits: number[] = [];
    for (let cut = 0; cut < 8; cut++) {
      network.socket.cut();
      const before = network.now;
      const tried = network.sockets.length;
      while (network.sockets.length === tried) {
        network.now += 250;
        connection.tick();
      }
      waits.push(network.now - before);
    }
    expect(waits).toEqual([500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    network.welcome();
    network.socket.cut();
    network.now += 500;
    connection.tick();
    expect(network.sockets).toHaveLength(10);
  });

  test('jitter halves the wait at most', () => {
    const network = new FakeNetwork();
    const connection = network.connection({ random: () => 0 });
    connection.start();
    network.socket.cut();
    network.now = 249;
    connection.tick();
    expect(network.sockets).toHaveLength(1);
    network.now = 250;
    connection.tick();
    expect(network.sockets).toHaveLength(2);
  });

  test('gives up an attempt that nobody answers', () => {
    const network = new FakeNetwork();
    const connection = network.connection();
    connection.start();
    network.socket.open();
    network.now = 10_000;
    connection.tick();
    expect([connection.state, network.socket.closed]).toEqual(['waiting', true]);
  });

  test('reports nonsense from the gateway and connects anew', () => {
    const network = new FakeNetwork();
    const heard: ServerMessage[] = [];
    const connection = network.connection({ onMessage: (message) => heard.push(message) });
    connection.start();
    network.welcome();
    network.socket.hear('{"type":"upload.offset","upload":-1,"offset":0}');
    expect(heard).toEqual([expect.objectContaining({ type: 'error', code: 'bad_message' })]);
    expect(connection.state).toBe('waiting');
  });

  test('a stopped connection stays closed, and a late event of its socket changes nothing', () => {
    const network = new FakeNetwork();
    const connection = network.connection();
    connection.start();
    network.welcome();
    const { onclose } = network.socket;
    connection.stop();
    onclose?.call(network.socket as unknown as WebSocket, {} as CloseEvent);
    network.now = 60_000;
    connection.tick();
    expect(connection.state).toBe('closed');
    expect(network.sockets).toHaveLength(1);
  });
});
