import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createSchedule, momentumAt } from '../../server/core/schedule.ts';
import { resolveConfig } from '../../shared/config.ts';
import type { ScheduleConfig } from '../../shared/schedule-config.ts';

const at = (config: ScheduleConfig, step: number, warmupSteps = 0) =>
  createSchedule(config, { learningRate: 0.2, warmupSteps }).rate(step);

describe('by hand, from ε₀ = 0.2', () => {
  const table: [string, ScheduleConfig, [step: number, rate: number][]][] = [
    [
      'constant',
      { kind: 'constant' },
      [
        [0, 0.2],
        [1e9, 0.2],
      ],
    ],
    [
      // ε_k = (1 − k/τ) ε₀ + (k/τ) ε_τ, and ε_τ = 0.01 ε₀ from then on.
      'linear to a fixed small rate, eq. 8.14',
      { kind: 'linear', steps: 100, floor: 0.01 },
      [
        [0, 0.2],
        [50, 0.101],
        [75, 0.0515],
        [100, 0.002],
        [101, 0.002],
        [1e9, 0.002],
      ],
    ],
    [
      'exponential, smooth: halved every 10 steps',
      { kind: 'exponential', factor: 0.5, steps: 10 },
      [
        [0, 0.2],
        [5, 0.2 * Math.SQRT1_2],
        [10, 0.1],
        [30, 0.025],
        [1e9, 0],
      ],
    ],
    [
      'step: a tenth at each drop',
      { kind: 'step', factor: 0.1, steps: 10 },
      [
        [0, 0.2],
        [9, 0.2],
        [10, 0.02],
        [19, 0.02],
        [20, 0.002],
      ],
    ],
    [
      // cos 60° = ½: 0.1 + 0.9·¾ = 0.775 at a third of the way.
      'cosine to a tenth',
      { kind: 'cosine', steps: 30, floor: 0.1 },
      [
        [0, 0.2],
        [10, 0.155],
        [15, 0.11],
        [30, 0.02],
        [31, 0.02],
        [1e9, 0.02],
      ],
    ],
  ];
  test.each(table)('%s', (_, config, points) => {
    for (const [step, rate] of points) expect(at(config, step)).toBeCloseTo(rate, 12);
  });
});

const anySchedule = fc.constantFrom<ScheduleConfig>(
  { kind: 'constant' },
  { kind: 'linear', steps: 70, floor: 0.05 },
  { kind: 'exponential', factor: 0.5, steps: 20 },
  { kind: 'step', factor: 0.1, steps: 25 },
  { kind: 'cosine', steps: 60, floor: 0 },
);

test('a rate never rises after warm-up, is never above ε₀ and never negative', () => {
  fc.assert(
    fc.property(anySchedule, fc.nat(200), (config, step) => {
      expect(at(config, step + 1)).toBeLessThanOrEqual(at(config, step));
      expect(at(config, step)).toBeLessThanOrEqual(0.2);
      expect(at(config, step)).toBeGreaterThanOrEqual(0);
    }),
  );
});

describe('warm-up', () => {
  test('by hand: 4 steps at 1/5, 2/5, 3/5, 4/5 of the rate, then all of it', () => {
    const rates = [0, 1, 2, 3, 4, 5].map((step) => at({ kind: 'constant' }, step, 4));
    [0.04, 0.08, 0.12, 0.16, 0.2, 0.2].forEach((rate, i) => {
      expect(rates[i]).toBeCloseTo(rate, 12);
    });
  });

  test('rises from above 0 and joins its schedule without a jump', () => {
    fc.assert(
      fc.property(anySchedule, fc.integer({ min: 1, max: 100 }), (config, warmupSteps) => {
        expect(at(config, 0, warmupSteps)).toBeGreaterThan(0);
        expect(at(config, warmupSteps, warmupSteps)).toBe(at(config, warmupSteps));
        for (let step = 0; step < warmupSteps; step++) {
          // What warm-up multiplies by rises by the same amount each step, also into the join.
          const factor = (s: number) => at(config, s, warmupSteps) / at(config, s);
          if (at(config, step + 1) === 0) continue;
          expect(factor(step + 1) - factor(step)).toBeCloseTo(1 / (warmupSteps + 1), 9);
        }
      }),
    );
  });
});

