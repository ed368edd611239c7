import { type Tensor, tf } from '../tf.ts';
import { ACTIVATIONS, type Activation } from './activations.ts';
import type { WasmCell } from './sequence.ts';

/**
 * One time step of a recurrent cell, forward and backward, by few operations. Shapes: B examples, H units, G gates.
 * The input's part of the gates, z = x·W + b, has been computed for all steps at once.
 */
export interface RecurrentCell {
  /** Tensors of shape [B, H] that go from step to step; the first is the output. */
  readonly stateCount: number;
  readonly gateCount: number;
  /** How the wasm engine has all of its steps at once; null: it does not. */
  readonly wasm: WasmCell | null;
  /** The cell that the native engine computes instead; null: this one. */
  readonly native: NativeCell | null;
  /**
   * @param z shape [B, G·H].
   * @param state at the step before; its first has been through recurrent dropout.
   * @param weights recurrent, shape [H, G·H].
   * @returns `kept` is what `back` gets.
   */
  step(z: Tensor, state: readonly Tensor[], weights: Tensor): CellStep;
  /**
   * @param dState of the loss by what `step` gave as `state`; only a later one may be null: it has no slope.
   * @param transposed the weights, shape [G·H, H]: a product takes longer where it must transpose.
   * @param first nothing asks for the state before.
   */
  back(
    dState: readonly (Tensor | null)[],
    kept: readonly Tensor[],
    transposed: Tensor,
    first: boolean,
  ): CellBack;
  /** @param dz of all steps, shape [T, B, G·H]. @param kept of all steps. @returns shape [H, G·H]. */
  weightsGradient(dz: Tensor, kept: readonly (readonly Tensor[])[]): Tensor;
}

/** A cell whose step backward is an operation of TensorFlow. */
export interface NativeCell extends RecurrentCell {
  /** The place in `z` and in `weights` of each gate, in the order in which the layer has them. */
  readonly places: readonly number[];
}

interface CellStep {
  readonly state: readonly Tensor[];
  readonly kept: readonly Tensor[];
}

export interface CellBack {
  readonly dz: Tensor;
  /** By the state before; null: not asked for. */
  readonly dState: readonly Tensor[] | null;
}

/** Long short-term memory without peepholes; the gates are input, forget, candidate, output (Deep Learning §10.10.1). */
export function lstmCell(activation: Activation, gate: Activation): RecurrentCell {
  const { tanh, sigmoid } = ACTIVATIONS;
  const cell = lstmOf(activation, gate, LSTM_PLACES);
  if (activation !== tanh || gate !== sigmoid) return cell;
  const places = NATIVE_LSTM_PLACES;
  return { ...cell, native: { ...lstmOf(activation, gate, places), places } };
}

/** The places of the gates input, forget, candidate, output. */
const LSTM_PLACES = [0, 1, 2, 3];
/** TensorFlow's own operation has the candidate before the gate to forget. */
const NATIVE_LSTM_PLACES = [0, 2, 1, 3];

function lstmOf(
  activation: Activation,
  gate: Activation,
  places: readonly number[],
): RecurrentCell {
  // Two gates change places, so this reads them from their places and puts them there.
  const inPlaces = (gates: readonly Tensor[]) => places.map((place) => gates[place]!) as FourGates;
  return {
    stateCount: 2,
    gateCount: 4,
    wasm: wasmCell('lstm', activation, gate),
    native: null,
    step(z, [h, c], weights) {
      const sum = tf.add(z, tf.matMul(h!, weights));
      const [zi, zf, zg, zo] = inPlaces(tf.split(sum, 4, 1));
      const [i, f, g, o] = [gate.apply(zi), gate.apply(zf), activation.apply(zg), gate.apply(zo)];
      const next = tf.add(tf.mul(f, c!), tf.mul(i, g));
      const a = activation.apply(next);
      return { state: [tf.mul(o, a), next], kept: [h!, c!, i, f, g, o, a] };
    },
    back([dh, dcNext], kept, transposed, first) {
      const [, c, i, f, g, o, a] = kept as Tensor[] as Seven;
      const through = activation.back(tf.mul(dh!, o), a);
      const dc = dcNext ? tf.add(dcNext, through) : through;
      const dz = tf.concat(
        inPlaces([
          gate.back(tf.mul(dc, g), i),
          gate.back(tf.mul(dc, c), f),
          activation.back(tf.mul(dc, i), g),
          gate.back(tf.mul(dh!, a), o),
        ]),
        1,
      );
      if (first) return { dz, dState: null };
      return { dz, dState: [tf.matMul(dz, transposed), tf.mul(dc, f)] };
    },
    weightsGradient: (dz, kept) => product(tf.stack(kept.map(([h]) => h!)), dz),
  };
}

/**
 * Gated recurrent unit; the gates are update, reset, candidate, and the reset gate comes before the product, as in
 * TensorFlow.js (Cho et al. 2014; Deep Learning §10.10.2).
 */
