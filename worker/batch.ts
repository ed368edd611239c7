import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { STREAMS } from '../shared/random.ts';
import { nearest } from '../shared/spelling.ts';
import { sizeOf } from './data/columns.ts';
import type { FieldRows, Minibatch } from './data/examples.ts';
import { type Draws, drawsOf } from './draws.ts';
import { fieldText, isRecord } from './fields.ts';
import { type DataShape, invalid } from './model/data-shape.ts';
import { fieldTensors } from './model/tensors.ts';
import { withSeed } from './noise.ts';
import { type Tensor, type Tf, tf } from './tf.ts';

/** Changes minibatches before the model sees them: augmentation, noise, masks, negative samples. */

export interface BatchArguments {
  readonly tf: Tf;
  /** The same numbers for the same lease, on every worker and engine. `Math.random` is seeded alike meanwhile. */
  readonly random: Draws;
  /** False in evaluations, which only a `batch` with `evaluation: true` is applied in. */
  readonly training: boolean;
  readonly hyperparameters: Readonly<RunConfig['hyperparameters']>;
}

/** Fields of a minibatch by name; the first axis of each counts the examples. Without a short form there are others. */
export interface FieldTensors {
  readonly [name: string]: Tensor;
  readonly inputs: Tensor;
  readonly targets: Tensor;
}

/** @returns all fields, changed or not. */
export type BatchFunction = (
  fields: FieldTensors,
  args: BatchArguments,
) => Readonly<Record<string, Tensor>>;

export type Batch =
  | BatchFunction
  /** `evaluation`: evaluations and predictions apply it too, with `training: false`. */
  | { readonly change: BatchFunction; readonly evaluation: boolean };

const changeOf = (batch: Batch): BatchFunction =>
  typeof batch === 'function' ? batch : batch.change;

/** Evaluations apply it too. */
export const isForEvaluations = (batch: Batch | undefined): boolean =>
  batch !== undefined && typeof batch !== 'function' && batch.evaluation;

export interface ChangeOptions {
  readonly batch: Batch;
  readonly hyperparameters: BatchArguments['hyperparameters'];
  readonly training: boolean;
  /** What `minibatchSeed` gives; in evaluations it follows from the place in the part. */
  readonly seed: number;
}

/**
 * Applies `batch` on the engine, and reads the result back.
 * @param given shapes of the fields before. @param wanted the same afterwards; null: any shape of inputs.
 * @throws DownpourError DP_EXPERIMENT_INVALID that names the field, what it is and what to do; DP_DATA_CORRUPT: it
 *   has numbers that are not finite.
 */
export async function changed(
  minibatch: Minibatch,
  given: DataShape,
  wanted: DataShape | null,
  { batch, hyperparameters, training, seed }: ChangeOptions,
): Promise<Minibatch> {
  const run = () =>
    tf.tidy(() => {
      const fields = fieldTensors(minibatch, given) as Record<string, Tensor> & FieldTensors;
      let result: unknown;
      try {
        result = changeOf(batch)(fields, { tf, random: drawsOf(), training, hyperparameters });
      } catch (cause) {
        if (cause instanceof DownpourError) throw cause;
        throw invalid(`batch() of the experiment failed: ${errorText(cause)}`, cause);
      }
      return checkedFields(result, fields, wanted) as never;
    });
  const after = withSeed(seed, run, STREAMS.batch) as unknown as Readonly<Record<string, Tensor>>;
  const values = async (tensor: Tensor, name: string) => {
    const read = (await tensor.data()) as Float32Array | Int32Array;
    tensor.dispose();
    const at = read.findIndex((value) => !Number.isFinite(value));
    if (at < 0) return read;
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `batch() gave ${read[at]} in field '${name}', example ${Math.floor((at * tensor.shape[0]!) / read.length)} of the minibatch; allowed: finite numbers. Check its divisions, roots and logarithms`,
    );
  };
  const rows: Record<string, FieldRows> = {};
  for (const [name, tensor] of Object.entries(after)) {
    rows[name] = { values: await values(tensor, name), shape: tensor.shape.slice(1) };
  }
  const { inputs = NONE, targets = NONE, ...fields } = rows;
  return {
    ...{ inputs: inputs.values as Float32Array, inputShape: inputs.shape },
    ...{ targets: targets.values, targetShape: targets.shape },
    ...{ fields, count: Object.values(after)[0]!.shape[0]! },
  };
}

const NONE: FieldRows = { values: new Float32Array(0), shape: [0] };