describe('plateau', () => {
  const plateau = (part: Partial<Extract<ScheduleConfig, { kind: 'plateau' }>> = {}) => {
    const config = {
      kind: 'plateau',
      divideBy: 5,
      patience: 2,
      minImprovement: 0,
      floor: 0.001,
      ...part,
    } as const;
    return createSchedule(config, { learningRate: 1, warmupSteps: 0 });
  };

  test('divides at exactly the `patience`-th evaluation without improvement, and counts anew', () => {
    const schedule = plateau();
    // best 3, 2; then 2 and 4 are no improvement: divided; 2.5, 2.1: divided; 1 is one, 1.5 not.
    const course = [3, 2, 2, 4, 2.5, 2.1, 1, 1.5].map((value) => [
      schedule.observe(value),
      schedule.rate(0),
    ]);
    expect(course).toEqual([
      ['kept', 1],
      ['kept', 1],
      ['kept', 1],
      ['divided', 0.2],
      ['kept', 0.2],
      ['divided', expect.closeTo(0.04, 12)],
      ['kept', expect.closeTo(0.04, 12)],
      ['kept', expect.closeTo(0.04, 12)],
    ]);
  });

  test.each([1, 3, 7])('patience %i', (patience) => {
    const schedule = plateau({ patience });
    schedule.observe(1);
    for (let i = 1; i < patience; i++) expect(schedule.observe(1)).toBe('kept');
    expect(schedule.observe(1)).toBe('divided');
  });

  test('stays at its floor, and says that nothing was divided', () => {
    const schedule = plateau({ patience: 1, floor: 0.1 });
    schedule.observe(1);
    expect(schedule.observe(1)).toBe('divided');
    expect(schedule.rate(0)).toBe(0.2);
    // 0.04 would be below.
    expect(schedule.observe(1)).toBe('divided');
    expect(schedule.rate(0)).toBe(0.1);
    for (let i = 0; i < 5; i++) expect(schedule.observe(1)).toBe('kept');
    expect(schedule.rate(1e6)).toBe(0.1);
  });

  test('an improvement of `minImprovement` or less is none', () => {
    const schedule = plateau({ patience: 1, minImprovement: 0.25 });
    schedule.observe(1);
    expect(schedule.observe(0.75)).toBe('divided');
    expect(schedule.observe(0.7)).toBe('kept');
  });

  test('a value that is not finite improves on nothing, also as the first', () => {
    const schedule = plateau();
    expect([NaN, Infinity].map((value) => schedule.observe(value))).toEqual(['kept', 'divided']);
    expect(schedule.observe(5)).toBe('kept');
    expect(schedule.state().best).toBe(5);
  });

  test('continues from a saved state as if nothing had happened', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0, max: 3, noNaN: true }), { maxLength: 20 }),
        fc.nat(20),
        (values, cut) => {
          const whole = plateau();
          const first = plateau();
          const second = plateau();
          const outcomes = values.map((value) => whole.observe(value));
          const before = values.slice(0, cut).map((value) => first.observe(value));
          second.restore(JSON.parse(JSON.stringify(first.state())));
          const after = values.slice(cut).map((value) => second.observe(value));
          expect([...before, ...after]).toEqual(outcomes);
          expect(second.rate(7)).toBe(whole.rate(7));
        },
      ),
    );
  });
});

test('other schedules do not listen to evaluations', () => {
  const schedule = createSchedule({ kind: 'constant' }, { learningRate: 1, warmupSteps: 0 });
  for (let i = 0; i < 10; i++) expect(schedule.observe(1)).toBe('kept');
  expect(schedule.rate(0)).toBe(1);
});

test('momentum rises 0.5, 0.9, 0.99 at its steps, §8.3.2', () => {
  const { momentumSchedule } = resolveConfig({
    optimizer: { kind: 'momentum' },
    momentumSchedule: { values: [0.5, 0.9, 0.99], steps: [100, 1000] },
  });
  const steps = [0, 99, 100, 999, 1000, 1e9];
  expect(steps.map((step) => momentumAt(momentumSchedule, step))).toEqual([
    0.5, 0.5, 0.9, 0.9, 0.99, 0.99,
  ]);
  expect(momentumAt({ values: [0.7], steps: [] }, 5)).toBe(0.7);
  expect(momentumAt(null, 5)).toBeUndefined();
});
