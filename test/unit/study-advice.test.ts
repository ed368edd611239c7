import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ErrorMeasure } from '../../shared/protocol.ts';
import type { Evaluation } from '../../shared/rest.ts';
import { ablationPlan, ablationReport } from '../../study/ablate.ts';
import { curvePlan, curveReport } from '../../study/curve.ts';
import { foldsPlan, foldsReport } from '../../study/folds.ts';
import { learningRatePlan, learningRateReport } from '../../study/learning-rate.ts';
import { pictureOf } from '../../study/plot.ts';
import type { Report } from '../../study/report.ts';
import { createSearchPlan, type SearchSettings } from '../../study/search.ts';
import { searchReport } from '../../study/search-report.ts';
import { stoppingPlan, stoppingReport } from '../../study/stopping.ts';
import type { Curve, NewTrial, Plan, Trial, TrialEnd } from '../../study/study.ts';
import { ownVariants } from '../../study/variants.ts';

// Sentences of studies, most of all where they must not be said (docs/advice.md).

interface Outcome {
  /** Validation error and loss. */
  readonly error: number | null;
  readonly loss?: number | null;
  readonly training?: number | null;
  readonly test?: number | null;
  readonly end?: TrialEnd;
  readonly trainCount?: number | null;
  readonly curve?: Curve;
  readonly measure?: ErrorMeasure | null;
}

const FINISHED: TrialEnd = { kind: 'finished', reason: 'reached epochsMax' };
const FAILED: TrialEnd = { kind: 'failed', reason: 'diverged for good' };
const REFUSED: TrialEnd = {
  kind: 'failed',
  reason: 'no worker can do it: DP_DATA_LABEL row 3: label 7',
  code: 'DP_DATA_LABEL',
};

function evaluationOf({ error, loss = error, training }: Outcome): Evaluation {
  return {
    ...{ step: 10, epoch: 1, seconds: 1, part: 'validation', examples: 100, loss, error },
    metrics: training == null ? {} : { trainingError: training },
    ...{ learningRate: 0.1, trainingLoss: 1 },
  } as Evaluation;
}

function trialOf(start: NewTrial, index: number, outcome: Outcome): Trial {
  const { end = FINISHED, trainCount = 800, measure = 'misclassification', test: tested } = outcome;
  const evaluation = evaluationOf(outcome);
  return {
    ...{ index, id: `s-${start.key}`, label: start.label, point: start.point ?? {} },
    ...{ config: start.config, desire: 'end', level: 0, end, phase: 'finished' },
    evaluations: end.code === undefined ? [evaluation] : [],
    best: evaluation,
    test: tested === undefined ? null : ({ ...evaluation, error: tested } as Evaluation),
    ...{ step: 10, examples: 100, seconds: 1, errorMeasure: measure, parameters: 10, hint: null },
    data:
      trainCount === null
        ? null
        : {
            trainCount: Math.max(1, Math.round(trainCount * start.config.trainFraction)),
            ...{ validationCount: 200, testCount: 100, fingerprint: 'f', source: 's' },
          },
    ...(outcome.curve ? { curve: outcome.curve } : {}),
  } as Trial;
}

/** Lets a plan run to its end, or to `most` trials, each with the outcome that is drawn for it. */
function conduct(plan: Plan, outcomes: (start: NewTrial, index: number) => Outcome, most = 40) {
  const trials: Trial[] = [];
  while (trials.length < most) {
    const { start, done } = plan.decide(trials, most - trials.length);
    if (start.length === 0) break;
    for (const each of start)
      trials.push(trialOf(each, trials.length, outcomes(each, trials.length)));
    if (done) break;
  }
  return trials;
}

const base = [{ seed: 5, epochsMax: 3 }];
const searching = (more: Partial<SearchSettings> = {}): SearchSettings => ({
  ...{ method: 'random', trials: 12, seed: 1, metric: 'error', rounds: 1, kill: 'none' },
  ...{ learningRateFirst: false, eta: 3, first: 1, base },
  space: {
    learningRate: { kind: 'log', low: 0.001, high: 1 },
    'optimizer.kind': { kind: 'choice', values: ['sgd', 'adam'] },
  },
  ...more,
});
const rates = {
  ...{ low: 1e-4, high: 1, steps: 20, probeSteps: 10, seeds: 3, workers: 1, fork: null, base },
};
const set = ownVariants(
  { base: {}, fast: { learningRate: 0.5 }, slow: { learningRate: 0.01 } },
  'x',
);
const ablation = { set, repeats: 3, metric: 'error' as const, base };
const folding = { folds: 4, stratified: false, repeats: 1, base };
const curving = { fractions: [0.25, 0.5, 1], repeats: 2, target: null as number | null, base };

