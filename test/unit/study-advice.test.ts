import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ErrorMeasure } from '../../shared/protocol.ts';
import type { Evaluation } from '../../shared/rest.ts';
import { ablationPlan, ablationReport } from '../../study/ablate.ts';
import { curvePlan, curveReport } from '../../study/curve.ts';
import { foldsPlan, foldsReport } from '../../study/folds.ts';
import { halving, medianRule } from '../../study/killing.ts';
import { learningRatePlan, learningRateReport } from '../../study/learning-rate.ts';
import { plotSvg } from '../../study/plot.ts';
import type { Report } from '../../study/report.ts';
import { createSearchPlan, type SearchSettings } from '../../study/search.ts';
import { searchReport } from '../../study/search-report.ts';
import { stoppingPlan, stoppingReport } from '../../study/stopping.ts';
import type { NewTrial, StudyPlan, TrainingCurve, Trial, TrialEnd } from '../../study/study.ts';
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
  readonly curve?: TrainingCurve;
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
function conduct(
  plan: StudyPlan,
  outcomes: (start: NewTrial, index: number) => Outcome,
  most = 40,
) {
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
  () => StudyPlan,
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
            expect(plotSvg(figure)).not.toMatch(/NaN|undefined|Infinity/);
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

describe('failures', () => {
  const failing = (ends: readonly (TrialEnd | undefined)[]) =>
    conduct(foldsPlan(folding), (_, i) => ({
      error: ends[i] ? null : 0.1,
      ...(ends[i] ? { end: ends[i] } : {}),
    }));

  test('of some trials are told with their number and reasons, and the command does not fail', () => {
    const report = foldsReport('s', folding, failing([undefined, FAILED, FAILED, REFUSED]), String);
    expect(report.failure).toBeNull();
    expect(report.advice).toContain('3 of 4 trials failed and are not counted: ');
    expect(report.advice).toContain('diverged for good (2 of them); no worker can do it');
    expect(report.advice).toContain('Over 1 fold the');
  });

  test('of all have the code of what every worker said, else that of a failed run', () => {
    const all = foldsReport('s', folding, failing(Array(4).fill(REFUSED)), String);
    expect(all.failure).toMatchObject({ code: 'DP_DATA_LABEL' });
    expect(all.failure!.message).toContain('none of 4 trials was measured');
    expect(all.advice).not.toMatch(/learningRate|clip\.norm/);
    const mixed = foldsReport('s', folding, failing([REFUSED, FAILED, FAILED, FAILED]), String);
    expect(mixed.failure).toMatchObject({ code: 'DP_RUN_FAILED' });
    const defect = { ...REFUSED, code: 'DP_INTERNAL' };
    const broken = foldsReport('s', folding, failing(Array(4).fill(defect)), String);
    expect(broken.failure).toMatchObject({ code: 'DP_RUN_FAILED' });
  });
});

describe('folds', () => {
  const errors = (
    values: readonly (number | null)[],
    measure: ErrorMeasure = 'misclassification',
  ) =>
    foldsReport(
      's',
      folding,
      conduct(foldsPlan(folding), (_, i) => ({ error: values[i]!, measure })),
      (steps) => `train ${steps}`,
    );

  test('that are equal have no interval', () => {
    const { advice } = errors([0.1, 0.1, 0.1, 0.1]);
    expect(advice).toContain('10.00 % (4 equal values: no error known)');
    expect(advice).not.toContain('± 0');
  });

  test('of an error that is no share have no percentages, and its name is said', () => {
    const own = errors([0.1, 0.2, 0.3, 0.4], 'own');
    expect(own.advice).toContain("(the experiment's own, a number and no share)");
    expect([own.advice, ...own.rows.flat()].join(' ')).not.toMatch(/\d %(?! confidence)/);
    expect(errors([0.1, 0.2, 0.3, 0.4]).advice).toContain('the share of wrong answers');
    // Where the error is the loss, it is told once.
    expect(errors([0.1, 0.2, 0.3, 0.4], 'loss').advice).not.toContain('validation error');
  });
});

describe('a learning curve', () => {
  const report = (
    outcomes: (fraction: number, seed: number) => Omit<Outcome, 'trainCount'>,
    more: Partial<typeof curving> & { readonly trainCount?: number } = {},
  ) => {
    const { trainCount = 800, ...given } = more;
    const settings = { ...curving, ...given };
    const trials = conduct(curvePlan(settings), ({ config }) => ({
      ...outcomes(config.trainFraction, config.seed),
      trainCount,
    }));
    return curveReport('s', settings, trials);
  };
  /** Falls with the square root of the examples; two seeds a little apart. */
  const falling = (fraction: number, seed: number) => ({
    error: 0.1 / Math.sqrt(fraction) + 0.001 * (seed % 2),
    training: 0.02,
  });

  test('with both errors 0 advises no more data', () => {
    const { advice } = report(() => ({ error: 0, training: 0 }), { target: 0.02 });
    expect(advice).toContain('Both errors are 0 of 200 validation examples');
    // The rule of three.
    expect(advice).toContain('below 1.50 %');
    expect(advice).not.toMatch(/more data is|does not even use|--fractions/i);
  });

  test('without a target judges nothing by one, of shares or of numbers', () => {
    for (const measure of ['misclassification', 'loss', 'own'] as const) {
      const { advice } = report(() => ({ error: 1.3, training: 1.2, measure }));
      expect(advice).toContain('With --target, this report says');
      expect(advice).not.toMatch(/does not even use|best remedies|nothing more is needed/);
    }
  });

  test('with a target says whether model or data hold it up, unless seeds do not tell', () => {
    const at = (training: (seed: number) => number) =>
      report((fraction, seed) => ({ ...falling(fraction, seed), training: training(seed) }), {
        target: 0.05,
      }).advice;
    expect(at(() => 0.09)).toContain('does not even use the data it has');
    expect(at(() => 0.01)).toContain('More data is one of the best remedies');
    expect(at((seed) => 0.05 + (seed % 2 ? 0.01 : -0.008))).toContain(
      'The seeds differ too much to tell',
    );
    expect(report(falling, { target: 0.5 }).advice).toContain('nothing more is needed');
  });

  test.each([
    [[1], 'One size was measured (of --fractions 100 %)'],
    [[0.5, 1], 'Two sizes were measured (of --fractions 50 %, 100 %)'],
  ])(
    'of %j sizes is not continued, and the sizes that were given are named',
    (fractions, words) => {
      const { advice, rows } = report(falling, { fractions });
      expect(advice).toContain(words);
      expect(advice).not.toContain('extrapolated, it would be');
      expect(rows).toHaveLength(fractions.length);
    },
  );

  test('that is flat, rises or has errors of 0 is not continued', () => {
    const flat = report((_, seed) => ({ error: 0.1 + 0.001 * (seed % 2), training: 0.1 }));
    expect(flat.advice).toContain('does not fall by more than runs differ');
    const rising = report((fraction) => ({ error: 0.1 * (1 + fraction), training: 0.1 }));
    expect(rising.advice).toContain('does not fall by more than runs differ');
    const zero = report((fraction) => ({ error: fraction === 1 ? 0.01 : 0, training: 0 }));
    expect(zero.advice).toContain('cannot be shown on a logarithmic scale');
    for (const { rows, facts } of [flat, rising, zero]) {
      expect(rows).toHaveLength(3);
      expect(facts.law).toBeNull();
    }
    expect(report(falling).advice).toContain('extrapolated, it would be');
  });

  test('counts a seed once where two shares are the same examples', () => {
    // A quarter and a half of three examples are one and two.
    const { rows } = report(falling, { fractions: [0.25, 0.3, 1], trainCount: 3 });
    expect(rows.map((row) => [row[0], row.at(-1)])).toEqual([
      ['1', '2'],
      ['3', '2'],
    ]);
  });

  test('does not say that more data bring nothing where the target is met', () => {
    const steady = (fraction: number) => ({ error: 0.1 + 0.0005 / fraction, training: 0.1 });
    expect(report(steady).advice).toMatch(/next to nothing|does not fall/);
    expect(report(steady, { target: 0.2 }).advice).not.toContain('next to nothing');
  });
});

describe('a learning rate', () => {
  /** Falls from 2 to 1 over the range, and is lost from the limit on. */
  const course = (limit: number): TrainingCurve => {
    const learningRate = Array.from({ length: 60 }, (_, i) => 1e-4 * 10 ** (i / 15));
    const loss = learningRate.map((rate, i) => (rate < limit ? 2 - i / 60 : 9));
    return { learningRate, loss, staleness: loss.map(() => 0) };
  };
  const report = (
    probe: (place: number, seed: number) => Outcome,
    curve: TrainingCurve | ((seed: number) => TrainingCurve) = course(0.5),
    seeds = 3,
  ) => {
    const settings = { ...rates, seeds };
    const trials = conduct(learningRatePlan(settings), ({ key, point, config }) =>
      point?.kind === 'range'
        ? { error: 0.1, curve: typeof curve === 'function' ? curve(config.seed) : curve }
        : probe(Number(key.split('-')[1]), config.seed),
    );
    return learningRateReport('s', settings, trials, (rate) => `train ${rate}`);
  };

  test('at which some seeds diverged is neither the best nor recommended', () => {
    // The seed that stayed has the lowest loss of all.
    const found = report((place, seed) =>
      place === 6 && seed !== 5
        ? { error: null, end: FAILED }
        : { error: 0.5, loss: place === 6 ? 0.01 : 2 - place / 10 + 0.01 * (seed % 3) },
    );
    const [row] = found.rows.filter((cells) => cells.at(-1) === '2 of 3');
    expect(row![0]).not.toContain('best');
    expect(found.rows.filter(([rate]) => rate!.includes('best'))).toHaveLength(1);
    const { suggestion } = found.facts as { suggestion: { learningRate: number } };
    expect(suggestion.learningRate).toBeLessThan(Number.parseFloat(row![0]!));
  });

  test('is not recommended where nothing was learnt at any', () => {
    const flat = { ...course(9), loss: course(9).loss.map(() => 2) };
    const found = report(() => ({ error: 0.5, loss: 2 }), flat);
    expect(found.advice).toContain('none is recommended');
    expect(found.advice).not.toContain('Use learningRate');
    expect(found.facts.learningRate).toBeNull();
  });

  test('is not called best without its equals, nor of one seed without saying so', () => {
    const noisy = (place: number, seed: number) => ({
      error: 0.5,
      loss: 1 + 0.001 * place + 0.1 * (((seed * 7 + place) % 5) - 2),
    });
    expect(report(noisy).advice).toMatch(/are equally good within the differences between seeds/);
    expect(report(noisy, course(0.5), 1).advice).toContain('one seed');
    const clear = (place: number, seed: number) => ({
      error: 0.5,
      loss: 1 + Math.abs(place - 4) + 0.001 * (seed % 3),
    });
    expect(report(clear).advice).not.toContain('equally good within');
  });

  test('is not unstable for a validation part that is harder from the start', () => {
    const flat = course(9);
    const trained = { ...flat, loss: flat.loss.map((_, i) => 0.2 - i / 600) };
    const settings = { ...rates, fork: { run: 'r', checkpoint: 'best', step: 9 } };
    const trials = conduct(learningRatePlan(settings), ({ point, config }) => ({
      ...{ error: 0.4, loss: 0.5 + 0.001 * config.seed },
      curve: point?.kind === 'range' ? trained : { ...trained, loss: trained.loss.map(() => 0.19) },
    }));
    const found = learningRateReport('s', settings, trials, String);
    expect(found.rows.map((row) => row.at(-1))).toEqual(Array(8).fill('0 of 3'));
    expect(found.advice).toContain('Use learningRate');
  });

  test('asks for another range only where the best lies at an end of it', () => {
    const at = (best: number, limit = 0.5) =>
      report(
        (place, seed) => ({
          ...{ error: 0.5, loss: 1 + Math.abs(place - best) / 10 + 0.001 * (seed % 3) },
        }),
        course(limit),
      ).advice;
    expect(at(4)).not.toMatch(/raise --high|the lowest that was tried/);
    expect(at(4, 9)).not.toMatch(/raise --high|the lowest that was tried/);
    expect(at(0)).toContain('the lowest that was tried');
    expect(at(7, 9)).toContain('raise --high');
  });
});

describe('a search', () => {
  const report = (
    outcome: (index: number, rate: number) => Outcome,
    more: Partial<SearchSettings> = {},
  ) => {
    const settings = searching(more);
    const trials = conduct(createSearchPlan(settings), ({ point }, i) =>
      outcome(i, Number(point?.learningRate)),
    );
    return searchReport('s', settings, trials, 'train');
  };

  test('of trials that are all alike explains no differences and moves no range', () => {
    const { advice, facts } = report(() => ({ error: 0.25 }), { trials: 24 });
    expect(advice).toContain('within these ranges no hyperparameter has an effect');
    expect(advice).not.toMatch(/explains|Leave|lies at the/);
    expect(facts.importance).toBeNull();
    expect(advice).toMatch(/Trials \d+, \d+, \d+ and 20 others are as good/);
  });

  test('of one trial compares nothing', () => {
    const { advice } = report(() => ({ error: 0.25 }), { trials: 1 });
    expect(advice).toContain('nothing to compare it with');
    expect(advice).not.toMatch(/flattered|lies at the|best of 1/);
  });

  test('of few trials says how many it takes, and calls nothing idle', () => {
    const byRate = (_: number, rate: number) => ({
      error: 0.1 + Math.abs(Math.log10(rate / 0.05)) / 9,
    });
    expect(report(byRate, { trials: 5 }).advice).toContain('5 with a value, needs 8');
    expect(report(byRate, { trials: 10 }).advice).not.toContain('Leave');
    expect(report(byRate, { trials: 30 }).advice).toContain('Leave optimizer.kind alone');
  });

  test('whose trials failed although they had a value has no best one', () => {
    const found = report(() => ({ error: 0.1, end: FAILED }), { trials: 3 });
    expect(found.failure).toMatchObject({ code: 'DP_RUN_FAILED' });
    expect(found.facts.best).toBeNull();
    expect(found.advice).not.toContain('best of');
  });

  test('moves a range only where nothing as good lies far inside', () => {
    const space = { learningRate: { kind: 'log', low: 0.001, high: 1 } } as const;
    const rising = report((_, rate) => ({ error: 1 - rate / 2 }), { space, trials: 30 });
    expect(rising.advice).toContain('lies at the upper end of the range');
    const even = report((_, rate) => ({ error: 0.5 - rate / 1e4 }), { space, trials: 30 });
    expect(even.advice).not.toContain('lies at the');
  });
});

describe('ending trials early', () => {
  const trial = (index: number, errors: readonly (number | null)[], more: Partial<Trial> = {}) =>
    ({
      ...{ index, end: null, desire: 'run', level: 0, config: base0 },
      evaluations: errors.map((error) => evaluationOf({ error })),
      ...more,
    }) as unknown as Trial;
  const base0 = createSearchPlan(searching({ trials: 1 })).decide([], 1).start[0]!.config;

  test('says what it was compared with, also where there is no value', () => {
    const trials = [0.1, 0.2, 0.3, null].map((error, i) => trial(i, [error, error]));
    const [change] = medianRule(trials, { metric: 'error', first: 2 }).filter(
      ({ index }) => index === 3,
    );
    expect(change!.reason).toBe(
      'no finite error after 2 evaluations is worse than the median of the others, 0.2',
    );
  });

  test('of two trials does not claim a place among the best third', () => {
    const options = { metric: 'error', first: 1, budget: 9, eta: 3 } as const;
    const full = trial(0, Array(9).fill(0.1), { end: FINISHED, desire: 'end', level: 2 });
    const paused = trial(1, [0.4], { desire: 'pause' });
    const [change] = halving([full, paused], options, 1, true);
    expect(change).toMatchObject({ index: 1, to: 'kill' });
    expect(change!.reason).toContain(
      'not better than the best trial that was trained in full, error 0.1',
    );
  });
});

describe('an ablation', () => {
  const report = (error: (variant: string, seed: number) => Outcome) =>
    ablationReport(
      's',
      ablation,
      conduct(ablationPlan(ablation), ({ point, config }) =>
        error(String(point?.variant), config.seed),
      ),
    );

  test('does not separate what differs by less than seeds do, nor equal differences', () => {
    const noise = report((variant, seed) => ({
      error: 0.1 + 0.01 * ((seed * (variant === 'fast' ? 2 : 1)) % 3),
      loss: variant.charCodeAt(0) + seed,
    }));
    expect(noise.advice).toContain('Not separated: ');
    expect(noise.advice).not.toMatch(/Lower: |Higher: |Choose /);
    const equal = report((variant, seed) => ({
      error: variant === 'fast' ? 0.09 : 0.1,
      loss: variant.charCodeAt(0) + seed,
    }));
    expect(equal.advice).toContain("'fast' −1.00 % (the same for all of 3 seeds, so no interval)");
    expect(equal.advice).not.toMatch(/Lower: |Choose |± 0/);
  });

  test('whose baseline failed says why, and does not blame the learning rate', () => {
    const { advice, failure } = report((variant) =>
      variant === 'base' ? { error: null, end: REFUSED } : { error: 0.1 },
    );
    expect(advice).toContain('label 7');
    expect(advice).not.toMatch(/learningRate|lr-find/);
    expect(failure).toBeNull();
  });
});

describe('the ways after early stopping', () => {
  const report = (error: (way: string, seed: number) => number | null) =>
    stoppingReport(
      's',
      conduct(stoppingPlan({ repeats: 3, base }), ({ config }) => ({
        error: 0.1,
        test: error(config.earlyStopping.afterStop, config.seed),
      })),
    );

  test('that end alike are no better or worse, and equal differences have no interval', () => {
    const same = report(() => 0.1).advice;
    expect(same).toContain('retrain (Algorithm 7.2) does not change the test error');
    expect(same).toContain('Choose restore');
    const equal = report((way) => (way === 'retrain' ? 0.09 : 0.1)).advice;
    expect(equal).toContain('the same for all of 3 seeds, so no interval');
    expect(equal).toContain('Choose restore');
  });

  test('of which one was not measured choose nothing by it', () => {
    const { advice, failure } = report((way) => (way === 'restore' ? null : 0.1));
    expect(advice).toContain('has no test error to compare with that of restore');
    expect(advice).not.toContain('Choose');
    expect(failure).toBeNull();
  });
});
