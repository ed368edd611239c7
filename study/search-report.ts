import { type Format, percent } from '../shared/text.ts';
import { failureOf, failuresText } from './failures.ts';
import { importance } from './importance.ts';
import { errorFormatOf, errorName, fewText, numberText, type Report } from './report.ts';
import { ranked, type SearchSettings, valueText } from './search.ts';
import {
  curvesPlot,
  importancePlot,
  parallelPlot,
  resultOf,
  scatterPlots,
  shortName,
  trialsPlot,
} from './search-plots.ts';
import { unitPlace, unitPoint } from './space.ts';
import { bestEvaluation, type Trial } from './study.ts';

/** Fewer trials with a value, in all and for each hyperparameter, say nothing about what matters. */
const IMPORTANCE_TRIALS_MIN = 8;
const IMPORTANCE_TRIALS_EACH = 3;
/** Fewer do not tell that a hyperparameter does not matter. */
const IDLE_TRIALS_MIN = 20;
/** Nearer to an end of its range than this share of it, the best value asks for another range. */
const BORDER = 0.05;
/** A share of a range: what is as good so far inside tells against the best lying beyond the end. */
const FAR = 0.25;
/** A share of the best value: what is no more above it counts as good as it. */
const TIED = 0.02;

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
  const values = order.map((trial) => resultOf(trial, metric));
  const measured = values.filter(Number.isFinite).length;
  const format = metric === 'error' ? errorFormatOf(trials) : numberText;
  const shares = sharesOf(settings, trials);
  const cost = costOf(trials);
  const rows = order.map((trial, i) => [
    String(i + 1),
    String(trial.index),
    format(values[i]),
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
    advice: adviceOf(settings, { order, measured, shares, cost, format }, trials, command),
    plots: {
      'trials.svg': trialsPlot(settings, trials),
      'curves.svg': curvesPlot(settings, order),
      'parallel.svg': parallelPlot(settings, order),
      ...scatterPlots(settings, order),
      ...(typeof shares === 'string' ? {} : { 'importance.svg': importancePlot(shares) }),
    },
    facts: {
      study: name,
      metric,
      best: measured > 0 ? { ...factsOf(order[0]!, settings), rank: 1 } : null,
      trials: trials.map((trial) => factsOf(trial, settings)),
      importance: typeof shares === 'string' ? null : shares,
      examples: cost,
    },
    failure: failureOf(trials, measured),
  };
}

