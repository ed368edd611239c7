import { EventEmitter } from 'node:events';
import type { Server, Socket } from 'node:net';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { SocketPlaces, socketLimits } from '../../server/access/sockets.ts';
import { LIMITS } from '../../shared/limits.ts';

class FakeSocket extends EventEmitter {
  destroyed = false;
  readonly remoteAddress: string;
  readonly remotePort: number;

  constructor(address: string, port: number) {
    super();
    this.remoteAddress = address;
    this.remotePort = port;
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.emit('close');
  }
}

function port(strangerCountMax: number) {
  const server = new EventEmitter() as unknown as Server;
  let displaced = 0;
  const places = new SocketPlaces(
    server,
    { socketCountMax: 100, strangerCountMax },
    () => displaced++,
  );
  let ports = 1;
  const connect = (address: string) => {
    const socket = new FakeSocket(address, ports++);
    server.emit('connection', socket as unknown as Socket);
    return socket;
  };
  const vouch = (socket: FakeSocket) => places.vouch(socket as unknown as Socket);
  return { server, places, connect, vouch, displaced: () => displaced };
}

describe('the sockets of a port', () => {
  test('of the address that has most, the oldest gives its place to the newest', () => {
    const { server, places, connect, displaced } = port(4);
    expect(server.maxConnections).toBe(100);
    const own = connect('a');
    const flood = [connect('b'), connect('b'), connect('b')];
    expect([displaced(), places.strangers]).toEqual([0, 4]);
    const next = connect('c');
    expect(flood.map(({ destroyed }) => destroyed)).toEqual([true, false, false]);
    const more = [connect('b'), connect('b'), connect('b')];
    expect(flood.every(({ destroyed }) => destroyed)).toBe(true);
    expect(more.map(({ destroyed }) => destroyed)).toEqual([true, false, false]);
    expect([own.destroyed, next.destroyed]).toEqual([false, false]);
    expect([displaced(), places.strangers]).toEqual([4, 4]);
  });

  test('one that was vouched for is never displaced, and one whose request is done may be', () => {
    const { places, connect, vouch } = port(2);
    const worker = connect('a');
    vouch(worker);
    const client = connect('a');
    const release = [vouch(client), vouch(client)];
    for (let i = 0; i < 10; i++) connect('a');
    release[0]!();
    release[0]!();
    for (let i = 0; i < 10; i++) connect('a');
    expect([worker.destroyed, client.destroyed, places.strangers]).toEqual([false, false, 2]);
    release[1]!();
    connect('a');
    connect('a');
    expect([worker.destroyed, client.destroyed]).toEqual([false, true]);
  });

  test('one that is announced again is counted once, and one that has closed not at all', () => {
    const { server, places, connect, vouch } = port(2);
    const socket = connect('a');
    server.emit('connection', socket as unknown as Socket);
    expect(places.strangers).toBe(1);
    const release = vouch(socket);
    server.emit('connection', socket as unknown as Socket);
    expect(places.strangers).toBe(0);
    socket.destroy();
    release();
    expect(places.strangers).toBe(0);
    vouch(socket)();
    expect(places.strangers).toBe(0);
  });

  test('whatever comes and goes, strangers are counted right and limited', () => {
    const steps = fc.array(
      fc.record({
        what: fc.constantFrom('connect', 'vouch', 'release', 'close'),
        address: fc.constantFrom('a', 'b', 'c'),
        which: fc.nat(20),
      }),
      { maxLength: 200 },
    );
    fc.assert(
      fc.property(steps, (all) => {
        const { places, connect, vouch } = port(5);
        const sockets: { socket: FakeSocket; releases: (() => void)[] }[] = [];
        for (const { what, address, which } of all) {
          const one = sockets[which % Math.max(1, sockets.length)];
          if (what === 'connect') sockets.push({ socket: connect(address), releases: [] });
          else if (!one) continue;
          else if (what === 'vouch' && !one.socket.destroyed) one.releases.push(vouch(one.socket));
          else if (what === 'release') one.releases.pop()?.();
          else if (what === 'close') one.socket.destroy();
          const open = sockets.filter(({ socket }) => !socket.destroyed);
          const strangers = open.filter(({ releases }) => releases.length === 0);
          expect(places.strangers).toBe(strangers.length);
          expect(strangers.length).toBeLessThanOrEqual(5);
        }
      }),
    );
  });

  test('there are fewer where the process may open few files', () => {
    const most = LIMITS.socketCountMax;
    expect(socketLimits(2, null)).toEqual({ socketCountMax: most, strangerCountMax: 1_536 });
    expect(1_536).toBeGreaterThan(1.25 * LIMITS.workerCountMax);
    expect(socketLimits(2, 1_048_576).socketCountMax).toBe(most);
    expect(socketLimits(2, 4_096)).toEqual({ socketCountMax: 1_792, strangerCountMax: 672 });
    expect(socketLimits(128, 4_096).socketCountMax).toBe(28);
    expect(socketLimits(2, 100).socketCountMax).toBe(16);
  });
});
