import Type, { type Static, type TSchema } from 'typebox';
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
import { RowTableFactsSchema } from '../../shared/rest.ts';
import type { RowsLanded } from '../core/run/calls.ts';
import { checkShardCommand, Float, type ShardCommand, VectorName } from '../core/shard-command.ts';

/**
 * What the coordinator and a shard say to each other, on `/control` of the shard. They are of one release:
 *
 *     coordinator                              shard
 *     take             ───────────────────▶
 *                      ◀───────────────────    taken
 *     admit            ───────────────────▶    (before a worker is told this session)
 *     command          ───────────────────▶    (each decision of a run)
 *                      ◀───────────────────    landed, initialLanded, overflowed, rowFacts
 *     list, read       ───────────────────▶
 *                      ◀───────────────────    listed, read
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
/** Asks for the names and sizes of what a `save` has kept. */
const ListSchema = Type.Object(
  { type: Type.Literal('list'), request: Natural, run: Name, id: Natural },
  closed,
);
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
  | Static<typeof ListSchema>
  | ReadPiece;

const TakenSchema = Type.Object({ type: Type.Literal('taken'), version: Text }, closed);
/** See `RowsLanded`. */
const RowsLandedSchema = Type.Object(
  {
    step: Natural,
    rowStep: Natural,
    staleness: Natural,
    squares: Float,
    problem: orNull(Text),
  } satisfies Record<keyof RowsLanded, TSchema>,
  closed,
);
const LandedSchema = Type.Object(
  {
    type: Type.Literal('landed'),
    run: Name,
    session: SessionId,
    sequence: Sequence,
    /** Sum of the squares of the gradient's elements, rows aside; NaN: not finite. */
    squares: Float,
    /** With the part itself. */
    problem: orNull(Text),
    rows: Type.Optional(RowsLandedSchema),
  },
  closed,
);
/** How many rows of each table a shard has, and gradients of rows that it has dropped. */
const RowFactsSchema = Type.Object(
  {
    type: Type.Literal('rowFacts'),
    run: Name,
    tables: Type.Array(RowTableFactsSchema),
  },
  closed,
);
const InitialLandedSchema = Type.Object(
  {
    type: Type.Literal('initialLanded'),
    run: Name,
    session: SessionId,
    grant: Natural,
    /** Why they cannot be used; null: they can. */
    problem: orNull(Text),
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
/** The answer to a `list`. */
const ListedSchema = Type.Object(
  {
    type: Type.Literal('listed'),
    request: Natural,
    /** Null: it has kept nothing. */
    vectors: orNull(Type.Array(Type.Object({ name: VectorName, size: Natural }, closed))),
  },
  closed,
);
export type SavedVectors = NonNullable<Static<typeof ListedSchema>['vectors']>;
/** It cannot do what it was told: the connection closes. */
const FailedSchema = Type.Object(
  { type: Type.Literal('failed'), code: Text, message: Text },
  closed,
);
export type ShardReport =
  | Static<typeof LandedSchema>
  | Static<typeof InitialLandedSchema>
  | Static<typeof RowFactsSchema>
  | Static<typeof OverflowedSchema>;
export type FromShardControl =
  | Static<typeof TakenSchema>
  | ShardReport
  | Static<typeof PieceSchema>
  | Static<typeof ListedSchema>
  | Static<typeof FailedSchema>;

const toShard = compile({
  take: TakeSchema,
  command: CommandSchema,
  admit: AdmitSchema,
  leave: LeaveSchema,
  list: ListSchema,
  read: ReadSchema,
});
const fromShard = compile({
  taken: TakenSchema,
  landed: LandedSchema,
  initialLanded: InitialLandedSchema,
  rowFacts: RowFactsSchema,
  listed: ListedSchema,
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
