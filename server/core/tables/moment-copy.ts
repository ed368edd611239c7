import { putKey } from '../../../shared/row-groups.ts';
import type { RowCapture } from './row-captures.ts';
import { PIECE_ELEMENTS, PIECE_SLOTS, type RoomFor, TakenSlots } from './row-copy.ts';
import type { RowIndex } from './row-index.ts';
import type { RowMemory } from './row-memory.ts';

/** The moment, and what is known of the table now. */
export interface MomentOfRows {
  /** The rows that have changed since the moment are in it as they were. */
  readonly then: Pick<RowCapture, 'at' | 'rows' | 'kept'>;
  /** Rows that have values of their own now. */
  readonly count: number;
  /** Whether the row of a key began with the values of a file; null: no row did. */
  readonly isPretrained: ((key: number) => boolean) | null;
}

/**
 * The rows of a table at one moment by themselves, as a model has them: keys, and values with all decay of that time. They are
 * copied in pieces, as in `RowCopy`: a row that is about to change before its turn is copied first. So nobody need keep the
 * capture meanwhile.
 */
export class MomentCopy {
  readonly #memory: RowMemory;
  readonly #index: RowIndex;
  readonly #of: MomentOfRows;
  /** Rooms for as many rows as there can be. */
  readonly #keys: Float32Array;
  readonly #values: Float32Array;
  readonly #flags: Float32Array;
  readonly #taken: TakenSlots;
  /** What the capture kept before the copy began. What it keeps never changes, it only grows. */
  readonly #entries: IterableIterator<[number, Float32Array | null]>;
  #left: number;
  /** The next slot. */
  #slot = 0;
  /** Rows that are copied. */
  #at = 0;

  constructor(memory: RowMemory, index: RowIndex, of: MomentOfRows, room: RoomFor) {
    const { kept, rows } = of.then;
    const most = of.count + kept.rows - kept.initial;
    this.#memory = memory;
    this.#index = index;
    this.#of = of;
    this.#keys = room(2 * most);
    this.#values = room(memory.width * most);
    this.#flags = room(of.isPretrained ? most : 0);
    this.#taken = new TakenSlots(memory.changed.length);
    this.#entries = rows.entries();
    this.#left = kept.rows;
  }

  /** Shape [n, 2], when all is copied. */
  get keys(): Float32Array {
    return this.#keys.subarray(0, 2 * this.#at);
  }

  /** Shape [n, width], when all is copied. */
  get values(): Float32Array {
    return this.#values.subarray(0, this.#memory.width * this.#at);
  }

  /** As in `RowTensors`, when all is copied. */
  get pretrained(): Float32Array {
    return this.#flags.subarray(0, this.#of.isPretrained ? this.#at : 0);
  }

  get at(): RowCapture['at'] {
    return this.#of.then.at;
  }

  /** The row of a slot is about to change. */
  before(slot: number): void {
    if (slot < this.#slot || !this.#isWanted(slot)) return;
    this.#copy(slot);
    this.#taken.add(slot);
  }

  #isWanted(slot: number): boolean {
    const { then } = this.#of;
    const last = this.#memory.changed[slot]!;
    if (last === 0 || last > then.at.rowStep) return false;
    if (this.#taken.has(slot)) return false;
    // A change that was undone leaves a row that was kept as it was.
    return then.rows.size === 0 || !then.rows.has(this.#index.keyOf(slot));
  }

  /** Copies a piece. @returns false: all is copied. */
  more(): boolean {
    const { changed, width } = this.#memory;
    let left = Math.max(1, Math.floor(PIECE_ELEMENTS / (8 + width)));
    const last = Math.min(changed.length, this.#slot + PIECE_SLOTS);
    for (; this.#slot < last && left > 0; this.#slot++) {
      if (!this.#isWanted(this.#slot)) continue;
      this.#copy(this.#slot);
      left--;
    }
    if (this.#slot < changed.length) return true;
    for (; this.#left > 0 && left > 0; left--) {
      const [key, row] = this.#entries.next().value!;
      this.#left--;
      if (!row) continue;
      this.#values.set(row, this.#at * width);
      this.#put(key);
    }
    return this.#left > 0;
  }

  finish(): void {
    while (this.more());
  }

  /** The row of a slot, as it was then. */
  #copy(slot: number): void {
    const { width, theta, decays } = this.#memory;
    const at = this.#at * width;
    this.#values.set(theta.subarray(slot * width, (slot + 1) * width), at);
    if (decays.length > 0) {
      const factor = Math.exp(this.#of.then.at.decay - decays[slot]!);
      for (let i = at; i < at + width; i++) this.#values[i]! *= factor;
    }
    this.#put(this.#index.keyOf(slot));
  }

  #put(key: number): void {
    const { isPretrained } = this.#of;
    putKey(this.#keys, this.#at, key);
    if (isPretrained) this.#flags[this.#at] = Number(isPretrained(key));
    this.#at++;
  }
}
