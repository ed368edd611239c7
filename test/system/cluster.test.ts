import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openRedisStore } from '../../server/store/redis.ts';
import type { StateStore } from '../../server/store/state-store.ts';
import type { RunDetail, WorkerSummary } from '../../shared/rest.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { enginesFolder } from '../../worker/engine-folder.ts';
import { freePort, redisMissing, startRedis, type TestRedis } from '../redis-server.ts';
import { buildImage, type Compose, type Image, readCompose } from '../support/deployment.ts';
import { storedInRedis } from '../support/stored.ts';
import { until as untilTrue } from '../support/until.ts';

// `docker compose up --scale worker=2` without an engine of containers: the commands, the environment
// and the files of docker-compose.yml and deploy/Dockerfile, as processes, with a real Redis. With a real engine:
// test/containers.

const missing = redisMissing();
const TOKEN = 'a-secret-of-this-test';
/** How long anything may take on a slow, busy machine; what comes sooner is not waited for. */
const LONG_MS = 300_000;

let folder: string;
let redis: TestRedis;
let store: StateStore;
let compose: Compose;
let image: Image;
let port: number;
let client: RestClient;
const containers = new Set<Container>();

interface Container {
  readonly child: ChildProcess;
  /** Exit code, or the signal that ended it. */
  readonly end: Promise<number | NodeJS.Signals>;
  log(): string;
}

/** A value of the composition as it is outside of containers: addresses and folders of this test. */
function outside(text: string): string {
  return text
    .replaceAll('redis://redis:6379', redis.url)
    .replaceAll('server:7420', `127.0.0.1:${port}`)
    .replaceAll('0.0.0.0', '127.0.0.1')
    .replaceAll('7420', String(port))
    .replace(/^\/(state|data)$/, join(folder, '$1'));
}

function environment(service: string): NodeJS.ProcessEnv {
  const inside = { ...image.env, ...compose.services[service]!.environment };
  return {
    ...Object.fromEntries(Object.entries(inside).map(([name, value]) => [name, outside(value)])),
    PATH: process.env.PATH,
    HOME: folder,
    // The image brings its own; here it is this machine's.
    DOWNPOUR_ENGINE_DIR: enginesFolder(),
  };
}

/** `docker compose up <service>`, or with a command `docker compose exec <service> <command>`. */
function start(service: string, command = compose.services[service]!.command): Container {
  const [program, ...first] = image.program;
  const child = spawn(program!, [...first, ...command], {
    cwd: image.app,
    env: environment(service),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => lines.push(line));
  }
  const end = new Promise<number | NodeJS.Signals>((done) => {
    child.on('close', (code, signal) => {
      containers.delete(container);
      done(code ?? signal!);
    });
  });
  const container = { child, end, log: () => `${service}:\n${lines.slice(-40).join('\n')}` };
  containers.add(container);
  return container;
}

/** What a command printed, after it has ended well. */
async function execute(service: string, ...command: string[]): Promise<string> {
  const container = start(service, command);
  expect(await container.end, container.log()).toBe(0);
  return container.log();
}

const until = <T>(what: string, look: () => Promise<T | null | undefined | false>): Promise<T> =>
  untilTrue(what, look, {
    withinMs: LONG_MS,
    logs: () => [...containers].map((container) => container.log()).join('\n\n'),
  });

/** The health check of docker-compose.yml. */
async function isHealthy(service: string): Promise<boolean> {
  const [kind, ...command] = compose.services[service]!.healthcheck!.test;
  expect(kind).toBe('CMD');
  const [program, ...args] = command.map(outside);
  const child = spawn(program!, args, { env: environment(service), stdio: 'ignore' });
  return new Promise((done) => child.on('close', (code) => done(code === 0)));
}

/** Starts a run as docs/cluster.md says, from within the server's container. */
async function train(run: string, ...more: string[]): Promise<void> {
  const steady = ['--set', 'earlyStopping.enabled=false', '--minibatch-size', '16'];
  const where = ['train', 'examples/mnist-mlp.ts', '--workers', '0', '--detach', '--run', run];
  await execute('server', ...where, ...steady, ...more);
}

const atStep = (run: string, step: number) =>
  until(`${run} is at step ${step}`, async () => (await client.run(run)).step >= step);

const finished = (run: string): Promise<RunDetail> =>
  until(`${run} is over`, async () => {
    const detail = await client.run(run);
    return ['finished', 'failed', 'stopped'].includes(detail.phase) && detail;
  });

function expectEachExampleOnceAnEpoch(run: RunDetail, epochs: number): void {
  expect(run).toMatchObject({ phase: 'finished', reason: `reached epochsMax ${epochs}` });
  expect(run.examples).toBe(epochs * run.data!.trainCount);
  expect(run.step).toBe(epochs * Math.ceil(run.data!.trainCount / 16));
}

const ofProcess = (container: Container) => (worker: WorkerSummary) =>
  worker.worker.endsWith(`-${container.child.pid}`);

