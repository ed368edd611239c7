import { isInRounds } from '../../../shared/consistency.ts';
import {
  exchangeSteps,
  fragmentsOf,
  localOf,
  outerOf,
  type PushKind,
} from '../../../shared/local-steps.ts';
import type { LocalWork } from '../../../shared/protocol.ts';
import { momentumAt } from '../schedule.ts';
import type { StepOptions } from '../step-options.ts';
import { learningRateOf, scheduleStepOf } from './course.ts';
import type { RosterWorker } from './roster.ts';
import type { RunInternals } from './state.ts';

/** Local steps of the workers of a run: how many, at what rate, and how the server applies their results. */

/** What pushes hold at this step. */
export function pushKindOf({ options, fields }: RunInternals): PushKind {
  const local = localOf(options.config);
  return local && scheduleStepOf(fields) >= local.after ? local.push : 'gradient';
}

/** How the worker takes its steps; null: it pushes a gradient. */
export function localWorkFor(inside: RunInternals, worker: RosterWorker): LocalWork | null {
  const { options, fields } = inside;
  const push = pushKindOf(inside);
  worker.fragment = push === 'delta' ? fragmentFor(inside, worker) : null;
  if (push === 'gradient') return null;
  const momentum = momentumAt(options.config.momentumSchedule, scheduleStepOf(fields));
  const work = {
    push,
    learningRate: learningRateOf(inside),
    ...(momentum !== undefined && { momentum }),
  };
  if (push === 'delta') {
    return worker.fragment === null ? work : { ...work, fragment: worker.fragment };
  }
  worker.movingRate = movingRateOf(inside);
  const center = isInRounds(options.config.consistency) ? 'before' : 'after';
  return { ...work, movingRate: worker.movingRate, center };
}

/**
 * Fragment that all pushes of the next step are of, where a step is of one push from each worker; null: the run has no
 * fragments, or each worker has turns of its own.
 */
export function fragmentOfStep({ options, fields }: RunInternals): number | null {
  const { config } = options;
  const count = fragmentsOf(config);
  return count > 1 && isInRounds(config.consistency) ? fields.step % count : null;
}

/**
 * Fragment of the next push of a worker; null: the run has none. Each of its pushes that was applied has brought its
 * own turn on, so that a push that is rejected is followed by one of the same fragment.
 */
function fragmentFor(inside: RunInternals, { pushes }: RosterWorker): number | null {
  const count = fragmentsOf(inside.options.config);
  if (count === 1) return null;
  return fragmentOfStep(inside) ?? (pushes.applied + pushes.damped) % count;
}

/** α = β / workers. */
function movingRateOf({ options, components }: RunInternals): number {
  const { movingRate } = localOf(options.config)!;
  return movingRate / Math.max(1, components.correction.crowd);
}

/**
 * The rate at which the outer optimizer applies a push, or the mean of those of a round.
 * @param worker of the push; null: of several.
 */
export function outerRateOf(inside: RunInternals, worker: RosterWorker | null): number {
  const { options, components } = inside;
  const { config } = options;
  const local = localOf(config)!;
  if (local.push === 'delta') {
    const { learningRate, delayed } = outerOf(config);
    // All workers together move the parameters as far as the mean of a round does.
    const isOneByOne = worker !== null && delayed === null;
    return learningRate ?? (isOneByOne ? 1 / Math.max(1, components.correction.crowd) : 1);
  }
  // In a round, p workers move by β / p each: the server by β of their mean.
  return worker ? (worker.movingRate ?? movingRateOf(inside)) : local.movingRate;
}

/** How the outer optimizer makes an update. @param fragment that it moves; absent: all. */
export function outerOptions(options: StepOptions, fragment: number | undefined): StepOptions {
  if (fragment === undefined) return { ...options, outer: true };
  return { ...options, outer: true, fragment };
}

/**
 * Minibatches of the next lease of a worker: with dynamic steps max(1, ⌊H · v / v_max⌋) by the speeds measured so far
 * (DyLU, Liu et al. 2024, arXiv:2401.09135).
 */
export function minibatchesFor(inside: RunInternals, worker: RosterWorker): number {
  if (pushKindOf(inside) === 'gradient') return 1;
  const local = localOf(inside.options.config)!;
  const { dynamic } = local;
  const steps = exchangeSteps(local);
  const own = worker.minibatchMs;
  if (!dynamic || !own) return steps;
  let least = own;
  for (const { attached, minibatchMs } of inside.components.roster.values()) {
    if (attached && minibatchMs) least = Math.min(least, minibatchMs);
  }
  // A hair above a whole number counts as that.
  return Math.max(1, Math.floor((steps * least) / own + 1e-9));
}
