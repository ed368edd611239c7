import { DownpourError } from '../shared/errors.ts';
import type { ServerAddress } from '../shared/message-fields.ts';

/** The servers that a worker may ask: those that were named, and those that they have told of. */
export class Servers {
  /** The one that is asked now. */
  url: string;
  readonly #named: readonly string[];
  #told: readonly string[] = [];
  /** So many of them have been asked in vain since the last pause. */
  #asked = 0;

  /** @param servers one, or several with commas between them. @throws DownpourError DP_USAGE: one is not an address. */
  constructor(servers: string) {
    this.#named = servers.split(',').map((server) => socketUrl(server.trim()));
    this.url = this.#named[0]!;
  }

  /** Whom else to ask, the next one first. */
  get others(): string[] {
    const all = [...new Set([...this.#named, ...this.#told, this.url])];
    const at = all.indexOf(this.url);
    return [...all.slice(at + 1), ...all.slice(0, at)];
  }

  /** The one that is asked now says where its standby is. */
  tell(addresses: readonly ServerAddress[]): void {
    this.#told = addresses.map((address) => besideOf(this.url, address));
  }

  /** The one that is asked now lets the worker in. */
  reached(): void {
    this.#asked = 0;
  }

  /** Goes on to the next one. @returns false: all were asked since the last pause, so one is due. */
  goOn(): boolean {
    const { others } = this;
    if (others.length > 0) {
      this.url = others[0]!;
      if (++this.#asked <= others.length) return true;
    }
    this.#asked = 0;
    return false;
  }
}

/**
 * Pauses between attempts to connect, ms, before the jitter: the first, the longest, and the longest
 * while the server has not been away for `awayShare` times as long.
 */
export const BACKOFF = { firstMs: 250, maxMs: 15_000, soonMs: 1_000, awayShare: 8 } as const;

/**
 * The pause before attempt `attempt` (0-based): uniform between 0 and an exponentially growing
 * limit, so that the workers of a cluster do not all come back at the same moment. The limit is an
 * eighth of the time that the server has been away: one that comes back after a few seconds, as after
 * a crash, has its workers within one.
 */
export function backoffMs(attempt: number, random: () => number, awayMs: number): number {
  const { firstMs, maxMs, soonMs, awayShare } = BACKOFF;
  const doubled = firstMs * 2 ** Math.min(attempt, 20);
  return random() * Math.min(maxMs, doubled, Math.max(soonMs, awayMs / awayShare));
}

/** @throws DownpourError DP_USAGE: not an address of a server. */
export function socketUrl(server: string): string {
  let url: URL;
  try {
    url = new URL(/^[a-z]+:\/\//.test(server) ? server : `ws://${server}`);
  } catch (cause) {
    throw badAddress(server, cause);
  }
  if (url.protocol === 'http:') url.protocol = 'ws:';
  if (url.protocol === 'https:') url.protocol = 'wss:';
  if (url.protocol !== 'ws:' && url.protocol !== 'wss:') throw badAddress(server);
  // What stands before it is of an app that the server is part of, or of a proxy.
  if (!url.pathname.endsWith('/ws')) url.pathname = `${url.pathname.replace(/\/$/, '')}/ws`;
  return url.href;
}

const badAddress = (server: string, cause?: unknown) =>
  new DownpourError(
    'DP_USAGE',
    `'${server}' is not the address of a server; write it like ws://host:7420`,
    { cause },
  );

/** The address of a standby, as seen by who has reached the primary at `url`. */
function besideOf(url: string, { host, port }: ServerAddress): string {
  const beside = new URL(url);
  if (host !== null) beside.hostname = host.includes(':') ? `[${host}]` : host;
  beside.port = String(port);
  return beside.href;
}