function checkedFields(
  result: unknown,
  fields: FieldTensors,
  wanted: DataShape | null,
): Record<string, Tensor> {
  const names = Object.keys(fields);
  const all = names.map((name) => `'${name}'`).join(' and ');
  if (typeof (result as Partial<Promise<unknown>> | undefined)?.then === 'function') {
    throw invalid('batch() returned a promise; it must not be async: use no await in it');
  }
  if (!isRecord(result) || result instanceof tf.Tensor) {
    const seen = result instanceof tf.Tensor ? 'a tensor' : fieldText(result);
    throw invalid(`batch() returned ${seen}; it must return the fields ${all} as an object`);
  }
  for (const name of Object.keys(result)) {
    if (names.includes(name)) continue;
    const near = nearest(name, names);
    throw invalid(
      `batch() returned a field '${name}' that the data do not have; ${near ? `did you mean '${near}'?` : `known: ${all}`}`,
    );
  }
  const checked = Object.fromEntries(
    names.map((name) => [name, checkedField(name, result[name], fields[name]!, wanted)]),
  );
  const [first, ...others] = names;
  const count = checked[first!]!.shape[0]!;
  for (const name of others) {
    const own = checked[name]!.shape[0]!;
    if (own === count) continue;
    throw invalid(
      `batch() returned ${count} examples in field '${first}' and ${own} in field '${name}'; every field needs one row for each example`,
    );
  }
  return checked;
}

function checkedField(
  name: string,
  value: unknown,
  before: Tensor,
  wanted: DataShape | null,
): Tensor {
  if (value === undefined) {
    throw invalid(
      `batch() returned no field '${name}'; return all fields, also those that it leaves as they are: return { ...fields, … }`,
    );
  }
  if (!(value instanceof tf.Tensor)) {
    throw invalid(`batch() returned ${fieldText(value)} as field '${name}'; it must be a tensor`);
  }
  if (value.isDisposed) {
    throw invalid(
      `batch() returned a tensor that was disposed as field '${name}': do not dispose it, Downpour does`,
    );
  }
  const { dtype, shape } = value;
  if (dtype === 'string' || dtype === 'complex64' || shape.length === 0 || shape[0] === 0) {
    throw invalid(
      `batch() returned ${dtype} of shape [${shape}] as field '${name}'; it must be numbers whose first axis counts the examples, of at least 1 example`,
    );
  }
  if (before.dtype === 'int32' && dtype === 'float32') {
    throw invalid(
      `batch() returned field '${name}' as float32, but the data have whole numbers there: use tf.cast(…, 'int32'); to mix classes, give the data one row for each example with the probability of each class`,
    );
  }
  const isTarget =
    name === 'targets' || wanted?.fields.some((f) => f.name === name && f.role === 'target');
  const shapeWanted = isTarget
    ? before.shape.slice(1)
    : name === 'inputs'
      ? wanted?.inputShape
      : wanted?.fields.find((field) => field.name === name)?.shape;
  if (shapeWanted && String(shape.slice(1)) !== String(shapeWanted)) {
    throw invalid(
      `batch() returned field '${name}' of shape [n${listed(shape.slice(1))}], but the model is built for [n${listed(shapeWanted)}]. If evaluations are to be changed in the same way (cropped, say), write batch: { change: function, evaluation: true }; else keep the shape`,
    );
  }
  // A clone: the same tensor in two fields, or a field returned as it is, has one owner each.
  return tf.clone(tf.cast(value, before.dtype));
}

const listed = (shape: readonly number[]) => shape.map((size) => `,${size}`).join('');

/** Shapes after a `batch` that evaluations apply too: tried on two examples of zeros. */
export async function shapeAfter(
  data: DataShape,
  options: Omit<ChangeOptions, 'training' | 'seed'>,
): Promise<DataShape> {
  const { inputShape, targetShape, integers } = data;
  const rowsOf = (shape: readonly number[], isWhole: boolean) => ({
    values: new (isWhole ? Int32Array : Float32Array)(2 * sizeOf(shape)),
    shape,
  });
  const zeros: Minibatch = {
    ...{ inputs: new Float32Array(2 * sizeOf(inputShape)), inputShape, targetShape, count: 2 },
    targets: rowsOf(targetShape, integers).values,
    fields: Object.fromEntries(data.fields.map((f) => [f.name, rowsOf(f.shape, f.integers)])),
  };
  const after = await changed(zeros, data, null, { ...options, training: false, seed: 0 });
  return {
    ...{ ...data, inputShape: after.inputShape, targetShape: after.targetShape },
    fields: data.fields.map((field) => ({ ...field, shape: after.fields![field.name]!.shape })),
  };
}
