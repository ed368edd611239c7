import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { digestText } from '../../shared/digest.ts';
import {
  type LearningRateSettings,
  learningRatePlan,
  learningRateReport,
  type RangeTest,
  type Suggestion,
} from '../../study/learning-rate.ts';
import { plotSvg } from '../../study/plot.ts';
import { meanOf } from '../../study/statistics.ts';
import { listPlan, type Trial, trialValue } from '../../study/study.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { studyOn, workForAll } from '../support/study.ts';

// Deep Learning §8.3.1 and §11.4.1: the learning rate, above the one that is best after the first 100
// iterations or so, below severe instability. On real digits, with real runs.

const DIGITS = join(FIXTURES, 'few-digits.ts');
let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  await workForAll(cluster, 2, [FIXTURES]);
});
afterAll(() => cluster.close());

const base = [{ hyperparameters: { count: 3000, units: 32 }, minibatchSize: 32, testAtEnd: false }];
const settings = (more: Partial<LearningRateSettings> = {}): LearningRateSettings => ({
  ...{ low: 1e-4, high: 30, steps: 150, probeSteps: 100, seeds: 2, workers: 1, fork: null, base },
  ...more,
});
const report = (name: string, of: LearningRateSettings, trials: readonly Trial[]) =>
  learningRateReport(name, of, trials, (rate) => `train ${rate}`);

test('§11.4.1: the rate of lr-find, unchanged, trains within 0.3 points of the best of a grid of 12', async () => {
  const trials = await studyOn(cluster, 'lr', DIGITS, learningRatePlan(settings()), 2, {
    keepCurves: true,
  });
  const found = report('lr', settings(), trials);
  const { learningRate, best, unstable } = found.facts.suggestion as Suggestion;
  expect(learningRate).toBeGreaterThan(best);
  expect(learningRate).toBeLessThan(unstable!);
  expect(found.advice).toContain(`Use learningRate ${learningRate}`);
  expect(plotSvg(found.plots['range.svg']!)).not.toMatch(/NaN|Infinity|undefined/);

  const grid = Array.from({ length: 12 }, (_, i) => 0.001 * 3000 ** (i / 11));
  const seeds = [11, 12];
  const config = { epochsMax: 5, workersMax: 1, divergence: { rollbacksMax: 0 } };
  const full = await studyOn(
    cluster,
    'grid',
    DIGITS,
    listPlan(
      [...grid, learningRate].flatMap((rate, i) =>
        seeds.map((seed) => ({
          ...{ key: `${i}-${seed}`, label: `${rate}` },
          config: resolveConfig(...base, config, { learningRate: rate, seed }),
        })),
      ),
    ),
  );
  const errors = [...grid, learningRate].map((_, i) =>
    meanOf(full.slice(2 * i, 2 * i + 2).map((trial) => Math.min(1, trialValue(trial, 'error')))),
  );
  expect(errors.at(-1)).toBeLessThan(Math.min(...errors.slice(0, 12)) + 0.003);
});

test('§8.3.1: from a trained checkpoint too, and what it was forked from is untouched', async () => {
  await cluster.createRun('source', DIGITS, {
    ...base[0]!,
    ...{ learningRate: 0.1, epochsMax: 2, workersMax: 1 },
  });
  // It is written last.
  while (!(await cluster.client.checkpoints('source')).some(({ kind }) => kind === 'final')) {
    await wait(20);
  }
  const look = async () => {
    const { client } = cluster;
    const file = async (kind: 'last' | 'best' | 'final') =>
      digestText(
        Buffer.from(
          await new Response(await client.checkpointFile('source', kind)).arrayBuffer(),
        ).toString('base64'),
      );
    const { seconds: _, ...run } = await client.run('source');
    const parameters = await Promise.all([file('last'), file('best'), file('final')]);
    return { run, parameters, metrics: await client.metrics('source') };
  };
  const before = await look();
  const fork = { run: 'source', checkpoint: 'best', step: before.run.best!.step };
  const own = settings({ fork, seeds: 1 });
  const trials = await studyOn(cluster, 'lr-fork', DIGITS, learningRatePlan(own), 2, {
    keepCurves: true,
  });
  const { facts, advice } = report('lr-fork', own, trials);
  const [range] = facts.ranges as RangeTest[];
  // It begins where training was, not at ln 10.
  expect(range!.initial).toBeLessThan(1);
  expect(range!.limit).toBeGreaterThan(0.05);
  expect(advice).toContain(`from step ${before.run.best!.step} of run source`);
  expect(await look()).toEqual(before);
});

test('§8.3.1: several asynchronous workers show how staleness moves the limit', async () => {
  const momentum = { optimizer: { kind: 'momentum', momentum: 0.9 } };
  const own = settings({ workers: 2, base: [...base, momentum] });
  const trials = await studyOn(cluster, 'lr-two', DIGITS, learningRatePlan(own), 1, {
    ...{ keepCurves: true, lookahead: 0 },
  });
  const { facts, advice } = report('lr-two', own, trials);
  const of = (workers: number) =>
    (facts.ranges as RangeTest[]).filter((range) => range.workers === workers);
  expect(of(1).map(({ staleness }) => staleness)).toEqual([0, 0]);
  for (const { staleness } of of(2)) expect(staleness).toBeGreaterThan(0.5);
  expect(advice).toMatch(
    /With 2 asynchronous workers \(staleness .* the limit is .*, with one worker/,
  );
});
