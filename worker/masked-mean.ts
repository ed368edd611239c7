import {
  type Layer,
  type LayerArguments,
  type LayerInputs,
  registerOwnClass,
  type Tensor,
  tf,
} from './tf.ts';

/** The mean over a sequence, without its padding. */

class MaskedMean extends tf.layers.Layer {
  static readonly className = 'MaskedMean';

  constructor(args: LayerArguments = {}) {
    super(args as never);
    this.supportsMasking = true;
  }

  override computeOutputShape(inputShape: never) {
    const [n, , ...features] = inputShape as (number | null)[];
    return [n, ...features] as never;
  }

  /** What follows is no sequence any more. */
  override computeMask(): Tensor {
    return null as never;
  }

  override call(inputs: LayerInputs, { mask }: { readonly mask?: Tensor | Tensor[] } = {}): Tensor {
    return tf.tidy(() => {
      const x = Array.isArray(inputs) ? inputs[0]! : inputs;
      const own = Array.isArray(mask) ? mask[0] : mask;
      if (!own) return tf.mean(x, 1);
      const weights = tf.expandDims(tf.cast(own, 'float32'), -1);
      // An empty sequence gives zeros.
      return tf.div(tf.sum(tf.mul(x, weights), 1), tf.maximum(tf.sum(weights, 1), 1));
    });
  }
}
registerOwnClass(MaskedMean);

/**
 * The mean of the vectors of a sequence, without those that a mask leaves out: after an embedding with `maskZero`, the mean of
 * the words of a text.
 *
 *     tf.layers.embedding({ inputDim: 5000, outputDim: 32, maskZero: true, inputLength: 100 }),
 *     layers.maskedMean(),
 *
 * @returns shape [n, features] of inputs of shape [n, steps, features]; zeros for a sequence of padding alone
 */
export function maskedMean(args: LayerArguments = {}): Layer {
  return new MaskedMean(args);
}
