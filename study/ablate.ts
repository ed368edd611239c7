import { resolveConfig } from '../shared/config.ts';
import type { ChartFigure } from '../shared/figure.ts';
import type { Format } from '../shared/text.ts';
import { failureOf, failuresText } from './failures.ts';
import { chart, pointOf } from './plot.ts';
import {
  errorAxis,
  errorFormatOf,
  errorName,
  fewText,
  intervalText,
  numberText,
  type Report,
  signed,
  spreadText,
} from './report.ts';
import { type Estimate, estimate, meanOf } from './statistics.ts';
import {
  bestEvaluation,
  type Metric,
  type NewTrial,
  type StudyPlan,
  type Trial,
  trialValue,
} from './study.ts';
import type { BaselineFacts, VariantSet } from './variants.ts';

/**
 * An ablation: the same experiment with one thing different at a time, several seeds each, compared seed by
 * seed with the baseline. The same seed means the same split, order of examples and, as far as the
 * models are alike, initial parameters: what they share cancels out of the difference.
 */

export interface AblationSettings {
  readonly set: VariantSet;
  readonly repeats: number;
  readonly metric: Metric;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

/** The baseline's seeds first; what depends on how large it is waits until it is known. */
export function ablationPlan(settings: AblationSettings): StudyPlan & { trialCount: number } {
  const { set, repeats, base } = settings;
  const config = resolveConfig(...base);
  const seeds = Array.from({ length: repeats }, (_, r) => config.seed + r);
  const all = [
    ...seeds.map((seed) => ({ name: set.baseline, index: 0, seed })),
    ...seeds.flatMap((seed) => set.names.slice(1).map((name, i) => ({ name, index: i + 1, seed }))),
  ];
  return {
    trialCount: all.length,
    decide(trials, room) {
      const facts = factsOf(trials.slice(0, repeats));
      const start: NewTrial[] = [];
      for (let i = trials.length; i < all.length && start.length < room; i++) {
        const { name, index, seed } = all[i]!;
        if (set.needsFacts && index > 0 && facts === null) break;
        const variant = set.of(facts ?? NOT_ASKED_FOR, config)[name]!;
        start.push({
          key: `${index}-${seed}`,
          label: `${name}, seed ${seed}`,
          point: { variant: name },
          config: resolveConfig(...base, variant, { seed }),
        });
      }
      // When no baseline could be run, there is nothing to go by.
      const waits = set.needsFacts && facts === null && trials.length >= repeats;
      const stuck = waits && trials.every(({ end }) => end !== null);
      return { start, change: [], done: stuck || trials.length >= all.length };
    },
  };
}

/** For sets that do not look at them, and for the baseline, which follows from none. */
const NOT_ASKED_FOR: BaselineFacts = { parameters: 1, trainCount: 1 };

function factsOf(baseline: readonly Trial[]): BaselineFacts | null {
  for (const { data, parameters } of baseline) {
    if (data && parameters != null) return { parameters, trainCount: data.trainCount };
  }
  return null;
}

interface VariantResult {
  readonly name: string;
  readonly trials: readonly Trial[];
  readonly value: Estimate | null;
  /** To the baseline, seed by seed; null for the baseline itself. */
  readonly difference: Estimate | null;
  readonly parameters: number | null;
  /** The mean number of updates at the best evaluation. */
  readonly steps: number;
  readonly seconds: number;
  readonly failed: number;
  /** The same evaluations as the baseline, to the bit. */
  readonly identical: boolean;
  /** What the server noticed of its optimisation. */
  readonly hint: string | null;
}

export function ablationReport(
  name: string,
  { set, metric }: AblationSettings,
  trials: readonly Trial[],
): Report {
  const results = resultsOf(set, metric, trials);
  const format = metric === 'error' ? errorFormatOf(trials) : numberText;
  const rows = results.map((result) => [
    result.name,
    spread(result.value, format),
    differenceCell(result, format),
    result.parameters === null ? '–' : String(result.parameters),
    result.value ? String(Math.round(result.steps)) : '–',
    `${result.seconds.toFixed(1)} s`,
    `${result.value?.count ?? 0}${result.failed > 0 ? ` (${result.failed} failed)` : ''}`,
  ]);
  return {
    title: `Ablation ${name}`,
    headings: [
      'variant',
      `validation ${metric} (± 95 %)`,
      `to '${set.baseline}' (95 %)`,
      'parameters',
      'updates to the best',
      'time',
      'seeds',
    ],
    rows,
    advice: adviceOf(results, { set, metric }, trials),
    plots: { 'ablation.svg': plot(results, metric, trials) },
    facts: {
      ...{ study: name, baseline: set.baseline, metric },
      variants: results.map(({ trials: own, ...rest }) => ({
        ...rest,
        runs: own.map((trial) => ({
          ...{ run: trial.id, seed: trial.config.seed, end: trial.end, step: trial.step },
          ...{ seconds: trial.seconds, best: bestEvaluation(trial) },
        })),
      })),
    },
    failure: failureOf(trials, results.filter(({ value }) => value).length),
  };
}

function resultsOf(
  set: VariantSet,
  metric: Metric,
  trials: readonly Trial[],
): readonly VariantResult[] {
  const of = (name: string) => trials.filter(({ point }) => point.variant === name);
  const baseline = new Map(of(set.baseline).map((trial) => [trial.config.seed, trial]));
  const known = (values: readonly number[]) => {
    const finite = values.filter(Number.isFinite);
    return finite.length === 0 ? null : estimate(finite);
  };
  return set.names.map((name) => {
    const own = of(name);
    const paired = own.flatMap((trial) => {
      const other = baseline.get(trial.config.seed);
      return other && name !== set.baseline ? [{ trial, other }] : [];
    });
    const ended = own.filter((trial) => Number.isFinite(trialValue(trial, metric)));
    const mean = (values: readonly number[]) => (values.length === 0 ? 0 : meanOf(values));
    return {
      ...{ name, trials: own, value: known(own.map((trial) => trialValue(trial, metric))) },
      difference: known(
        paired.map(({ trial, other }) => trialValue(trial, metric) - trialValue(other, metric)),
      ),
      parameters: own.find(({ parameters }) => parameters != null)?.parameters ?? null,
      steps: mean(ended.map((trial) => bestEvaluation(trial)!.step)),
      seconds: mean(own.map(({ seconds }) => seconds)),
      failed: own.length - ended.length,
      identical:
        paired.length > 0 &&
        paired.every(({ trial, other }) => course(trial) === course(other) && course(trial) !== ''),
      hint: own.find(({ hint }) => hint)?.hint ?? null,
    };
  });
}

const course = ({ evaluations }: Trial) =>
  evaluations.map(({ step, loss }) => `${step}:${loss}`).join(' ');

/** The mean with the half of its 95 % interval. */
function spread(value: Estimate | null, format: Format): string {
  if (value === null || value.distinct < 2) return spreadText(value, format);
  return `${format(value.mean)} ± ${format(value.high - value.mean)}`;
}

function differenceCell({ difference, identical }: VariantResult, format: Format): string {
  if (difference === null) return '–';
  if (identical) return 'the same runs';
  const { mean, low, high, distinct } = difference;
  if (distinct < 2) return signed(mean, format);
  return `${signed(mean, format)} (${signed(low, format)} … ${signed(high, format)})`;
}

function adviceOf(
  results: readonly VariantResult[],
  { set, metric }: Pick<AblationSettings, 'set' | 'metric'>,
  trials: readonly Trial[],
): string {
  const format = metric === 'error' ? errorFormatOf(trials) : numberText;
  const [baseline, ...others] = results;
  const failures = failuresText(trials);
  if (!baseline?.value) {
    const why = failures ?? 'none of its runs has one.';
    return `The baseline '${set.baseline}' reached no finite value, so there is nothing to compare with: ${why}`;
  }
  const what = metric === 'error' ? errorName(trials) : null;
  const parts = [
    `'${baseline.name}' has a validation ${metric}${what ? ` (${what})` : ''} of ${spread(baseline.value, format)}.`,
  ];
  const compared = others.filter(({ difference, identical }) => difference && !identical);
  const rangeText = (d: Estimate) => intervalText(d, (value) => signed(value, format));
  const text = ({ name, difference: d }: VariantResult) =>
    `'${name}' by ${format(Math.abs(d!.mean))} (${rangeText(d!)})`;
  const openText = ({ name, difference: d }: VariantResult) =>
    `'${name}' ${signed(d!.mean, format)} (${rangeText(d!)})`;
  const byMean = (a: VariantResult, b: VariantResult) => a.difference!.mean - b.difference!.mean;
  // Without an interval these are not a number, and nothing is better or worse.
  const better = compared.filter(({ difference }) => difference!.high < 0).sort(byMean);
  const worse = compared.filter(({ difference }) => difference!.low > 0).sort(byMean);
  const isEven = ({ difference: d }: VariantResult) => d!.mean === 0 && d!.distinct < 2;
  const even = compared.filter(isEven).map(({ name }) => `'${name}'`);
  const open = compared
    .filter((r) => !better.includes(r) && !worse.includes(r) && !isEven(r))
    .sort(byMean);
  if (better.length > 0) parts.push(`Lower: ${better.map(text).join(', ')}.`);
  if (worse.length > 0) parts.push(`Higher: ${worse.map(text).join(', ')}.`);
  if (open.length > 0) parts.push(`Not separated: ${open.map(openText).join(', ')}.`);
  if (even.length > 0) {
    parts.push(`As good as the baseline with every seed: ${even.join(', ')}.`);
  }
  if (compared.length > 0) parts.push(choiceText(baseline, better, open));
  const same = others.filter(({ identical }) => identical).map(({ name }) => `'${name}'`);
  if (same.length > 0) {
    parts.push(
      `${same.join(' and ')} gave exactly the same result as the baseline: either the baseline already has this setting, or the experiment does not read ${set.about} (docs/layers.md, knobs).`,
    );
  }
  const lost = results.filter((r) => r.failed > 0);
  if (lost.length > 0) {
    const list = lost.map((r) => `${r.failed} of '${r.name}'`).join(', ');
    parts.push(`Without a finite value, and not counted: ${list}.`);
  }
  if (failures) parts.push(failures);
  const few = fewText(trials);
  if (few) parts.push(few);
  const slow = better.filter((r) => baseline.seconds > 0 && r.seconds > 1.5 * baseline.seconds);
  for (const { name, seconds } of slow) {
    parts.push(`'${name}' takes ${(seconds / baseline.seconds).toFixed(1)} times as long.`);
  }
  const troubled = results.filter(({ hint }) => hint !== null);
  if (troubled.length > 0) {
    parts.push(`Of '${troubled.map(({ name }) => name).join("', '")}': ${troubled[0]!.hint}`);
  }
  if (better.length + worse.length > 0 && compared.length > 2) {
    parts.push(
      `About one in twenty such comparisons (${compared.length} here) shows a difference by chance; repeat your choice with further seeds.`,
    );
  }
  parts.push(
    'Each variant used the learning rate of its configuration. Find the learning rate of the one you choose with `downpour lr-find` (Deep Learning §11.4.1).',
  );
  return parts.join(' ');
}

function choiceText(
  baseline: VariantResult,
  better: readonly VariantResult[],
  open: readonly VariantResult[],
): string {
  const [choice] = better;
  if (choice) return `Choose '${choice.name}'.`;
  const seeds = baseline.value!.count;
  const hopeful = open.find(({ difference }) => difference!.mean < 0);
  if (hopeful) {
    return `Stay with '${baseline.name}'; more seeds than ${seeds} (--repeats) may tell whether '${hopeful.name}' is better.`;
  }
  return `Stay with '${baseline.name}'.`;
}

function plot(
  results: readonly VariantResult[],
  metric: Metric,
  trials: readonly Trial[],
): ChartFigure {
  return chart({
    title: `Validation ${metric} by variant, with 95 % confidence`,
    x: { label: 'variant', names: results.map(({ name }) => name) },
    y: errorAxis(`validation ${metric}`, metric, trials),
    series: [
      {
        name: '',
        style: 'scatter',
        points: results.flatMap(({ name, value }, x) =>
          value === null
            ? []
            : [
                {
                  ...pointOf(x, value),
                  label: `${name}: ${numberText(value.mean)}`,
                },
              ],
        ),
      },
    ],
  });
}
