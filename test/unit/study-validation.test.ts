import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { RunConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import { type CurveSettings, curvePlan, curveReport } from '../../study/curve.ts';
import { foldsPlan, foldsReport } from '../../study/folds.ts';
import { plotSvg } from '../../study/plot.ts';
import { extrapolate, fitPowerLaw } from '../../study/power-law.ts';
import { writeReport } from '../../study/report.ts';
import { checkTestPart, stoppingPlan, stoppingReport } from '../../study/stopping.ts';
import { conductStudy, type StudyPlan } from '../../study/study.ts';
import { FakeServer } from '../support/fake-server.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-study-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

async function conduct(server: FakeServer, plan: StudyPlan) {
  const { done, trials } = await conductStudy({
    ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
    ...{ settings: 1, plan, parallel: 3, pollMs: 0, onEvent: () => {} },
    signal: new AbortController().signal,
  });
  expect(done).toBe(true);
  return trials;
}

describe('a power law', () => {
  const sizes = [100, 200, 400, 800, 1600, 3200];

  test('is found again where there is no noise, floor included', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.5, max: 5, noNaN: true }),
        fc.double({ min: 0.2, max: 1, noNaN: true }),
        fc.constantFrom(0, 0.02, 0.1),
        (a, b, c) => {
          const at = (n: number) => c + a * n ** -b;
          const law = fitPowerLaw(sizes.map((n) => ({ n, error: at(n) })))!;
          for (const n of [50, 3200, 12_800]) expect(law.at(n) / at(n)).toBeCloseTo(1, 1);
        },
      ),
    );
  });

  test('its interval holds the truth about as often as it says, four times beyond the data', () => {
    const draw = random(5, 5);
    const truth = (n: number) => 0.03 + 2 * n ** -0.5;
    let held = 0;
    for (let i = 0; i < 40; i++) {
      const noisy = sizes.flatMap((n) =>
        [0, 1, 2].map(() => ({ n, error: truth(n) * Math.exp(0.05 * draw.normal()) })),
      );
      const { low, high } = extrapolate(noisy, i)!.interval(12_800);
      if (low <= truth(12_800) && truth(12_800) <= high) held++;
    }
    expect(held).toBeGreaterThanOrEqual(30);
  });

  test('never rises, and needs two sizes', () => {
    const law = fitPowerLaw([
      { n: 10, error: 0.1 },
      { n: 100, error: 0.2 },
    ])!;
    expect(law.at(1000)).toBeLessThanOrEqual(law.at(10));
    expect(
      fitPowerLaw([
        { n: 10, error: 0.1 },
        { n: 10, error: 0.2 },
      ]),
    ).toBeNull();
  });
});

describe('folds', () => {
  const settings = { folds: 5, stratified: true, repeats: 2, base: [{ epochsMax: 2 }] };

  test('run once each, with mean, error and interval in the report', async () => {
    const trials = await conduct(
      new FakeServer(({ validation, seed }) => 0.1 + 0.01 * validation.fold + 0.001 * seed),
      foldsPlan(settings),
    );
    const seen = trials.map(({ config }) => `${config.seed} ${config.validation.fold}`);
    expect(new Set(seen).size).toBe(10);
    expect(trials.every(({ config }) => config.validation.stratified)).toBe(true);
    const report = foldsReport('s', settings, trials, (steps) => `train ${steps}`);
    expect(report.rows).toHaveLength(10);
    expect(report.facts.error).toMatchObject({ count: 10, mean: expect.closeTo(0.1215, 6) });
    expect(report.advice).toMatch(
      /12\.15 % ± 0\.47 % .*95 % confidence 11\.08 % … 13\.22 %.*9 degrees/,
    );
    expect(report.advice).toContain('below 100,000, k-fold pays');
    const [path] = await writeReport(folder, report);
    expect(readFileSync(path!, 'utf8')).toContain('| fold 0 of 5, seed 1 | 0 | 800 |');
  });
});

