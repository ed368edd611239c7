import type { InitialRow } from './initial-rows.ts';
import type { RowCapture, RowCaptures } from './row-captures.ts';
import type { RowIndex } from './row-index.ts';
import type { RowMemory } from './row-memory.ts';

/** What a table is now, beside its slots. The table writes to it. */
export interface RowsNow {
  /** Rows with values of their own. */
  count: number;
  /** Σ log (1 − ε λ) over all updates. */
  decay: number;
  seed: number;
  /** The values of rows that were never changed. */
  initial: InitialRow;
}

/** Reads rows of a table: as they are, or as they were at a capture. */
export class RowReader {
  readonly #memory: RowMemory;
  readonly #index: RowIndex;
  readonly #captures: RowCaptures;
  readonly #now: Readonly<RowsNow>;

  constructor(of: {
    readonly memory: RowMemory;
    readonly index: RowIndex;
    readonly captures: RowCaptures;
    readonly now: Readonly<RowsNow>;
  }) {
    this.#memory = of.memory;
    this.#index = of.index;
    this.#captures = of.captures;
    this.#now = of.now;
  }

  /**
   * Rows as they are, or as they were, as they are sent. Changes nothing.
   * @param capture null: as they are. @param out the values of all of them in the encoding.
   */
  write(
    keys: Uint32Array,
    capture: number | null,
    encoding: 'f32' | 'bf16',
    out: Uint8Array,
  ): void {
    const { width, pieceRows, rowsAsBytes, encoded, compression, at } = this.#memory;
    const then = capture === null ? null : this.#captures.of(capture);
    for (let from = 0; from < keys.length; from += pieceRows) {
      const count = Math.min(pieceRows, keys.length - from);
      this.#gather(keys, from, count, then);
      const [start, size] = [from * width, count * width];
      if (encoding === 'f32') out.set(rowsAsBytes.subarray(0, 4 * size), 4 * start);
      else {
        compression.encode_bf16(at.rows, size, at.encoded);
        out.set(encoded.subarray(0, 2 * size), 2 * start);
      }
    }
  }

  /** Brings a piece of rows to the room `rows`. */
  #gather(keys: Uint32Array, from: number, count: number, then: RowCapture | null): void {
    const { width, kernels, slots, numbers, decays, rows, at } = this.#memory;
    const decay = then ? then.at.decay : this.#now.decay;
    const initial = then ? then.initial : this.#now.initial;
    const isDecaying = decays.length > 0;
    for (let i = 0; i < count; i++) {
      const key = keys[from + i]!;
      const kept = then?.rows.get(key);
      const slot = kept === undefined ? this.#find(key) : -1;
      slots[i] = slot;
      if (isDecaying) numbers[i] = this.missed(slot, decay);
    }
    const factors = isDecaying ? at.numbers : 0;
    kernels.rows_gather(count, width, slots.byteOffset, at.theta, factors, at.rows);
    for (let i = 0; i < count; i++) {
      if (slots[i]! >= 0) continue;
      const key = keys[from + i]!;
      const kept = then?.rows.get(key);
      if (kept) {
        rows.set(kept, i * width);
        continue;
      }
      initial(key, at.rows + 4 * i * width);
      if (decay !== 0) scaleRow(rows, i * width, width, this.missed(-1, decay));
    }
  }

  /** A row that has not changed since a capture, as it was then. */
  readCaptured(key: number, then: RowCapture, out: Float32Array): void {
    const { width, theta, decays } = this.#memory;
    const slot = this.#find(key);
    out.set(theta.subarray(slot * width, (slot + 1) * width));
    if (decays.length > 0) scaleRow(out, 0, width, Math.exp(then.at.decay - decays[slot]!));
  }

  /**
   * The factor of the decays that a row has missed.
   * @param slot below 0: it has its initial values. In a fork of a run that decayed, they have missed some in a table that
   * does not decay itself.
   */
  missed(slot: number, decay: number): number {
    const { decays } = this.#memory;
    if (slot < 0) return Math.exp(decay);
    return decays.length > 0 ? Math.exp(decay - decays[slot]!) : 1;
  }

  /** −1: its values are the initial ones. */
  #find(key: number): number {
    const slot = this.#index.find(key);
    return slot < 0 || this.#memory.changed[slot] === 0 ? -1 : slot;
  }
}

export function scaleRow(values: Float32Array, at: number, count: number, factor: number): void {
  for (let i = at; i < at + count; i++) values[i] = values[i]! * factor;
}
