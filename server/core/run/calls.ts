import type { Labels } from '../../../shared/labels.ts';
import type { Observed } from '../../../shared/observed.ts';
import type {
  Acknowledgement,
  Evaluated,
  Join,
  Lease,
  LeasePart,
  LocalWork,
  Phase,
  Push,
} from '../../../shared/protocol.ts';
import type { Evaluation, Rollback } from '../../../shared/rest.ts';
import type { LandingRoom } from '../landing-rooms.ts';
import type { Snapshot } from '../snapshot.ts';

/**
 * The calls that change a run, and what each answers. Calls in their order are all that a run is: another one that
 * begins equal and is called alike stays equal, to the bit (docs/decisions/0011-standby.md). `now` is in monotonic ms.
 */
export type RunCall =
  /**
   * A worker takes part; the first one's model and data bind all others. The payload: the facts of its data, where
   * `join.facts` says so.
   * @throws DownpourError DP_EXPERIMENT_MISMATCH, DP_LAYOUT_MISMATCH, DP_LAYOUT_INVALID, DP_DATA_MISMATCH,
   *   DP_QUARANTINED or DP_FRAME_MALFORMED.
   */
  | {
      readonly call: 'join';
      readonly worker: string;
      readonly join: Pick<
        Join,
        'experimentHash' | 'tensors' | 'data' | 'facts' | 'errorMeasure' | 'seen'
      >;
      readonly now: number;
    }
  /** A worker's connection is lost: it has a few seconds to come back before its work is given away. */
  | { readonly call: 'detach'; readonly worker: string; readonly now: number }
  /** A worker goes for good: its work is given away at once. */
  | { readonly call: 'leave'; readonly worker: string }
  /** The server itself stood still for so long: nobody's time ran. */
  | { readonly call: 'postpone'; readonly ms: number }
  /** Takes back work that is out of time. Call about once a second. */
  | { readonly call: 'tick'; readonly now: number }
  /** What a worker is to do next. @param ahead minibatches that it may hold at once. */
  | {
      readonly call: 'assign';
      readonly worker: string;
      readonly ahead: number;
      readonly now: number;
      /** Who is sent the answer; absent: it is sent to nobody. */
      readonly to?: SentTo;
    }
  /**
   * The answer to an `initialise`. The payload: the whole vector in f32, shape [rangeLayout.size]. A late answer is
   * ignored, and that of a worker that was not asked.
   * @throws DownpourError DP_TENSOR_SIZE or DP_GRADIENT_NOT_FINITE.
   */
  | {
      readonly call: 'initialised';
      readonly worker: string;
      readonly grant: number;
      readonly now: number;
      readonly others?: InitialLanded | null;
    }
  /**
   * Values that some rows begin with, before `initialised`. The payload: rows in f32. Those of a worker that was not asked
   * are ignored. @throws DownpourError DP_ROWS_INVALID, DP_GRADIENT_NOT_FINITE or DP_LAYOUT_INVALID.
   */
  | {
      readonly call: 'initialRows';
      readonly worker: string;
      readonly grant: number;
    }
  /**
   * Admits and applies one gradient, in one stretch. The payload: the gradient in its encoding, then statistics in f32;
   * it is used where it has landed.
   */
  | {
      readonly call: 'push';
      readonly worker: string;
      readonly push: Push;
      readonly now: number;
      /** That the payload came into; null or absent: into other memory, and it is copied. */
      readonly room?: LandingRoom | null;
      readonly others?: PushPartsLanded | null;
      /** Row step of the newest rows that the worker was sent; absent: it is not known. */
      readonly rowStepSent?: number;
    }
  /**
   * The result of an evaluation, from the worker that has it to do; from others, and of a run that is over, it is
   * ignored.
   * @throws DownpourError DP_DATA_MISMATCH: it is of another number of examples than the part has.
   */
  | {
      readonly call: 'evaluated';
      readonly worker: string;
      readonly result: Evaluated;
      readonly now: number;
      /** ISO 8601, since the core has no clock; absent: not known. It is kept of the test part. */
      readonly at?: string;
    }
  /**
   * What a worker has sampled, kept where one of its leases has asked for it.
   * @throws DownpourError DP_LAYOUT_MISMATCH: of a tensor that the run does not have.
   */
  | {
      readonly call: 'sampled';
      readonly worker: string;
      readonly observed: Observed;
      readonly now: number;
    }
  /** An update of this generation was admitted, and made the parameters of another shard overflow. */
  | { readonly call: 'overflowed'; readonly generation: number }
  /**
   * Somebody saw the run in an earlier life of the server: what was applied there after the checkpoint that this life
   * began with is lost.
   */
  | { readonly call: 'learnLost'; readonly seen: Seen }
  /** What an earlier life knew of lost steps and noted beside the checkpoint. Call before anybody joins. */
  | ({ readonly call: 'recallLost' } & LostNote)
  /** By a user: nothing is lost, `resume` goes on. */
  | { readonly call: 'stop'; readonly reason: string }
  /**
   * Has the final parameters of a finished run evaluated on the test part. Once: who looks again chooses by what is
   * seen, and the estimate is flattered (*Deep Learning* §5.3).
   * @throws DownpourError DP_CHECKPOINT_MISSING, DP_RUN_UNFINISHED, DP_RUN_FAILED, DP_TEST_SEEN or DP_DATA_MISSING.
   */
  | { readonly call: 'test' }
  /** @throws DownpourError DP_RUN_ENDED or DP_RUN_FAILED: there is nothing to go on with. */
  | { readonly call: 'resume' }
  /** What users say of it now. */
  | { readonly call: 'label'; readonly labels: Labels };

