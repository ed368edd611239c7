import { encodingOf } from '../../shared/compression.ts';
import { type DataFacts, encodeFacts } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Acknowledgement } from '../../shared/protocol.ts';
import type { FrameHeader, PayloadPlace } from '../../wire/connection.ts';
import type { Run } from '../core/run.ts';
import { KEYS_BYTES_MAX, PUSHED_ROWS_BYTES_MAX } from '../core/tables/run-tables.ts';
import { payloadLimits } from '../core/vectors.ts';
import type { LandingDesk } from './landings.ts';

/**
 * Which messages of a worker may have a payload, and of what size: as large as the run's, and no larger. A push's is
 * the landing desk's.
 */

/** Decides where the payloads of one worker's messages land, before they have come. */
export class Payloads {
  readonly #desk: LandingDesk;
  /** Bytes of a push that is larger than any of its run: it was read past. */
  #tooLarge: number | null = null;

  constructor(desk: LandingDesk) {
    this.#desk = desk;
  }

  /**
   * Where a payload is to be.
   * @param payloadBytes null: not known yet.
   * @param run that the worker was assigned to. @param key of the worker, null: it has not joined.
   * @throws DownpourError DP_FRAME_MALFORMED: it may have none; DP_FRAME_TOO_LARGE.
   */
  place(
    header: FrameHeader,
    payloadBytes: number | null,
    run: Run | null,
    key: string | null,
  ): PayloadPlace {
    if (header.type === 'push')
      return this.#placePush(header, payloadBytes, key === null ? null : run);
    const bytesMax = payloadMax(header, run, key);
    if (bytesMax === 'nowhere') return 'nowhere';
    // The length of a browser's fragments is not known before the end.
    const bytes = payloadBytes ?? Math.max(1, bytesMax);
    mustFit(header, bytes, bytesMax);
    if (header.type === 'join') return this.#desk.landFacts(bytes, bytesMax);
    return this.#desk.own(bytes, bytesMax);
  }

  /** What is of no use, since its run is another one or no push of it is so large, is read past. */
  #placePush(header: FrameHeader, payloadBytes: number | null, run: Run | null): PayloadPlace {
    if (!run?.rangeLayout || header.run !== run.id) return 'nowhere';
    const limits = payloadLimits(run.rangeLayout);
    const { roomBytes } = limits;
    const bytesMax = limits.bytesMax + (run.tables ? PUSHED_ROWS_BYTES_MAX : 0);
    const bytes = payloadBytes ?? roomBytes;
    this.#tooLarge = null;
    if (bytes > bytesMax) {
      this.#tooLarge = bytes;
      return 'nowhere';
    }
    return this.#desk.land({
      run,
      bytes,
      roomBytes,
      bytesMax,
      // One with a name of its own would be named anew by the loader, for each push.
      take: (size) => run.land(size, encodingOf(header)),
    });
  }

  /** Explains the answer where the payload was read past: the run has seen nothing of it. */
  explain(run: Run, acknowledgement: Acknowledgement): Acknowledgement {
    const bytes = this.#tooLarge;
    if (bytes === null) return acknowledgement;
    this.#tooLarge = null;
    if (acknowledgement.code !== 'DP_TENSOR_SIZE') return acknowledgement;
    const bytesMax =
      payloadLimits(run.rangeLayout!).bytesMax + (run.tables ? PUSHED_ROWS_BYTES_MAX : 0);
    const message = `the push has a payload of ${bytes} bytes; the largest of this run's layout has ${bytesMax}: send gradients of the model that the run has`;
    return { ...acknowledgement, message };
  }
}

/** Where a run's facts are known, those of other workers may be so much longer, or so many times as long. */
const FACTS_BYTES_MORE = 2 ** 20;
const FACTS_TIMES = 2;

/**
 * The most that a message's payload may have; 0: none; `nowhere`: whatever it is, the message is not for this run, or
 * nobody has asked for it, and its payload is read past.
 * @param run that the worker was assigned to. @param key of the worker, null: it has not joined.
 */
function payloadMax(
  { type, run: named, facts }: FrameHeader,
  run: Run | null,
  key: string | null,
): number | 'nowhere' {
  if (type === 'pullRows' || type === 'initialRows') {
    if (!run?.tables || key === null || run.id !== named) return 'nowhere';
    if (type === 'pullRows') return KEYS_BYTES_MAX;
    return run.awaitsInitial(key) ? KEYS_BYTES_MAX + LIMITS.rowBytesMax : 'nowhere';
  }
  if (type !== 'join' && type !== 'initialised') return 0;
  if (!run || run.id !== named) return 'nowhere';
  if (type === 'join') return facts === 'json' ? factsMax(run.facts) : 0;
  const { rangeLayout } = run;
  return key !== null && rangeLayout && run.awaitsInitial(key) ? 4 * rangeLayout.size : 'nowhere';
}

/** @throws DownpourError DP_FRAME_MALFORMED: it may have none; DP_FRAME_TOO_LARGE. */
export function mustFit({ type }: FrameHeader, bytes: number, bytesMax: number): void {
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
