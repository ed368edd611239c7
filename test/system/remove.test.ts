import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ServeOptions, serve } from '../../server/main.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { startRedis, type TestRedis } from '../redis-server.ts';
import { copyRun } from '../support/many-runs.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { startServerProcess } from '../support/server-process.ts';
import { useStateFolder } from '../support/state-folder.ts';

/** A run that is removed: nothing of it is left, and a server that dies in the midst leaves the run or nothing that shows. */

const problem = createProblem();
const EXPERIMENT = { experiment: 'regression', experimentHash: 'hash' };
const CONFIG = {
  ...{ minibatchSize: 4, learningRate: 0.01, stepsMax: 8, evaluateEverySteps: 4 },
  ...{ earlyStopping: { enabled: false }, testAtEnd: false },
};

let state: string;
const cleanUps = useStateFolder('remove', (folder) => {
  state = folder;
});

async function start(options: Partial<ServeOptions> = {}) {
  const controller = new AbortController();
  const lines: string[] = [];
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state, localSocket: false, signal: controller.signal },
    log: (line) => lines.push(line),
    ...options,
  });
  const end = async () => {
    controller.abort();
    await serving.closed;
  };
  cleanUps.push(end);
  return { ...serving, lines, end, client: createRestClient({ server: serving.url }) };
}

type Server = Awaited<ReturnType<typeof start>>;

/** A worker of the run, which has its first work. */
async function enter({ url }: Pick<Server, 'url'>, run: string) {
  const worker = await ProtocolWorker.connect(url);
  cleanUps.push(() => worker.terminate());
  worker.hello('hash', run);
  worker.join(await worker.expect('assign'), problem);
  worker.initialise(await worker.expect('initialise'));
  return { worker, work: await worker.expect('work') };
}

/** A finished run. */
async function finish(server: Server, id: string): Promise<void> {
  await server.client.createRun({ id, ...EXPERIMENT, config: CONFIG });
  const { worker, work } = await enter(server, id);
  await worker.work(problem, work);
  worker.terminate();
  await expect.poll(async () => (await server.client.run(id)).checkpoint).not.toBe(null);
}

/** What is to be cleared of removed runs. */
const uncleared = () => readdir(join(state, '.removed'));
const idsOf = async ({ client }: Pick<Server, 'client'>) =>
  (await client.runs()).map(({ id }) => id);
const isUnknown = { code: 'DP_RUN_UNKNOWN' };

describe('a run that has ended', () => {
  test('goes with its files, for good, and its name is free', async () => {
    const server = await start();
    await finish(server, 'a');
    await finish(server, 'b');
    await server.client.removeRun('a');
    expect(await idsOf(server)).toEqual(['b']);
    await expect(server.client.run('a')).rejects.toMatchObject(isUnknown);
    await expect(server.client.removeRun('a')).rejects.toMatchObject(isUnknown);
    expect(existsSync(join(state, 'a'))).toBe(false);
    expect(await uncleared()).toEqual([]);
    await server.client.createRun({ id: 'a', ...EXPERIMENT });
    expect(await server.client.run('a')).toMatchObject({ phase: 'waiting', step: 0 });
    await server.client.removeRun('a');
    await server.end();
    expect(await idsOf(await start())).toEqual(['b']);
  });

  test('stays when its folder cannot be moved', async () => {
    const server = await start();
    await finish(server, 'a');
    await mkdir(join(state, '.removed', 'a', 'in the way'), { recursive: true });
    await expect(server.client.removeRun('a')).rejects.toMatchObject({ code: 'DP_DISK' });
    expect(await server.client.run('a')).toMatchObject({ phase: 'finished' });
    await rm(join(state, '.removed'), { recursive: true });
    await server.client.removeRun('a');
    expect(await idsOf(server)).toEqual([]);
  });
});