export type CallKind = RunCall['call'];
export type CallOf<K extends CallKind> = Extract<RunCall, { readonly call: K }>;

/** What calls answer; nothing, where their kind is not named. */
interface CallAnswers {
  readonly assign: Assignment;
  /** Whether it was asked for. */
  readonly initialised: boolean;
  /** Whether they were asked for. */
  readonly initialRows: boolean;
  readonly push: Acknowledgement;
  /** Whether it was asked for. */
  readonly evaluated: boolean;
  /** Whether it was asked for. */
  readonly sampled: boolean;
}
export type CallAnswer = CallAnswers[keyof CallAnswers];
export type AnswerOf<C extends RunCall> = C['call'] extends keyof CallAnswers
  ? CallAnswers[C['call']]
  : undefined;

/** For each kind of call: `payload`, where one may come with it; `large`, where the call alone may be large. */
export const CALLS: Readonly<Record<CallKind, { readonly payload?: true; readonly large?: true }>> =
  {
    join: { payload: true, large: true },
    ...{ detach: {}, leave: {}, postpone: {}, tick: {}, assign: {} },
    initialised: { payload: true },
    initialRows: { payload: true },
    push: { payload: true },
    evaluated: {},
    sampled: { large: true },
    ...{ overflowed: {}, learnLost: {}, recallLost: {} },
    ...{ stop: {}, test: {}, resume: {}, label: {} },
  };

/** A payload comes with this one. */
export function hasPayload(call: RunCall): boolean {
  return call.call === 'join' ? call.join.facts !== undefined : CALLS[call.call].payload === true;
}

/** Is told of each call before it is carried out. The payload is as it is during the call only. */
export type RunFollower = (call: RunCall, payload: Uint8Array) => void;

/**
 * What a follower is told: a call of its own, since callers use theirs again, of what changes the run. A run that is
 * followed has no other shards.
 */
export function toFollow(call: RunCall): RunCall {
  if (call.call === 'join') {
    const { experimentHash, tensors, data, errorMeasure, facts, seen = null } = call.join;
    const join = {
      ...{ experimentHash, tensors, data, seen },
      ...(errorMeasure && { errorMeasure }),
      ...(facts && { facts }),
    };
    return { ...call, join };
  }
  if (call.call === 'push') {
    const { others: _, room: __, rowStepSent, ...told } = call;
    return call.push.rows && rowStepSent !== undefined ? { ...told, rowStepSent } : told;
  }
  if (call.call === 'initialised') {
    const { others: _, ...told } = call;
    return told;
  }
  if (call.call === 'assign') {
    const { to: _, ...told } = call;
    return told;
  }
  return { ...call };
}

/** The pushes of one worker: one call, used again, since there are thousands a second. */
export class PushCall {
  readonly call = 'push';
  readonly worker: string;
  push!: Push;
  now = 0;
  room: LandingRoom | null = null;
  others: PushPartsLanded | null = null;
  rowStepSent = 0;

  constructor(worker: string) {
    this.worker = worker;
  }