type Kind = readonly [
  string,
  () => Plan,
  (trials: readonly Trial[], target: number | null) => Report,
  /** Whether the trial alone is a result. */
  (trial: Trial) => boolean,
];

const hasLoss = ({ evaluations }: Trial) => evaluations.some(({ loss }) => Number.isFinite(loss));
const hasError = (trial: Trial) =>
  hasLoss(trial) && trial.evaluations.some(({ error }) => Number.isFinite(error));
const KINDS: readonly Kind[] = [
  [
    'search',
    () => createSearchPlan(searching()),
    (t) => searchReport('s', searching(), t, 'train'),
    (trial) => trial.end?.kind !== 'failed' && hasError(trial),
  ],
  [
    'lr-find',
    () => learningRatePlan(rates),
    (t) => learningRateReport('s', rates, t, () => 'x'),
    ({ curve }) => {
      const lost = curve!.loss.findIndex((loss) => !Number.isFinite(loss));
      return (lost < 0 ? curve!.loss.length : lost) >= 5;
    },
  ],
  ['ablate', () => ablationPlan(ablation), (t) => ablationReport('s', ablation, t), hasError],
  ['folds', () => foldsPlan(folding), (t) => foldsReport('s', folding, t, String), hasLoss],
  [
    'curve',
    () => curvePlan(curving),
    (t, target) => curveReport('s', { ...curving, target }, t),
    (trial) => trial.data !== null && hasError(trial),
  ],
  [
    'stopping',
    () => stoppingPlan({ repeats: 2, base }),
    (t) => stoppingReport('s', t),
    (trial) => Number.isFinite(trial.test?.error),
  ],
];

describe('whatever trials end in', () => {
  const value = fc.oneof(
    { weight: 4, arbitrary: fc.double({ min: 0, max: 1, noNaN: true }) },
    { weight: 1, arbitrary: fc.constantFrom(0, 0, 0.5, 1, 1e-9, 3, 1e9, -2) },
    { weight: 1, arbitrary: fc.constantFrom(null, Number.NaN, Infinity) },
  );
  const rising = Array.from({ length: 20 }, (_, i) => 1e-4 * 1.6 ** i);
  const outcome: fc.Arbitrary<Outcome> = fc.record({
    ...{ error: value, loss: value, training: value, test: value },
    end: fc.constantFrom(FINISHED, FINISHED, FINISHED, FAILED, REFUSED, {
      kind: 'killed' as const,
      reason: 'worse than the median',
    }),
    trainCount: fc.constantFrom(800, 800, 800, 3, 1, null),
    measure: fc.constantFrom<ErrorMeasure | null>('misclassification', 'loss', 'own', null),
    curve: fc.array(value, { minLength: 0, maxLength: 20 }).map((loss) => ({
      loss,
      learningRate: rising.slice(0, loss.length),
      staleness: loss.map(() => 0.5),
    })),
  });

  test.each(KINDS)('%s: a report in words and figures', (_, plan, make, isResult) => {
    fc.assert(
      fc.property(
        fc.array(outcome, { minLength: 1, maxLength: 8 }),
        fc.nat(30),
        fc.constantFrom(null, 0, 0.1, 5),
        (outcomes, most, target) => {
          const trials = conduct(plan(), (__, i) => outcomes[i % outcomes.length]!, most);
          const report = make(trials, target);
          const words = [report.title, report.advice, ...report.headings, ...report.rows.flat()];
          expect(words.join('\n')).not.toMatch(/NaN|undefined|Infinity|\[object|null/);
          expect(report.advice).not.toBe('');
          for (const figure of Object.values(report.plots))
            expect(pictureOf(figure)).not.toMatch(/NaN|undefined|Infinity/);
          for (const row of report.rows) expect(row).toHaveLength(report.headings.length);
          // The command fails where nothing was measured, and there only.
          expect(report.failure === null).toBe(trials.some(isResult));
          if (report.failure) {
            expect(report.failure.code).not.toBe('DP_INTERNAL');
            expect(report.failure.message).not.toMatch(/NaN|undefined|learningRate/);
          }
        },
      ),
      { numRuns: 30 },
    );
  });
});
