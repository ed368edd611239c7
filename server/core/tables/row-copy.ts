import { putKey } from '../../../shared/row-groups.ts';
import type { RowIndex } from './row-index.ts';
import type { RowMemory } from './row-memory.ts';
import { putDouble, type RowTensors, splitKeys } from './row-tensors.ts';
import { PIECE_ELEMENTS, SlotWalk } from './slot-walk.ts';

/** Copies of a table's rows for a checkpoint, in pieces: see `SlotWalk`. */

/** Memory for numbers; what is in it is written over. */
export type RoomFor = (length: number) => Float32Array;
export const freshRoom: RoomFor = (length) => new Float32Array(length);

/** Which rows are copied. */
export interface CopiedRows {
  /** Those that were changed after this row step. */
  readonly since: number;
  /** The moment: no row was changed after it. */
  readonly until: number;
  /** How many they are. */
  readonly count: number;
  /** Keys of rows that went since. */
  readonly gone: readonly number[];
  /** Flag of a slot; null: no row is pretrained. */
  readonly isPretrained: ((slot: number) => boolean) | null;
}

/** Rows as `RowTensors`, and the keys of those that went. */
export interface CopiedTensors extends RowTensors {
  /** Shape [n, 2]. */
  readonly gone: Float32Array;
}

export class RowCopy extends SlotWalk {
  readonly tensors: CopiedTensors;
  readonly #memory: RowMemory;
  readonly #index: RowIndex;
  readonly #rows: CopiedRows;
  /** Rows that are copied. */
  #at = 0;

  constructor(memory: RowMemory, index: RowIndex, rows: CopiedRows, room: RoomFor) {
    const { width, stateSize, changed, decays } = memory;
    const { count, gone, isPretrained } = rows;
    super(changed.length, width + stateSize);
    this.#memory = memory;
    this.#index = index;
    this.#rows = rows;
    this.tensors = {
      keys: room(2 * count),
      values: room(width * count),
      state: room(stateSize * count),
      changed: room(3 * count),
      decays: room(decays.length > 0 ? 3 * count : 0),
      pretrained: room(isPretrained ? count : 0),
      gone: splitKeys(gone),
    };
  }

  protected isOfMoment(slot: number): boolean {
    const last = this.#memory.changed[slot]!;
    return last > this.#rows.since && last <= this.#rows.until;
  }

  more(): boolean {
    if (this.walk() === null) return true;
    if (this.#at !== this.#rows.count) {
      throw new Error(`${this.#at} rows were copied, and there were ${this.#rows.count}`);
    }
    return false;
  }

  protected copySlots(first: number, count: number): void {
    const { width, stateSize, theta, state, changed, decays } = this.#memory;
    const { isPretrained } = this.#rows;
    const { tensors } = this;
    const at = this.#at;
    const end = first + count;
    tensors.values.set(theta.subarray(first * width, end * width), at * width);
    tensors.state.set(state.subarray(first * stateSize, end * stateSize), at * stateSize);
    for (let i = 0; i < count; i++) {
      const slot = first + i;
      putKey(tensors.keys, at + i, this.#index.keyOf(slot));
      putDouble(tensors.changed, at + i, changed[slot]!);
      if (decays.length > 0) putDouble(tensors.decays, at + i, decays[slot]!);
      if (isPretrained) tensors.pretrained[at + i] = Number(isPretrained(slot));
    }
    this.#at += count;
  }
}

/** How many rows a capture keeps. */
export interface CapturedCounts {
  readonly rows: number;
  /** Those among them that had their initial values. */
  readonly initial: number;
}

/** A copy of what a capture has kept up to now. What it keeps never changes, it only grows, so nothing is copied early. */
export class CaptureCopy {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** Keys of rows that had their initial values. */
  readonly initial: Float32Array;
  /** Keys of the rows that were those of a file. */
  readonly fromFile: Float32Array;
  readonly #width: number;
  readonly #flagged: Iterator<number, undefined>;
  #flaggedAt = 0;
  readonly #entries: IterableIterator<[number, Float32Array | null]>;
  /** Entries to come, those that are left out among them. */
  #left: number;
  #skip: number;
  #keyAt = 0;
  #initialAt = 0;

  /**
   * @param capture its rows, null: with initial values, their counts, and keys of those that were rows of a file.
   * @param from what is left out, since a checkpoint has it.
   */
  constructor(
    capture: {
      readonly rows: Map<number, Float32Array | null>;
      readonly kept: CapturedCounts;
      readonly pretrained: ReadonlySet<number> | null;
    },
    width: number,
    from: CapturedCounts,
    room: RoomFor,
  ) {
    const initial = capture.kept.initial - from.initial;
    const count = capture.kept.rows - from.rows - initial;
    this.keys = room(2 * count);
    this.values = room(width * count);
    this.initial = room(2 * initial);
    this.fromFile = room(2 * (capture.pretrained?.size ?? 0));
    this.#flagged = (capture.pretrained ?? new Set<number>()).values();
    this.#width = width;
    this.#entries = capture.rows.entries();
    this.#left = capture.kept.rows;
    this.#skip = from.rows;
  }

  /** @returns false: all is copied. */
  more(): boolean {
    let budget = Math.max(1, Math.floor(PIECE_ELEMENTS / (8 * this.#width)));
    for (; this.#left > 0 && budget > 0; budget--) {
      const [key, row] = this.#entries.next().value!;
      this.#left--;
      if (this.#skip > 0) {
        this.#skip--;
        continue;
      }
      if (!row) putKey(this.initial, this.#initialAt++, key);
      else {
        putKey(this.keys, this.#keyAt, key);
        this.values.set(row, this.#keyAt++ * this.#width);
      }
    }
    const flagged = this.fromFile.length / 2;
    for (; this.#flaggedAt < flagged && budget > 0; budget--) {
      putKey(this.fromFile, this.#flaggedAt++, this.#flagged.next().value!);
    }
    return this.#left > 0 || this.#flaggedAt < flagged;
  }
}