  of(
    push: Push,
    now: number,
    room: LandingRoom | null,
    others: PushPartsLanded | null,
    rowStepSent: number,
  ): this {
    this.push = push;
    this.now = now;
    this.room = room;
    this.others = others;
    this.rowStepSent = rowStepSent;
    return this;
  }
}

/** One worker asks for work: used again, as the call of its pushes. */
export class AssignCall {
  readonly call = 'assign';
  readonly worker: string;
  readonly to: SentTo;
  ahead = 0;
  now = 0;

  constructor(worker: string, to: SentTo) {
    this.worker = worker;
    this.to = to;
  }

  of(ahead: number, now: number): this {
    this.ahead = ahead;
    this.now = now;
    return this;
  }
}

/** What one connection of a worker was sent. */
export interface SentTo {
  /** Shards know the worker by it. */
  readonly session: string;
  /** The newest parameters that it has; -1: none, or those of an evaluation. */
  readonly generation: number;
  readonly step: number;
  /** Generation of the parameters that it goes on from by fragments; -1: it has none. */
  readonly base: number;
  /** How often several shards have sent it parameters together. */
  readonly pulls: number;
}

/** What a worker is to do next. */
export type Assignment =
  | { readonly kind: 'initialise'; readonly grant: number; readonly seed: number }
  | {
      readonly kind: 'work';
      readonly leases: Lease[];
      readonly evaluation: { readonly id: number; readonly part: LeasePart } | null;
      /** To be sent as it is: hold it until it has gone. Null: the worker has these parameters. */
      readonly payload: Snapshot | null;
      /** Fragment of the payload that is sent; null: all of it is. */
      readonly fragment: number | null;
      readonly step: number;
      /** How to take local steps with the leases; null: push gradients. */
      readonly local: LocalWork | null;
      /** The other shards send theirs under this number; null: they send nothing. */
      readonly pull: number | null;
    }
  /** Nothing now: a `wake` comes. */
  | { readonly kind: 'wait' }
  | { readonly kind: 'end' };

/** What the other shards have said of a push that went to several. They hold the parts until it is decided. */
export interface PushPartsLanded {
  readonly session: string;
  /** Sum of the squares of the parts' gradients, rows aside; NaN: not finite. */
  readonly squares: number;
  /** With a part itself. */
  readonly problem: string | null;
  /** What each of them has said of the rows in its part; absent: the parts have none. */
  readonly rows?: readonly RowsLanded[];
}

/** What a shard says of the rows in a part of a push. */
export interface RowsLanded {
  /** Row step that the worker read, as the part says. */
  readonly step: number;
  /** Row step of the shard when it measured the staleness: updates that it has not been told of yet are missing. */
  readonly rowStep: number;
  readonly staleness: number;
  /** Sum of the squares of the rows' gradients; NaN: not finite. */
  readonly squares: number;
  readonly problem: string | null;
}

/** The same of initial parameters. */
export interface InitialLanded {
  readonly session: string;
  /** Why they cannot be used; null: they can. */
  readonly problem: string | null;
}

/** Up to where a run was seen. */
export interface Seen {
  readonly step: number;
  readonly generation: number;
}

/** What one life of the server notes of the steps that were lost with those before it. */
export interface LostNote {
  /** The checkpoint that the life began with. */
  readonly base: Seen;
  /** Steps after `base`, by the life that lost them. */
  readonly lost: readonly (readonly [life: number, steps: number])[];
  /** All that are lost, in all lives. */
  readonly total: number;
}

/** What the surroundings must do about a run. */
export type RunEvent =
  | { readonly kind: 'phase'; readonly from: Phase; readonly to: Phase }
  /** A better validation value: `best` has changed. */
  | { readonly kind: 'best' }
  | { readonly kind: 'evaluated'; readonly evaluation: Evaluation }
  | { readonly kind: 'rollback'; readonly rollback: Rollback }
  /** More is known of what was lost with earlier lives of the server. */
  | { readonly kind: 'lost'; readonly steps: number; readonly restored: number }
  /** What is done about the number of workers has changed: a line for the user. */
  | { readonly kind: 'correction'; readonly text: string }
  /** A worker did not answer in time: a line for the user. */
  | { readonly kind: 'late'; readonly text: string }
  /** Workers that had nothing to do may have something now. */
  | { readonly kind: 'wake' };
