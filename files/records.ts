import { readFile, stat } from 'node:fs/promises';
import Type, { type Static, type TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { NAME_PATTERN } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import { diskError, errnoOf, unseal } from './atomic-file.ts';

// What is read back from Redis and from the state folder. Whoever can write there, an older or a newer release and a disk
// can leave anything under these names, so each record is checked like a message from outside: a checksum says that it is
// as it was written, not that it is one of ours. What is no record is passed over and stays where it is.

const Name = Type.String({ pattern: NAME_PATTERN });
const Text = Type.String({ maxLength: 300 });
const Count = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Token = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const LeaseMs = Type.Number({ minimum: 0, maximum: LIMITS.leaseMsMax });
/** The name of a file that lies beside its record. */
const FileName = Type.String({ pattern: '^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$' });
const orNull = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);

/** As the registry has a run. More may be added: what it is is checked where it is used. */
export const RunRecordSchema = Type.Object({
  id: Name,
  experiment: Text,
  /** ISO 8601. */
  createdAt: Text,
  phase: Text,
  config: Type.Unknown(),
});

/** A manifest without the state, which only the checkpoint's own file holds. */
export const CheckpointSummarySchema = Type.Object({
  version: Type.Literal(1),
  run: Name,
  step: Count,
  kind: Type.Union([Type.Literal('last'), Type.Literal('best'), Type.Literal('final')]),
  /** Counts the checkpoints of a folder from 1: higher is newer, whatever step or clock say. */
  sequence: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
  /** ISO 8601. */
  createdAt: Text,
  /** Name of the tensor file, in the manifest's folder. */
  file: FileName,
  /** Size of the tensor file. */
  bytes: Count,
  /** The SHA-256 of the tensor file, hexadecimal. */
  sha256: Text,
  layoutHash: Text,
});

const TensorName = Type.String({ minLength: 1, maxLength: 1_000 });
const ContinuesSchema = Type.Object({
  after: Type.Array(Type.Object({ file: FileName, sha256: Text }), {
    minItems: 1,
    maxItems: LIMITS.checkpointLinksMax,
  }),
  /** The rows of a table, and what its best capture keeps. */
  rows: Type.Array(
    Type.Object({
      keys: TensorName,
      fields: Type.Array(TensorName, { maxItems: 20 }),
      gone: Type.Optional(TensorName),
    }),
    { maxItems: 3 * LIMITS.tableCountMax },
  ),
});

export const ManifestSchema = Type.Object({
  ...CheckpointSummarySchema.properties,
  version: Type.Union([Type.Literal(1), Type.Literal(2)]),
  continues: Type.Optional(ContinuesSchema),
  // Compared with the manifest's own name.
  file: Text,
  state: Type.Unknown(),
  leftOut: Type.Optional(Type.Array(Type.String())),
});

export const RegistrySchema = Type.Object({
  last: orNull(Type.Object({ token: Token, step: Count, file: FileName })),
  checkpoints: Type.Array(CheckpointSummarySchema),
});

export const BestRecordSchema = Type.Object({
  step: Count,
  /** The value of the validation metric; lower is better. */
  value: Type.Number(),
  /** The tensor file of the checkpoint; empty: not on disk yet. */
  checkpoint: Text,
});
export type BestRecord = Readonly<Static<typeof BestRecordSchema>>;

/** A shard that waits for a coordinator, or has one. */
export const ShardRecordSchema = Type.Object({
  /** A coordinator takes them in the order of their ids. */
  id: Name,
  /** Where workers and the coordinator reach it. */
  host: Type.String({ minLength: 1, maxLength: 300 }),
  port: Type.Integer({ minimum: 1, maximum: 65_535 }),
});
export type ShardRecord = Readonly<Static<typeof ShardRecordSchema>>;

/** Who holds a folder; the content of an owner's file. */
export const HolderSchema = Type.Object({
  token: Token,
  owner: Text,
  pid: Type.Integer({ minimum: 1, maximum: 2 ** 31 }),
  host: Text,
  /** Where `pid` has a meaning: boot and process namespace; empty if unknown. */
  place: Text,
  /** Tells a process from a later one with the same number; empty if unknown. */
  processStart: Text,
  /** ISO 8601. */
  since: Text,
  ttlMs: LeaseMs,
  /** Nobody holds the folder: the last owner went in good order. */
  released: Type.Boolean(),
  /** Where a Redis says who owns; absent: this file does. */
  redis: Type.Optional(Type.String({ maxLength: 2_000 })),
  /** The tokens after which this owner came, if no other came between: what they left to do is its. */
  follows: Type.Optional(Type.Array(Count, { maxItems: 64 })),
});

