import { copyFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openRedisStore } from '../../server/store/redis.ts';
import type { StateStore } from '../../server/store/state-store.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import {
  freePort,
  makeCertificates,
  redisMissing,
  sentinelMissing,
  startRedis,
  startSentinel,
} from '../redis-server.ts';

/** The store over each way to a real Redis: TLS with certificates of both, a user with few rights, sentinels. */

const missing = redisMissing();
const noSentinel = missing ?? sentinelMissing();
const cleanUps: (() => unknown)[] = [];
let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-redis-'));
  cleanUps.push(() => rm(folder, { recursive: true, force: true }));
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

function open(options: Parameters<typeof openRedisStore>[0]): StateStore {
  const store = openRedisStore(options);
  cleanUps.push(() => store.close());
  return store;
}

const run = { id: 'r', experiment: 'e', createdAt: '2026', phase: 'training', config: {} };
const sums = { bytes: 1, sha256: 'ab', layoutHash: 'cd', createdAt: '2026' };
const checkpoint = {
  ...({ version: 1, run: 'r', step: 1, kind: 'last', sequence: 1, file: 'c' } as const),
  ...sums,
};

/** Everything that a server asks of a store. */
async function useAll(store: StateStore): Promise<void> {
  const lease = await store.acquire('a', { ttlMs: 60_000 });
  const { token } = lease;
  await store.putRun(token, run);
  expect(await store.listRuns()).toEqual([run]);
  expect(await store.publishCheckpoint(token, 'r', checkpoint)).toEqual({ moved: true });
  expect(await store.lastCheckpoint('r')).toEqual(checkpoint);
  const best = { step: 1, value: 0.5, checkpoint: 'c' };
  expect(await store.recordBest(token, 'r', best)).toEqual({ kept: true, best });
  await store.putEarlyStopping(token, 'r', { evaluations: 1 });
  await store.forgetCheckpoints(token, 'r', ['c']);
  const shard = { id: 's', host: 'h', port: 1 };
  await store.announceShard('s', shard, 60_000);
  expect(await store.listShards()).toEqual([shard]);
  await store.announceShard('s', null, 0);
  await lease.renew();
  await lease.release();
}

const failureOf = (promise: Promise<unknown>) =>
  promise.then(
    () => null,
    (error: DownpourError) => error,
  );

describe.skipIf(missing !== null)(`a Redis with TLS${missing ?? ''}`, () => {
  test('serves who trusts its authority and has a certificate, nobody else', async () => {
    const { ca, cert, key } = makeCertificates(folder);
    const port = await freePort();
    const files = ['--tls-cert-file', cert, '--tls-key-file', key, '--tls-ca-cert-file', ca];
    const redis = await startRedis({ args: ['--tls-port', String(port), ...files] });
    cleanUps.push(() => redis.stop());
    const url = `rediss://127.0.0.1:${port}`;
    await useAll(open({ url, files: { ca, cert, key } }));

    const timeoutMs = 1000;
    const stranger = await failureOf(open({ url, timeoutMs }).listRuns());
    expect(errorCode(stranger)).toBe('DP_REDIS_UNAVAILABLE');
    expect(stranger?.message).toMatch(/certificate.*--redis-ca/);
    // Redis asks for ours, as it does by default.
    const nameless = await failureOf(open({ url, timeoutMs, files: { ca } }).listRuns());
    expect(errorCode(nameless)).toBe('DP_REDIS_UNAVAILABLE');
  });

  test('takes a renewed certificate without a restart', async () => {
    const { ca, cert, key } = makeCertificates(folder);
    const port = await freePort();
    const files = ['--tls-cert-file', cert, '--tls-key-file', key, '--tls-ca-cert-file', ca];
    const redis = await startRedis({ args: ['--tls-port', String(port), ...files] });
    cleanUps.push(() => redis.stop());
    const others = await mkdtemp(join(folder, 'others-'));
    const stranger = makeCertificates(others);
    const live = { ca, cert: join(others, 'live.pem'), key: join(others, 'live.key') };
    const put = (from: { cert: string; key: string }) =>
      Promise.all([copyFile(from.cert, live.cert), copyFile(from.key, live.key)]);
    await put(stranger);
    const store = open({ url: `rediss://127.0.0.1:${port}`, timeoutMs: 1000, files: live });
    expect(errorCode(await failureOf(store.listRuns()))).toBe('DP_REDIS_UNAVAILABLE');
    await put({ cert, key });
    await expect.poll(() => store.listRuns().catch(errorCode), { timeout: 30_000 }).toEqual([]);
  });

  test('a certificate that cannot be read, or is given without TLS, is told at once', () => {
    const file = join(folder, 'none.pem');
    const opened = () => openRedisStore({ url: 'rediss://localhost', files: { ca: file } });
    expect(opened).toThrow(DownpourError);
    expect(opened).toThrow(/cannot read .*none\.pem/);
    expect(() => openRedisStore({ url: 'redis://localhost', files: { ca: file } })).toThrow(
      /is without TLS/,
    );
  });
});

