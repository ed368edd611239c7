import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { seal } from '../../files/atomic-file.ts';
import { checkpointFolder, writeCheckpoint } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { Keeper } from '../../server/checkpoints/keeper.ts';
import { nextLife, readProgress } from '../../server/checkpoints/lives.ts';
import { Studies } from '../../server/http/studies.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { letHeirBegin } from '../../server/store/followed.ts';
import { journaled } from '../../server/store/journal.ts';
import { openRedisStore } from '../../server/store/redis.ts';
import type { OwnerLease, StateStore } from '../../server/store/state-store.ts';
import { type DownpourError, errorCode } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { redisMissing, startRedis, type TestRedis } from '../redis-server.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { recover } from '../support/recover.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';
import { startServerProcess } from '../support/server-process.ts';
import { storedInRedis } from '../support/stored.ts';

/** Anything at all in the place of a record: it is passed over with a line, stays where it is, and all others count. */

const LONG = { ttlMs: 60_000 };
const run = (id: string) => ({
  ...{ id, experiment: 'regression', experimentHash: 'hash', config: {} },
  ...{ createdAt: '2024-05-01T12:00:00.000Z', phase: 'waiting' },
});
const huge = 'x'.repeat(10_000_000);
/** What is JSON and no record: of every type, nested, with names that objects have by themselves. */
const json = fc.oneof(
  fc.jsonValue({ depthSize: 'small' }),
  fc.constantFrom<unknown>(null, [], {}, 0, '', true, [[]], { id: '../r', value: null }),
  fc.constantFrom<unknown>(
    { ...run('../../etc'), id: '../../etc' },
    { ...run('r1'), config: undefined },
  ),
  fc.constantFrom<unknown>({ ...run('r1'), experiment: 7 }, { ...run('r1'), phase: ['x'] }),
  fc.constantFrom<unknown>(JSON.parse('{"__proto__":{"id":"r1"},"constructor":1}'), { state: 0 }),
);
const text = fc.oneof(
  json.map((value) => JSON.stringify(value) ?? 'null'),
  fc.string({ unit: 'binary' }),
  fc.constantFrom('', '{', '{"value":0.1', '\0\0\0', '[1,2', 'NaN', '"\\ud800"', '\x1b[2J\n'),
);

let folder: string;
let told: DownpourError[];
const onDamaged = (error: DownpourError) => void told.push(error);
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-records-'));
  told = [];
});
afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

/** They may fail, and then say that a record is damaged. */
async function onlyDamaged(...reads: readonly Promise<unknown>[]): Promise<void> {
  for (const read of await Promise.allSettled(reads)) {
    if (read.status === 'rejected') expect(errorCode(read.reason)).toBe('DP_STATE_CORRUPT');
  }
}