export function gruCell(activation: Activation, gate: Activation): RecurrentCell {
  /** @param axis of the gates. */
  const parts = (weights: Tensor, axis: 0 | 1) => {
    const units = weights.shape[axis]! / 3;
    return tf.split(weights, [2 * units, units], axis) as [Tensor, Tensor];
  };
  return {
    stateCount: 1,
    gateCount: 3,
    wasm: wasmCell('gru', activation, gate),
    native: null,
    step(z, [h], weights) {
      const [gateWeights, candidateWeights] = parts(weights, 1);
      const units = h!.shape[1]!;
      const [zGates, zCandidate] = tf.split(z, [2 * units, units], 1) as [Tensor, Tensor];
      const gates = gate.apply(tf.add(zGates, tf.matMul(h!, gateWeights)));
      const [u, r] = tf.split(gates, 2, 1) as [Tensor, Tensor];
      const rh = tf.mul(r, h!);
      const g = activation.apply(tf.add(zCandidate, tf.matMul(rh, candidateWeights)));
      const d = tf.sub(h!, g);
      return { state: [tf.add(g, tf.mul(u, d))], kept: [h!, gates, u, r, rh, g, d] };
    },
    back([dh], kept, transposed, first) {
      const [h, gates, u, r, , g, d] = kept as Tensor[] as Seven;
      const [byGates, byCandidate] = parts(transposed, 0);
      const straight = tf.mul(dh!, u);
      const dCandidate = activation.back(tf.sub(dh!, straight), g);
      const drh = tf.matMul(dCandidate, byCandidate);
      const dGates = gate.back(tf.concat([tf.mul(dh!, d), tf.mul(drh, h)], 1), gates);
      const dz = tf.concat([dGates, dCandidate], 1);
      if (first) return { dz, dState: null };
      return { dz, dState: [tf.addN([straight, tf.mul(drh, r), tf.matMul(dGates, byGates)])] };
    },
    weightsGradient(dz, kept) {
      const units = dz.shape[2]! / 3;
      const [dGates, dCandidate] = tf.split(dz, [2 * units, units], 2) as [Tensor, Tensor];
      return tf.concat(
        [
          product(tf.stack(kept.map(([h]) => h!)), dGates),
          product(tf.stack(kept.map((each) => each[4]!)), dCandidate),
        ],
        1,
      );
    },
  };
}

/**
 * The gated recurrent unit of Keras, cuDNN and PyTorch, whose reset gate comes after the product (`resetAfterGru` of
 * worker/reset-after-gru.ts). The recurrent weights have the recurrent bias as one more row: shape [H + 1, 3 H].
 */
export function resetAfterGruCell(activation: Activation, gate: Activation): RecurrentCell {
  const parts = (weights: Tensor) =>
    tf.split(weights, [weights.shape[0]! - 1, 1], 0) as [Tensor, Tensor];
  return {
    stateCount: 1,
    gateCount: 3,
    wasm: null,
    native: null,
    step(z, [h], weights) {
      const [own, bias] = parts(weights);
      const units = h!.shape[1]!;
      const split = (x: Tensor) => tf.split(x, [2 * units, units], 1) as [Tensor, Tensor];
      const [zGates, zCandidate] = split(z);
      const [hGates, hCandidate] = split(tf.add(tf.matMul(h!, own), bias));
      const gates = gate.apply(tf.add(zGates, hGates));
      const [u, r] = tf.split(gates, 2, 1) as [Tensor, Tensor];
      const g = activation.apply(tf.add(zCandidate, tf.mul(r, hCandidate)));
      const d = tf.sub(h!, g);
      return {
        state: [tf.add(g, tf.mul(u, d))],
        kept: [h!, gates, u, r, hCandidate, g, d],
      };
    },
    back([dh], kept, transposed, first) {
      const [, gates, u, r, hCandidate, g, d] = kept as Tensor[] as Seven;
      const straight = tf.mul(dh!, u);
      const dCandidate = activation.back(tf.sub(dh!, straight), g);
      const dGates = gate.back(
        tf.concat([tf.mul(dh!, d), tf.mul(dCandidate, hCandidate)], 1),
        gates,
      );
      const dz = tf.concat([dGates, dCandidate], 1);
      if (first) return { dz, dState: null };
      const byState = tf.concat([dGates, tf.mul(dCandidate, r)], 1);
      const own = tf.slice(transposed, [0, 0], [-1, dh!.shape[1]!]);
      return { dz, dState: [tf.add(straight, tf.matMul(byState, own))] };
    },
    weightsGradient(dz, kept) {
      const units = dz.shape[2]! / 3;
      const [dGates, dCandidate] = tf.split(dz, [2 * units, units], 2) as [Tensor, Tensor];
      const reset = tf.stack(kept.map((each) => each[3]!));
      const byState = tf.concat([dGates, tf.mul(dCandidate, reset)], 2);
      const bias = tf.reshape(tf.sum(byState, [0, 1]), [1, 3 * units]);
      return tf.concat([product(tf.stack(kept.map(([h]) => h!)), byState), bias], 0);
    },
  };
}

/** h = f(z + h·U) (Deep Learning §10.2). */
export function simpleCell(activation: Activation): RecurrentCell {
  return {
    stateCount: 1,
    gateCount: 1,
    wasm: null,
    native: null,
    step(z, [h], weights) {
      const next = activation.apply(tf.add(z, tf.matMul(h!, weights)));
      return { state: [next], kept: [h!, next] };
    },
    back([dh], [, next], transposed, first) {
      const dz = activation.back(dh!, next!);
      return { dz, dState: first ? null : [tf.matMul(dz, transposed)] };
    },
    weightsGradient: (dz, kept) => product(tf.stack(kept.map(([h]) => h!)), dz),
  };
}

function wasmCell(kind: WasmCell['kind'], activation: Activation, gate: Activation) {
  const { tanh, sigmoid, hardSigmoid } = ACTIVATIONS;
  const hard = gate === hardSigmoid;
  return activation === tanh && (hard || gate === sigmoid) ? { kind, hard } : null;
}

/** One tensor for each gate of an LSTM. */
export type FourGates = [Tensor, Tensor, Tensor, Tensor];
type Seven = [...FourGates, Tensor, Tensor, Tensor];

/** aᵀ·b over all steps and examples, shapes [T, B, H] and [T, B, G]: one product. */
function product(a: Tensor, b: Tensor): Tensor {
  const rows = (x: Tensor) => tf.reshape(x, [-1, x.shape[2]!]);
  return tf.matMul(rows(a), rows(b), true, false);
}
