import { resolveConfig } from '../shared/config.ts';
import type { ChartFigure } from '../shared/figure.ts';
import { chart } from './plot.ts';
import { type Extrapolation, extrapolate, type Measured } from './power-law.ts';
import { errorFormatOf, type Report } from './report.ts';
import { type Estimate, estimate } from './statistics.ts';
import { bestEvaluation, type NewTrial, type Plan, type Trial } from './study.ts';

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
}: CurveSettings): Plan & { trialCount: number } {
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
          label: `${percent(fraction)} of the training part, seed ${own}`,
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
const percent = (fraction: number) => `${Number((100 * fraction).toPrecision(3))} %`;

interface Size {
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
  const points = measuredOf(trials);
  const sizes = sizesOf(trials);
  const format = errorFormatOf(trials);
  const fit = extrapolate(points);
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
  const spread = (e: Estimate | null) =>
    e === null
      ? '–'
      : e.count < 2
        ? format(e.mean)
        : `${format(e.mean)} ± ${format(e.standardError)}`;
  return {
    title: `Learning curve ${name}`,
    headings: ['training examples', 'training error', 'validation error', 'gap', 'runs'],
    rows: [
      ...sizes.map(({ n, training, validation }) => [
        ...[String(n), spread(training), spread(validation)],
        ...[training ? format(validation.mean - training.mean) : '–', String(validation.count)],
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
    advice: adviceOf(sizes, fit, beyond, settings.target, format),
    plots: { 'curve.svg': plot(sizes, fit, settings.target) },
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
  };
}

function measuredOf(trials: readonly Trial[]): Measured[] {
  return trials.flatMap((trial) => {
    const error = bestEvaluation(trial)?.error;
    return error == null || !trial.data ? [] : [{ n: trial.data.trainCount, error }];
  });
}

function sizesOf(trials: readonly Trial[]): Size[] {
  const counts = [...new Set(trials.flatMap(({ data }) => data?.trainCount ?? []))];
  return counts
    .sort((a, b) => a - b)
    .flatMap((n) => {
      const bests = trials
        .filter(({ data }) => data?.trainCount === n)
        .flatMap((trial) => bestEvaluation(trial) ?? []);
      const validation = bests.flatMap(({ error }) => error ?? []);
      const training = bests.flatMap(({ metrics }) => metrics.trainingError ?? []);
      if (validation.length === 0) return [];
      return [
        {
          n,
          validation: estimate(validation),
          training: training.length === 0 ? null : estimate(training),
        },
      ];
    });
}

function adviceOf(
  sizes: readonly Size[],
  fit: Extrapolation | null,
  beyond: readonly { times: number; error: number; low: number; high: number }[],
  target: number | null,
  format: (value: number) => string,
): string {
  const last = sizes.at(-1);
  if (!last?.training) {
    return 'No run gave a training and a validation error: lower learningRate, or set clip.norm, and try again.';
  }
  const { n } = last;
  const [training, validation] = [last.training.mean, last.validation.mean];
  const gap = validation - training;
  const parts = [
    `On ${n} training examples the training error is ${format(training)}, the validation error ${format(validation)}, the gap ${format(gap)}.`,
  ];
  const bar = target ?? validation / 2;
  const named =
    target === null ? `half of the validation error (no --target was given)` : `the target`;
  if (training > bar) {
    parts.push(
      `The training error is above ${named}, ${format(bar)}: the model does not even use the data it has, so more data is not the next thing (Deep Learning §11.3). Make the model larger (more layers or units), then tune the learning rate (§11.4.1: the most important hyperparameter); if a large, well-tuned model still fails on the training set, the trouble is the data (noise, missing inputs) or a defect (§11.5).`,
    );
  } else if (target !== null && validation <= target) {
    parts.push(
      `The validation error is below the target ${format(target)}: nothing more is needed (§11.1: the goal ends the work).`,
    );
  } else {
    parts.push(
      `The training error is ${target === null ? 'below' : 'within'} ${named}, ${format(bar)}, and the gap is what is left: more data is one of the best remedies; where it costs too much, make the model smaller or regularise it more (weight decay, dropout), and tune that (Deep Learning §11.3, §11.4).`,
    );
  }
  if (fit && beyond.length > 0) {
    const { a, b, c } = fit.law;
    parts.push(
      `The validation error follows ${c > 0 ? `${format(c)} + ` : ''}${Number(a.toPrecision(3))} · n^−${b.toFixed(2)}; continued, it would be ${beyond
        .map(
          ({ times, error, low, high }) =>
            `${format(error)} (90 %: ${format(low)} … ${format(high)}) with ${times} times the data`,
        )
        .join(', ')}: sizes are compared on a logarithmic scale, doubling by doubling (§11.3).`,
    );
    if (target !== null && validation > target) parts.push(neededText(fit, n, target, format));
    const twice = beyond[0]!;
    if (twice.low >= validation * 0.97) {
      parts.push(
        'Twice the data would bring next to nothing: the curve has gone flat, look at the model and the data instead.',
      );
    }
  } else parts.push('One size gives no curve: name several by --fractions.');
  return parts.join(' ');
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
    return `By this curve no amount of data within reach gives ${format(target)}: change the model.`;
  }
  return `By this curve ${format(target)} needs about ${Number(needed.toPrecision(2))} training examples, ${(needed / n).toFixed(1)} times as many.`;
}

function plot(
  sizes: readonly Size[],
  fit: Extrapolation | null,
  target: number | null,
): ChartFigure {
  const bars = ({ mean, standardError }: Estimate) =>
    Number.isFinite(standardError)
      ? { low: Math.max(mean - standardError, mean / 2), high: mean + standardError }
      : {};
  const ns = sizes.map(({ n }) => n);
  const [first, last] = [Math.min(...ns), 10 * Math.max(...ns)];
  const along =
    fit === null || sizes.length === 0
      ? []
      : Array.from({ length: 25 }, (_, i) => {
          const n = first * (last / first) ** (i / 24);
          return { x: n, y: fit.law.at(n), ...fit.interval(n) };
        });
  return chart({
    title: 'Error over training-set size',
    x: { label: 'training examples', log: true },
    y: { label: 'error', log: true },
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
      ...(target === null
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
