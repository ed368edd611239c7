import {
  type ChartFigure,
  FIGURE_LIMITS,
  type ParallelFigure,
  type PlotPoint,
  type Series,
} from '../shared/figure.ts';
import { linearTicks, logTicks, tickText } from '../shared/plot.ts';
import type { Space } from '../shared/space.ts';
import { percent } from '../shared/text.ts';
import { chart, type Plot } from './plot.ts';
import { errorAxis, errorFormatOf, numberText } from './report.ts';
import { pointText, type SearchSettings } from './search.ts';
import { unitPlace } from './space.ts';
import { type Trial, trialValue } from './study.ts';

/** What a search looks like: its trials over time, over each hyperparameter, and over all of them. */

/** Infinity: it has none, or failed. */
export const resultOf = (trial: Trial, metric: SearchSettings['metric'], count = Infinity) =>
  trial.end?.kind === 'failed' ? Infinity : trialValue(trial, metric, count);

export function trialsPlot({ metric }: SearchSettings, trials: readonly Trial[]): ChartFigure {
  const points = trials.map((trial) => ({ x: trial.index + 1, y: resultOf(trial, metric) }));
  let best = Infinity;
  const bests = points.map(({ x, y }) => {
    best = Math.min(best, y);
    return { x, y: best };
  });
  return chart({
    title: `Validation ${metric} of each trial`,
    x: { label: 'trial' },
    y: { ...axisOf(metric, trials), log: isWide(points.map(({ y }) => y)) },
    series: [
      { name: 'trial', points, style: 'scatter' },
      ...withoutValue(points),
      { name: 'best so far', points: bests, style: 'dashed' },
    ],
  });
}

const axisOf = (metric: SearchSettings['metric'], trials: readonly Trial[]) =>
  errorAxis(`validation ${metric}`, metric, trials);

/** Trials that failed or diverged stand at the upper edge. @param points with y Infinity. */
function withoutValue(points: readonly PlotPoint[]): Series[] {
  const hasValue = ({ y }: PlotPoint) => y !== null && Number.isFinite(y);
  const failed = points.filter((point) => !hasValue(point));
  if (failed.length === 0) return [];
  const worst = Math.max(...points.filter(hasValue).map(({ y }) => y!));
  if (!Number.isFinite(worst)) return [];
  return [
    {
      ...{ name: 'failed or diverged', style: 'scatter', color: 2 },
      points: failed.map((point) => ({ ...point, y: worst })),
    },
  ];
}

/** Curves that have a name: the best. */
const NAMED = 5;

/** The best stand out by name; all others are drawn as well. */
export function curvesPlot({ metric }: SearchSettings, order: readonly Trial[]): ChartFigure {
  const shown = order.filter(({ evaluations }) => evaluations.length > 0);
  const values = shown.flatMap((trial) => trial.evaluations.map((e) => e[metric] ?? Infinity));
  return chart({
    title: `Validation ${metric} over epochs`,
    x: { label: 'evaluation' },
    y: { ...axisOf(metric, order), log: isWide(values) },
    series: shown
      // More lines than a figure may have: the worst are left out, not the best.
      .slice(0, FIGURE_LIMITS.series)
      .map((trial, i) => ({
        name: i < NAMED ? `trial ${trial.index}` : '',
        color: i,
        points: trial.evaluations.map((e, at) => ({ x: at + 1, y: e[metric] ?? Infinity })),
      }))
      .reverse(),
  });
}

/** Over more than a decade, equal factors read better than equal differences. */
function isWide(values: readonly number[]): boolean {
  const finite = values.filter((value) => Number.isFinite(value));
  return (
    finite.length > 0 && Math.min(...finite) > 0 && Math.max(...finite) > 10 * Math.min(...finite)
  );
}

