import { expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import type { ChartFigure } from '../../shared/figure.ts';
import type { Evaluation } from '../../shared/rest.ts';
import { percent } from '../../shared/text.ts';
import { numberText } from '../../study/report.ts';
import { type ScaledRun, type ScaleSettings, scaleReport } from '../../study/scale.ts';
import { scaledTrials, scalePlan } from '../../study/scale-plan.ts';
import type { Trial } from '../../study/study.ts';

/** Accuracy and time against workers: one table and one sentence, for real workers and virtual ones. */

const evaluation = (seconds: number, error: number): Evaluation => ({
  ...{ step: Math.round(10 * seconds), epoch: 1, seconds, part: 'validation', loss: error, error },
  ...{ examples: 100, metrics: {}, learningRate: 0.1, trainingLoss: error },
});

const run = (
  workers: number,
  errors: readonly number[],
  more: Partial<ScaledRun> = {},
): ScaledRun => ({
  ...{ workers, mode: 'auto', seed: 1, phase: 'finished', reason: '', step: 100, test: null },
  seconds: (10 * errors.length) / workers,
  evaluations: errors.map((error, i) => evaluation((10 * (i + 1)) / workers, error)),
  ...{ staleness: [10, 20, 10], used: null, serverBusy: null, ...more },
});

const settings: ScaleSettings = {
  ...{ metric: 'error', target: null, clock: 'virtual', about: 'About.', format: numberText },
};

test('the fewest workers that are about as fast are advised, with their gain', () => {
  const runs = [
    run(1, [0.5, 0.2, 0.1]),
    run(4, [0.5, 0.2, 0.1]),
    // Barely faster than four.
    run(8, [0.5, 0.2, 0.1], {
      evaluations: [evaluation(7, 0.1)],
    }),
    run(16, [0.5, 0.4, 0.3]),
  ];
  const { advice, rows, facts } = scaleReport('x', runs, settings);
  expect(advice).toContain(
    'Use 4 workers: a validation error of 0.11 after 7.5 s, 4 times as fast as 1 worker.',
  );
  expect(advice).toContain('8 workers would be only 1.07 times as fast.');
  expect(advice).toContain('The target is not reached by every seed with 16 workers.');
  expect(facts.target).toBeCloseTo(0.11, 10);
  expect(rows.map((row) => row[0])).toEqual(['1', '4', '8', '16']);
  expect(rows[1]).toContain('1.0 (0.7, 2)');
});

test('figures have the unit of the table', () => {
  const runs = [run(1, [0.5, 0.2]), run(2, [0.4, 0.3])];
  for (const [format, isShare] of [
    [percent, true],
    [numberText, false],
  ] as const) {
    const { plots } = scaleReport('x', runs, { ...settings, format });
    for (const name of ['workers.svg', 'curves.svg']) {
      const { y } = plots[name] as ChartFigure;
      expect(y.percent ?? false, name).toBe(isShare);
    }
  }
});

test('what nobody knows has no column; a server that is always busy and work thrown away are said', () => {
  const known = { used: 0.5, serverBusy: 0.99 };
  const plain = scaleReport('x', [run(1, [0.1])], settings);
  expect(plain.headings).not.toContain('server busy');
  const { headings, advice } = scaleReport('x', [run(1, [0.1], known)], settings);
  expect(headings).toEqual(expect.arrayContaining(['server busy', 'gradients used']));
  expect(advice).toMatch(/the server's thread works all the time.*thrown away with 1 workers/);
});

test('differences of overlapping seeds are not separated', () => {
  const of = (workers: number, errors: readonly number[]) =>
    errors.map((error, i) => run(workers, [error], { seed: i }));
  const { advice } = scaleReport(
    'x',
    [...of(1, [0.1, 0.12, 0.11]), ...of(2, [0.1, 0.125, 0.112])],
    { ...settings, target: 0.2 },
  );
  expect(advice).toMatch(/differs from that of 1 worker by \+0.00\d+ ± 0.0\d+, not separated/);
});

test('each number of workers is compared with the fewest by seed, on the test part if it was evaluated', () => {
  const tested = (workers: number, seed: number, test: number) =>
    run(workers, [0.5], { seed, test: evaluation(1, test) });
  const runs = [
    ...[tested(1, 1, 0.1), tested(1, 2, 0.2)],
    ...[tested(4, 1, 0.125), tested(4, 2, 0.235)],
    // Its seed has no partner.
    tested(8, 3, 0.1),
  ];
  const { headings, rows } = scaleReport('x', runs, { ...settings, target: 0.6 });
  const at = headings.indexOf('against 1 worker');
  expect(rows.map((row) => row[at])).toEqual(['', expect.stringMatching(/^\+0\.03 ± 0\.06/), '']);
  const { headings: plain, rows: own } = scaleReport(
    'x',
    [run(1, [0.5]), run(2, [0.25])],
    settings,
  );
  expect(own[1]![plain.indexOf('against 1 worker')]).toBe('−0.25');
});

test('a real trial tells the share of its gradients that were used', () => {
  const plan = scalePlan({ workers: [2], seeds: [1], base: [], modes: { auto: {} }, test: true });
  const [start] = plan.decide([], 1).start;
  expect(start!.config.testAtEnd).toBe(true);
  const trial = {
    ...{ point: { workers: 2, mode: 'auto' }, config: start!.config, phase: 'finished' },
    ...{ end: { kind: 'finished', reason: '' }, step: 9, seconds: 3, evaluations: [], test: null },
    pushes: { applied: 8, damped: 1, duplicate: 5, rejected: 3 },
  } as unknown as Trial;
  expect(scaledTrials([trial])[0]!.used).toBeCloseTo(0.75, 12);
  const { pushes: _, ...older } = trial;
  expect(scaledTrials([older])[0]!.used).toBeNull();
});

test('no run with a finite value is a failure, with the reason of the first', () => {
  const { failure } = scaleReport(
    'x',
    [run(1, [], { phase: 'failed', reason: 'diverged' })],
    settings,
  );
  expect(failure).toMatchObject({ code: 'DP_RUN_FAILED', message: /diverged/ });
});

test('real workers are as many as the arm has, and an ended trial tells its staleness', () => {
  const plan = scalePlan({
    ...{ workers: [1, 4], seeds: [3, 4], base: [{ epochsMax: 1 }] },
    modes: { auto: {}, 'bound=2': { consistency: { stalenessMax: 2 } } },
  });
  expect(plan.trialCount).toBe(8);
  const { start, done } = plan.decide([], 100);
  expect(done).toBe(false);
  expect(start.map(({ config }) => config.workersMin)).toEqual([1, 4, 1, 4, 1, 4, 1, 4]);
  expect(start[3]).toMatchObject({
    point: { workers: 4, mode: 'bound=2' },
    config: { workersMax: 4, seed: 3, consistency: { stalenessMax: 2 } },
  });
  expect(new Set(start.map(({ key }) => key)).size).toBe(8);
  expect(plan.decide(start as never, 1)).toMatchObject({ start: [], done: true });

  const trial = {
    ...{ point: { workers: 4, mode: 'auto' }, config: resolveConfig({ seed: 3 }) },
    ...{ end: { kind: 'finished', reason: 'r' }, phase: 'finished', step: 9, seconds: 3 },
    ...{ evaluations: [], test: null, curve: { staleness: [0, 2, 2] } },
  } as unknown as Trial;
  expect(scaledTrials([trial, { ...trial, end: null }])).toMatchObject([
    { workers: 4, mode: 'auto', seed: 3, staleness: [1, 0, 2] },
  ]);
});
