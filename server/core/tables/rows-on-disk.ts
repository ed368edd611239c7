/**
 * What the checkpoint on disk has of a table, so that the next one can have the changes alone: the row step of its moment,
 * and the keys of its rows that have their initial values again. All other news of a row is the row step of its last change.
 */
export class RowsOnDisk {
  /** Null: there is none, or all rows have begun afresh since. */
  #step: number | null = null;
  /** The moment of the checkpoint that is being written. */
  #writing: number | null = null;
  /** Rows that have changed since each of both. */
  #sinceStep = 0;
  #sinceWriting = 0;
  /** Keys of rows that went, and the row step when they did. */
  readonly #gone = new Map<number, number>();
  readonly #goneMax: number;

  /** @param goneMax of more rows that went, the next checkpoint has all rows instead. */
  constructor(goneMax: number) {
    this.#goneMax = goneMax;
  }

  get step(): number | null {
    return this.#step;
  }

  get isWriting(): boolean {
    return this.#writing !== null;
  }

  /** Rows that have changed since. */
  get changed(): number {
    return this.#sinceStep;
  }

  /** Their rows have their initial values again. */
  get gone(): number[] {
    return [...this.#gone.keys()];
  }

  /** A row has changed. @param last row step of its change before, and @param now of this one; 0: it has its initial values. */
  note(last: number, now: number): void {
    const step = this.#step;
    if (step !== null) this.#sinceStep += Number(now > step) - Number(last > step);
    const writing = this.#writing;
    if (writing !== null) this.#sinceWriting += Number(now > writing) - Number(last > writing);
  }

  /** A row has its initial values from now on. */
  removed(key: number, now: number): void {
    if (this.#writing === null && this.#step === null) return;
    this.#gone.set(key, now);
    // Keys may come and go for as long as nothing can be written.
    if (this.#gone.size > this.#goneMax) this.reset();
  }

  /** That was undone. */
  returned(key: number, now: number): void {
    if (this.#gone.get(key) === now) this.#gone.delete(key);
  }

  /** All rows begin afresh: the next checkpoint has all of them, and what is being written is of no use to it. */
  reset(): void {
    this.#step = null;
    this.#writing = null;
    this.#sinceStep = 0;
    this.#gone.clear();
  }

  /** A checkpoint of this moment is being written. */
  begin(rowStep: number): void {
    this.#writing = rowStep;
    this.#sinceWriting = 0;
  }

  /** @param isWritten false: it is not on disk, and the one before is as it was. */
  end(isWritten: boolean): void {
    const writing = this.#writing;
    this.#writing = null;
    if (!isWritten || writing === null) return;
    this.#step = writing;
    this.#sinceStep = this.#sinceWriting;
    for (const [key, at] of this.#gone) if (at <= writing) this.#gone.delete(key);
  }
}
