import { DownpourError } from '../../shared/errors.ts';
import type { Push } from '../../shared/protocol.ts';
import type { Landing } from '../../wire/connection.ts';
import type { LandingRoom } from '../core/landing-rooms.ts';
import type { InitialLanded, PushPartsLanded, RowsLanded } from '../core/run/calls.ts';

/**
 * The parts of one worker's messages that go to several shards at once. They come in any order, each from
 * another connection; the run decides when all of them are there.
 */
export class Gathering {
  readonly #session: string;
  readonly #pushes = new Map<number, Gathered>();
  #initial: Initial | null = null;

  constructor(session: string) {
    this.#session = session;
  }

  /**
   * The first part, with the message.
   * @param most pushes that may wait. @throws DownpourError DP_LIMIT: there are more; the landing stays the caller's.
   */
  push(
    push: Push,
    payload: Uint8Array,
    { landing, room }: { readonly landing: Landing | null; readonly room: LandingRoom | null },
    most: number,
  ): void {
    const gathered = this.#of(push.sequence, most);
    if (gathered.push) {
      // Sent again over the same connection: the first one counts.
      landing?.release();
      return;
    }
    Object.assign(gathered, { push, payload, landing, room });
  }

  /** Another part has landed on its shard. @param most as in `push`. @throws DownpourError DP_LIMIT. */
  landed(shard: number, { sequence, squares, problem, rows }: PushPartReport, most: number): void {
    const gathered = this.#of(sequence, most);
    if (gathered.shards.has(shard)) return;
    gathered.shards.add(shard);
    gathered.squares += squares;
    gathered.problem ??= problem;
    if (rows) gathered.rows = [...(gathered.rows ?? []), rows];
  }

  /** @param parts of a push. @returns a push that is whole, once; its landing is the caller's now. */
  take(sequence: number, parts: number): Whole | null {
    const gathered = this.#pushes.get(sequence);
    if (!gathered?.push || !gathered.payload || gathered.shards.size < parts - 1) return null;
    this.#pushes.delete(sequence);
    const { push, payload, landing, room, squares, problem, rows } = gathered;
    const others = { session: this.#session, squares, problem, ...(rows && { rows }) };
    return { push, payload, landing, room, others };
  }

  /** The first part of initial parameters; copied. */
  initialised(grant: number, values: Float32Array): void {
    this.#initialOf(grant).values = values.slice();
  }

  initialLanded(shard: number, grant: number, problem: string | null): void {
    const initial = this.#initialOf(grant);
    initial.shards.add(shard);
    initial.problem ??= problem;
  }

  takeInitial(
    grant: number,
    parts: number,
  ): { values: Float32Array; others: InitialLanded } | null {
    const initial = this.#initialOf(grant);
    if (!initial.values || initial.shards.size < parts - 1) return null;
    this.#initial = null;
    const { values, problem } = initial;
    return { values, others: { session: this.#session, problem } };
  }

  /** Initial parameters wait for some of their parts. */
  get awaitsInitial(): boolean {
    return this.#initial !== null;
  }

  /** Lets go of all that nobody has decided about. @returns the sequences of such pushes. */
  clear(): number[] {
    const sequences = [...this.#pushes.keys()];
    for (const { landing } of this.#pushes.values()) landing?.release();
    this.#pushes.clear();
    this.#initial = null;
    return sequences;
  }

  /**
   * What waits grows older by one look. Call about once a second.
   * @param windowMs in which all parts of a push must have come.
   * @returns why the worker must be closed; null: nothing waits for so long.
   */
  look(windowMs: number): DownpourError | null {
    let oldest = { what: '', looks: 0 };
    for (const [sequence, gathered] of this.#pushes) {
      const looks = ++gathered.looks;
      if (looks <= oldest.looks) continue;
      const missing = gathered.push ? 'some of its parts' : 'the push itself';
      oldest = { what: `push ${sequence} waits for ${missing}`, looks };
    }
    const initial = this.#initial;
    if (initial && ++initial.looks > oldest.looks) {
      oldest = { what: 'initial parameters wait for some of their parts', looks: initial.looks };
    }
    if (1000 * (oldest.looks - 1) <= windowMs) return null;
    const seconds = windowMs / 1000;
    return new DownpourError(
      'DP_SLOW_SENDER',
      `${oldest.what} for more than ${seconds} s: parts of a push go to all shards at once; connect again and send it once more`,
    );
  }

  #of(sequence: number, most: number): Gathered {
    let gathered = this.#pushes.get(sequence);
    if (!gathered) {
      if (this.#pushes.size >= most) {
        throw new DownpourError(
          'DP_LIMIT',
          `${this.#pushes.size} pushes of this worker wait for their parts; at most ${most} may: send each push to all shards, and wait for its answer`,
        );
      }
      gathered = {
        ...{ push: null, payload: null, landing: null, room: null, looks: 0 },
        ...{ shards: new Set(), squares: 0, problem: null, rows: null },
      };
      this.#pushes.set(sequence, gathered);
    }
    return gathered;
  }

  #initialOf(grant: number) {
    if (this.#initial?.grant !== grant) {
      this.#initial = { grant, values: null, shards: new Set(), problem: null, looks: 0 };
    }
    return this.#initial;
  }
}

interface Gathered {
  push: Push | null;
  payload: Uint8Array | null;
  landing: Landing | null;
  room: LandingRoom | null;
  /** On which parts have landed. */
  readonly shards: Set<number>;
  squares: number;
  problem: string | null;
  /** Null: no part has rows. */
  rows: readonly RowsLanded[] | null;
  looks: number;
}

/** What a shard says of a part that has landed there. */
export interface PushPartReport {
  readonly sequence: number;
  readonly squares: number;
  readonly problem: string | null;
  readonly rows?: RowsLanded;
}

interface Initial {
  readonly grant: number;
  values: Float32Array | null;
  readonly shards: Set<number>;
  problem: string | null;
  looks: number;
}

/** A push of which all parts are there. */
export interface Whole {
  readonly push: Push;
  readonly payload: Uint8Array;
  readonly landing: Landing | null;
  readonly room: LandingRoom | null;
  readonly others: PushPartsLanded;
}
