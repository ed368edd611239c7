import type { Phase } from './protocol.ts';
import type { CheckpointSummary, Evaluation } from './rest.ts';

/**
 * Which parameters stand for a run, and which measurements belong to them. After `retrain` and `continue` the final
 * parameters are others than the best ones, which were measured before the validation examples were learnt, too.
 */

export type CheckpointKind = CheckpointSummary['kind'];

/** What a user gets who names no kind: the final parameters of a finished run, else the best so far. */
export function kindOfModel({ phase }: { readonly phase: Phase }): 'final' | 'best' {
  return phase === 'finished' ? 'final' : 'best';
}

/** Those final parameters are none that were validated: they were trained after the best ones, on all examples. */
export function isRefitted(run: {
  readonly phase: Phase;
  readonly earlyStopping: { readonly afterStop: string };
}): boolean {
  return kindOfModel(run) === 'final' && run.earlyStopping.afterStop !== 'restore';
}

export interface RunCourse {
  readonly phase: Phase;
  readonly config: { readonly earlyStopping: { readonly afterStop: string } };
  readonly best: Evaluation | null;
  readonly test: Evaluation | null;
  readonly testedAt: string | null;
  /** The step at which training stopped and what follows began; null: not yet. */
  readonly stoppedAt: number | null;
}

/** The step whose parameters a checkpoint holds, and the measurements that were made with these and no others. */
export interface Measurements {
  readonly step: number;
  readonly best: Evaluation | null;
  readonly test: Evaluation | null;
  readonly testedAt: string | null;
  /** They were trained on the validation examples, too, which say nothing of them any more. */
  readonly learntValidation: boolean;
}

/**
 * @param run as it was when the checkpoint was written, or later; of a `last` it must be the former, since
 *   parameters change until the run ends.
 */
export function measurementsOf(
  run: RunCourse,
  { kind, step }: { readonly kind: CheckpointKind; readonly step: number },
  isOfThatMoment = false,
): Measurements {
  const { best, test, testedAt } = run;
  const restored = run.config.earlyStopping.afterStop === 'restore';
  const ended = run.phase === 'finished' || run.phase === 'testing';
  const isBestKind = kind === 'best' && step === best?.step;
  const isFinal =
    kind === 'final' ||
    (kind === 'last' && isOfThatMoment && ended) ||
    (isBestKind && restored && ended);
  const isBest = isBestKind || (isFinal && restored);
  const tested = isFinal ? test : null;
  return {
    step: isBest && best ? best.step : step,
    best: isBest ? best : null,
    test: tested,
    testedAt: tested && testedAt,
    learntValidation: kind !== 'best' && !restored && run.stoppedAt !== null,
  };
}
