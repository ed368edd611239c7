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
} from './fused.ts';
import { createKernels, type Kernels } from './kernels.ts';
import { type NormBound, normBounds, project } from './max-norm.ts';
import { decayRanges, normAndFinite, type StepOptions } from './optimizer.ts';
import { type Snapshot, SnapshotPool } from './snapshot.ts';

/**
 * The numbers of a run: one flat vector with all that moves it (optimizer, merging of statistics) and
 * all that is derived from it (snapshot, average), in one memory that the kernels work on.
 */
export class Parameters {
  readonly layout: Layout;
  readonly #memory: Memory;
  readonly #kernels: Kernels;
  readonly #encoders: CompressionKernels;
  /** Shape [layout.size]: trainable, statistics, frozen. Never leaves this file but as a copy. */
  readonly #vector: Float32Array;
  readonly #theta: number;
  readonly #statistics: Float32Array;
  readonly #optimizer: FusedOptimizer;
  readonly #bounds: readonly NormBound[];
  readonly #average: Average | null;
  /** The momentum of each statistics tensor, with its place in `#statistics`. */
  readonly #ranges: readonly { start: number; end: number; momentum: number }[];
  /** Room for one payload: of a push that landed elsewhere, of `topk` spread out, of a bf16 snapshot. */
  readonly #scratch: number;
  /** Addresses where payloads of pushes may land. */
  readonly #landings: number[];
  #merges = 0;
  readonly #pool = new SnapshotPool();
  /** Of this step, made when first asked for. */
  readonly #snapshots = new Map<'f32' | 'bf16', Snapshot>();

  /** @throws DownpourError DP_LAYOUT_INVALID: too large for one memory; of `normBounds`. */
  constructor(
    layout: Layout,
    config: Pick<RunConfig, 'optimizer' | 'weightDecay' | 'maxNorm' | 'averaging'>,
  ) {
    const { trainableSize, exchangedSize, size, tensors } = layout;
    this.layout = layout;
    this.#bounds = normBounds(config.maxNorm, tensors);
    const payload = regionBytes(4 * exchangedSize);
    const fixed =
      regionBytes(4 * size) +
      optimizerBytes(config.optimizer, trainableSize) +
      averageBytes(config.averaging, exchangedSize) +
      payload;
    checkMemoryBytes(fixed + LANDINGS_MIN * payload);
    const landings = landingCount(payload, fixed);
    const memory = new Memory(fixed + landings * payload);
    const kernels = createKernels(memory.memory);
    this.#memory = memory;
    this.#kernels = kernels;
    this.#encoders = createCompressionKernels(memory.memory);
    const theta = memory.take(4 * size);
    this.#theta = theta;
    this.#vector = memory.floats(theta, size);
    this.#statistics = this.#vector.subarray(trainableSize, exchangedSize);
    const decay = decayRanges(config.weightDecay, tensors);
    const room = { memory, kernels, theta };
    this.#optimizer = createFusedOptimizer(config.optimizer, trainableSize, decay, room);
    this.#average = createAverage(config.averaging, exchangedSize, room);
    this.#scratch = memory.take(4 * exchangedSize);
    this.#landings = Array.from({ length: landings }, () => memory.take(4 * exchangedSize));
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
    const address = this.#landings.pop();
    if (address === undefined) return null;
    return {
      bytes: this.#memory.bytes(address, byteLength),
      release: () => void this.#landings.push(address),
    };
  }

  /** Trainable and statistics as they are now, encoded. Hold it to use it after the next change. */
  snapshot(encoding: 'f32' | 'bf16' = 'f32'): Snapshot {
    let snapshot = this.#snapshots.get(encoding);
    if (!snapshot) {
      const n = this.layout.exchangedSize;
      snapshot = this.#pool.make(encodedBytes(encoding, n), encoding, (bytes) => {
        if (encoding === 'f32') bytes.set(this.#memory.bytes(this.#theta, 4 * n));
        else {
          this.#encoders.encode_bf16(this.#theta, n, this.#scratch);
          bytes.set(this.#memory.bytes(this.#scratch, bytes.length));
          bytes.fill(0, 2 * n);
        }
      });
      this.#snapshots.set(encoding, snapshot);
    }
    return snapshot;
  }

  #changed(): void {
    for (const snapshot of this.#snapshots.values()) snapshot.release();
    this.#snapshots.clear();
  }

  /** Trainable and statistics as they are now: a copy of shape [exchangedSize]. */
  exchanged(): Float32Array {
    return this.#vector.slice(0, this.layout.exchangedSize);
  }

  /** What is evaluated and kept, a copy: the average when there is one, else as they are now. */
  evaluated(): Float32Array {
    return this.#average && this.#average.count > 0
      ? this.#average.values.slice()
      : this.exchanged();
  }

