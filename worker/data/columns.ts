import type { Reading } from '../../shared/reading.ts';

/** The numbers of examples, in typed arrays of four kinds. */

/** Numbers of one kind for every example: shape[0] is the example count. */
export interface Column {
  /** Bytes of inputs are pixels, 0 … 255, and are divided by 255; float64 stays so until it is centred. */
  readonly values: Float32Array | Float64Array | Int32Array | Uint8Array;
  readonly shape: readonly number[];
  /** One for each number of an example. */
  readonly names?: readonly string[];
  /** The name of class 0, 1, …, for targets that are classes. */
  readonly classes?: readonly string[];
  /**
   * NaN is a missing number of inputs. `standardise: 'feature'` puts the mean of its feature in its place, measured
   * on the training part: after standardisation that is 0.
   */
  readonly missing?: 'mean';
  /** Classes of targets that are a field by name; `classes` says it too. */
  readonly classCount?: number;
  /** What stands behind the end of shorter sequences. */
  readonly pad?: number;
  /** The row of its part that a piece begins with, for messages; absent: 0. */
  readonly firstRow?: number;
  /** How a reader has read these inputs from files. */
  readonly reading?: Reading;
  /** The text of id 0, 1, … for numbers that are ids; '' where one has none. */
  readonly vocabulary?: readonly string[];
}

/** The text of each id of a column, which may come with how the column was read; null: it is not known. */
export function vocabularyOf({ vocabulary, reading }: Column): readonly string[] | null {
  return vocabulary ?? (reading?.kind === 'text' ? reading.vocabulary : undefined) ?? null;
}

/** `mask`: 1 where the field before it has numbers, 0 where it was padded. */
export type FieldRole = 'input' | 'mask' | 'target';

export type NumberKind = 'uint8' | 'int32' | 'float32' | 'float64';

/** The typed array of each kind. */
export const ARRAYS = {
  uint8: Uint8Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
} as const;

/** The kind of a column's numbers. A Buffer counts as bytes. */
export function kindOf(values: Column['values']): NumberKind {
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

/** Where an element stands, for messages: `row 5, column 2 ('age')`; all count from 0. */
export function elementAt(
  { shape, names, firstRow = 0 }: Pick<Column, 'shape' | 'names' | 'firstRow'>,
  index: number,
): string {
  const size = sizeOf(shape, 1);
  const row = `row ${firstRow + Math.floor(index / size)}`;
  const at = index % size;
  const name = names?.[at];
  if (shape.length <= 2) {
    if (name !== undefined) return `${row}, column ${at} ('${name}')`;
    return size === 1 ? row : `${row}, column ${at}`;
  }
  const places = shape
    .slice(1)
    .map((_, axis) => Math.floor(at / sizeOf(shape, axis + 2)) % shape[axis + 1]!);
  return `${row}, element [${places.join(', ')}]`;
}

/** A number of every example, for messages: `column 2 ('age')`, `element [3, 0]`. */
export function columnName({ shape, names }: Pick<Column, 'shape' | 'names'>, at: number): string {
  return (
    elementAt({ shape, ...(names ? { names } : {}) }, at).replace(/^row 0(, )?/, '') || 'numbers'
  );
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
  return new ARRAYS[kindOf(values)](length);
}

/** A column of no numbers: inputs or targets that the data do not have, or have as fields by name. */
export const emptyColumn = (count: number): Column => ({
  values: new Float32Array(0),
  shape: [count, 0],
});
