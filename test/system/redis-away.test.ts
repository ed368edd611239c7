import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { serve } from '../../server/main.ts';
import { journaled } from '../../server/store/journal.ts';
import { openRedisStore } from '../../server/store/redis.ts';
import type { StateStore } from '../../server/store/state-store.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { errorCode } from '../../shared/errors.ts';
import type { RunDetail } from '../../shared/rest.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { redisMissing, startRedis, type TestRedis } from '../redis-server.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { startProxy } from '../support/proxy.ts';
import { createProblem } from '../support/regression.ts';
import { storedInRedis } from '../support/stored.ts';
import { until } from '../support/until.ts';

/** A real server with a real Redis that goes away, comes back, comes back empty; see docs/decisions/0010. */

const missing = redisMissing();
const problem = createProblem();
/** Time of an owner without a heartbeat: short, so that tests can wait for its end. */
const TTL_MS = 900;
const cleanUps: (() => unknown)[] = [];
let redis: TestRedis;

beforeAll(async () => {
  if (missing === null) redis = await startRedis({ persist: false });
});
afterAll(() => redis?.stop());
beforeEach(async () => {
  if (redis.pid === 0) await redis.restart();
  const client = new Redis(redis.url);
  await client.flushall();
  client.disconnect();
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'downpour-away-'));
  cleanUps.push(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** @param timeoutMs short for those that find it away: they wait so long. */
function open(timeoutMs = 30_000): StateStore {
  const store = openRedisStore({ url: redis.url, timeoutMs });
  cleanUps.push(() => store.close());
  return store;
}

const stored = () => storedInRedis({ url: redis.url });

async function start(state: string, url = redis.url) {
  const controller = new AbortController();
  const lines: string[] = [];
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state, redis: url, ownerTtlMs: TTL_MS, localSocket: false },
    log: (line) => lines.push(line),
    signal: controller.signal,
  });
  // How it ends is looked at where it is awaited.
  const closed = serving.closed.then(
    () => null,
    (error: unknown) => error,
  );
  const stop = async () => {
    controller.abort();
    return closed;
  };
  cleanUps.push(stop);
  const client = createRestClient({ server: serving.url });
  return { url: serving.url, client, closed, stop, log: () => lines.join('\n') };
}
type Server = Awaited<ReturnType<typeof start>>;

async function createRun({ client }: Server, id: string, config: PartialConfig = {}) {
  const often = { minibatchSize: 4, learningRate: 0.05, epochsMax: 3, ...config };
  await client.createRun({
    ...{ id, experiment: 'regression', experimentHash: 'hash', config: often },
  });
}

/** A worker takes the run to its end. */
async function train({ url, client }: Server, id: string): Promise<RunDetail> {
  const worker = await ProtocolWorker.connect(url);
  const end = await worker.work(problem, await worker.enter(problem));
  expect(end.type).toBe('end');
  worker.terminate();
  return client.run(id);
}

/** Asks until it holds; a store that is away is asked again. */
const files = async (state: string, id: string) =>
  (await readdir(join(state, id, 'checkpoints'))).sort();

