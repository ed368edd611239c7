import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { serve } from '../../server/main.ts';
import { freePort, redisMissing, startRedis, type TestRedis } from '../redis-server.ts';
import { ClientWorker } from '../support/client-worker.ts';
import { createProblem } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';
import { until } from '../support/until.ts';

/** `serve --peer`: two servers as an orchestrator runs them, each started again by the same command. */

const missing = redisMissing();
const cleanUps: (() => unknown)[] = [];
let redis: TestRedis;
let root: string;
let ports: Record<Name, number>;
type Name = 'a' | 'b';

beforeAll(async () => {
  if (missing === null) redis = await startRedis({ persist: false });
});
afterAll(() => redis?.stop());
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'downpour-pair-'));
  cleanUps.push(() => rm(root, { recursive: true, force: true }));
  ports = { a: await freePort(), b: await freePort() };
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(name: Name): Promise<ServerProcess> {
  const peer = `http://127.0.0.1:${ports[name === 'a' ? 'b' : 'a']}`;
  const more = ['--redis-url', redis.url, '--lease-seconds', '5', '--peer', peer];
  const server = await startServerProcess(join(root, name), ports[name], more);
  cleanUps.push(() => server.kill());
  return server;
}

const serves = async ({ client }: ServerProcess) => (await client.health()).status === 'ok';
const isFollowed = (server: ServerProcess) =>
  until('it is followed', async () => {
    return (await server.client.status()).standby?.state === 'following';
  });
const stepOf = async ({ client }: ServerProcess) => (await client.run('r')).step;

describe.skipIf(missing !== null)(`a pair of servers${missing ?? ''}`, () => {
  test('each that is killed follows when it is back, and nothing acknowledged is lost', async () => {
    const both = { a: await start('a'), b: await start('b') };
    await isFollowed(both.a);
    expect(await serves(both.b)).toBe(false);
    // It is not away.
    const metrics = await fetch(`${both.b.url}/metrics`);
    expect([metrics.status, await metrics.text()]).toEqual([
      200,
      expect.stringMatching(/^downpour_standing_by 1$/m),
    ]);
    await both.a.client.createRun({
      ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
      config: {
        ...{ minibatchSize: 4, learningRate: 0.01, epochsMax: 100_000 },
        ...{ checkpoint: { everySeconds: 1e6 }, earlyStopping: { enabled: false } },
      },
    });
    const addresses = `${both.a.url},${both.b.url}`;
    const worker = new ClientWorker(addresses, 'w', createProblem());
    cleanUps.push(() => worker.stop());
    for (const [victim, heir] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      const before = await stepOf(both[victim]);
      await until('it learns', async () => (await stepOf(both[victim])) > before + 50);
      const step = await stepOf(both[victim]);
      await both[victim].kill();
      // At once, as orchestrators do, by the same command.
      both[victim] = await start(victim);
      await until('the other serves', () => serves(both[heir]));
      expect(await stepOf(both[heir])).toBeGreaterThanOrEqual(step);
      await isFollowed(both[heir]);
    }
    const { stepsLost } = await both.a.client.run('r');
    expect(stepsLost).toBe(0);

    // Both are gone; the one that was the standby has the older state, and comes first.
    await both.b.kill();
    const last = await stepOf(both.a);
    both.a.child.kill('SIGTERM');
    expect(await both.a.closed).toBe(0);
    both.b = await start('b');
    expect(await serves(both.b)).toBe(false);
    both.a = await start('a');
    await isFollowed(both.a);
    expect(await stepOf(both.a)).toBeGreaterThanOrEqual(last);
    expect(await serves(both.b)).toBe(false);
  });
});

test('what cannot be a pair is refused with what to do', async () => {
  const peer = 'http://127.0.0.1:1';
  const common = { host: '127.0.0.1', port: 0, state: root, signal: AbortSignal.abort() };
  await expect(serve({ ...common, peer })).rejects.toThrow(/add --redis-url/);
  const redisAt = { ...common, peer, redis: 'redis://127.0.0.1:1' };
  await expect(serve({ ...redisAt, standbyOf: peer })).rejects.toThrow(/choose one of them/);
  await expect(serve({ ...redisAt, shards: 2 })).rejects.toThrow(/--peer and --shards 2/);
});
