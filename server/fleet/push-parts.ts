import { bytesOf } from '../../shared/codec.ts';
import type { DownpourError } from '../../shared/errors.ts';
import type { Push } from '../../shared/protocol.ts';
import type { Landing } from '../../wire/connection.ts';
import type { LandingRoom } from '../core/landing-rooms.ts';
import type { InitialLanded, PushPartsLanded } from '../core/run/calls.ts';
import type { Run } from '../core/run.ts';
import { partsMax } from '../core/shard.ts';
import { Gathering, type PushPartReport } from './gathering.ts';

/** Who takes a push, or initial parameters, once all parts have come. */
export interface PushPartsTaker {
  /** The worker works on this run. */
  accepts(run: Run): boolean;
  push(
    run: Run,
    push: Push,
    payload: Uint8Array,
    room: LandingRoom | null,
    others: PushPartsLanded,
  ): void;
  initialised(run: Run, grant: number, payload: Uint8Array, others: InitialLanded): void;
  followUp(run: Run): void;
  fail(error: unknown): void;
}

/** One worker's pushes and initial parameters on their way to several shards: what is whole goes to the run. */
export class PushParts {
  readonly #session: string;
  readonly #taker: PushPartsTaker;
  readonly #gathering: Gathering;

  /** @param session id of the worker's connection, by which the shards know it. */
  constructor(session: string, taker: PushPartsTaker) {
    this.#session = session;
    this.#taker = taker;
    this.#gathering = new Gathering(session);
  }

  /** The first part, with the message. @throws DownpourError DP_LIMIT: the landing stays the caller's. */
  push(
    run: Run,
    push: Push,
    payload: Uint8Array,
    place: { readonly landing: Landing | null; readonly room: LandingRoom | null },
  ): void {
    this.#gathering.push(push, payload, place, partsMax(run.config));
    this.#gathered(run, push.sequence);
  }

  /** The first part of initial parameters; copied. */
  initialised(run: Run, grant: number, values: Float32Array): void {
    this.#gathering.initialised(grant, values);
    this.#initialGathered(run, grant);
  }

  /** Another part of a push has landed on its shard. @returns false: nobody waits for it any more. */
  landed(run: Run, shard: number, report: PushPartReport): boolean {
    if (!this.#taker.accepts(run)) return false;
    try {
      this.#gathering.landed(shard, report, partsMax(run.config));
      this.#gathered(run, report.sequence);
    } catch (error) {
      this.#taker.fail(error);
    }
    return true;
  }

  initialLanded(run: Run, shard: number, grant: number, problem: string | null): void {
    if (!this.#taker.accepts(run)) return;
    this.#gathering.initialLanded(shard, grant, problem);
    this.#initialGathered(run, grant);
  }

  /**
   * Call once a second.
   * @param windowMs in which all parts of a push, or of initial parameters, must have come.
   * @returns why the worker must be closed; null: nothing waits for so long.
   */
  look(windowMs: number): DownpourError | null {
    return this.#gathering.look(windowMs);
  }

  /** The worker leaves the run, not the shards: what it sent them for the run is dropped there. */
  leave(run: Run): void {
    if (this.#gathering.awaitsInitial) run.vector.revokeParts(this.#session);
    for (const sequence of this.#gathering.clear()) run.vector.dropParts(this.#session, sequence);
  }

  /** The worker is gone, from the shards too. */
  clear(): void {
    this.#gathering.clear();
  }

  #gathered(run: Run, sequence: number): void {
    const whole = this.#gathering.take(sequence, run.rangeCount);
    if (!whole) return;
    try {
      this.#taker.push(run, whole.push, whole.payload, whole.room, whole.others);
      this.#taker.followUp(run);
    } finally {
      whole.landing?.release();
    }
  }

  #initialGathered(run: Run, grant: number): void {
    const whole = this.#gathering.takeInitial(grant, run.rangeCount);
    if (!whole) return;
    try {
      this.#taker.initialised(run, grant, bytesOf(whole.values), whole.others);
      this.#taker.followUp(run);
    } catch (error) {
      this.#taker.fail(error);
    }
  }
}
