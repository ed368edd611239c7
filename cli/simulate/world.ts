import { DownpourError } from '../../shared/errors.ts';

/** What lies between virtual workers and their server, and who comes and goes when. */

export interface Network {
  /** Latency of each message, one way, ms. */
  readonly latencyMs: number;
  /** Bandwidth of each worker's own line, in each direction, Mbit/s; Infinity: nothing takes time. */
  readonly bandwidth: number;
  /** Bandwidth of the line that the server has for all of them, in each direction, Mbit/s. */
  readonly serverBandwidth: number;
}

export const NO_NETWORK: Network = {
  latencyMs: 0,
  bandwidth: Infinity,
  serverBandwidth: Infinity,
};

/** Each worker is lost now and then, with the gradient that it computes, and comes back as a new process. */
export interface Failures {
  /** Mean time between two of one worker, exponential, s. */
  readonly everySeconds: number;
  /** Mean time that it stays away, exponential, s. */
  readonly awaySeconds: number;
}

/** Workers that come, or go where the number is negative. */
export interface FleetChange {
  readonly atSeconds: number;
  readonly workers: number;
}

/** Time of a message on a line. */
export const transferMs = (bytes: number, mbitPerSecond: number): number =>
  (8 * bytes) / (1_000 * mbitPerSecond);

const NETWORK = {
  latency: 'latencyMs',
  bandwidth: 'bandwidth',
  server: 'serverBandwidth',
} as const;

/** Reads `latency=20,bandwidth=100,server=1000`. @throws DownpourError DP_USAGE. */
export function parseNetwork(text: string): Network {
  const given = parsePairs('--network', text, Object.keys(NETWORK));
  const network: Record<string, number> = { ...NO_NETWORK };
  for (const [name, value] of given) {
    if (value === 0 && name !== 'latency') {
      throw new DownpourError(
        'DP_USAGE',
        `--network has ${name}=0: nothing would ever arrive; allowed: Mbit/s above 0`,
      );
    }
    network[NETWORK[name as keyof typeof NETWORK]] = value;
  }
  return network as unknown as Network;
}

/** Reads `every=600,away=30`. @throws DownpourError DP_USAGE. */
export function parseFailures(text: string): Failures {
  const given = parsePairs('--failures', text, ['every', 'away']);
  const everySeconds = given.get('every') ?? 0;
  if (everySeconds === 0) {
    throw new DownpourError(
      'DP_USAGE',
      `--failures is '${text}': every, the mean seconds between two failures of a worker, must be above 0`,
    );
  }
  return { everySeconds, awaySeconds: given.get('away') ?? 10 };
}

/** Reads `60:+16,120:-8`, seconds and workers. @throws DownpourError DP_USAGE. */
export function parseChanges(text: string): FleetChange[] {
  return text
    .split(',')
    .map((part) => {
      const match = /^\s*(\d+(?:\.\d+)?)\s*:\s*([+-]\d+)\s*$/.exec(part);
      if (!match) {
        throw new DownpourError(
          'DP_USAGE',
          `--change has '${part}'; write seconds:+workers or seconds:-workers, like 60:+16,120:-8`,
        );
      }
      return { atSeconds: Number(match[1]), workers: Number(match[2]) };
    })
    .sort((a, b) => a.atSeconds - b.atSeconds);
}

function parsePairs(option: string, text: string, names: readonly string[]): Map<string, number> {
  const pairs = new Map<string, number>();
  for (const part of text.split(',')) {
    const [name = '', value = ''] = part.split('=').map((piece) => piece.trim());
    const number = value === '' ? Number.NaN : Number(value);
    if (!names.includes(name) || !(number >= 0 && Number.isFinite(number))) {
      throw new DownpourError(
        'DP_USAGE',
        `${option} has '${part}'; allowed: ${names.map((each) => `${each}=number`).join(', ')}, with commas, from 0`,
      );
    }
    pairs.set(name, number);
  }
  return pairs;
}
