import Type, { type Static, type TSchema } from 'typebox';
import { RunConfigSchema } from '../../shared/config.ts';
import type { TensorSpec } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { PUSH_KINDS, type PushKind } from '../../shared/local-steps.ts';
import { check, compile } from '../../shared/message-check.ts';
import {
  closed,
  Name,
  Natural,
  orNull,
  Sequence,
  SessionId,
  TensorSpecSchema,
} from '../../shared/message-fields.ts';
import type { StepOptions } from './step-options.ts';
import type { RunTablesState } from './tables/run-tables.ts';

/** What the coordinator tells the shards of a run, after each of its decisions. Carried out by `Shard`. */

/** A number that may be infinite, or NaN. */
export const Float = Type.Unsafe<number>(
  Type.Refine(
    Type.Unknown(),
    (value) => typeof value === 'number',
    () => 'must be a number',
  ),
);
/** Name of a vector, as in `Parameters.vectors`. */
export const VectorName = Type.String({ minLength: 1, maxLength: LIMITS.nameLengthMax });
/** Name and incarnation of a worker, and whose token it has: with `sequence` the name of a push. */
export const WorkerKey = Type.String({ minLength: 1, maxLength: LIMITS.nameLengthMax });
const SaveKindSchema = Type.Union([
  Type.Literal('last'),
  Type.Literal('best'),
  Type.Literal('final'),
]);
/** As the kinds of checkpoints. */
export type SaveKind = Static<typeof SaveKindSchema>;

const ofRun = { run: Name };
/** See `Clip`. */
const ClipSchema = Type.Object({ limit: Float, factor: Type.Number() }, closed);
const slot = { slot: Natural };
/** What the push holds; absent: a gradient. */
const kind = {
  kindOfPush: Type.Optional(
    Type.Unsafe<PushKind>(Type.Union(PUSH_KINDS.map((each) => Type.Literal(each)))),
  ),
};
/** Which part of the parameters; absent: all. */
const fragment = { fragment: Type.Optional(Natural) };
/** Updates the rows of the push too; absent: it has none. */
const rows = {
  rows: Type.Optional(
    Type.Object(
      {
        rate: Type.Number(),
        clip: ClipSchema,
        /** Workers that take part, for damping. */
        workers: Natural,
        /** Generation of the parameters that the update is for. */
        generation: Natural,
      },
      closed,
    ),
  ),
};
/** See `RunTablesState`. */
const TablesStateSchema = Type.Unsafe<RunTablesState>(Type.Object({ rowStep: Natural }));
/** See `CompensationUse`. */
const CompensationSchema = Type.Union([
  Type.Object({ kind: Type.Literal('constant'), ...slot, lambda: Type.Number() }, closed),
  Type.Object(
    {
      kind: Type.Literal('adaptive'),
      ...slot,
      ...{ lambda: Type.Number(), decay: Type.Number() },
    },
    closed,
  ),
  Type.Object({ kind: Type.Literal('gap'), ...slot, typical: Type.Number() }, closed),
]);
/** See `StepOptions`. */
const StepOptionsSchema = Type.Object(
  {
    step: Natural,
    learningRate: Type.Number(),
    momentum: Type.Optional(Type.Number()),
    groups: Type.Optional(
      Type.Object({ scheduleStep: Type.Number(), unscheduledRate: Type.Number() }, closed),
    ),
    velocity: Type.Optional(
      Type.Object(
        {
          slot: Natural,
          from: Type.Optional(Type.Integer({ minimum: -1 })),
          freed: Type.Optional(Type.Array(Natural)),
        },
        closed,
      ),
    ),
    compensation: Type.Optional(CompensationSchema),
    outer: Type.Optional(Type.Boolean()),
    ...fragment,
  } satisfies Record<keyof StepOptions, TSchema>,
  closed,
);

