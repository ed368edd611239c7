import { resolveConfig } from '../shared/config.ts';
import type { NewTrial, StudyPlan, Trial, TrialChange } from './study.ts';

/**
 * Can the model learn a few examples by heart? Deep Learning §11.5, "Fit a tiny dataset": a training
 * error that stays high on a tiny set is a defect, on a large one it may be underfitting. With one and
 * with several workers: what only several cannot do is the fault of staleness.
 */

export interface TinySettings {
  readonly examples: number;
  readonly minibatchSize: number;
  readonly steps: number;
  /** One trial for each. */
  readonly workers: readonly number[];
  /** The examples to train and validate on, before anything is set apart. */
  readonly available: number;
  /** The data have a validation part of their own. */
  readonly ownValidation: boolean;
  /** A training error, or loss where the error is one, at or below which the set is learnt. */
  readonly target: number;
  readonly metric: 'trainingError' | 'trainingLoss';
  /** False: nobody knows how low this loss can get. Default: true. */
  readonly certain?: boolean;
  /** Examples with the inputs of another one and another target. Default: 0. */
  readonly unlearnable?: number;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

export interface TinyResult {
  readonly workers: number;
  /** The lowest that was seen. */
  readonly value: number | null;
  readonly learnt: boolean;
  readonly step: number;
  readonly staleness: number;
  /** The training loss was still falling in the second half. */
  readonly falling: boolean;
  readonly failed: boolean;
  /** No worker could do it. */
  readonly refused: boolean;
  readonly reason: string;
}

/** How many examples validate: hardly looked at, so few are enough. */
const VALIDATION = 64;

export function tinyTrials(settings: TinySettings): readonly NewTrial[] {
  const { examples, steps, workers, available, ownValidation, base } = settings;
  const held = ownValidation ? 0 : Math.min(VALIDATION, Math.ceil(available / 4));
  const config = {
    ...{ minibatchSize: settings.minibatchSize, stepsMax: steps, epochsMax: null },
    ...{ validation: { folds: null, fold: 0, stratified: false, apart: null } },
    ...(ownValidation ? {} : { validationFraction: held / available }),
    trainFraction: Math.min(1, examples / (available - held)),
    ...{ evaluateEverySteps: Math.max(1, Math.floor(steps / 6)), evaluateTraining: examples },
    ...{ schedule: { kind: 'constant' }, warmupSteps: 0, averaging: { kind: 'none' } },
    ...{
      weightDecay: { rate: 0, l1: 0, rules: [] },
      divergence: { rollbacksMax: 0 },
      pauseAfter: [],
    },
    ...{ testAtEnd: false, earlyStopping: { enabled: false, afterStop: 'restore' } },
  };
  return workers.map((count) => ({
    key: `tiny-${count}`,
    label: `${examples} examples by ${count === 1 ? '1 worker' : `${count} workers`}`,
    point: { workers: count },
    config: resolveConfig(...base, config, { workersMin: count, workersMax: count }),
  }));
}

export function tinyPlan(settings: TinySettings): StudyPlan {
  const all = tinyTrials(settings);
  return {
    decide(trials, room) {
      const change: TrialChange[] = trials.flatMap((trial) =>
        trial.end === null && resultOf(trial, settings).learnt
          ? [{ index: trial.index, to: 'kill', reason: 'memorised' }]
          : [],
      );
      const start = all.slice(trials.length, trials.length + Math.max(0, room));
      return { start, change, done: trials.length >= all.length };
    },
  };
}

/** A smaller fall of the training loss, from the middle of the trial to its end, is none. */
const FALLING = 0.05;

function resultOf(trial: Trial, { metric, target }: TinySettings): TinyResult {
  let [value, step] = [null as number | null, trial.step];
  for (const { metrics, step: at } of trial.evaluations) {
    const seen = metrics[metric];
    if (seen == null || (value !== null && seen >= value)) continue;
    [value, step] = [seen, at];
  }
  const learnt = value !== null && value <= target;
  const of = trial.curve?.staleness ?? [];
  const staleness = of.length === 0 ? 0 : of.reduce((a, b) => a + b, 0) / of.length;
  const losses = trial.evaluations.flatMap(({ metrics }) => metrics.trainingLoss ?? []);
  const [middle, last] = [losses[losses.length >> 1], losses.at(-1)];
  const falling =
    middle !== undefined && last !== undefined && last < middle - FALLING * Math.abs(middle);
  const failed = trial.end?.kind === 'failed';
  const how = { failed, refused: trial.end?.code !== undefined, reason: trial.end?.reason ?? '' };
  return { workers: Number(trial.point.workers), value, learnt, step, staleness, falling, ...how };
}

export function tinyResults(trials: readonly Trial[], settings: TinySettings): TinyResult[] {
  return trials.map((trial) => resultOf(trial, settings));
}
