import { putKey } from '../../../shared/row-groups.ts';
import type { RowIndex } from './row-index.ts';
import type { RowMemory } from './row-memory.ts';
import { putDouble, type RowTensors, splitKeys } from './row-tensors.ts';

/**
 * Copies of a table's rows for a checkpoint, in pieces, while pushes are applied between them. What is copied is one
 * moment all the same: a row that is about to change before its turn is copied first.
 */

/** Memory for numbers; what is in it is written over. */
export type RoomFor = (length: number) => Float32Array;
export const freshRoom: RoomFor = (length) => new Float32Array(length);

/** Numbers that are copied at once, and slots that are looked at: about 2 ms. */
export const PIECE_ELEMENTS = 2 ** 20;
export const PIECE_SLOTS = 2 ** 18;

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

/** Slots whose rows were copied before their turn, a bit for each. */
export class TakenSlots {
  readonly #bits: Uint8Array;

  /** @param slots as many as there are. */
  constructor(slots: number) {
    this.#bits = new Uint8Array(Math.ceil(slots / 8));
  }

  has(slot: number): boolean {
    return (this.#bits[slot >> 3]! & (1 << (slot & 7))) !== 0;
  }

  add(slot: number): void {
    this.#bits[slot >> 3]! |= 1 << (slot & 7);
  }
}

export class RowCopy {
  readonly tensors: CopiedTensors;
  readonly #memory: RowMemory;
  readonly #index: RowIndex;
  readonly #rows: CopiedRows;
  readonly #taken: TakenSlots;
  /** The next slot. */
  #slot = 0;
  /** Rows that are copied. */
  #at = 0;

  constructor(memory: RowMemory, index: RowIndex, rows: CopiedRows, room: RoomFor) {
    const { width, stateSize, changed, decays } = memory;
    const { count, gone, isPretrained } = rows;
    this.#memory = memory;
    this.#index = index;
    this.#rows = rows;
    this.#taken = new TakenSlots(changed.length);
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

  /** The row of a slot is about to change. */
  before(slot: number): void {
    if (slot < this.#slot || !this.#isWanted(slot)) return;
    this.#copy(slot, 1);
    this.#taken.add(slot);
  }

  #isWanted(slot: number): boolean {
    const last = this.#memory.changed[slot]!;
    if (last <= this.#rows.since || last > this.#rows.until) return false;
    return !this.#taken.has(slot);
  }

  /** Copies a piece. @returns false: all rows are copied. */
  more(): boolean {
    const { changed, width, stateSize } = this.#memory;
    const last = Math.min(changed.length, this.#slot + PIECE_SLOTS);
    let left = Math.max(1, Math.floor(PIECE_ELEMENTS / (width + stateSize)));
    while (this.#slot < last && left > 0) {
      const first = this.#slot;
      let end = first;
      // Neighbours are copied at once.
      while (end < last && end - first < left && this.#isWanted(end)) end++;
      if (end === first) this.#slot++;
      else {
        this.#copy(first, end - first);
        left -= end - first;
        this.#slot = end;
      }
    }
    if (this.#slot < changed.length) return true;
    if (this.#at !== this.#rows.count) {
      throw new Error(`${this.#at} rows were copied, and there were ${this.#rows.count}`);
    }
    return false;
  }

  finish(): void {
    while (this.more());
  }

  /** Rows of neighbouring slots. */
  #copy(first: number, count: number): void {
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
