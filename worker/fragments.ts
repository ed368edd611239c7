import { type FragmentPiece, fragmentPieces, pieceSize } from '../shared/fragments.ts';
import type { Layout } from '../shared/layout.ts';
import type { Range } from '../shared/partition.ts';

/**
 * The parameters of a worker that exchanges them by fragments: they stay its own from lease to lease, and each answer puts
 * the server's values in the place of the fragment that was pushed. Beside them are the values that each fragment was read
 * with: what is pushed is the change since then.
 */
export class FragmentedParameters {
  /** Pieces of each fragment, one for each shard. */
  readonly #pieces: readonly (readonly FragmentPiece[])[];
  readonly #trainable: number;
  /** The server's, as each fragment was read last; shape [exchangedSize]. */
  readonly base: Float32Array;
  /** The worker's own before the lease under way, shape [exchangedSize]. */
  readonly own: Float32Array;
  #isBegun = false;
  /** The push under way: its fragment, and the worker's own parameters after its steps. */
  #pushed: { readonly fragment: number; readonly after: Float32Array } | null = null;
  /** The fragment that the server has taken in, and that the next answer brings anew; null: none. */
  #taken: number | null = null;

  /** @param ranges of the shards. */
  constructor(
    layout: Pick<Layout, 'trainableSize' | 'exchangedSize'>,
    ranges: readonly Range[],
    count: number,
  ) {
    const { trainableSize, exchangedSize } = layout;
    this.#trainable = trainableSize;
    this.#pieces = Array.from({ length: count }, (_, index) =>
      fragmentPieces(layout, ranges, { index, count }),
    );
    this.base = new Float32Array(exchangedSize);
    this.own = new Float32Array(exchangedSize);
  }

  /** Another run of parameters begins: the next ones are taken as they come. */
  reset(): void {
    this.#isBegun = false;
    this.#pushed = null;
    this.#taken = null;
  }

  /** Goes on from what the server had: the worker's own are of no use. */
  restart(): void {
    this.own.set(this.base);
    this.#pushed = null;
  }

  /**
   * Parameters of the server have come.
   * @param values of a fragment, in the order of `fragmentPieces`; or all, shape [≥ exchangedSize].
   * @param fragment null: all.
   */
  receive(values: Float32Array, fragment: number | null): void {
    const taken = this.#taken;
    if (fragment !== null) {
      let at = 0;
      for (const piece of this.#pieces[fragment]!) {
        const { gradient, statistics } = piece;
        const size = gradient.end - gradient.start;
        this.#take(gradient, values.subarray(at), fragment === taken);
        const from = values.subarray(at + size, at + pieceSize(piece));
        this.base.set(from, statistics.start);
        this.own.set(from, statistics.start);
        at += pieceSize(piece);
      }
      if (fragment === taken) this.#taken = null;
      return;
    }
    for (const [index, pieces] of this.#pieces.entries()) {
      const isTaken = !this.#isBegun || index === taken;
      for (const { gradient } of pieces) {
        this.#take(gradient, values.subarray(gradient.start), isTaken);
      }
    }
    const statistics = values.subarray(this.#trainable, this.base.length);
    this.base.set(statistics, this.#trainable);
    this.own.set(statistics, this.#trainable);
    this.#isBegun = true;
    this.#taken = null;
  }

  /** @param asTheyAre else the worker's own keep what they have changed since the last ones were read. */
  #take({ start, end }: Range, values: Float32Array, asTheyAre: boolean): void {
    const { base, own } = this;
    for (let i = start; i < end; i++) {
      const value = values[i - start]!;
      own[i] = asTheyAre ? value : own[i]! + (value - base[i]!);
      base[i] = value;
    }
  }

  /**
   * Steps are done.
   * @param after the worker's own parameters now; they stay as they are until the push is settled.
   * @param change where that of the fragment goes, shape [exchangedSize]; the rest stays as it is.
   */
  push(fragment: number, after: Float32Array, change: Float32Array): void {
    this.#pushed = { fragment, after };
    for (const { gradient } of this.#pieces[fragment]!) {
      for (let i = gradient.start; i < gradient.end; i++) change[i] = this.base[i]! - after[i]!;
    }
  }

  /** @param isTaken by the server; else others compute these minibatches, and the worker's own are as before them. */
  settled(isTaken: boolean): void {
    if (!this.#pushed) return;
    const { fragment, after } = this.#pushed;
    this.#pushed = null;
    if (!isTaken) return;
    this.own.set(after.subarray(0, this.#trainable));
    this.#taken = fragment;
  }
}
