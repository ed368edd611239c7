import { classCountOf } from '../shared/answers.ts';
import { permutation, random } from '../shared/random.ts';
import type { Features, Member } from './examined.ts';

/**
 * A controller, or gater (Deep Learning §12.1.5): a small network that picks, by the input, which one of several
 * networks computes the answer, so that the others need not be asked. Trained as the gate of a mixture
 * of experts (Jacobs et al. 1991): its probabilities g raise Σ g_m p_m(truth). Of the members that are about as good
 * the cheaper is picked: argmax of g_m − λ cost_m, with the largest λ that keeps the error.
 */

/** Plain JSON. One hidden layer of tanh. */
export interface Gater {
  readonly inputs: number;
  readonly hidden: number;
  readonly members: number;
  /** The mean of each input, in the examples that it was trained on. */
  readonly mean: readonly number[];
  readonly deviation: readonly number[];
  /** Shape [hidden, inputs + 1], then [members, hidden + 1]; the last of each row is the bias. */
  readonly weights: readonly number[];
  /** λ, for costs as shares of the highest. */
  readonly costWeight: number;
}

interface GaterData {
  readonly members: readonly Member[];
  /** Calibrated probabilities of each member, shape [answers, classes]. */
  readonly shares: readonly Float64Array[];
  readonly features: Features;
  /** Index of the member whose error is the measure. */
  readonly best: number;
}

const HIDDEN = 8;
const MINIBATCH = 32;
const EPOCHS = 40;
const UPDATES_MAX = 4000;
const RATE = 0.005;
const DECAY = 1e-3;
/** The share of the examples that it is trained on: the rest chooses λ. */
const TRAINED_SHARE = 2 / 3;

/** One answer an example. Costs a few seconds for thousands of examples. */
export function trainGater(
  data: GaterData,
  { tolerance, seed }: { readonly tolerance: number; readonly seed: number },
): Gater {
  const { members, features } = data;
  const { count } = members[0]!.answers;
  const order = permutation(seed, 2, count);
  const middle = Math.max(1, Math.floor(count * TRAINED_SHARE));
  const [trains, chooses] = [order.subarray(0, middle), order.subarray(middle)];
  const gater = { ...startOf(features, trains, members.length, seed), costWeight: 0 };
  const trained = { ...gater, weights: descend(gater, data, trains, seed) };
  return { ...trained, costWeight: costWeightOf(trained, data, chooses, tolerance) };
}

function startOf({ values, width }: Features, rows: Int32Array, members: number, seed: number) {
  const mean = new Array<number>(width).fill(0);
  const deviation = new Array<number>(width).fill(0);
  for (const row of rows) {
    for (let f = 0; f < width; f++) mean[f]! += values[row * width + f]! / rows.length;
  }
  for (const row of rows) {
    for (let f = 0; f < width; f++) {
      deviation[f]! += (values[row * width + f]! - mean[f]!) ** 2 / rows.length;
    }
  }
  const draw = random(seed, 3);
  // The second layer begins at 0: all members are as good as each other.
  const first = HIDDEN * (width + 1);
  const weights = Array.from({ length: first + members * (HIDDEN + 1) }, (_, i) =>
    i < first && i % (width + 1) < width ? draw.normal() / Math.sqrt(width) : 0,
  );
  return {
    ...{ inputs: width, hidden: HIDDEN, members, mean, weights },
    deviation: deviation.map((square) => Math.sqrt(square) || 1),
  };
}

/** Adam on −log Σ g_m p_m(truth), with weight decay. @returns the weights. */
function descend(
  gater: Gater,
  { members, shares, features }: GaterData,
  rows: Int32Array,
  seed: number,
): number[] {
  const { inputs, hidden, members: k } = gater;
  const { truths, count } = members[0]!.answers;
  const classCount = shares[0]!.length / count;
  const weights = Float64Array.from(gater.weights);
  const gradient = new Float64Array(weights.length);
  const first = new Float64Array(weights.length);
  const second = new Float64Array(weights.length);
  const pass = forward(gater, features);
  const second0 = hidden * (inputs + 1);
  const blame = new Float64Array(k);
  const epochs = Math.min(EPOCHS, Math.ceil((UPDATES_MAX * MINIBATCH) / rows.length));
  let step = 0;
  for (let epoch = 0; epoch < epochs; epoch++) {
    const order = permutation(seed, 100 + epoch, rows.length);
    for (let start = 0; start < order.length; start += MINIBATCH) {
      const batch = order.subarray(start, start + MINIBATCH);
      gradient.fill(0);
      for (const at of batch) {
        const row = rows[at]!;
        const { x, h, g } = pass(weights, row);
        let likelihood = 1e-12;
        for (let m = 0; m < k; m++) {
          blame[m] = g[m]! * shares[m]![row * classCount + truths[row]!]!;
          likelihood += blame[m]!;
        }
        for (let m = 0; m < k; m++) {
          const d = (g[m]! - blame[m]! / likelihood) / batch.length;
          const base = second0 + m * (hidden + 1);
          for (let j = 0; j < hidden; j++) gradient[base + j]! += d * h[j]!;
          gradient[base + hidden]! += d;
          blame[m] = d;
        }
        for (let j = 0; j < hidden; j++) {
          let d = 0;
          for (let m = 0; m < k; m++) d += blame[m]! * weights[second0 + m * (hidden + 1) + j]!;
          d *= 1 - h[j]! ** 2;
          const base = j * (inputs + 1);
          for (let f = 0; f < inputs; f++) gradient[base + f]! += d * x[f]!;
          gradient[base + inputs]! += d;
        }
      }
      step++;
      const scale = Math.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step);
      for (let i = 0; i < weights.length; i++) {
        const d = gradient[i]!;
        first[i] = 0.9 * first[i]! + 0.1 * d;
        second[i] = 0.999 * second[i]! + 0.001 * d * d;
        weights[i]! -=
          RATE * (scale * (first[i]! / (Math.sqrt(second[i]!) + 1e-8)) + DECAY * weights[i]!);
      }
    }
  }
  return [...weights];
}

