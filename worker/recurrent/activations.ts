import { type Tensor, tf } from '../tf.ts';

/** An activation whose slope can be told from what it gave, so that what it was given need not be kept. */
export interface Activation {
  apply(x: Tensor): Tensor;
  /** @returns dy · f′(x), where y = f(x). */
  back(dy: Tensor, y: Tensor): Tensor;
}

/** By the names that tfjs-layers has for their classes. */
export const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  sigmoid: {
    apply: (x) => tf.sigmoid(x),
    back: (dy, y) => tf.mul(dy, tf.sub(y, tf.mul(y, y))),
  },
  tanh: {
    apply: (x) => tf.tanh(x),
    back: (dy, y) => tf.sub(dy, tf.mul(dy, tf.mul(y, y))),
  },
  hardSigmoid: {
    apply: (x) => tf.clipByValue(tf.add(tf.mul(x, 0.2), 0.5), 0, 1),
    // y − y² is above 0 exactly where the line was not clipped.
    back: (dy, y) => tf.mul(dy, tf.mul(tf.sign(tf.sub(y, tf.mul(y, y))), 0.2)),
  },
  relu: { apply: (x) => tf.relu(x), back: (dy, y) => tf.mul(dy, tf.sign(y)) },
  linear: { apply: (x) => x, back: (dy) => dy },
};
