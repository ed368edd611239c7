import Type, { type Static } from 'typebox';
import { LIMITS } from '../../shared/limits.ts';
import { check, compile } from '../../shared/message-check.ts';
import {
  closed,
  Name,
  Natural,
  orNull,
  Sequence,
  SessionId,
  Text,
} from '../../shared/message-fields.ts';
import { checkShardCommand, Float, type ShardCommand, VectorName } from '../core/shard-command.ts';

/**
 * What the coordinator and a shard say to each other, on `/control` of the shard. They are of one release:
 *
 *     coordinator                              shard
 *     take             ───────────────────▶
 *                      ◀───────────────────    taken
 *     admit            ───────────────────▶    (before a worker is told this session)
 *     command          ───────────────────▶    (each decision of a run)
 *                      ◀───────────────────    landed, initialLanded, overflowed
 *     read             ───────────────────▶
 *                      ◀───────────────────    read
 *     leave            ───────────────────▶
 */

/** The first message: this coordinator has the shard from now on; what it held is forgotten. */
const TakeSchema = Type.Object(
  {
    type: Type.Literal('take'),
    index: Type.Integer({ minimum: 1, maximum: LIMITS.shardCountMax - 1 }),
    count: Type.Integer({ minimum: 2, maximum: LIMITS.shardCountMax }),
    /** Token of the owner's lease: one with a lower token takes no shard away from one with a higher. */
    token: Natural,
  },
  closed,
);
/** See `checkShardCommand`. */
const CommandSchema = Type.Object(
  {
    type: Type.Literal('command'),
    command: Type.Unsafe<ShardCommand>(Type.Object({ kind: Type.String() })),
  },
  closed,
);
/** A worker with this session may attach. */
const AdmitSchema = Type.Object({ type: Type.Literal('admit'), session: SessionId }, closed);
/** The connection of a worker is lost. */
const LeaveSchema = Type.Object({ type: Type.Literal('leave'), session: SessionId }, closed);
/** Asks for a piece of what a `save` has kept. */
const ReadSchema = Type.Object(
  {
    type: Type.Literal('read'),
    request: Natural,
    run: Name,
    id: Natural,
    name: VectorName,
    start: Natural,
    count: Natural,
  },
  closed,
);
export type ReadPiece = Static<typeof ReadSchema>;
export type ToShardControl =
  | Static<typeof TakeSchema>
  | Static<typeof CommandSchema>
  | Static<typeof AdmitSchema>
  | Static<typeof LeaveSchema>
  | ReadPiece;

const TakenSchema = Type.Object({ type: Type.Literal('taken'), version: Text }, closed);
const LandedSchema = Type.Object(
  {
    type: Type.Literal('landed'),
    run: Name,
    session: SessionId,
    sequence: Sequence,
    /** Sum of the squares of the gradient's elements; NaN: not finite. */
    squares: Float,
    /** With the part itself. */
    problem: orNull(Text),
  },
  closed,
);
const InitialLandedSchema = Type.Object(
  {
    type: Type.Literal('initialLanded'),
    run: Name,
    session: SessionId,
    grant: Natural,
    finite: Type.Boolean(),
  },
  closed,
);
const OverflowedSchema = Type.Object(
  { type: Type.Literal('overflowed'), run: Name, generation: Natural },
  closed,
);
/** The answer to a `read`, with its bytes. */
const PieceSchema = Type.Object(
  { type: Type.Literal('read'), request: Natural, found: Type.Boolean() },
  closed,
);
/** It cannot do what it was told: the connection closes. */
const FailedSchema = Type.Object(
  { type: Type.Literal('failed'), code: Text, message: Text },
  closed,
);
export type ShardReport =
  | Static<typeof LandedSchema>
  | Static<typeof InitialLandedSchema>
  | Static<typeof OverflowedSchema>;
export type FromShardControl =
  | Static<typeof TakenSchema>
  | ShardReport
  | Static<typeof PieceSchema>
  | Static<typeof FailedSchema>;

const toShard = compile({
  take: TakeSchema,
  command: CommandSchema,
  admit: AdmitSchema,
  leave: LeaveSchema,
  read: ReadSchema,
});
const fromShard = compile({
  taken: TakenSchema,
  landed: LandedSchema,
  initialLanded: InitialLandedSchema,
  overflowed: OverflowedSchema,
  read: PieceSchema,
  failed: FailedSchema,
});

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkToShardControl(header: { readonly type: string }): ToShardControl {
  const message = check(toShard, header) as ToShardControl;
  if (message.type === 'command') checkShardCommand(message.command);
  return message;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkFromShardControl(header: { readonly type: string }): FromShardControl {
  return check(fromShard, header) as FromShardControl;
}
