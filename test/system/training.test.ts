import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { initCommand } from '../../cli/init/init.ts';
import { checkpointFolder, newestValidCheckpoint } from '../../files/checkpoint.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { evaluate } from '../../worker/evaluate.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { photoModel, writeModel, writePhotos, writtenModel } from '../support/pretrained-files.ts';
import { printedBy } from '../support/written-experiments.ts';

const DIGITS = join(FIXTURES, 'digits.ts');
/** Minibatches that random numbers change: a few epochs say whether it holds. */
const WIDE = join(FIXTURES, 'wide-digits.ts');
const FIELDS = join(FIXTURES, 'fields-digits.ts');
const SHORT: PartialConfig = {
  ...{ epochsMax: 4, earlyStopping: { enabled: false } },
  hyperparameters: { count: 250 },
};
/** Two inputs and two targets, from a source or not. */
const HOUSES = join(FIXTURES, 'two-fields.ts');
const houses = (source: number): PartialConfig => ({
  ...{ epochsMax: 3, minibatchSize: 16, earlyStopping: { enabled: false } },
  hyperparameters: { source },
});
/** A pretrained trunk whose upper half thaws. */
const PHOTOS = mkdtempSync(join(tmpdir(), 'downpour-photos-'));
const THAWING = join(PHOTOS, 'photos.ts');
const thawing: PartialConfig = {
  ...{ epochsMax: 5, minibatchSize: 4, earlyStopping: { enabled: false } },
  groups: {
    top: {
      pattern: ['net/block_3_conv/*', 'net/block_4_conv/*'],
      ...{ frozen: { untilStep: 9 }, learningRate: 0.1 },
    },
    pretrained: { pattern: ['*_norm/*', 'net/block_1_*', 'net/block_2_*'], frozen: true },
  },
};

let engine: Engine;
let cluster: Cluster;
beforeAll(async () => {
  engine = await openEngine({ engine: 'cpu' });
  const from = join(PHOTOS, 'model.json');
  writeModel(from, await writtenModel(photoModel()));
  const data = join(PHOTOS, 'photos');
  writePhotos(data, ['cats', 'dogs']);
  await printedBy(() => initCommand(THAWING, { from, data, size: 4, yes: true }));
  engine = await openEngine({ engine: 'cpu' });
});
afterAll(() => rmSync(PHOTOS, { recursive: true }));
beforeEach(async () => {
  cluster = await Cluster.start(engine);
});
afterEach(() => cluster.close());

/** All tensors of a run's last checkpoint, by name. Only a stopped server has surely written it. */
async function tensorsOf(id: string): Promise<Map<string, Float32Array>> {
  await cluster.stopServer();
  const folder = checkpointFolder(cluster.state, id);
  const checkpoint = await newestValidCheckpoint(folder, { kinds: ['last'] });
  await cluster.serve();
  return new Map(checkpoint!.tensors.map(({ name, values }) => [name, values]));
}

