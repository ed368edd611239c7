import type { RunConfig } from '../shared/config.ts';
import type { PlacedTensor } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import { measuredOf } from '../shared/message-fields.ts';
import type {
  Histogram,
  LayerObservation,
  Observed,
  TensorObservation,
} from '../shared/observed.ts';
import type { Lease } from '../shared/protocol.ts';
import { layerState, PASSIVE } from './check/model.ts';
import type { Minibatch } from './data/examples.ts';
import { sliceMinibatch } from './data/gather.ts';
import type { Model } from './model.ts';

/**
 * Samples what a worker has in its hands anyway (Deep Learning §11.5): weights and gradient at a step,
 * the update by comparison with the parameters pulled next, activations by one more forward pass over a
 * part of the minibatch. All of it here and nothing on the server, whose time is everybody's; and so
 * it is the same whether one server or several shards have the parameters.
 *
 * The numbers of the leases say whose turn it is: each lease is one worker's, and they count up by one.
 */

export interface Observer {
  /** Newer parameters, shape [≥ trainableSize], borrowed. @param exact f32 all the way. */
  notePull(values: Float32Array, step: number, generation: number, exact: boolean): void;
  /** A gradient was computed, at parameters that the model still holds. */
  noteGradient(sample: {
    readonly lease: Lease;
    readonly minibatch: Minibatch;
    readonly values: Float32Array;
    readonly gradient: Float32Array;
    readonly step: number;
    readonly generation: number;
    readonly computeMs: number;
  }): Promise<void>;
}

/** Elements of one tensor, and of all, that are looked at. */
const TENSOR_ELEMENTS = 2 ** 14;
const ALL_ELEMENTS = 2 ** 17;
const BINS = 24;
/** Examples for activations. */
const EXAMPLES = 32;
/** A gradient in fewer than one of so many samples is a rare one. */
const RARE = 20;

interface PendingObservation {
  readonly step: number;
  readonly generation: number;
  readonly exact: boolean;
  /** The weights of the elements looked at, tensor by tensor. */
  readonly weights: readonly Float32Array[];
  readonly tensors: readonly TensorObservation[];
  readonly layers: LayerObservation[];
}

export interface ObserverOptions {
  readonly run: string;
  readonly config: RunConfig['observe'];
  readonly model: Model;
  readonly send: (message: Observed) => void;
  /** Monotonic ms. */
  readonly now: () => number;
}

/** Null: nothing is to be sampled. */
export function createObserver(options: ObserverOptions): Observer | null {
  const { everySteps } = options.config;
  return everySteps === null ? null : new RunObserver(options, everySteps);
}

type GradientSample = Parameters<Observer['noteGradient']>[0];

class RunObserver implements Observer {
  readonly #options: ObserverOptions;
  readonly #everySteps: number;
  readonly #tensors: readonly PlacedTensor[];
  /** The places of the elements looked at, tensor by tensor. */
  readonly #elements: readonly Int32Array[];
  /** In how many samples each element had a gradient. */
  readonly #seen: readonly Uint32Array[];
  #samples = 0;
  #isDue = false;
  #pending: PendingObservation | null = null;
  #isExact = true;
  readonly #spent = { costMs: 0, computeMs: 0 };
  #toldMs = 0;

  constructor(options: ObserverOptions, everySteps: number) {
    this.#options = options;
    this.#everySteps = everySteps;
    const tensors = options.model.layout.tensors
      .filter(({ role, size }) => role === 'trainable' && size > 0)
      .slice(0, LIMITS.observedMax);
    const most = Math.min(TENSOR_ELEMENTS, Math.floor(ALL_ELEMENTS / tensors.length));
    this.#tensors = tensors;
    this.#elements = tensors.map((tensor) => elementsOf(tensor, most));
    this.#seen = this.#elements.map((of) => new Uint32Array(of.length));
  }

  notePull(values: Float32Array, step: number, generation: number, exact: boolean): void {
    this.#isExact = exact;
    const pending = this.#pending;
    if (!pending || (pending.generation === generation && step <= pending.step)) return;
    const start = this.#options.now();
    const comparable = pending.generation === generation && exact && pending.exact;
    this.#finish(pending, comparable ? values : null, step - pending.step);
    this.#spent.costMs += this.#options.now() - start;
  }

