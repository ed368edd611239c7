import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { nextTurn } from '../turn.ts';
import { ARRAYS, type Column, type FieldRole, type NumberKind, sizeOf } from './columns.ts';
import { describe, isRecord, listed, typedArrayName } from './described.ts';

/** Examples that are read when they are needed, so that they never lie in memory all at once. */

/** What a source says of one of its fields. */
export interface SourceField
  extends Pick<Column, 'names' | 'classes' | 'classCount' | 'missing' | 'reading' | 'vocabulary'> {
  /** Default: `input` for the field `inputs`, `target` for the field `targets`. Others need it. */
  readonly role?: FieldRole;
  /** The shape of one example: `[28, 28, 1]`; `[]` is a single number. */
  readonly shape: readonly number[];
  readonly type: NumberKind;
}

/** A part of the data that `data()` may give instead of arrays. */
export interface ExampleSource {
  /** Examples of the part. */
  readonly count: number;
  /** By name. `inputs` and `targets` are the one input and the one target of the short form. */
  readonly fields: Readonly<Record<string, SourceField>>;
  /**
   * Gives some of the examples, in the order of the indices. Reads may overlap, so each needs arrays of its own.
   * @param indices 0-based, each below `count`, in any order; one may occur twice. Not to be changed.
   */
  read(indices: Int32Array, options: ReadOptions): SourceRows | Promise<SourceRows>;
  /** What the messages call it: the name of a file or of a folder. */
  readonly name?: string;
  /**
   * Changes when the examples change; made of sizes and times of files, say. With a key, what one pass over all examples
   * has found is kept, and the next start does not read them again.
   */
  readonly key?: string;
  /** How long one read may take. Default: 60. */
  readonly readSeconds?: number;
  /** Called once, when nothing will be read any more. */
  close?(): void | Promise<void>;
}

export interface ReadOptions {
  /** Aborted: the examples are not needed any more, or the read took too long. */
  readonly signal: AbortSignal;
}

/** For each field a typed array of its type, with as many numbers as `indices.length` examples have. */
export type SourceRows = Readonly<Record<string, Column['values']>>;

/** Some rows of a source, as a part of the data. */
export interface Stored {
  /** Its fields and numbers have been checked. */
  readonly source: ExampleSource;
  /** For messages: `source 'photos' of the train part`. */
  readonly where: string;
  /** The rows of the source that are the examples of the part; null: all, in their order. */
  readonly rows: Int32Array | null;
  /** What is known of the numbers of each column, for all rows of the source. */
  readonly ranges?: NumberRanges;
}

/** By the name of the column. */
export type NumberRanges = Readonly<Record<string, NumberRange>>;

/** The rows are those of the source. */
export interface NumberRange {
  readonly min: number;
  readonly max: number;
  readonly minRow: number;
  readonly maxRow: number;
  /** The first row with a number that is not whole; null: there is none. */
  readonly fractionRow: number | null;
}

/**
 * Reads rows of a source and checks what it gives.
 * @param indices rows of the source.
 * @throws DownpourError DP_DATA_MISSING: the read failed or took too long; DP_DATA_CORRUPT: it gave something else than the
 *   numbers asked for; the reason of the signal.
 */
export async function readSourceRows(
  { source, where }: Pick<Stored, 'source' | 'where'>,
  indices: Int32Array,
  signal?: AbortSignal,
): Promise<SourceRows> {
  signal?.throwIfAborted();
  const asked = () => `${where}: read(${rowsText(indices)})`;
  const given = await answered(source, indices, signal, asked);
  if (!isRecord(given)) {
    throw corrupt(
      `${asked()} gave ${describe(given)}; allowed: an object with a typed array for each field (${listed(Object.keys(source.fields))})`,
    );
  }
  const rows: Record<string, Column['values']> = {};
  for (const [name, field] of Object.entries(source.fields)) {
    rows[name] = valuesOf(given[name], field, indices, () => `${asked()}: field '${name}'`);
  }
  return rows;
}

/** The answer of `read`, if it comes in time. */
async function answered(
  source: ExampleSource,
  indices: Int32Array,
  signal: AbortSignal | undefined,
  asked: () => string,
): Promise<unknown> {
  const seconds = source.readSeconds ?? LIMITS.readSecondsDefault;
  const stopping = new AbortController();
  let stop = () => {};
  let timer: ReturnType<typeof setTimeout> | undefined;
  const stopped = new Promise<never>((_, reject) => {
    stop = () => {
      stopping.abort(signal!.reason);
      reject(signal!.reason);
    };
    signal?.addEventListener('abort', stop);
    timer = setTimeout(async () => {
      // An answer may have come while a long step held up this thread: it is taken in first.
      for (let turn = 0; turn < 3; turn++) await nextTurn();
      const late = new DownpourError(
        'DP_DATA_MISSING',
        `${asked()} gave nothing in ${seconds} s; set readSeconds of the source up to ${LIMITS.readSecondsMax}, or find out why it is slow (a network folder?)`,
      );
      stopping.abort(late);
      reject(late);
    }, 1000 * seconds);
  });
  const reading = (async () => source.read(indices, { signal: stopping.signal }))();
  try {
    return await Promise.race([reading, stopped]);
  } catch (cause) {
    // What comes of it later is nobody's business any more.
    reading.catch(() => {});
    if (stopping.signal.aborted) throw stopping.signal.reason;
    const code = cause instanceof DownpourError ? cause.code : 'DP_DATA_MISSING';
    throw new DownpourError(
      code,
      `${asked()} failed: ${cause === undefined ? 'it gave no reason' : errorText(cause)}`,
      { cause },
    );
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', stop);
  }
}

/** @returns the values as an array of this realm, of the right type and length, without NaN. */
function valuesOf(
  given: unknown,
  { type, shape, missing }: SourceField,
  indices: Int32Array,
  where: () => string,
): Column['values'] {
  const Values = ARRAYS[type];
  const kind = typedArrayName.call(given);
  if (kind !== Values.name) {
    throw corrupt(
      `${where()} is ${given === undefined ? 'missing' : describe(given)}; allowed: ${Values.name}, since its type is ${type}`,
    );
  }
  const { buffer, byteOffset, length } = given as Float32Array<ArrayBuffer>;
  const size = sizeOf(shape);
  if (length !== indices.length * size) {
    throw corrupt(
      `${where()} has ${length} numbers; needed: ${indices.length * size}, which are ${size} for each of ${indices.length} examples`,
    );
  }
  const values = new Values(buffer, byteOffset, length);
  if (type === 'float32' || type === 'float64') {
    for (let i = 0; i < length; i++) {
      const value = values[i]!;
      if (Number.isFinite(value) || (missing !== undefined && Number.isNaN(value))) continue;
      throw corrupt(
        `${where()} has the value ${value} for example ${indices[Math.floor(i / size)]}, which is not a finite number; leave the example out or fill the number in`,
      );
    }
  }
  return values;
}

/** The rows that were asked for, in a few words. */
function rowsText(indices: Int32Array): string {
  const some = Array.from(indices.subarray(0, 4)).join(', ');
  return indices.length <= 4 ? `[${some}]` : `[${some}, …] of ${indices.length} examples`;
}

const corrupt = (message: string) => new DownpourError('DP_DATA_CORRUPT', message);
