import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { codeVersion } from '../../server/fleet/code-version.ts';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import { checkFromShardControl, checkToShardControl } from '../../server/shards/protocol.ts';
import { checkFromStandby, checkToStandby } from '../../server/standby/protocol.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { resolveConfig } from '../../shared/config.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import type { Connection, ConnectionEvents } from '../../wire/connection.ts';
import { accept, dial } from '../../wire/handshake.ts';
import { shardHere } from '../support/shard-server.ts';
import { until } from '../support/until.ts';

/** What servers say to each other, with anything changed in it, from those who have an operator's token. */

type Message = { readonly type: string; readonly [field: string]: unknown };
const session = '0123456789abcdef';
const run = 'r';
const config = resolveConfig({});
const tensors = [{ name: 'w', shape: [40_000], role: 'trainable' }];
const address = { host: null, port: 7420 };
const state = { merges: 0, average: null };

const commands = [
  { kind: 'create', run, tensors, config },
  { kind: 'grant', run, session, grant: 1 },
  { kind: 'revoke', run, session },
  { kind: 'initialise', run, session },
  {
    ...{ kind: 'apply', run, session, worker: 'w/1', sequence: 1, generation: 1 },
    ...{ clip: { limit: 1, factor: 1 }, options: { step: 1, learningRate: 0.1 } },
  },
  { kind: 'drop', run, session, sequence: 1 },
  { kind: 'send', run, session, pull: 1, capture: null, whole: false },
  { kind: 'capture', run, id: 1, what: 'evaluated' },
  { kind: 'forget', run, id: 1 },
  { kind: 'replace', run, by: 1 },
  { kind: 'resetOptimizer', run },
  { kind: 'save', run, id: 1, what: 'last', best: null, changes: false },
  { kind: 'saved', run, id: 1, isWritten: true },
  { kind: 'write', run, name: '@parameters', start: 0 },
  { kind: 'restore', run, state, best: null, workers: [['w/1', 3]] },
];
const TO_SHARD: readonly Message[] = [
  { type: 'take', index: 1, count: 2, token: 1 },
  { type: 'admit', session },
  { type: 'leave', session },
  { type: 'read', request: 1, run, id: 1, name: '@parameters', start: 0, count: 5 },
  ...commands.map((command) => ({ type: 'command', command })),
];
const FROM_SHARD: readonly Message[] = [
  { type: 'taken', version: codeVersion() },
  { type: 'landed', run, session, sequence: 1, squares: 2, problem: null },
  { type: 'initialLanded', run, session, grant: 1, problem: null },
  { type: 'overflowed', run, generation: 1 },
  { type: 'read', request: 1, found: true },
  { type: 'failed', code: 'DP_INTERNAL', message: 'no' },
];
const FROM_STANDBY: readonly Message[] = [
  { type: 'follow', version: codeVersion(), mode: 'sync', lagMax: 0, address },
  { type: 'carried', frames: 1 },
];
const worker = 'w/1';
const push = {
  ...{ type: 'push', run, sequence: 1, lease: 1, step: 1, generation: 1 },
  ...{ loss: 1, computeMs: 1, encoding: 'f32' },
};
const calls = [
  { call: 'tick', now: 1 },
  { call: 'assign', worker, ahead: 2, now: 1 },
  { call: 'push', worker, push, now: 1 },
  { call: 'stop', reason: 'by a user' },
];
const TO_STANDBY: readonly Message[] = [
  { type: 'vector', run, name: '@parameters', start: 0, length: 4 },
  { type: 'run', run, bytes: 3 },
  { type: 'introduced', runs: [run] },
  ...calls.map((call) => ({ type: 'calls', run, calls: [call], step: 1, generation: 1 })),
  { type: 'forget', run },
];

const odd = fc.constantFrom<unknown>(
  ...[null, true, -1, 0.5, 1e308, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, '', '../x'],
  ...['__proto__', 'x'.repeat(3_000), [], [[]], {}, { length: -1 }],
);

/** A message with one of its fields, at any depth, gone, odd or added. */
function damaged(messages: readonly Message[]): fc.Arbitrary<Message> {
  return fc
    .tuple(fc.constantFrom(...messages), fc.nat(), fc.constantFrom('gone', 'odd', 'more'), odd)
    .map(([message, at, how, value]) => {
      const copy = structuredClone(message) as Message;
      const places: [Record<string, unknown>, string][] = [];
      const walk = (object: Record<string, unknown>) => {
        for (const [key, inner] of Object.entries(object)) {
          // Without a type it is no frame: that is for the tests of the frames.
          if (object !== copy || key !== 'type') places.push([object, key]);
          if (inner !== null && typeof inner === 'object') walk(inner as Record<string, unknown>);
        }
      };
      walk(copy);
      const [object, key] = places[at % places.length]!;
      if (how === 'gone') delete object[key];
      else if (how === 'odd') object[key] = value;
      else if (!Array.isArray(object)) object.more = value;
      else object.push(value);
      return copy;
    });
}

