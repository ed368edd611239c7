import { medianOf } from '../shared/quantile.ts';
import { numberText } from './report.ts';
import { type Metric, type Trial, type TrialChange, trialValue } from './study.ts';

/**
 * Ends bad trials early. A resource is a number of evaluations: an epoch each, unless the
 * configuration evaluates more often. Pure: from the trials' evaluations alone.
 */

export interface HalvingOptions {
  readonly metric: Metric;
  /** Evaluations at the first rung. */
  readonly first: number;
  /** Evaluations of a full trial. */
  readonly budget: number;
  /** One of so many goes on from a rung. */
  readonly eta: number;
}

/** Evaluations at which trials are compared; the end of a full trial is not among them. */
export function rungs({ first, budget, eta }: Omit<HalvingOptions, 'metric'>): number[] {
  const at: number[] = [];
  for (let r = first; r < budget; r *= eta) at.push(Math.round(r));
  return at;
}

/**
 * Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter
 * Tuning"): a trial at a rung goes on when it is among the best 1/η of those that have been there; the
 * others pause and may still be promoted when more come. `level` of a trial is the rung it may reach.
 * Runs stop by themselves at a rung (`pauseAfter`), so nobody overshoots while the study is away.
 * @param ended no new trial will come. When nothing runs either, whoever is better than all that are
 *   at the end of the budget goes on, and the paused rest is killed.
 */
export function halving(
  trials: readonly Trial[],
  options: HalvingOptions,
  room: number,
  ended: boolean,
): TrialChange[] {
  const { metric, eta } = options;
  const at = rungs(options);
  const reached = (trial: Trial, k: number) =>
    trial.evaluations.length >= at[k]! ||
    trial.end?.kind === 'finished' ||
    (k === 0 && trial.end?.kind === 'failed');
  const value = (trial: Trial, k: number) =>
    trial.end?.kind === 'failed' ? Infinity : trialValue(trial, metric, at[k]);
  /** The best 1/η of those at a rung. */
  const top = (k: number): Set<Trial> => {
    const there = trials.filter((trial) => reached(trial, k));
    const order = there.sort((a, b) => value(a, k) - value(b, k) || a.index - b.index);
    return new Set(order.slice(0, Math.floor(order.length / eta)));
  };
  const tops = at.map((_, k) => top(k));
  const changes: TrialChange[] = [];
  const said = (k: number) => `${at[k]} of ${options.budget} evaluations`;
  for (const trial of trials) {
    const { level } = trial;
    if (trial.end || trial.desire !== 'run' || level >= at.length || !reached(trial, level))
      continue;
    changes.push(
      tops[level]!.has(trial)
        ? {
            index: trial.index,
            to: 'run',
            level: level + 1,
            reason: `among the best 1/${eta} after ${said(level)}`,
          }
        : {
            index: trial.index,
            to: 'pause',
            reason: `not among the best 1/${eta} after ${said(level)}`,
          },
    );
  }
  // From the highest rung down: who is nearest to the end comes first.
  const paused = trials
    .filter(({ desire }) => desire === 'pause')
    .sort((a, b) => b.level - a.level || value(a, a.level) - value(b, b.level));
  for (const trial of paused) {
    if (changes.length > 0 || room <= 0) break;
    const { level, index } = trial;
    if (!tops[level]!.has(trial)) continue;
    changes.push({
      index,
      to: 'run',
      level: level + 1,
      reason: `now among the best 1/${eta} after ${said(level)}`,
    });
  }
  const idle = trials.every(({ desire }) => desire !== 'run');
  if (changes.length > 0 || !ended || !idle || paused.length === 0) return changes;
  // Nothing more will come. The best there is must have been trained to the end.
  const full = trials.filter(({ end }) => end?.kind === 'finished');
  const bestFull = Math.min(Infinity, ...full.map((trial) => trialValue(trial, metric)));
  const best = paused.reduce((a, b) => (value(b, b.level) < value(a, a.level) ? b : a));
  if (value(best, best.level) < bestFull) {
    const reason = 'the best trial continues';
    return [{ index: best.index, to: 'run', level: best.level + 1, reason }];
  }
  return paused.map((trial) => ({
    index: trial.index,
    to: 'kill' as const,
    reason: `${valueWords(metric, value(trial, trial.level))} after ${said(trial.level)}, not better than the best trial that was trained in full, ${valueWords(metric, bestFull)}`,
  }));
}

const valueWords = (metric: Metric, value: number) =>
  Number.isFinite(value) ? `${metric} ${numberText(value)}` : `no finite ${metric}`;

/** Fewer other trials give no median to trust. */
const MEDIAN_TRIALS_MIN = 3;

/**
 * The median rule (Golovin et al. 2017, "Google Vizier"): a trial ends when its best value so far is
 * worse than the median, over the others that got as far, of their mean values up to there.
 */
export function medianRule(
  trials: readonly Trial[],
  { metric, first }: Pick<HalvingOptions, 'metric' | 'first'>,
): TrialChange[] {
  const changes: TrialChange[] = [];
  for (const trial of trials) {
    const count = trial.evaluations.length;
    if (trial.end || count < first) continue;
    const others = trials.filter((other) => other !== trial && other.evaluations.length >= count);
    if (others.length < MEDIAN_TRIALS_MIN) continue;
    const means = others.map((other) => {
      const values = other.evaluations.slice(0, count).map((e) => e[metric] ?? Infinity);
      return values.reduce((sum, value) => sum + value, 0) / count;
    });
    const median = medianOf(means);
    const value = trialValue(trial, metric);
    if (!(value > median)) continue;
    changes.push({
      index: trial.index,
      to: 'kill',
      reason: `${valueWords(metric, value)} after ${count} evaluations is worse than the median of the others, ${numberText(median)}`,
    });
  }
  return changes;
}
