/** Writings that idle memory is kept for. Checkpoints of several kinds take turns, each with sizes of its own. */
const IDLE_MAX = 4;

/**
 * Copies of a run's vectors for the thread that writes them. Their memory is shared with it, so nothing is copied
 * once more on the way, and used again: fresh pages cost more than the copy. One write at a time.
 */
export class SharedCopies {
  // Kept here, not left to the collector, which does not know how large shared memory is.
  #idle: { readonly room: Float32Array; readonly writings: number }[] = [];
  #used: Float32Array[] = [];

  /** Bytes that are kept for the next writing. */
  get idleBytes(): number {
    return this.#idle.reduce((sum, { room }) => sum + room.byteLength, 0);
  }

  /** Memory for so many numbers, with anything in it. */
  readonly room = (length: number): Float32Array => {
    const at = this.#idle.findIndex(({ room }) => room.length === length);
    const [idle] = at < 0 ? [] : this.#idle.splice(at, 1);
    const room = idle?.room ?? new Float32Array(new SharedArrayBuffer(4 * length));
    this.#used.push(room);
    return room;
  };

  readonly make = (values: Float32Array): Float32Array => {
    const copy = this.room(values.length);
    copy.set(values);
    return copy;
  };

  /**
   * They have been written. @param keep their memory for the next ones. What was not used for a while goes: rows of a
   * table are as many as have changed, so that each writing may have other sizes.
   */
  written({ keep }: { readonly keep: boolean }): void {
    const idle = this.#idle
      .map(({ room, writings }) => ({ room, writings: writings + 1 }))
      .filter(({ writings }) => writings < IDLE_MAX);
    const used = this.#used.map((room) => ({ room, writings: 0 }));
    this.#idle = keep ? [...used, ...idle] : [];
    this.#used = [];
  }
}