/** Those that no end of the connection may say. */
function wrong(messages: readonly Message[], check: (message: Message) => unknown) {
  return damaged(messages).filter((message) => {
    try {
      check(message);
      return false;
    } catch {
      return true;
    }
  });
}

interface Ended {
  readonly code: number;
  readonly reason: string;
  readonly heard: readonly Message[];
}

/** Says these, one after the other. @returns how it ended. */
function converse(url: string, messages: readonly Message[]): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const heard: Message[] = [];
    dial({
      ...{ url, handshakeMs: 10_000 },
      opened: (connection) => {
        for (const message of messages) connection.send(message);
        return {
          ...{ land: () => null, malformed: reject, broken: reject, alive: () => {} },
          message: (header) => void heard.push(header as Message),
          closed: (code, reason) => resolve({ code, reason, heard }),
        };
      },
      failed: reject,
    });
  });
}

let folder: string;
const ends: (() => Promise<unknown>)[] = [];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-messages-'));
});
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const lines: string[] = [];
const log = (line: string) => void lines.push(line);

let states = 0;
async function start(options: Partial<ServeOptions> = {}): Promise<Serving> {
  const stop = new AbortController();
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state: join(folder, `state-${states++}`) },
    ...{ localSocket: false, log, signal: stop.signal },
    ...options,
  });
  ends.push(async () => {
    stop.abort();
    await serving.closed;
  });
  return serving;
}

