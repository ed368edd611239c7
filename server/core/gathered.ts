import type { RunConfig } from '../../shared/config.ts';
import type { Layout } from '../../shared/layout.ts';
import { type Memory, regionBytes } from '../../shared/memory.ts';
import type { Range } from '../../shared/partition.ts';
import { type Aggregate, aggregate } from './aggregate.ts';
import { type CompensationUse, compensate } from './compensation.ts';
import type { Clip, Staged } from './fused.ts';
import type { Kernels } from './kernels.ts';

/** What a run's memory holds of pushes beside the parameters: those that wait for their update, and what workers were sent. */

export interface GatheredRoom {
  readonly memory: Memory;
  readonly kernels: Kernels;
  readonly layout: Pick<Layout, 'trainableSize' | 'exchangedSize' | 'statisticsSize'>;
}

/**
 * out ← in + weight · g with a gradient in any decoding: the kernel of plain SGD, whose parameters are the sum.
 * @param out address, where the sum is too. @param range elements of it that the gradient is of.
 */
function add(
  kernels: Kernels,
  { decoding, address, scales }: Staged,
  { limit, factor }: Clip,
  weight: number,
  out: number,
  { start, end }: Range,
): void {
  const kernel = kernels[`sgd_${decoding}${limit === Infinity ? '_plain' : ''}`];
  kernel(
    out,
    out,
    0,
    0,
    address,
    scales,
    start,
    end,
    limit,
    factor,
    0,
    0,
    -weight,
    0,
    1,
    0,
    1,
    0,
    1,
  );
}

/** How much a push counts in a step. */
export interface PushWeight {
  /** Its gradient is multiplied by it, for its staleness. */
  readonly scale: number;
  /** Its examples, in minibatches: the mean is weighted by them. */
  readonly share: number;
}

const AS_IT_IS: Clip = { limit: Infinity, factor: 1 };

/** Pushes that wait for their update: their sum for the mean, else each by itself. */
export class PushCollection {
  readonly #kernels: Kernels;
  readonly #n: number;
  readonly #aggregate: Aggregate;
  readonly #addresses: readonly number[];
  /** Shape [exchangedSize] each: gradient and statistics. */
  readonly #values: readonly Float32Array[];
  #count = 0;

  /** @param places of vectors: 1 for the mean. */
  constructor({ memory, kernels, layout }: GatheredRoom, kind: Aggregate, places: number) {
    const { trainableSize, exchangedSize } = layout;
    this.#kernels = kernels;
    this.#n = trainableSize;
    this.#aggregate = kind;
    this.#addresses = Array.from({ length: places }, () => memory.take(4 * exchangedSize));
    this.#values = this.#addresses.map((address) => memory.floats(address, exchangedSize));
  }

  get count(): number {
    return this.#count;
  }

  /** Those in use; a checkpoint must keep them. */
  get vectors(): readonly Float32Array[] {
    return this.#values.slice(0, placesUsed(this.#aggregate, this.#count));
  }

  at(place: number): Float32Array | undefined {
    return this.#values[place];
  }

  /** The vectors in use by their places. */
  get slots(): Readonly<Record<string, Float32Array>> {
    return Object.fromEntries(this.vectors.entries());
  }

