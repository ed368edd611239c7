/**
 * Tensors of a checkpoint that have a part for each of some keys. A checkpoint that continues another one has the changed
 * rows of such a group alone; the other rows are those of the one before.
 */
export interface KeyedRows {
  /** Tensor of the keys, shape [n, 2]: key = 65,536 a + b. */
  readonly keys: string;
  /** Tensors of n equal parts each; those without elements have nothing of any row. */
  readonly fields: readonly string[];
  /** Tensor of keys whose rows there are no more; absent: none has gone. */
  readonly gone?: string;
}

/** A key does not fit in one f32, so it has two. */
const LOW = 2 ** 16;

/** @param out shape [n, 2]. */
export function putKey(out: Float32Array, i: number, key: number): void {
  out[2 * i] = Math.floor(key / LOW);
  out[2 * i + 1] = key % LOW;
}

/** @param split shape [n, 2]. */
export function wholeKeys(split: Float32Array): number[] {
  return Array.from(
    { length: split.length / 2 },
    (_, i) => LOW * split[2 * i]! + split[2 * i + 1]!,
  );
}
