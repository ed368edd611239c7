import type { RunConfig } from '../shared/config.ts';
import type { Layout } from '../shared/layout.ts';
import { fragmentsOf, localOptimizer } from '../shared/local-steps.ts';
import {
  clipByNorm,
  clipByValue,
  createOptimizer,
  decayRanges,
  normAndFinite,
  type Optimizer,
} from '../shared/optimizer.ts';
import type { Range } from '../shared/partition.ts';
import type { Acknowledgement, Lease, LocalWork } from '../shared/protocol.ts';
import { FragmentedParameters } from './fragments.ts';

/**
 * Local steps: a worker trains on the minibatches of a lease one after the other, with an optimizer of its own whose state
 * outlives the lease, and pushes what came of it. The server's half is in `server/core/outer.ts`.
 */

export type LocalConfig = Pick<
  RunConfig,
  'minibatchSize' | 'optimizer' | 'weightDecay' | 'clip' | 'consistency'
> &
  Partial<Pick<RunConfig, 'local'>>;

export interface LocalGradient {
  readonly loss: number;
  /** Gradient and statistics of the minibatch, shape [exchangedSize]; it may be written to. */
  readonly gradient: Float32Array;
  discard(): void;
}

/**
 * @param parameters shape [exchangedSize], or longer where they are those that were pulled; nobody writes to them before
 *   the next call. @returns null: to be given up.
 */
export type GradientAt = (
  minibatch: Lease,
  parameters: Float32Array,
) => Promise<LocalGradient | null>;

export interface LocalResult {
  /** Mean over the examples of the lease, each at the parameters of its step. */
  readonly loss: number;
  /**
   * What is pushed, shape [exchangedSize]: delta or parameters, and the mean of the statistics. Where a fragment is pushed,
   * only that counts, and the statistics.
   */
  readonly payload: Float32Array;
  /** Gives the memory of the payload back. */
  discard(): void;
}

/** The minibatches of a lease, in their order. */
export function minibatchesOf(lease: Lease, size: number): Lease[] {
  const minibatches: Lease[] = [];
  for (let at = 0; at < lease.count; at += size) {
    const count = Math.min(size, lease.count - at);
    minibatches.push({ ...lease, start: lease.start + at, count });
  }
  return minibatches;
}

export class LocalSteps {
  readonly #config: LocalConfig;
  readonly #trainable: number;
  readonly #exchanged: number;
  readonly #optimizer: Optimizer;
  /** Updates of the optimizer since it began: bias corrections use it. */
  #step = 0;
  /** The same before the push under way, which has not happened if it is rejected; null: there is none to go back from. */
  #before: number | null = null;
  /** The state of the optimizer then. */
  readonly #kept = new Map<string, Float32Array>();
  /** Pushes under way. */
  #pushed = 0;
  /** By turns: neither the newest parameters are written to nor those that a model has loaded. */
  readonly #rooms: (Float32Array | undefined)[] = [undefined, undefined, undefined];
  #turn = 0;
  /** `elastic`: the worker's own parameters, one of the rooms; null: none yet. */
  #own: Float32Array | null = null;
  /** `elastic`: the move towards the server's parameters that its answer to the last push brings; null: none. */
  #move: { readonly rate: number; isApplied: boolean } | null = null;
  readonly #payloads: Float32Array[] = [];
  /** Null: all parameters are exchanged together. */
  readonly #fragments: FragmentedParameters | null;

  /** @param ranges of the shards of the run; absent: one has all. */
  constructor(
    config: LocalConfig,
    layout: Pick<Layout, 'trainableSize' | 'exchangedSize'> & {
      readonly tensors: Parameters<typeof decayRanges>[1];
    },
    ranges: readonly Range[] = [{ start: 0, end: layout.exchangedSize }],
  ) {
    const { trainableSize, exchangedSize, tensors } = layout;
    const count = fragmentsOf(config);
    this.#fragments = count > 1 ? new FragmentedParameters(layout, ranges, count) : null;
    this.#config = config;
    this.#trainable = trainableSize;
    this.#exchanged = exchangedSize;
    const decay = decayRanges(config.weightDecay, tensors);
    this.#optimizer = createOptimizer(localOptimizer(config), trainableSize, decay);
  }

  /** The parameters of the server are others now: what was learnt at earlier ones is of no use. */
  reset(): void {
    this.#forget();
    this.#fragments?.reset();
  }

