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

const LOW = 2 ** 16;

/** @returns shape [n, 2]. */
export function splitKeys(keys: ArrayLike<number>): Float32Array {
  const split = new Float32Array(2 * keys.length);
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i]!;
    split[2 * i] = Math.floor(key / LOW);
    split[2 * i + 1] = key % LOW;
  }
  return split;
}

export function wholeKeys(split: Float32Array): number[] {
  return Array.from(
    { length: split.length / 2 },
    (_, i) => LOW * split[2 * i]! + split[2 * i + 1]!,
  );
}

/** Each as a sum of three f32, which have more digits together than an f64. @returns shape [n, 3]. */
export function splitDoubles(values: Float64Array): Float32Array {
  const split = new Float32Array(3 * values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    const high = Math.fround(value);
    const middle = Math.fround(value - high);
    split[3 * i] = high;
    split[3 * i + 1] = middle;
    split[3 * i + 2] = value - high - middle;
  }
  return split;
}

export function wholeDoubles(split: Float32Array): Float64Array {
  return Float64Array.from(
    { length: split.length / 3 },
    (_, i) => split[3 * i]! + split[3 * i + 1]! + split[3 * i + 2]!,
  );
}
