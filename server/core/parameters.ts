import { bytesOf } from '../../shared/codec.ts';
import {
  BLOCK,
  decodeGradient,
  decodeTopk,
  type Encoding,
  encodedBytes,
  gradientBytes,
} from '../../shared/compression.ts';
import {
  type CompressionKernels,
  createCompressionKernels,
} from '../../shared/compression-kernels.ts';
import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { type Layout, STATE_PREFIX } from '../../shared/layout.ts';
import { checkMemoryBytes, MEMORY_BYTES_MAX, Memory, regionBytes } from '../../shared/memory.ts';
import {
  type Average,
  type AverageState,
  averageBytes,
  averageSymbols,
  createAverage,
} from './averaging.ts';
import {
  type Clip,
  createFusedOptimizer,
  type FusedOptimizer,
  optimizerBytes,
  optimizerSymbols,
  type Staged,
  sumOfSquares,
} from './fused.ts';
import { createKernels, type Kernels } from './kernels.ts';
import { type NormBound, normBounds, project } from './max-norm.ts';
import { decayRanges, normAndFinite, type StepOptions } from './optimizer.ts';
import { Snapshot, SnapshotPool } from './snapshot.ts';

/**
 * The numbers of a run: one flat vector with all that moves it (optimizer, merging of statistics) and
 * all that is derived from it (snapshot, average), in one memory that the kernels work on.
 */
export class Parameters {
  readonly layout: Layout;
  readonly #memory: Memory;
  readonly #kernels: Kernels;
  readonly #encoders: CompressionKernels;
  /** As it is now. Never leaves this file but to be read, and is not written to while it is lent. */
  #now: Vector;
  /** A snapshot shows the vector itself, not a copy. */
  #lent = false;
  /** Where the next vector is made while this one is lent; at least one is there then. */
  readonly #spare: Vector[];
  /** Where it is encoded, when workers are sent it in bf16. */
  readonly #halves: Half[];
  readonly #optimizer: FusedOptimizer;
  readonly #bounds: readonly NormBound[];
  readonly #average: Average | null;
  /** The momentum of each statistics tensor, with its place in `#statistics`. */
  readonly #ranges: readonly { start: number; end: number; momentum: number }[];
  /** Room for one payload: of a push that landed elsewhere, of `topk` spread out, of a bf16 snapshot. */
  readonly #scratch: number;
  /** Where payloads of pushes may land. */
  readonly #landings: LandingRoom[] = [];
  #merges = 0;
  readonly #pool = new SnapshotPool();
  /** Of this step, made when first asked for. */
  readonly #snapshots: { f32: Snapshot | null; bf16: Snapshot | null } = { f32: null, bf16: null };
  /** An update that was made while its gradient was measured, in the last of `#spare`. */
  #ahead: Ahead | null = null;