export function parallelPlot(
  { space, metric }: SearchSettings,
  order: readonly Trial[],
): ParallelFigure {
  const values = order.map((trial) => resultOf(trial, metric)).filter(Number.isFinite);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const told = metric === 'error' ? errorFormatOf(order) : numberText;
  const place = (value: number) => (high > low ? (value - low) / (high - low) : 0.5);
  const dimensions = Object.entries(space);
  return {
    kind: 'parallel',
    title: 'Trials: one line each, the best ones dark',
    axes: [
      ...dimensions.map(([path, dimension]) => ({
        label: shortName(path),
        ticks: ticksOf(dimension),
      })),
      {
        label: `validation ${metric}`,
        ticks:
          values.length === 0
            ? []
            : [
                { place: place(low), text: told(low) },
                { place: place(high), text: told(high) },
              ],
      },
    ],
    lines: order.map((trial, i) => {
      const value = resultOf(trial, metric);
      return {
        label: hintOf(trial, metric),
        places: [
          ...dimensions.map(([path, dimension]) => {
            const at = trial.point[path];
            return at === undefined ? null : unitPlace(dimension, at);
          }),
          // What diverged is the worst.
          Number.isFinite(value) ? place(value) : 1,
        ],
        rank: order.length > 1 ? i / (order.length - 1) : 0,
      };
    }),
  };
}

const hintOf = (trial: Trial, metric: SearchSettings['metric']) =>
  `trial ${trial.index}: ${numberText(resultOf(trial, metric))}, ${pointText(trial.point)}`;

/** For each hyperparameter what each trial reached with it; what killing ended early stands apart. */
export function scatterPlots({ space, metric }: SearchSettings, order: readonly Trial[]) {
  const known = order.filter((trial) => Number.isFinite(resultOf(trial, metric)));
  const values = known.map((trial) => resultOf(trial, metric));
  const plots: Record<string, Plot> = {};
  for (const [path, dimension] of Object.entries(space)) {
    const choices = dimension.kind === 'choice' ? dimension.values : null;
    const at = (trial: Trial) => {
      const value = trial.point[path];
      if (value === undefined) return null;
      return choices ? choices.indexOf(value) : Number(value);
    };
    const points = (trials: readonly Trial[]) =>
      trials.flatMap((trial) => {
        const x = at(trial);
        const y = resultOf(trial, metric);
        return x === null ? [] : [{ x, y, label: hintOf(trial, metric) }];
      });
    const killed = known.filter(({ end }) => end?.kind === 'killed');
    plots[`scatter-${shortName(path).replaceAll(/[^\w-]/g, '-')}.svg`] = chart({
      title: `Validation ${metric} over ${shortName(path)}`,
      x: {
        label: shortName(path),
        log: dimension.kind.startsWith('log'),
        ...(choices ? { names: choices.map(String) } : {}),
      },
      y: { ...axisOf(metric, order), log: isWide(values) },
      series: [
        {
          ...{ name: 'trial', style: 'scatter', color: 0 },
          points: points(known.filter((trial) => !killed.includes(trial))),
        },
        ...(killed.length === 0
          ? []
          : [
              {
                ...{ name: 'ended early', style: 'scatter' as const, color: 1 },
                points: points(killed),
              },
            ]),
        ...withoutValue(points(order)),
      ],
    });
  }
  return plots;
}

export function importancePlot(shares: Readonly<Record<string, number>>): ChartFigure {
  const sorted = Object.entries(shares).sort(([, a], [, b]) => b - a);
  return chart({
    title: 'Share of the differences that each hyperparameter alone explains',
    x: { label: 'hyperparameter', names: sorted.map(([path]) => shortName(path)) },
    y: { label: 'share' },
    series: [
      {
        ...{ name: '', style: 'bars', color: 2 },
        points: sorted.map(([path, y], x) => ({
          ...{ x, y, label: `${shortName(path)}: ${percent(y)}` },
        })),
      },
    ],
  });
}

function ticksOf(dimension: Space[string]): { place: number; text: string }[] {
  if (dimension.kind === 'choice') {
    return dimension.values.map((value) => ({
      place: unitPlace(dimension, value),
      text: String(value),
    }));
  }
  const { kind, low, high } = dimension;
  const ticks = kind.startsWith('log') ? logTicks(low, high) : linearTicks(low, high);
  return ticks
    .filter(
      (tick) => tick >= low && tick <= high && (Number.isInteger(tick) || !kind.endsWith('nteger')),
    )
    .map((tick) => ({ place: unitPlace(dimension, tick), text: tickText(tick) }));
}

export const shortName = (path: string) => path.replace(/^hyperparameters\./, '');