  #forget(): void {
    this.#optimizer.reset();
    this.#before = null;
    this.#pushed = 0;
    this.#step = 0;
    this.#own = null;
    this.#move = null;
  }

  /**
   * Parameters of the server have come to a worker that exchanges them by fragments.
   * @param fragment that `values` hold; null: all. @returns those that the server's were last, shape [exchangedSize].
   */
  receive(values: Float32Array, fragment: number | null): Float32Array {
    this.#fragments!.receive(values, fragment);
    return this.#fragments!.base;
  }

  /** What became of the last push. */
  settled(outcome: Acknowledgement['outcome']): void {
    this.#fragments?.settled(outcome !== 'rejected');
    this.#pushed = Math.max(0, this.#pushed - 1);
    if (outcome === 'rejected') this.#goBack();
    if (!this.#move) return;
    if (outcome === 'rejected') this.#move = null;
    else this.#move.isApplied = true;
  }

  /**
   * @param pulled parameters of the server, shape [≥ exchangedSize]: those of the answer to the last push, or newer ones.
   * @returns null: it was given up.
   */
  async take(
    lease: Lease,
    pulled: Float32Array,
    work: LocalWork,
    gradientAt: GradientAt,
  ): Promise<LocalResult | null> {
    const { minibatchSize } = this.#config;
    const n = this.#trainable;
    const isElastic = work.push === 'elastic';
    const fragments = work.fragment === undefined ? null : this.#fragments!;
    // An elastic worker keeps its parameters, whatever becomes of the push. With several under way, later ones hold the earlier ones.
    if (isElastic || this.#pushed > 0) this.#before = null;
    else this.#remember();
    let at = isElastic ? this.#begin(pulled) : pulled;
    if (fragments) at = this.#room(fragments.own);
    const payload = this.#payloads.pop() ?? new Float32Array(this.#exchanged);
    const statistics = payload.subarray(n);
    statistics.fill(0);
    let loss = 0;
    for (const minibatch of minibatchesOf(lease, minibatchSize)) {
      const given = await gradientAt(minibatch, at);
      if (!given) return null;
      const share = minibatch.count / lease.count;
      loss += share * given.loss;
      for (let i = 0; i < statistics.length; i++) {
        statistics[i]! += share * given.gradient[n + i]!;
      }
      at = this.#update(at, given.gradient.subarray(0, n), work);
      given.discard();
    }
    const change = payload.subarray(0, n);
    if (isElastic) {
      change.set(at.subarray(0, n));
      this.#own = at;
      this.#end(pulled, work);
    } else if (fragments) fragments.push(work.fragment!, at, change);
    else for (let i = 0; i < n; i++) change[i] = pulled[i]! - at[i]!;
    // What is not finite stays in an optimizer's state for good.
    const own = fragments ? at.subarray(0, n) : change;
    if (!Number.isFinite(loss) || !isFiniteAll(own) || this.#isSpoilt) this.#restart();
    this.#pushed++;
    return { loss, payload, discard: () => void this.#payloads.push(payload) };
  }

  #remember(): void {
    for (const [symbol, values] of Object.entries(this.#optimizer.slots)) {
      const copy = this.#kept.get(symbol) ?? new Float32Array(values.length);
      copy.set(values);
      this.#kept.set(symbol, copy);
    }
    this.#before = this.#step;
  }

  #goBack(): void {
    if (this.#before === null) return;
    for (const [symbol, values] of this.#kept) this.#optimizer.slots[symbol]!.set(values);
    this.#step = this.#before;
  }

  /** The square of a gradient may be infinite where it is not: its parameter would never move again. */
  get #isSpoilt(): boolean {
    return !Object.values(this.#optimizer.slots).every(isFiniteAll);
  }

  /** What is not finite is left behind: it goes on from the parameters of the server. */
  #restart(): void {
    this.#forget();
    this.#fragments?.restart();
  }

  /** One step of the optimizer. @returns the new parameters, elsewhere than the old ones. */
  #update(from: Float32Array, gradient: Float32Array, work: LocalWork): Float32Array {
    const { clip } = this.#config;
    if (clip.value !== null) clipByValue(gradient, clip.value);
    if (clip.norm !== null) clipByNorm(gradient, clip.norm, normAndFinite(gradient));
    const to = this.#room(from);
    const { learningRate, momentum } = work;
    const step = ++this.#step;
    this.#optimizer.apply(to.subarray(0, this.#trainable), gradient, {
      ...{ step, learningRate },
      ...(momentum !== undefined && { momentum }),
    });
    return to;
  }

  /** A copy, in a room that is not in use. */
  #room(from: Float32Array): Float32Array {
    this.#turn = (this.#turn + 1) % this.#rooms.length;
    const room = this.#rooms[this.#turn] ?? new Float32Array(this.#exchanged);
    this.#rooms[this.#turn] = room;
    room.set(from.subarray(0, this.#exchanged));
    return room;
  }

  /** The worker's own parameters, after the move that is due. */
  #begin(pulled: Float32Array): Float32Array {
    const own = this.#own;
    const move = this.#move;
    this.#move = null;
    if (!own) return pulled;
    // x − α (x − x̃) with what the server had before: it has moved by α towards x since, so x − x̃ was 1 / (1 − α) larger.
    if (move?.isApplied) return this.#towards(own, pulled, move.rate / (1 - move.rate));
    return own;
  }

  /** The worker has pushed its own parameters. @param pulled those that the steps began with. */
  #end(pulled: Float32Array, { movingRate: rate = 0, center }: LocalWork): void {
    if (center === 'before') this.#own = this.#towards(this.#own!, pulled, rate);
    else this.#move = { rate, isApplied: false };
  }

  #towards(own: Float32Array, center: Float32Array, rate: number): Float32Array {
    const moved = this.#room(own);
    for (let i = 0; i < this.#trainable; i++) moved[i]! -= rate * (own[i]! - center[i]!);
    return moved;
  }
}

const isFiniteAll = (values: Float32Array) => Number.isFinite(normAndFinite(values));
