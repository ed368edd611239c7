/**
 * Copies of a run's vectors for the thread that writes them. Their memory is shared with it, so nothing is copied
 * once more on the way, and used again: fresh pages cost more than the copy. One write at a time.
 */
export class SharedCopies {
  // Kept here, not left to the collector, which does not know how large shared memory is.
  #idle: Float32Array[] = [];
  #used: Float32Array[] = [];

  readonly make = (values: Float32Array): Float32Array => {
    const at = this.#idle.findIndex(({ length }) => length === values.length);
    const [copy = new Float32Array(new SharedArrayBuffer(values.byteLength))] =
      at < 0 ? [] : this.#idle.splice(at, 1);
    copy.set(values);
    this.#used.push(copy);
    return copy;
  };

  /** They have been written. @param keep their memory for the next ones. */
  written({ keep }: { readonly keep: boolean }): void {
    this.#idle = keep ? [...this.#idle, ...this.#used] : [];
    this.#used = [];
  }
}
