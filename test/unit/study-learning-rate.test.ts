import { describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import {
  analyseRange,
  type LearningRateSettings,
  learningRatePlan,
  type Probe,
  suggest,
} from '../../study/learning-rate.ts';
import { estimate } from '../../study/statistics.ts';
import type { Trial } from '../../study/study.ts';

/** A loss that falls from ln 10 as the rate rises past 0.001 and is lost again at `limit`. */
function curve(limit: number, noise = 0.05, steps = 200) {
  const draw = random(7, 7);
  const learningRate = Array.from({ length: steps }, (_, i) => 1e-5 * 1e6 ** (i / steps));
  const loss = learningRate.map((rate) => {
    const learnt = 1.8 / (1 + (0.003 / rate) ** 2);
    const value = rate < limit ? 2.3 - learnt : 2.3 + rate / limit;
    return value + noise * draw.normal();
  });
  return { learningRate, loss, staleness: learningRate.map(() => 0) };
}

describe('a range test', () => {
  test.each([0.05, 0.5, 3])('finds where training falls apart: %s', (limit) => {
    for (const noise of [0.01, 0.1, 0.2]) {
      const range = analyseRange(curve(limit, noise), false, 1)!;
      expect(range.initial).toBeCloseTo(2.3, 0);
      expect(range.limit! / limit).toBeGreaterThan(0.75);
      expect(range.limit! / limit).toBeLessThan(1.35);
    }
  });

  test('that never becomes unstable says so, and one that fails ends at its last rate', () => {
    expect(analyseRange(curve(Infinity), false, 1)!.limit).toBeNull();
    const { learningRate, loss, staleness } = curve(Infinity);
    const cut = { learningRate: learningRate.slice(0, 150), loss: loss.slice(0, 150), staleness };
    expect(analyseRange(cut, true, 1)!.limit).toBe(learningRate[149]);
  });

  test('a bad minibatch is no instability, nor is the noise of a trained model', () => {
    const spiked = curve(0.5);
    spiked.loss[80] = 9;
    expect(analyseRange(spiked, false, 1)!.limit!).toBeGreaterThan(0.3);
    const draw = random(3, 3);
    const flat = { ...curve(1), loss: curve(1).loss.map(() => 0.2 + 0.15 * draw.normal() ** 2) };
    expect(analyseRange(flat, false, 1)!.limit).toBeNull();
  });

  test('too short to say anything is left out', () => {
    const { learningRate, staleness } = curve(1);
    expect(analyseRange({ learningRate, staleness, loss: [2.3, 2.2, null] }, true, 1)).toBeNull();
  });
});

const probe = (rate: number, loss: number | null, unstable = 0): Probe => ({
  ...{ rate, unstable, seeds: 2, error: null },
  loss: loss === null ? null : estimate([loss, loss + 0.01]),
});

describe('the suggestion', () => {
  test('is above the rate that is best after 100 updates, and below instability', () => {
    const probes = [probe(0.01, 1), probe(0.02, 0.6), probe(0.04, 0.5), probe(0.08, 0.7)];
    const { best, learningRate } = suggest(probes, 1)!;
    // The parabola lies between the three lowest.
    expect(best).toBeGreaterThan(0.025);
    expect(best).toBeLessThan(0.05);
    expect(learningRate).toBeGreaterThan(best);
    expect(learningRate).toBeLessThan(1.3 * best);
  });

  test('keeps away from a limit that is near, also from one that only some seeds met', () => {
    const probes = [probe(0.02, 0.9), probe(0.04, 0.5), probe(0.06, 0.55, 1)];
    expect(suggest(probes, 1)).toMatchObject({ learningRate: 0.02, unstable: 0.06 });
  });

  test('does without a limit, and without a stable rate there is none', () => {
    expect(suggest([probe(0.02, 0.9), probe(0.04, 0.5)], null)).toMatchObject({
      ...{ best: 0.04, learningRate: 0.048, unstable: null },
    });
    expect(suggest([probe(0.02, null, 2)], 0.01)).toBeNull();
  });
});

describe('the plan', () => {
  const settings: LearningRateSettings = {
    ...{ low: 1e-4, high: 10, steps: 100, probeSteps: 50, seeds: 2, workers: 2 },
    fork: { run: 'a', checkpoint: 'best' },
    base: [{ warmupSteps: 500, schedule: { kind: 'plateau' }, averaging: { kind: 'ema' } }],
  };
  const ended = (trial: object, limit: number): Trial =>
    ({
      ...trial,
      ...{ end: { kind: 'finished', reason: '' }, evaluations: [], curve: curve(limit) },
    }) as unknown as Trial;

  test('lets no group keep a schedule of its own, which would not follow the rising rate', () => {
    const groups = {
      trunk: { learningRate: 0.1, schedule: { kind: 'cosine', steps: 10 } },
      head: { frozen: true },
    };
    const { start } = learningRatePlan({ ...settings, base: [{ groups }] }).decide([], 100);
    expect(start).toHaveLength(4);
    for (const { config } of start) {
      expect(config.groups).toMatchObject({
        trunk: { learningRate: 0.1, schedule: null },
        head: { frozen: true, schedule: null },
      });
    }
  });

  test('tests the range with one worker and with all, waits, and then tries rates below the limit', () => {
    const plan = learningRatePlan(settings);
    const { start } = plan.decide([], 100);
    expect(start.map(({ key }) => key)).toEqual([
      'range-1-1',
      'range-1-2',
      'range-2-1',
      'range-2-2',
    ]);
    for (const { config, fork } of start) {
      expect(fork).toEqual(settings.fork);
      expect(config).toMatchObject({
        ...{ learningRate: 1e-4, warmupSteps: 0, stepsMax: 100, averaging: { kind: 'none' } },
        ...{ schedule: { kind: 'rising', steps: 100 }, divergence: { rollbacksMax: 0 } },
      });
      expect(config.workersMin).toBe(config.workersMax);
      if (config.schedule.kind === 'rising') expect(config.schedule.factor).toBeCloseTo(1e5);
    }
    const running = start.map((trial) => ({ ...trial, end: null }) as unknown as Trial);
    expect(plan.decide(running, 100)).toEqual({ start: [], change: [], done: false });
    // The limit of those that train as the training to come will.
    const ranges = start.map((trial, i) => ended(trial, i < 2 ? 3 : 0.4));
    const probes = plan.decide(ranges, 100).start;
    const rates = [...new Set(probes.map(({ config }) => config.learningRate))];
    expect(rates).toHaveLength(8);
    expect(rates.at(-1)! / 0.8).toBeCloseTo(1, 0);
    expect(rates[7]! / rates[0]!).toBeCloseTo(128, 0);
    for (const { config } of probes) {
      expect(config).toMatchObject({ stepsMax: 50, schedule: { kind: 'constant' }, workersMax: 2 });
    }
    // The same trials give the same decision, and what is started already is not started again.
    const more = plan.decide([...ranges, ...probes.slice(0, 5).map((t) => ended(t, 1))], 2);
    expect(more.start).toEqual(probes.slice(5, 7));
  });

  test('ends when no range test could be measured', () => {
    const plan = learningRatePlan(settings);
    const failed = plan
      .decide([], 9)
      .start.map(
        (trial) =>
          ({ ...trial, end: { kind: 'failed', reason: 'x' }, evaluations: [] }) as unknown as Trial,
      );
    expect(plan.decide(failed, 9)).toEqual({ start: [], change: [], done: true });
  });
});
