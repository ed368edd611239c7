import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import type { Connection, ConnectionEvents } from '../../wire/connection.ts';
import { accept, dial } from '../../wire/handshake.ts';
import { Memories } from '../../wire/memories.ts';

/** Thousands of payloads leave no trace in memory, at either end. */

const PUSHES = 3_000;
const BYTES = 1_000_000;
/** When buffers of sockets and compiled code are there. */
const SETTLED = 200;
/** 3 GB pass: what is allocated in proportion to a payload would show at once, even if collected. */
const ARRAY_BUFFERS_GROWTH_MAX = 3e6;
/** The C heap and the collector breathe; a payload in a hundred that stays would cost 28 MB. */
const RSS_GROWTH_MAX = 25e6;

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const quiet: ConnectionEvents = {
  land: () => null,
  message() {},
  malformed(error) {
    throw error;
  },
  broken(error) {
    throw error;
  },
  alive() {},
  closed() {},
};

async function serve(events: (connection: Connection) => ConnectionEvents): Promise<number> {
  const server = createServer();
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    cleanUps.push(() => socket.destroy());
    const connection = accept(request, socket);
    connection.start(events(connection), head);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanUps.push(() => server.close());
  return (server.address() as AddressInfo).port;
}

test('a push and a pull of 1 MB, 3,000 times, allocate nothing that grows with the payload', {
  timeout: 120_000,
}, async () => {
  const memories = { server: new Memories(2), client: new Memories(2) };
  const snapshot = new Uint8Array(BYTES).fill(7);
  const port = await serve((connection) => ({
    ...quiet,
    land: (_header, bytes) => memories.server.take(bytes!),
    message(_header, payload, landing) {
      expect(payload.length).toBe(BYTES);
      landing!.release();
      connection.send({ type: 'work' }, [snapshot]);
    },
  }));
  const samples: { arrayBuffers: number; rss: number }[] = [];
  const gradient = new Uint8Array(BYTES);
  let pulls = 0;
  await new Promise<void>((resolve, reject) => {
    dial({
      url: `ws://127.0.0.1:${port}`,
      handshakeMs: 5_000,
      opened(connection) {
        cleanUps.push(() => connection.terminate());
        connection.send({ type: 'push' }, [gradient]);
        return {
          ...quiet,
          land: (_header, bytes) => memories.client.take(bytes!),
          message(_header, payload, landing) {
            expect(payload[BYTES - 1]).toBe(7);
            landing!.release();
            if (++pulls >= SETTLED) {
              const { arrayBuffers, rss } = process.memoryUsage();
              samples.push({ arrayBuffers, rss });
            }
            if (pulls === PUSHES) resolve();
            else connection.send({ type: 'push' }, [gradient]);
          },
        };
      },
      failed: reject,
    });
  });
  const growth = (of: 'arrayBuffers' | 'rss') => {
    const first = samples[0]![of];
    return Math.max(...samples.map((sample) => sample[of] - first));
  };
  expect(growth('arrayBuffers')).toBeLessThan(ARRAY_BUFFERS_GROWTH_MAX);
  const third = Math.floor(samples.length / 3);
  const early = Math.min(...samples.slice(0, third).map(({ rss }) => rss));
  const late = Math.min(...samples.slice(-third).map(({ rss }) => rss));
  expect(late - early).toBeLessThan(RSS_GROWTH_MAX);
});
