import type { Connection } from '../wire/connection.ts';

/** How long a server that stands still is waited for. */
export interface Patience {
  readonly beatMs: number;
  readonly silenceMs: number;
}

/** Pings a server, and ends the connection to one that is silent for too long. */
export class Heartbeat {
  readonly #now: () => number;
  readonly #patience: () => Patience;
  readonly #beaten: (held: boolean) => void;
  #timer: NodeJS.Timeout | null = null;
  #lastSeen = 0;
  #lastBeat = 0;

  /** @param now monotonic ms. @param beaten at each beat; `held`: this process was held up since the last one. */
  constructor(now: () => number, patience: () => Patience, beaten: (held: boolean) => void) {
    this.#now = now;
    this.#patience = patience;
    this.#beaten = beaten;
  }

  /** Begins anew when the patience has changed. */
  start(connection: Connection): void {
    this.stop();
    this.#lastBeat = this.#now();
    this.#timer = setInterval(() => this.#beat(connection), this.#patience().beatMs);
  }

  stop(): void {
    if (this.#timer) clearInterval(this.#timer);
    this.#timer = null;
  }

  /** Something has come from the server. */
  seen(): void {
    this.#lastSeen = this.#now();
  }

  #beat(connection: Connection): void {
    const now = this.#now();
    const { beatMs, silenceMs } = this.#patience();
    // A computation held the process up: what has arrived meanwhile has not been read yet.
    const held = now - this.#lastBeat > 2 * beatMs;
    this.#lastBeat = now;
    if (held) this.#lastSeen = now;
    this.#beaten(held);
    if (now - this.#lastSeen > silenceMs) connection.terminate();
    else connection.ping();
  }
}
