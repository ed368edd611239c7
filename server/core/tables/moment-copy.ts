import { putKey } from '../../../shared/row-groups.ts';
import type { RowCapture } from './row-captures.ts';
import type { RoomFor } from './row-copy.ts';
import type { RowIndex } from './row-index.ts';
import type { RowMemory } from './row-memory.ts';
import { SlotWalk } from './slot-walk.ts';

/** The moment, and what is known of the table now. */
export interface MomentOfRows {
  /** The rows that have changed since the moment are in it as they were. */
  readonly then: Pick<RowCapture, 'at' | 'rows' | 'kept'>;
  /** Rows that have values of their own now. */
  readonly count: number;
  /** Whether the row of a key began with the values of a file; null: no row did. */
  readonly isPretrained: ((key: number) => boolean) | null;
}

/** What a key and its flag take of a piece, beside its row. */
const KEY_ELEMENTS = 8;

/**
 * The rows of a table at one moment by themselves, as a model has them: keys, and values with all decay of that time. They are
 * copied in pieces (see `SlotWalk`), so nobody need keep the capture meanwhile.
 */
export class MomentCopy extends SlotWalk {
  readonly #memory: RowMemory;
  readonly #index: RowIndex;
  readonly #of: MomentOfRows;
  /** Rooms for as many rows as there can be. */
  readonly #keys: Float32Array;
  readonly #values: Float32Array;
  readonly #flags: Float32Array;
  /** What the capture kept before the copy began. What it keeps never changes, it only grows. */
  readonly #entries: IterableIterator<[number, Float32Array | null]>;
  #left: number;
  /** Rows that are copied. */
  #at = 0;

  constructor(memory: RowMemory, index: RowIndex, of: MomentOfRows, room: RoomFor) {
    const { kept, rows } = of.then;
    super(memory.changed.length, KEY_ELEMENTS + memory.width);
    const most = of.count + kept.rows - kept.initial;
    this.#memory = memory;
    this.#index = index;
    this.#of = of;
    this.#keys = room(2 * most);
    this.#values = room(memory.width * most);
    this.#flags = room(of.isPretrained ? most : 0);
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

  protected isOfMoment(slot: number): boolean {
    const { then } = this.#of;
    const last = this.#memory.changed[slot]!;
    if (last === 0 || last > then.at.rowStep) return false;
    // A change that was undone leaves a row that was kept as it was.
    return then.rows.size === 0 || !then.rows.has(this.#index.keyOf(slot));
  }

  more(): boolean {
    let left = this.walk();
    if (left === null) return true;
    const { width } = this.#memory;
    for (; this.#left > 0 && left > 0; left--) {
      const [key, row] = this.#entries.next().value!;
      this.#left--;
      if (!row) continue;
      this.#values.set(row, this.#at * width);
      this.#put(key);
    }
    return this.#left > 0;
  }

  /** The rows of neighbouring slots, as they were then. */
  protected copySlots(first: number, count: number): void {
    const { width, theta, decays } = this.#memory;
    const at = this.#at * width;
    this.#values.set(theta.subarray(first * width, (first + count) * width), at);
    for (let i = 0; i < count; i++) {
      const slot = first + i;
      if (decays.length > 0) {
        const factor = Math.exp(this.#of.then.at.decay - decays[slot]!);
        const end = at + (i + 1) * width;
        for (let j = at + i * width; j < end; j++) this.#values[j]! *= factor;
      }
      this.#put(this.#index.keyOf(slot));
    }
  }

  #put(key: number): void {
    const { isPretrained } = this.#of;
    putKey(this.#keys, this.#at, key);
    if (isPretrained) this.#flags[this.#at] = Number(isPretrained(key));
    this.#at++;
  }
}
