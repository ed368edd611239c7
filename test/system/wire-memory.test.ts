import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import { serve } from '../../server/main.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import type { Connection, ConnectionEvents } from '../../wire/connection.ts';
import { accept, dial } from '../../wire/handshake.ts';
import { Memories } from '../../wire/memories.ts';
import { Client } from '../../worker/client.ts';

/** Thousands of payloads leave no trace in memory, at either end. */

const PUSHES = 4_000;
const BYTES = 1_000_000;
/** When buffers of sockets and compiled code are there, and the collector's space for young objects has its last size. */
const SETTLED = 1_000;
/** 4 GB pass: what is allocated in proportion to a payload would show at once, even if collected. */
const ARRAY_BUFFERS_GROWTH_MAX = 2e6;
/** The C heap and the collector breathe; a payload in a hundred that stays would cost 20 MB between the two thirds. */
const RSS_GROWTH_MAX = 15e6;

/** WebAssembly memories made so far: `process.memoryUsage` does not count them. */
let made = 0;
const { Memory } = WebAssembly;
WebAssembly.Memory = class extends Memory {
  constructor(descriptor: WebAssembly.MemoryDescriptor) {
    super(descriptor);
    made++;
  }
};
afterAll(() => {
  WebAssembly.Memory = Memory;
});

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

async function accepting(events: (connection: Connection) => ConnectionEvents): Promise<number> {
  const server = createServer();
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    cleanUps.push(() => socket.destroy());
    const connection = accept(request, socket, head)!;
    connection.start(events(connection));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanUps.push(() => server.close());
  return (server.address() as AddressInfo).port;
}

test('a push and a pull of 1 MB, 4,000 times, allocate nothing that grows with the payload', async () => {
  const memories = { server: new Memories(2), client: new Memories(2) };
  const snapshot = new Uint8Array(BYTES).fill(7);
  const port = await accepting((connection) => ({
    ...quiet,
    land: (_header, bytes) => memories.server.take(bytes!),
    message(_header, payload, landing) {
      expect(payload.length).toBe(BYTES);
      landing!.release();
      connection.send({ type: 'work' }, [snapshot]);
    },
  }));
  const samples: Sample[] = [];
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
            if (++pulls >= SETTLED) samples.push(sample());
            if (pulls === PUSHES) resolve();
            else connection.send({ type: 'push' }, [gradient]);
          },
        };
      },
      failed: reject,
    });
  });
  expectFlat(samples);
});

test('nor do they through a server and the client of a worker', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  const controller = new AbortController();
  const { signal } = controller;
  const { url, closed } = await serve({ host: '127.0.0.1', port: 0, state: folder, signal });
  cleanUps.push(async () => {
    controller.abort();
    await closed;
    await rm(folder, { recursive: true, force: true });
  });
  const run = await createRestClient({ server: url }).createRun({
    ...{ id: 'r', experiment: 'e', experimentHash: 'h' },
    config: {
      ...{ minibatchSize: 1, learningRate: 1e-6, stepsMax: PUSHES + 1 },
      ...{ optimizer: { kind: 'sgd' }, checkpoint: { everySeconds: 3600 } },
      ...{ evaluateEverySteps: PUSHES + 1, earlyStopping: { enabled: false } },
    },
  });
  const hello = { worker: 'w', run: null, experiments: { e: 'h' }, engine: 'x', device: 'x' };
  const client = new Client({ server: url, hello, signal, log() {} });
  cleanUps.push(() => client.close());
  const samples: Sample[] = [];
  for (let pulls = 0; pulls < PUSHES; ) {
    const { message, payload, release } = await client.next();
    if (message.type === 'assign') {
      const counts = { trainCount: 50_000, validationCount: 1, testCount: 0 };
      client.send({
        ...{ type: 'join', run: run.id, experimentHash: 'h' },
        tensors: [{ name: 'a', shape: [BYTES / 4], role: 'trainable' }],
        data: { ...counts, fingerprint: 'f', source: '' },
      });
    } else if (message.type === 'initialise') {
      const { grant } = message;
      const made = { type: 'initialised', run: run.id, grant } as const;
      client.initialise(made, new Float32Array(BYTES / 4));
    } else if (message.type === 'work') {
      expect(payload.length).toBe(BYTES / 4);
      for (const acknowledgement of message.acknowledgements) {
        expect(acknowledgement.outcome).toBe('applied');
        client.acknowledge(acknowledgement);
      }
      const { step, generation, leases } = message;
      const push = { run: run.id, lease: leases[0]!.id, step, generation, loss: 1, computeMs: 1 };
      client.push({ ...push, encoding: 'f32' }, [BYTES], ([bytes]) => bytes!.fill(0));
      if (++pulls >= SETTLED) samples.push(sample());
    }
    release?.();
  }
  expectFlat(samples);
});

interface Sample {
  readonly memories: number;
  readonly arrayBuffers: number;
  readonly rss: number;
}

function sample(): Sample {
  const { arrayBuffers, rss } = process.memoryUsage();
  return { memories: made, arrayBuffers, rss };
}

function expectFlat(samples: readonly Sample[]): void {
  expect(samples.at(-1)!.memories).toBe(samples[0]!.memories);
  const first = samples[0]!.arrayBuffers;
  const most = Math.max(...samples.map(({ arrayBuffers }) => arrayBuffers));
  expect((most - first) / 1e6, 'growth of array buffers, MB').toBeLessThan(
    ARRAY_BUFFERS_GROWTH_MAX / 1e6,
  );
  const third = Math.floor(samples.length / 3);
  const early = Math.min(...samples.slice(0, third).map(({ rss }) => rss));
  const late = Math.min(...samples.slice(-third).map(({ rss }) => rss));
  expect((late - early) / 1e6, 'growth of the process, MB').toBeLessThan(RSS_GROWTH_MAX / 1e6);
}
