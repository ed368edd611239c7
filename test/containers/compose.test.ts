import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RunDetail } from '../../shared/rest.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { sharedData } from '../data-folder.ts';
import { freePort } from '../redis-server.ts';
import { ROOT } from '../support/deployment.ts';
import { until as untilTrue } from '../support/until.ts';
import { attempt, run } from './shell.ts';

// docker-compose.yml with a real engine and real Compose, by the commands of docs/cluster.md; `npm run containers`.

/** How long anything may take on a slow, busy machine; what comes sooner is not waited for. */
const LONG_MS = 300_000;
const PROJECT = `downpour-test-${process.pid}`;
const TOKEN = 'a-secret-of-this-test';

let folder: string;
let env: NodeJS.ProcessEnv;
/** The environment of a host that has workers only. */
let elsewhere: NodeJS.ProcessEnv;
let client: RestClient;
/** Lines of the documentation that have been run. */
const done = new Set<string>();

/** A line of the documentation, as bash runs it. @param more is put after it */
async function sh(line: string, more = '', where = env): Promise<string> {
  const words = ['bash', '-c', `${line}${more}`];
  const text = await run(words, { cwd: ROOT, env: where, timeoutMs: LONG_MS });
  done.add(line);
  return text;
}

const docker = (...words: string[]) => run(['docker', ...words], { env, timeoutMs: LONG_MS });
const downpour = (...words: string[]) => docker('compose', 'exec', 'server', 'downpour', ...words);

const until = <T>(what: string, look: () => Promise<T | null | undefined | false>): Promise<T> =>
  untilTrue(what, look, { withinMs: LONG_MS, everyMs: 200, logs: composeLogs });

async function composeLogs(): Promise<string> {
  const logs = await attempt(['docker', 'compose', 'logs', '--tail', '15'], { cwd: ROOT, env });
  return logs.text;
}

const containersOf = async (service: string) =>
  (await docker('compose', 'ps', '--quiet', service)).trim().split('\n');

/** As the kernel does when memory runs out: every process but the first, which then ends too. */
const kill = (container: string) =>
  attempt(['docker', 'exec', container, 'sh', '-c', 'kill -9 -1'], { env });

const restartsOf = async (container: string) =>
  Number(await docker('inspect', '--format', '{{ .RestartCount }}', container));

const atStep = (name: string, step: number) =>
  until(`${name} is at step ${step}`, async () => {
    const detail = await client.run(name);
    return detail.step >= step && detail;
  });

const workersAtWork = (name: string, count: number) =>
  until(`${count} workers train ${name}`, async () => {
    const seen = await client.workers(name);
    return seen.filter(({ state }) => state !== 'gone').length >= count;
  });

const finished = (name: string): Promise<RunDetail> =>
  until(`${name} is over`, async () => {
    const detail = await client.run(name);
    return ['finished', 'failed', 'stopped'].includes(detail.phase) && detail;
  });

/** How containers ended since then: the name of the service and its exit code. */
async function endsSince(seconds: number): Promise<string[]> {
  const text = await docker(
    ...['events', '--since', String(seconds), '--until', String(Math.ceil(Date.now() / 1000))],
    ...['--filter', 'event=die', '--filter', `label=com.docker.compose.project=${PROJECT}`],
    '--format={{ index .Actor.Attributes "com.docker.compose.service" }} {{ .Actor.Attributes.exitCode }}',
  );
  return text.trim().split('\n').sort();
}

const tell = (text: string) => process.stdout.write(`${text}\n`);