/** What a state folder says of a standby of its owner. */
export const FollowedSchema = Type.Object({
  /** The token of the owner that is followed: with a higher one, somebody has taken over. */
  token: Token,
  /** The standby's address. */
  by: Text,
  leaseMs: LeaseMs,
});

const Seen = { step: Count, generation: Count };
/** How far a run has come, and what it knows of steps that are lost. */
export const ProgressSchema = Type.Object({
  ...Seen,
  /** The checkpoint that this life began with; absent, as the rest: noted by an older release. */
  base: Type.Optional(Type.Object(Seen)),
  /** Steps after `base` by the life that lost them; all that are lost, in all lives. */
  lost: Type.Optional(Type.Array(Type.Tuple([Count, Count]))),
  total: Type.Optional(Count),
});

/** The file of a run's labels, beside its checkpoints. */
export const LABELS_FILE = 'labels.json';

export const LivesSchema = Type.Object({
  lives: Type.Integer({ minimum: 0, maximum: LIMITS.livesMax }),
});

const onRun = { run: Name };
/** What waits for a Redis that is away. */
export const OperationSchema = Type.Union([
  Type.Object({ op: Type.Literal('run'), ...onRun, record: RunRecordSchema }),
  Type.Object({ op: Type.Literal('publish'), ...onRun, manifest: CheckpointSummarySchema }),
  Type.Object({ op: Type.Literal('forget'), ...onRun, files: Type.Array(FileName) }),
  Type.Object({ op: Type.Literal('best'), ...onRun, best: BestRecordSchema }),
  Type.Object({ op: Type.Literal('earlyStopping'), ...onRun, record: Type.Unknown() }),
]);

/** @returns the value itself. @param place names it, for the message. @throws DownpourError DP_STATE_CORRUPT */
export type Check<T> = (place: string, value: unknown) => T;

/** Checks a record of this schema; compiled when the first one is read. */
export function checkOf<T>(schema: TSchema): Check<T> {
  let validator: ReturnType<typeof Compile> | null = null;
  return (place, value) => {
    validator ??= Compile(schema);
    if (validator.Check(value)) return value as T;
    throw damaged(place, whatIsWrong(validator, value));
  };
}

function whatIsWrong(validator: ReturnType<typeof Compile>, value: unknown): string {
  if (typeof value !== 'object' || value === null) {
    return `it is ${value === null ? 'null' : `a ${typeof value}`}, not an object`;
  }
  const [error] = validator.Errors(value);
  if (!error) return 'it is no record of this kind';
  const field = error.instancePath.slice(1).replaceAll('/', '.').slice(0, 100);
  return `${field === '' ? 'it' : `its '${field}'`} ${error.message.slice(0, 200)}`;
}

/** JSON text, checked. @throws DownpourError DP_STATE_CORRUPT */
export function parseRecord<T>(place: string, text: string, check: Check<T>): T {
  if (text.length > LIMITS.recordBytesMax) {
    throw damaged(
      place,
      `it has ${text.length} characters; a record has at most ${LIMITS.recordBytesMax}`,
    );
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw damaged(place, errorText(error));
  }
  return check(place, value);
}

/**
 * The value in a sealed file; undefined: there is none.
 * @throws DownpourError DP_STATE_CORRUPT: it is no file, too large or damaged; DP_DISK.
 */
export async function readSealed(path: string, bytesMax: number): Promise<unknown> {
  const bytes = await readRecordFile(path, bytesMax);
  if (bytes === null) return undefined;
  try {
    return unseal(bytes);
  } catch (error) {
    throw damaged(path, errorText(error));
  }
}

/** All of a file; null: there is none. @throws DownpourError DP_STATE_CORRUPT: it is no file, or too large; DP_DISK. */
export async function readRecordFile(path: string, bytesMax: number): Promise<Buffer | null> {
  try {
    // What is no file may give bytes without end, or none.
    const found = await stat(path);
    if (!found.isFile()) throw damaged(path, 'it is no file');
    if (found.size > bytesMax) {
      throw damaged(path, `it has ${found.size} bytes; at most ${bytesMax} are read`);
    }
    return await readFile(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw diskError(error, path, 'read');
  }
}

export function damaged(place: string, what: string): DownpourError {
  return new DownpourError(
    'DP_STATE_CORRUPT',
    `the record ${place} is damaged: ${what}; restore it from a backup, or remove it and resume from a checkpoint`,
  );
}

/** What is wrong with a record that was passed over. */
export type OnDamagedRecord = (error: DownpourError) => void;

const TOLD_MAX = 1_000;

/** Tells the same damage once, however often it is met. */
export function toldOnce(onDamaged: OnDamagedRecord = () => {}): OnDamagedRecord {
  const told = new Set<string>();
  return (error) => {
    if (told.has(error.message) || told.size >= TOLD_MAX) return;
    told.add(error.message);
    onDamaged(error);
  };
}
