import type { Connection } from '../../wire/connection.ts';

/** What messages of workers are passed on to. What it has not taken waits in the memory of this process. */
export interface Backlog {
  /** Too much waits: nothing more is to be passed on. */
  readonly isFull: boolean;
  /** Calls back once, when there is room again, or nothing waits any more. */
  whenRoom(act: () => void): void;
}

/** A connection that is not read for as long as somebody wants it so. */
export class Brakes {
  readonly #connection: Pick<Connection, 'halt' | 'goOn'>;
  readonly #backlogs = new Set<Backlog>();
  #count = 0;
  #isGone = false;

  constructor(connection: Pick<Connection, 'halt' | 'goOn'>) {
    this.#connection = connection;
  }

  /** A backlog is waited for. */
  get waits(): boolean {
    return this.#backlogs.size > 0;
  }

  /** To be called within an event, as `Connection.halt`; `goOn` follows, once. */
  halt(): void {
    if (this.#count++ === 0) this.#connection.halt();
  }

  goOn(): void {
    if (--this.#count === 0 && !this.#isGone) this.#connection.goOn();
  }

  /** The connection is gone: what it has sent and nobody has read is of no use. */
  leave(): void {
    this.#isGone = true;
  }

  /** To be called within an event: nothing more is read while a backlog is full. */
  yieldTo(backlog: Backlog | null): void {
    if (!backlog?.isFull || this.#backlogs.has(backlog)) return;
    this.#backlogs.add(backlog);
    this.halt();
    backlog.whenRoom(() => {
      this.#backlogs.delete(backlog);
      this.goOn();
    });
  }
}