  /** The whole vector with these trainable and statistics values, a copy of shape [layout.size]. */
  whole(exchanged?: Float32Array, copy: Copy = slice): Float32Array {
    const whole = copy(this.#vector);
    if (exchanged) whole.set(exchanged);
    return whole;
  }

  /** Fresh parameters, shape [layout.size]: optimizer, average and merging begin anew. */
  initialise(values: Float32Array): void {
    this.#vector.set(values);
    this.#merges = 0;
    this.#changed();
    this.resetOptimizer();
  }

  /** Other values for trainable and statistics, shape [exchangedSize]. */
  replace(exchanged: Float32Array): void {
    this.#vector.set(exchanged);
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
    const rest = payload.subarray(bytes);
    if (encoding === 'topk') {
      // Pushes of this kind are short, wherever they lie.
      const spread = this.#memory.floats(this.#scratch, n);
      decodeTopk(payload.subarray(0, bytes), spread);
      const gradient: Staged = { decoding: 'f32', address: this.#scratch, scales: 0 };
      return { gradient, statistics: aligned(rest) };
    }
    let { byteOffset: address } = payload;
    if (payload.buffer !== this.#memory.memory.buffer || address % 16 !== 0) {
      address = this.#scratch;
      this.#memory.bytes(address, payload.length).set(payload);
    }
    const statistics = this.#memory.floats(address + bytes, statisticsSize);
    if (encoding !== 'int8') {
      return { gradient: { decoding: encoding, address, scales: 0 }, statistics };
    }
    const numbers = address + 4 * Math.ceil(n / BLOCK);
    return { gradient: { decoding: 'int8', address: numbers, scales: address }, statistics };
  }

  /**
   * The squared L2 norm of a gradient whose elements are cut to ±limit first; NaN as soon as an element
   * of it or of the statistics is not finite.
   */
  squares({ gradient, statistics }: StagedPush, limit: number): number {
    if (!Number.isFinite(normAndFinite(statistics))) return Number.NaN;
    const { decoding, address, scales } = gradient;
    return this.#kernels[`squares_${decoding}`](address, scales, this.layout.trainableSize, limit);
  }

  /**
   * Applies a gradient and merges statistics, both finite.
   * @returns false when a parameter overflowed: all of them are as before, or as workers saw them in
   *   bf16; the optimizer is spoilt.
   */
  update({ gradient, statistics }: StagedPush, clip: Clip, options: StepOptions): boolean {
    // Workers were sent one, as a rule, so it is there already.
    const before = this.#snapshots.get('f32') ?? this.#snapshots.get('bf16') ?? this.snapshot();
    if (!this.#optimizer.apply(gradient, clip, options)) {
      const exchanged = this.#vector.subarray(0, this.layout.exchangedSize);
      decodeGradient(before.encoding, before.bytes, exchanged);
      return false;
    }
    project(this.#vector, this.#bounds);
    this.#mergeStatistics(statistics);
    this.#changed();
    this.#average?.update(this.#vector, options.step);
    return true;
  }

  /**
   * M ← d·M + (1 − d)·b with the minibatch's statistics b, whatever the staleness of the push. While
   * few have been merged, d is smaller, so that the arbitrary first values are soon forgotten.
   */
  #mergeStatistics(minibatch: Float32Array): void {
    if (minibatch.length === 0) return;
    const merges = this.#merges++;
    const values = this.#statistics;
    for (const { start, end, momentum } of this.#ranges) {
      const keep = Math.min(momentum, (1 + merges) / (10 + merges));
      for (let i = start; i < end; i++) values[i] = keep * values[i]! + (1 - keep) * minibatch[i]!;
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
    return [[VECTOR, this.#vector], ...this.#state()];
  }

  /** Overwrites a piece of one of the `vectors`. */
  write(name: string, start: number, values: Float32Array): void {
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
      this.#vector.set(takeTensor(tensors, name, size), offset);
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
      this.#vector.set(takeTensor(tensors, name, size), offset);
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

const LANDINGS_MIN = 2;
const LANDINGS_MAX = 64;
/** Rooms for pushes take no more, unless `LANDINGS_FEW` of them do. */
const LANDING_BYTES = 2 ** 28;
const LANDINGS_FEW = 4;

/** As many workers' pushes as may arrive at once; the others wait. */
function landingCount(payload: number, fixed: number): number {
  const wanted = Math.max(LANDINGS_FEW, Math.floor(LANDING_BYTES / payload));
  const fitting = Math.floor((MEMORY_BYTES_MAX - fixed) / payload);
  return Math.min(LANDINGS_MAX, wanted, fitting);
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
