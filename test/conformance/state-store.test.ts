import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { BestRecord } from '../../files/records.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { journaled } from '../../server/store/journal.ts';
import { openRedisStore } from '../../server/store/redis.ts';
import type { CheckpointRecord, StateStore } from '../../server/store/state-store.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { freePort, redisMissing, startRedis, type TestRedis } from '../redis-server.ts';
import { bundled } from '../support/bundled.ts';
import { type Stored, storedInFiles, storedInRedis } from '../support/stored.ts';

/** Long enough for any test that does not wait for its end. */
const LONG = { ttlMs: 60_000 };
const PROGRAM = await bundled(fileURLToPath(new URL('programs/state-owner.ts', import.meta.url)));

/** One implementation, on a place that each test finds empty. */
interface Bench {
  open(onDamaged?: (error: DownpourError) => void): StateStore;
  readonly stored: Stored;
  /** Kind, place, prefix: what the child program takes. */
  readonly args: readonly string[];
  /** Spoils the record of run `r1`. */
  spoil(record: 'run' | 'best'): Promise<void>;
  clean(): Promise<void>;
}

const stores: StateStore[] = [];
const children: ChildProcess[] = [];

async function fileBench(): Promise<Bench> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-state-'));
  return {
    args: ['files', folder, ''],
    stored: storedInFiles(folder),
    open: (onDamaged) =>
      keep(openFileStore(onDamaged === undefined ? { folder } : { folder, onDamaged })),
    async spoil(record) {
      const name = (await readdir(join(folder, 'r1'))).find((n) => n.startsWith(`${record}.`))!;
      const bytes = await readFile(join(folder, 'r1', name));
      bytes[bytes.length >> 1]! ^= 4;
      await writeFile(join(folder, 'r1', name), bytes);
    },
    clean: () => rm(folder, { recursive: true }),
  };
}

let redis: TestRedis;
let prefixes = 0;
async function redisBench(): Promise<Bench> {
  const { url } = redis;
  const prefix = `test${++prefixes}:`;
  return {
    args: ['redis', url, prefix],
    stored: storedInRedis({ url, prefix }),
    open: (onDamaged) =>
      keep(openRedisStore(onDamaged === undefined ? { url, prefix } : { url, prefix, onDamaged })),
    async spoil(record) {
      const client = new Redis(url);
      await client.hset(prefix + (record === 'run' ? 'runs' : record), 'r1', '{"value":0.1');
      client.disconnect();
    },
    clean: async () => {},
  };
}

/** Redis as a server has it: what it cannot take waits in a folder. */
async function journalBench(): Promise<Bench> {
  const bench = await redisBench();
  const [, url, prefix] = bench.args;
  const folder = await mkdtemp(join(tmpdir(), 'downpour-state-'));
  return {
    ...bench,
    args: ['journaled', `${url} ${folder}`, prefix!],
    open: (onDamaged) =>
      keep(journaled(bench.open(onDamaged), { folder, id: url!, log: () => {} })),
    clean: () => rm(folder, { recursive: true }),
  };
}

function keep(store: StateStore): StateStore {
  stores.push(store);
  return store;
}

const missing = redisMissing();
if (missing !== null) console.warn(`the Redis store is not tested: ${missing}`);
beforeAll(async () => {
  if (missing === null) redis = await startRedis();
});
afterAll(async () => {
  await redis?.stop();
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }
  for (const store of stores.splice(0)) await store.close();
});

const run = (id: string, createdAt = '2024-05-01T12:00:00.000Z') => ({
  id,
  experiment: 'mnist',
  createdAt,
  phase: 'train',
  config: { learningRate: 0.1 + 0.2, name: 'Ünïcode', list: [] },
});

function summary(sequence: number, step: number, kind: 'last' | 'best' | 'final' = 'last') {
  const file = `step-${step}-${kind}-${sequence}.safetensors`;
  const createdAt = '2024-05-01T12:00:00.000Z';
  const sums = { bytes: 12, sha256: 'ab', layoutHash: 'cd' };
  return { version: 1, run: 'r1', step, kind, sequence, createdAt, file, ...sums } as const;
}