describe.skipIf(missing)(
  `a cluster as docker-compose.yml makes it${missing ?? ''}`,
  { timeout: 2 * LONG_MS },
  () => {
    let server: Container;
    let workers: Container[];

    beforeAll(async () => {
      folder = mkdtempSync(join(tmpdir(), 'downpour-cluster-'));
      mkdirSync(join(folder, 'data'));
      compose = readCompose({ DOWNPOUR_TOKEN: TOKEN });
      image = buildImage('cpu', join(folder, 'app'));
      const [program, ...args] = compose.services.redis!.command;
      expect(program).toBe('redis-server');
      redis = await startRedis({ args });
      store = openRedisStore({ url: redis.url });
      port = await freePort();
      client = createRestClient({ server: `http://127.0.0.1:${port}`, token: TOKEN });
    });
    afterAll(async () => {
      const left = [...containers];
      for (const { child } of left) child.kill('SIGKILL');
      await Promise.all(left.map(({ end }) => end));
      await store?.close();
      await redis?.stop();
      rmSync(folder, { recursive: true, force: true });
    });

    test('the server gets healthy, and its workers wait for a run', async () => {
      server = start('server');
      await until('the server is healthy', () => isHealthy('server'));
      workers = [start('worker'), start('worker')];
      await until('both workers are there', async () => {
        const { workers: seen } = await client.status();
        return seen.filter(({ state }) => state === 'idle').length === 2;
      });
      expect(await execute('server', 'status')).toContain('state in redis');
      const stranger = await fetch(`http://127.0.0.1:${port}/status`);
      expect(stranger.status).toBe(401);
    });

    test('a run finishes though a worker is killed, and one that comes later takes part', async () => {
      await train('digits', '--epochs', '6');
      await atStep('digits', 30);
      const victim = workers.shift()!;
      victim.child.kill('SIGKILL');
      expect(await victim.end).toBe('SIGKILL');
      await atStep('digits', (await client.run('digits')).step + 30);
      // It takes as long to start as the run does: so long the run stands still.
      await client.stop('digits');
      const late = start('worker');
      workers.push(late);
      await until('the late worker is there', async () => {
        return (await client.status()).workers.find(ofProcess(late))?.state === 'idle';
      });
      await client.resume('digits');
      await until('the late worker has trained', async () => {
        const seen = (await client.workers('digits')).find(ofProcess(late));
        return seen!.pushes.applied > 0;
      });
      const run = await finished('digits');
      expectEachExampleOnceAnEpoch(run, 6);
      expect(run.test!.error).toBeLessThan(0.15);

      // It is told of the end a moment later than those who ask.
      await until('the late worker waits', async () => {
        return (await client.status()).workers.find(ofProcess(late))!.state === 'idle';
      });
      const { workers: seen } = await client.status();
      expect(seen.find(ofProcess(victim))).toMatchObject({ state: 'gone', run: 'digits' });
      await until('the registry knows of the end', async () => {
        return (await storedInRedis({ url: redis.url }).run('digits'))?.phase === 'finished';
      });
      const last = await until('the final checkpoint is the last', async () => {
        const published = await store.lastCheckpoint('digits');
        return published?.kind === 'final' && published;
      });
      expect(last.step).toBe(run.step);
      const volume = outside(compose.services.server!.environment!.DOWNPOUR_STATE!);
      expect(existsSync(join(volume, 'digits/checkpoints', last.file))).toBe(true);
      const best = await storedInRedis({ url: redis.url }).best('digits');
      expect(best).toMatchObject({ step: run.best!.step, value: run.best!.loss });
    });

    test('a server killed in the middle of a run goes on from its checkpoint, with the same workers', async () => {
      await train('again', '--epochs', '3', '--set', 'checkpoint.everySeconds=0.5');
      const before = await until('a checkpoint is written', async () => {
        const { checkpoint, step } = await client.run('again');
        return checkpoint !== null && step > 200 && checkpoint;
      });
      server.child.kill('SIGKILL');
      expect(await server.end).toBe('SIGKILL');
      const owned = await store.lastCheckpoint('again');
      // What `restart: unless-stopped` does.
      server = start('server');
      const after = await until('the run is back', () => client.run('again'));
      // The registry is told of a checkpoint once it is on disk, so a kill may come between the two.
      expect(after.step).toBeGreaterThanOrEqual(Math.max(before.step, owned?.step ?? 0));
      expect(after.phase).toBe('training');
      const run = await finished('again');
      expectEachExampleOnceAnEpoch(run, 3);
      expect(workers.map(({ child }) => child.exitCode)).toEqual([null, null]);
      // One whose pause between attempts was long comes back after the other has finished the run.
      await until('both workers are back', async () => {
        const { workers: seen } = await client.status();
        const idle = seen.filter(({ state }) => state === 'idle');
        return idle.length === 2 && workers.every((worker) => idle.some(ofProcess(worker)));
      });
    });

    test('stopped as `docker compose stop` does, all end well, and the state belongs to nobody', async () => {
      for (const { child } of [...workers, server]) child.kill('SIGTERM');
      const ends = await Promise.all([...workers, server].map(({ end }) => end));
      expect(ends).toEqual([0, 0, 0]);
      const heir = await store.acquire('the next server', { ttlMs: 1_000 });
      await heir.release();
    });
  },
);
