import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { checkpointFolder, newestValidCheckpoint } from '../../files/checkpoint.ts';
import { readProgress } from '../../server/checkpoints/lives.ts';
import type { RunState } from '../../server/core/run/state.ts';
import type { PartialConfig } from '../../shared/config.ts';
import type { Assign, Work } from '../../shared/protocol.ts';
import { freePort } from '../redis-server.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';

/** `downpour serve` is killed with SIGKILL: nothing is applied twice, and what is lost is counted. */

const problem = createProblem();
let state: string;
let port: number;
let server: ServerProcess | null = null;

beforeEach(async () => {
  state = await mkdtemp(join(tmpdir(), 'downpour-death-'));
  port = await freePort();
});
afterEach(async () => {
  await server?.kill();
  await rm(state, { recursive: true, force: true });
});

async function start(): Promise<ServerProcess> {
  server = await startServerProcess(state, port);
  return server;
}

async function lastState(): Promise<RunState | undefined> {
  const saved = await newestValidCheckpoint(checkpointFolder(state, 'r'), { kinds: ['last'] });
  return saved?.manifest.state as RunState | undefined;
}

type Working = Work & { payload: Float32Array };

async function createRun({ client }: ServerProcess, checkpoint: PartialConfig['checkpoint'] = {}) {
  await client.createRun({
    ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
    config: { minibatchSize: 4, learningRate: 0.01, evaluateEverySteps: 10_000, checkpoint },
  });
}

/** Comes back as a worker does: with its name, its incarnation, and what it has seen. */
async function rejoin(
  url: string,
  old: ProtocolWorker,
  seen: Work,
): Promise<[ProtocolWorker, Working]> {
  const { name, incarnation } = old;
  const worker = await ProtocolWorker.connect(url, { name, incarnation });
  worker.sequence = old.sequence;
  worker.hello();
  const assign: Assign = await worker.expect('assign');
  worker.join(assign, problem, { seen: { step: seen.step, generation: seen.generation } });
  return [worker, await worker.expect('work')];
}

test('what was applied after the checkpoint is lost, counted to the step, told, and made good', async () => {
  let { url, client, kill } = await start();
  await createRun(server!, { everySteps: 10, everySeconds: 1e6 });
  let worker = await ProtocolWorker.connect(url);
  let work = await worker.trainTo(problem, await worker.enter(problem), 27);
  let lost = 0;
  for (let life = 2; life <= 3; life++) {
    let checkpoint = (await client.run('r')).checkpoint;
    // One that is written every 10 steps is not written anew within 9.
    while (checkpoint === null || work.step - checkpoint.step > 9) {
      await wait(20);
      checkpoint = (await client.run('r')).checkpoint;
    }
    work = await worker.trainTo(problem, work, checkpoint.step + 9);
    await kill();
    ({ url, client, kill } = await start());
    const restored = await client.run('r');
    expect(restored.phase).toBe('training');
    expect(restored.step).toBeGreaterThanOrEqual(checkpoint.step);
    // What was known in the life before is, though no checkpoint may have been written since.
    expect(restored.stepsLost).toBeGreaterThanOrEqual(lost);
    lost += work.step - restored.step;
    let again: Working;
    [worker, again] = await rejoin(url, worker, work);
    const run = await client.run('r');
    expect(run.stepsLost).toBe(lost);
    if (work.step > restored.step)
      await expect
        .poll(server!.log)
        .toContain(
          `run r: ${work.step - restored.step} steps after step ${restored.step} are lost`,
        );
    // A gradient of the lost time is not taken for one of now, and is not lost either.
    const before = run.pushes;
    worker.push(problem, { ...work, leases: again.leases });
    expect((await worker.expect('work')).acknowledgements[0]).toMatchObject({
      outcome: 'rejected',
      code: 'DP_PUSH_STALE',
    });
    expect((await client.run('r')).pushes).toEqual({ ...before, rejected: before.rejected + 1 });
    work = await worker.trainTo(problem, again, restored.step + 15);
    expect((await client.run('r')).pushes.applied).toBe(restored.pushes.applied + 15);
  }
  // It is in the checkpoint too: another restart loses nothing of the count.
  await client.stop('r');
  expect(await lastState()).toMatchObject({ stepsLost: lost, life: 3 });
  worker.terminate();
});

test('when no worker comes back, the server knows by itself what it has noted', async () => {
  const { url } = await start();
  await createRun(server!, { everySeconds: 1e6 });
  const worker = await ProtocolWorker.connect(url);
  const work = await worker.trainTo(problem, await worker.enter(problem), 12);
  // About once a second.
  while ((await readProgress(state, 'r'))?.step !== work.step) await wait(20);
  await server!.kill();
  worker.terminate();
  const { client } = await start();
  const { step, stepsLost } = await client.run('r');
  expect(stepsLost).toBeGreaterThan(0);
  expect(step + stepsLost).toBe(12);
});