const stepsOf = (checkpoints: readonly CheckpointRecord[]) => checkpoints.map((c) => c.step);
const codeOf = (promise: Promise<unknown>) => promise.then(() => 'no error', errorCode);

/** Starts an owner in its own process; `say` sends a value to record, `heard` gives its next line. */
function startOwner(bench: Bench, ttlMs: number, waitMs = 0) {
  const args = [PROGRAM, ...bench.args, String(ttlMs), String(waitMs)];
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  children.push(child);
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    child,
    say: (line: string) => child.stdin.write(`${line}\n`),
    async heard(): Promise<Record<string, unknown>> {
      const { value, done } = await lines.next();
      return done ? { ended: true } : JSON.parse(value);
    },
  };
}

describe.each([
  { kind: 'files', make: fileBench, skip: false },
  { kind: 'redis', make: redisBench, skip: missing !== null },
  { kind: 'redis with a journal', make: journalBench, skip: missing !== null },
])('the state store on $kind', ({ kind, make, skip }) => {
  describe.skipIf(skip)('', () => {
    let bench: Bench;
    let store: StateStore;
    beforeEach(async () => {
      bench = await make();
      store = bench.open();
    });
    afterEach(async () => {
      await Promise.all(stores.splice(0).map((s) => s.close()));
      await bench.clean();
    });

    it('keeps runs as they were written, in order of creation, for everyone', async () => {
      expect(kind).toMatch(store.kind);
      expect(await store.listRuns()).toEqual([]);
      const { token } = await store.acquire('a', LONG);
      await store.putRun(token, run('r2', '2024-05-02T00:00:00.000Z'));
      await store.putRun(token, run('r1'));
      await store.putRun(token, { ...run('r2', '2024-05-02T00:00:00.000Z'), phase: 'ended' });
      const reader = bench.open();
      expect(await bench.stored.run('r1')).toEqual(run('r1'));
      expect((await reader.listRuns()).map((r) => [r.id, r.phase])).toEqual([
        ['r1', 'train'],
        ['r2', 'ended'],
      ]);
    });

    it('refuses names that could lead elsewhere, and what JSON would change', async () => {
      const { token } = await store.acquire('a', LONG);
      for (const id of ['', '../r1', 'a/b', '.owner', 'A', 'x'.repeat(65)]) {
        expect(await codeOf(store.putRun(token, run(id)))).toBe('DP_CONFIG_INVALID');
        expect(await codeOf(store.lastCheckpoint(id))).toBe('DP_CONFIG_INVALID');
      }
      await expect(
        store.putEarlyStopping(token, 'r1', { best: Number.POSITIVE_INFINITY }),
      ).rejects.toThrow(TypeError);
      expect(await bench.stored.earlyStopping('r1')).toBeNull();
    });

    it('keeps the early-stopping record', async () => {
      const { token } = await store.acquire('a', LONG);
      const record = { phase: 'continue', evaluations: 17, thresholds: [0.125, null] };
      await store.putEarlyStopping(token, 'r1', { phase: 'train' });
      await store.putEarlyStopping(token, 'r1', record);
      expect(await bench.stored.earlyStopping('r1')).toEqual(record);
      expect(await bench.stored.earlyStopping('r2')).toBeNull();
    });

    describe('checkpoints', () => {
      it('are entered without their state, and the pointer follows', async () => {
        const { token } = await store.acquire('a', LONG);
        expect(await store.lastCheckpoint('r1')).toBeNull();
        const first = { ...summary(1, 10), state: { large: true } };
        expect(await store.publishCheckpoint(token, 'r1', first)).toEqual({ moved: true });
        expect(await store.lastCheckpoint('r1')).toEqual(summary(1, 10));
        await store.publishCheckpoint(token, 'r1', summary(2, 20));
        await store.publishCheckpoint(token, 'r1', summary(3, 20, 'best'));
        await store.publishCheckpoint(token, 'r2', summary(1, 5));
        const reader = bench.open();
        expect(await bench.stored.checkpoints('r1')).toEqual([
          summary(1, 10),
          summary(2, 20),
          summary(3, 20, 'best'),
        ]);
        expect(await reader.lastCheckpoint('r1')).toEqual(summary(2, 20));
      });

      it('never lead back to an older step of the same owner', async () => {
        const { token } = await store.acquire('a', LONG);
        await store.publishCheckpoint(token, 'r1', summary(1, 100));
        const late = await store.publishCheckpoint(token, 'r1', summary(2, 9));
        expect(late).toEqual({ moved: false });
        expect((await store.lastCheckpoint('r1'))?.step).toBe(100);
        expect(stepsOf(await bench.stored.checkpoints('r1'))).toEqual([100, 9]);
      });

      it('may lead back under a new owner, which resumed from an older one', async () => {
        const old = await store.acquire('a', LONG);
        await store.publishCheckpoint(old.token, 'r1', summary(1, 100));
        await old.release();
        const { token } = await store.acquire('b', LONG);
        await store.publishCheckpoint(token, 'r1', summary(2, 60));
        expect((await store.lastCheckpoint('r1'))?.step).toBe(60);
      });

      it('are forgotten, and the pointer moves to the newest left', async () => {
        const { token } = await store.acquire('a', LONG);
        for (const [i, step] of [10, 20, 30].entries()) {
          await store.publishCheckpoint(token, 'r1', summary(i + 1, step));
        }
        await store.publishCheckpoint(token, 'r1', summary(4, 30, 'best'));
        await store.forgetCheckpoints(token, 'r1', [summary(1, 10).file]);
        expect((await store.lastCheckpoint('r1'))?.step).toBe(30);
        await store.forgetCheckpoints(token, 'r1', [summary(3, 30).file]);
        expect((await store.lastCheckpoint('r1'))?.step).toBe(20);
        await store.forgetCheckpoints(token, 'r1', [summary(2, 20).file, 'unknown']);
        expect(await store.lastCheckpoint('r1')).toBeNull();
        expect(await bench.stored.checkpoints('r1')).toEqual([summary(4, 30, 'best')]);
      });
    });

    describe('the best', () => {
      it('never gets worse, whoever writes in whatever order; of equal ones the first stays', async () => {
        const { token } = await store.acquire('a', LONG);
        const writers = [store, bench.open(), bench.open()];
        // Few values make ties; close ones show a store that rounds.
        const value = fc.oneof(
          fc.constantFrom(0.1, 0.1 + 1e-17, 0.30000000000000004, 0.3, -0, 0, 1e-320),
          fc.double({ noNaN: true, noDefaultInfinity: true }),
        );
        let id = 0;
        await fc.assert(
          fc.asyncProperty(
            fc.array(fc.tuple(value, fc.nat(writers.length - 1)), { minLength: 1, maxLength: 12 }),
            async (values) => {
              const name = `p${++id}`;
              let told: BestRecord[] = [];
              const results = await Promise.all(
                values.map(([value, writer], step) => {
                  const best = { step, value: value + 0, checkpoint: `c${step}` };
                  // The files serve one server: only one store object writes.
                  const by = kind === 'files' ? store : writers[writer]!;
                  return by.recordBest(token, name, best).then((result) => {
                    told = [...told, result.best];
                    return { ...result, mine: best };
                  });
                }),
              );
              const lowest = Math.min(...values.map(([v]) => v + 0));
              const best = await bench.stored.best(name);
              expect(best?.value === lowest).toBe(true);
              for (const { kept, best: after, mine } of results) {
                expect(after.value <= mine.value).toBe(true);
                if (kept) expect(after).toEqual(mine);
              }
              expect(results.filter((r) => r.kept && r.mine.value === lowest)).toHaveLength(1);
              if (kind === 'files') {
                expect(told.every((t, i) => i === 0 || t.value <= told[i - 1]!.value)).toBe(true);
                expect(best?.step).toBe(values.findIndex(([v]) => v + 0 === lowest));
              }
            },
          ),
          { numRuns: kind === 'files' ? 15 : 60 },
        );
      });

      it('is told to whoever did not make it, and kept when told twice', async () => {
        const { token } = await store.acquire('a', LONG);
        expect(await bench.stored.best('r1')).toBeNull();
        const best = { step: 7, value: 0.25, checkpoint: 'c7' };
        expect(await store.recordBest(token, 'r1', best)).toEqual({ kept: true, best });
        expect(await store.recordBest(token, 'r1', best)).toEqual({ kept: true, best });
        const equal = { ...best, step: 8 };
        expect(await store.recordBest(token, 'r1', equal)).toEqual({ kept: false, best });
        const worse = { ...best, value: 0.5 };
        expect(await store.recordBest(token, 'r1', worse)).toEqual({ kept: false, best });
      });

      it('is never a value that is not finite', async () => {
        const { token } = await store.acquire('a', LONG);
        for (const value of [Number.NaN, Number.NEGATIVE_INFINITY]) {
          const best = { step: 1, value, checkpoint: 'c' };
          expect(await codeOf(store.recordBest(token, 'r1', best))).toBe('DP_DIVERGED');
        }
        expect(await bench.stored.best('r1')).toBeNull();
      });
    });

    describe('shards', () => {
      const shard = (id: string, port: number) => ({ id, host: '192.0.2.7', port });
      it('are listed by id, from any process, without a lease', async () => {
        const [store, other] = [bench.open(), bench.open()];
        await store.announceShard('b-2', shard('b-2', 7422), 60_000);
        await other.announceShard('a-1', shard('a-1', 7421), 60_000);
        expect(await other.listShards()).toEqual([shard('a-1', 7421), shard('b-2', 7422)]);
        await store.announceShard('b-2', shard('b-2', 7500), 60_000);
        expect(await store.listShards()).toEqual([shard('a-1', 7421), shard('b-2', 7500)]);
        await store.announceShard('a-1', null, 0);
        expect(await other.listShards()).toEqual([shard('b-2', 7500)]);
      });

      it('that announce themselves no more are forgotten', async () => {
        const store = bench.open();
        await store.announceShard('a-1', shard('a-1', 7421), 30);
        await expect.poll(() => store.listShards(), { timeout: 10_000 }).toEqual([]);
      });

      it('cannot be named like a path', async () => {
        const store = bench.open();
        await expect(store.announceShard('../x', shard('../x', 1), 1000)).rejects.toThrow(
          'must be named like',
        );
      });
    });

    describe('the owner', () => {
      it('outlives a process that stood still for longer, when nobody took it', async () => {
        const store = bench.open();
        const lease = await store.acquire('slow', { ttlMs: 300 });
        // Stands still as in a long computation: no timer of this process runs.
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000);
        await new Promise((resolve) => setTimeout(resolve, 100));
        expect(lease.lost.aborted).toBe(false);
        await lease.renew();
        await store.putEarlyStopping(lease.token, 'r1', { evaluations: 1 });
      });

      it('is one: another is refused and told who, and comes in after the release', async () => {
        const first = await store.acquire('server-a', LONG);
        const other = bench.open();
        const error = await other.acquire('server-b', LONG).catch((e) => e);
        expect(errorCode(error)).toBe('DP_STATE_LOCKED');
        expect(error.message).toMatch(/belongs to server-a.*since 20/);
        if (kind === 'files') expect(error.message).toContain(`process ${process.pid} on `);
        expect(await codeOf(store.acquire('server-a', LONG))).toBe('DP_STATE_LOCKED');
        await first.release();
        await first.release();
        const second = await other.acquire('server-b', LONG);
        expect(second.token).toBeGreaterThan(first.token);
        expect(first.lost.aborted).toBe(false);
      });

      it('is one of many that race for it, again and again, with rising tokens', async () => {
        let highest = 0;
        for (let round = 0; round < 5; round++) {
          const racers = Array.from({ length: 6 }, () => bench.open());
          const results = await Promise.allSettled(racers.map((r, i) => r.acquire(`${i}`, LONG)));
          const won = results.flatMap((r) => (r.status === 'fulfilled' ? [r.value] : []));
          const refused = results.flatMap((r) => (r.status === 'rejected' ? [r.reason] : []));
          expect(refused.map(errorCode)).toEqual(Array(5).fill('DP_STATE_LOCKED'));
          expect(won).toHaveLength(1);
          expect(won[0]!.token).toBeGreaterThan(highest);
          highest = won[0]!.token;
          await won[0]!.release();
        }
      });

      it('writes nothing more after the release, or with a token that is not the newest', async () => {
        const lease = await store.acquire('a', LONG);
        await store.putRun(lease.token, run('r1'));
        await lease.release();
        await expectFenced(store, lease.token);
        const { token } = await bench.open().acquire('b', LONG);
        await expectFenced(store, lease.token);
        await expectFenced(store, token + 1);
        expect(await store.listRuns()).toEqual([run('r1')]);
        expect(await bench.stored.checkpoints('r1')).toEqual([]);
        expect(await bench.stored.best('r1')).toBeNull();
        await store.putRun(token, { ...run('r1'), phase: 'ended' });
        expect((await bench.stored.run('r1'))?.phase).toBe('ended');
      });

      it('keeps the lease by renewing it, while others wait in vain', async () => {
        const lease = await store.acquire('a', { ttlMs: 1000 });
        const waiting = bench.open().acquire('b', { ttlMs: 1000, waitMs: 2500 });
        expect(await codeOf(waiting)).toBe('DP_STATE_LOCKED');
        await lease.renew();
        expect(lease.lost.aborted).toBe(false);
        await store.putRun(lease.token, run('r1'));
      });

      it('that waits comes in when the other goes, and may give up waiting', async () => {
        const first = await store.acquire('a', LONG);
        const controller = new AbortController();
        const options = { ...LONG, waitMs: 60_000, signal: controller.signal };
        const given = bench.open().acquire('b', options);
        const expected = expect(given).rejects.toThrow(/abort/i);
        controller.abort();
        await expected;
        const waiting = bench.open().acquire('c', { ...LONG, waitMs: 60_000 });
        await first.release();
        expect((await waiting).token).toBeGreaterThan(first.token);
      });

      it('that was killed does not block the next for longer than its lease', async () => {
        const ttlMs = kind === 'redis' ? 3000 : 600_000;
        const owner = startOwner(bench, ttlMs);
        const { token } = await owner.heard();
        expect(token).toBeGreaterThan(0);
        owner.say('0.5');
        expect(await owner.heard()).toEqual({ kept: true });
        expect(await codeOf(store.acquire('early', LONG))).toBe('DP_STATE_LOCKED');
        owner.child.kill('SIGKILL');
        await once(owner.child, 'exit');
        // On its own machine, who has left a file is known to be dead at once.
        const waitMs = kind === 'redis' ? 20_000 : 0;
        const lease = await store.acquire('next', { ...LONG, waitMs });
        expect(lease.token).toBeGreaterThan(token as number);
        expect(await bench.stored.best('r1')).toMatchObject({ value: 0.5, checkpoint: 'of-child' });
      });

      it('that was halted, overtaken and goes on is refused by the store itself', async () => {
        const owner = startOwner(bench, 3000);
        const { token } = await owner.heard();
        owner.say('0.5');
        expect(await owner.heard()).toEqual({ kept: true });
        owner.child.kill('SIGSTOP');
        const lease = await store.acquire('next', { ...LONG, waitMs: 30_000 });
        expect(lease.token).toBeGreaterThan(token as number);
        const best = { step: 2, value: 0.4, checkpoint: 'c2' };
        await store.recordBest(lease.token, 'r1', best);
        // The line waits in the pipe: it is read at the moment the owner wakes up.
        owner.say('0.1');
        owner.child.kill('SIGCONT');
        const heard = [await owner.heard(), await owner.heard()];
        expect(heard).toContainEqual({ error: 'DP_STATE_FENCED' });
        expect(heard).toContainEqual({ lost: 'DP_STATE_FENCED' });
        expect(await bench.stored.best('r1')).toEqual(best);
        await lease.renew();
      });

      // Slow ones, in which a journal has no part, are not repeated for it.
      const other = (name: string, body: () => Promise<void>) => {
        if (!kind.includes('journal')) it(name, body);
      };
      other('races with owners in other processes, and one wins', async () => {
        const owners = [1, 2, 3].map(() => startOwner(bench, 60_000));
        const heard = await Promise.all(owners.map((owner) => owner.heard()));
        expect(heard.filter((h) => 'token' in h)).toHaveLength(1);
        expect(heard.filter((h) => h.error === 'DP_STATE_LOCKED')).toHaveLength(2);
      });

      other('does not keep its process alive', async () => {
        const owner = startOwner(bench, 60_000);
        await owner.heard();
        owner.child.stdin.end();
        expect(await once(owner.child, 'exit')).toEqual([0, null]);
        await store.acquire('next', LONG);
      });
    });

    it.each(['run', 'best'] as const)(
      'names a damaged record (%s) and does not take it for an empty one',
      async (record) => {
        const told: DownpourError[] = [];
        const careful = bench.open((error) => told.push(error));
        const { token } = await careful.acquire('a', LONG);
        await careful.putRun(token, run('r0'));
        await careful.putRun(token, run('r1'));
        const best = { step: 1, value: 0.1, checkpoint: 'c' };
        await careful.recordBest(token, 'r1', best);
        await bench.spoil(record);
        if (record === 'run') {
          expect((await careful.listRuns()).map((r) => r.id)).toEqual(['r0']);
        } else {
          const worse = { ...best, value: 0.9 };
          told.push(await careful.recordBest(token, 'r1', worse).catch((e) => e));
        }
        expect(told.map(errorCode)).toEqual(['DP_STATE_CORRUPT']);
        expect(told[0]!.message).toMatch(
          kind === 'files' ? /r1.*\.json is damaged/ : /r1 is damaged/,
        );
        // Only a person mends a best.
        if (record === 'best') return;
        await careful.putRun(token, run('r1'));
        expect((await careful.listRuns()).map((r) => r.id)).toEqual(['r0', 'r1']);
      },
    );
  });
});