test.each<[string, string, PartialConfig]>([
  ['digits', DIGITS, {}],
  ['all of the contract', WIDE, SHORT],
  ['several fields and carried tensors', FIELDS, { ...SHORT, epochsMax: 3 }],
  ['a source of several fields', HOUSES, houses(1)],
  ['a pretrained trunk that thaws', THAWING, thawing],
])(
  'interrupted and resumed with one worker = uninterrupted, bit for bit: %s',
  async (_, file, own) => {
    const config: PartialConfig = {
      minibatchSize: 32,
      learningRate: 0.003,
      optimizer: { kind: 'adam' },
      averaging: { kind: 'ema', decay: 0.95 },
      schedule: { kind: 'plateau', patience: 1 },
      earlyStopping: { patience: 3, afterStop: 'continue', continueStepsMax: 30 },
      epochsMax: 6,
      evaluateEverySteps: 11,
      ...own,
    };
    await cluster.createRun('whole', file, config);
    const folders = [FIXTURES, PHOTOS];
    await cluster.work('whole', 'one', { folders }).done;
    const whole = await tensorsOf('whole');
    const evaluations = (await cluster.client.metrics('whole')).evaluations.map((e) => e.loss);

    await cluster.createRun('broken', file, config);
    for (let session = 1; ; session++) {
      // Cut somewhere else in each session: in an epoch, near an evaluation, while refitting.
      let steps = 0;
      const limit = 4 * session + 3;
      let finished = false;
      let cut: Promise<void> | null = null;
      const { done } = cluster.work('broken', `worker-${session}`, {
        folders,
        // At once: a step takes a millisecond.
        onProgress: () => {
          if (++steps === limit) cut = cluster.stopServer();
        },
      });
      while (cut === null && !finished) {
        finished = await Promise.race([done.then(() => true), nextTurn().then(() => false)]);
      }
      await cut;
      await cluster.stopWorkers();
      if (cut) await cluster.serve();
      // A server that stops takes no worker in any more: the last push may be lost, none is added.
      if (cut) expect(steps).toBe(limit);
      const { phase } = await cluster.client.run('broken');
      if (phase === 'finished') {
        expect(session).toBeGreaterThan(2);
        break;
      }
    }
    const broken = await tensorsOf('broken');
    expect([...broken.keys()]).toEqual([...whole.keys()]);
    for (const [name, values] of whole) expect(broken.get(name), name).toEqual(values);
    const again = (await cluster.client.metrics('broken')).evaluations.map((e) => e.loss);
    expect(again).toEqual(evaluations);
  },
);

describe('a source', () => {
  test('trains as the same arrays do, to the bit, also with local steps', async () => {
    for (const local of [null, { steps: 4 }] as const) {
      const trained = [];
      for (const source of [0, 1]) {
        const id = `local-${local?.steps ?? 0}-source-${source}`;
        await cluster.createRun(id, HOUSES, { ...houses(source), ...(local && { local }) });
        await cluster.work(id, `worker-${id}`).done;
        expect(await cluster.client.run(id)).toMatchObject({ phase: 'finished' });
        const { evaluations } = await cluster.client.metrics(id);
        trained.push([await tensorsOf(id), evaluations.map((e) => [e.loss, e.metrics])]);
      }
      expect(trained[1]).toEqual(trained[0]);
    }
  });

  test('that fails on one worker gives its leases to another; each example counts once', async () => {
    await cluster.createRun('halved', HOUSES, { ...houses(1), evaluateEverySteps: 1000 });
    const broken = cluster.work('halved', 'broken', { dataFolder: join(cluster.folder, 'broken') });
    await expect(broken.done).rejects.toThrow(
      /source 'houses' of the train part: read\(\[.*\] of 16 examples\) failed: the disk is gone/,
    );
    const before = (await cluster.client.run('halved')).step;
    expect(before).toBeGreaterThan(0);
    await cluster.work('halved', 'whole').done;
    const run = await cluster.client.run('halved');
    // 240 training examples are 15 minibatches.
    expect(run).toMatchObject({ phase: 'finished', step: 45 });
  });

  test('that is waited for is given up when the worker is told to end', async () => {
    await cluster.createRun('ended', HOUSES, houses(1));
    const stuck = cluster.work('ended', 'stuck', { dataFolder: join(cluster.folder, 'stuck') });
    while (!existsSync(join(cluster.folder, 'stuck.begun'))) await nextTurn();
    stuck.stop.abort();
    await stuck.done;
    expect(readFileSync(join(cluster.folder, 'stuck.closed'), 'utf8')).toBe('closed\n');
    expect((await cluster.client.run('ended')).step).toBe(0);
  });
});

test('a second push under way makes every other push or more a step staler', async () => {
  const summary = async (depth: number) => {
    const id = `depth-${depth}`;
    await cluster.createRun(id, DIGITS, {
      minibatchSize: 32,
      consistency: { depth },
      earlyStopping: { enabled: false },
      evaluateEverySteps: 40,
      stepsMax: 120,
    });
    await cluster.work(id, `worker-${depth}`).done;
    const { phase, step, staleness } = await cluster.client.run(id);
    const { stalenessHistogram, evaluations } = await cluster.client.metrics(id);
    expect({ phase, step }).toEqual({ phase: 'finished', step: 120 });
    expect(evaluations.filter((e) => e.part === 'validation').length).toBe(3);
    return { staleness, stalenessHistogram };
  };
  expect((await summary(1)).staleness).toEqual({ p50: 0, p95: 0, max: 0 });
  const ahead = await summary(2);
  // In one process both replies may come at once; then one gradient of two is fresh.
  expect(ahead.staleness).toMatchObject({ p95: 1, max: 1 });
  expect(ahead.stalenessHistogram[1]).toBeGreaterThanOrEqual(50);
});

