/**
 * Goes over the slots of a table in pieces, while pushes are applied between them, and copies those that are wanted. What is
 * copied is one moment all the same: a row that is about to change before its turn is copied first.
 */

/** Numbers that are copied at once, and slots that are looked at: about 2 ms. */
export const PIECE_ELEMENTS = 2 ** 20;
const PIECE_SLOTS = 2 ** 18;

export abstract class SlotWalk {
  /** Rows that are copied at once. */
  readonly #pieceRows: number;
  readonly #slots: number;
  /** Slots whose rows were copied before their turn, a bit for each. */
  readonly #taken: Uint8Array;
  /** The next slot. */
  #slot = 0;

  /** @param slots as many as there are. @param rowElements what a row takes of a piece. */
  constructor(slots: number, rowElements: number) {
    this.#slots = slots;
    this.#pieceRows = Math.max(1, Math.floor(PIECE_ELEMENTS / rowElements));
    this.#taken = new Uint8Array(Math.ceil(slots / 8));
  }

  /** Its row is of the moment, if it has not been copied yet. */
  protected abstract isOfMoment(slot: number): boolean;

  /** Copies the rows of neighbouring slots. */
  protected abstract copySlots(first: number, count: number): void;

  #isWanted(slot: number): boolean {
    return this.isOfMoment(slot) && (this.#taken[slot >> 3]! & (1 << (slot & 7))) === 0;
  }

  /** The row of a slot is about to change. */
  before(slot: number): void {
    if (slot < this.#slot || !this.#isWanted(slot)) return;
    this.copySlots(slot, 1);
    this.#taken[slot >> 3]! |= 1 << (slot & 7);
  }

  /** Copies a piece. @returns rows that there is still time for; null: some slots are left. */
  protected walk(): number | null {
    const last = Math.min(this.#slots, this.#slot + PIECE_SLOTS);
    let left = this.#pieceRows;
    while (this.#slot < last && left > 0) {
      const first = this.#slot;
      let end = first;
      // Neighbours are copied at once.
      while (end < last && end - first < left && this.#isWanted(end)) end++;
      if (end === first) this.#slot++;
      else {
        this.copySlots(first, end - first);
        left -= end - first;
        this.#slot = end;
      }
    }
    return this.#slot < this.#slots ? null : left;
  }

  /** Copies a piece. @returns false: all is copied. */
  abstract more(): boolean;

  finish(): void {
    while (this.more());
  }
}