async function expectFenced(store: StateStore, token: number): Promise<void> {
  const writes = [
    () => store.putRun(token, { ...run('r1'), phase: 'stale' }),
    () => store.publishCheckpoint(token, 'r1', summary(1, 1)),
    () => store.forgetCheckpoints(token, 'r1', ['x']),
    () => store.recordBest(token, 'r1', { step: 1, value: -1, checkpoint: 'stale' }),
    () => store.putEarlyStopping(token, 'r1', {}),
    () => store.removeRun(token, 'r1'),
  ];
  for (const write of writes) expect(await codeOf(write())).toBe('DP_STATE_FENCED');
}

describe('the file store alone', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'downpour-state-'));
  });
  afterEach(async () => {
    for (const store of stores.splice(0)) await store.close();
    await rm(folder, { recursive: true, force: true });
  });

  /** The newest owner's file, changed as if it came from elsewhere. */
  async function forge(change: Record<string, unknown>): Promise<void> {
    const name = (await readdir(join(folder, '.owner'))).sort().at(-1)!;
    const path = join(folder, '.owner', name);
    const holder = JSON.parse(await readFile(path, 'utf8'));
    await writeFile(path, `${JSON.stringify({ ...holder, ...change })}\n`);
  }
  const open = () => keep(openFileStore({ folder }));

  it('is not fooled by a process number that another process got', async () => {
    await open().acquire('a', LONG);
    await forge({ processStart: '1' });
    expect((await open().acquire('b', LONG)).token).toBe(2);
  });

  it('waits for the heartbeat of an owner in another container or on another machine', async () => {
    await open().acquire('a', LONG);
    // A number that no process has here, for it belongs to another place.
    await forge({ place: 'elsewhere', host: 'node-7', pid: 2 ** 22 + 1, ttlMs: 800 });
    const error = await open()
      .acquire('b', LONG)
      .catch((e) => e);
    expect(error.message).toContain('on node-7');
    expect((await open().acquire('b', { ...LONG, waitMs: 20_000 })).token).toBe(2);
  });

  it('takes an owner file that cannot be read for held until a lease has passed', async () => {
    await open().acquire('a', LONG);
    await writeFile(join(folder, '.owner', '000001.json'), '{"token":1,');
    expect(await codeOf(open().acquire('b', LONG))).toBe('DP_STATE_LOCKED');
    expect((await open().acquire('b', { ttlMs: 500, waitMs: 20_000 })).token).toBe(2);
  });

  it('tells an owner whose folder was taken away', async () => {
    const lease = await open().acquire('a', { ttlMs: 300 });
    const lost = once(lease.lost, 'abort');
    await rm(folder, { recursive: true });
    await lost;
    expect(errorCode(lease.lost.reason)).toBe('DP_STATE_FENCED');
  });

  it('reads what the new owner wrote, not what an overtaken one finishes late', async () => {
    const store = open();
    const old = await store.acquire('a', LONG);
    await store.putRun(old.token, run('r1'));
    const late = await readFile(join(folder, 'r1', 'run.000001.json'));
    await old.release();
    const { token } = await store.acquire('b', LONG);
    await store.putRun(token, { ...run('r1'), phase: 'new' });
    await writeFile(join(folder, 'r1', 'run.000001.json'), late);
    expect((await storedInFiles(folder).run('r1'))?.phase).toBe('new');
    await store.putRun(token, { ...run('r1'), phase: 'newer' });
    expect(await readdir(join(folder, 'r1'))).toEqual([`run.00000${token}.json`]);
  });

  it('leaves no debris of its owners', async () => {
    const store = open();
    for (let i = 0; i < 5; i++) await (await store.acquire('a', LONG)).release();
    await store.acquire('a', LONG);
    expect(await readdir(join(folder, '.owner'))).toHaveLength(1);
  });

  it('names the path and what to do when the folder cannot be written', async () => {
    await writeFile(join(folder, 'file'), '');
    const error = await keep(openFileStore({ folder: join(folder, 'file') }))
      .acquire('a', LONG)
      .catch((e) => e);
    expect(errorCode(error)).toBe('DP_DISK');
    expect(error.message).toMatch(/file\/\.owner.*choose another folder/);
  });
});

