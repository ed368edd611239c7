import { createHash, randomBytes } from 'node:crypto';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Grant } from './access.ts';

interface IssuedTicket {
  readonly holder: string;
  readonly until: number;
  readonly look: () => Grant | null;
}

/**
 * For pages, whose WebSocket can send no token: what a request that was let in may show once, soon, in the handshake.
 * Lost with the server, which nobody notices, since a page asks for one before each handshake.
 */
export class Tickets {
  /** Oldest first. */
  readonly #known = new Map<string, IssuedTicket>();
  readonly #counts = new Map<string, number>();

  /**
   * When all are given out, the holder that has most of them loses its oldest; that holder itself gets no more.
   * @param holder of the token. @param look whose it is, asked whenever that matters; null: nobody's any more.
   * @param now monotonic ms.
   * @throws DownpourError DP_LIMIT: too many of this holder that nobody has shown.
   */
  issue(holder: string, look: () => Grant | null, now: number): string {
    for (const [key, { until }] of this.#known) {
      if (until > now) break;
      this.#take(key);
    }
    if (this.#known.size >= LIMITS.ticketCountMax) {
      const [most, count] = [...this.#counts].reduce((a, b) => (b[1] > a[1] ? b : a));
      const own = this.#counts.get(holder) ?? 0;
      if (own + 1 >= count) {
        throw new DownpourError(
          'DP_LIMIT',
          `${own} tickets of this token wait to be used, and all ${LIMITS.ticketCountMax} of the server are issued: wait ${LIMITS.ticketSeconds} s`,
        );
      }
      for (const [key, ticket] of this.#known) {
        if (ticket.holder !== most) continue;
        this.#take(key);
        break;
      }
    }
    const ticket = randomBytes(16).toString('base64url');
    this.#known.set(keyOf(ticket), { holder, until: now + 1000 * LIMITS.ticketSeconds, look });
    this.#counts.set(holder, (this.#counts.get(holder) ?? 0) + 1);
    return ticket;
  }

  /** Takes a ticket for good. @returns whose it is; null: it was never given, is too old or was used. */
  redeem(ticket: string, now: number): (() => Grant | null) | null {
    const found = this.#take(keyOf(ticket));
    return found !== undefined && found.until > now ? found.look : null;
  }

  #take(key: string): IssuedTicket | undefined {
    const found = this.#known.get(key);
    if (!found) return undefined;
    this.#known.delete(key);
    const left = this.#counts.get(found.holder)! - 1;
    if (left > 0) this.#counts.set(found.holder, left);
    else this.#counts.delete(found.holder);
    return found;
  }
}

/** What is looked up tells nothing of what was guessed right. */
const keyOf = (ticket: string) => createHash('sha256').update(ticket).digest('base64url');
