import type { ChartFigure, ParallelFigure } from '../shared/figure.ts';
import { linearTicks, logTicks, tickText } from '../shared/plot.ts';
import type { Space } from '../shared/space.ts';
import { percent } from '../shared/text.ts';
import { importance } from './importance.ts';
import { chart, type Plot } from './plot.ts';
import { errorFormatOf, numberText, type Report } from './report.ts';
import { pointText, ranked, type SearchSettings, valueText } from './search.ts';
import { placeOf, placesOf } from './space.ts';
import { bestEvaluation, type Trial, trialValue } from './study.ts';

/** Fewer trials with a value say nothing about what matters. */
const IMPORTANCE_TRIALS_MIN = 8;
/** Nearer to an end of its range than this share of it, the best value asks for another range. */
const BORDER = 0.05;

/** Table, plots and advice of a search. @param command how the best trial is trained and tested. */
export function searchReport(
  name: string,
  settings: SearchSettings,
  trials: readonly Trial[],
  command: string,
): Report {
  const { space, metric } = settings;
  const order = ranked(trials, metric);
  const paths = Object.keys(space);
  const values = order.map((trial) => trialValue(trial, metric));
  const format = metric === 'error' ? errorFormatOf(trials) : numberText;
  const shares = sharesOf(settings, trials);
  const cost = costOf(trials);
  const rows = order.map((trial, i) => [
    String(i + 1),
    String(trial.index),
    trial.end?.kind === 'failed' ? '–' : format(values[i]),
    String(trial.evaluations.length),
    trial.end?.kind ?? trial.phase,
    ...paths.map((path) => (trial.point[path] === undefined ? '–' : valueText(trial.point[path]))),
  ]);
  return {
    title: `Search ${name}`,
    headings: [
      'rank',
      'trial',
      `validation ${metric}`,
      'evaluations',
      'end',
      ...paths.map(shortName),
    ],
    rows,
    advice: adviceOf(settings, order, shares, cost, format, command),
    plots: {
      'trials.svg': trialsPlot(settings, trials),
      'curves.svg': curvesPlot(settings, order),
      'parallel.svg': parallelPlot(settings, order),
      ...scatterPlots(settings, order),
      ...(shares === null ? {} : { 'importance.svg': importancePlot(shares) }),
    },
    facts: {
      study: name,
      metric,
      best: order[0] ? { ...factsOf(order[0], settings), rank: 1 } : null,
      trials: trials.map((trial) => factsOf(trial, settings)),
      importance: shares,
      examples: cost,
    },
  };
}

function factsOf(trial: Trial, { metric }: SearchSettings) {
  const value = trialValue(trial, metric);
  return {
    index: trial.index,
    run: trial.id,
    point: trial.point,
    value: Number.isFinite(value) ? value : null,
    loss: bestEvaluation(trial)?.loss ?? null,
    error: bestEvaluation(trial)?.error ?? null,
    evaluations: trial.evaluations.length,
    step: trial.step,
    examples: trial.examples,
    seconds: trial.seconds,
    end: trial.end,
  };
}

/** By path, the share of the differences between trials that a dimension alone explains. */
function sharesOf(
  { space, metric, kill, first }: SearchSettings,
  trials: readonly Trial[],
): Record<string, number> | null {
  // Trials that ended early are compared where all of them still were.
  const count = kill === 'none' ? Infinity : first;
  const values = trials.map((trial) => trialValue(trial, metric, count));
  const worst = Math.max(...values.filter(Number.isFinite));
  if (values.filter(Number.isFinite).length < IMPORTANCE_TRIALS_MIN) return null;
  // Of logarithms: twice the error is twice as bad wherever one is. Diverged counts as the worst.
  const logs = values.map((value) =>
    Math.log(Math.max(1e-9, Number.isFinite(value) ? value : worst)),
  );
  const shares = importance(
    trials.map(({ point }) => placesOf(space, point)),
    logs,
  );
  return Object.fromEntries(Object.keys(space).map((path, i) => [path, shares[i]!]));
}

/** Examples that were trained on, and what all trials would have cost in full. */
function costOf(trials: readonly Trial[]): { used: number; inFull: number | null } {
  const used = trials.reduce((sum, { examples }) => sum + examples, 0);
  const full = trials.filter(({ end }) => end?.kind === 'finished').map(({ examples }) => examples);
  return { used, inFull: full.length === 0 ? null : Math.max(...full) * trials.length };
}