describe.skipIf(missing !== null)(`Redis away${missing ?? ''}`, () => {
  test('for longer than a lease: runs begin, train and end, and Redis has all of it afterwards', async () => {
    const state = await folder();
    const server = await start(state);
    await createRun(server, 'first');
    await redis.kill();
    const away = performance.now();
    const first = await train(server, 'first');
    expect(first).toMatchObject({ phase: 'finished', step: 15, examples: 60 });
    await createRun(server, 'second');
    await until('the lease has run out', async () => performance.now() - away > 2 * TTL_MS);
    expect((await train(server, 'second')).phase).toBe('finished');
    await until('the end waits as well', async () => {
      const { stateStoreAway } = await server.client.status();
      return (stateStoreAway?.records ?? 0) >= 10;
    });
    expect(server.log()).toMatch(/training continues, and records wait in/);

    await redis.restart();
    const store = open();
    for (const id of ['first', 'second']) {
      await until(`Redis knows the end of ${id}`, async () => {
        const last = await store.lastCheckpoint(id);
        return (await stored().run(id))?.phase === 'finished' && last?.kind === 'final';
      });
      const run = await server.client.run(id);
      expect((await stored().best(id))?.value).toBe(run.best?.loss);
      const names = (await stored().checkpoints(id)).map(({ file }) => file);
      const onDisk = (await files(state, id)).filter((name) => name.endsWith('.safetensors'));
      expect(names.toSorted()).toEqual(onDisk);
    }
    await until(
      'nothing waits',
      async () => (await server.client.status()).stateStoreAway === null,
    );
    expect((await readdir(state)).filter((name) => name.startsWith('journal'))).toEqual([]);
    expect(await server.stop()).toBeNull();
  });

  test('when the server is killed meanwhile: what waited is written by its next life', async () => {
    const state = await folder();
    // As killed: its lease stays, and so does what waits.
    const id = redis.url;
    const store = journaled(open(1_000), { folder: state, id, log: () => {} });
    const { token } = await store.acquire('a', { ttlMs: 60_000 });
    const config = (await import('../../shared/config.ts')).resolveConfig({ epochsMax: 3 });
    await redis.kill();
    const record = { experiment: 'regression', experimentHash: 'hash', createdAt: '2026' };
    await store.putRun(token, { id: 'r', ...record, phase: 'waiting', config });
    expect(store.away?.records).toBe(1);
    await store.close();
    await redis.restart();
    const server = await start(state);
    expect((await server.client.runs()).map((run) => run.id)).toEqual(['r']);
    expect(await stored().run('r')).toMatchObject({ phase: 'waiting' });
  });

  test.each([
    { shared: false, how: 'from Redis, when it is reached again' },
    { shared: true, how: 'from the state folder that both use' },
  ])('for this server only, and another takes over: it learns $how', async ({ shared }) => {
    const state = await folder();
    const way = await startProxy(Number(new URL(redis.url).port));
    cleanUps.push(() => way.close());
    const old = await start(state, `redis://127.0.0.1:${way.port}`);
    await createRun(old, 'r', { checkpoint: { everySteps: 2 }, epochsMax: 100 });
    const worker = await ProtocolWorker.connect(old.url);
    worker.push(problem, await worker.enter(problem));
    const work = await worker.expect('work');
    await until('Redis knows of the training', async () => {
      return (await stored().run('r'))?.phase === 'training';
    });
    way.refusing = true;
    way.cut();

    // The other one: a store as a server has it, that waits until the lease has run out.
    const place = shared ? state : await folder();
    const log = () => {};
    const id = `redis://127.0.0.1:${way.port}`;
    const other = journaled(openRedisStore({ url: redis.url }), { folder: place, id, log });
    cleanUps.push(() => other.close());
    const taken = await other.acquire('other', { ttlMs: 60_000, waitMs: 60_000 });
    const record = (await stored().run('r'))!;
    await other.putRun(taken.token, { ...record, phase: 'stopped' });
    const best = { step: 1, value: -1, checkpoint: 'of-the-other' };
    await other.recordBest(taken.token, 'r', best);

    if (!shared) {
      // It still answers: what it does is seen by nobody but its workers.
      const { leases, step, generation } = work;
      worker.push(problem, { ...work, leases: leases.slice(0), step, generation });
      await worker.expect('work');
      way.refusing = false;
    }
    const error = await old.closed;
    expect(errorCode(error)).toBe('DP_STATE_FENCED');
    if (!shared) expect(old.log()).toMatch(/run r: .* are lost: another server has the run/);
    const after = await files(state, 'r');
    // Nothing of it reached the registry or, when they share it, the folder, after the other came.
    expect(await stored().run('r')).toMatchObject({ phase: 'stopped' });
    expect(await stored().best('r')).toEqual(best);
    await taken.renew();
    const listed = (await stored().checkpoints('r')).map(({ file }) => file);
    if (shared) {
      expect(after.filter((name) => name.endsWith('.safetensors')).toSorted()).toEqual(
        listed.toSorted(),
      );
    }
    worker.terminate();
  });

  test('and a second server is started: it does not get in before Redis is back, nor after', async () => {
    const state = await folder();
    const server = await start(state);
    await redis.kill();
    const other = open(1_000);
    const early = other.acquire('b', { ttlMs: 60_000 });
    expect(errorCode(await early.catch((e) => e))).toBe('DP_REDIS_UNAVAILABLE');
    await redis.restart();
    // Empty as it is, the owner takes its lease up in it.
    await until('the owner is known', async () => {
      const client = new Redis(redis.url);
      const owner = await client.exists('downpour:owner');
      client.disconnect();
      return owner === 1;
    });
    const late = open().acquire('b', { ttlMs: 60_000 });
    expect(errorCode(await late.catch((e) => e))).toBe('DP_STATE_LOCKED');
    expect(await server.stop()).toBeNull();
  });
});

describe.skipIf(missing !== null)(`Redis comes back empty${missing ?? ''}`, () => {
  test('under a server: all runs, checkpoints and bests are entered again', async () => {
    const state = await folder();
    const server = await start(state);
    await createRun(server, 'done');
    await train(server, 'done');
    await createRun(server, 'waiting');
    const store = open();
    // The record is what is written last.
    await until('the end is known', async () => {
      const last = await store.lastCheckpoint('done');
      return last?.kind === 'final' && (await stored().run('done'))?.phase === 'finished';
    });
    const before = {
      runs: await store.listRuns(),
      checkpoints: await stored().checkpoints('done'),
      last: await store.lastCheckpoint('done'),
      best: await stored().best('done'),
      stopping: await stored().earlyStopping('done'),
    };
    await redis.kill();
    await redis.restart();
    await until('all of it is back', async () => {
      expect({
        runs: await store.listRuns(),
        checkpoints: await stored().checkpoints('done'),
        last: await store.lastCheckpoint('done'),
        best: await stored().best('done'),
        stopping: await stored().earlyStopping('done'),
      }).toEqual(before);
      return true;
    });
    expect(server.log()).toContain('the registry came back empty or old');
    expect(await server.stop()).toBeNull();
  });

  test('before a server starts: the runs are rebuilt from their checkpoints', async () => {
    const state = await folder();
    const server = await start(state);
    await createRun(server, 'r');
    const trained = await train(server, 'r');
    expect(await server.stop()).toBeNull();
    await redis.kill();
    await redis.restart();
    const again = await start(state);
    const run = await again.client.run('r');
    expect(run).toMatchObject({ phase: 'finished', step: trained.step, config: trained.config });
    expect(run.test).toEqual(trained.test);
    const store = open();
    await until('the registry is full again', async () => {
      expect((await stored().best('r'))?.value).toBe(trained.best?.loss);
      expect((await store.listRuns()).map(({ id }) => id)).toEqual(['r']);
      expect(await store.lastCheckpoint('r')).toMatchObject({ kind: 'final', step: trained.step });
      return true;
    });
  });
});