describe('merged statistics of batch normalisation', () => {
  test.each([1, 4])(
    'agree with statistics computed afresh over the training set, with %i workers',
    async (count) => {
      const partial: PartialConfig = {
        minibatchSize: 32,
        learningRate: 0.05,
        optimizer: { kind: 'momentum', momentum: 0.5 },
        // The parameters hardly move at the end, so that there is one right answer.
        schedule: { kind: 'linear', steps: 250, floor: 0.01 },
        earlyStopping: { enabled: false },
        stepsMax: 350,
      };
      const id = `workers-${count}`;
      await cluster.createRun(id, DIGITS, partial);
      const workers = Array.from({ length: count }, (_, i) => cluster.work(id, `w-${i}`));
      await Promise.all(workers.map(({ done }) => done));
      const summary = await cluster.client.run(id);
      expect(summary).toMatchObject({ phase: 'finished', step: 350 });
      if (count > 1) expect(summary.staleness!.max).toBeGreaterThan(0);

      const config = resolveConfig(partial);
      const experiment = await loadExperiment(DIGITS);
      const data = await experiment.data({
        folder: cluster.folder,
        seed: config.seed,
        hyperparameters: {},
        log: () => {},
      });
      const prepared = prepareData(dataOf(data), {
        seed: config.seed,
        validationFraction: config.validationFraction,
        standardise: experiment.standardise ?? 'none',
      });
      const model = await buildModel(experiment, config, prepared);
      const final = await tensorsOf(id);
      const trained = new Float32Array(model.layout.size);
      for (const { name, offset } of model.layout.tensors) trained.set(final.get(name)!, offset);

      const merged = await lossWith(model, trained, prepared);
      const afresh = await lossWith(
        model,
        await withFreshStatistics(model, trained, prepared),
        prepared,
      );
      const unmerged = await lossWith(model, withInitialStatistics(model, trained), prepared);
      // Merged ones average some 50 minibatches of 32 with noise of their own: 3 % of the loss.
      expect(Math.abs(merged.loss - afresh.loss) / afresh.loss).toBeLessThan(0.03);
      expect(Math.abs(merged.error - afresh.error)).toBeLessThanOrEqual(0.02);
      // And the comparison can fail: statistics that were never merged are far off.
      expect(Math.abs(unmerged.loss - afresh.loss) / afresh.loss).toBeGreaterThan(0.1);
      model.dispose();
    },
  );
});

async function lossWith(model: Model, parameters: Float32Array, prepared: PreparedData) {
  const { loss, error } = await evaluate(model, parameters, prepared, 'validation');
  return { loss: loss!, error: error! };
}

/** The training set as one minibatch gives its mean and variance exactly (one normalised layer). */
async function withFreshStatistics(model: Model, parameters: Float32Array, prepared: PreparedData) {
  const { trainableSize, exchangedSize } = model.layout;
  model.load(parameters.slice());
  const all = Int32Array.from({ length: prepared.train.count }, (_, i) => i);
  const { gradient } = await model.step(gather(prepared, 'train', all), 1);
  const fresh = parameters.slice();
  fresh.set(gradient.subarray(trainableSize, exchangedSize), trainableSize);
  return fresh;
}

/** Mean 0 and variance 1, as a model begins. */
function withInitialStatistics(model: Model, parameters: Float32Array): Float32Array {
  const values = parameters.slice();
  for (const { name, role, offset, size } of model.layout.tensors) {
    if (role === 'statistics')
      values.fill(name.includes('variance') ? 1 : 0, offset, offset + size);
  }
  return values;
}
