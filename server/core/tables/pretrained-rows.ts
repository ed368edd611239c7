/** Which slots have rows that began with the values of a file. These rows have a rate of their own and are never forgotten. */
export class PretrainedRows {
  readonly #capacity: number;
  /** 1 for such slots. Empty: no row did. */
  #flags = new Uint8Array();
  #count = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get count(): number {
    return this.#count;
  }

  has(slot: number): boolean {
    return this.#count > 0 && this.#flags[slot] === 1;
  }

  add(slot: number): void {
    if (this.#count === 0) this.#flags = new Uint8Array(this.#capacity);
    this.#count += 1 - this.#flags[slot]!;
    this.#flags[slot] = 1;
  }

  remove(slot: number): void {
    if (!this.has(slot)) return;
    this.#flags[slot] = 0;
    this.#count--;
  }

  clear(): void {
    this.#flags = new Uint8Array();
    this.#count = 0;
  }
}
