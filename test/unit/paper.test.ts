import { describe, expect, test } from 'vitest';
import { raceTo } from '../../cli/paper/race.ts';
import { RESULTS } from '../../cli/paper/registry.ts';
import { type Lab, separated } from '../../cli/paper/result.ts';
import { largestStable, tuneCount, tuneRate } from '../../cli/paper/tune.ts';
import { estimate } from '../../study/statistics.ts';

/** Results of papers: what they are compared by, and that the quick ones come out. */

const lab = (seeds: readonly number[]): Lab => ({
  ...{ seeds, quick: true, signal: new AbortController().signal },
  note: () => {},
  progress: () => {},
});

const resultOf = (name: string) => RESULTS.find((result) => result.name === name)!;

test('each result has a name of its own, a claim, and whose it is', () => {
  expect(new Set(RESULTS.map(({ name }) => name)).size).toBe(RESULTS.length);
  for (const { name, title, paper, claim, setting, seeds, minutes } of RESULTS) {
    expect(name).toMatch(/^[a-z][a-z-]*$/);
    expect(Math.min(title.length, paper.length, claim.length, setting.length)).toBeGreaterThan(10);
    expect(seeds).toBeGreaterThanOrEqual(5);
    expect(minutes).toBeGreaterThan(0);
  }
});

describe('a learning rate', () => {
  const tried = (best: number) => {
    const rates: number[] = [];
    const value = async (rate: number) => {
      rates.push(rate);
      return -((Math.log2(rate) - Math.log2(best)) ** 2);
    };
    return { rates, value };
  };

  test.each([0.01, 0.32, 0.000_3125])(
    'is looked for beyond the edge of the grid: %d',
    async (best) => {
      const { rate, tried: known } = await tuneRate(0.01, tried(best).value);
      expect(rate).toBeCloseTo(best, 8);
      expect(known[0]!.rate).toBeLessThan(rate);
      expect(known.at(-1)!.rate).toBeGreaterThan(rate);
    },
  );

  test('that diverges is never the best, and no rate is tried twice', async () => {
    const { rates, value } = tried(1);
    const { rate } = await tuneRate(0.01, async (at) => (at > 0.05 ? Number.NaN : value(at)));
    expect(rate).toBeCloseTo(0.04, 8);
    expect(new Set(rates).size).toBe(rates.length);
  });

  test('is the largest stable one, up and down', async () => {
    const below = (limit: number) => async (rate: number) => rate < limit;
    expect(await largestStable(0.1, below(1))).toBeCloseTo(0.8, 8);
    expect(await largestStable(0.1, below(0.03))).toBeCloseTo(0.025, 8);
    expect(await largestStable(0.1, below(0))).toBeNull();
  });
});

describe('a count that is tuned', () => {
  const near = (best: number) => async (count: number) => -Math.abs(Math.log(count / best));

  test.each([
    [1, 1],
    [256, 256],
    [1_000, 1_000],
    // The nearest of 16 · 4ⁿ.
    [90, 64],
  ])('is found up to its limits: %i', async (best, found) => {
    const { count, tried } = await tuneCount({ start: 16, least: 1, most: 1_000 }, near(best));
    expect(count).toBe(found);
    expect(new Set(tried.map(({ count }) => count)).size).toBe(tried.length);
    expect(Math.min(...tried.map(({ count }) => count))).toBeGreaterThanOrEqual(1);
  });
});

test('a race ends at its share, and one that does not get there tells how far it came', async () => {
  const quadratic = { curvatures: [1, 0.5], noise: 0, start: 1 };
  const race = (learningRate: number) =>
    raceTo(lab([1]), {
      ...{ quadratic, share: 0.1, capMs: 30, workers: 2, law: 'constant:1', seed: 1 },
      config: { learningRate, consistency: { correction: 'none' } },
    });
  const fast = await race(0.4);
  expect(fast.ms).toBeGreaterThan(0);
  expect(fast.ms).toBeLessThan(30);
  expect(fast.score).toBe(-fast.ms!);
  const [slow, slower] = [await race(1e-3), await race(1e-4)];
  expect([slow.ms, slower.ms]).toEqual([null, null]);
  expect(fast.score).toBeGreaterThan(slow.score);
  expect(slow.score).toBeGreaterThan(slower.score);
});

test('backup workers save the time that order statistics say', async () => {
  const { rows } = await resultOf('backup').repeat(lab([1]));
  for (const [, , measured, theory] of rows) {
    // 200 updates: a standard error of 2 %.
    expect(Math.abs(Number(measured!.split(' ')[0]) / Number(theory) - 1)).toBeLessThan(0.1);
  }
});

test('arms are told apart only where the interval of their difference has no 0', () => {
  expect(separated(estimate([1, 1.1, 0.9]))).toBe(1);
  expect(separated(estimate([-1, -1.1, -0.9]))).toBe(-1);
  expect(separated(estimate([1, -1, 0.5]))).toBe(0);
  expect(separated(estimate([1]))).toBe(0);
});

test('asynchrony begets momentum with exponential times, and not with constant ones', async () => {
  const { runs, text } = await resultOf('momentum').repeat(lab([1]));
  const of = (law: string) => runs.find((run) => run.law === law)!;
  expect(of('exponential:100').momentum).toBeCloseTo(0.75, 1);
  expect(of('exponential:100').unexplained).toBeLessThan(0.05);
  expect(of('constant:100').unexplained).toBeGreaterThan(0.05);
  expect(text).toContain('For M = 4');
});

test('the mean staleness of n workers is n − 1 whatever the law', async () => {
  const { rows, runs } = await resultOf('staleness').repeat(lab([1]));
  expect(runs.map(({ mean }) => Math.round(Number(mean)))).toEqual([9, 9, 9, 9, 9]);
  expect(rows.map(([law]) => law)).toContain('lognormal:100');
});
