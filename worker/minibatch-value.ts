import { fieldText } from './fields.ts';
import { invalid } from './model/data-shape.ts';
import { type Tensor, tf } from './tf.ts';

/** Numbers of a minibatch, as functions of the user's give them. */

/**
 * One number of what a function gave: itself, or the mean of one for each example.
 * @throws DownpourError DP_EXPERIMENT_INVALID.
 */
export function minibatchMean(
  what: string,
  given: unknown,
  count: number,
  isLoss: boolean,
): Tensor {
  const value = isLoss ? given : tensorOf(given);
  if (!(value instanceof tf.Tensor)) {
    throw invalid(`${what} returned ${described(given)}; ${allowed(count, isLoss)}`);
  }
  if (value.isDisposed) {
    throw invalid(`${what} returned a tensor that was disposed: do not dispose it, Downpour does`);
  }
  const { dtype, shape, size } = value;
  if (dtype === 'string' || dtype === 'complex64' || (isLoss && dtype !== 'float32')) {
    throw invalid(`${what} returned a tensor of ${dtype}; ${allowed(count, isLoss)}`);
  }
  const float = tf.cast(value, 'float32');
  if (size === 1) return tf.reshape(float, []);
  if (size === count && shape[0] === count) return tf.mean(float);
  throw invalid(
    `${what} returned shape [${shape}] for ${count} examples; ${allowed(count, isLoss)}`,
  );
}

const allowed = (count: number, isLoss: boolean) =>
  `allowed: ${isLoss ? 'a tensor of float32 with ' : ''}one number, the mean over the minibatch, or one number for each example (shape [${count}]), which Downpour averages`;

/** Numbers that JavaScript has computed are as good, where no gradient is needed. */
export function tensorOf(given: unknown): unknown {
  if (typeof given === 'number') return tf.scalar(given);
  const isList = Array.isArray(given) || (ArrayBuffer.isView(given) && 'length' in given);
  if (!isList) return given;
  const list = Array.from(given as ArrayLike<unknown>);
  if (list.length === 0 || !list.every((value) => typeof value === 'number')) return given;
  return tf.tensor1d(Float32Array.from(list));
}

/** What a function gave, where a tensor was wanted. */
export function described(given: unknown): string {
  if (given === undefined) return 'undefined (is `return` missing?)';
  if (typeof (given as Partial<Promise<unknown>> | null)?.then === 'function') {
    return 'a promise (it must not be async; use no await and no tensor.data())';
  }
  if (typeof given === 'number') return `the number ${given}, which has no gradient`;
  if (Array.isArray(given)) return `an array of ${given.length}`;
  if (ArrayBuffer.isView(given)) return `a ${given.constructor.name}`;
  return fieldText(given);
}
