import type { Landing } from '../wire/connection.ts';

/** A connection whose push waits for room; it stands still until then. */
export interface Waiter {
  /** The run that it wants room of. */
  readonly room: unknown;
  /** @param impatient it has waited long enough, behind a worker that stalls: any memory will do. */
  retryLanding(impatient: boolean): void;
}

/** Who waits for room for a push, the longest waiting first. */
export class WaitingLine {
  readonly #waiting = new Set<Waiter>();

  await(waiter: Waiter): void {
    this.#waiting.add(waiter);
  }

  leave(waiter: Waiter): void {
    this.#waiting.delete(waiter);
  }

  /** A run has room for one more push. */
  freed(room: unknown): void {
    for (const waiter of this.#waiting) {
      if (waiter.room !== room) continue;
      this.#waiting.delete(waiter);
      // Not within the push that has just been dealt with.
      queueMicrotask(() => waiter.retryLanding(false));
      return;
    }
  }

  /** Once a second. */
  tick(): void {
    for (const waiter of [...this.#waiting]) {
      this.#waiting.delete(waiter);
      waiter.retryLanding(true);
    }
  }
}

/** Where the pushes of one connection land: in their run's memory when there is room. */
export class LandingDesk {
  readonly #line: WaitingLine;
  readonly #waiter: Waiter;
  #impatient = false;
  /** For a push that could not wait, or that is larger than a room. */
  #memory: Uint8Array | null = null;

  constructor(line: WaitingLine, waiter: Waiter) {
    this.#line = line;
    this.#waiter = waiter;
  }

  /**
   * @param take room of the run, null: there is none now. @param roomBytes of a room; what is larger
   *   need not wait for one. @param kept the payload stays in use after its message.
   */
  land(
    bytes: number,
    take: (bytes: number) => Landing | null,
    { roomBytes, kept }: { readonly roomBytes: number; readonly kept: boolean },
  ): Landing | 'wait' {
    const landing = take(bytes);
    if (landing) {
      const { room } = this.#waiter;
      return {
        bytes: landing.bytes,
        release: () => {
          landing.release();
          this.#line.freed(room);
        },
      };
    }
    if (bytes <= roomBytes && !this.#impatient) {
      this.#line.await(this.#waiter);
      return 'wait';
    }
    this.#impatient = false;
    if (kept) return { bytes: new Uint8Array(bytes), release: () => {} };
    if (!this.#memory || this.#memory.length < bytes) this.#memory = new Uint8Array(bytes);
    return { bytes: this.#memory.subarray(0, bytes), release: () => {} };
  }

  /** The next landing does not wait. */
  hurry(): void {
    this.#impatient = true;
  }
}
