import { sizeOf } from '../data/columns.ts';
import type { Minibatch } from '../data/examples.ts';
import { type Tensor, type Tensor1D, tf } from '../tf.ts';
import type { DataShape } from './data-shape.ts';

/** Minibatches as tensors, and tensors as numbers. */

/** Inputs of shape [n, ...inputShape] and targets of shape [n, ...targetShape], the caller's to dispose of. */
export function tensorsOf(
  { inputs, targets }: Minibatch,
  { inputShape, targetShape }: DataShape,
): { readonly inputs: Tensor; readonly targets: Tensor } {
  const count = inputs.length / sizeOf(inputShape);
  const dtype = targets instanceof Int32Array ? 'int32' : 'float32';
  return {
    inputs: tf.tensor(inputs, [count, ...inputShape], 'float32'),
    targets: tf.tensor(targets, [count, ...targetShape], dtype),
  };
}

/** The values of a float32 tensor, which is disposed of; cpu shares their memory with the tensor. */
export async function read(tensor: Tensor): Promise<Float32Array> {
  const values = tf.getBackend() === 'webgpu' ? await tensor.data() : tensor.dataSync();
  tensor.dispose();
  return values as Float32Array;
}

export const flatten = (tensor: Tensor): Tensor1D => tf.reshape(tensor, [tensor.size]);
