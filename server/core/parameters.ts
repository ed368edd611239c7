import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { type Layout, STATE_PREFIX } from '../../shared/layout.ts';
import { type Average, type AverageState, createAverage } from './averaging.ts';
import {
  createOptimizer,
  decayRanges,
  normAndFinite,
  type Optimizer,
  type StepOptions,
} from './optimizer.ts';

/**
 * The numbers of a run: one flat vector with all that moves it (optimizer, merging of statistics) and
 * all that is derived from it (snapshot, average).
 */
export class Parameters {
  readonly layout: Layout;
  /** Shape [layout.size]: trainable, statistics, frozen. Never leaves this file but as a copy. */
  readonly #vector: Float32Array;
  readonly #trainable: Float32Array;
  readonly #statistics: Float32Array;
  readonly #optimizer: Optimizer;
  readonly #average: Average | null;
  /** The momentum of each statistics tensor, with its place in `#statistics`. */
  readonly #ranges: readonly { start: number; end: number; momentum: number }[];
  #merges = 0;
  /** Copied once a change, shared by all who ask. */
  #snapshot: Float32Array | null = null;

  constructor(layout: Layout, config: Pick<RunConfig, 'optimizer' | 'weightDecay' | 'averaging'>) {
    const { trainableSize, exchangedSize, size, tensors } = layout;
    this.layout = layout;
    this.#vector = new Float32Array(size);
    this.#trainable = this.#vector.subarray(0, trainableSize);
    this.#statistics = this.#vector.subarray(trainableSize, exchangedSize);
    const decay = decayRanges(config.weightDecay, tensors);
    this.#optimizer = createOptimizer(config.optimizer, trainableSize, decay);
    this.#average = createAverage(config.averaging, exchangedSize);
    this.#ranges = tensors
      .filter((tensor) => tensor.role === 'statistics')
      .map((tensor) => ({
        start: tensor.offset - trainableSize,
        end: tensor.offset - trainableSize + tensor.size,
        momentum: tensor.momentum!,
      }));
  }

  /** Trainable and statistics as they are now, shape [exchangedSize]: not to be written to. */
  snapshot(): Float32Array {
    this.#snapshot ??= this.#vector.slice(0, this.layout.exchangedSize);
    return this.#snapshot;
  }

  /** What is evaluated and kept: the average when there is one, else the snapshot. */
  evaluated(): Float32Array {
    return this.#average && this.#average.count > 0
      ? this.#average.values.slice()
      : this.snapshot();
  }

  /** The whole vector with these trainable and statistics values, a copy of shape [layout.size]. */
  whole(exchanged: Float32Array = this.snapshot()): Float32Array {
    const whole = this.#vector.slice();
    whole.set(exchanged);
    return whole;
  }

  /** Fresh parameters, shape [layout.size]: optimizer, average and merging begin anew. */
  initialise(values: Float32Array): void {
    this.#vector.set(values);
    this.#merges = 0;
    this.#snapshot = null;
    this.resetOptimizer();
  }

  /** Other values for trainable and statistics, shape [exchangedSize]. */
  replace(exchanged: Float32Array): void {
    this.#vector.set(exchanged);
    this.#snapshot = null;
  }

  /** Forgets the optimizer's state and the average. */
  resetOptimizer(): void {
    this.#optimizer.reset();
    this.#average?.reset();
  }

  /**
   * Applies a gradient and merges statistics.
   * @param gradient shape [trainableSize], finite; may be overwritten.
   * @param statistics of the minibatch, shape [statisticsSize], finite.
   * @returns false when a parameter overflowed: all of them are as before, the optimizer is spoilt.
   */
  update(gradient: Float32Array, statistics: Float32Array, options: StepOptions): boolean {
    const before = this.snapshot();
    this.#optimizer.apply(this.#trainable, gradient, options);
    if (!Number.isFinite(normAndFinite(this.#trainable))) {
      this.#vector.set(before);
      return false;
    }
    this.#mergeStatistics(statistics);
    this.#snapshot = null;
    this.#average?.update(this.#vector.subarray(0, this.layout.exchangedSize), options.step);
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
  named(exchanged?: Float32Array): NamedTensor[] {
    const whole = this.whole(exchanged);
    return this.layout.tensors.map(({ name, shape, offset, size }) => ({
      name,
      shape,
      values: whole.subarray(offset, offset + size),
    }));
  }

  /** All that a checkpoint must keep besides `state()`: private copies. */
  tensors(): NamedTensor[] {
    const tensors = this.named();
    for (const [name, values] of this.#state()) tensors.push(flatTensor(name, values));
    return tensors;
  }

  /** The live vectors of optimizer and average by their names in a checkpoint. */
  #state(): [string, Float32Array][] {
    const named = (owner: string, slots: Readonly<Record<string, Float32Array>>) =>
      Object.entries(slots).map(([symbol, values]): [string, Float32Array] => [
        `${STATE_PREFIX}${owner}.${symbol}`,
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
    if (state.average) this.#average?.restore(state.average);
    this.#merges = state.merges;
    this.#snapshot = null;
  }
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

/** A copy of a vector under a name. */
export function flatTensor(name: string, values: Float32Array): NamedTensor {
  return { name, shape: [values.length], values: values.slice() };
}

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
