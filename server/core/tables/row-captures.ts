import type { InitialRow } from './initial-rows.ts';
import { type RowTensors, splitKeys, wholeKeys } from './row-tensors.ts';

/**
 * Moments of a table that are looked at later: an evaluation, the best parameters. A capture is a row step. A row that
 * changes for the first time after it is kept first, as it was; all others still are as they were then.
 */

/** When a capture was made. */
export interface CaptureMoment {
  readonly rowStep: number;
  readonly decay: number;
  readonly seed: number;
}

export interface RowCapture {
  readonly at: CaptureMoment;
  readonly initial: InitialRow;
  /** Rows that have changed since, by key, as they were. Null: the row had its initial values. */
  readonly rows: Map<number, Float32Array | null>;
}

/** What a capture has kept, in a checkpoint. */
export interface RowTensorsOfCapture extends Pick<RowTensors, 'keys' | 'values'> {
  /** Keys of rows that had their initial values, shape [n, 2]. */
  readonly initial: Float32Array;
}

/** Writes a row that has not changed since a capture, as it was then. @param out shape [width]. */
export type ReadCaptured = (key: number, then: RowCapture, out: Float32Array) => void;

export class RowCaptures {
  readonly #table: string;
  readonly #width: number;
  readonly #read: ReadCaptured;
  readonly #captures = new Map<number, RowCapture>();

  constructor(table: string, width: number, read: ReadCaptured) {
    this.#table = table;
    this.#width = width;
    this.#read = read;
  }

  get isEmpty(): boolean {
    return this.#captures.size === 0;
  }

  has(id: number): boolean {
    return this.#captures.has(id);
  }

  make(id: number, at: CaptureMoment, initial: InitialRow): void {
    this.#captures.set(id, { at, initial, rows: new Map() });
  }

  forget(id: number): void {
    this.#captures.delete(id);
  }

  of(id: number): RowCapture {
    const capture = this.#captures.get(id);
    if (!capture) throw new Error(`table ${this.#table} has no capture ${id}`);
    return capture;
  }

  /** The row of a key is about to change. @param last row step of its last change; 0: it has its initial values. */
  keep(key: number, last: number): void {
    for (const capture of this.#captures.values()) {
      const { at, rows } = capture;
      // It was kept before, or the capture is older than its last change, before which it was kept.
      if (last > at.rowStep || rows.has(key)) continue;
      if (last === 0) {
        rows.set(key, null);
        continue;
      }
      const row = new Float32Array(this.#width);
      this.#read(key, capture, row);
      rows.set(key, row);
    }
  }

  tensors(id: number): RowTensorsOfCapture {
    const keys: number[] = [];
    const initial: number[] = [];
    const { rows } = this.of(id);
    for (const [key, row] of rows) (row ? keys : initial).push(key);
    const values = new Float32Array(keys.length * this.#width);
    for (const [i, key] of keys.entries()) values.set(rows.get(key)!, i * this.#width);
    return { keys: splitKeys(keys), values, initial: splitKeys(initial) };
  }

  /** Adds what was kept of a capture. */
  restore(id: number, at: CaptureMoment, initial: InitialRow, kept: RowTensorsOfCapture): void {
    const rows = this.#captures.get(id)?.rows ?? new Map<number, Float32Array | null>();
    for (const key of wholeKeys(kept.initial)) rows.set(key, null);
    for (const [i, key] of wholeKeys(kept.keys).entries()) {
      rows.set(key, kept.values.slice(i * this.#width, (i + 1) * this.#width));
    }
    this.#captures.set(id, { at, initial, rows });
  }
}