  async noteGradient(given: GradientSample): Promise<void> {
    const { costMax } = this.#options.config;
    const spent = this.#spent;
    spent.computeMs += given.computeMs;
    if ((given.lease.id - 1) % this.#everySteps === 0) this.#isDue = true;
    // The first one is free: until then nobody knows what it costs.
    const isCheap = this.#samples === 0 || spent.costMs <= costMax * spent.computeMs;
    if (!this.#isDue || !isCheap || this.#pending) return;
    this.#isDue = false;
    const start = this.#options.now();
    await this.#sample(given);
    spent.costMs += this.#options.now() - start;
  }

  async #sample({ minibatch, values, gradient, step, generation }: GradientSample): Promise<void> {
    this.#samples++;
    const weights = this.#elements.map((of) => Float32Array.from(of, (i) => values[i]!));
    const tensors = this.#tensors.map((tensor, t): TensorObservation => {
      const taken = Float32Array.from(this.#elements[t]!, (i) => gradient[i]!);
      const counts = this.#seen[t]!;
      let squares = 0;
      for (let i = 0; i < taken.length; i++) {
        squares += taken[i]! ** 2;
        if (taken[i] !== 0) counts[i]!++;
      }
      return {
        name: tensor.name,
        weights: histogramOf(weights[t]!),
        gradients: histogramOf(taken),
        ...{ updates: null, updateRatio: null, elements: taken.length },
        gradientNorm: finite(Math.sqrt((squares * tensor.size) / taken.length)),
        never: counts.filter((count) => count === 0).length,
        rare: counts.filter((count) => count > 0 && count * RARE < this.#samples).length,
      };
    });
    const layers = await this.#layersAt(minibatch);
    this.#pending = { step, generation, exact: this.#isExact, weights, tensors, layers };
  }

  async #layersAt(minibatch: Minibatch): Promise<LayerObservation[]> {
    const outputs = await this.#options.model.activations(sliceMinibatch(minibatch, 0, EXAMPLES));
    return outputs
      .filter(({ kind }) => !PASSIVE.includes(kind))
      .slice(0, LIMITS.observedMax)
      .map((output): LayerObservation => {
        const { saturated, dead, activation } = layerState(output);
        return {
          ...{ layer: output.layer, activation, saturated, dead },
          values: histogramOf(output.values),
        };
      });
  }

  /** Sends what waited for its update. @param values after it; null: not comparable. */
  #finish(pending: PendingObservation, values: Float32Array | null, updateSteps: number): void {
    const { step, weights, tensors, layers } = pending;
    const { run, send } = this.#options;
    this.#pending = null;
    const updated = tensors.map((tensor, t): TensorObservation => {
      if (!values) return tensor;
      const old = weights[t]!;
      const update = Float32Array.from(
        this.#elements[t]!,
        (i, j) => (values[i]! - old[j]!) / updateSteps,
      );
      const size = norm(old);
      const ratio = size === 0 ? null : measuredOf(norm(update) / size);
      return { ...tensor, updates: histogramOf(update), updateRatio: ratio };
    });
    const costMs = this.#spent.costMs - this.#toldMs;
    this.#toldMs = this.#spent.costMs;
    send({
      ...{ type: 'observed', run, step, updateSteps: values ? updateSteps : 0 },
      ...{ samples: this.#samples, costMs, tensors: updated, layers },
    });
  }
}

/** Evenly spaced places of a tensor's elements in the flat vector. */
function elementsOf({ offset, size }: PlacedTensor, most: number): Int32Array {
  const count = Math.min(size, Math.max(1, most));
  return Int32Array.from({ length: count }, (_, i) => offset + Math.floor((i * size) / count));
}

/** Values that are not finite are left out: a run that diverges says so elsewhere. */
export function histogramOf(values: Float32Array): Histogram {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return { low: 0, high: 0, counts: [0] };
  if (low === high) return { low, high, counts: [values.length] };
  const counts = new Array<number>(BINS).fill(0);
  const scale = BINS / (high - low);
  for (const value of values) {
    if (Number.isFinite(value)) counts[Math.min(BINS - 1, Math.floor((value - low) * scale))]!++;
  }
  return { low, high, counts };
}

function norm(values: Float32Array): number {
  let squares = 0;
  for (const value of values) squares += value * value;
  return Math.sqrt(squares);
}

const finite = (value: number) => (Number.isFinite(value) ? value : 0);
