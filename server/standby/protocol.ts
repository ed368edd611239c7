import Type, { type Static } from 'typebox';
import { BUNDLE_HASH } from '../../shared/bundle.ts';
import { LabelsSchema } from '../../shared/labels.ts';
import { LIMITS } from '../../shared/limits.ts';
import { check, compile } from '../../shared/message-check.ts';
import { closed, Name, Natural, ShardAddressSchema, Text } from '../../shared/message-fields.ts';
import { ObservedSchema } from '../../shared/observed.ts';
import { EvaluatedSchema, JoinSchema, PushSchema } from '../../shared/protocol.ts';
import type { CallKind, RunCall } from '../core/run/calls.ts';
import { VectorName, WorkerKey } from '../core/shard-command.ts';

/**
 * What a primary and its hot standby say to each other, on `/standby` of the primary. They are of one release:
 *
 *     standby                                  primary
 *     follow           ───────────────────▶
 *                      ◀───────────────────    leading
 *                      ◀───────────────────    vector …, run: for each run; at the end introduced
 *                      ◀───────────────────    calls, forget, bundle
 *     carried          ───────────────────▶
 */

/** Calls of one frame. */
export const CALLS_MAX = 32;

const ModeSchema = Type.Union([Type.Literal('sync'), Type.Literal('async')]);

/** The standby's first message. */
const FollowSchema = Type.Object(
  {
    type: Type.Literal('follow'),
    version: Text,
    mode: ModeSchema,
    /** Pushes that it may lack; 0 when `sync`. */
    lagMax: Natural,
    /** Where workers reach it; `host` null: where they reach the primary, or where it comes from. */
    address: ShardAddressSchema,
  },
  closed,
);
export type Follow = Static<typeof FollowSchema>;
/** So many frames have been carried out, since `leading`. */
const CarriedSchema = Type.Object({ type: Type.Literal('carried'), frames: Natural }, closed);
export type FromStandby = Follow | Static<typeof CarriedSchema>;

const Milliseconds = Type.Number({ minimum: 0 });
/** On the run's clock, which may begin anywhere. */
const Time = Type.Number();
const worker = { worker: WorkerKey };
const now = { now: Time };
const { experimentHash, tensors, data, facts, errorMeasure, seen } = JoinSchema.properties;
const Seen = Type.Object({ step: Natural, generation: Natural }, closed);
const callOf = (fields: Type.TProperties = {}) =>
  Type.Object({ call: Type.String(), ...fields }, closed);
const calls = compile({
  join: callOf({
    ...worker,
    join: Type.Object({ experimentHash, tensors, data, facts, errorMeasure, seen }, closed),
    ...now,
  }),
  detach: callOf({ ...worker, ...now }),
  leave: callOf(worker),
  postpone: callOf({ ms: Milliseconds }),
  tick: callOf(now),
  assign: callOf({ ...worker, ahead: Natural, ...now }),
  initialised: callOf({ ...worker, grant: Natural, ...now }),
  initialRows: callOf({ ...worker, grant: Natural }),
  push: callOf({ ...worker, push: PushSchema, ...now, rowStepSent: Type.Optional(Natural) }),
  evaluated: callOf({ ...worker, result: EvaluatedSchema, ...now, at: Type.Optional(Text) }),
  sampled: callOf({ ...worker, observed: ObservedSchema, ...now }),
  overflowed: callOf({ generation: Natural }),
  learnLost: callOf({ seen: Seen }),
  recallLost: callOf({
    base: Seen,
    lost: Type.Array(Type.Tuple([Natural, Natural])),
    total: Natural,
  }),
  stop: callOf({ reason: Text }),
  test: callOf(),
  resume: callOf(),
  label: callOf({ labels: LabelsSchema }),
} satisfies Record<CallKind, unknown>);

/** `leading` comes first and is not counted among the frames. */
const LeadingSchema = Type.Object(
  {
    type: Type.Literal('leading'),
    version: Text,
    /** The fencing token, by which a standby knows that it asks the same store. */
    token: Natural,
    /** Until the primary counts as dead. */
    leaseMs: Milliseconds,
  },
  closed,
);
/** A piece of a vector of the run that follows, from element `start` of `length`. */
const VectorSchema = Type.Object(
  {
    type: Type.Literal('vector'),
    run: Name,
    name: VectorName,
    start: Natural,
    length: Type.Integer({ minimum: 0, maximum: LIMITS.frameBytesMax }),
  },
  closed,
);
/** A whole run: the payload is its `RunReplica`, as of `packPayload`. */
const RunSchema = Type.Object({ type: Type.Literal('run'), run: Name, bytes: Natural }, closed);
/** What the experiment of a run was sent as: its first `bytes` of the payload, which is padded. */
const BundleSchema = Type.Object(
  {
    type: Type.Literal('bundle'),
    sha256: Type.String({ pattern: BUNDLE_HASH }),
    bytes: Type.Integer({ minimum: 1, maximum: LIMITS.bundleBytesMax }),
  },
  closed,
);
/** Those are all runs that there are. */
const IntroducedSchema = Type.Object(
  {
    type: Type.Literal('introduced'),
    runs: Type.Array(Name, { maxItems: LIMITS.runCountMax }),
  },
  closed,
);
/** The payload is that of the one call that has one. */
const CallsSchema = Type.Object(
  {
    type: Type.Literal('calls'),
    run: Name,
    /** See `calls`. */
    calls: Type.Unsafe<readonly RunCall[]>(
      Type.Array(Type.Object({ call: Type.String() }), { minItems: 1, maxItems: CALLS_MAX }),
    ),
    /** Step of the run after the calls: a replica that does not agree is asked for anew. */
    step: Natural,
    generation: Natural,
  },
  closed,
);
const ForgetSchema = Type.Object({ type: Type.Literal('forget'), run: Name }, closed);
export type ToStandby =
  | Static<typeof LeadingSchema>
  | Static<typeof VectorSchema>
  | Static<typeof RunSchema>
  | Static<typeof BundleSchema>
  | Static<typeof IntroducedSchema>
  | Static<typeof CallsSchema>
  | Static<typeof ForgetSchema>;

const fromStandby = compile({ follow: FollowSchema, carried: CarriedSchema });
const toStandby = compile({
  leading: LeadingSchema,
  vector: VectorSchema,
  run: RunSchema,
  bundle: BundleSchema,
  introduced: IntroducedSchema,
  calls: CallsSchema,
  forget: ForgetSchema,
});

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkFromStandby(header: { readonly type: string }): FromStandby {
  return check(fromStandby, header) as FromStandby;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkToStandby(header: { readonly type: string }): ToStandby {
  const message = check(toStandby, header) as ToStandby;
  if (message.type === 'calls') {
    for (const call of message.calls) check(calls, call, 'call', 'calls');
  }
  return message;
}
