import type { RunConfig } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { STREAMS } from '../../shared/random.ts';
import { sizeOf } from '../data/columns.ts';
import type { Minibatch } from '../data/examples.ts';
import type { Experiment, FunctionModel } from '../experiment.ts';
import { described } from '../measures.ts';
import { seedRandom } from '../noise.ts';
import { type LayersModel, tf } from '../tf.ts';
import { type DataShape, invalid } from './data-shape.ts';
import { disposeInstance, type Instance, type OwnInstance, type Weight } from './instance.ts';
import { layersInstance } from './layers-model.ts';
import { read, tensorsOf } from './tensors.ts';

/** Calls the user's `model()`, and checks that training can use what it gives. */

/**
 * @param seed of the initial parameters.
 * @throws DownpourError DP_EXPERIMENT_INVALID: what `model()` gives does not fit the data, or cannot be trained.
 */
export async function buildInstance(
  experiment: Experiment,
  { hyperparameters }: Pick<RunConfig, 'hyperparameters'>,
  data: DataShape,
  seed: number,
): Promise<Instance> {
  const release = seedRandom(seed, STREAMS.parameters);
  let built: LayersModel | FunctionModel;
  try {
    built = await experiment.model({
      tf,
      seed,
      hyperparameters,
      inputShape: [...data.inputShape],
      classCount: data.classCount,
    });
    if (built instanceof tf.LayersModel && !built.built) built.build([null, ...data.inputShape]);
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw invalid(`model() of the experiment failed: ${errorText(cause)}`, cause);
  } finally {
    release();
  }
  const own =
    built instanceof tf.LayersModel ? layersInstance(built, data) : functionInstance(built);
  for (const { variable, name } of own.weights) {
    if (variable.dtype === 'float32') continue;
    throw invalid(`tensor '${name}' of the model is ${variable.dtype}; all must be float32`);
  }
  try {
    return { ...own, outputShape: checkPredictions(experiment, own, data) };
  } catch (error) {
    disposeInstance(own);
    throw error;
  }
}

/**
 * Zeros through the model: shapes that do not fit are told before any training.
 * @returns the shape of one example's predictions.
 */
function checkPredictions(
  { loss }: Experiment,
  instance: OwnInstance,
  data: DataShape,
): readonly number[] {
  const shape = predictedShape(instance, data, 2);
  // A first size of 2 may be a constant of the model's.
  predictedShape(instance, data, 3);
  if (typeof loss === 'function') return shape;
  const classes = loss === 'softmaxCrossEntropy' || loss === 'negativeLogLikelihood';
  if (classes && data.classCount === 0) {
    throw invalid(`loss '${loss}' needs classes, but the targets are numbers`);
  }
  const wanted =
    classes && !data.shares ? [...data.targetShape, data.classCount] : data.targetShape;
  if (isSameOrder(shape, wanted)) return shape;
  throw invalid(
    `the model's predictions have shape [n,${shape}]; loss '${loss}' on this data needs [n${wanted.length > 0 ? `,${wanted}` : ''}], or as many elements in one row`,
  );
}

/** Whether reshaping one to the other leaves each element its meaning: [3,2] and [2,3] do not, [6] and [2,3] do. */
function isSameOrder(shape: readonly number[], wanted: readonly number[]): boolean {
  if (sizeOf(shape) !== sizeOf(wanted)) return false;
  const [a, b] = [shape, wanted].map((sizes) => sizes.filter((size) => size !== 1));
  return a!.length <= 1 || b!.length <= 1 || String(a) === String(b);
}

function predictedShape(
  instance: OwnInstance,
  { inputShape }: DataShape,
  count: number,
): readonly number[] {
  const run = () => {
    const given: unknown = instance.predict(tf.zeros([count, ...inputShape]), false);
    if (given instanceof tf.Tensor) return { shape: given.shape, dtype: given.dtype };
    throw new Error(
      `it returned ${described(given)}; it must return one tensor whose first axis counts the examples`,
    );
  };
  let found: { readonly shape: number[]; readonly dtype: string };
  try {
    found = tf.tidy(run as () => never) as unknown as typeof found;
  } catch (cause) {
    throw invalid(
      `the model fails on inputs of shape [n,${inputShape}]: ${errorText(cause)}`,
      cause,
    );
  }
  if (found.dtype !== 'float32') {
    throw invalid(
      `the model's predictions are ${found.dtype}, which has no gradient; they must be float32`,
    );
  }
  if (found.shape[0] !== count) {
    throw invalid(
      `the model's predictions for ${count} examples have shape [${found.shape}]; the first size must be ${count}: one prediction for each example`,
    );
  }
  return found.shape.slice(1);
}

/** A few training examples, evenly spaced. */
export const spreadRows = (count: number): number[] => [
  ...new Set([0, 0.25, 0.5, 0.75].map((share) => Math.floor(share * count))),
];

/** Tries some training examples: what is NaN before any update no learning rate will mend. @param rows that they are. */
export async function checkNumbers(
  instance: Instance,
  minibatch: Minibatch,
  rows: readonly number[],
  data: DataShape,
): Promise<void> {
  const values = await read(
    tf.tidy(() => instance.predict(tensorsOf(minibatch, data).inputs, false)),
  );
  const at = values.findIndex(Number.isNaN);
  if (at < 0) return;
  throw invalid(
    `the model's predictions for training example ${rows[Math.floor((at * rows.length) / values.length)]} are NaN at its initial parameters: check its initialisers, divisions, roots and logarithms`,
  );
}

function functionInstance(model: FunctionModel): OwnInstance {
  const variables: unknown = (model as Partial<FunctionModel> | null | undefined)?.variables;
  if (typeof variables !== 'object' || variables === null || typeof model.predict !== 'function') {
    throw invalid(
      'model() gave neither a LayersModel nor { variables, predict }; build it with the `tf` that model() receives, not with another copy of TensorFlow.js',
    );
  }
  const weights = Object.entries(model.variables).map(([name, entry]): Weight => {
    const { variable, role, momentum } =
      entry instanceof tf.Variable
        ? { variable: entry, role: entry.trainable ? 'trainable' : 'frozen', momentum: undefined }
        : entry;
    if (!(variable instanceof tf.Variable)) {
      throw invalid(`model().variables.${name} is not a tf.variable made with the \`tf\` given`);
    }
    const spec = { name, shape: variable.shape, variable, role: role as Weight['role'] };
    return momentum === undefined ? spec : { ...spec, momentum };
  });
  return {
    weights,
    predict: (inputs, training) => model.predict(inputs, { training }),
    penalties: () => [],
    layersModel: null,
    foreign: true,
  };
}