describe.skipIf(missing !== null)('the Redis store alone', () => {
  it('goes on after a restart of Redis, and says so while it is away', async () => {
    const own = await startRedis();
    const store = openRedisStore({ url: own.url, timeoutMs: 1000 });
    try {
      const lease = await store.acquire('a', LONG);
      await store.putRun(lease.token, run('r1'));
      await own.kill();
      const error = await store.putRun(lease.token, run('r2')).catch((e) => e);
      expect(errorCode(error)).toBe('DP_REDIS_UNAVAILABLE');
      expect(error.message).toContain(`Redis at ${own.url}`);
      await own.restart();
      expect(await until(() => store.listRuns())).toEqual([run('r1')]);
      await store.putRun(lease.token, run('r2'));
      await lease.renew();
      expect(lease.lost.aborted).toBe(false);
      const other = openRedisStore({ url: own.url });
      expect(await codeOf(other.acquire('b', LONG))).toBe('DP_STATE_LOCKED');
      await other.close();
    } finally {
      await store.close();
      await own.stop();
    }
  });

  it('that lost its memory lets the owner go on, and tokens still rise', async () => {
    const own = await startRedis({ persist: false });
    const store = openRedisStore({ url: own.url });
    const other = openRedisStore({ url: own.url });
    try {
      const lease = await store.acquire('a', LONG);
      await own.kill();
      await own.restart();
      await until(() => lease.renew());
      await store.putRun(lease.token, run('r1'));
      expect(await codeOf(other.acquire('b', LONG))).toBe('DP_STATE_LOCKED');
      await own.kill();
      await own.restart();
      const next = await until(() => other.acquire('b', LONG));
      expect(next.token).toBeGreaterThan(lease.token);
      expect(await codeOf(until(() => store.putRun(lease.token, run('r1'))))).toBe(
        'DP_STATE_FENCED',
      );
      expect(await codeOf(lease.renew())).toBe('DP_STATE_FENCED');
      expect(errorCode(lease.lost.reason)).toBe('DP_STATE_FENCED');
    } finally {
      await Promise.all([store.close(), other.close()]);
      await own.stop();
    }
  });

  it('that fell back to an older state is told, and follows the newer owner again', async () => {
    const prefix = `test${++prefixes}:`;
    let forgotten = 0;
    const onForgotten = () => void forgotten++;
    const store = keep(openRedisStore({ url: redis.url, prefix, onForgotten }));
    const older = keep(openRedisStore({ url: redis.url, prefix }));
    const first = await older.acquire('older', LONG);
    await older.putRun(first.token, run('r1'));
    const client = new Redis(redis.url);
    // As a dump, or a replica that lagged, has it.
    const keys = ['owner', 'token'].map((key) => prefix + key);
    const before = await Promise.all(keys.map((key) => client.dumpBuffer(key)));
    await first.release();
    const lease = await store.acquire('newer', LONG);
    await store.putRun(lease.token, { ...run('r1'), phase: 'newer' });
    for (const [i, key] of keys.entries()) await client.restore(key, 0, before[i]!, 'REPLACE');
    client.disconnect();
    await store.putRun(lease.token, { ...run('r1'), phase: 'newest' });
    expect(forgotten).toBe(1);
    expect(await codeOf(older.putRun(first.token, run('r1')))).toBe('DP_STATE_FENCED');
    expect((await store.listRuns()).map(({ phase }) => phase)).toEqual(['newest']);
    expect(lease.lost.aborted).toBe(false);
  });

  it('leaves the lease with its owner while it is away, and waits for it when asked', async () => {
    const own = await startRedis();
    const store = openRedisStore({ url: own.url });
    const other = openRedisStore({ url: own.url });
    try {
      const lease = await store.acquire('a', { ttlMs: 300 });
      await own.kill();
      for (let i = 0; i < 3; i++) expect(await codeOf(lease.renew())).toBe('DP_REDIS_UNAVAILABLE');
      const waiting = other.acquire('b', { ...LONG, waitMs: 60_000 });
      expect(lease.lost.aborted).toBe(false);
      const lost = once(lease.lost, 'abort');
      await own.restart();
      // Whoever comes first has it; the other one learns of it from Redis.
      const first = await Promise.race([waiting, until(() => lease.renew())]);
      if (first) {
        await lost;
        expect(first.token).toBeGreaterThan(lease.token);
        expect(errorText(lease.lost.reason)).toContain('another owner took over');
      } else {
        await lease.release();
        expect((await waiting).token).toBeGreaterThan(lease.token);
      }
    } finally {
      await Promise.all([store.close(), other.close()]);
      await own.stop();
    }
  });

  it('fails where there is no Redis, and does not ask without end', async () => {
    const port = await freePort();
    const store = openRedisStore({ url: `redis://127.0.0.1:${port}`, timeoutMs: 500 });
    const error = await store.acquire('a', LONG).catch((e) => e);
    expect(errorCode(error)).toBe('DP_REDIS_UNAVAILABLE');
    expect(error.message).toContain('ECONNREFUSED');
    await store.close();
  });

  it('takes user, password and database from its address, and never shows the password', async () => {
    const own = await startRedis({ args: ['--requirepass', 'hidden-word'] });
    const { host } = new URL(own.url);
    const good = openRedisStore({ url: `redis://default:hidden-word@${host}/3` });
    const bad = openRedisStore({ url: `redis://default:wrong-word@${host}` });
    try {
      const { token } = await good.acquire('a', LONG);
      await good.putRun(token, run('r1'));
      const client = new Redis(`redis://:hidden-word@${host}/3`);
      expect(await client.hkeys('downpour:runs')).toEqual(['r1']);
      client.disconnect();
      const error = await bad.acquire('b', LONG).catch((e) => e);
      expect(errorCode(error)).toBe('DP_REDIS_UNAVAILABLE');
      expect(error.message).toMatch(/check the user and password/);
      expect(error.message).not.toContain('word@');
    } finally {
      await Promise.all([good.close(), bad.close()]);
      await own.stop();
    }
  });

  it.each(['', 'localhost:6379', 'http://localhost', 'redis//x'])(
    'refuses the address %j',
    async (url) => {
      expect(() => openRedisStore({ url })).toThrow(DownpourError);
      expect(() => openRedisStore({ url })).toThrow(/must look like redis:\/\//);
    },
  );
});

/** Tries until Redis is back. */
async function until<T>(action: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await action();
    } catch (error) {
      if (errorCode(error) !== 'DP_REDIS_UNAVAILABLE' || attempt === 20) throw error;
    }
  }
}
