import type { RowMemory } from './row-memory.ts';

/** A row that an update has forgotten, with all that it had. */
interface ForgottenRow {
  readonly key: number;
  readonly changed: number;
  readonly decay: number;
  readonly theta: Float32Array;
  readonly state: Float32Array;
}

/** What the rows of an update were before it. It grows with the largest push, and is written over by the next one. */
export class RowUndo {
  readonly #memory: RowMemory;
  #count = 0;
  /** Below 0: the row of the push has no slot. */
  #slots = new Int32Array();
  #changed = new Float64Array();
  #decays = new Float64Array();
  /** Shape [count, width + stateSize]. */
  #values = new Float32Array();
  /** Sum of the table's decays. */
  decay = 0;
  /** The row step that the update made. */
  rowStep = 0;
  /** Most updates forget no row, so these are not kept in one room. */
  #forgotten: ForgottenRow[] = [];

  constructor(memory: RowMemory) {
    this.#memory = memory;
  }

  /** @param count rows that will be noted, at most. */
  begin(
    count: number,
    { decay, rowStep }: { readonly decay: number; readonly rowStep: number },
  ): void {
    this.#count = 0;
    if (this.#forgotten.length > 0) this.#forgotten = [];
    this.decay = decay;
    this.rowStep = rowStep;
    if (this.#slots.length >= count) return;
    const { width, stateSize } = this.#memory;
    this.#slots = new Int32Array(count);
    this.#changed = new Float64Array(count);
    this.#decays = new Float64Array(count);
    this.#values = new Float32Array(count * (width + stateSize));
  }

  /** A row is about to be forgotten. Before all rows that are noted. */
  forget(key: number, slot: number): void {
    const { width, stateSize, theta, state, changed, decays } = this.#memory;
    this.#forgotten.push({
      ...{ key, changed: changed[slot]!, decay: decays[slot] ?? 0 },
      theta: theta.slice(slot * width, (slot + 1) * width),
      state: state.slice(slot * stateSize, (slot + 1) * stateSize),
    });
  }

  /** Notes what the next row of the push was, but for its values. */
  note(slot: number): void {
    const { changed, decays } = this.#memory;
    const i = this.#count++;
    this.#slots[i] = slot;
    if (slot < 0) return;
    this.#changed[i] = changed[slot]!;
    if (decays.length > 0) this.#decays[i] = decays[slot]!;
  }

  /** Copies the values of the last `count` rows that were noted, which a kernel has left in the room `rows`. */
  keep(count: number): void {
    const { width, stateSize, rows } = this.#memory;
    const size = width + stateSize;
    this.#values.set(rows.subarray(0, count * size), (this.#count - count) * size);
  }

  /**
   * Gives all rows what they had, the last one first: so rows that were forgotten find their slots free, as they left them.
   * @param take is said the slot and the row step of its last change.
   * @param place gives a row that was forgotten its slot back.
   */
  restore(
    take: (slot: number, changed: number) => void,
    place: (key: number, changed: number) => number,
  ): void {
    const { width, stateSize, theta, state, decays } = this.#memory;
    const size = width + stateSize;
    const values = this.#values;
    for (let i = this.#count - 1; i >= 0; i--) {
      const slot = this.#slots[i]!;
      if (slot < 0) continue;
      take(slot, this.#changed[i]!);
      if (decays.length > 0) decays[slot] = this.#decays[i]!;
      theta.set(values.subarray(i * size, i * size + width), slot * width);
      state.set(values.subarray(i * size + width, (i + 1) * size), slot * stateSize);
    }
    this.#count = 0;
    for (const row of this.#forgotten.reverse()) {
      const slot = place(row.key, row.changed);
      if (decays.length > 0) decays[slot] = row.decay;
      theta.set(row.theta, slot * width);
      state.set(row.state, slot * stateSize);
    }
    this.#forgotten = [];
  }
}
