import type { Connection, Landing } from '../wire/connection.ts';

/** Who waits for room for a push, the longest waiting first. */
export class WaitingLine {
  readonly #waiting = new Set<LandingDesk>();

  await(desk: LandingDesk): void {
    this.#waiting.add(desk);
  }

  leave(desk: LandingDesk): void {
    this.#waiting.delete(desk);
  }

  /** There is room for one more push. */
  freed(room: unknown): void {
    for (const desk of this.#waiting) {
      if (desk.room !== room) continue;
      this.#waiting.delete(desk);
      // Not within the push that has just been dealt with.
      queueMicrotask(() => desk.retry(false));
      return;
    }
  }

  /** Once a second. */
  tick(): void {
    for (const desk of [...this.#waiting]) {
      this.#waiting.delete(desk);
      desk.retry(true);
    }
  }
}

/** A push's room: who waits for one is told when it is free. */
class Landed implements Landing {
  readonly bytes: Uint8Array;
  readonly #landing: Landing;
  readonly #line: WaitingLine;
  readonly #room: unknown;

  constructor(landing: Landing, line: WaitingLine, room: unknown) {
    this.bytes = landing.bytes;
    this.#landing = landing;
    this.#line = line;
    this.#room = room;
  }

  came(bytes: number): void {
    this.#landing.came?.(bytes);
  }

  release(): void {
    this.#landing.release();
    this.#line.freed(this.#room);
  }
}

/** Where the pushes of one connection land: in their run's memory when there is room. */
export class LandingDesk {
  readonly #line: WaitingLine;
  readonly #connection: Pick<Connection, 'retry'>;
  /** The run that its connection, which stands still until then, wants room of. */
  room: unknown = null;
  #impatient = false;
  /** For a push that could not wait, or that is larger than a room. */
  #memory: Uint8Array | null = null;

  constructor(line: WaitingLine, connection: Pick<Connection, 'retry'>) {
    this.#line = line;
    this.#connection = connection;
  }

  /**
   * @param room the run. @param take room of it, null: there is none now. @param roomBytes of a room; what
   *   is larger need not wait for one. @param kept the payload stays in use after its message.
   */
  land(
    room: unknown,
    bytes: number,
    take: (bytes: number) => Landing | null,
    { roomBytes, kept }: { readonly roomBytes: number; readonly kept: boolean },
  ): Landing | 'wait' {
    const landing = take(bytes);
    if (landing) return new Landed(landing, this.#line, room);
    if (bytes <= roomBytes && !this.#impatient) {
      this.room = room;
      this.#line.await(this);
      return 'wait';
    }
    this.#impatient = false;
    if (kept) return { bytes: new Uint8Array(bytes), release: () => {} };
    if (!this.#memory || this.#memory.length < bytes) this.#memory = new Uint8Array(bytes);
    return { bytes: this.#memory.subarray(0, bytes), release: () => {} };
  }

  /**
   * Asks again for the room that its push waits for.
   * @param impatient it has waited long enough, behind a worker that stalls: any memory will do.
   */
  retry(impatient: boolean): void {
    if (impatient) this.#impatient = true;
    this.#connection.retry();
  }

  /** The connection is lost. */
  leave(): void {
    this.#line.leave(this);
  }
}