  /** @throws DownpourError DP_LAYOUT_INVALID: too large for one memory; of `normBounds`. */
  constructor(
    layout: Layout,
    config: Pick<RunConfig, 'optimizer' | 'weightDecay' | 'maxNorm' | 'averaging' | 'compression'>,
  ) {
    const { trainableSize, exchangedSize, size, tensors, frozenSize } = layout;
    this.layout = layout;
    this.#bounds = normBounds(config.maxNorm, tensors);
    const payload = regionBytes(4 * exchangedSize);
    const fixed =
      regionBytes(4 * size) +
      optimizerBytes(config.optimizer, trainableSize) +
      averageBytes(config.averaging, exchangedSize) +
      payload;
    checkMemoryBytes(fixed + LANDINGS_MIN * payload);
    const landings = roomCount(payload, MEMORY_BYTES_MAX - fixed);
    // Frozen tensors would have to be in each vector.
    const isHalf = config.compression.pull === 'bf16';
    const sent = isHalf ? encodedBytes('bf16', exchangedSize) : frozenSize > 0 ? 0 : 4 * size;
    const taken = fixed + landings * payload;
    const rooms = sent === 0 ? 0 : roomCount(regionBytes(sent), MEMORY_BYTES_MAX - taken);
    const memory = new Memory(taken + rooms * regionBytes(sent));
    const kernels = createKernels(memory.memory);
    this.#memory = memory;
    this.#kernels = kernels;
    this.#encoders = createCompressionKernels(memory.memory);
    this.#now = vectorAt(memory, memory.take(4 * size), layout);
    const decay = decayRanges(config.weightDecay, tensors);
    const room = { memory, kernels, theta: this.#now.address };
    this.#optimizer = createFusedOptimizer(config.optimizer, trainableSize, decay, room);
    this.#average = createAverage(config.averaging, exchangedSize, room);
    this.#scratch = memory.take(4 * exchangedSize);
    for (let i = 0; i < landings; i++) {
      this.#landings.push(new LandingRoom(memory.take(4 * exchangedSize), this.#landings));
    }
    const places = Array.from({ length: rooms }, () => memory.take(sent));
    this.#spare = isHalf ? [] : places.map((address) => vectorAt(memory, address, layout));
    this.#halves = isHalf
      ? places.map((address) => ({ address, bytes: memory.bytes(address, sent) }))
      : [];
    this.#ranges = tensors
      .filter((tensor) => tensor.role === 'statistics')
      .map((tensor) => ({
        start: tensor.offset - trainableSize,
        end: tensor.offset - trainableSize + tensor.size,
        momentum: tensor.momentum!,
      }));
  }

  /**
   * Room for the payload of a push, at a multiple of 64, until it is released.
   * @returns null: larger than any dense payload of this layout, or all rooms are taken.
   */
  land(byteLength: number): { readonly bytes: Uint8Array; release(): void } | null {
    if (byteLength > payloadLimits(this.layout).roomBytes) return null;
    const room = this.#landings.pop();
    return room ? room.take(this.#memory, byteLength) : null;
  }

  /** Trainable and statistics as they are now, encoded. Hold it to use it after the next change. */
  snapshot(encoding: 'f32' | 'bf16' = 'f32'): Snapshot {
    this.#snapshots[encoding] ??= encoding === 'f32' ? this.#lend() : this.#encode();
    return this.#snapshots[encoding];
  }

  #lend(): Snapshot {
    const now = this.#now;
    if (this.#spare.length === 0) {
      return this.#pool.make(now.bytes.length, 'f32', (bytes) => bytes.set(now.bytes));
    }
    this.#lent = true;
    return new Snapshot(now.bytes, 'f32', () => void this.#spare.push(now));
  }

  #encode(): Snapshot {
    const n = this.layout.exchangedSize;
    const half = this.#halves.pop();
    if (half) {
      this.#encodeInto(half, 0, n);
      return this.#halfSnapshot(half);
    }
    return this.#pool.make(encodedBytes('bf16', n), 'bf16', (bytes) => {
      this.#encoders.encode_bf16(this.#now.address, n, this.#scratch);
      bytes.set(this.#memory.bytes(this.#scratch, bytes.length));
      bytes.fill(0, 2 * n);
    });
  }

  #halfSnapshot(half: Half): Snapshot {
    half.bytes.fill(0, 2 * this.layout.exchangedSize);
    return new Snapshot(half.bytes, 'bf16', () => void this.#halves.push(half));
  }