describe('the three ways after early stopping', () => {
  const errors = { restore: 0.05, retrain: 0.04, continue: 0.05 };
  const curve = ({ earlyStopping, seed }: RunConfig) => {
    const noise = 0.001 * ((seed * 7) % 3);
    return (
      errors[earlyStopping.afterStop] +
      noise +
      (earlyStopping.afterStop === 'restore' ? 0 : 0.2 * noise * (seed % 2))
    );
  };

  test('share their seeds, look at the test part, and are compared seed by seed', async () => {
    const base = [{ epochsMax: 2, testAtEnd: false }];
    const trials = await conduct(new FakeServer(curve), stoppingPlan({ repeats: 4, base }));
    expect(trials).toHaveLength(12);
    expect(trials.every(({ test: seen }) => seen !== null)).toBe(true);
    const report = stoppingReport('s', trials);
    expect(report.rows.map(([way]) => way)).toEqual(['restore', 'retrain', 'continue']);
    // The noise of a seed is in both, so the difference has none.
    expect(report.advice).toMatch(/retrain \(Algorithm 7\.2\) lowers the test error by 1\.00 %/);
    expect(report.advice).toMatch(/continue \(Algorithm 7\.3\) .*no difference is shown/);
    expect(report.advice).toContain('Choose retrain');
  });

  test('cannot be compared without a test part', () => {
    const data = { trainCount: 1, validationCount: 1, fingerprint: 'f', source: '' };
    expect(() => checkTestPart({ ...data, testCount: 0 })).toThrow('has no test part');
    expect(() => checkTestPart({ ...data, testCount: 1 })).not.toThrow();
  });
});

describe('a learning curve', () => {
  const settings = (more: Partial<CurveSettings> = {}): CurveSettings => ({
    ...{ fractions: [0.125, 0.25, 0.5, 1], repeats: 2, target: null },
    base: [{ epochsMax: 3, minibatchSize: 32 }],
    ...more,
  });
  /** Falls with the square root of the examples; two seeds a little apart. */
  const curve = ({ trainFraction, seed }: RunConfig) =>
    (0.5 + 0.01 * seed) / Math.sqrt(800 * trainFraction);

  test('gives every size as many updates between evaluations as the largest has in an epoch', async () => {
    const trials = await conduct(new FakeServer(curve), curvePlan(settings()));
    expect(trials).toHaveLength(8);
    for (const { config } of trials) {
      const { trainFraction, evaluateEverySteps, stepsMax, epochsMax, evaluateTraining } = config;
      expect(evaluateTraining).toBeGreaterThan(0);
      // 800 examples in minibatches of 32.
      if (trainFraction === 1) expect([evaluateEverySteps, epochsMax]).toEqual([null, 3]);
      else expect([evaluateEverySteps, stepsMax, epochsMax]).toEqual([25, 75, null]);
    }
  });

  test('is continued beyond the data, and says what the target needs', async () => {
    const trials = await conduct(new FakeServer(curve), curvePlan(settings()));
    const report = curveReport('s', settings({ target: 0.01 }), trials);
    expect(report.rows.map(([n]) => n)).toEqual([
      ...['100', '200', '400', '800'],
      ...['1600 (extrapolated)', '3200 (extrapolated)', '8000 (extrapolated)'],
    ]);
    // 0.515 / √n = 0.01 at n = 2652.
    const needed = Number(/needs about (\d+) training/.exec(report.advice)![1]);
    expect(needed).toBeGreaterThan(2300);
    expect(needed).toBeLessThan(3000);
    expect(plotSvg(report.plots['curve.svg']!)).not.toMatch(/NaN|Infinity|undefined/);
    // In the unit of the table.
    expect(report.rows[0]![2]).toContain('%');
    expect(report.plots['curve.svg']).toMatchObject({ y: { label: 'error', percent: true } });
  });

  test.each([
    [0.5, 'more data is not the next step', 'training error above the target'],
    [0.012, 'More data is one of the best remedies', 'training error fine, gap open'],
    [0.9, 'nothing more is needed', 'both below the target'],
  ])('advises by the procedure of §11.3: target and case %s', async (target, advice) => {
    // The fake's training error is a quarter of its validation error.
    const scale = target === 0.5 ? 200 : 1;
    const server = new FakeServer((config) => Math.min(4, scale * curve(config)));
    const trials = await conduct(server, curvePlan(settings()));
    expect(curveReport('s', settings({ target }), trials).advice).toContain(advice);
  });

  test('ends when not even the largest size can be run', async () => {
    const server = new FakeServer(() => Number.NaN);
    const trials = await conduct(server, curvePlan(settings()));
    const { failure } = curveReport('s', settings(), trials);
    expect(failure).toMatchObject({ code: 'DP_RUN_FAILED' });
  });
});
