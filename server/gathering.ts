import { DownpourError } from '../shared/errors.ts';
import type { Push } from '../shared/protocol.ts';
import type { Landing } from '../wire/connection.ts';
import type { PartsLanded } from './core/run.ts';
import { PARTS_MAX } from './core/shard.ts';

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

  /** The first part, with the message. */
  push(push: Push, payload: Uint8Array, landing: Landing | null): void {
    const gathered = this.#of(push.sequence);
    if (gathered.push) {
      // Sent again over the same connection: the first one counts.
      landing?.release();
      return;
    }
    Object.assign(gathered, { push, payload, landing });
  }

  /** Another part has landed on its shard. */
  landed(shard: number, sequence: number, squares: number, problem: string | null): void {
    const gathered = this.#of(sequence);
    if (gathered.shards.has(shard)) return;
    gathered.shards.add(shard);
    gathered.squares += squares;
    gathered.problem ??= problem;
  }

  /** @param parts of a push. @returns a push that is whole, once; its landing is the caller's now. */
  take(sequence: number, parts: number): Whole | null {
    const gathered = this.#pushes.get(sequence);
    if (!gathered?.push || !gathered.payload || gathered.shards.size < parts - 1) return null;
    this.#pushes.delete(sequence);
    const { push, payload, landing, squares, problem } = gathered;
    return { push, payload, landing, others: { session: this.#session, squares, problem } };
  }

  /** The first part of initial parameters; copied. */
  initialised(grant: number, values: Float32Array): void {
    this.#initialOf(grant).values = values.slice();
  }

  initialLanded(shard: number, grant: number, finite: boolean): void {
    const initial = this.#initialOf(grant);
    initial.shards.add(shard);
    initial.finite &&= finite;
  }

  takeInitial(
    grant: number,
    parts: number,
  ): { values: Float32Array; others: { session: string; finite: boolean } } | null {
    const initial = this.#initialOf(grant);
    if (!initial.values || initial.shards.size < parts - 1) return null;
    this.#initial = null;
    const { values, finite } = initial;
    return { values, others: { session: this.#session, finite } };
  }

  /** Lets go of all that nobody has decided about. @returns the sequences of such pushes. */
  clear(): number[] {
    const sequences = [...this.#pushes.keys()];
    for (const { landing } of this.#pushes.values()) landing?.release();
    this.#pushes.clear();
    this.#initial = null;
    return sequences;
  }

  #of(sequence: number): Gathered {
    let gathered = this.#pushes.get(sequence);
    if (!gathered) {
      if (this.#pushes.size >= PARTS_MAX) {
        throw new DownpourError(
          'DP_LIMIT',
          `${this.#pushes.size} pushes of this worker wait for their parts; at most ${PARTS_MAX} may`,
        );
      }
      gathered = {
        ...{ push: null, payload: null, landing: null },
        ...{ shards: new Set(), squares: 0, problem: null },
      };
      this.#pushes.set(sequence, gathered);
    }
    return gathered;
  }

  #initialOf(grant: number) {
    if (this.#initial?.grant !== grant) {
      this.#initial = { grant, values: null, shards: new Set(), finite: true };
    }
    return this.#initial;
  }
}

interface Gathered {
  push: Push | null;
  payload: Uint8Array | null;
  landing: Landing | null;
  /** On which parts have landed. */
  readonly shards: Set<number>;
  squares: number;
  problem: string | null;
}

interface Initial {
  readonly grant: number;
  values: Float32Array | null;
  readonly shards: Set<number>;
  finite: boolean;
}

/** A push of which all parts are there. */
export interface Whole {
  readonly push: Push;
  readonly payload: Uint8Array;
  readonly landing: Landing | null;
  readonly others: PartsLanded;
}
