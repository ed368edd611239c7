import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest';
import { sha256Of } from '../../files/atomic-file.ts';
import { checkpointFolder, newestValidCheckpoint } from '../../files/checkpoint.ts';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { STATE_PREFIX } from '../../shared/layout.ts';
import type { Health, RunDetail } from '../../shared/rest.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { runWorker, type WorkerResult } from '../../worker/main.ts';
import { startProxy } from '../support/proxy.ts';
import { shardHere } from '../support/shard-server.ts';
import { until as untilTrue } from '../support/until.ts';

/** Real servers, shards in threads and processes, and real workers: they meet on the wire. */

const ROOT = join(import.meta.dirname, '..', '..');
const PROGRAM = inject('program');
const EXAMPLES = join(ROOT, 'examples');
const LONG_MS = 180_000;
const FEW: PartialConfig = {
  minibatchSize: 32,
  stepsMax: 30,
  evaluateEverySteps: 15,
  earlyStopping: { enabled: false },
  hyperparameters: {},
};

let engine: Engine;
beforeAll(async () => {
  engine = await openEngine({ engine: 'wasm' });
});

let folder: string;
const ends: (() => Promise<unknown>)[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-shards-'));
});
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
  await rm(folder, { recursive: true, force: true });
});

const lines: string[] = [];
const log = (line: string) => lines.push(line);
beforeEach(() => {
  lines.length = 0;
});

async function start(state: string, options: Partial<ServeOptions> = {}) {
  const stop = new AbortController();
  const serving: Serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state: join(folder, state), signal: stop.signal, log },
    ...options,
  });
  let ended = false;
  const end = async () => {
    if (ended) return;
    ended = true;
    stop.abort();
    await serving.closed;
  };
  ends.push(end);
  return { url: serving.url, client: createRestClient({ server: serving.url }), end };
}

function work(
  url: string,
  run: string,
  name = 'one',
  more: { readonly reachesShards?: boolean } = {},
) {
  const stop = new AbortController();
  const done: Promise<WorkerResult> = runWorker({
    ...{ server: url.replace('http', 'ws'), run, name, engine, folders: [EXAMPLES] },
    ...{ dataFolder: folder, once: true, signal: stop.signal },
    log: (line) => log(`${name}: ${line}`),
    ...more,
  });
  done.catch(() => {});
  ends.push(async () => {
    stop.abort();
    await done.catch(() => {});
  });
  return done;
}

async function create(
  client: ReturnType<typeof createRestClient>,
  id: string,
  config: PartialConfig,
) {
  const experiment = 'mnist-mlp';
  const experimentHash = await hashExperiment(join(EXAMPLES, 'mnist-mlp.ts'));
  await client.createRun({ id, experiment, experimentHash, config });
}

const until = <T>(what: string, look: () => Promise<T | null | undefined | false>): Promise<T> =>
  untilTrue(what, look, {
    withinMs: LONG_MS,
    everyMs: 20,
    logs: () => lines.slice(-40).join('\n'),
  });

async function lastCheckpoint(state: string, run: string) {
  const kinds = ['final' as const];
  const found = await until('the final checkpoint is written', () =>
    newestValidCheckpoint(checkpointFolder(join(folder, state), run), { kinds }),
  );
  return found.tensors.map(({ name, values }) => ({ name, values }));
}

/** The same, as checksums: to compare so many numbers one by one takes a second. */
async function lastSums(state: string, run: string) {
  const tensors = await lastCheckpoint(state, run);
  return tensors.map(({ name, values }) => ({ name, sha256: sha256Of(bytesOf(values)) }));
}

