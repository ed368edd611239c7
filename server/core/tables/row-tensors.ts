import { DownpourError } from '../../../shared/errors.ts';
import { putKey, wholeKeys } from '../../../shared/row-groups.ts';
import type { RowShape } from '../../../shared/rows.ts';

/**
 * Rows as tensors of a checkpoint, which are all in f32. Keys and row steps do not fit in one f32, so they have several:
 * nothing is rounded, and any reader of safetensors can put them together.
 */
export interface RowTensors {
  /** Shape [n, 2]: key = 65,536 a + b. */
  readonly keys: Float32Array;
  /** Shape [n, width]. */
  readonly values: Float32Array;
  /** Shape [n, numbers of state]. */
  readonly state: Float32Array;
  /** Row step of the last change, shape [n, 3]: the sum of the three. */
  readonly changed: Float32Array;
  /** Shape [n, 3]: the sum of the three; empty: the table does not decay. */
  readonly decays: Float32Array;
  /** 1 for rows that began with the values of a file, shape [n]; empty: none did. */
  readonly pretrained: Float32Array;
}

/** @returns shape [n, 2]. */
export function splitKeys(keys: ArrayLike<number>): Float32Array {
  const split = new Float32Array(2 * keys.length);
  for (let i = 0; i < keys.length; i++) putKey(split, i, keys[i]!);
  return split;
}

/** Each as a sum of three f32, which have more digits together than an f64. @returns shape [n, 3]. */
export function splitDoubles(values: Float64Array): Float32Array {
  const split = new Float32Array(3 * values.length);
  for (let i = 0; i < values.length; i++) putDouble(split, i, values[i]!);
  return split;
}

/** @param out shape [n, 3]. */
export function putDouble(out: Float32Array, i: number, value: number): void {
  const high = Math.fround(value);
  const middle = Math.fround(value - high);
  out[3 * i] = high;
  out[3 * i + 1] = middle;
  out[3 * i + 2] = value - high - middle;
}

export function wholeDoubles(split: Float32Array): Float64Array {
  return Float64Array.from(
    { length: split.length / 3 },
    (_, i) => split[3 * i]! + split[3 * i + 1]! + split[3 * i + 2]!,
  );
}

/**
 * Looks at the keys of a checkpoint before they are used.
 * @throws DownpourError DP_CHECKPOINT_CORRUPT: one is no key of the table.
 */
export function mustBeStoredKeys({ name, keysMax }: RowShape, split: Float32Array): void {
  const keys = wholeKeys(split);
  const wrong = keys.find((key) => !(Number.isInteger(key) && key >= 0 && key < keysMax));
  if (wrong === undefined && split.length === 2 * keys.length) return;
  throw corrupt(name, `a key is ${wrong}; allowed: whole numbers below ${keysMax}`);
}

/**
 * The same of rows, and of some of them.
 * @param rowStep of the run: none was changed later. @throws DownpourError DP_CHECKPOINT_CORRUPT.
 */
export function mustBeStoredRows(shape: RowShape, rows: RowTensors, rowStep: number): void {
  const { name, width } = shape;
  mustBeStoredKeys(shape, rows.keys);
  const n = rows.keys.length / 2;
  for (const [field, perRow] of [
    ['values', width],
    ['changed', 3],
    ['decays', 3],
    ['pretrained', 1],
  ] as const) {
    const { length } = rows[field];
    const mayLack = field === 'decays' || field === 'pretrained';
    if (length === perRow * n || (mayLack && length === 0)) continue;
    throw corrupt(name, `'${field}' of ${n} rows has ${length} elements; allowed: ${perRow * n}`);
  }
  const step = wholeDoubles(rows.changed).find(
    (each) => !(Number.isInteger(each) && each > 0 && each <= rowStep),
  );
  if (step === undefined) return;
  throw corrupt(name, `a row was changed at row step ${step}; allowed: 1 to ${rowStep}`);
}

const corrupt = (name: string, what: string) =>
  new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `rows of table '${name}' in a checkpoint are not valid: ${what}; resume from an older checkpoint`,
  );
