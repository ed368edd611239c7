import { type RunConfig, resolveConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import { checkPoint, type Point, pointConfig, type Space } from '../shared/space.ts';
import { halving, medianRule, rungs } from './killing.ts';
import { gridPoints, placesFor, pointAt, type Region, regionAround, wholeRegion } from './space.ts';
import {
  type Metric,
  type NewTrial,
  type StudyPlan,
  type Trial,
  type TrialChange,
  trialValue,
} from './study.ts';

/** A search for hyperparameters: which trials, in what order, and which of them end early. */

export interface SearchSettings {
  readonly space: Space;
  readonly method: 'random' | 'grid' | 'sobol';
  /** Exactly so many results; of a grid at most. */
  readonly trials: number;
  /** The seed of the points; the runs' own seed is in their configuration. */
  readonly seed: number;
  readonly metric: Metric;
  /** Above 1: each round after the first halves the ranges around the best so far. */
  readonly rounds: number;
  /** A third of the trials varies the learning rate alone, the rest all else, near the best rate. */
  readonly learningRateFirst: boolean;
  readonly kill: 'none' | 'asha' | 'median';
  readonly eta: number;
  /** Evaluations before a trial may be ended. */
  readonly first: number;
  /** Parts of a configuration that every trial has, weakest first. */
  readonly base: readonly unknown[];
}

const LEARNING_RATE = 'learningRate';
/** The share of the learning rate's range, around the best, that the trials after `learningRateFirst` look at. */
const LEARNING_RATE_WIDTH = 0.25;

/**
 * @throws DownpourError DP_CONFIG_INVALID or DP_USAGE for settings that cannot be meant.
 */
export function createSearchPlan(
  settings: SearchSettings,
): StudyPlan & { readonly trialCount: number } {
  const { space, method, kill, metric, eta, first } = settings;
  const grid = method === 'grid' ? gridPoints(space, settings.trials) : null;
  const trialCount = grid ? grid.length : settings.trials;
  checkSettings(settings);
  for (const place of [0, 0.5, 1]) {
    const point = pointAt(space, Array(Object.keys(space).length).fill(place));
    checkPoint(point, ...settings.base);
  }
  const budget = kill === 'asha' ? budgetOf(resolveConfig(...settings.base)) : Infinity;
  if (kill === 'asha' && !(first < budget)) {
    throw new DownpourError(
      'DP_USAGE',
      `the first rung is at ${first} evaluations and a full trial has ${budget}: nothing could be ended early; raise the budget or lower --first`,
    );
  }
  const pauses = kill === 'asha' ? { pauseAfter: rungs({ first, budget, eta }) } : {};
  return {
    trialCount,
    decide(trials, room) {
      const start: NewTrial[] = [];
      const ended = trials.length >= trialCount;
      let change: TrialChange[] = [];
      if (kill === 'asha') change = halving(trials, { metric, first, budget, eta }, room, ended);
      else if (kill === 'median') change = medianRule(trials, { metric, first });
      if (change.length === 0) {
        for (let index = trials.length; index < trialCount && start.length < room; index++) {
          const point = grid ? grid[index]! : nextPoint(settings, trials, index);
          if (!point) break;
          const config = resolveConfig(...settings.base, pauses, pointConfig(point));
          start.push({ key: String(index), label: pointText(point), point, config });
        }
      }
      return { start, change, done: ended };
    },
  };
}

function checkSettings({ space, rounds, learningRateFirst, method, trials }: SearchSettings): void {
  const usage = (message: string) => new DownpourError('DP_USAGE', message);
  if (learningRateFirst && !(LEARNING_RATE in space)) {
    throw usage('learning rate first needs a range of learningRate in the search space');
  }
  if (learningRateFirst && Object.keys(space).length < 2) {
    throw usage('learning rate first needs other dimensions as well: what is tuned after it');
  }
  if ((rounds > 1 || learningRateFirst) && method === 'grid') {
    throw usage('a grid is not narrowed: use random or sobol with rounds or learning rate first');
  }
  if (rounds > 1 && learningRateFirst) {
    throw usage('rounds and learning rate first do not go together: choose one');
  }
  if (rounds > trials) throw usage(`${rounds} rounds need at least as many trials, not ${trials}`);
}

/** Evaluations of a full trial. @throws DownpourError DP_USAGE when the configuration sets no end. */
function budgetOf(config: RunConfig): number {
  const { evaluateEverySteps, epochsMax, stepsMax } = config;
  if (evaluateEverySteps === null && epochsMax !== null) return epochsMax;
  if (evaluateEverySteps !== null && stepsMax !== null) {
    return Math.ceil(stepsMax / evaluateEverySteps);
  }
  throw new DownpourError(
    'DP_USAGE',
    'successive halving needs the length of a full trial: set --epochs, or evaluateEverySteps and stepsMax',
  );
}

/** The point of an index, null while what it depends on is not known. */
function nextPoint(
  settings: SearchSettings,
  trials: readonly Trial[],
  index: number,
): Point | null {
  const { space, method, seed } = settings;
  if (method === 'grid') return null;
  const roundStart = roundStartOf(settings, index);
  const at = (region: Region) => pointAt(space, placesFor(method, space, seed, index, region));
  if (roundStart === 0) {
    const point = at(wholeRegion(space));
    return settings.learningRateFirst ? { [LEARNING_RATE]: point[LEARNING_RATE]! } : point;
  }
  const before = trials.slice(0, roundStart);
  if (before.some(({ end, desire }) => end === null && desire === 'run')) return null;
  const best = ranked(before, settings.metric)[0]!;
  if (settings.learningRateFirst) {
    const rate = { [LEARNING_RATE]: best.point[LEARNING_RATE]! };
    return at(regionAround(space, rate, LEARNING_RATE_WIDTH));
  }
  const round = roundStart / Math.ceil(settings.trials / settings.rounds);
  return at(regionAround(space, best.point, 0.5 ** round));
}

/** Index of the first trial of the round that a trial is in. */
function roundStartOf(
  { trials, rounds, learningRateFirst }: SearchSettings,
  index: number,
): number {
  if (learningRateFirst) {
    const share = Math.ceil(trials / 3);
    return index < share ? 0 : share;
  }
  const size = Math.ceil(trials / rounds);
  return Math.floor(index / size) * size;
}

/** Best first; those that got further come before others of the same value. */
export function ranked(trials: readonly Trial[], metric: Metric): Trial[] {
  const key = (trial: Trial) =>
    trial.end?.kind === 'failed' ? Infinity : trialValue(trial, metric);
  return [...trials].sort(
    (a, b) =>
      compare(key(a), key(b)) || b.evaluations.length - a.evaluations.length || a.index - b.index,
  );
}

/** Infinities are equal to each other. */
const compare = (a: number, b: number) => (a === b ? 0 : a < b ? -1 : 1);

/** `learningRate 0.0123, units 64`. */
export function pointText(point: Point): string {
  return Object.entries(point)
    .map(([path, value]) => `${path.replace(/^hyperparameters\./, '')} ${valueText(value)}`)
    .join(', ');
}

export function valueText(value: unknown): string {
  return typeof value === 'number' ? String(Number(value.toPrecision(4))) : String(value);
}