describe('in the state folder', () => {
  const put = async (path: string, bytes: string | Buffer) => {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, bytes);
  };
  /** As it is, and sealed by somebody who can compute a checksum. */
  const content = fc.oneof(
    text.map((value) => Buffer.from(value)),
    fc
      .oneof(
        json,
        json.map((value) => ({ value })),
      )
      .map((value) => seal(value ?? null)),
  );

  test('a run, a best and a registry that are none are passed over; the others are read', async () => {
    const store = openFileStore({ folder, onDamaged });
    const { token } = await store.acquire('a', LONG);
    await store.putRun(token, run('good'));
    await fc.assert(
      fc.asyncProperty(content, async (bytes) => {
        const [bad, best, registry] = ['run', 'best', 'registry'].map((name) =>
          join(folder, 'bad', `${name}.000001.json`),
        ) as [string, string, string];
        for (const path of [bad, best, registry]) await put(path, bytes);
        told = [];
        const reader = openFileStore({ folder, onDamaged });
        expect((await reader.listRuns()).map(({ id }) => id)).toEqual(['good']);
        for (const error of told) expect(error.message).toContain(bad);
        const worst = { step: 1, value: Number.MAX_VALUE, checkpoint: 'c' };
        await onlyDamaged(
          store.recordBest(token, 'bad', worst),
          reader.lastCheckpoint('bad'),
          store.forgetCheckpoints(token, 'bad', ['x']),
        );
        expect(await readFile(bad)).toEqual(bytes);
        await reader.close();
      }),
      { numRuns: 200 },
    );
    await store.close();
  });

  test('what is no file, what is too large and what is of another run is named', async () => {
    const store = openFileStore({ folder, onDamaged });
    const { token } = await store.acquire('a', LONG);
    await store.putRun(token, run('good'));
    await mkdir(join(folder, 'folder', 'run.000001.json'), { recursive: true });
    await put(join(folder, 'large', 'run.000001.json'), huge);
    await put(join(folder, 'other', 'run.000001.json'), seal({ value: run('good') }));
    await store.putRun(token, {
      ...run('longest'),
      note: 'x'.repeat(LIMITS.recordBytesMax - 1_000),
    });
    expect((await store.listRuns()).map(({ id }) => id)).toEqual(['good', 'longest']);
    expect(told.map(({ message }) => message).sort()).toEqual([
      expect.stringMatching(/folder\/run.000001.json is damaged: it is no file;/),
      expect.stringMatching(
        /large\/run.000001.json is damaged: it has 10000000 bytes; at most 4194304/,
      ),
      expect.stringMatching(/other\/run.000001.json is damaged: it is of run 'good'/),
    ]);
    // Once, however often it is asked.
    await store.listRuns();
    expect(told).toHaveLength(3);
    await store.close();
  });

  test('shards, lives, progress, studies and the note of a standby: anything may be there', async () => {
    const good = { id: 'good', host: '127.0.0.1', port: 7421 };
    await openFileStore({ folder }).announceShard('good', good, 60_000);
    const signal = new AbortController().signal;
    await fc.assert(
      fc.asyncProperty(content, async (bytes) => {
        const paths = {
          shard: join(folder, '.shards', 'bad.json'),
          study: join(folder, '.studies', 'bad.json'),
          progress: join(folder, 'r', 'progress.json'),
          lives: join(folder, 'lives.json'),
          followed: join(folder, '.owner', 'followed.json'),
        };
        for (const path of Object.values(paths)) await put(path, bytes);
        const store = openFileStore({ folder, onDamaged });
        expect(await store.listShards()).toEqual([good]);
        const lines: string[] = [];
        expect((await Studies.open(folder, (line) => lines.push(line))).list()).toEqual([]);
        expect(lines.filter((line) => line.includes(paths.study))).toHaveLength(1);
        expect(await readProgress(folder, 'r', onDamaged)).toBeNull();
        expect(
          await nextLife(folder, 4, (error) => {
            if (error) onDamaged(error);
            return 0;
          }),
        ).toBe(5);
        const log = (line: string) => lines.push(line);
        expect(await letHeirBegin(folder, store, { log, signal })).toBe(false);
        for (const path of [paths.shard, paths.progress, paths.lives]) {
          expect(told.filter(({ message }) => message.includes(path)).length).toBeGreaterThan(0);
        }
        expect(lines.filter((line) => line.includes(paths.followed))).toHaveLength(1);
        told = [];
      }),
      { numRuns: 100 },
    );
  });

  test("an owner's file that is none holds nobody up for longer than a lease", async () => {
    await fc.assert(
      fc.asyncProperty(content, async (bytes) => {
        await put(join(folder, '.owner', '000007.json'), bytes);
        const old = new Date(Date.now() - 3_600_000);
        const { utimes } = await import('node:fs/promises');
        await utimes(join(folder, '.owner', '000007.json'), old, old);
        const store = openFileStore({ folder });
        const lease = await store.acquire('a', { ttlMs: 20 });
        expect(lease.token).toBe(8);
        await store.close();
        await rm(join(folder, '.owner'), { recursive: true });
      }),
      { numRuns: 40 },
    );
  });

  test('manifests: one that is none is passed over and never removed, the others are listed', async () => {
    const place = checkpointFolder(folder, 'r');
    const input = { run: 'r', step: 3, kind: 'last', layoutHash: 'h', tensors: [] } as const;
    const whole = await writeCheckpoint(place, { ...input, state: {}, now: new Date(0) });
    const bad = join(place, 'step-000000009-last-0009.json');
    await put(join(place, 'step-000000009-last-0009.safetensors'), '');
    await mkdir(join(place, 'step-000000010-last-0010.json'));
    await fc.assert(
      fc.asyncProperty(json, async (value) => {
        await put(bad, seal(value ?? null));
        const problems: string[] = [];
        const listed = await listCheckpoints(place, {
          onDamaged: (error) => problems.push(error.message),
        });
        expect(listed).toEqual([whole]);
        expect(problems).toHaveLength(2);
        expect(problems.join()).toContain('0010.json is damaged: it is no file');
        expect(problems.some((text) => text.includes(bad))).toBe(true);
      }),
      { numRuns: 100 },
    );
  });

  test('a server goes on with all runs but the one whose state is none, and never under a name outside its folder', async () => {
    const store = openFileStore({ folder, onDamaged });
    const lease = await store.acquire('a', LONG);
    const problem = createProblem();
    const good = createRun({ evaluateEverySteps: 1000 });
    const first = keeperOf(store, lease, []);
    await first.register(good);
    const worker = new VirtualWorker(good, problem);
    while (good.step < 3) {
      worker.pull();
      worker.push();
    }
    await first.saveNow(good);
    const [manifest] = await listCheckpoints(checkpointFolder(folder, good.id));
    const states = fc.oneof(
      json,
      json.map((options) => ({ ...(manifest!.state as object), options })),
      fc.constantFrom<unknown>(
        { ...(manifest!.state as object), options: { ...good.options, id: '../../outside' } },
        { ...(manifest!.state as object), life: 1e300 },
        { ...(manifest!.state as object), workers: 7 },
      ),
    );
    let count = 0;
    await fc.assert(
      fc.asyncProperty(states, async (state) => {
        const id = `bad${++count}`;
        const place = checkpointFolder(folder, id);
        const tensors = [] as const;
        const input = { step: 3, kind: 'last', layoutHash: 'h', now: new Date(0) } as const;
        const { file } = await writeCheckpoint(place, { run: id, ...input, tensors, state });
        const lines: string[] = [];
        const keeper = keeperOf(store, lease, lines);
        const runs = await recover(keeper);
        expect(runs.map((each) => each.id)).toEqual([good.id]);
        expect(lines.filter((line) => line.includes(`run ${id} `)).length).toBeGreaterThan(0);
        expect((await stat(join(place, file))).isFile()).toBe(true);
        await keeper.abandon();
        await rm(join(folder, id), { recursive: true });
      }),
      { numRuns: 60 },
    );
    expect(await readdir(dirname(folder))).not.toContain('outside');
    await store.close();
  });

  test('a state that cannot be restored gives way to the checkpoint before it', async () => {
    const store = openFileStore({ folder, onDamaged });
    const lease = await store.acquire('a', LONG);
    const good = createRun({ evaluateEverySteps: 1000 });
    const first = keeperOf(store, lease, []);
    await first.register(good);
    const worker = new VirtualWorker(good, createProblem());
    while (good.step < 1) {
      worker.pull();
      worker.push();
    }
    await first.saveNow(good);
    const place = checkpointFolder(folder, good.id);
    const before = (await listCheckpoints(place)).at(-1);
    const state = { ...(before!.state as object), workers: 7 };
    const { file } = await writeCheckpoint(place, {
      ...{ run: good.id, step: 2, kind: 'last', layoutHash: 'h', tensors: [], state },
      now: new Date(0),
    });
    const lines: string[] = [];
    const runs = await recover(keeperOf(store, lease, lines));
    expect(runs.map(({ id, step }) => [id, step])).toEqual([[good.id, 1]]);
    expect(
      lines.filter((line) => line.includes(`${file} has a state that cannot be`)),
    ).toHaveLength(1);
    await store.close();
  });

  const keeperOf = (store: StateStore, { token }: OwnerLease, lines: string[]) =>
    new Keeper({
      ...{ root: folder, store, token, now: () => 0, onFenced: () => {} },
      log: (line) => lines.push(line),
    });
});

