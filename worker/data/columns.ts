import { DownpourError } from '../../shared/errors.ts';

/**
 * The numbers of examples in typed arrays, and the one door through which they come: whatever `data()`
 * gives becomes one of four kinds without loss, or is refused by name.
 */

/** Numbers of one kind for every example: shape[0] is the example count. */
export interface Column {
  /** Bytes of inputs are pixels, 0 … 255, and are divided by 255; float64 stays so until it is centred. */
  readonly values: Float32Array | Float64Array | Int32Array | Uint8Array;
  readonly shape: readonly number[];
  /** One for each number of an example. */
  readonly names?: readonly string[];
  /** Of targets that are classes: the name of class 0, 1, … */
  readonly classes?: readonly string[];
}

/** Numbers as an experiment may give them: nested arrays have a shape of their own. */
export type GivenNumbers =
  | NodeJS.TypedArray
  | readonly number[]
  | readonly boolean[]
  | readonly GivenNumbers[];

/** A column as an experiment may give it. */
export interface GivenColumn extends Pick<Column, 'names' | 'classes'> {
  readonly values: GivenNumbers;
  /** Of a typed array; an array says it itself. */
  readonly shape?: readonly number[];
}

export type Kind = 'uint8' | 'int32' | 'float32' | 'float64';

/** The kind of a column's numbers. A Buffer counts as bytes. */
export function kindOf(values: Column['values']): Kind {
  if (values instanceof Uint8Array) return 'uint8';
  if (values instanceof Int32Array) return 'int32';
  return values instanceof Float32Array ? 'float32' : 'float64';
}

/** Numbers that may be fractions. */
export function isFloat(values: Column['values']): values is Float32Array | Float64Array {
  return values instanceof Float32Array || values instanceof Float64Array;
}

/** Numbers that one example has in a column. */
export function rowSize(column: Column): number {
  return sizeOf(column.shape, 1);
}

/** The product of a shape's sizes, from one of them on. */
export function sizeOf(shape: readonly number[], from = 0): number {
  let size = 1;
  for (let i = from; i < shape.length; i++) size *= shape[i]!;
  return size;
}

/** Copies whole rows into a column of its own. @param rows 0-based, each below shape[0]. */
export function takeRows(column: Column, rows: Int32Array | readonly number[]): Column {
  const size = rowSize(column);
  const values = emptyLike(column.values, rows.length * size);
  for (let i = 0; i < rows.length; i++) {
    const start = rows[i]! * size;
    values.set(column.values.subarray(start, start + size), i * size);
  }
  return { ...column, values, shape: [rows.length, ...column.shape.slice(1)] };
}

function emptyLike(values: Column['values'], length: number): Column['values'] {
  if (values instanceof Uint8Array) return new Uint8Array(length);
  if (values instanceof Int32Array) return new Int32Array(length);
  return values instanceof Float32Array ? new Float32Array(length) : new Float64Array(length);
}

/** What kind a typed array is, also one of another realm or of a subclass; undefined: it is none. */
const typedArrayName = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)!.get! as (this: unknown) => string | undefined;

/**
 * The column that a given one means.
 * @param where named in messages: `inputs of the train part`
 * @throws DownpourError DP_EXPERIMENT_INVALID: no numbers, or a shape that does not fit; DP_DATA_CORRUPT
 *   for a number that cannot be kept.
 */
export function columnOf(given: GivenColumn, where: string): Column {
  const { values, shape, names, classes } = given;
  const rest = { ...(names ? { names } : {}), ...(classes ? { classes } : {}) };
  const kind = typedArrayName.call(values);
  if (kind !== undefined && shape) {
    return { values: converted(values as NodeJS.TypedArray, kind), shape, ...rest };
  }
  throw new DownpourError('DP_EXPERIMENT_INVALID', `${where} cannot be read`);
}

function converted(given: NodeJS.TypedArray, kind: string): Column['values'] {
  const { buffer, byteOffset, length } = given;
  switch (kind) {
    case 'Uint8Array':
    case 'Uint8ClampedArray':
      return new Uint8Array(buffer, byteOffset, length);
    case 'Int32Array':
      return new Int32Array(buffer as ArrayBuffer, byteOffset, length);
    case 'Float32Array':
      return new Float32Array(buffer as ArrayBuffer, byteOffset, length);
    case 'Float64Array':
      return new Float64Array(buffer as ArrayBuffer, byteOffset, length);
    case 'Int8Array':
    case 'Int16Array':
    case 'Uint16Array':
      return Int32Array.from(given as Int16Array);
    default:
      return Float64Array.from(given as ArrayLike<number | bigint>, Number);
  }
}