describe.skipIf(missing !== null)(
  'a user of Redis with no more rights than docs/cluster.md says',
  () => {
    test('is enough for everything', async () => {
      const page = await readFile(new URL('../../docs/cluster.md', import.meta.url), 'utf8');
      const [, command] = /^ {4}ACL SETUSER (.*)$/m.exec(page)!;
      const redis = await startRedis();
      cleanUps.push(() => redis.stop());
      const admin = new Redis(redis.url);
      // A password that an address must write in another way.
      const rules = command!.replace('>secret', '>se/c:r@t%').split(' ');
      await admin.call('ACL', 'SETUSER', ...rules);
      await admin.config('SET', 'requirepass', 'for-the-administrator');
      admin.disconnect();
      const { host } = new URL(redis.url);
      const secret = encodeURIComponent('se/c:r@t%');
      await useAll(open({ url: `redis://downpour:${secret}@${host}` }));
      const other = open({ url: `redis://downpour:${secret}@${host}`, prefix: 'other:' });
      const refused = await failureOf(other.listRuns());
      expect(errorCode(refused)).toBe('DP_REDIS_UNAVAILABLE');
      expect(refused?.message).toMatch(/what they may do/);
      expect(refused?.message).not.toContain(secret);
    });
  },
);

describe.skipIf(noSentinel !== null)(`Redis behind a sentinel${noSentinel ?? ''}`, () => {
  test('is found, and found again when another server has become the master', async () => {
    const master = await startRedis();
    cleanUps.push(() => master.stop());
    const { port } = new URL(master.url);
    const replica = await startRedis({ args: ['--replicaof', `127.0.0.1 ${port}`] });
    cleanUps.push(() => replica.stop());
    const sentinel = await startSentinel('my-master', master);
    cleanUps.push(() => sentinel.stop());
    const dead = await freePort();
    // The first of the sentinels does not answer.
    const url = `redis+sentinel://127.0.0.1:${dead},127.0.0.1:${sentinel.port}/my-master`;
    await useAll(open({ url, prefix: 'first:' }));

    const store = open({ url });
    const lease = await store.acquire('a', { ttlMs: 60_000 });
    await store.putRun(lease.token, run);
    const listener = new Redis(master.url);
    expect(await listener.call('WAIT', '1', '60000')).toBe(1);
    listener.disconnect();
    await master.kill();
    for (;;) {
      const failure = await failureOf(store.putRun(lease.token, { ...run, phase: 'finished' }));
      if (failure === null) break;
      expect(errorCode(failure)).toBe('DP_REDIS_UNAVAILABLE');
    }
    const promoted = new Redis(replica.url);
    expect(await promoted.hget('downpour:runs', 'r')).toContain('finished');
    promoted.disconnect();
    await lease.renew();
    expect(lease.lost.aborted).toBe(false);
  });
});

test.each([
  ['redis://u:p@h:7/2', { place: 'redis://h:7/2', username: 'u', password: 'p', db: 2 }],
  ['redis://:p%40%3A@[::1]', { password: 'p@:', server: { host: '::1', port: 6379 } }],
  ['redis://:a@b@h', { password: 'a@b', place: 'redis://h' }],
  [
    'redis+sentinel://u:p@a,b:7/m/3?sentinelUser=s&sentinelPassword=%26',
    {
      place: 'redis+sentinel://a,b:7/m/3',
      db: 3,
      server: {
        sentinels: [
          { host: 'a', port: 26_379 },
          { host: 'b', port: 7 },
        ],
        name: 'm',
        sentinelUsername: 's',
        sentinelPassword: '&',
      },
    },
  ],
])('the address %s is understood', async (url, parts) => {
  const { parseRedisAddress } = await import('../../server/store/redis-address.ts');
  expect(parseRedisAddress(url)).toMatchObject(parts);
});

test.each([
  'redis://h/x',
  'redis://h/1/2',
  'redis://h:99999',
  'redis://a,b',
  'redis://h?family=6',
  'redis+sentinel://a,b',
  'redis://%zz@h',
])('the address %s is refused, and not shown', async (url) => {
  const { parseRedisAddress } = await import('../../server/store/redis-address.ts');
  expect(() => parseRedisAddress(url)).toThrow(/must look like redis:\/\//);
  expect(() => parseRedisAddress(url)).not.toThrow(url);
});
