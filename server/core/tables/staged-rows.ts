import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import type { EncodedRows, RowEncoding } from '../../../shared/rows.ts';
import { type Clip, sumOfSquares } from '../fused.ts';
import type { RowMemory } from './row-memory.ts';

/** Gradients of the rows of one push, as they came. They are read in pieces, in f32, and not yet clipped. */
export class StagedRows {
  readonly #memory: RowMemory;
  keys: Uint32Array = new Uint32Array();
  #values: Uint8Array = new Uint8Array();
  #encoding: RowEncoding = 'f32';
  /** The first row of the piece that is in the room of gradients; −1: none. */
  #loaded = -1;

  constructor(memory: RowMemory) {
    this.#memory = memory;
  }

  /** @param values a view: it is read until the update. @throws DownpourError DP_ROWS_INVALID: they are too many. */
  take(name: string, { keys, values }: EncodedRows, encoding: RowEncoding): void {
    const bytes = 4 * keys.length * this.#memory.width;
    if (bytes > LIMITS.rowBytesMax) {
      throw new DownpourError(
        'DP_ROWS_INVALID',
        `${keys.length} rows of table '${name}' take ${bytes} bytes in f32; allowed: ${LIMITS.rowBytesMax}: push fewer rows at once`,
      );
    }
    this.keys = keys;
    this.#values = values;
    this.#encoding = encoding;
    this.#loaded = -1;
  }

  /** Rows of the piece that begins at a row. */
  countFrom(from: number): number {
    return Math.min(this.#memory.pieceRows, this.keys.length - from);
  }

  /** Brings the piece that begins at a row to the room of gradients. @returns its rows. */
  load(from: number): number {
    const count = this.countFrom(from);
    if (this.#loaded === from) return count;
    this.#loaded = from;
    const { width, kernels, compression, at, encoded, gradientsAsBytes } = this.#memory;
    const [start, size] = [from * width, count * width];
    const values = this.#values;
    if (this.#encoding === 'f32') {
      gradientsAsBytes.set(values.subarray(4 * start, 4 * (start + size)));
    } else if (this.#encoding === 'bf16') {
      encoded.set(values.subarray(2 * start, 2 * (start + size)));
      compression.decode_bf16(at.encoded, size, at.gradients);
    } else {
      const numbers = 4 * this.keys.length + start;
      encoded.set(values.subarray(4 * from, 4 * (from + count)));
      encoded.set(values.subarray(numbers, numbers + size), 4 * count);
      kernels.rows_decode_int8(count, width, at.encoded, at.encoded + 4 * count, at.gradients);
    }
    return count;
  }

  /** Σ g² with elements cut to ±limit; NaN: not all of it is finite. */
  squares(limit: number): number {
    const { width, kernels, at } = this.#memory;
    const gradient = { decoding: 'f32', address: at.gradients, scales: 0 } as const;
    let sum = 0;
    for (let from = 0; from < this.keys.length; ) {
      const count = this.load(from);
      sum += sumOfSquares(kernels, gradient, count * width, limit);
      from += count;
    }
    return sum;
  }

  /** Clips the piece that is loaded, once. */
  clip(count: number, { limit, factor }: Clip): void {
    if (limit === Infinity && factor === 1) return;
    const { width, kernels, at } = this.#memory;
    kernels.rows_clip(at.gradients, count * width, limit, factor);
    this.#loaded = -1;
  }
}