/** Takes connections to one path, as a server would. */
async function listen(path: string, opened: (connection: Connection) => ConnectionEvents) {
  const server = createServer((_, response) => response.end('{}'));
  const sockets = new Set<Socket>();
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    sockets.add(socket);
    socket.on('error', () => socket.destroy());
    expect(request.url).toBe(path);
    const connection = accept(request, socket, head)!;
    connection.start(opened(connection));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  ends.push(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

const listening = { land: () => null, malformed() {}, broken() {}, alive() {}, closed() {} };

const RUNS = { numRuns: 150, seed: 7 };

describe('messages between servers that are wrong', () => {
  test('of a standby end its connection with a code, and nothing else', async () => {
    const { url } = await start();
    const client = createRestClient({ server: url });
    const experimentHash = 'a'.repeat(64);
    await client.createRun({ id: run, experiment: 'e', experimentHash, config: {} });
    const before = await client.run(run);
    const standby = `${url.replace('http', 'ws')}/standby`;
    const bare = { type: 'follow', version: codeVersion(), mode: 'sync', lagMax: 0 };
    expect(await converse(standby, [bare])).toMatchObject({
      ...{ code: 1007, reason: 'DP_FRAME_MALFORMED' },
      heard: [],
    });
    await fc.assert(
      fc.asyncProperty(wrong(FROM_STANDBY, checkFromStandby), async (message) => {
        const { code, reason } = await converse(standby, [message]);
        expect({ code, reason }).toEqual({ code: 1007, reason: 'DP_FRAME_MALFORMED' });
      }),
      RUNS,
    );
    const { standby: facts, runs } = await client.status();
    expect(facts).toBeNull();
    expect(runs.length).toBe(1);
    expect({ ...(await client.run(run)), seconds: 0 }).toEqual({ ...before, seconds: 0 });
  });

  test('of a coordinator end its connection with a code, and take no shard from another one', async () => {
    const shard = await shardHere(log);
    ends.push(() => shard.stop());
    const url = `ws://127.0.0.1:${shard.port}/control`;
    const taken: Message[] = [];
    let closed = '';
    dial({
      ...{ url, handshakeMs: 10_000 },
      opened: (connection) => {
        connection.send({ type: 'take', index: 1, count: 2, token: 5 });
        connection.send({ type: 'command', command: commands[0]! });
        ends.push(async () => connection.close(1000));
        return {
          ...listening,
          message: (header) => void taken.push(header as Message),
          closed: (_, reason) => {
            closed = reason || 'closed';
          },
        };
      },
      failed: (error) => {
        throw error;
      },
    });
    const health = async () => {
      const answer = await fetch(`http://127.0.0.1:${shard.port}/health`);
      return (await answer.json()) as { runs: number };
    };
    await until('it is taken', () => taken.length > 0);
    const refused = async (message: Message, code: string) => {
      const { heard, reason } = await converse(url, [message]);
      expect(reason).toBe(code);
      expect(heard).toMatchObject([{ type: 'failed', code }]);
    };
    await fc.assert(
      fc.asyncProperty(wrong(TO_SHARD, checkToShardControl), (message) =>
        refused(message, 'DP_FRAME_MALFORMED'),
      ),
      RUNS,
    );
    for (const message of TO_SHARD.slice(1)) await refused(message, 'DP_PROTOCOL_ORDER');
    // Fenced: this server owned the state before the one that has the shard.
    await refused({ type: 'take', index: 1, count: 2, token: 4 }, 'DP_STATE_FENCED');
    expect(taken).toEqual([{ type: 'taken', version: codeVersion() }]);
    expect(closed).toBe('');
    expect((await health()).runs).toBe(1);
  });

  test('of a shard make it one that is lost, and the server takes it anew', async () => {
    const state = join(folder, 'shard');
    const takes: Connection[] = [];
    const port = await listen('/control', (connection) => ({
      ...listening,
      message: (header) => {
        if (header.type !== 'take') return;
        connection.send({ type: 'taken', version: codeVersion() });
        takes.push(connection);
      },
    }));
    const store = openFileStore({ folder: state });
    ends.push(() => store.close());
    await store.announceShard('s', { id: 's', host: '127.0.0.1', port }, 600_000);
    const { url } = await start({ state, shards: 2, shardsFrom: 'store' });
    const client = createRestClient({ server: url });
    await fc.assert(
      fc.asyncProperty(wrong(FROM_SHARD, checkFromShardControl), async (message) => {
        const count = takes.length;
        takes.at(-1)!.send(message);
        await until('it is taken anew', () => takes.length > count);
      }),
      { numRuns: 40, seed: 7 },
    );
    await until('all is well', async () => (await client.health()).status === 'ok');
    expect((await client.status()).shards).toMatchObject({ whole: true, lost: null });
  });

  test('of servers with other code are not obeyed, and both say which code they run', async () => {
    const version = '0.1.0+000000000000';
    const told = `runs ${version}, this side ${codeVersion()}: run the same release or commit on both`;
    const shard = await listen('/control', (connection) => ({
      ...listening,
      message: ({ type }) => void (type === 'take' && connection.send({ type: 'taken', version })),
    }));
    const state = join(folder, 'other-code');
    const store = openFileStore({ folder: state });
    ends.push(() => store.close());
    await store.announceShard('s', { id: 's', host: '127.0.0.1', port: shard }, 600_000);
    await expect(start({ state, shards: 2, shardsFrom: 'store' })).rejects.toMatchObject({
      ...{ code: 'DP_SHARD_LOST', message: expect.stringContaining(`it ${told}`) },
    });

    const { url } = await start();
    const follow = { type: 'follow', version, mode: 'sync', lagMax: 0, address };
    expect(await converse(`${url.replace('http', 'ws')}/standby`, [follow])).toMatchObject({
      ...{ code: 1002, reason: `the standby ${told}`, heard: [] },
    });

    // A primary of other code may be the first to see it, or this standby.
    const leading = { type: 'leading', version, token: 0, leaseMs: 1_000 } as const;
    for (const answer of [
      (connection: Connection) => connection.send(leading),
      (connection: Connection) => connection.close(1002, `the standby ${told}`),
    ]) {
      const primary = await listen('/standby', (connection) => ({
        ...listening,
        message: ({ type }) => void (type === 'follow' && answer(connection)),
      }));
      const standbyOf = `http://127.0.0.1:${primary}`;
      const stop = new AbortController();
      const ended = serve({
        ...{ host: '127.0.0.1', port: 0, state: join(folder, `state-${states++}`), standbyOf },
        ...{ localSocket: false, log, signal: stop.signal },
      }).then((serving) => serving.closed);
      ends.push(async () => {
        stop.abort();
        await ended.catch(() => {});
      });
      await expect(ended).rejects.toMatchObject({
        code: 'DP_PROTOCOL_VERSION',
        message: expect.stringContaining(told),
      });
    }
  });

  test('of a primary have its standby ask for all anew', async () => {
    let follows = 0;
    let last: Connection | null = null;
    const port = await listen('/standby', (connection) => ({
      ...listening,
      message: (header) => {
        if (header.type !== 'follow') return;
        follows++;
        last = connection;
        connection.send({ type: 'leading', version: codeVersion(), token: 0, leaseMs: 1_000 });
      },
    }));
    const standby = await start({ standbyOf: `http://127.0.0.1:${port}` });
    await until('it follows', () => follows > 0);
    await fc.assert(
      fc.asyncProperty(wrong(TO_STANDBY, checkToStandby), async (wrong) => {
        const count = follows;
        last!.send(wrong);
        await until('it asks again', () => follows > count);
      }),
      { numRuns: 40, seed: 7 },
    );
    expect(
      ((await (await fetch(`${standby.url}/health`)).json()) as { status: string }).status,
    ).toBe('standby');
  });
});
