/** Where rows begin: those of a file, in 4.2 bytes a row. */

/** Rows between two of which the whole offset is kept. */
const STRIDE = 64;

export class Offsets {
  #bases = new Float64Array(16);
  #deltas = new Uint32Array(1024);
  length = 0;

  /** @param at at or behind the one before it. @returns false: it is 4 GiB or more behind its neighbours */
  push(at: number): boolean {
    const base = Math.floor(this.length / STRIDE);
    if (this.length % STRIDE === 0) {
      if (base === this.#bases.length) this.#bases = grown(this.#bases);
      this.#bases[base] = at;
    }
    const delta = at - this.#bases[base]!;
    if (delta >= 2 ** 32) return false;
    if (this.length === this.#deltas.length) this.#deltas = grown(this.#deltas);
    this.#deltas[this.length++] = delta;
    return true;
  }

  /** @param i below `length` */
  at(i: number): number {
    return this.#bases[Math.floor(i / STRIDE)]! + this.#deltas[i]!;
  }

  /** Gives back the room that was not needed. */
  trim(): void {
    this.#bases = this.#bases.slice(0, Math.ceil(this.length / STRIDE));
    this.#deltas = this.#deltas.slice(0, this.length);
  }
}

/** The last place whose start is not above a number. @param starts in order, the first at most `at` */
export function lastNotAbove(starts: ArrayLike<number>, at: number): number {
  let [low, high] = [0, starts.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle]! <= at) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Half as large again: at most a third is unused while the file is read. */
function grown<T extends Float64Array | Uint32Array>(array: T): T {
  const larger = new (array.constructor as new (length: number) => T)(
    Math.ceil(array.length * 1.5),
  );
  larger.set(array);
  return larger;
}