  /** @param part elements that the gradient is of; the others count as 0. */
  take(
    gradient: Staged,
    statistics: Float32Array,
    { scale, share }: PushWeight,
    part: Range,
  ): void {
    const isMean = this.#aggregate === 'mean';
    const place = isMean ? 0 : this.#count;
    const values = this.#values[place];
    if (!values) throw new Error(`there is no room for push ${place + 1} of a step`);
    if (!isMean || this.#count === 0) values.fill(0);
    this.#count++;
    const of = isMean ? share : 1;
    add(this.#kernels, gradient, AS_IT_IS, of * scale, this.#addresses[place]!, part);
    for (let i = 0; i < statistics.length; i++) values[this.#n + i]! += of * statistics[i]!;
  }

  /**
   * Makes one push of them; none is left then.
   * @param shares of all of them, added up. @returns address of gradient and statistics, shape [exchangedSize], until the next `take`.
   */
  combine(
    shares: number,
    faulty: number,
  ): { readonly address: number; readonly values: Float32Array } {
    const values = this.#values[0]!;
    const address = this.#addresses[0]!;
    if (this.#aggregate !== 'mean') aggregate(this.#aggregate, this.vectors, faulty, values);
    // a ← d a + 0 θ: the kernel of the average.
    else if (shares !== 1) this.#kernels.ema(address, address, values.length, 1 / shares, 0);
    this.#count = 0;
    return { address, values };
  }

  clear(): void {
    this.#count = 0;
  }

  /** As in a checkpoint, once the vectors are written. */
  restore(count: number): void {
    this.#count = count;
  }
}

/** Vectors that so many collected pushes take. */
export function placesUsed(kind: Aggregate, count: number): number {
  return kind === 'mean' ? Math.min(1, count) : count;
}

/** The parameters that workers were sent, by slot from 1, and where gradients are put right by them. */
export class SentParameters {
  readonly #kernels: Kernels;
  readonly #memory: Memory;
  readonly #n: number;
  readonly #sent: readonly number[];
  readonly #squares: readonly number[];
  readonly #scratch: number;
  readonly #corrected: Float32Array;
  /** Slots in use, with what a standby, and of squares a checkpoint, must keep; shape [n] each. */
  readonly sent = new Map<number, Float32Array>();
  readonly squares = new Map<number, Float32Array>();

  constructor({ memory, kernels, layout }: GatheredRoom, slots: number, isAdaptive: boolean) {
    const n = layout.trainableSize;
    const take = () => memory.take(4 * n);
    this.#kernels = kernels;
    this.#memory = memory;
    this.#n = n;
    this.#sent = Array.from({ length: slots }, take);
    this.#squares = Array.from({ length: isAdaptive ? slots : 0 }, take);
    this.#scratch = take();
    this.#corrected = memory.floats(this.#scratch, n);
  }

  /** The worker of a slot is sent these. @param fresh it is another worker than before. */
  remember(slot: number, parameters: Float32Array, fresh: boolean): void {
    this.sentOf(slot).set(parameters.subarray(0, this.#n));
    if (fresh && this.#squares.length > 0) this.squaresOf(slot).fill(0);
  }

  sentOf(slot: number): Float32Array {
    return this.#of(this.sent, this.#sent, slot);
  }

  squaresOf(slot: number): Float32Array {
    return this.#of(this.squares, this.#squares, slot);
  }

  #of(used: Map<number, Float32Array>, addresses: readonly number[], slot: number): Float32Array {
    let values = used.get(slot);
    if (!values) {
      const address = addresses[slot - 1];
      if (address === undefined) throw new Error(`there is no room for slot ${slot}`);
      values = this.#memory.floats(address, this.#n);
      used.set(slot, values);
    }
    return values;
  }

  /** The gradient as it was clipped, put right. @returns where it is until the next call. */
  compensated(gradient: Staged, clip: Clip, use: CompensationUse, now: Float32Array): number {
    this.#corrected.fill(0);
    add(this.#kernels, gradient, clip, 1, this.#scratch, { start: 0, end: this.#n });
    const squares = use.kind === 'adaptive' ? this.squaresOf(use.slot) : null;
    compensate(use, this.#corrected, now, this.sentOf(use.slot), squares);
    return this.#scratch;
  }

  reset(): void {
    for (const values of this.squares.values()) values.fill(0);
  }
}

/** What `PushCollection` and `SentParameters` take of a memory. */
export function gatheredBytes(
  { collected, sent }: { readonly collected: number; readonly sent: number },
  consistency: Partial<RunConfig['consistency']>,
  { trainableSize, exchangedSize }: Pick<Layout, 'trainableSize' | 'exchangedSize'>,
): number {
  const own = sent === 0 ? 0 : 1 + sent * vectorsPerSlot(consistency);
  return collected * regionBytes(4 * exchangedSize) + own * regionBytes(4 * trainableSize);
}

/** How many vectors one slot takes. */
export function vectorsPerSlot(consistency: Partial<RunConfig['consistency']>): number {
  return isAdaptive(consistency) ? 2 : 1;
}

export const isAdaptive = ({ correction, compensation }: Partial<RunConfig['consistency']>) =>
  correction === 'compensated' && (compensation?.adaptive ?? true);
