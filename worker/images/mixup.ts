import type { ExperimentData } from '../data/examples.ts';
import { DATA_PARTS } from '../data/examples.ts';
import type { Draws } from '../draws.ts';
import { invalid } from '../model/data-shape.ts';
import { type Tensor, tf } from '../tf.ts';
import { numberIn } from './range.ts';

/** Mixtures of two examples each, and the targets that they need. */

/** A change of inputs and targets together, in training alone. */
export interface Mixture {
  readonly kind: 'mixture';
  /** @param inputs [n, …] @param targets [n, …], float32. @returns both, of the same shapes. */
  change(inputs: Tensor, targets: Tensor, random: Draws): readonly [Tensor, Tensor];
}

/**
 * Mixes each example with another one of the minibatch, and their targets alike: λ of the one, 1 − λ of the other, with λ from
 * Beta(α, α) (Zhang et al. 2018, "mixup"). Targets must be numbers that can be mixed: for classes, probabilities of each class
 * (`classProbabilities`), which `softmaxCrossEntropy` takes as they are.
 * @param alpha α, 0 … 2; 0.1 to 0.4 as a rule. 0 mixes nothing.
 */
export function mixup(alpha = 0.2): Mixture {
  const a = numberIn('mixup: alpha', alpha, 0, 2);
  return {
    kind: 'mixture',
    change(inputs, targets, random) {
      if (targets.dtype !== 'float32') {
        throw invalid(
          `mixup: the targets are class numbers (${targets.dtype}), which cannot be mixed; give probabilities of each class: data: async (args) => classProbabilities(await …), with classProbabilities of 'downpour/images'`,
        );
      }
      const n = inputs.shape[0]!;
      const shares = Float32Array.from({ length: n }, () => (a === 0 ? 1 : beta(a, random)));
      const partners = random.permutation(n);
      const mixed = (x: Tensor) => {
        const share = tf.reshape(tf.tensor1d(shares), [n, ...x.shape.slice(1).map(() => 1)]);
        return tf.add(tf.mul(x, share), tf.mul(tf.gather(x, partners), tf.sub(1, share)));
      };
      return [mixed(inputs), mixed(targets)];
    },
  };
}

/** A number from Beta(a, a) (Jöhnk 1964); it takes 6 tries on average at a = 2, fewer below. */
function beta(a: number, random: Draws): number {
  for (;;) {
    const [x, y] = [random.number() ** (1 / a), random.number() ** (1 / a)];
    // Both may be too small for float64: then either is as likely.
    if (x + y === 0) return random.number() < 0.5 ? 0 : 1;
    if (x + y <= 1) return x / (x + y);
  }
}

/**
 * Data with a row of probabilities for each example, 1 for its class and 0 for the others, in the place of class numbers.
 * Losses and errors stay as they were; `mixup` can mix such targets.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the data have no classes.
 */
export function classProbabilities<Data extends ExperimentData>(data: Data): Data {
  const { classCount } = data;
  if (classCount === undefined) {
    throw invalid(
      'classProbabilities: the data have no classCount, so their targets are no classes; give data() a classCount, or leave it out: numbers can be mixed as they are',
    );
  }
  const parts = DATA_PARTS.flatMap((part) => {
    const examples = data[part];
    if (examples === undefined) return [];
    const { values: labels, shape } = examples.targets;
    const values = new Float32Array(labels.length * classCount);
    labels.forEach((label: number, i: number) => {
      if (!(Number.isInteger(label) && label >= 0 && label < classCount)) {
        throw invalid(
          `classProbabilities: target ${i} of the ${part} part is ${label}; allowed: class numbers 0 … ${classCount - 1}`,
        );
      }
      values[i * classCount + label] = 1;
    });
    const targets = { ...examples.targets, values, shape: [...shape, classCount] };
    return [[part, { ...examples, targets }] as const];
  });
  return { ...data, ...Object.fromEntries(parts) };
}
