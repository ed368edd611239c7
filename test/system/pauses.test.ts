import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { serve } from '../../server/main.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { bundled } from '../support/bundled.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';

/** Processes that stand still for longer than their limits, and clocks that are set, change nothing that matters. */

const PROGRAM = await bundled(join(import.meta.dirname, 'programs', 'protocol-worker.ts'));
const problem = createProblem();
const cleanUps: (() => unknown)[] = [];
let state: string;

beforeEach(async () => {
  state = await mkdtemp(join(tmpdir(), 'downpour-pauses-'));
  cleanUps.push(() => rm(state, { recursive: true, force: true }));
});
afterEach(async () => {
  vi.useRealTimers();
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function createRun(client: RestClient, epochsMax: number, leaseSeconds = 0.5) {
  const config = {
    ...{ minibatchSize: 4, learningRate: 0.05, leaseSeconds, epochsMax },
    earlyStopping: { enabled: false },
  };
  await client.createRun({
    ...{ id: 'r', experiment: 'regression', experimentHash: 'hash', config },
  });
}

/** Halts a process for longer than the leases of minibatches last. */
async function halt({ child }: Pick<ServerProcess, 'child'>, ms: number): Promise<void> {
  child.kill('SIGSTOP');
  await wait(ms);
  child.kill('SIGCONT');
}

test('a server that is halted for several leases takes no minibatch away from its workers', async () => {
  const server = await startServerProcess(state, 0);
  cleanUps.push(() => server.kill());
  // The workers, which are in this process, are held up by other work of the machine for less.
  await createRun(server.client, 100_000, 2);
  const workers = await Promise.all([
    ProtocolWorker.connect(server.url),
    ProtocolWorker.connect(server.url),
  ]);
  const ends = [];
  for (const worker of workers) ends.push(worker.work(problem, await worker.enter(problem)));
  const before = await server.client.run('r');
  await halt(server, 6_000);
  while ((await server.client.run('r')).step < before.step + 20) await wait(10);
  await server.client.stop('r');
  expect((await Promise.all(ends)).map(({ type }) => type)).toEqual(['end', 'end']);
  const { pushes, step, examples } = await server.client.run('r');
  expect(pushes).toEqual({ applied: step, damped: 0, duplicate: 0, rejected: 0 });
  expect(examples).toBe(4 * step);
  for (const worker of workers) worker.terminate();
});

test('a worker that is halted loses its minibatches to another, and goes on when it is back', async () => {
  const server = await startServerProcess(state, 0);
  cleanUps.push(() => server.kill());
  await createRun(server.client, 100_000);
  // A worker in a process of its own.
  const child = spawn(process.execPath, [PROGRAM, server.url], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  cleanUps.push(() => child.kill('SIGKILL'));
  const other = await ProtocolWorker.connect(server.url, { name: 'other' });
  const end = other.work(problem, await other.enter(problem));
  const applied = async (worker: string) => {
    const seen = (await server.client.workers('r')).find((w) => w.worker === worker);
    return seen?.pushes.applied ?? 0;
  };
  while ((await applied('halted')) === 0) await wait(10);
  await halt({ child }, 2_500);
  const before = await applied('halted');
  while ((await applied('halted')) < before + 10) await wait(10);
  await server.client.stop('r');
  await end;
  const { examples, pushes, epoch } = await server.client.run('r');
  // Each example once an epoch, whoever computed it; the last epochs are under way.
  expect(examples).toBe(4 * pushes.applied);
  expect(examples).toBeGreaterThan(20 * (epoch - 1));
  expect(examples).toBeLessThanOrEqual(20 * (epoch + 1));
  other.terminate();
});

test('a clock that jumps by hours and days while a run trains changes nothing', async () => {
  vi.useFakeTimers({ toFake: ['Date'] });
  const controller = new AbortController();
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state, localSocket: false, ownerTtlMs: 600 },
    signal: controller.signal,
  });
  cleanUps.push(async () => {
    controller.abort();
    await serving.closed;
  });
  const client = createRestClient({ server: serving.url });
  await createRun(client, 30);
  const start = Date.now();
  const jump = setInterval(() => {
    const hours = (Math.random() - 0.5) * 100;
    vi.setSystemTime(new Date(start + hours * 3_600_000));
  }, 5);
  cleanUps.push(() => clearInterval(jump));
  const worker = await ProtocolWorker.connect(serving.url);
  const end = await worker.work(problem, await worker.enter(problem));
  expect(end).toMatchObject({ type: 'end', phase: 'finished' });
  const { uptimeSeconds } = await client.health();
  expect(uptimeSeconds).toBeGreaterThan(0);
  expect(uptimeSeconds).toBeLessThan(60);
  const run = await client.run('r');
  expect(run.pushes).toEqual({ applied: run.step, damped: 0, duplicate: 0, rejected: 0 });
  expect(run.seconds).toBeLessThan(60);
  worker.terminate();
});