function factsOf(trial: Trial, { metric }: SearchSettings) {
  const value = resultOf(trial, metric);
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

/**
 * By path, the share of the differences between trials that a dimension alone explains; or, in words, why there
 * are none.
 */
function sharesOf(
  { space, metric, kill, first }: SearchSettings,
  trials: readonly Trial[],
): Record<string, number> | string {
  // Trials that ended early are compared where all of them still were.
  const count = kill === 'none' ? Infinity : first;
  const values = trials.map((trial) => resultOf(trial, metric, count));
  const finite = values.filter(Number.isFinite);
  const [least, worst] = [Math.min(...finite), Math.max(...finite)];
  const dimensions = Object.keys(space).length;
  const needed = Math.max(IMPORTANCE_TRIALS_MIN, IMPORTANCE_TRIALS_EACH * dimensions);
  if (finite.length < needed) {
    return `Too few trials to say which hyperparameter matters: ${finite.length} with a value, needs ${needed}.`;
  }
  if (least === worst && finite.length === values.length) {
    return `All ${finite.length} trials have the same ${metric}: within these ranges no hyperparameter has an effect.`;
  }
  if (dimensions < 2) return '';
  const positive = finite.filter((value) => value > 0);
  // Logarithms are compared: twice the error is twice as bad wherever one is. 0 counts as half of the least that is above it.
  const isLog = least >= 0 && positive.length > 0;
  const floor = Math.min(...positive) / 2;
  const places = trials.map(({ point }) => unitPoint(space, point));
  // Diverged counts as the worst.
  const known = values.map((value) => (Number.isFinite(value) ? value : worst));
  const shares = importance(
    places,
    known.map((value) => (isLog ? Math.log(Math.max(floor, value)) : value)),
  );
  if (shares.every((share) => share === 0)) {
    return 'No hyperparameter explains the differences between trials.';
  }
  return Object.fromEntries(Object.keys(space).map((path, i) => [path, shares[i]!]));
}

/** Examples that were trained on, and what all trials would have cost in full. */
function costOf(trials: readonly Trial[]): { used: number; inFull: number | null } {
  const used = trials.reduce((sum, { examples }) => sum + examples, 0);
  const full = trials.filter(({ end }) => end?.kind === 'finished').map(({ examples }) => examples);
  return { used, inFull: full.length === 0 ? null : Math.max(...full) * trials.length };
}

interface SearchFindings {
  /** Best first. */
  readonly order: readonly Trial[];
  readonly measured: number;
  readonly shares: Record<string, number> | string;
  readonly cost: { readonly used: number; readonly inFull: number | null };
  readonly format: Format;
}

function adviceOf(
  settings: SearchSettings,
  found: SearchFindings,
  trials: readonly Trial[],
  command: string,
): string {
  const { metric } = settings;
  const { order, measured, shares, cost, format } = found;
  const failed = failuresText(trials);
  const [best] = order;
  if (!best || measured === 0) {
    return ['No trial reached a finite value.', ...(failed ? [failed] : [])].join(' ');
  }
  const value = resultOf(best, metric);
  const what = metric === 'error' ? errorName(trials) : null;
  const parts = [
    measured > 1
      ? `The best of ${order.length} trials is trial ${best.index} with a validation ${metric}${what ? ` (${what})` : ''} of ${format(value)} (${best.label}).`
      : `Only trial ${best.index} has a value, a validation ${metric}${what ? ` (${what})` : ''} of ${format(value)} (${best.label}): there is nothing to compare it with.`,
  ];
  const killed = order.filter(({ end }) => end?.kind === 'killed').length;
  if (killed > 0 && cost.inFull) {
    parts.push(
      `${killed} trials were ended early; the search cost ${percent(cost.used / cost.inFull)} of what all trials in full would have.`,
    );
  }
  if (failed) parts.push(failed);
  const few = fewText(trials);
  if (few) parts.push(few);
  const tied = order
    .slice(1)
    .filter((trial) => resultOf(trial, metric) - value <= TIED * Math.abs(value));
  parts.push(...borderTexts(settings, best, tied, measured));
  if (typeof shares === 'string') {
    if (shares !== '') parts.push(shares);
  } else parts.push(...sharesTexts(metric, shares, measured));
  if (tied.length > 0) {
    const names = tied.slice(0, 3).map(({ index }) => index);
    const more = tied.length > names.length ? ` and ${tied.length - names.length} others` : '';
    const are = tied.length === 1 ? 'is' : 'are';
    parts.push(
      `Trial${tied.length === 1 ? '' : 's'} ${names.join(', ')}${more} ${are} as good within 2 %: choose between them by cost, or repeat them with other seeds.`,
    );
  }
  parts.push(
    measured > 1
      ? `The validation value of the best trial is too optimistic, because it was chosen among many. Train it once more and look at the test part once: \`${command}\`.`
      : `Train it once more and look at the test part once: \`${command}\`.`,
  );
  return parts.join(' ');
}

/** Where the best one lies at the end of a range, and none that is as good lies far inside. */
function borderTexts(
  { space }: SearchSettings,
  best: Trial,
  tied: readonly Trial[],
  measured: number,
): string[] {
  if (measured < 2) return [];
  return Object.entries(space).flatMap(([path, dimension]) => {
    const at = best.point[path];
    if (at === undefined || dimension.kind === 'choice') return [];
    const place = unitPlace(dimension, at);
    if (place > BORDER && place < 1 - BORDER) return [];
    const side = place <= BORDER ? 'lower' : 'upper';
    const isFar = ({ point }: Trial) => {
      const other = point[path];
      return other !== undefined && Math.abs(unitPlace(dimension, other) - place) > FAR;
    };
    if (tied.some(isFar)) return [];
    return [
      `Its ${path} ${valueText(at)} lies at the ${side} end of the range ${valueText(dimension.low)} … ${valueText(dimension.high)}: the best value may lie beyond it; if such values make sense, move the range (Deep Learning §11.4.3).`,
    ];
  });
}

function sharesTexts(
  metric: SearchSettings['metric'],
  shares: Record<string, number>,
  measured: number,
): string[] {
  const sorted = Object.entries(shares).sort(([, a], [, b]) => b - a);
  const own = sorted.map(([path, share]) => `${path} ${Math.round(100 * share)} %`).join(', ');
  const together = 1 - sorted.reduce((sum, [, share]) => sum + share, 0);
  const idle = sorted.filter(([, share]) => share < 0.05).map(([path]) => path);
  // What does nothing alone may do much together with another.
  const isClear = measured >= IDLE_TRIALS_MIN && together < 0.5;
  return [
    `Of the differences in ${metric}, each alone explains: ${own}; ${Math.round(100 * Math.max(0, together))} % come from several together or from chance (functional ANOVA over a random forest).`,
    ...(isClear && idle.length > 0 && idle.length < sorted.length
      ? [`Leave ${idle.join(', ')} alone and use the next trials for the rest.`]
      : []),
  ];
}