function adviceOf(
  settings: SearchSettings,
  order: readonly Trial[],
  shares: Record<string, number> | null,
  cost: { used: number; inFull: number | null },
  format: (value: number) => string,
  command: string,
): string {
  const { space, metric } = settings;
  const [best, second] = order;
  const value = best ? trialValue(best, metric) : Infinity;
  if (!best || !Number.isFinite(value)) {
    return `No trial reached a finite value; the first ended so: ${order[0]?.end?.reason ?? 'unknown'}. Where they diverged, lower the range of learningRate by a factor of ten, or set clip.norm, and search again.`;
  }
  const parts = [
    `The best of ${order.length} trials is trial ${best.index} with a validation ${metric} of ${format(value)} (${best.label}).`,
  ];
  const ends = (kind: string) => order.filter(({ end }) => end?.kind === kind).length;
  if (ends('killed') > 0 && cost.inFull) {
    parts.push(
      `${ends('killed')} trials were ended early; the search cost ${percent(cost.used / cost.inFull)} of what all trials in full would have.`,
    );
  }
  const failed = order.filter(({ end }) => end?.kind === 'failed');
  if (failed.length > 0) {
    parts.push(`${failed.length} of them failed; the first: ${failed[0]!.end!.reason}.`);
  }
  for (const [path, dimension] of Object.entries(space)) {
    const at = best.point[path];
    if (at === undefined || dimension.kind === 'choice') continue;
    const place = placeOf(dimension, at);
    if (place > BORDER && place < 1 - BORDER) continue;
    const side = place <= BORDER ? 'lower' : 'upper';
    parts.push(
      `Its ${path} ${valueText(at)} lies at the ${side} end of the range ${valueText(dimension.low)} … ${valueText(dimension.high)}: the best may lie beyond; move the range (Deep Learning §11.4.3).`,
    );
  }
  if (shares) {
    const sorted = Object.entries(shares).sort(([, a], [, b]) => b - a);
    const own = sorted.map(([path, share]) => `${path} ${Math.round(100 * share)} %`).join(', ');
    const together = 1 - sorted.reduce((sum, [, share]) => sum + share, 0);
    parts.push(
      `Of the differences in log ${metric}, each alone explains: ${own}; ${Math.round(100 * Math.max(0, together))} % come from several together (functional ANOVA over a random forest).`,
    );
    const idle = sorted.filter(([, share]) => share < 0.05).map(([path]) => path);
    if (idle.length > 0 && idle.length < sorted.length) {
      parts.push(`Leave ${idle.join(', ')} alone and spend the next trials on the rest.`);
    }
  } else parts.push('Too few trials to say which hyperparameter matters.');
  if (second && trialValue(second, metric) - value < 0.02 * value) {
    parts.push(
      `Trial ${second.index} is as good within 2 %: choose between them by cost, or repeat both with other seeds.`,
    );
  }
  parts.push(
    `The validation value of the best of many trials is flattered by having been chosen; train it once more and look at the test part once: \`${command}\`.`,
  );
  return parts.join(' ');
}

function trialsPlot({ metric }: SearchSettings, trials: readonly Trial[]): ChartFigure {
  const points = trials.map((trial) => ({ x: trial.index + 1, y: trialValue(trial, metric) }));
  let best = Infinity;
  const bests = points.map(({ x, y }) => {
    best = Math.min(best, y);
    return { x, y: best };
  });
  return chart({
    title: `Validation ${metric} of each trial`,
    x: { label: 'trial' },
    y: { label: `validation ${metric}`, log: isWide(points.map(({ y }) => y)) },
    series: [
      { name: 'trial', points, style: 'scatter' },
      { name: 'best so far', points: bests, style: 'dashed' },
    ],
  });
}

/** The best, the median and the worst stand out by name; all others are drawn as well. */
function curvesPlot({ metric }: SearchSettings, order: readonly Trial[]): ChartFigure {
  const shown = order.filter(({ evaluations }) => evaluations.length > 0);
  const values = shown.flatMap((trial) => trial.evaluations.map((e) => e[metric] ?? Infinity));
  return chart({
    title: `Validation ${metric} over epochs`,
    x: { label: 'evaluation' },
    y: { label: `validation ${metric}`, log: isWide(values) },
    series: shown
      .map((trial, i) => ({
        name: i < 5 ? `trial ${trial.index}` : '',
        color: i < 5 ? i : 4,
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

function parallelPlot({ space, metric }: SearchSettings, order: readonly Trial[]): ParallelFigure {
  const values = order.map((trial) => trialValue(trial, metric)).filter(Number.isFinite);
  const low = Math.min(...values);
  const high = Math.max(...values);
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
                { place: place(low), text: numberText(low) },
                { place: place(high), text: numberText(high) },
              ],
      },
    ],
    lines: order.map((trial, i) => {
      const value = trialValue(trial, metric);
      return {
        label: hintOf(trial, metric),
        places: [
          ...dimensions.map(([path, dimension]) => {
            const at = trial.point[path];
            return at === undefined ? null : placeOf(dimension, at);
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
  `trial ${trial.index}: ${numberText(trialValue(trial, metric))}, ${pointText(trial.point)}`;

/** For each hyperparameter what each trial reached with it; what killing ended early stands apart. */
function scatterPlots({ space, metric }: SearchSettings, order: readonly Trial[]) {
  const known = order.filter((trial) => Number.isFinite(trialValue(trial, metric)));
  const values = known.map((trial) => trialValue(trial, metric));
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
        const y = trialValue(trial, metric);
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
      y: { label: `validation ${metric}`, log: isWide(values) },
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
      ],
    });
  }
  return plots;
}

function importancePlot(shares: Readonly<Record<string, number>>): ChartFigure {
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
      place: placeOf(dimension, value),
      text: String(value),
    }));
  }
  const { kind, low, high } = dimension;
  const ticks = kind.startsWith('log') ? logTicks(low, high) : linearTicks(low, high);
  return ticks
    .filter(
      (tick) => tick >= low && tick <= high && (Number.isInteger(tick) || !kind.endsWith('nteger')),
    )
    .map((tick) => ({ place: placeOf(dimension, tick), text: tickText(tick) }));
}

const shortName = (path: string) => path.replace(/^hyperparameters\./, '');
