import { createHash, randomBytes } from 'node:crypto';
import { LIMITS } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { Grant } from './access.ts';

/**
 * For pages, whose WebSocket can send no token: what a request that was let in may show once, soon, in the handshake.
 * Lost with the server, which nobody notices, since a page asks for one before each handshake.
 */
export class Tickets {
  readonly #known = new Map<
    string,
    { readonly until: number; readonly look: () => Grant | null }
  >();

  /**
   * @param look whose it is, asked whenever that matters; null: nobody's any more. @param now monotonic ms.
   * @throws DownpourError DP_LIMIT: too many that nobody has shown.
   */
  issue(look: () => Grant | null, now: number): string {
    // Oldest first.
    for (const [key, { until }] of this.#known) {
      if (until > now) break;
      this.#known.delete(key);
    }
    if (this.#known.size >= LIMITS.ticketCountMax) {
      throw new DownpourError(
        'DP_LIMIT',
        `more than ${LIMITS.ticketCountMax} tickets that nobody uses: wait ${LIMITS.ticketSeconds} s`,
      );
    }
    const ticket = randomBytes(16).toString('base64url');
    this.#known.set(keyOf(ticket), { until: now + 1000 * LIMITS.ticketSeconds, look });
    return ticket;
  }

  /** Takes a ticket for good. @returns whose it is; null: it was never given, is too old or was used. */
  redeem(ticket: string, now: number): (() => Grant | null) | null {
    const key = keyOf(ticket);
    const found = this.#known.get(key);
    this.#known.delete(key);
    return found !== undefined && found.until > now ? found.look : null;
  }
}

/** What is looked up tells nothing of what was guessed right. */
const keyOf = (ticket: string) => createHash('sha256').update(ticket).digest('base64url');
