import { mkdtemp, readdir, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  checkpointFolder,
  newestValidCheckpoint,
  pruneCheckpoints,
  writeCheckpoint,
} from '../../files/checkpoint.ts';
import { listCheckpoints, MANIFEST_BYTES_MAX } from '../../files/manifest.ts';
import { Keeper } from '../../server/checkpoints/keeper.ts';
import { directWriter } from '../../server/checkpoints/writer.ts';
import { Curves, type ObservationsState } from '../../server/core/curves.ts';
import type { Run } from '../../server/core/run.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import type { StateStore } from '../../server/store/state-store.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { checkWorkerMessage } from '../../shared/protocol.ts';
import type { Evaluation } from '../../shared/rest.ts';
import { recover } from '../support/recover.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

const problem = createProblem();
const log = () => {};
let root: string;
let store: StateStore;
let token: number;
const keepers: Keeper[] = [];

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'downpour-'));
  store = openFileStore({ folder: root });
  ({ token } = await store.acquire('test', { ttlMs: 10_000 }));
});

afterEach(async () => {
  // What is answered is on disk; the next checkpoint may be on its way there.
  await Promise.all(keepers.splice(0).map((keeper) => keeper.abandon()));
  await store.close();
  await rm(root, { recursive: true, force: true });
});

function createKeeper(write = directWriter.write): Keeper {
  const own = { writer: { ...directWriter, write }, now: () => 0, onFenced: () => {} };
  const keeper = new Keeper({ root, store, token, log, ...own });
  keepers.push(keeper);
  return keeper;
}

/** As a server that was killed this moment would find it. */
async function afterKill(): Promise<Run> {
  const [run] = await recover(createKeeper());
  return run!;
}

describe('what REST has answered is on disk', () => {
  test.each([
    ['at the start', 0],
    ['in the middle', 7],
  ])('stop and resume, %s', async (_, steps) => {
    const keeper = createKeeper();
    const coordinator = new Coordinator({ keeper, now: () => 0, log });
    const run = createRun({ evaluateEverySteps: 3 });
    await keeper.register(run);
    coordinator.adopt(run);
    if (steps > 0) new VirtualWorker(run, problem).train(() => run.step === steps);
    const { phase } = run;
    await coordinator.stop(run.id);
    expect(await afterKill()).toMatchObject({ phase: 'stopped', step: steps });
    await coordinator.resume(run.id);
    expect(await afterKill()).toMatchObject({ phase, step: steps });
  });

  test('the test of a run that had finished without one', async () => {
    const keeper = createKeeper();
    const coordinator = new Coordinator({ keeper, now: () => 0, log });
    const run = createRun({ testAtEnd: false, epochsMax: 2 });
    await keeper.register(run);
    coordinator.adopt(run);
    new VirtualWorker(run, problem).train();
    coordinator.followUp(run);
    expect(run.phase).toBe('finished');
    await coordinator.test(run.id);
    expect((await afterKill()).phase).toBe('testing');
  });

  test('and what could not be written is not answered 200, though it is done', async () => {
    const full = async () => {
      throw new DownpourError('DP_DISK', 'the disk is full');
    };
    const keeper = createKeeper(full);
    const coordinator = new Coordinator({ keeper, now: () => 0, log });
    const run = createRun({});
    await keeper.register(run);
    coordinator.adopt(run);
    new VirtualWorker(run, problem).train(() => run.step === 3);
    await expect(coordinator.stop(run.id)).rejects.toThrow(
      /^run r is stopped, but that is not on disk yet, .*: the disk is full; the server tries again$/,
    );
    expect(run.phase).toBe('stopped');
    expect(coordinator.reports.summary(run).unwritten).toBe('DP_DISK the disk is full');
  });
});

