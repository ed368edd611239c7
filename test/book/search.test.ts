import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Point, Space } from '../../shared/space.ts';
import { importance } from '../../study/importance.ts';
import { createSearchPlan, ranked, type SearchSettings } from '../../study/search.ts';
import { gridPoints, placesFor, pointAt, regionAround, unitPoint } from '../../study/space.ts';
import { meanOf } from '../../study/statistics.ts';
import type { Trial } from '../../study/study.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { quickTraining } from '../support/quick-training.ts';
import { studyOn, workForAll } from '../support/study.ts';

// Deep Learning §11.4, "Selecting Hyperparameters": each test shows the effect of one line of advice.

const SEEDS = [1, 2, 3, 4, 5];
const space: Space = {
  learningRate: { kind: 'log', low: 1e-6, high: 1 },
  momentum: { kind: 'uniform', low: 0, high: 0.99 },
  initialScale: { kind: 'log', low: 1e-4, high: 1e-2 },
  clip: { kind: 'log', low: 100, high: 10_000 },
  order: { kind: 'integer', low: 1, high: 1000 },
};
const best = (points: readonly Point[], seed: number) =>
  Math.min(...points.map((point) => quickTraining(point, seed)));
const randomPoints = (of: Space, count: number, seed: number) =>
  Array.from({ length: count }, (_, i) => pointAt(of, placesFor('random', of, seed, i)));

describe('§11.4.4, random search', () => {
  test('finds a better value than a grid of as many trials where two of five hyperparameters matter', () => {
    // `downpour search` refuses a grid over five dimensions; here it is made of two smaller ones.
    const { learningRate, momentum, ...others } = space;
    const grid = gridPoints({ learningRate, momentum } as Space, 9).flatMap((matter) =>
      gridPoints(others, 27).map((rest) => ({ ...matter, ...rest })),
    );
    expect(grid).toHaveLength(3 ** 5);
    const values = SEEDS.map((seed) => ({
      grid: best(grid, seed),
      random: best(randomPoints(space, grid.length, seed), seed),
      // Even an eighth of the budget does.
      few: best(randomPoints(space, 30, seed), seed),
    }));
    for (const { grid: byGrid, random } of values) expect(random).toBeLessThan(byGrid);
    expect(meanOf(values.map(({ few }) => few))).toBeLessThan(meanOf(values.map((v) => v.grid)));
  });

  test('does better on a logarithmic scale where a hyperparameter counts by factors', () => {
    const linear: Space = { ...space, learningRate: { kind: 'uniform', low: 1e-6, high: 1 } };
    const of = (where: Space) =>
      meanOf(SEEDS.map((seed) => best(randomPoints(where, 12, seed), seed)));
    expect(of(space)).toBeLessThan(of(linear));
  });

  test('done in rounds that narrow around the best finds a better value than in one', () => {
    const trials = 24;
    const inRounds = (seed: number) => {
      let points = randomPoints(space, trials / 3, seed);
      for (const round of [1, 2]) {
        const order = [...points].sort((a, b) => quickTraining(a, seed) - quickTraining(b, seed));
        const region = regionAround(space, order[0]!, 0.5 ** round);
        points = points.concat(
          Array.from({ length: trials / 3 }, (_, i) =>
            pointAt(space, placesFor('random', space, seed, points.length + i, region)),
          ),
        );
      }
      return best(points, seed);
    };
    const seeds = Array.from({ length: 15 }, (_, i) => i + 1);
    const atOnce = meanOf(seeds.map((seed) => best(randomPoints(space, trials, seed), seed)));
    expect(meanOf(seeds.map(inRounds))).toBeLessThan(atOnce);
  });
});

describe('§11.4.1, if there is time for one hyperparameter only, it is the learning rate', () => {
  test('tuned alone it gains more than all others together, and importance says so', () => {
    const { learningRate, ...elsewhere } = space;
    // Momentum up to 0.9: at 0.99 it would be a learning rate a hundred times as high, in disguise.
    const others: Space = { ...elsewhere, momentum: { kind: 'uniform', low: 0, high: 0.9 } };
    // A rate that is too low, and one that is too high.
    for (const start of [{ learningRate: 1e-5 }, { learningRate: 1 }]) {
      const of = (where: Space, seed: number) =>
        best(
          randomPoints(where, 12, seed).map((point) => ({ ...start, ...point })),
          seed,
        );
      for (const seed of SEEDS) {
        expect(of({ learningRate: learningRate! }, seed)).toBeLessThan(of(others, seed));
      }
    }
    const points = randomPoints(space, 80, 1);
    const logs = points.map((point) => Math.log(Math.min(10, quickTraining(point, 1))));
    const [rate, momentum, ...rest] = importance(
      points.map((point) => unitPoint(space, point)),
      logs,
    );
    expect(rate).toBeGreaterThan(momentum!);
    for (const share of rest) expect(share).toBeLessThan(0.1);
  });
});

describe('ending bad trials early (§11.4.4: the same idea as early stopping, across trials)', () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
    await workForAll(cluster, 2, [FIXTURES]);
  });
  afterAll(() => cluster.close());

  test('successive halving is within 0.1 points of the best full trial at 40 % of the cost, on real digits', async () => {
    const settings = (kill: SearchSettings['kill']): SearchSettings => ({
      space: {
        learningRate: { kind: 'log', low: 0.001, high: 1 },
        'hyperparameters.units': { kind: 'logInteger', low: 4, high: 32 },
      },
      ...{
        method: 'random',
        trials: 18,
        seed: 2,
        metric: 'error',
        rounds: 1,
        kill,
        eta: 3,
        first: 1,
      },
      learningRateFirst: false,
      base: [
        {
          ...{ epochsMax: 9, minibatchSize: 32, workersMax: 1, testAtEnd: false },
          ...{ validationFraction: 0.5, hyperparameters: { count: 2000 } },
          earlyStopping: { enabled: false, metric: 'error' },
        },
      ],
    });
    const file = join(FIXTURES, 'few-digits.ts');
    const conduct = (kill: SearchSettings['kill']) =>
      studyOn(cluster, `digits-${kill}`, file, createSearchPlan(settings(kill)));
    const full = await conduct('none');
    const halved = await conduct('asha');
    const bestOf = (trials: readonly Trial[]) => ranked(trials, 'error')[0]!.best!.error!;
    const cost = (trials: readonly Trial[]) => trials.reduce((sum, t) => sum + t.examples, 0);
    expect(halved).toHaveLength(18);
    expect(bestOf(halved)).toBeLessThanOrEqual(bestOf(full) + 0.001);
    expect(cost(halved) / cost(full)).toBeLessThanOrEqual(0.4);
  });
});
