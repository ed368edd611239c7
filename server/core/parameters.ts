import { bytesOf } from '../../shared/codec.ts';
import {
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
import type { Layout } from '../../shared/layout.ts';
import { fragmentsOf } from '../../shared/local-steps.ts';
import { checkMemoryBytes, MEMORY_BYTES_MAX, Memory, regionBytes } from '../../shared/memory.ts';
import { normAndFinite } from '../../shared/optimizer.ts';
import type { Range } from '../../shared/partition.ts';
import { type Average, averageBytes, createAverage } from './averaging.ts';
import type { CompensationUse } from './compensation.ts';
import { elasticGradient, elasticSquares } from './elastic.ts';
import { type Clip, type FusedOptimizer, type Staged, sumOfSquares } from './fused.ts';
import {
  gatheredBytes,
  isAdaptive,
  PushCollection,
  type PushWeight,
  SentParameters,
} from './gathered.ts';
import { createRules, rulesBytes } from './group-rules.ts';
import { KeptVectors } from './kept-vectors.ts';
import { createKernels, type Kernels } from './kernels.ts';
import {
  BYTES,
  GradientScan,
  gradientAt,
  LandingRoom,
  placedAt,
  type StagedPush,
  scaleBytes,
  type VectorPlace,
  vectorAt,
} from './landing-rooms.ts';
import { type NormBound, normBounds, project } from './max-norm.ts';
import { MergedStatistics } from './merged-statistics.ts';
import { createOuter, outerBytes } from './outer.ts';
import { Snapshot, SnapshotPool } from './snapshot.ts';
import type { StepOptions } from './step-options.ts';
import { VectorParts } from './vector-parts.ts';
import {
  type CopyVector,
  LANDINGS_MIN,
  NO_PLACES,
  payloadLimits,
  roomCount,
  slice,
  type VectorPlaces,
} from './vectors.ts';

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
  #now: VectorPlace;
  /** A snapshot shows the vector itself, not a copy. */
  #lent = false;
  /** Places that hold nothing now, the last one used first; at least one is there while the vector is lent. */
  readonly #free: VectorPlace[];
  /** So many vectors may be lent at once; the others are copied. */
  readonly #lentMax: number;
  #lentCount = 0;
  /** Where it is encoded, when workers are sent it in bf16. */
  readonly #halves: Half[];
  readonly #optimizer: FusedOptimizer;
  /** For the results of local steps; null: workers take none. */
  readonly #outer: FusedOptimizer | null;
  readonly #parts: VectorParts;
  readonly #bounds: readonly NormBound[];
  readonly #average: Average | null;
  readonly #statistics: MergedStatistics;
  /** What a checkpoint or a standby keeps of them. */
  readonly kept: KeptVectors;
  /** Room for one payload: of a push that landed elsewhere, of `topk` spread out, of a bf16 snapshot. */
  readonly #scratch: number;
  /** One for each push that may land at once: those that are free. */
  readonly #rooms: LandingRoom[] = [];
  /** Elements of gradients are cut before: the norm that can be measured while one arrives is another one. */
  readonly #cuts: boolean;
  /** Pushes that wait for their update; null: each push is one. */
  readonly #collected: PushCollection | null;
  /** What workers were sent; null: nobody asks. */
  readonly #sent: SentParameters | null;
  readonly #pool = new SnapshotPool();
  /** Snapshots of this step, made when first asked for. */
  readonly #snapshots: { f32: Snapshot | null; bf16: Snapshot | null } = { f32: null, bf16: null };

  /**
   * @param places that there are to be, as of `placesOf`.
   * @throws DownpourError DP_LAYOUT_INVALID: too large for one memory; of `normBounds`.
   */
  constructor(
    layout: Layout,
    config: Pick<
      RunConfig,
      | 'optimizer'
      | 'weightDecay'
      | 'clip'
      | 'maxNorm'
      | 'averaging'
      | 'compression'
      | 'consistency'
      | 'local'
      | 'outer'
      | 'groups'
    >,
    { velocities, collected, sent }: VectorPlaces = NO_PLACES,
  ) {
    const { trainableSize, exchangedSize, size, tensors, frozenSize } = layout;
    this.layout = layout;
    this.#parts = new VectorParts(trainableSize, fragmentsOf(config));
    this.#bounds = normBounds(config.maxNorm, tensors);
    this.#cuts = config.clip.value !== null;
    const payload = regionBytes(4 * exchangedSize);
    const fixed =
      regionBytes(4 * size) +
      rulesBytes(config, trainableSize, velocities) +
      outerBytes(config, trainableSize) +
      averageBytes(config.averaging, exchangedSize) +
      gatheredBytes({ collected, sent }, config.consistency, layout) +
      payload;
    checkMemoryBytes(fixed + LANDINGS_MIN * payload);
    const landings = roomCount(payload, MEMORY_BYTES_MAX - fixed);
    // Frozen tensors would have to be in each vector.
    const isHalf = config.compression.pull === 'bf16';
    const lent = isHalf ? encodedBytes('bf16', exchangedSize) : frozenSize > 0 ? 0 : 4 * size;
    const taken = fixed + landings * payload;
    const rooms = lent === 0 ? 0 : roomCount(regionBytes(lent), MEMORY_BYTES_MAX - taken);
    const memory = new Memory(taken + rooms * regionBytes(lent));
    const kernels = createKernels(memory.memory);
    this.#memory = memory;
    this.#kernels = kernels;
    this.#encoders = createCompressionKernels(memory.memory);
    this.#now = vectorAt(memory, memory.take(4 * size), layout, size);
    const room = { memory, kernels, theta: this.#now.address };
    this.#optimizer = createRules(config, layout, room, velocities);
    this.#outer = createOuter(config, trainableSize, room);
    this.#average = createAverage(config.averaging, exchangedSize, room);
    const gathered = { memory, kernels, layout };
    const { aggregate = 'mean' } = config.consistency;
    this.#collected = collected > 0 ? new PushCollection(gathered, aggregate, collected) : null;
    this.#sent =
      sent > 0 ? new SentParameters(gathered, sent, isAdaptive(config.consistency)) : null;
    this.#scratch = memory.take(4 * exchangedSize);
    this.#lentMax = isHalf ? 0 : rooms;
    this.#free = Array.from({ length: landings + this.#lentMax }, () =>
      vectorAt(memory, memory.take(4 * exchangedSize), layout, exchangedSize),
    );
    for (let i = 0; i < landings; i++) this.#rooms.push(new LandingRoom(this.#came, this.#left));
    this.#halves = Array.from({ length: isHalf ? rooms : 0 }, () => {
      const address = memory.take(lent);
      return { address, bytes: memory.bytes(address, lent) };
    });
    this.#statistics = new MergedStatistics(layout);
    this.kept = new KeptVectors({
      layout,
      now: () => this.#now.values,
      own: () => this.#own(),
      changed: () => this.#changed(),
      statistics: this.#statistics,
      optimizer: this.#optimizer,
      outer: this.#outer,
      average: this.#average,
      collected: this.#collected,
      sent: this.#sent,
    });
  }

  /**
   * Room for the payload of a push, at a multiple of 64, until it is released.
   * @param encoding of its gradient, to measure it while it arrives; null: not known.
   * @returns null: larger than any dense payload of this layout, or all rooms are taken.
   */
  land(byteLength: number, encoding: Encoding | null): LandingRoom | null {
    if (byteLength > payloadLimits(this.layout).roomBytes) return null;
    const room = this.#rooms.pop();
    if (!room) return null;
    const place = this.#free.pop()!;
    const { trainableSize: n } = this.layout;
    // A fragment is small, and its size is not known yet.
    const mayScan = encoding !== null && encoding !== 'topk' && !this.#parts.areSeveral;
    const dense = mayScan && byteLength >= encodedBytes(encoding, n);
    room.scan =
      dense && !this.#cuts ? new GradientScan(gradientAt(encoding, place.address, n)) : null;
    // Pushes of one run are of one size, as a rule: then the view of the last one does.
    if (place.payload.length !== byteLength) {
      place.payload = this.#memory.bytes(place.address, byteLength);
    }
    room.bytes = place.payload;
    room.place = place;
    return room;
  }

  /** More of a payload is there: it is looked at while a core has it in its cache. */
  readonly #came = (scan: GradientScan, bytes: number): void => {
    const { decoding } = scan.gradient;
    const { trainableSize: n } = this.layout;
    const numbers = Math.max(0, bytes - scaleBytes(decoding, n));
    const elements = Math.min(n, Math.floor(numbers / BYTES[decoding]));
    scan.go(this.#kernels, elements - (elements % BLOCK_ELEMENTS));
  };

  readonly #left = (room: LandingRoom): void => {
    if (room.place) this.#free.push(room.place);
    room.place = null;
    this.#rooms.push(room);
  };

  /** Trainable and statistics as they are now, encoded. Hold it to use it after the next change. */
  snapshot(encoding: 'f32' | 'bf16' = 'f32'): Snapshot {
    this.#snapshots[encoding] ??= encoding === 'f32' ? this.#lend() : this.#encode();
    return this.#snapshots[encoding];
  }

  #lend(): Snapshot {
    const now = this.#now;
    if (this.#lentCount >= this.#lentMax) {
      return this.#pool.make(now.bytes.length, 'f32', (bytes) => bytes.set(now.bytes));
    }
    this.#lent = true;
    this.#lentCount++;
    return new Snapshot(
      now.bytes,
      'f32',
      () => {
        this.#lentCount--;
        this.#free.push(now);
      },
      true,
    );
  }

  #encode(): Snapshot {
    const n = this.layout.exchangedSize;
    const half = this.#halves.pop();
    if (half) {
      this.#encodeInto(half, this.#now, 0, n);
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
    return new Snapshot(half.bytes, 'bf16', () => void this.#halves.push(half), true);
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
      const next = this.#free.pop()!;
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

  /** The whole vector with these trainable and statistics values, or all of these; a copy of shape [layout.size]. */
  whole(exchanged?: Float32Array, copy: CopyVector = slice): Float32Array {
    const whole = copy(this.#now.values);
    if (exchanged) whole.set(exchanged);
    return whole;
  }

  /** Fresh parameters, shape [layout.size]: optimizer, average and merging begin anew. */
  initialise(values: Float32Array): void {
    this.#own().set(values);
    this.#statistics.merges = 0;
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
    this.#outer?.reset();
    this.#average?.reset();
    this.#sent?.reset();
  }

  /** A worker is sent the parameters as they are. @param fresh the slot was another worker's before. */
  remember(slot: number, fresh: boolean): void {
    this.#sent!.remember(slot, this.#now.values, fresh);
  }

  /**
   * Keeps a push until `combine` makes an update of several.
   * @param compensation null: its gradient is used as it is.
   */
  collect(push: StagedPush, weight: PushWeight, compensation: CompensationUse | null): void {
    const { scan, statistics, part } = push;
    const gradient = compensation
      ? this.#compensated(scan.gradient, NO_CLIP, compensation)
      : placedAt(scan.gradient, part.start);
    this.#collected!.take(gradient, statistics, weight, part);
  }

  /**
   * @param shares of all of them, added up. @param fragment that all of them are of; absent: of all parameters.
   * @returns one push made of those that were collected.
   */
  combine(shares: number, faulty: number, fragment?: number): StagedPush {
    const { address, values } = this.#collected!.combine(shares, faulty);
    const part = this.#parts.of(fragment);
    const scan = new GradientScan(gradientAt('f32', address + 4 * part.start, sizeOf(part)));
    return { scan, statistics: values.subarray(this.layout.trainableSize), room: null, part };
  }

  /** Those that were collected are of no more use. */
  discard(): void {
    this.#collected?.clear();
  }

  #compensated(gradient: Staged, clip: Clip, use: CompensationUse): Staged {
    const address = this.#sent!.compensated(gradient, clip, use, this.#now.values);
    return gradientAt('f32', address, this.layout.trainableSize);
  }

  /**
   * Takes a push's payload in: the gradient where it has landed, or copied there; `topk` spread out.
   * It must be used before anything else is asked of the parameters, whose next vector may take its place.
   * @param room that `land` gave for the payload; null: the payload came to other memory.
   * @param fragment that the payload holds; absent: all parameters.
   * @throws DownpourError DP_TENSOR_SIZE: not a payload of this layout.
   */
  stage(
    payload: Uint8Array,
    encoding: Encoding,
    room: LandingRoom | null = null,
    fragment?: number,
  ): StagedPush {
    const { statisticsSize } = this.layout;
    const part = this.#parts.of(fragment);
    const n = sizeOf(part);
    const bytes = gradientBytes(encoding, payload, n, 4 * statisticsSize);
    if (encoding === 'topk') {
      // Pushes of this kind are short, wherever they lie.
      const spread = this.#memory.floats(this.#scratch, n);
      decodeTopk(payload.subarray(0, bytes), spread);
      const scan = new GradientScan(gradientAt('f32', this.#scratch, n));
      return { scan, statistics: aligned(payload.subarray(bytes)), room: null, part };
    }
    // A payload that was moved while it came lies elsewhere.
    const isHere = payload.buffer === this.#memory.memory.buffer;
    const landed = isHere && payload.byteOffset === room?.place?.address ? room : null;
    const address = landed ? payload.byteOffset : this.#scratch;
    if (!landed) this.#memory.bytes(address, payload.length).set(payload);
    const statistics =
      statisticsSize === 0 ? NO_STATISTICS : this.#memory.floats(address + bytes, statisticsSize);
    const begun = landed?.scan?.gradient.decoding === encoding ? landed.scan : null;
    const scan = begun ?? new GradientScan(gradientAt(encoding, address, n));
    return { scan, statistics, room: landed, part };
  }

  /**
   * Makes a gradient of a push that holds the parameters x of a worker: θ − x at this moment, where x was.
   * @throws DownpourError DP_TENSOR_SIZE: they are not in f32.
   */
  elastic(push: StagedPush): StagedPush {
    return elasticGradient(this.#memory, push, this.#now.values, this.layout.trainableSize);
  }

  /** Σ (θ − x)² of such a push at this moment, which stays as it is; NaN: not all of it is finite. */
  elasticSquares(push: StagedPush): number {
    return elasticSquares(this.#memory, push, this.#now.values, this.layout.trainableSize);
  }

  /**
   * The squared L2 norm of a gradient whose elements are cut to ±limit first; NaN as soon as an element
   * of it or of the statistics is not finite.
   */
  squares({ scan, statistics, part }: StagedPush, limit: number): number {
    if (!Number.isFinite(normAndFinite(statistics))) return Number.NaN;
    const n = sizeOf(part);
    if (limit !== Infinity) return sumOfSquares(this.#kernels, scan.gradient, n, limit);
    scan.go(this.#kernels, n);
    return sumOfSquares(this.#kernels, scan.gradient, n, limit, scan.sum);
  }

  /**
   * Applies a gradient and merges statistics, both finite.
   * @returns false when a parameter overflowed: all of them are as before, or as workers saw them in
   *   bf16; the optimizer is spoilt. The average is finite, and may have the update's parameters in blocks before the first
   *   that overflowed.
   */
  update(push: StagedPush, clipped: Clip, options: StepOptions): boolean {
    const from = this.#now;
    const { part } = push;
    const isWhole = sizeOf(part) === this.layout.trainableSize;
    const { compensation } = options;
    const optimizer = options.outer ? this.#outer! : this.#optimizer;
    const gradient = compensation
      ? this.#compensated(push.scan.gradient, clipped, compensation)
      : placedAt(push.scan.gradient, part.start);
    const clip = compensation ? NO_CLIP : clipped;
    // Where the numbers have the same size, each is read right before its place is written to.
    const isAlike = gradient.decoding === 'f32' && this.layout.frozenSize === 0 && !compensation;
    const landed = isAlike && isWhole ? (push.room?.place ?? null) : null;
    const spare = this.#lentMax > 0 ? this.#free.at(-1) : undefined;
    const to = landed ?? spare ?? from;
    // Workers were sent one, as a rule, so it is there already.
    const { f32, bf16 } = this.#snapshots;
    const before = to === from ? (f32 ?? bf16 ?? this.snapshot()) : null;
    const average = this.#average?.begin(options.step) ? this.#average : null;
    // A bound changes the vector once more, so it is encoded when it is asked for.
    const isLast = this.#bounds.length === 0;
    const half = isLast ? (this.#halves.pop() ?? null) : null;
    // What lies outside a fragment is the same in the next vector.
    if (!isWhole && to !== from) to.values.set(from.values.subarray(0, to.values.length));
    // How far average and encoding have come.
    let taken = 0;
    let finite = true;
    const n = this.layout.trainableSize;
    const blocks = isLast && (average !== null || half !== null) ? BLOCK_ELEMENTS : n;
    // Once also where nothing is trained: a shard keeps the velocities that the others keep.
    for (let start = 0; start === 0 || start < n; start += blocks) {
      const end = Math.min(n, start + blocks);
      const [first, last] = [Math.max(start, part.start), Math.min(end, part.end)];
      const where = { from: from.address, to: to.address, start: first, end: last };
      if (!optimizer.apply(gradient, clip, options, where)) finite = false;
      if (blocks === n) break;
      // A run on shards may end with the average before it learns that this shard refused the update.
      if (!finite) continue;
      // What is left of a last vector of numbers waits for the statistics behind it.
      taken = end & ~15;
      average?.take(to.values, start, taken);
      if (half) this.#encodeInto(half, to, start, taken);
    }
    if (!finite) {
      average?.withdraw();
      if (half) this.#halves.push(half);
      const { exchangedSize } = this.layout;
      if (before)
        decodeGradient(before.encoding, before.bytes, from.values.subarray(0, exchangedSize));
      return false;
    }
    this.#statistics.merge(push.statistics, from.statistics, to.statistics);
    project(to.values, this.#bounds);
    average?.take(to.values, taken, this.layout.exchangedSize);
    if (half) this.#encodeInto(half, to, taken, this.layout.exchangedSize);
    if (to !== from) {
      if (landed) push.room!.place = null;
      else this.#free.pop();
      if (!this.#lent) this.#free.push(from);
      this.#lent = false;
      this.#now = to;
    }
    this.#changed();
    if (half) this.#snapshots.bf16 = this.#halfSnapshot(half);
    return true;
  }

  /** Elements [start, end) of the vector in bf16; both are multiples of 8, or `end` is the last. */
  #encodeInto({ address }: Half, of: VectorPlace, start: number, end: number): void {
    this.#encoders.encode_bf16(of.address + 4 * start, end - start, address + 2 * start);
  }
}

/** A place for the vector in bf16. */
interface Half {
  readonly address: number;
  readonly bytes: Uint8Array;
}

const sizeOf = ({ start, end }: Range): number => end - start;
const NO_CLIP: Clip = { limit: Infinity, factor: 1 };
const NO_STATISTICS = new Float32Array();
/**
 * So many elements of each vector that an update touches are worked on, by one kernel after another, before
 * the next ones: all of them stay in the cache of a core. A multiple of the blocks of every kernel.
 */
const BLOCK_ELEMENTS = 2 ** 13;

function aligned(bytes: Uint8Array): Float32Array {
  const copy = new Float32Array(bytes.length / 4);
  bytesOf(copy).set(bytes);
  return copy;
}