describe('a manifest', () => {
  const input = (step: number, state: unknown) =>
    ({
      run: 'r',
      step,
      kind: 'last',
      layoutHash: 'h',
      tensors: [],
      now: new Date(),
      state,
    }) as const;

  test('that would be larger than what is read is not written, and the older checkpoint stands', async () => {
    const folder = join(root, 'r');
    await writeCheckpoint(folder, input(1, { text: 'x'.repeat(100) }), 1000);
    const files = await readdir(folder);
    // With line breaks it would be too long, without them it is not.
    await writeCheckpoint(
      folder,
      input(
        2,
        Array.from({ length: 150 }, () => 1),
      ),
      1000,
    );
    expect((await listCheckpoints(folder)).map(({ step }) => step)).toEqual([1, 2]);
    const write = writeCheckpoint(folder, input(3, { text: 'x'.repeat(1000) }), 1000);
    await expect(write).rejects.toMatchObject({ code: 'DP_LIMIT' });
    expect(await readdir(folder)).toEqual(expect.arrayContaining(files));
    expect((await newestValidCheckpoint(folder))!.manifest.step).toBe(2);
  });

  test('that this release does not read is never pruned, one that is damaged is', async () => {
    const folder = checkpointFolder(root, 'r');
    for (let step = 1; step <= 5; step++) await writeCheckpoint(folder, input(step, {}));
    const manifests = (await readdir(folder)).filter((name) => name.endsWith('.json')).sort();
    // Sparse: it takes no room.
    await truncate(join(folder, manifests[1]!), MANIFEST_BYTES_MAX + 1);
    await truncate(join(folder, manifests[2]!), 20);
    const told: string[] = [];
    const onDamaged = (error: DownpourError) => told.push(error.message);
    await pruneCheckpoints(folder, { keepLast: 1, onDamaged });
    const left = (await readdir(folder)).map((name) => Number(name.slice(5, 14)));
    expect([...new Set(left)].sort()).toEqual([2, 5]);
    expect(told).toHaveLength(2);
  });

  test('stays far below its limit, whatever evaluations workers send', () => {
    const metrics = Object.fromEntries(
      Array.from({ length: LIMITS.metricCountMax }, (_, i) => [
        `\ud800`.repeat(62) + String(i).padStart(2, '0'),
        1 / 3,
      ]),
    );
    const evaluation = (step: number) =>
      ({
        ...{ step, epoch: 1, seconds: 1, part: 'validation', loss: 1 / 3, error: 1 / 3 },
        metrics,
      }) as Evaluation;
    const observations = new Curves();
    for (let step = 1; step <= 4000; step++) observations.evaluated(evaluation(step));
    const { evaluations } = observations;
    expect(evaluations.length * LIMITS.metricCountMax).toBeLessThanOrEqual(150_000);
    expect([evaluations[0]!.step, evaluations.at(-1)!.step]).toEqual([1, 4000]);
    const state: ObservationsState = observations.state();
    expect(JSON.stringify(state).length).toBeLessThan(MANIFEST_BYTES_MAX / 3);
    const later = new Curves(state);
    later.evaluated(evaluation(4001));
    expect(later.evaluations.length).toBe(evaluations.length);
  });
});

test('an evaluation has so many metrics at most, with names of so many characters', () => {
  const send = (metrics: object) =>
    checkWorkerMessage({
      ...{ type: 'evaluated', run: 'r', evaluation: 1, loss: 1, error: 1, examples: 1, metrics },
    } as { type: string });
  const many = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`m${i}`, 1]));
  expect(() => send(many(LIMITS.metricCountMax))).not.toThrow();
  expect(() => send({ [`Ü ${'x'.repeat(62)}`]: 1, trainingLoss: null })).not.toThrow();
  for (const bad of [
    many(LIMITS.metricCountMax + 1),
    { ['x'.repeat(65)]: 1 },
    { 'a\nb': 1 },
    { '': 1 },
  ]) {
    expect(() => send(bad)).toThrow(/evaluated\.metrics|evaluated/);
  }
});