const commands = [
  Type.Object(
    {
      kind: Type.Literal('create'),
      ...ofRun,
      tensors: Type.Unsafe<readonly TensorSpec[]>(
        Type.Array(TensorSpecSchema, { maxItems: LIMITS.tensorCountMax }),
      ),
      config: RunConfigSchema,
    },
    closed,
  ),
  /** This worker is asked for initial parameters, under a number; nobody else is any more. */
  Type.Object(
    { kind: Type.Literal('grant'), ...ofRun, session: SessionId, grant: Natural },
    closed,
  ),
  /** This worker is not asked for them any more. */
  Type.Object({ kind: Type.Literal('revoke'), ...ofRun, session: SessionId }, closed),
  /** Uses the initial parameters that this worker has sent. */
  Type.Object({ kind: Type.Literal('initialise'), ...ofRun, session: SessionId }, closed),
  /** Applies the part of a push that has landed. */
  Type.Object(
    {
      kind: Type.Literal('apply'),
      ...ofRun,
      session: SessionId,
      worker: WorkerKey,
      sequence: Sequence,
      ...kind,
      /** Generation of the parameters that the update is for. */
      generation: Natural,
      clip: ClipSchema,
      options: StepOptionsSchema,
      ...rows,
    },
    closed,
  ),
  /** Keeps the part of a push that has landed, for a step of several. */
  Type.Object(
    {
      kind: Type.Literal('collect'),
      ...ofRun,
      session: SessionId,
      worker: WorkerKey,
      sequence: Sequence,
      ...kind,
      /** See `Weight`. */
      weight: Type.Object({ scale: Type.Number(), share: Type.Number() }, closed),
      compensation: orNull(CompensationSchema),
      ...rows,
    },
    closed,
  ),
  /** Makes one update of those that were collected. */
  Type.Object(
    {
      kind: Type.Literal('combine'),
      ...ofRun,
      generation: Natural,
      /** Shares of all pushes of the step, added up. */
      shares: Type.Number(),
      faulty: Natural,
      clip: ClipSchema,
      options: StepOptionsSchema,
    },
    closed,
  ),
  /** Those that were collected are of no more use. */
  Type.Object({ kind: Type.Literal('discard'), ...ofRun }, closed),
  /** A worker is sent the parameters as they are now: they are kept for its push. `fresh`: the slot was another one's. */
  Type.Object({ kind: Type.Literal('remember'), ...ofRun, ...slot, fresh: Type.Boolean() }, closed),
  /** The run is removed: the shard lets go of all that it has of it. No other command of this run follows. */
  Type.Object({ kind: Type.Literal('remove'), ...ofRun }, closed),
  /** Lets go of it. */
  Type.Object(
    { kind: Type.Literal('drop'), ...ofRun, session: SessionId, sequence: Sequence },
    closed,
  ),
  /** Sends a worker the parameters of this moment, or captured ones. */
  Type.Object(
    {
      kind: Type.Literal('send'),
      ...ofRun,
      session: SessionId,
      pull: Natural,
      /** Null: the present ones. */
      capture: orNull(Natural),
      /** With frozen tensors. */
      whole: Type.Boolean(),
      ...fragment,
    },
    closed,
  ),
  /** Keeps a copy of what is evaluated, under a number. */
  Type.Object(
    {
      kind: Type.Literal('capture'),
      ...ofRun,
      id: Natural,
      what: Type.Union([Type.Literal('evaluated'), Type.Literal('exchanged')]),
    },
    closed,
  ),
  Type.Object({ kind: Type.Literal('forget'), ...ofRun, id: Natural }, closed),
  /** Goes on from a captured copy, or from what is evaluated now. */
  Type.Object(
    {
      kind: Type.Literal('replace'),
      ...ofRun,
      by: Type.Union([Natural, Type.Literal('evaluated')]),
    },
    closed,
  ),
  Type.Object({ kind: Type.Literal('resetOptimizer'), ...ofRun }, closed),
  /** Keeps a copy for a checkpoint, to be read piece by piece. */
  Type.Object(
    {
      kind: Type.Literal('save'),
      ...ofRun,
      id: Natural,
      what: SaveKindSchema,
      /** The captured best parameters. */
      best: orNull(Natural),
      /** True: rows that the checkpoint on disk has are left out. */
      changes: Type.Boolean(),
    },
    closed,
  ),
  /** What was kept is needed no more. `isWritten`: the checkpoint is on disk. */
  Type.Object(
    { kind: Type.Literal('saved'), ...ofRun, id: Natural, isWritten: Type.Boolean() },
    closed,
  ),
  /** A piece of a vector of a checkpoint; it comes with its numbers. */
  Type.Object({ kind: Type.Literal('write'), ...ofRun, name: VectorName, start: Natural }, closed),
  /** All has been written. `best`: under which number the best parameters are. */
  Type.Object(
    {
      kind: Type.Literal('restore'),
      ...ofRun,
      /** See `ParametersState`. */
      state: Type.Object(
        {
          merges: Natural,
          average: orNull(Type.Object({ count: Natural }, closed)),
          velocities: Type.Optional(Type.Array(Natural)),
          collected: Type.Optional(Natural),
          squares: Type.Optional(Type.Array(Natural)),
        },
        closed,
      ),
      best: orNull(Natural),
      /** The last sequence of each worker. */
      workers: Type.Unsafe<readonly (readonly [string, number])[]>(
        Type.Array(Type.Tuple([WorkerKey, Natural])),
      ),
    },
    closed,
  ),
  /** All rows of tables have their initial values, of this seed. */
  Type.Object({ kind: Type.Literal('resetRows'), ...ofRun, seed: Type.Integer() }, closed),
  /** Some rows begin with other values, which a worker has sent; they come with it. */
  Type.Object({ kind: Type.Literal('beginRows'), ...ofRun }, closed),
  /** Sends a worker the rows that its push wanted, as they are now. */
  Type.Object(
    {
      kind: Type.Literal('sendRows'),
      ...{ ...ofRun, session: SessionId, pull: Natural, sequence: Sequence },
    },
    closed,
  ),
  /** Sends a worker some rows, whose keys come with it. */
  Type.Object(
    {
      kind: Type.Literal('readRows'),
      ...{ ...ofRun, session: SessionId, pull: Natural },
      encoding: Type.Union([Type.Literal('f32'), Type.Literal('bf16')]),
      /** Null: the present ones. */
      capture: orNull(Natural),
    },
    closed,
  ),
  /** Goes on with the tables of a checkpoint; `writeRows` follow, then `restore`. */
  Type.Object({ kind: Type.Literal('restoreRows'), ...ofRun, state: TablesStateSchema }, closed),
  /** Some rows of a checkpoint: the fields of `RowTensors`, or of `RowTensorsOfCapture`, come one after the other. */
  Type.Object(
    {
      kind: Type.Literal('writeRows'),
      ...{ ...ofRun, table: VectorName },
      /** Number and moment of the capture that kept them; null: they are the present ones. */
      capture: orNull(
        Type.Object(
          {
            ...{ id: Natural, rowStep: Natural, decay: Type.Number(), seed: Type.Integer() },
            hasFlags: Type.Optional(Type.Boolean()),
          },
          closed,
        ),
      ),
      /** Elements of each field. */
      sizes: Type.Array(Natural, { minItems: 4, maxItems: 6 }),
    },
    closed,
  ),
] as const;
export type ShardCommand = Static<(typeof commands)[number]>;
/** What shards update their rows of a push by. */
export type RowsUpdate = NonNullable<Extract<ShardCommand, { kind: 'apply' }>['rows']>;

const known = compile(
  Object.fromEntries(commands.map((schema) => [schema.properties.kind.const, schema])),
);

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkShardCommand(command: { readonly kind: string }): ShardCommand {
  return check(known, command, 'kind', 'command') as ShardCommand;
}