/** `downpour shard` */
async function startShard(state: string): Promise<{ child: ChildProcess; url: string }> {
  const args = [PROGRAM, 'shard', '--state', join(folder, state), '--json'];
  const child = spawn(process.execPath, args, {
    env: { ...process.env, DOWNPOUR_REDIS_URL: '', DOWNPOUR_TOKEN: '' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  createInterface({ input: child.stderr! }).on('line', (line) => log(`shard: ${line}`));
  ends.push(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGTERM');
    await once(child, 'exit');
  });
  for await (const line of createInterface({ input: child.stdout! })) {
    return { child, url: (JSON.parse(line) as { url: string }).url };
  }
  throw new Error(`the shard did not start\n${lines.join('\n')}`);
}

const EXAMPLES_AN_EPOCH = 6_400;

/**
 * With one worker and plain SGD, each element of the parameters is what plain training makes of it: after the last step if
 * its fragment was exchanged then, after the one before if the other was.
 */
async function exchangesByFragments(
  one: Awaited<ReturnType<typeof start>>,
  several: Awaited<ReturnType<typeof start>>,
): Promise<void> {
  const STEPS = 6;
  const plain = (stepsMax: number): PartialConfig => ({
    ...{ ...FEW, stepsMax, evaluateEverySteps: stepsMax, averaging: { kind: 'none' } },
    ...{ optimizer: { kind: 'sgd' }, learningRate: 0.05 },
  });
  await create(several.client, 'f', { ...plain(STEPS), local: { steps: 2, fragments: 2 } });
  await work(several.url, 'f');
  expect(await several.client.run('f')).toMatchObject({ phase: 'finished', step: STEPS });
  const ends: Map<string, Float32Array>[] = [];
  for (const steps of [STEPS, STEPS - 1]) {
    await create(one.client, `p${steps}`, plain(steps));
    await work(one.url, `p${steps}`);
    const tensors = await lastCheckpoint('one', `p${steps}`);
    ends.push(new Map(tensors.map(({ name, values }) => [name, values])));
  }
  let [late, early, other] = [0, 0, 0];
  for (const { name, values } of await lastCheckpoint('several', 'f')) {
    if (name.startsWith(STATE_PREFIX)) continue;
    const [after, before] = ends.map((tensors) => tensors.get(name)!);
    for (const [i, value] of values.entries()) {
      // A delta is rounded once more than a gradient.
      const is = (wanted: number) => Math.abs(value - wanted) < 1e-6;
      if (after![i] === before![i] && is(after![i]!)) continue;
      if (is(after![i]!)) late++;
      else if (is(before![i]!)) early++;
      else other++;
    }
  }
  expect(other).toBe(0);
  // Pixels that are never lit do not move at all; of the others each fragment has about half.
  expect(late / early).toBeGreaterThan(0.5);
  expect(late / early).toBeLessThan(2);
}

describe('a server with shards', { timeout: 2 * LONG_MS }, () => {
  test('in threads trains the same parameters as one without, to the bit', async () => {
    const one = await start('one');
    await create(one.client, 'a', FEW);
    await work(one.url, 'a');
    const several = await start('several', { shards: 3 });
    await create(several.client, 'a', FEW);
    const alone = work(several.url, 'a', 'page', { reachesShards: false });
    await expect(alone).rejects.toMatchObject({ code: 'DP_SHARD_LOST' });
    await work(several.url, 'a');
    expect(await lastSums('several', 'a')).toEqual(await lastSums('one', 'a'));
    const [first, second] = await Promise.all([one.client.run('a'), several.client.run('a')]);
    expect(second.test).toMatchObject({ loss: first.test!.loss, error: first.test!.error });
    await exchangesByFragments(one, several);
    // A run that is removed goes from the shards too, and its name is free.
    const ports = [
      ...lines.find((line) => line.startsWith('3 shards'))!.matchAll(/127\.0\.0\.1:(\d+)/g),
    ];
    const held = async (port: string | undefined) => {
      const health = await fetch(`http://127.0.0.1:${port}/health`);
      return ((await health.json()) as { runs: number }).runs;
    };
    const heldByAll = () => Promise.all(ports.map(([, port]) => held(port)));
    expect(await heldByAll()).toEqual([2, 2]);
    for (const run of ['a', 'f']) await several.client.removeRun(run);
    await until('the shards have let go of both', async () => String(await heldByAll()) === '0,0');
    await create(several.client, 'a', { ...FEW, stepsMax: 3 });
    await work(several.url, 'a');
    expect(await several.client.run('a')).toMatchObject({ phase: 'finished', step: 3 });
    expect(await heldByAll()).toEqual([1, 1]);
    expect(lines.filter((line) => line.includes('defect'))).toEqual([]);
  });

  test('with a token lets nobody into a shard without it', async () => {
    const server = await start('guarded', { shards: 2, token: 'secret' });
    const { port } = new URL(/ws:\/\/\S+/.exec(lines.join('\n'))![0]);
    const address = `http://127.0.0.1:${port}`;
    const upgrade = { connection: 'upgrade', upgrade: 'websocket' };
    expect((await fetch(`${address}/health`)).status).toBe(200);
    expect((await fetch(`${address}/status`)).status).toBe(404);
    const socket = connect(Number(port), '127.0.0.1');
    socket.write(
      `GET /control HTTP/1.1\r\nhost: x\r\n${Object.entries(upgrade)
        .map(([name, value]) => `${name}: ${value}\r\n`)
        .join('')}\r\n`,
    );
    const [answer] = (await once(socket, 'data')) as [Buffer];
    expect(String(answer)).toContain('DP_UNAUTHORIZED');
    socket.destroy();
    await server.end();
  });

  test('in processes outlives the death of one: all goes on from the last checkpoint', async () => {
    const shards = [await startShard('found'), await startShard('found')];
    const server = await start('found', { shards: 3, shardsFrom: 'store' });
    const config = { minibatchSize: 16, epochsMax: 1, checkpoint: { everySeconds: 0.3 } };
    await create(server.client, 'b', { ...config, earlyStopping: { enabled: false } });
    const workers = [work(server.url, 'b'), work(server.url, 'b', 'two')];
    const before = await until('a checkpoint is written', async () => {
      const { checkpoint, step } = await server.client.run('b');
      return checkpoint !== null && checkpoint.step > 10 && step > checkpoint.step && checkpoint;
    });
    shards[0]!.child.kill('SIGKILL');
    await once(shards[0]!.child, 'exit');
    await until('the server has noticed', async () =>
      lines.some((line) => line.includes('all runs go back to their last checkpoints')),
    );
    await startShard('found');
    await Promise.all(workers);
    const run: RunDetail = await server.client.run('b');
    expect(run).toMatchObject({ phase: 'finished', reason: 'reached epochsMax 1' });
    // Each minibatch once, though what came after the checkpoint was computed again.
    expect(run.step).toBe(EXAMPLES_AN_EPOCH / 16);
    expect(run.examples).toBe(EXAMPLES_AN_EPOCH);
    expect(run.step).toBeGreaterThan(before.step);
    expect(run.test!.error).toBeLessThan(0.25);
    expect((await lastCheckpoint('found', 'b')).length).toBe(4);
  });

  describe('one that is silent', () => {
    const config: PartialConfig = {
      ...{ minibatchSize: 16, epochsMax: 1, checkpoint: { everySeconds: 0.3 } },
      earlyStopping: { enabled: false },
    };
    /** A run under way, with a checkpoint, and its shards. */
    async function train(state: string, shards: number) {
      const children: ChildProcess[] = [];
      for (let i = 1; i < shards; i++) children.push((await startShard(state)).child);
      const server = await start(state, { shards, shardsFrom: 'store', shardTimeoutMs: 2_000 });
      await create(server.client, 'b', config);
      const workers = [work(server.url, 'b'), work(server.url, 'b', 'two')];
      await until('a checkpoint is written', async () => {
        const { checkpoint, step } = await server.client.run('b');
        return checkpoint !== null && checkpoint.step > 10 && step > checkpoint.step;
      });
      return { ...server, children, workers };
    }
    function silence(child: ChildProcess): void {
      ends.push(async () => child.kill('SIGCONT'));
      child.kill('SIGSTOP');
    }
    const health = async (url: string) => (await (await fetch(`${url}/health`)).json()) as Health;
    async function mustEndWell({ client, workers }: Awaited<ReturnType<typeof train>>) {
      await Promise.all(workers);
      const run = await client.run('b');
      expect(run).toMatchObject({ phase: 'finished', reason: 'reached epochsMax 1' });
      // Each minibatch once.
      expect(run).toMatchObject({ step: EXAMPLES_AN_EPOCH / 16, examples: EXAMPLES_AN_EPOCH });
      expect(run.test!.error).toBeLessThan(0.25);
      expect(lines.filter((line) => line.includes('defect'))).toEqual([]);
    }

    test('is noticed and named, nobody waits without end, and it is taken in again', async () => {
      const server = await train('silent', 2);
      expect(await health(server.url)).toMatchObject({ status: 'ok', problem: null });
      const [child] = server.children;
      silence(child!);
      // It is asked of a shard that is not known to be silent yet.
      await expect(server.client.checkpoint('b')).rejects.toMatchObject({ code: 'DP_SHARD_LOST' });
      const { status, problem } = await health(server.url);
      expect({ status, problem }).toEqual({
        status: 'degraded',
        problem: expect.stringMatching(/shard 1 of 2 is lost/),
      });
      const { alerts, shards, runs } = await server.client.status();
      expect(alerts[0]).toMatchObject({ severity: 'critical' });
      expect(alerts[0]!.text).toMatch(/shard 1 at ws:.*no message from it for 2 s.*all runs wait/);
      expect(shards).toMatchObject({ count: 2, whole: false, lost: { index: 1 } });
      expect(runs.map(({ id }) => id)).toEqual(['b']);
      await expect(server.client.run('b')).rejects.toMatchObject({ code: 'DP_SHARD_LOST' });
      child!.kill('SIGCONT');
      await mustEndWell(server);
      expect(await health(server.url)).toMatchObject({ status: 'ok', problem: null });
    });

    test('is replaced by another one, and when it wakes up nothing counts twice', async () => {
      const server = await train('spare', 3);
      await startShard('spare');
      const [child] = server.children;
      silence(child!);
      await until('the run goes on', async () => {
        const { step, checkpoint } = await server.client.run('b');
        return lines.some((line) => line.includes('continues from')) && step > checkpoint!.step;
      });
      child!.kill('SIGCONT');
      await mustEndWell(server);
    });

    test('does not keep the server from stopping, which says what is not written', async () => {
      const server = await train('stops', 2);
      silence(server.children[0]!);
      await server.end();
      const said = lines.find((line) => line.includes('is not written'));
      expect(said).toMatch(/run b: .*DP_SHARD_LOST.*goes back from step \d+ to step \d+/);
    });

    test('that the server waits for does not keep it from stopping either', async () => {
      const server = await train('waits', 2);
      silence(server.children[0]!);
      await until('it waits', async () => (await health(server.url)).status === 'degraded');
      await server.end();
    });
  });

  test('and its runs go on on one without', async () => {
    const several = await start('moved', { shards: 4 });
    await create(several.client, 'c', { ...FEW, stepsMax: 120, optimizer: { kind: 'adam' } });
    const first = work(several.url, 'c');
    await until('some steps are done', async () => (await several.client.run('c')).step > 20);
    await several.end();
    const alone = await start('moved', { port: Number(new URL(several.url).port) });
    await first;
    const run = await alone.client.run('c');
    expect(run).toMatchObject({ phase: 'finished', step: 120 });
    expect(run.examples).toBe(120 * 32);
  });

  test('a worker whose connection to one shard is cut comes back, and no push counts twice', async () => {
    const proxy = await startCutShard('cut');
    const server = await start('cut', { shards: 2, shardsFrom: 'store' });
    await create(server.client, 'd', { ...FEW, stepsMax: 150, evaluateEverySteps: 150 });
    const workers = [work(server.url, 'd'), work(server.url, 'd', 'two')];
    for (const step of [20, 50, 80]) {
      await until(`step ${step}`, async () => (await server.client.run('d')).step >= step);
      proxy.cut(({ worker }) => worker);
    }
    await Promise.all(workers);
    const run = await server.client.run('d');
    expect(run).toMatchObject({ phase: 'finished', step: 150, examples: 150 * 32 });
    expect(run.pushes.applied + run.pushes.damped).toBe(150);
    expect(lines.filter((line) => line.includes('DP_SHARD_LOST')).length).toBeGreaterThan(0);
    expect(lines.filter((line) => line.includes('defect'))).toEqual([]);
  });
});

/** A shard behind a proxy, which can cut what workers have there. */
async function startCutShard(state: string) {
  const shard = await shardHere(log);
  const proxy = await startProxy(shard.port);
  const { port } = proxy;
  const store = openFileStore({ folder: join(folder, state) });
  await store.announceShard('cut', { id: 'cut', host: '127.0.0.1', port }, 10 * LONG_MS);
  ends.push(async () => {
    await shard.stop();
    await proxy.close();
    await store.close();
  });
  return proxy;
}