const summary = {
  ...({ version: 1, run: 'good', step: 1, kind: 'last', sequence: 1, createdAt: '' } as const),
  ...{ file: 'step-1.safetensors', bytes: 1, sha256: 'a', layoutHash: 'b' },
};
const missing = redisMissing();
describe.skipIf(missing !== null)('in Redis', () => {
  let redis: TestRedis;
  let client: Redis;
  let prefix: string;
  let prefixes = 0;
  let store: StateStore;
  let lease: OwnerLease;
  beforeAll(async () => {
    redis = await startRedis({ persist: false });
    client = new Redis(redis.url);
  });
  afterAll(async () => {
    client?.disconnect();
    await redis?.stop();
  });
  beforeEach(async () => {
    prefix = `bad${++prefixes}:`;
    store = openRedisStore({ url: redis.url, prefix, onDamaged });
    lease = await store.acquire('a', LONG);
    await store.putRun(lease.token, run('good'));
  });
  afterEach(() => store.close());

  test('runs of any text are passed over and stay; the others are read', async () => {
    await fc.assert(
      fc.asyncProperty(
        text,
        fc.constantFrom('r1', '../r', 'x'.repeat(9_000), '\x1b[2J'),
        async (value, field) => {
          told = [];
          const reader = openRedisStore({ url: redis.url, prefix, onDamaged });
          await client.hset(`${prefix}runs`, field, value);
          expect((await reader.listRuns()).map(({ id }) => id)).toEqual(['good']);
          expect(told).toHaveLength(1);
          expect(told[0]!.message).toContain(`${prefix}runs`);
          expect(told[0]!.message.length).toBeLessThan(1_000);
          expect(await client.hget(`${prefix}runs`, field)).toBe(Buffer.from(value).toString());
          await client.hdel(`${prefix}runs`, field);
          await reader.close();
        },
      ),
      { numRuns: 100 },
    );
  });

  test('checkpoints, bests and shards of any text are passed over; the others are read', async () => {
    const shard = { id: 'good', host: '127.0.0.1', port: 7421 };
    await store.publishCheckpoint(lease.token, 'good', summary);
    await store.announceShard('good', shard, 60_000);
    await client.sadd(`${prefix}shards`, 'bad', '../bad');
    await fc.assert(
      fc.asyncProperty(text, async (value) => {
        await client.hset(`${prefix}run:good:checkpoints`, 'bad', value);
        await client.hset(`${prefix}best`, 'good', value);
        await client.hset(`${prefix}last`, 'r1', value);
        await client.set(`${prefix}shard:bad`, value);
        expect(await store.listShards()).toEqual([shard]);
        await onlyDamaged(store.lastCheckpoint('r1'));
        // Nor does a script stumble over it.
        await store.forgetCheckpoints(lease.token, 'good', ['unknown']);
        const best = { step: 1, value: 0.5, checkpoint: 'c' };
        await onlyDamaged(store.recordBest(lease.token, 'good', best));
        expect(await store.lastCheckpoint('good')).toEqual(summary);
      }),
      { numRuns: 100 },
    );
  });

  test('a token that is none counts as forgotten: the owner goes on, and the next one comes after it', async () => {
    for (const value of ['', 'abc', 'nan', 'inf', '-inf', '-5', '1e300', '0x', '9'.repeat(40)]) {
      await client.set(`${prefix}token`, value);
      await store.putRun(lease.token, { ...run('good'), phase: 'training' });
      expect(await store.newestToken()).toBe(lease.token);
      await client.set(`${prefix}token`, value);
      await client.del(`${prefix}owner`);
      const other = openRedisStore({ url: redis.url, prefix });
      const next = await other.acquire('b', LONG);
      expect(next.token).toBeGreaterThan(lease.token);
      await expect(store.putRun(lease.token, run('good'))).rejects.toThrow('may no longer write');
      await other.close();
      await client.del(`${prefix}token`, `${prefix}owner`);
      lease = await openAgain();
    }
  });

  async function openAgain(): Promise<OwnerLease> {
    await store.close();
    store = openRedisStore({ url: redis.url, prefix, onDamaged });
    return store.acquire('a', LONG);
  }

  test.each([
    'runs',
    'last',
    'best',
    'early-stopping',
    'run:good:checkpoints',
    'shards',
    'shard:s',
    'token',
  ])('another type under %s is named with its key, and is no Redis that is away', async (key) => {
    await client.del(prefix + key);
    await client.rpush(prefix + key, 'a', 'list');
    if (key === 'shard:s') await client.sadd(`${prefix}shards`, 's');
    const { token } = lease;
    const best = { step: 1, value: 0.5, checkpoint: 'c' };
    const results = await Promise.allSettled([
      ...[store.listRuns(), store.listShards(), store.newestToken()],
      ...[store.lastCheckpoint('good'), store.putRun(token, run('other'))],
      ...[store.publishCheckpoint(token, 'good', summary), store.recordBest(token, 'good', best)],
      ...[store.forgetCheckpoints(token, 'good', ['x']), store.putEarlyStopping(token, 'good', {})],
      store.announceShard('t', { id: 't', host: 'h', port: 1 }, 1_000),
      lease.renew(),
    ]);
    const errors = results.flatMap((r) => (r.status === 'rejected' ? [r.reason] : []));
    const all = [...errors, ...told];
    expect(all.length).toBeGreaterThan(0);
    for (const error of all) {
      expect([errorCode(error), error.message]).toEqual([
        'DP_STATE_CORRUPT',
        expect.stringMatching(new RegExp(`${prefix}${key} is a list, not a (hash|set|string)`)),
      ]);
    }
    expect(await client.lrange(prefix + key, 0, -1)).toEqual(['a', 'list']);
    await client.del(prefix + key);
  });

  test('another type under owner is named to who asks for the lease, and taken back by who has it', async () => {
    await client.del(`${prefix}owner`);
    await client.rpush(`${prefix}owner`, 'a', 'list');
    const other = openRedisStore({ url: redis.url, prefix });
    await expect(other.acquire('b', LONG)).rejects.toThrow(`${prefix}owner is a list, not a hash`);
    await lease.renew();
    await expect(other.acquire('b', LONG)).rejects.toThrow('belongs to a, since');
    await other.close();
  });

  test('a value of ten megabytes is not even parsed', async () => {
    await client.hset(`${prefix}runs`, 'huge', huge);
    expect((await store.listRuns()).map(({ id }) => id)).toEqual(['good']);
    expect(told[0]!.message).toContain(`${prefix}runs huge is damaged: it has 10000000 characters`);
  });

  test('a record that is none lets checkpoints go on, holds up nobody else, and heals when it is taken away', async () => {
    const lines: string[] = [];
    let now = 0;
    await store.close();
    store = openRedisStore({ url: redis.url, prefix, onDamaged });
    const behind = journaled(store, { folder, id: redis.url, log: (line) => lines.push(line) });
    const { token } = await behind.acquire('a', LONG);
    const keeper = new Keeper({
      ...{ root: folder, store: behind, token, now: () => now, onFenced: () => {} },
      log: (line) => lines.push(line),
    });
    const trained = createRun({
      evaluateEverySteps: 1000,
      checkpoint: { everySteps: 1, keepLast: 2 },
    });
    const stored = storedInRedis({ url: redis.url, prefix });
    const key = `${prefix}run:${trained.id}:checkpoints`;
    await client.set(key, 'a text');
    await keeper.register(trained);
    const worker = new VirtualWorker(trained, createProblem());
    while (trained.step < 6) {
      worker.pull();
      worker.push();
      await keeper.checkpointNow(trained);
      now += 6_000;
      keeper.tick(now);
      await keeper.saveNow(trained);
    }
    const steps = (await listCheckpoints(checkpointFolder(folder, trained.id))).map((c) => c.step);
    expect(steps.at(-1)).toBe(6);
    expect(steps.length).toBe(2);
    expect(keeper.problem(trained.id)).toBeNull();
    expect(keeper.spoilt(trained.id)).toContain(`${key} is a string, not a hash`);
    expect(lines.filter((line) => line.includes('not entered in the state store'))).toHaveLength(1);
    expect(behind.away).toBeNull();
    expect((await stored.run(trained.id))?.phase).toBe('training');
    expect(await client.get(key)).toBe('a text');

    await client.del(key);
    now += 6_000;
    keeper.tick(now);
    await keeper.saveNow(trained);
    expect(keeper.spoilt(trained.id)).toBeNull();
    expect((await stored.checkpoints(trained.id)).map((c) => c.step)).toContain(6);
    await behind.close();
  });

  test('a server starts beside a registry that is none, with the runs of its folder, and says so in an alert', async () => {
    const args = ['--redis-url', redis.url];
    let server = await startServerProcess(folder, 0, args);
    await server.client.createRun({
      ...{ id: 'kept', experiment: 'regression', experimentHash: 'hash' },
      config: { minibatchSize: 4, evaluateEverySteps: 10_000 },
    });
    const worker = await ProtocolWorker.connect(server.url);
    await worker.trainTo(createProblem(), await worker.enter(createProblem()), 3);
    worker.close();
    await server.client.stop('kept');
    await server.kill();
    for (const key of ['runs', 'last', 'best', 'run:kept:checkpoints']) {
      await client.del(`downpour:${key}`);
      await client.rpush(`downpour:${key}`, 'a', 'list');
    }
    await client.del('downpour:owner');
    server = await startServerProcess(folder, 0, args);
    try {
      expect((await server.client.run('kept')).step).toBe(3);
      const known = async () => (await server.client.status()).alerts.map((alert) => alert.text);
      await expect
        .poll(known)
        .toContainEqual(
          expect.stringMatching(
            /^kept is not entered in the state store.* downpour:\S+ is a list, not a hash/,
          ),
        );
      expect(server.log()).toMatch(/downpour:runs is a list, not a hash.*; passed over/);
      expect(await client.lrange('downpour:runs', 0, -1)).toEqual(['a', 'list']);
      // What nobody can write down is not begun, and the answer names what is in the way.
      const created = server.client.createRun({
        ...{ id: 'new', experiment: 'regression', experimentHash: 'hash' },
      });
      await expect(created).rejects.toThrow('downpour:runs is a list, not a hash');
    } finally {
      await server.kill();
    }
  });
});
