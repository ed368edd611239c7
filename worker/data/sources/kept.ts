/** What was decoded last, up to a number of bytes; what was used longest ago goes first. */

interface DecodedEntry<V> {
  readonly value: Promise<V>;
  bytes: number;
}

export class Kept<K, V> {
  readonly #bytesMax: number;
  /** A Map keeps the order in which entries came: the oldest first. */
  readonly #entries = new Map<K, DecodedEntry<V>>();
  #bytes = 0;
  /** Values that had to be made. */
  misses = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Whether it is there, or on its way. */
  has(key: K): boolean {
    return this.#entries.has(key);
  }

  /**
   * The value of a key; two callers wait for one making. A value that could not be made is made again for the next caller.
   * @param bytes that it takes; with more than all that may be kept it is kept alone, until the next one comes
   */
  get(key: K, bytes: number, make: () => Promise<V>): Promise<V> {
    const known = this.#entries.get(key);
    if (known) {
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known.value;
    }
    this.misses++;
    this.#bytes += bytes;
    for (const [old, entry] of this.#entries) {
      if (this.#bytes <= this.#bytesMax) break;
      this.#entries.delete(old);
      this.#bytes -= entry.bytes;
    }
    const entry: DecodedEntry<V> = { value: make(), bytes };
    this.#entries.set(key, entry);
    entry.value.catch(() => {
      if (this.#entries.get(key) !== entry) return;
      this.#entries.delete(key);
      this.#bytes -= bytes;
    });
    return entry.value;
  }
}
