import type { RunConfig } from '../../../shared/config.ts';
import type { ErrorCode } from '../../../shared/errors.ts';
import type { PushKind } from '../../../shared/local-steps.ts';
import type { Lease, Push } from '../../../shared/protocol.ts';
import { type Admission, admit } from '../consistency.ts';
import type { Mode } from '../modes/mode.ts';
import type { PushProblem } from '../robust.ts';
import { isTraining } from './course.ts';
import type { RosterWorker } from './roster.ts';
import type { RunFields } from './state.ts';

/**
 * Whether a push may be applied, from what is known without its numbers. Pure: a push and facts in, a judgement out;
 * nothing is changed, so that each rule can be tried by itself and another consistency mode is another function.
 */

/** What a push is judged by. */
export interface AdmissionFacts {
  readonly config: Pick<RunConfig, 'consistency' | 'leaseSeconds'>;
  readonly fields: Pick<RunFields, 'phase' | 'ending' | 'grant' | 'step' | 'generation'>;
  /** There are parameters, and minibatches are given out. */
  isReady: boolean;
  /** Who sends it. */
  worker: RosterWorker;
  key: string;
  /** Mode of the run; null: asynchronous. */
  readonly mode: Pick<Mode, 'refuse'> | null;
  /** That take part. */
  workers: number;
  /** Why nothing is taken from it any more; null: it is trusted. */
  quarantine: string | null;
  /** What pushes of this step hold. */
  kind: PushKind;
  /** Fragment that the worker was asked for; null: for all parameters. */
  fragment: number | null;
  /** What is wrong with the payload; null: nothing. */
  problem: PushProblem | null;
  /** Lease of the push, if the worker may still push it. */
  lease: Lease | null;
  /**
   * Row step of the newest rows that the worker can have read, and the staleness of the stalest row in the push; null: the
   * run has no tables.
   */
  rows: { readonly rowStepSent: number; readonly staleness: number } | null;
}

export interface Rejection extends PushProblem {
  readonly kind: 'reject';
  /** 0 where it was not looked at. */
  readonly staleness: number;
  /** The worker has the minibatch still and tries it again: its time begins anew. */
  readonly retry: boolean;
  /** The worker was too slow for its step: another one computes the minibatch. */
  readonly passOn?: true;
}

export type Refusal = { readonly kind: 'duplicate' } | Rejection;
export type Judgement = Refusal | Extract<Admission, { kind: 'apply' }>;

const DUPLICATE = { kind: 'duplicate' } as const;

/** Before the payload is looked at. @returns null: look at it. */
export function judgeSender(push: Push, facts: AdmissionFacts): Refusal | null {
  const { fields, worker, quarantine, isReady } = facts;
  if (push.sequence <= worker.lastSequence) return DUPLICATE;
  if (quarantine !== null) return reject('DP_QUARANTINED', quarantine);
  if (isReady && isTraining(fields) && !fields.grant && fields.ending === null) return null;
  const message = `the run is ${fields.ending ?? fields.phase}: this minibatch is no longer needed`;
  return reject('DP_PUSH_PHASE', message);
}

/** With the payload, its numbers aside. Call where `judgeSender` has nothing against the push. */
export function judgePush(push: Push, facts: AdmissionFacts): Judgement {
  const { config, fields, worker, problem, lease } = facts;
  // Without a lease there is nothing that could be tried again.
  if (lease && isOfAnotherFragment(push, facts)) {
    const { fragment } = facts;
    const of = (index: number | null) => (index === null ? 'all parameters' : `fragment ${index}`);
    const message = `the push holds ${of(push.fragment ?? null)}, and its worker was asked for ${of(fragment)}: pull, then push what the work names`;
    return reject('DP_PUSH_STALE', message, true, Math.max(0, fields.step - push.step));
  }
  if (problem) return reject(problem.code, problem.message);
  if (!lease) {
    const message = `minibatch lease ${push.lease} no longer belongs to this worker: it was not pushed within leaseSeconds ${config.leaseSeconds} or its connection was lost, and it went to another worker`;
    return reject('DP_PUSH_LEASE_LOST', message);
  }
  const { step, generation } = fields;
  if (push.generation !== generation) {
    const message = `push read step ${push.step} of generation ${push.generation}, server is at ${step} of generation ${generation}: these parameters are no more; pull, then retry`;
    return reject('DP_PUSH_STALE', message, true);
  }
  const sentStep = worker.sentGeneration === generation ? worker.sentStep : -1;
  if (push.step > sentStep) {
    const sent = sentStep < 0 ? 'none of this generation' : `none after step ${sentStep}`;
    const message = `push read step ${push.step}, and this worker was sent ${sent}: name the step of the parameters that the gradient was computed at; pull, then retry`;
    return reject('DP_PUSH_STALE', message, true);
  }
  const staleness = step - push.step;
  const kind = push.kind ?? 'gradient';
  if (kind !== facts.kind) {
    const message = `the push is a ${kind}, and at step ${step} the run takes pushes of kind ${facts.kind}: pull, then compute the minibatch anew`;
    return reject('DP_PUSH_STALE', message, true, staleness);
  }
  const untimely = facts.mode?.refuse(facts.key, { staleness, serverStep: step }) ?? null;
  if (untimely !== null) {
    const isLate = staleness > 0;
    const rejection = reject('DP_PUSH_STALE', untimely, !isLate, staleness);
    return isLate ? { ...rejection, passOn: true } : rejection;
  }
  const staleRows = facts.rows ? rowsProblem(push, facts.rows, config.consistency) : null;
  if (staleRows !== null) return reject('DP_PUSH_STALE', staleRows, true, staleness);
  const { workers } = facts;
  const read = { staleness, readStep: push.step, serverStep: step, workers };
  const admission = admit(config.consistency, read);
  if (admission.kind === 'apply') return admission;
  return reject('DP_PUSH_STALE', admission.message, true, staleness);
}

/** The bound of staleness holds for each row by itself. */
function rowsProblem(
  { rows }: Push,
  { rowStepSent, staleness }: NonNullable<AdmissionFacts['rows']>,
  { stalenessMax }: RunConfig['consistency'],
): string | null {
  if (!rows) return null;
  if (rows.step > rowStepSent) {
    const sent = rowStepSent === 0 ? 'no rows yet' : `none after row step ${rowStepSent}`;
    return `push read rows of row step ${rows.step}, and this worker was sent ${sent}: name the row step of the rows that the gradient was computed at; pull rows, then retry`;
  }
  if (stalenessMax === null || staleness <= stalenessMax) return null;
  return `push read rows of row step ${rows.step}, and one of them was changed at ${rows.step + staleness}; staleness ${staleness} > stalenessMax ${stalenessMax}: pull rows, then retry`;
}

/** A push of the kind that the run takes, but of another part of the parameters. */
export function isOfAnotherFragment(push: Push, { kind, fragment }: AdmissionFacts): boolean {
  return (push.kind ?? 'gradient') === kind && (push.fragment ?? null) !== fragment;
}

function reject(code: ErrorCode, message: string, retry = false, staleness = 0): Rejection {
  return { kind: 'reject', code, message, retry, staleness };
}
