import type { Push } from '../shared/protocol.ts';
import type { Landing } from '../wire/connection.ts';
import type { PartsLanded } from './core/run.ts';

/**
 * The parts of one worker's messages that go to several shards at once. They come in any order, each from
 * another connection; the run decides when all of them are there.
 */
export class Gathering {
  readonly #session: string;
  readonly #pushes = new Map<number, Gathered>();
  #initial: { grant: number; values: Float32Array | null; parts: number; finite: boolean } | null =
    null;

  constructor(session: string) {
    this.#session = session;
  }

  /** The first part, with the message. */
  push(push: Push, payload: Uint8Array, landing: Landing | null): void {
    const gathered = this.#of(push.sequence);
    // Sent twice over one connection: the older one goes.
    gathered.landing?.release();
    Object.assign(gathered, { push, payload, landing });
  }

  /** Another part has landed on its shard. */
  landed(sequence: number, squares: number, problem: string | null): void {
    const gathered = this.#of(sequence);
    gathered.parts++;
    gathered.squares += squares;
    gathered.problem ??= problem;
  }

  /** @param parts of a push. @returns a push that is whole, once; its landing is the caller's now. */
  take(sequence: number, parts: number): Whole | null {
    const gathered = this.#pushes.get(sequence);
    if (!gathered?.push || !gathered.payload || gathered.parts < parts - 1) return null;
    this.#pushes.delete(sequence);
    const { push, payload, landing, squares, problem } = gathered;
    return { push, payload, landing, others: { session: this.#session, squares, problem } };
  }

  /** The first part of initial parameters; copied. */
  initialised(grant: number, values: Float32Array): void {
    this.#initialOf(grant).values = values.slice();
  }

  initialLanded(grant: number, finite: boolean): void {
    const initial = this.#initialOf(grant);
    initial.parts++;
    initial.finite &&= finite;
  }

  takeInitial(
    grant: number,
    parts: number,
  ): { values: Float32Array; others: { session: string; finite: boolean } } | null {
    const initial = this.#initialOf(grant);
    if (!initial.values || initial.parts < parts - 1) return null;
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
      gathered = { push: null, payload: null, landing: null, parts: 0, squares: 0, problem: null };
      this.#pushes.set(sequence, gathered);
    }
    return gathered;
  }

  #initialOf(grant: number) {
    if (this.#initial?.grant !== grant) {
      this.#initial = { grant, values: null, parts: 0, finite: true };
    }
    return this.#initial;
  }
}

interface Gathered {
  push: Push | null;
  payload: Uint8Array | null;
  landing: Landing | null;
  /** That have landed on other shards. */
  parts: number;
  squares: number;
  problem: string | null;
}

/** A push of which all parts are there. */
export interface Whole {
  readonly push: Push;
  readonly payload: Uint8Array;
  readonly landing: Landing | null;
  readonly others: PartsLanded;
}
