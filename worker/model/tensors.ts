import { sizeOf } from '../data/columns.ts';
import type { Minibatch } from '../data/examples.ts';
import { type Tensor, type Tensor1D, tf } from '../tf.ts';
import { type DataShape, hasInputs, hasTargets, inputsOf, targetsOf } from './data-shape.ts';

/** Minibatches as tensors, and tensors as numbers. */

/** One tensor, or several by name. */
export type Tensors = Tensor | Readonly<Record<string, Tensor>>;

/** Examples of a minibatch. */
export const countOf = ({ count, inputs }: Minibatch, { inputShape }: DataShape): number =>
  count ?? inputs.length / sizeOf(inputShape);

/** All fields by name, the caller's to dispose of: `inputs` of shape [n, ...inputShape], `targets`, and the others. */
export function fieldTensors(minibatch: Minibatch, data: DataShape): Record<string, Tensor> {
  const { inputs, targets, fields = {} } = minibatch;
  const count = countOf(minibatch, data);
  const dtypeOf = (values: Float32Array | Int32Array) =>
    values instanceof Int32Array ? 'int32' : 'float32';
  const own: Record<string, Tensor> = {};
  if (hasInputs(data)) own.inputs = tf.tensor(inputs, [count, ...data.inputShape], 'float32');
  if (hasTargets(data)) {
    own.targets = tf.tensor(targets, [count, ...data.targetShape], dtypeOf(targets));
  }
  for (const { name } of data.fields) {
    const { values, shape } = fields[name]!;
    own[name] = tf.tensor(values, [count, ...shape], dtypeOf(values));
  }
  return own;
}

/** What the model predicts from, and what predictions are compared with. */
export function tensorsOf(
  minibatch: Minibatch,
  data: DataShape,
): { readonly inputs: Tensors; readonly targets: Tensors } {
  return sidesOf(fieldTensors(minibatch, data), data);
}

/** @param fields of `fieldTensors` */
export function sidesOf(fields: Readonly<Record<string, Tensor>>, data: DataShape) {
  const side = (own: Tensor | undefined, names: readonly { readonly name: string }[]): Tensors => {
    if (own && names.length === 0) return own;
    const named = Object.fromEntries(names.map(({ name }) => [name, fields[name]!]));
    return own ? { ...named, inputs: own } : named;
  };
  return {
    inputs: side(fields.inputs, inputsOf(data)),
    targets: fields.targets ?? side(undefined, targetsOf(data)),
  };
}

/** The values of a float32 tensor, which is disposed of; cpu shares their memory with the tensor. */
export async function read(tensor: Tensor): Promise<Float32Array> {
  const values = tf.getBackend() === 'webgpu' ? await tensor.data() : tensor.dataSync();
  tensor.dispose();
  return values as Float32Array;
}

export const flatten = (tensor: Tensor): Tensor1D => tf.reshape(tensor, [tensor.size]);

/** Zeros as fields of some examples. */
export function zerosOf(data: DataShape, count: number): Record<string, Tensor> {
  const zeros: Record<string, Tensor> = {};
  if (hasInputs(data)) zeros.inputs = tf.zeros([count, ...data.inputShape]);
  const { integers, targetShape } = data;
  if (hasTargets(data)) {
    zeros.targets = tf.zeros([count, ...targetShape], integers ? 'int32' : 'float32');
  }
  for (const { name, shape, integers } of data.fields) {
    zeros[name] = tf.zeros([count, ...shape], integers ? 'int32' : 'float32');
  }
  return zeros;
}

/** Predictions as one float32 tensor: as they are, or the outputs of each example behind each other. */
export function asRows(predictions: Tensors, count: number): Tensor {
  if (predictions instanceof tf.Tensor) return tf.cast(predictions, 'float32');
  const rows = Object.values(predictions).map((output) =>
    tf.cast(tf.reshape(output, [count, output.size / count]), 'float32'),
  );
  return tf.concat(rows, 1);
}

/**
 * Predictions as float32 tensors by name; a single one without a name has the name ''.
 * @param names of the targets, whose order they get; others, which only an objective has, follow them.
 */
export function namedTensors(
  predictions: Tensors | readonly Tensor[],
  names: readonly string[],
): Record<string, Tensor> {
  const float = (tensor: Tensor) => tf.cast(tensor, 'float32');
  if (predictions instanceof tf.Tensor) return { '': float(predictions) };
  const given = Object.entries(predictions as Readonly<Record<string, Tensor>>);
  const place = ([name]: (typeof given)[number]) => (names.indexOf(name) + 1 || Infinity) as number;
  given.sort((a, b) => (place(a) < place(b) ? -1 : Number(place(a) > place(b))));
  return Object.fromEntries(given.map(([name, output]) => [name, float(output)]));
}
