import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkpointFolder } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';
import { mountSmallDisk, type SmallDisk, smallDiskMissing } from '../support/small-disk.ts';
import { until } from '../support/until.ts';

/** The state of a real server on a small file system of its own, which others fill up. */

const missing = smallDiskMissing();
const problem = createProblem();
let disk: SmallDisk;
let server: ServerProcess | null = null;

beforeEach(() => {
  if (missing === '') disk = mountSmallDisk(2e6);
});
afterEach(async () => {
  if (missing !== '') return;
  await server?.kill();
  disk.remove();
});

const said = { logs: () => server?.log() ?? '' };
const state = () => join(disk.path, 'state');
const newest = async () => (await listCheckpoints(checkpointFolder(state(), 'r'))).at(-1)?.step;

describe.skipIf(missing !== '')(`on a disk that is full${missing}`, () => {
  test('training goes on, it is said, older checkpoints stand, and the next one comes when there is room', async () => {
    server = await startServerProcess(state(), 0);
    await server.client.createRun({
      ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
      config: {
        ...{ minibatchSize: 4, learningRate: 0.01, evaluateEverySteps: 10_000, leaseSeconds: 60 },
        ...{ checkpoint: { everySteps: 10, everySeconds: 1e6 } },
      },
    });
    const worker = await ProtocolWorker.connect(server.url);
    let work = await worker.trainTo(problem, await worker.enter(problem), 10);
    // The next is due 10 steps after the last, so at 30 at the latest.
    await until('there is a checkpoint', async () => (await newest()) !== undefined, said);
    const before = await newest();
    expect(before).toBeLessThanOrEqual(10);

    const free = disk.fill();
    work = await worker.trainTo(problem, work, 40);
    await until(
      'it says why there is no newer one',
      () => /run r: last not written, trying again: DP_DISK .*full/.test(server!.log()),
      said,
    );
    // The one of step 10 may have come before the disk was full.
    const stands = await newest();
    expect(stands).toBeGreaterThanOrEqual(before!);
    expect(stands).toBeLessThanOrEqual(10);
    const { phase, step } = await server.client.run('r');
    expect({ phase, step }).toEqual({ phase: 'training', step: 40 });

    free();
    await until('the newest one is of step 40', async () => (await newest()) === 40, said);
    await worker.trainTo(problem, work, 45);
    await server.kill();
    server = await startServerProcess(state(), 0);
    expect((await server.client.run('r')).step).toBe(40);
    worker.close();
  });
});