  #changed(): void {
    const { f32, bf16 } = this.#snapshots;
    this.#snapshots.f32 = this.#snapshots.bf16 = null;
    f32?.release();
    bf16?.release();
  }

  /** The vector, to be written to: what is lent stays as it is. `#changed` follows. */
  #own(): Float32Array {
    if (this.#lent) {
      const next = this.#spare.pop()!;
      next.values.set(this.#now.values);
      this.#now = next;
      this.#lent = false;
    }
    return this.#now.values;
  }

  /** Trainable and statistics as they are now: a copy of shape [exchangedSize]. */
  exchanged(): Float32Array {
    return this.#now.values.slice(0, this.layout.exchangedSize);
  }

  /** What is evaluated and kept, a copy: the average when there is one, else as they are now. */
  evaluated(): Float32Array {
    return this.#average && this.#average.count > 0
      ? this.#average.values.slice()
      : this.exchanged();
  }

  /** The whole vector with these trainable and statistics values, a copy of shape [layout.size]. */
  whole(exchanged?: Float32Array, copy: Copy = slice): Float32Array {
    const whole = copy(this.#now.values);
    if (exchanged) whole.set(exchanged);
    return whole;
  }

  /** Fresh parameters, shape [layout.size]: optimizer, average and merging begin anew. */
  initialise(values: Float32Array): void {
    this.#own().set(values);
    this.#merges = 0;
    this.#changed();
    this.resetOptimizer();
  }

  /** Other values for trainable and statistics, shape [exchangedSize]. */
  replace(exchanged: Float32Array): void {
    this.#own().set(exchanged);
    this.#changed();
  }

  /** Forgets the optimizer's state and the average. */
  resetOptimizer(): void {
    this.#optimizer.reset();
    this.#average?.reset();
  }

  /**
   * Takes a push's payload in: the gradient where it has landed, or copied there; `topk` spread out.
   * It must be used before anything else is asked of the parameters.
   * @throws DownpourError DP_TENSOR_SIZE: not a payload of this layout.
   */
  stage(payload: Uint8Array, encoding: Encoding): StagedPush {
    const { trainableSize: n, statisticsSize } = this.layout;
    const bytes = gradientBytes(encoding, payload, n, 4 * statisticsSize);
    if (encoding === 'topk') {
      // Pushes of this kind are short, wherever they lie.
      const spread = this.#memory.floats(this.#scratch, n);
      decodeTopk(payload.subarray(0, bytes), spread);
      const gradient: Staged = { decoding: 'f32', address: this.#scratch, scales: 0 };
      return { gradient, statistics: aligned(payload.subarray(bytes)) };
    }
    let { byteOffset: address } = payload;
    if (payload.buffer !== this.#memory.memory.buffer || address % 16 !== 0) {
      address = this.#scratch;
      this.#memory.bytes(address, payload.length).set(payload);
    }
    const statistics =
      statisticsSize === 0 ? NO_STATISTICS : this.#memory.floats(address + bytes, statisticsSize);
    if (encoding !== 'int8') {
      return { gradient: { decoding: encoding, address, scales: 0 }, statistics };
    }
    const numbers = address + 4 * Math.ceil(n / BLOCK);
    return { gradient: { decoding: 'int8', address: numbers, scales: address }, statistics };
  }

  /**
   * The squared L2 norm of a gradient whose elements are cut to ±limit first; NaN as soon as an element
   * of it or of the statistics is not finite.
   * @param next how it will be applied if it is, and needs no clipping: then it may be on the way, in
   *   one pass over memory instead of two. Nothing has changed before `update`.
   */
  squares(push: StagedPush, limit: number, next: StepOptions | null = null): number {
    this.#ahead = null;
    const { gradient, statistics } = push;
    if (!Number.isFinite(normAndFinite(statistics))) return Number.NaN;
    const n = this.layout.trainableSize;
    const alone = this.#optimizer.stateless && this.#average === null;
    const to = this.#spare.at(-1);
    if (!next || !to || !alone || limit !== Infinity) {
      return sumOfSquares(this.#kernels, gradient, n, limit);
    }
    const squaresOf = this.#kernels[`squares_${gradient.decoding}`];
    let sum = 0;
    let finite = true;
    for (let start = 0; start < n; start += BLOCK_ELEMENTS) {
      const end = Math.min(n, start + BLOCK_ELEMENTS);
      sum = squaresOf(gradient.address, gradient.scales, start, end, sum);
      const where = { from: this.#now.address, to: to.address, start, end };
      if (!this.#optimizer.apply(gradient, UNCLIPPED, next, where)) finite = false;
    }
    this.#ahead = { push, options: next, finite };
    return sumOfSquares(this.#kernels, gradient, n, limit, sum);
  }

  /**
   * Applies a gradient and merges statistics, both finite.
   * @returns false when a parameter overflowed: all of them are as before, or as workers saw them in
   *   bf16; optimizer and average are spoilt.
   */
  update(push: StagedPush, clip: Clip, options: StepOptions): boolean {
    const from = this.#now;
    const to = this.#spare.at(-1) ?? from;
    // Workers were sent one, as a rule, so it is there already.
    const { f32, bf16 } = this.#snapshots;
    const before = to === from ? (f32 ?? bf16 ?? this.snapshot()) : null;
    const average = this.#average?.begin(options.step) ? this.#average : null;
    // A bound changes the vector once more, so it is encoded when it is asked for.
    const isLast = this.#bounds.length === 0;
    const half = isLast ? (this.#halves.pop() ?? null) : null;
    const ahead =
      this.#ahead?.push === push && this.#ahead.options === options ? this.#ahead : null;
    this.#ahead = null;
    // How far average and encoding have come.
    let taken = 0;
    let finite = true;
    if (ahead && clip.factor === 1) finite = ahead.finite;
    else {
      const n = this.layout.trainableSize;
      const blocks = isLast && (average !== null || half !== null) ? BLOCK_ELEMENTS : n;
      for (let start = 0; start < n; start += blocks) {
        const end = Math.min(n, start + blocks);
        const where = { from: from.address, to: to.address, start, end };
        if (!this.#optimizer.apply(push.gradient, clip, options, where)) finite = false;
        if (blocks === n) break;
        // What is left of a last vector of numbers waits for the statistics behind it.
        taken = end & ~15;
        average?.take(to.values, start, taken);
        if (half) this.#encodeInto(half, start, taken);
      }
    }
    if (!finite) {
      if (half) this.#halves.push(half);
      const { exchangedSize } = this.layout;
      if (before)
        decodeGradient(before.encoding, before.bytes, from.values.subarray(0, exchangedSize));
      return false;
    }
    this.#mergeStatistics(push.statistics, from.statistics, to.statistics);
    project(to.values, this.#bounds);
    average?.take(to.values, taken, this.layout.exchangedSize);
    if (half) this.#encodeInto(half, taken, this.layout.exchangedSize);
    if (to !== from) {
      this.#spare.pop();
      if (!this.#lent) this.#spare.push(from);
      this.#lent = false;
      this.#now = to;
    }
    this.#changed();
    if (half) this.#snapshots.bf16 = this.#halfSnapshot(half);
    return true;
  }

  /** Elements [start, end) of the vector in bf16; both are multiples of 8, or `end` is the last. */
  #encodeInto({ address }: Half, start: number, end: number): void {
    this.#encoders.encode_bf16(this.#now.address + 4 * start, end - start, address + 2 * start);
  }

  /**
   * M ← d·M + (1 − d)·b with the minibatch's statistics b, whatever the staleness of the push. While
   * few have been merged, d is smaller, so that the arbitrary first values are soon forgotten.
   */
  #mergeStatistics(minibatch: Float32Array, from: Float32Array, to: Float32Array): void {
    if (minibatch.length === 0) return;
    const merges = this.#merges++;
    for (const { start, end, momentum } of this.#ranges) {
      const keep = Math.min(momentum, (1 + merges) / (10 + merges));
      for (let i = start; i < end; i++) to[i] = keep * from[i]! + (1 - keep) * minibatch[i]!;
    }
  }

  /** The parameters by their names: private copies. @param exchanged instead of the present ones. */
  named(exchanged?: Float32Array, copy: Copy = slice): NamedTensor[] {
    const whole = this.whole(exchanged, copy);
    return this.layout.tensors.map(({ name, shape, offset, size }) => ({
      name,
      shape,
      values: whole.subarray(offset, offset + size),
    }));
  }

  /** All that a checkpoint must keep besides `state()`: private copies. */
  tensors(copy: Copy = slice): NamedTensor[] {
    const tensors = this.named(undefined, copy);
    for (const [name, values] of this.#state()) tensors.push(flatTensor(name, copy(values)));
    return tensors;
  }

  /**
   * The live vectors by the names that `write` takes: all that a checkpoint must keep besides `state()`,
   * shape [layout.size] of the parameters, [trainableSize] and [exchangedSize] of the others.
   */
  vectors(): readonly (readonly [name: string, values: Float32Array])[] {
    return [[VECTOR, this.#now.values], ...this.#state()];
  }

  /** Overwrites a piece of one of the `vectors`. */
  write(name: string, start: number, values: Float32Array): void {
    this.#own();
    const vector = this.vectors().find(([known]) => known === name)?.[1];
    if (!vector || start + values.length > vector.length) {
      throw new DownpourError(
        'DP_CHECKPOINT_CORRUPT',
        `there is no '${name}' of ${start + values.length} elements in this run: its configuration is another one`,
      );
    }
    vector.set(values, start);
    this.#changed();
  }

  /** The live vectors of optimizer and average by their names in a checkpoint. */
  #state(): [string, Float32Array][] {
    const named = (owner: Owner, slots: Readonly<Record<string, Float32Array>>) =>
      Object.entries(slots).map(([symbol, values]): [string, Float32Array] => [
        stateName(owner, symbol),
        values,
      ]);
    return [
      ...named('optimizer', this.#optimizer.slots),
      ...named('average', this.#average?.slots ?? {}),
    ];
  }

  state(): ParametersState {
    return { merges: this.#merges, average: this.#average?.state() ?? null };
  }

  /** @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size. */
  restore(state: ParametersState, tensors: readonly NamedTensor[]): void {
    for (const { name, offset, size } of this.layout.tensors) {
      this.#own().set(takeTensor(tensors, name, size), offset);
    }
    for (const [name, values] of this.#state())
      values.set(takeTensor(tensors, name, values.length));
    this.restoreState(state);
  }

  /**
   * Takes over the parameters of another run and how far its statistics are; optimizer and average are
   * as new. @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size.
   */
  adopt(state: Pick<ParametersState, 'merges'> | null, tensors: readonly NamedTensor[]): void {
    for (const { name, offset, size } of this.layout.tensors) {
      this.#own().set(takeTensor(tensors, name, size), offset);
    }
    this.#merges = state?.merges ?? 0;
    this.#changed();
  }

  /** Continues from a checkpoint, once the `vectors` are set. */
  restoreState(state: ParametersState): void {
    if (state.average) this.#average?.restore(state.average);
    this.#merges = state.merges;
    this.#changed();
  }
}

/** The parameters among the `vectors`. */
export const VECTOR = `${STATE_PREFIX}parameters`;

type Owner = 'optimizer' | 'average';
const stateName = (owner: Owner, symbol: string) => `${STATE_PREFIX}${owner}.${symbol}`;

/** The `vectors` of a run that is not here: their names and elements. */
export function vectorSizes(
  { optimizer, averaging }: Pick<RunConfig, 'optimizer' | 'averaging'>,
  { size, trainableSize, exchangedSize }: Layout,
): Map<string, number> {
  const sizes = new Map([[VECTOR, size]]);
  for (const symbol of optimizerSymbols(optimizer)) {
    sizes.set(stateName('optimizer', symbol), trainableSize);
  }
  for (const symbol of averageSymbols(averaging)) {
    sizes.set(stateName('average', symbol), exchangedSize);
  }
  return sizes;
}

/** Of a push: what a room holds, any dense encoding, and what the largest of the encodings takes. */
export function payloadLimits({
  exchangedSize,
  trainableSize,
}: Pick<Layout, 'exchangedSize' | 'trainableSize'>): { roomBytes: number; bytesMax: number } {
  return { roomBytes: 4 * exchangedSize, bytesMax: 4 * (exchangedSize + trainableSize + 1) };
}

/** A push's payload in the run's memory. */
export interface StagedPush {
  readonly gradient: Staged;
  /** Of the minibatch, shape [statisticsSize]. */
  readonly statistics: Float32Array;
}

/** The run's vector, or where the next one is made. */
interface Vector {
  readonly address: number;
  /** Shape [layout.size]: trainable, statistics, frozen. */
  readonly values: Float32Array;
  readonly statistics: Float32Array;
  /** Of trainable and statistics. */
  readonly bytes: Uint8Array;
}

function vectorAt(memory: Memory, address: number, layout: Layout): Vector {
  const { trainableSize, exchangedSize, size } = layout;
  const values = memory.floats(address, size);
  const statistics = values.subarray(trainableSize, exchangedSize);
  return { address, values, statistics, bytes: memory.bytes(address, 4 * exchangedSize) };
}

/** A place for the vector in bf16. */
interface Half {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** Room for the payload of one push after another. */
class LandingRoom {
  readonly #address: number;
  readonly #free: LandingRoom[];
  bytes = new Uint8Array();

  constructor(address: number, free: LandingRoom[]) {
    this.#address = address;
    this.#free = free;
  }

  /** Pushes of one run are of one size, as a rule: then the view of the last one does. */
  take(memory: Memory, byteLength: number): this {
    if (this.bytes.length !== byteLength) this.bytes = memory.bytes(this.#address, byteLength);
    return this;
  }

  release(): void {
    this.#free.push(this);
  }
}

interface Ahead {
  readonly push: StagedPush;
  readonly options: StepOptions;
  readonly finite: boolean;
}

const NO_STATISTICS = new Float32Array();
const UNCLIPPED: Clip = { limit: Infinity, factor: 1 };
/**
 * Of each vector that an update touches so many elements are worked on, by one kernel after another, before
 * the next ones: all of them stay in the cache of a core. A multiple of the blocks of every kernel.
 */
const BLOCK_ELEMENTS = 2 ** 13;

const LANDINGS_MIN = 2;
const ROOMS_MAX = 64;
/** Rooms take no more, unless `ROOMS_FEW` of them do. */
const ROOM_BYTES = 2 ** 28;
const ROOMS_FEW = 4;

/** As many as pushes may arrive, or answers be under way, at once; the others wait, or are copied. */
function roomCount(bytes: number, bytesLeft: number): number {
  const wanted = Math.max(ROOMS_FEW, Math.floor(ROOM_BYTES / bytes));
  return Math.min(ROOMS_MAX, wanted, Math.floor(bytesLeft / bytes));
}

function aligned(bytes: Uint8Array): Float32Array {
  const copy = new Float32Array(bytes.length / 4);
  bytesOf(copy).set(bytes);
  return copy;
}

export interface ParametersState {
  readonly merges: number;
  readonly average: AverageState | null;
}

export interface NamedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** A vector under a name. */
export function flatTensor(name: string, values: Float32Array): NamedTensor {
  return { name, shape: [values.length], values };
}

/** Makes a private copy. */
export type Copy = (values: Float32Array) => Float32Array;
export const slice: Copy = (values) => values.slice();

/** @throws DownpourError DP_CHECKPOINT_CORRUPT when it is missing or has another size. */
export function takeTensor(
  tensors: readonly NamedTensor[],
  name: string,
  size: number,
): Float32Array {
  const values = tensors.find((tensor) => tensor.name === name)?.values;
  if (values?.length === size) return values;
  const seen = values ? `has ${values.length} elements, not ${size}` : 'is missing';
  throw new DownpourError('DP_CHECKPOINT_CORRUPT', `checkpoint tensor '${name}' ${seen}`);
}
