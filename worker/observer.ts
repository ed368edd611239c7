import type { RunConfig } from '../shared/config.ts';
import type { PlacedTensor } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import {
  type Histogram,
  type LayerObservation,
  type Lease,
  measuredOf,
  type Observed,
  type TensorObservation,
} from '../shared/protocol.ts';
import { PASSIVE, stateOf } from './check/model.ts';
import type { Minibatch } from './data/examples.ts';
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

interface Pending {
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
  const { run, config, model, send, now } = options;
  const { everySteps, costMax } = config;
  if (everySteps === null) return null;
  const tensors = model.layout.tensors
    .filter(({ role, size }) => role === 'trainable' && size > 0)
    .slice(0, LIMITS.observedMax);
  const most = Math.min(TENSOR_ELEMENTS, Math.floor(ALL_ELEMENTS / tensors.length));
  const elements = tensors.map((tensor) => elementsOf(tensor, most));
  /** In how many samples each element had a gradient. */
  const seen = elements.map((of) => new Uint32Array(of.length));
  let samples = 0;
  let due = false;
  let pending: Pending | null = null;
  let exactNow = true;
  const spent = { costMs: 0, computeMs: 0 };
  let toldMs = 0;

  async function sample(given: Parameters<Observer['noteGradient']>[0]): Promise<void> {
    const { minibatch, values, gradient, step, generation } = given;
    samples++;
    const weights = elements.map((of) => Float32Array.from(of, (i) => values[i]!));
    const parts = tensors.map((tensor, t): TensorObservation => {
      const taken = Float32Array.from(elements[t]!, (i) => gradient[i]!);
      const counts = seen[t]!;
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
        rare: counts.filter((count) => count > 0 && count * RARE < samples).length,
      };
    });
    const outputs = await model.activations(firstExamples(minibatch, EXAMPLES));
    const layers = outputs
      .filter(({ kind }) => !PASSIVE.includes(kind))
      .slice(0, LIMITS.observedMax)
      .map((output): LayerObservation => {
        const { saturated, dead, activation } = stateOf(output);
        return {
          ...{ layer: output.layer, activation, saturated, dead },
          values: histogramOf(output.values),
        };
      });
    pending = { step, generation, exact: exactNow, weights, tensors: parts, layers };
  }

  /** Sends what waited for its update. */
  function finish(values: Float32Array | null, updateSteps: number): void {
    const { step, weights, tensors: parts, layers } = pending!;
    pending = null;
    const updated = parts.map((part, t): TensorObservation => {
      if (!values) return part;
      const old = weights[t]!;
      const update = Float32Array.from(
        elements[t]!,
        (i, j) => (values[i]! - old[j]!) / updateSteps,
      );
      const size = norm(old);
      const ratio = size === 0 ? null : measuredOf(norm(update) / size);
      return { ...part, updates: histogramOf(update), updateRatio: ratio };
    });
    const costMs = spent.costMs - toldMs;
    toldMs = spent.costMs;
    send({
      ...{ type: 'observed', run, step, updateSteps: values ? updateSteps : 0, samples },
      ...{ costMs, tensors: updated, layers },
    });
  }

  return {
    notePull(values, step, generation, exact) {
      exactNow = exact;
      if (!pending || (pending.generation === generation && step <= pending.step)) return;
      const start = now();
      const comparable = pending.generation === generation && exact && pending.exact;
      finish(comparable ? values : null, step - pending.step);
      spent.costMs += now() - start;
    },

    async noteGradient(given) {
      spent.computeMs += given.computeMs;
      if ((given.lease.id - 1) % everySteps === 0) due = true;
      // The first one is free: until then nobody knows what it costs.
      const isCheap = samples === 0 || spent.costMs <= costMax * spent.computeMs;
      if (!due || !isCheap || pending) return;
      due = false;
      const start = now();
      await sample(given);
      spent.costMs += now() - start;
    },
  };
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

function firstExamples(minibatch: Minibatch, most: number): Minibatch {
  const { inputs, targets, inputShape, targetShape } = minibatch;
  const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
  return {
    ...minibatch,
    inputs: inputs.slice(0, most * size(inputShape)),
    targets: targets.slice(0, most * size(targetShape)),
  };
}

function norm(values: Float32Array): number {
  let squares = 0;
  for (const value of values) squares += value * value;
  return Math.sqrt(squares);
}

const finite = (value: number) => (Number.isFinite(value) ? value : 0);