describe('a run that is being trained', () => {
  test('is removed by force alone; its worker is told that it is over', async () => {
    const server = await start();
    await server.client.createRun({ id: 'a', ...EXPERIMENT, config: { ...CONFIG, stepsMax: 1e6 } });
    const { worker, work } = await enter(server, 'a');
    const at = await worker.trainTo(problem, work, work.step + 2);
    await expect(server.client.removeRun('a')).rejects.toMatchObject({
      code: 'DP_RUN_UNFINISHED',
      message: expect.stringContaining("run 'a' is in phase 'training' at step"),
    });
    expect(await idsOf(server)).toEqual(['a']);
    await server.client.removeRun('a', true);
    expect(await worker.expect('end')).toMatchObject({ run: 'a', reason: 'removed by a user' });
    // A push that crosses the end on the wire is no fault.
    worker.push(problem, at);
    const other = await ProtocolWorker.connect(server.url);
    other.hello('hash', 'a');
    expect(await other.expect('error')).toMatchObject(isUnknown);
    expect(worker.isOpen).toBe(true);
    expect(existsSync(join(state, 'a'))).toBe(false);
    await server.end();
    expect(await readdir(state)).not.toContain('a');
    expect(await idsOf(await start())).toEqual([]);
  });

  test('with a worker that has not joined yet, too', async () => {
    const server = await start();
    await server.client.createRun({ id: 'a', ...EXPERIMENT });
    const worker = await ProtocolWorker.connect(server.url);
    cleanUps.push(() => worker.terminate());
    worker.hello('hash', 'a');
    const assign = await worker.expect('assign');
    await server.client.removeRun('a');
    worker.join(assign, problem);
    expect(await worker.expect('end')).toMatchObject({ run: 'a' });
    await server.end();
    expect(await readdir(state)).not.toContain('a');
  });
});

test('a server that is killed while runs are removed has each of them, or nothing of it', {
  timeout: 240_000,
}, async () => {
  const first = await start();
  await finish(first, 'seed');
  await first.end();
  const ids = Array.from({ length: 60 }, (_, i) => `copy-${i}`);
  await copyRun(state, 'seed', ids);
  const answered = new Set<string>();
  // Others are under way when it dies.
  for (const more of [1, 5, 10]) {
    const server = await startServerProcess(state, 0);
    const enough = answered.size + more;
    const left = ids.filter((id) => !answered.has(id));
    const removing = left.map((id) =>
      server.client.removeRun(id).then(
        () => {
          answered.add(id);
          if (answered.size === enough) server.child.kill('SIGKILL');
        },
        () => {},
      ),
    );
    await Promise.all([once(server.child, 'exit'), ...removing]);
  }
  const last = await start();
  await expect.poll(async () => (await last.client.status()).runsRead).toBe(null);
  const runs = await last.client.runs();
  for (const { id, phase, step } of runs) {
    expect(answered).not.toContain(id);
    expect({ phase, step }).toEqual({ phase: 'finished', step: CONFIG.stepsMax });
    expect((await last.client.checkpoints(id)).map(({ kind }) => kind)).toContain('final');
  }
  expect(last.lines.filter((line) => line.includes('cannot be'))).toEqual([]);
  await expect.poll(uncleared, { timeout: 20_000 }).toEqual([]);
  const folders = (await readdir(state)).filter((name) => /^(copy|seed)/.test(name));
  expect(folders.sort()).toEqual(runs.map(({ id }) => id).sort());
});

describe('with Redis', () => {
  let redis: TestRedis;
  beforeEach(async () => {
    redis = await startRedis();
  });
  afterEach(() => redis.stop());

  test('its records go too, also after a death in the midst', async () => {
    const options = { redis: redis.url };
    const server = await start(options);
    await finish(server, 'a');
    await finish(server, 'b');
    await server.client.removeRun('a');
    expect(await idsOf(server)).toEqual(['b']);
    await server.end();
    // A server that died between the folder and the record.
    await rename(join(state, 'b'), join(state, '.removed', 'b'));
    const next = await start(options);
    expect(await idsOf(next)).toEqual([]);
    await expect.poll(uncleared, { timeout: 20_000 }).toEqual([]);
    await next.end();
    await rm(join(state, '.removed'), { recursive: true });
    expect(await idsOf(await start(options))).toEqual([]);
  });
});
