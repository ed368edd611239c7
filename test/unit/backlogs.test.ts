import { expect, test } from 'vitest';
import { Budget } from '../../server/access/budget.ts';
import type { Keeper } from '../../server/checkpoints/keeper.ts';
import { type Backlog, Brakes } from '../../server/fleet/brakes.ts';
import { codeVersion } from '../../server/fleet/code-version.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import { WorkerSession } from '../../server/fleet/session.ts';
import { ShardPool } from '../../server/shards/pool.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Connection } from '../../wire/connection.ts';

/** What shards and a standby have not taken waits in memory, so workers are not read while it is too much. */

class FakeBacklog implements Backlog {
  isFull = false;
  readonly waiting: (() => void)[] = [];
  whenRoom(act: () => void): void {
    this.waiting.push(act);
  }
  empty(): void {
    this.isFull = false;
    for (const act of this.waiting.splice(0)) act();
  }
}

const NOTHING = new Uint8Array();

test('a connection is read again when nobody wants it to stand still any more', () => {
  const told: string[] = [];
  const brakes = new Brakes({ halt: () => told.push('halt'), goOn: () => told.push('goOn') });
  const [a, b] = [new FakeBacklog(), new FakeBacklog()];
  brakes.yieldTo(null);
  brakes.yieldTo(a);
  expect(told).toEqual([]);
  a.isFull = b.isFull = true;
  brakes.yieldTo(a);
  brakes.yieldTo(a);
  brakes.yieldTo(b);
  // Its token is in debt, too.
  brakes.halt();
  a.empty();
  b.empty();
  expect(told).toEqual(['halt']);
  expect(brakes.waits).toBe(false);
  brakes.goOn();
  expect(told).toEqual(['halt', 'goOn']);
  a.isFull = true;
  brakes.yieldTo(a);
  brakes.leave();
  a.empty();
  expect(told).toEqual(['halt', 'goOn', 'halt']);
});

test('a worker is not read behind a message that was one too many for the shards', () => {
  const told: string[] = [];
  const connection = {
    ...{ transport: 'tcp', bytes: { received: 0, sent: 0 }, open: true, coming: null },
    ...{ bufferedBytes: 0, leftBytes: 0, waiting: false, holding: false },
    ...{ send() {}, ping() {}, retry() {}, hold() {}, close() {}, terminate() {} },
    halt: () => void told.push('halt'),
    goOn: () => void told.push('goOn'),
  } as unknown as Connection;
  const shards = Object.assign(new FakeBacklog(), {
    ...{ count: 2, addresses: [], admit() {}, leave() {}, facts: () => null },
  });
  const coordinator = new Coordinator({
    ...{ keeper: {} as Keeper, shards: shards as unknown as ShardPool },
    ...{ now: () => 0, log: () => {} },
  });
  const budget = new Budget({ share: 1, burstMs: 1e9 }, () => 0);
  const session = new WorkerSession(connection, coordinator, '', null, budget);
  coordinator.workers.opened(session);
  const hello = {
    ...{ type: 'hello', worker: 'w', incarnation: '0123456789abcdef', run: null },
    ...{ experiments: {}, engine: 'none', device: 'none' },
  };
  session.events.message(hello, NOTHING, null);
  expect(session.hello?.worker).toBe('w');
  expect(told).toEqual([]);
  shards.isFull = true;
  session.events.message({ type: 'leave', failure: null }, NOTHING, null);
  expect(told).toEqual(['halt']);
  // Nobody blames it for its silence.
  expect(session.standsStill).toBe(true);
  shards.empty();
  expect(told).toEqual(['halt', 'goOn']);
  expect(session.standsStill).toBe(false);
});

test('a server has more than enough for a shard that takes nothing, until that one takes it', async () => {
  const waits: (() => void)[] = [];
  const connection = {
    ...{ bufferedBytes: 0, open: true },
    ...{ send() {}, ping() {}, close() {}, terminate() {} },
  };
  const pool = new ShardPool({
    ...{ count: 2, token: 1, access: () => null, tls: () => null, now: () => 0, log: () => {} },
    source: {
      find: async () => [{ address: { host: null, port: 1 }, url: 'ws://127.0.0.1:1' }],
      close: async () => {},
    },
    dial: ({ opened }) => {
      const events = opened(connection as unknown as Connection, new Set());
      queueMicrotask(() =>
        events.message({ type: 'taken', version: codeVersion() }, NOTHING, null),
      );
      return { abort() {} };
    },
    timers: {
      after: (_, act) => {
        waits.push(act);
        return () => {};
      },
      every: () => () => {},
    },
  });
  await pool.open();
  waits.length = 0;
  const told: string[] = [];
  connection.bufferedBytes = LIMITS.shardUnsentBytesMax;
  expect(pool.isFull).toBe(false);
  connection.bufferedBytes++;
  expect(pool.isFull).toBe(true);
  for (const name of ['a', 'b']) pool.whenRoom(() => told.push(name));
  waits.shift()!();
  expect(told).toEqual([]);
  connection.bufferedBytes = 0;
  waits.shift()!();
  expect(told).toEqual(['a', 'b']);
  expect(waits).toEqual([]);
  connection.bufferedBytes = 2 ** 40;
  pool.whenRoom(() => told.push('c'));
  // It has gone, and with it what waited.
  connection.open = false;
  waits.shift()!();
  expect(told).toEqual(['a', 'b', 'c']);
});
