import { DownpourError } from '../../../shared/errors.ts';
import type { Evaluated, LeasePart } from '../../../shared/protocol.ts';
import type { Evaluation } from '../../../shared/rest.ts';
import type { Curves } from '../curves.ts';
import { epochOf, examplesOf, learningRateOf, phaseStepOf } from './course.ts';
import { takeBack, toHandOut } from './handed.ts';
import {
  type Best,
  type PendingEvaluation,
  type RunFields,
  type RunInternals,
  secondsOf,
} from './state.ts';
import type { CapturesInUse } from './vector.ts';

/** Evaluations: the one that is under way, what becomes of its result, and the best so far. */

/** @param step that the captured parameters belong to. */
export function beginEvaluation(
  inside: RunInternals,
  purpose: PendingEvaluation['purpose'],
  part: LeasePart,
  capture: number,
  step = inside.fields.step,
): void {
  const { fields } = inside;
  fields.evaluation = {
    id: ++fields.evaluationsGiven,
    purpose,
    part,
    step,
    phaseStep: phaseStepOf(fields),
    epoch: epochOf(inside),
    generation: fields.generation,
    capture,
    ...toHandOut(),
  };
}

/** Somebody else may have it. @returns whether it was this worker's. */
export function giveBack({ evaluation }: RunFields, worker: string): boolean {
  if (evaluation?.worker !== worker) return false;
  takeBack(evaluation);
  return true;
}

/** @throws DownpourError DP_DATA_MISMATCH. */
export function mustBeOfAll(
  { options, fields }: RunInternals,
  { part }: PendingEvaluation,
  { examples }: Evaluated,
): void {
  const all = examplesOf(fields.data!, part);
  if (examples === all) return;
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `an evaluation of ${examples} examples; the part '${part}' of run ${options.id} has ${all}: evaluate all of them, once each`,
  );
}

export function evaluationFrom(
  inside: RunInternals,
  pending: PendingEvaluation,
  { loss, error, examples, metrics }: Evaluated,
  now: number,
): Evaluation {
  return {
    step: pending.step,
    epoch: pending.epoch,
    seconds: secondsOf(inside.fields, now),
    part: pending.part,
    loss,
    error,
    examples,
    metrics,
    learningRate: learningRateOf(inside),
    trainingLoss: inside.components.observations.trainingLoss,
  };
}

/** Captures that are the best or under evaluation. */
export function capturesInUse({ best, evaluation }: RunFields): CapturesInUse {
  return { best: best?.capture ?? null, evaluated: evaluation?.capture ?? null };
}

/** Where training diverges from the start, an evaluation may be finite and yet worthless. */
export function isGood(best: Best | null, { initialLoss }: RunFields): best is Best {
  const loss = best?.evaluation.loss ?? Infinity;
  return initialLoss !== null && loss <= initialLoss;
}

/** How many evaluations of the training so far were of validation. */
export function validationCount({ evaluations }: Curves): number {
  return evaluations.filter(({ part }) => part === 'validation').length;
}

/** @throws DownpourError DP_CHECKPOINT_MISSING, DP_RUN_UNFINISHED, DP_RUN_FAILED, DP_TEST_SEEN or DP_DATA_MISSING. */
export function mustBeTestable({ options: { id }, fields }: RunInternals): void {
  const { phase, reason, test, testedAt, data } = fields;
  if (fields.initialisations === 0) {
    throw new DownpourError(
      'DP_CHECKPOINT_MISSING',
      `run ${id} has no parameters yet, so there is nothing to test`,
    );
  }
  if (phase === 'failed') {
    throw new DownpourError('DP_RUN_FAILED', `run ${id} has failed: ${reason}`);
  }
  if (phase !== 'finished') {
    throw new DownpourError(
      'DP_RUN_UNFINISHED',
      `run ${id} is ${phase}: the test part is for the final parameters, so let it finish first`,
    );
  }
  if (test) {
    throw new DownpourError(
      'DP_TEST_SEEN',
      `the test part was looked at for run ${id}${testedAt === null ? '' : ` on ${testedAt}`}: loss ${test.loss}, error ${test.error}; it counts once`,
    );
  }
  if (data!.testCount === 0) {
    throw new DownpourError(
      'DP_DATA_MISSING',
      `the data of run ${id} (${data!.source}) have no test part`,
    );
  }
}

/** There is something to go back for: this phase goes on, and with the parameters that were evaluated. */
export function mayRollBack(
  { options, fields }: RunInternals,
  pending: PendingEvaluation,
): boolean {
  const { rollbacks, ending, generation } = fields;
  const left = options.config.divergence.rollbacksMax - rollbacks.length;
  return left > 0 && ending === null && pending.generation === generation;
}