/** Standardised input, hidden units and g of a row; the arrays are used again by the next call. */
function forward(
  { inputs, hidden, members: k, mean, deviation }: Gater,
  { values, width }: Features,
) {
  const x = new Float64Array(inputs);
  const h = new Float64Array(hidden);
  const g = new Float64Array(k);
  const second0 = hidden * (inputs + 1);
  return (weights: ArrayLike<number>, row: number) => {
    for (let f = 0; f < inputs; f++) x[f] = (values[row * width + f]! - mean[f]!) / deviation[f]!;
    for (let j = 0; j < hidden; j++) {
      const base = j * (inputs + 1);
      let sum = weights[base + inputs]!;
      for (let f = 0; f < inputs; f++) sum += weights[base + f]! * x[f]!;
      h[j] = Math.tanh(sum);
    }
    let most = -Infinity;
    for (let m = 0; m < k; m++) {
      const base = second0 + m * (hidden + 1);
      let sum = weights[base + hidden]!;
      for (let j = 0; j < hidden; j++) sum += weights[base + j]! * h[j]!;
      g[m] = sum;
      most = Math.max(most, sum);
    }
    let total = 0;
    for (let m = 0; m < k; m++) {
      g[m] = Math.exp(g[m]! - most);
      total += g[m]!;
    }
    for (let m = 0; m < k; m++) g[m]! /= total;
    return { x, h, g };
  };
}

/** Which member answers each example. */
export function picksOf(
  gater: Gater,
  members: readonly Pick<Member, 'cost'>[],
  features: Features,
): Int32Array {
  const pass = forward(gater, features);
  const highest = Math.max(...members.map(({ cost }) => cost));
  return Int32Array.from({ length: features.values.length / features.width }, (_, row) => {
    const { g } = pass(gater.weights, row);
    const worth = (m: number) => g[m]! - (gater.costWeight * members[m]!.cost) / highest;
    let pick = 0;
    for (let m = 1; m < members.length; m++) if (worth(m) > worth(pick)) pick = m;
    return pick;
  });
}

/**
 * The largest λ with which no more answers are wrong than without it, or than the best member's if these are fewer,
 * but for the tolerance.
 */
function costWeightOf(
  gater: Gater,
  { members, shares, features, best }: GaterData,
  rows: Int32Array,
  tolerance: number,
): number {
  const { answers } = members[0]!;
  const classCount = classCountOf(answers);
  const isWrong = (m: number, row: number) => {
    const own = shares[m]!.subarray(row * classCount, (row + 1) * classCount);
    return own.indexOf(Math.max(...own)) === answers.truths[row] ? 0 : 1;
  };
  const wrongOf = (pick: (row: number) => number) =>
    rows.reduce((sum, row) => sum + isWrong(pick(row), row), 0);
  const wrongAt = (costWeight: number) => {
    const picks = picksOf({ ...gater, costWeight }, members, features);
    return wrongOf((row) => picks[row]!);
  };
  const least = Math.min(
    wrongAt(0),
    wrongOf(() => best),
  );
  for (let step = 40; step > 0; step--) {
    if (wrongAt(step / 20) <= least + tolerance * rows.length + 1e-9) return step / 20;
  }
  return 0;
}

/**
 * The cost of one pick, in answers of the cheapest member. A member multiplies by each of its parameters at least
 * once an answer, so this is no less than what the controller costs.
 */
export function gaterCost({ weights }: Gater, members: readonly Member[]): number {
  return Math.min(...members.map(({ cost, parameters }) => (cost * weights.length) / parameters));
}
