import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { ensembleCommand } from '../../cli/study/ensemble.ts';
import { openTrained } from '../../cli/trained/trained.ts';
import { checkpointFolder } from '../../files/checkpoint.ts';
import { readTensors } from '../../files/tensor-file.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { unpackTransform } from '../../shared/data-facts.ts';
import { errorCode, errorText } from '../../shared/errors.ts';
import type { CreateRun } from '../../shared/rest.ts';
import { openEngine } from '../../worker/engine.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';

// Rows are added to a file between training and what comes after it, as next month's are.

const GROW = join(FIXTURES, 'grow.ts');
/** Areas around 99, then some around 123: the mean of all is another one. */
const row = (i: number, area: number) => `${area + (i % 7)},${(i * 31) % 10},${3 * area + i}`;
const table = (more: number) =>
  [
    'area,rooms,price',
    ...Array.from({ length: 80 }, (_, i) => row(i, 96)),
    ...Array.from({ length: more }, (_, i) => row(i, 120)),
    '',
  ].join('\n');

let cluster: Cluster;
const write = (more: number) => writeFileSync(join(cluster.folder, 'grow.csv'), table(more));
const server = () => ['--server', cluster.url, '--experiments', FIXTURES];

async function train(id: string, more: PartialConfig, fork?: CreateRun['fork']) {
  const config = { epochsMax: 3, minibatchSize: 8, learningRate: 0.0002, ...more };
  const own = { id, experiment: 'grow', experimentHash: await hashExperiment(GROW), config };
  await cluster.client.createRun({ ...own, ...(fork && { fork }) });
  const { done } = cluster.work(id, `${id}-worker`);
  await done;
}

/** @returns `downpour.json` and the weights. */
async function exported(run: string, to: string) {
  const folder = join(cluster.folder, to);
  await outputOf('export', run, '--to', folder, '--format', 'tfjs', ...server(), '--json');
  const read = (name: string) => readFileSync(join(folder, name));
  return { about: JSON.parse(read('downpour.json').toString()), weights: read('weights.bin') };
}

const failure = async (work: Promise<unknown>) =>
  work.then(
    () => 'done',
    (error) => `${errorCode(error)} ${errorText(error)}`,
  );

beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  write(0);
  await train('first', { seed: 1 });
  await train('second', { seed: 2, splitSeed: 1 });
  await train('refitted', { seed: 1, earlyStopping: { afterStop: 'retrain' } });
  await train('halted', { seed: 1, pauseAfter: [1] });
  expect(await cluster.client.run('halted')).toMatchObject({ phase: 'stopped' });
});
afterAll(() => cluster?.close());

test('what is exported is that of the run, whatever has become of the data', async () => {
  const before = await exported('first', 'a');
  expect(before.about.inputTransform.mean[0]).toBeCloseTo(99, 0);
  expect(before.about).toMatchObject({
    ...{ kind: 'final', inputNames: ['area', 'rooms'], targetNames: ['price'] },
    ...{ inputShape: [2], classCount: null, data: { trainCount: 64, validationCount: 16 } },
  });
  // What another process knows is what the checkpoint holds.
  await cluster.stopServer();
  await cluster.serve();
  write(80);
  expect(await exported('first', 'b')).toEqual(before);
  rmSync(join(cluster.folder, 'grow.csv'));
  expect(await exported('first', 'c')).toEqual(before);
  const { facts } = await cluster.client.runData('first');
  expect(unpackTransform(facts!.transform)).toEqual(before.about.inputTransform);
});

test('after a retraining the parameters that were trained last are exported', async () => {
  const { about, weights } = await exported('refitted', 'd');
  const { best, step, test: tested } = await cluster.client.run('refitted');
  expect(about).toMatchObject({ kind: 'final', step, best: null, test: tested });
  expect(about.learntValidation).toBe(true);
  expect(step).toBeGreaterThan(best!.step);
  const known = await cluster.client.checkpoints('refitted');
  const file = (kind: string) =>
    join(
      checkpointFolder(cluster.state, 'refitted'),
      known.findLast((one) => one.kind === kind)!.file,
    );
  const numbers = async (kind: string) =>
    (await readTensors(file(kind))).tensors.flatMap(({ values }) => [...values]);
  const ours = [...new Float32Array(new Uint8Array(weights).buffer)];
  expect(ours).toEqual(await numbers('final'));
  expect(ours).not.toEqual(await numbers('best'));
});

describe('data that have grown are refused', () => {
  beforeAll(() => write(80));
  const both = /DP_DATA_MISMATCH .*128 training, 32 validation.*64 training, 16 validation/;

  test('by commands that look at answers', async () => {
    const where = { server: cluster.url, state: cluster.state, stateGiven: false };
    const options = { ...where, data: cluster.folder, engine: 'wasm' };
    expect(await failure(openTrained(GROW, { ...options, run: 'first' }))).toMatch(both);
    const final = (await cluster.client.checkpoints('first')).at(-1)!.file;
    const checkpoint = join(checkpointFolder(cluster.state, 'first'), final);
    expect(await failure(openTrained(GROW, { ...options, checkpoint }))).toMatch(both);
    const stderr = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    const work = ensembleCommand(GROW, {
      ...{ ...options, members: '', runs: ['first', 'second'], cycleEpochs: 1, tolerance: 0 },
      ...{ recall: 0.5, halfSeed: 1, workers: 0, workersPerTrial: 1, quiet: true },
      out: join(cluster.folder, 'ensemble'),
    });
    expect(await failure(work)).toMatch(both);
    stderr.mockRestore();
  });

  test('by a run that goes on', async () => {
    await cluster.client.resume('halted');
    const { done } = cluster.work('halted', 'grown');
    expect(await failure(done)).toMatch(both);
    write(0);
    await cluster.work('halted', 'as-it-was').done;
    expect(await cluster.client.run('halted')).toMatchObject({ phase: 'finished' });
    write(80);
  });

  test('by a fork, unless it wants others: then it standardises as the run that it began with', async () => {
    const from = { run: 'first', checkpoint: 'last' };
    expect(await failure(train('fork', {}, from))).toMatch(
      /DP_DATA_MISMATCH a fork needs the data of run 'first', .*160 examples.*80 examples.* --new-data/,
    );
    await train('other', {}, { ...from, data: 'other' });
    const run = await cluster.client.run('other');
    expect(run).toMatchObject({ phase: 'finished', data: { trainCount: 128 } });
    expect(run.dataNote).toMatch(/may include examples/);
    const { facts } = await cluster.client.runData('first');
    expect((await cluster.client.runData('other')).facts).toEqual(facts);
    // It goes on with these from now on.
    await train('branch', {}, { run: 'other', checkpoint: 'last' });
    expect((await cluster.client.run('branch')).dataNote).toBeNull();
  });
});
