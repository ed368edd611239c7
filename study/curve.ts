import { resolveConfig } from '../shared/config.ts';
import type { ChartFigure } from '../shared/figure.ts';
import type { Evaluation } from '../shared/rest.ts';
import { type Format, percent } from '../shared/text.ts';
import { failureOf, failuresText } from './failures.ts';
import { chart } from './plot.ts';
import { type Extrapolation, extrapolate, SIZES_MIN } from './power-law.ts';
import {
  axisBy,
  errorFormatOf,
  errorName,
  fewText,
  type Report,
  signed,
  spreadText,
} from './report.ts';
import { asShare, type Estimate, estimate } from './statistics.ts';
import { bestEvaluation, type NewTrial, type StudyPlan, type Trial } from './study.ts';

/**
 * More data or a bigger model? Training and validation error over the size of the training set, on
 * logarithmic axes, continued beyond the data there is; then the decision procedure of Deep Learning
 * §11.3 with the numbers of these runs.
 */

export interface CurveSettings {
  /** Shares of the training part, each in (0, 1]. */
  readonly fractions: readonly number[];
  readonly repeats: number;
  /** The error that would do; null: none named. */
  readonly target: number | null;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

/** Training examples that an evaluation measures: enough for an error to a few parts in a thousand. */
const TRAINING_EXAMPLES = 5000;

/**
 * The largest share comes first: from its count follows how many updates an epoch of it has, and all
 * others are evaluated after as many updates. Else patience and epochsMax, which count epochs, would
 * give a small training set fewer updates and blame the data for it.
 */
export function curvePlan({
  fractions,
  repeats,
  base,
}: CurveSettings): StudyPlan & { trialCount: number } {
  const { seed, evaluateEverySteps, minibatchSize, epochsMax } = resolveConfig(...base);
  const sorted = [...new Set(fractions)].sort((a, b) => b - a);
  const all = sorted.flatMap((fraction) =>
    Array.from({ length: repeats }, (_, r) => ({ fraction, seed: seed + r })),
  );
  return {
    trialCount: all.length,
    decide(trials, room) {
      const count = trials.find(({ data }) => data !== null)?.data?.trainCount;
      const start: NewTrial[] = [];
      for (let i = trials.length; i < all.length && start.length < room; i++) {
        const { fraction, seed: own } = all[i]!;
        const isLargest = fraction === sorted[0];
        if (!isLargest && count === undefined) break;
        const perEpoch = isLargest ? null : Math.ceil(count! / minibatchSize);
        const pace =
          perEpoch === null || evaluateEverySteps !== null
            ? {}
            : {
                evaluateEverySteps: perEpoch,
                ...(epochsMax === null ? {} : { epochsMax: null, stepsMax: epochsMax * perEpoch }),
              };
        start.push({
          key: `${fractionText(fraction)}-${own}`,
          label: `${fractionPercent(fraction)} of the training part, seed ${own}`,
          config: resolveConfig(...base, pace, {
            ...{ seed: own, trainFraction: fraction, evaluateTraining: TRAINING_EXAMPLES },
          }),
        });
      }
      // When not even the largest could be run, there is nothing to go by.
      const stuck = count === undefined && trials.length > 0 && trials.every(({ end }) => end);
      return { start, change: [], done: stuck || trials.length >= all.length };
    },
  };
}

/** As a part of a run's name. */
const fractionText = (fraction: number) => String(Math.round(fraction * 10_000)).padStart(5, '0');
const fractionPercent = (fraction: number) => `${Number((100 * fraction).toPrecision(3))} %`;

export interface CurvePoint {
  readonly n: number;
  readonly training: Estimate | null;
  readonly validation: Estimate;
}

/** Sizes beyond the data, as multiples of it, that the curve is continued to. */
const BEYOND = [2, 4, 10] as const;

export function curveReport(
  name: string,
  settings: CurveSettings,
  trials: readonly Trial[],
): Report {
  const measured = distinctOf(trials);
  const isShare = trials.some(({ errorMeasure }) => errorMeasure === 'misclassification');
  const sizes = sizesOf(measured, isShare ? asShare : (value) => value);
  const format = errorFormatOf(trials);
  const found = extrapolate(measured.map(({ n, best }) => ({ n, error: best.error! })));
  const fit = found?.falls ? found : null;
  const nMax = Math.max(0, ...sizes.map(({ n }) => n));
  const beyond =
    fit === null
      ? []
      : BEYOND.map((times) => ({
          times,
          n: times * nMax,
          error: fit.law.at(times * nMax),
          ...fit.interval(times * nMax),
        }));
  return {
    title: `Learning curve ${name}`,
    headings: ['training examples', 'training error', 'validation error', 'gap', 'runs'],
    rows: [
      ...sizes.map(({ n, training, validation }) => [
        ...[String(n), spreadText(training, format), spreadText(validation, format)],
        training ? signed(validation.mean - training.mean, format) : '–',
        String(validation.count),
      ]),
      ...beyond.map(({ n, error, low, high }) => [
        ...[
          `${n} (extrapolated)`,
          '–',
          `${format(error)} (${format(low)} … ${format(high)})`,
          '–',
          '–',
        ],
      ]),
    ],
    advice: adviceOf(
      { sizes, fit, isFlat: found !== null && fit === null, beyond },
      settings,
      trials,
    ),
    plots: { 'curve.svg': plot(sizes, fit, settings.target, format) },
    facts: {
      ...{ study: name, sizes, beyond, target: settings.target },
      law: fit && { a: fit.law.a, b: fit.law.b, c: fit.law.c },
      trials: trials.map((trial) => ({
        ...{ run: trial.id, fraction: trial.config.trainFraction, seed: trial.config.seed },
        ...{
          trainCount: trial.data?.trainCount ?? null,
          end: trial.end,
          best: bestEvaluation(trial),
        },
      })),
    },
    failure: failureOf(trials, measured.length),
  };
}

interface MeasuredTrial {
  readonly n: number;
  readonly seed: number;
  /** An evaluation that has an error. */
  readonly best: Evaluation;
}

/** Two shares of few examples can be the same ones: one seed's training on them counts once. */
function distinctOf(trials: readonly Trial[]): MeasuredTrial[] {
  const known = new Map<string, MeasuredTrial>();
  for (const trial of trials) {
    const best = bestEvaluation(trial);
    if (!trial.data || best?.error == null || !Number.isFinite(best.error)) continue;
    const n = trial.data.trainCount;
    const { seed } = trial.config;
    if (!known.has(`${n} ${seed}`)) known.set(`${n} ${seed}`, { n, seed, best });
  }
  return [...known.values()];
}

function sizesOf(
  measured: readonly MeasuredTrial[],
  within: (value: Estimate) => Estimate,
): CurvePoint[] {
  const counts = [...new Set(measured.map(({ n }) => n))].sort((a, b) => a - b);
  return counts.map((n) => {
    const bests = measured.filter((one) => one.n === n).map(({ best }) => best);
    const training = bests
      .map(({ metrics }) => metrics.trainingError)
      .filter((value): value is number => value != null && Number.isFinite(value));
    return {
      n,
      validation: within(estimate(bests.map(({ error }) => error!))),
      training: training.length === 0 ? null : within(estimate(training)),
    };
  });
}

interface CurveFindings {
  readonly sizes: readonly CurvePoint[];
  /** Null: nothing is to be continued. */
  readonly fit: Extrapolation | null;
  /** There are sizes enough, and the error does not fall over them. */
  readonly isFlat: boolean;
  readonly beyond: readonly { times: number; error: number; low: number; high: number }[];
}

function adviceOf(found: CurveFindings, settings: CurveSettings, trials: readonly Trial[]): string {
  const { sizes } = found;
  const last = sizes.at(-1);
  const failed = failuresText(trials);
  if (!last) return ['No run gave a validation error.', ...(failed ? [failed] : [])].join(' ');
  const format = errorFormatOf(trials);
  const { validation } = last;
  const isPerfect = validation.mean === 0 && validation.distinct === 1;
  return [
    ...stateText(last, trials, format),
    ...(isPerfect ? [perfectText(last, trials)] : judgedText(last, settings.target, format)),
    ...(isPerfect ? [] : sizesText(found, settings, format)),
    ...[failed, fewText(trials)].filter((text) => text !== null),
  ].join(' ');
}

function stateText(
  { n, training, validation }: CurvePoint,
  trials: readonly Trial[],
  format: Format,
) {
  const what = errorName(trials);
  const gap = training && signed(validation.mean - training.mean, format);
  const seeds = validation.count === 1 ? ' (one seed, so the spread is not known)' : '';
  return [
    training
      ? `On ${n} training example${n === 1 ? '' : 's'} the training error${what ? ` (${what})` : ''} is ${spreadText(training, format)}, the validation error ${spreadText(validation, format)}, the gap ${gap}${seeds}.`
      : `On ${n} training example${n === 1 ? '' : 's'} the validation error${what ? ` (${what})` : ''} is ${spreadText(validation, format)}${seeds}; no training error was measured, so it is not known what limits it.`,
  ];
}

function perfectText({ training }: CurvePoint, trials: readonly Trial[]): string {
  const count = trials.find(({ data }) => data)?.data?.validationCount;
  const of = count === undefined ? '' : ` of ${count} validation examples`;
  const isShare = trials.some(({ errorMeasure }) => errorMeasure === 'misclassification');
  // The rule of three: of n right answers in a row, the share of wrong ones is below 3/n with 95 %.
  const bound =
    isShare && count ? ` (with 95 % confidence below ${percent(Math.min(1, 3 / count))})` : '';
  const both = training?.mean === 0 ? 'Both errors are 0' : `The validation error is 0`;
  return `${both}${of}${bound}: on this validation part more examples or another model cannot improve it; a harder or larger validation part would show more.`;
}

/** The procedure of Deep Learning §11.3, which begins with the error that would do. */
function judgedText(
  { training, validation }: CurvePoint,
  target: number | null,
  format: Format,
): string[] {
  if (target === null) {
    return [
      'No target error was given. With --target, this report says whether the model or the data limits the error. A larger or better trained model can lower the training error; more data, a smaller model or more regularisation can close the gap (Deep Learning §11.3).',
    ];
  }
  if (validation.mean <= target) {
    const sure = validation.count > 1 && validation.distinct > 1 && validation.high > target;
    return [
      `The validation error is below the target ${format(target)}: nothing more is needed (§11.1).${sure ? ` Its 95 % interval over the seeds ends at ${format(validation.high)}, above the target: use more --repeats to be sure.` : ''}`,
    ];
  }
  if (!training) return [`The validation error is above the target ${format(target)}.`];
  if (training.distinct > 1 && training.low <= target && training.high > target) {
    return [
      `The seeds differ too much to tell whether the training error is above the target ${format(target)} (95 %: ${format(training.low)} … ${format(training.high)}): use more --repeats to see whether the model or the data limits the error.`,
    ];
  }
  if (training.mean > target) {
    return [
      `The training error is above the target ${format(target)}: the model does not even use the data it has, so more data is not the next step (Deep Learning §11.3). Make the model larger (more layers or units), then tune the learning rate (§11.4.1: the most important hyperparameter); if a large, well-tuned model still fails on the training set, the cause is the data (noise, missing inputs) or a defect (§11.5).`,
    ];
  }
  return [
    `The training error is within the target ${format(target)}, so the gap is what remains. More data is one of the best remedies. If it costs too much, make the model smaller or regularise it more (weight decay, dropout), and tune that (Deep Learning §11.3, §11.4).`,
  ];
}

/** A prediction is that much below before it counts. */
const NEXT_TO_NOTHING = 0.97;

function sizesText(
  { sizes, fit, isFlat, beyond }: CurveFindings,
  { target, fractions }: CurveSettings,
  format: Format,
): string[] {
  const { n, validation } = sizes.at(-1)!;
  const isDone = target !== null && validation.mean <= target;
  if (!fit) {
    const given = [...new Set(fractions)]
      .sort((a, b) => a - b)
      .map(fractionPercent)
      .join(', ');
    if (sizes.length < SIZES_MIN) {
      const count = sizes.length === 1 ? 'One size was' : 'Two sizes were';
      return [
        `${count} measured (of --fractions ${given}); to extrapolate the curve, ${SIZES_MIN} or more are needed.`,
      ];
    }
    const first = sizes[0]!;
    const ends = `${format(first.validation.mean)} with ${first.n} training example${first.n === 1 ? '' : 's'}, ${format(validation.mean)} with ${n}`;
    return [
      isFlat
        ? `Over these sizes the validation error does not fall by more than runs differ (${ends}), so the curve cannot be extrapolated; more --repeats may show a trend.`
        : `Errors of 0 or below cannot be shown on a logarithmic scale, so the curve is not extrapolated (${ends}).`,
    ];
  }
  const { a, b, c } = fit.law;
  const parts = [
    `The validation error follows ${c > 0 ? `${format(c)} + ` : ''}${Number(a.toPrecision(3))} · n^−${b.toFixed(2)}; extrapolated, it would be ${beyond
      .map(
        ({ times, error, low, high }) =>
          `${format(error)} (90 %: ${format(low)} … ${format(high)}) with ${times} times the data`,
      )
      .join(', ')}: sizes are compared on a logarithmic scale, doubling by doubling (§11.3).`,
  ];
  if (target !== null && !isDone) parts.push(neededText(fit, n, target, format));
  if (!isDone && beyond[0]!.low >= fit.law.at(n) * NEXT_TO_NOTHING) {
    parts.push(
      'Twice the data would bring next to nothing: the curve is flat. Look at the model and the data instead.',
    );
  }
  return parts;
}

/** A curve is believed so far beyond its data, not further. */
const BELIEVED = 1000;

function neededText(
  { law }: Extrapolation,
  n: number,
  target: number,
  format: (value: number) => string,
): string {
  const needed = law.c < target && law.b > 0 ? (law.a / (target - law.c)) ** (1 / law.b) : Infinity;
  if (needed > BELIEVED * n) {
    return `By this curve, no realistic amount of data reaches ${format(target)}: change the model.`;
  }
  if (needed <= n) {
    return `By this curve ${format(target)} should be reached with the ${n} examples there are: the rest is within the differences between runs.`;
  }
  return `By this curve ${format(target)} needs about ${Number(needed.toPrecision(2))} training examples, ${(needed / n).toFixed(1)} times as many.`;
}

function plot(
  sizes: readonly CurvePoint[],
  fit: Extrapolation | null,
  target: number | null,
  format: Format,
): ChartFigure {
  const bars = ({ mean, standardError }: Estimate) =>
    Number.isFinite(standardError)
      ? { low: Math.max(mean - standardError, mean / 2), high: mean + standardError }
      : {};
  const ns = sizes.map(({ n }) => n);
  const [first, last] = [Math.min(...ns), 10 * Math.max(...ns)];
  const along =
    fit === null
      ? []
      : Array.from({ length: 25 }, (_, i) => {
          const n = first * (last / first) ** (i / 24);
          return { x: n, y: fit.law.at(n), ...fit.interval(n) };
        });
  return chart({
    title: 'Error over training-set size',
    x: { label: 'training examples', log: true },
    y: { ...axisBy('error', format), log: true },
    series: [
      { name: '', style: 'band', color: 0, points: along },
      {
        name: 'power law, 90 % of fits',
        style: 'dashed',
        color: 0,
        points: along.map(({ x, y }) => ({ x, y })),
      },
      {
        name: 'validation',
        style: 'scatter',
        color: 0,
        points: sizes.map(({ n, validation }) => ({
          x: n,
          y: validation.mean,
          ...bars(validation),
        })),
      },
      {
        name: 'training',
        color: 1,
        points: sizes.flatMap(({ n, training }) =>
          training ? [{ x: n, y: training.mean, ...bars(training) }] : [],
        ),
      },
      ...(target === null || sizes.length === 0
        ? []
        : [
            {
              name: 'target',
              style: 'dashed' as const,
              color: 2,
              points: [
                { x: first, y: target },
                { x: last, y: target },
              ],
            },
          ]),
    ],
  });
}
