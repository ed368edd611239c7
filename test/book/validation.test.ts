import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { type CurveSettings, curvePlan, curveReport } from '../../study/curve.ts';
import { foldsPlan } from '../../study/folds.ts';
import { extrapolate } from '../../study/power-law.ts';
import { deviationOf, estimate, meanOf } from '../../study/statistics.ts';
import { stoppingPlan, WAYS } from '../../study/stopping.ts';
import { bestEvaluation, listPlan, type Trial, trialValue } from '../../study/study.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { studyOn, workForAll } from '../support/study.ts';

// Deep Learning §5.3, §7.8 and §11.3: how much to trust a validation value, what to do after early
// stopping, and when more data helps. On real digits, with real runs.

const DIGITS = join(FIXTURES, 'few-digits.ts');
let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  await workForAll(cluster, 2, [FIXTURES]);
});
afterAll(() => cluster.close());

const short = { epochsMax: 4, workersMax: 1, testAtEnd: false };
const errors = (trials: readonly Trial[]) => trials.map((trial) => trialValue(trial, 'error'));

test('§5.3.1: on a small data set the mean of five folds scatters less than one hold-out part', async () => {
  const training = { epochsMax: 15, learningRate: 0.3 };
  const base = [short, training, { hyperparameters: { count: 300 }, validationFraction: 0.2 }];
  const holdOut = await studyOn(
    cluster,
    'hold-out',
    DIGITS,
    listPlan(
      Array.from({ length: 10 }, (_, i) => ({
        ...{ key: String(i), label: `seed ${i}` },
        config: resolveConfig(...base, { seed: 100 + i }),
      })),
    ),
  );
  const folds = { folds: 5, stratified: true, repeats: 4, base };
  const all = errors(await studyOn(cluster, 'folds', DIGITS, foldsPlan(folds)));
  const means = [0, 1, 2, 3].map((repeat) => meanOf(all.slice(5 * repeat, 5 * repeat + 5)));
  expect(deviationOf(means)).toBeLessThan(0.7 * deviationOf(errors(holdOut)));
  // Both speak of the same error; and one hold-out part alone may be far off.
  expect(Math.abs(meanOf(means) - meanOf(errors(holdOut)))).toBeLessThan(0.05);
});

test('§7.8: retrain and continue use the validation examples too, and gain where data is scarce', async () => {
  const base = [
    { epochsMax: 60, learningRate: 0.1, workersMax: 1, earlyStopping: { patience: 5 } },
    // Half of 400 digits validate: there is much to gain from them.
    { hyperparameters: { count: 400 }, validationFraction: 0.5 },
  ];
  const trials = await studyOn(cluster, 'stopping', DIGITS, stoppingPlan({ repeats: 3, base }));
  const of = (way: string) => trials.filter((t) => t.config.earlyStopping.afterStop === way);
  const [restore, retrain, onward] = WAYS.map((way) => ({
    error: meanOf(of(way).map(({ test: t }) => t!.error!)),
    steps: meanOf(of(way).map(({ step }) => step)),
  }));
  expect(retrain!.error).toBeLessThan(restore!.error - 0.005);
  expect(onward!.error).toBeLessThan(restore!.error - 0.005);
  // It is paid for with updates.
  expect(retrain!.steps).toBeGreaterThan(restore!.steps);
  // Until the stop the three were the same training, to the bit.
  const stops = WAYS.map((way) => of(way).map((trial) => bestEvaluation(trial)!.loss));
  expect(stops[1]).toEqual(stops[0]);
  expect(stops[2]).toEqual(stops[0]);
});

test('§11.3: the error over training-set size on logarithmic axes foretells that of more data', async () => {
  const settings: CurveSettings = {
    ...{ fractions: [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], repeats: 2, target: null },
    base: [
      short,
      { epochsMax: 10, learningRate: 0.3 },
      { validationFraction: 0.25, hyperparameters: { count: 3200 } },
    ],
  };
  const trials = await studyOn(cluster, 'curve', DIGITS, curvePlan(settings));
  const measured = trials.map((trial) => ({
    n: trial.data!.trainCount,
    error: trialValue(trial, 'error'),
  }));
  const largest = Math.max(...measured.map(({ n }) => n));
  // From half of the data and less: what would all of it bring?
  const { law, interval } = extrapolate(measured.filter(({ n }) => n < largest))!;
  const seen = estimate(measured.filter(({ n }) => n === largest).map(({ error }) => error));
  const { low, high } = interval(largest);
  expect(seen.mean).toBeGreaterThan(low - 0.01);
  expect(seen.mean).toBeLessThan(high + 0.01);
  expect(law.at(largest)).toBeLessThan(law.at(largest / 2));

  const report = curveReport('curve', settings, trials);
  const sizes = report.facts.sizes as {
    n: number;
    training: { mean: number };
    validation: { mean: number };
  }[];
  const gap = ({ training, validation }: (typeof sizes)[number]) => validation.mean - training.mean;
  expect(gap(sizes.at(-1)!)).toBeLessThan(gap(sizes[0]!));
  // A small training set is learnt by heart: the gap says to gather data, not to enlarge the model.
  const few = curveReport(
    'few',
    { ...settings, target: 0.1 },
    trials.filter((t) => t.config.trainFraction < 0.2),
  );
  expect(few.advice).toContain('More data is one of the best remedies');
});

test('§11.3: a training error above the target asks for a larger model, not for more data', async () => {
  const settings: CurveSettings = {
    ...{ fractions: [0.5, 1], repeats: 1, target: 0.1 },
    // Two hidden units cannot tell ten digits apart, however many there are.
    base: [
      short,
      { epochsMax: 8, learningRate: 0.3 },
      { hyperparameters: { count: 1600, units: 2 } },
    ],
  };
  const trials = await studyOn(cluster, 'narrow', DIGITS, curvePlan(settings));
  const { advice } = curveReport('narrow', settings, trials);
  expect(advice).toContain('more data is not the next step');
  const wider = { ...settings, base: [...settings.base, { hyperparameters: { units: 64 } }] };
  const wide = await studyOn(cluster, 'wide', DIGITS, curvePlan(wider));
  const full = (of: readonly Trial[]) => bestEvaluation(of[0]!)!.metrics.trainingError!;
  expect(full(wide)).toBeLessThan(0.1);
  expect(full(trials)).toBeGreaterThan(0.3);
});
