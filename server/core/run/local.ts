import { isInRounds } from '../../../shared/consistency.ts';
import { localOf, outerOf, type PushKind } from '../../../shared/local-steps.ts';
import type { LocalWork } from '../../../shared/protocol.ts';
import { momentumAt } from '../schedule.ts';
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
  if (push === 'gradient') return null;
  const momentum = momentumAt(options.config.momentumSchedule, scheduleStepOf(fields));
  const work = {
    push,
    learningRate: learningRateOf(inside),
    ...(momentum !== undefined && { momentum }),
  };
  if (push === 'delta') return work;
  worker.movingRate = movingRateOf(inside);
  const center = isInRounds(options.config.consistency) ? 'before' : 'after';
  return { ...work, movingRate: worker.movingRate, center };
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

/**
 * Minibatches of the next lease of a worker: with dynamic steps max(1, ⌊H · v / v_max⌋) by the speeds measured so far
 * (DyLU, Liu et al. 2024, arXiv:2401.09135).
 */
export function minibatchesFor(inside: RunInternals, worker: RosterWorker): number {
  if (pushKindOf(inside) === 'gradient') return 1;
  const { steps, dynamic } = localOf(inside.options.config)!;
  const own = worker.minibatchMs;
  if (!dynamic || !own) return steps;
  let least = own;
  for (const { attached, minibatchMs } of inside.components.roster.values()) {
    if (attached && minibatchMs) least = Math.min(least, minibatchMs);
  }
  // A hair above a whole number counts as that.
  return Math.max(1, Math.floor((steps * least) / own + 1e-9));
}