describe('docker compose', { timeout: 3 * LONG_MS }, () => {
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'downpour-compose-'));
    for (const each of ['data', 'experiments']) mkdirSync(join(folder, each));
    const port = await freePort();
    env = {
      ...process.env,
      COMPOSE_PROJECT_NAME: PROJECT,
      DOWNPOUR_TOKEN: TOKEN,
      DOWNPOUR_WORKER_TOKEN: 'a-secret-of-its-workers',
      DOWNPOUR_PORT: String(port),
      DOWNPOUR_PUBLISH: '0.0.0.0',
      // Without MNIST, the digits that the image brings.
      DOWNPOUR_DATA: sharedData() ?? join(folder, 'data'),
      DOWNPOUR_EXPERIMENTS: join(folder, 'experiments'),
    };
    elsewhere = { ...env, COMPOSE_PROJECT_NAME: `${PROJECT}-elsewhere`, DOWNPOUR_SERVER: 'none' };
    elsewhere.DOWNPOUR_TOKEN = env.DOWNPOUR_WORKER_TOKEN;
    client = createRestClient({ server: `http://127.0.0.1:${port}`, token: TOKEN });
  });
  afterAll(async () => {
    for (const file of ['compose.worker.yml', 'docker-compose.yml']) {
      const down = ['docker', 'compose', '-f', file, 'down', '--volumes', '--timeout', '5'];
      const where = file === 'docker-compose.yml' ? env : elsewhere;
      await attempt(down, { cwd: ROOT, env: where, timeoutMs: LONG_MS });
    }
    rmSync(folder, { recursive: true, force: true });
  });

  test('up: builds, gets healthy, and all workers are there', async () => {
    const began = performance.now();
    await sh('docker compose up --build --detach --scale worker=4');
    tell(`healthy after ${((performance.now() - began) / 1000).toFixed(1)} s`);
    await until('4 workers are idle', async () => {
      const { workers } = await client.status();
      return workers.filter(({ state }) => state === 'idle').length === 4;
    });
    expect(await sh('docker compose exec server downpour status')).toContain('state in redis');
    const stranger = await fetch(`http://127.0.0.1:${env.DOWNPOUR_PORT}/status`);
    expect(stranger.status).toBe(401);
    const [first] = await containersOf('worker');
    expect(await docker('inspect', first!)).not.toContain(TOKEN);
    // The built package, and none of its sources.
    expect((await docker('exec', first!, 'ls', '/app')).trim().split('\n').sort()).toEqual([
      ...['bin', 'dist', 'examples', 'experiments', 'node_modules', 'package.json'],
    ]);
    // The engine that the image brings is the one that trains.
    expect(await docker('exec', first!, 'downpour', 'doctor')).toMatch(/^engine +native on/);
  });

  test('a training goes to its end', async () => {
    const train = 'docker compose exec server downpour train examples/mnist-mlp.ts --workers 0';
    const text = await sh(train, ' --epochs 2 --run first');
    expect(text).toMatch(/2 epochs[\s\S]*test: error/);
    const detail = await client.run('first');
    expect(detail).toMatchObject({ phase: 'finished', step: expect.any(Number) });
    expect(detail.examples).toBe(2 * detail.data!.trainCount);
    expect(detail.test!.error).toBeLessThan(0.1);
    await says('docker compose logs --follow worker', /connected to/);
  });

  test('a host with workers only brings its own', async () => {
    // The address by which that host would know this one.
    const gateway = '--format={{ (index .IPAM.Config 0).Gateway }}';
    const address = (await docker('network', 'inspect', `${PROJECT}_default`, gateway)).trim();
    elsewhere.DOWNPOUR_SERVER = `ws://${address}:${env.DOWNPOUR_PORT}`;
    const file = 'docker compose -f compose.worker.yml';
    const idle = (count: number) =>
      until(`${count} workers are idle`, async () => {
        const { workers } = await client.status();
        return workers.filter(({ state }) => state === 'idle').length === count;
      });
    await sh(`${file} up --build --detach --scale worker=4`, '', elsewhere);
    await idle(8);
    expect(await sh(`${file} logs worker`, '', elsewhere)).toContain(
      `connected to ${elsewhere.DOWNPOUR_SERVER}`,
    );
    await sh(`${file} down`, '', elsewhere);
    await idle(4);
  });

  test('server and worker are killed, workers come and go, and it goes on learning', async () => {
    // As long as this lasts, on any machine.
    const steady = ['--set', 'earlyStopping.enabled=false', '--set', 'checkpoint.everySeconds=1'];
    const name = ['--run', 'digits', '--epochs', '100000'];
    await downpour(
      'train',
      'examples/mnist-mlp.ts',
      '--workers',
      '0',
      '--detach',
      ...name,
      ...steady,
    );
    await atStep('digits', 100);
    await sh('docker compose up --detach --no-recreate --scale worker=8');
    await workersAtWork('digits', 8);

    const [victim] = await containersOf('worker');
    await kill(victim!);
    await until(
      'the killed worker is started again',
      async () => (await restartsOf(victim!)) === 1,
    );

    const { checkpoint } = await until('there is a checkpoint', async () => {
      const detail = await client.run('digits');
      return detail.checkpoint !== null && detail;
    });
    const [server] = await containersOf('server');
    await kill(server!);
    await until(
      'the killed server is started again',
      async () => (await restartsOf(server!)) === 1,
    );
    const back = await until('the run is back', () => client.run('digits'));
    expect(back.phase).toBe('training');
    expect(back.step).toBeGreaterThanOrEqual(checkpoint!.step);
    await atStep('digits', back.step + 100);

    const since = Math.floor(Date.now() / 1000);
    await sh('docker compose up --detach --no-recreate --scale worker=2');
    expect((await containersOf('worker')).length).toBe(2);
    // They hand back what they have not computed, and are not killed when their time is over.
    expect(await endsSince(since)).toEqual(Array(6).fill('worker 0'));
    expect((await client.run('digits')).phase).toBe('training');

    await downpour('stop', 'digits');
    const detail = await finished('digits');
    expect(detail.phase).toBe('stopped');
    expect(detail.best!.error).toBeLessThan(0.06);
  });

  test('down in the middle of a run: all end well, and it goes on from the volumes', async () => {
    const name = ['--run', 'again', '--epochs', '100000', '--set', 'earlyStopping.enabled=false'];
    await downpour('train', 'examples/mnist-mlp.ts', '--workers', '0', '--detach', ...name);
    const before = await atStep('again', 200);
    const best = (await client.run('digits')).best;
    const since = Math.floor(Date.now() / 1000);
    const began = performance.now();
    await sh('docker compose down');
    tell(`down after ${((performance.now() - began) / 1000).toFixed(1)} s`);
    expect(await endsSince(since)).toEqual(['redis 0', 'server 0', 'worker 0', 'worker 0']);

    await docker('compose', 'up', '--detach', '--scale', 'worker=2');
    const after = await until('the run is back', () => client.run('again'));
    // Stopped in good order, it has lost no step.
    expect(after.step).toBeGreaterThanOrEqual(before.step);
    await atStep('again', after.step + 100);
    expect((await client.run('digits')).best).toEqual(best);
    await downpour('stop', 'again');
    expect((await finished('again')).phase).toBe('stopped');
  });

  test('every command of docs/cluster.md for it was run', () => {
    const text = readFileSync(join(ROOT, 'docs/cluster.md'), 'utf8');
    const lines = [...text.matchAll(/^docker compose .*$/gm)].map(([line]) => line);
    // Needs a GPU.
    expect(lines.filter((line) => !done.has(line) && !line.includes('--profile gpu'))).toEqual([]);
    expect(done.size).toBeGreaterThan(6);
  });
});

/** Runs a command that goes on, until it has said this. */
async function says(line: string, pattern: RegExp): Promise<void> {
  const child = spawn('bash', ['-c', `exec ${line}`], {
    cwd: ROOT,
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((end) => child.once('close', end));
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  await until(`it says ${pattern}`, async () => pattern.test(text));
  child.kill('SIGINT');
  await ended;
  done.add(line);
}
