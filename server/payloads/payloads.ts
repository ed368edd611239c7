import { type DataFacts, encodeFacts } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Header } from '../../wire/connection.ts';
import type { Run } from '../core/run.ts';

/**
 * Which messages of a worker may have a payload, and of what size: as large as the run's, and no larger. A push's is
 * the landing desk's.
 */

/** Of a run whose facts are known, those of other workers may be so much longer, or so many times. */
const FACTS_BYTES_MORE = 2 ** 20;
const FACTS_TIMES = 2;

/**
 * The most that a message's payload may have; 0: none; `nowhere`: whatever it is, the message is not for this run, or
 * nobody has asked for it, and its payload is read past.
 * @param run that the worker was assigned to. @param key of the worker, null: it has not joined.
 */
export function payloadMax(
  { type, run: named, facts }: Header,
  run: Run | null,
  key: string | null,
): number | 'nowhere' {
  if (type !== 'join' && type !== 'initialised') return 0;
  if (!run || run.id !== named) return 'nowhere';
  if (type === 'join') return facts === 'json' ? factsMax(run.facts) : 0;
  const { partLayout } = run;
  return key !== null && partLayout && run.awaitsInitial(key) ? 4 * partLayout.size : 'nowhere';
}

/** @throws DownpourError DP_FRAME_MALFORMED: it may have none; DP_FRAME_TOO_LARGE. */
export function mustFit({ type }: Header, bytes: number, bytesMax: number): void {
  if (bytes <= bytesMax) return;
  // Anything may stand there.
  const name = type.slice(0, 40);
  if (bytesMax === 0) {
    throw new DownpourError(
      'DP_FRAME_MALFORMED',
      `malformed frame: a '${name}' with a payload of ${bytes} bytes; it has none: leave it out`,
    );
  }
  throw new DownpourError(
    'DP_FRAME_TOO_LARGE',
    `a '${name}' with a payload of ${bytes} bytes; at most ${bytesMax} are allowed for this run: send what docs/protocol.md says, and no more`,
  );
}

const lengths = new WeakMap<DataFacts, number>();

function factsMax(known: DataFacts | null): number {
  // Filled up to a multiple of four.
  const most = LIMITS.factsBytesMax + 3;
  if (known === null) return most;
  let length = lengths.get(known);
  if (length === undefined) {
    length = encodeFacts(known).length;
    lengths.set(known, length);
  }
  return Math.min(most, Math.max(length + FACTS_BYTES_MORE, FACTS_TIMES * length));
}
