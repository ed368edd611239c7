import type { RunConfig } from '../../shared/config.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { STREAMS } from '../../shared/random.ts';
import { rowShapes } from '../../shared/tables.ts';
import { carriedWeights } from '../carried.ts';
import { sizeOf } from '../data/columns.ts';
import type { Minibatch } from '../data/examples.ts';
import type { Experiment, FunctionModel } from '../experiment.ts';
import { isRecord } from '../fields.ts';
import { lossesOf, type OneLoss } from '../losses.ts';
import { described } from '../minibatch-value.ts';
import { drawNoise, type NoiseSource, seedRandom } from '../noise.ts';
import { openArchitecture, openPretrained, packArchitecture } from '../pretrained/open.ts';
import { fillPretrained, loadPretrained, type PretrainedFill } from '../pretrained/pretrained.ts';
import { type RowLookup, withTables } from '../rows/layer.ts';
import { type LayersModel, type Tensor, tf } from '../tf.ts';
import { type DataShape, inputsOf, invalid, targetLike, targetsOf } from './data-shape.ts';
import {
  disposeInstance,
  type Instance,
  type ModelPart,
  type ModelWeight,
  type OwnInstance,
} from './instance.ts';
import { layersInstance, layersPart } from './layers-model.ts';
import { asRows, read, sidesOf, type Tensors, tensorsOf, zerosOf } from './tensors.ts';
import { refuseVanishing } from './vanishing.ts';

/** Calls the user's `model()`, and checks that training can use what it gives. */

/** Facts of a run whose checkpoint has all parameters, so that none is read from a pretrained file. */
export type LoadedLater = Pick<DataFacts, 'architecture'>;

/**
 * @param seed of the initial parameters.
 * @throws DownpourError DP_EXPERIMENT_INVALID: what `model()` gives does not fit the data, or cannot be trained.
 */
export async function buildInstance(
  experiment: Experiment,
  config: Pick<RunConfig, 'hyperparameters'> & Partial<RunConfig>,
  data: DataShape,
  seed: number,
  later: LoadedLater | null = null,
  tensors: RowLookup | null = null,
): Promise<Instance> {
  refuseVanishing();
  const { hyperparameters } = config;
  const { pretrained } = experiment;
  const file = !pretrained
    ? null
    : later
      ? await openArchitecture(pretrained.from, pretrained, later.architecture ?? null)
      : await openPretrained(pretrained.from, pretrained);
  const isFresh = later !== null || pretrained?.fresh === true;
  const release = seedRandom(seed, STREAMS.parameters);
  let built: unknown;
  let loaded: PretrainedFill['loaded'] = null;
  try {
    if (file) {
      const mayDiffer = pretrained!.inputShape !== undefined;
      loaded = await loadPretrained(file, pretrained!.from, { fresh: isFresh, mayDiffer });
    }
    const args = {
      ...{ tf, seed, hyperparameters, inputShape: [...data.inputShape] },
      ...{ classCount: data.classCount, pretrained: loaded?.model ?? null },
    };
    built = await withTables(rowShapes(config), () => experiment.model(args));
    if (built instanceof tf.LayersModel && !built.built && !experiment.objective) {
      built.build([null, ...data.inputShape]);
    }
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw invalid(`model() of the experiment failed: ${errorText(cause)}`, cause);
  } finally {
    release();
  }
  const own = experiment.objective
    ? objectiveInstance(built, data, tensors)
    : built instanceof tf.LayersModel
      ? layersInstance(built, data, tensors)
      : functionInstance(built as FunctionModel, data);
  for (const { variable, name } of own.weights) {
    if (variable.dtype === 'float32') continue;
    throw invalid(`tensor '${name}' of the model is ${variable.dtype}; all must be float32`);
  }
  try {
    const match =
      file && !isFresh
        ? fillPretrained(own.weights, { pretrained: pretrained!, file, loaded })
        : null;
    const isUsed = new Set<unknown>(own.weights.map(({ variable }) => variable));
    for (const weight of loaded?.model.weights ?? []) {
      const variable = weight.read();
      if (!isUsed.has(variable) && !variable.isDisposed) variable.dispose();
    }
    const architecture = file ? packArchitecture(file.topology) : null;
    const taken = { ...own, match, architecture };
    if (experiment.objective) {
      const { carried } = experiment;
      const args = { seed, hyperparameters, inputShape: [...data.inputShape] };
      const weights = carried ? carriedWeights(carried, args, config) : [];
      return { ...taken, weights: [...own.weights, ...weights], outputShape: [] };
    }
    return { ...taken, outputShape: checkPredictions(experiment, own, data) };
  } catch (error) {
    disposeInstance(own);
    throw error;
  }
}

/**
 * Zeros through the model: shapes that do not fit are told before any training.
 * @returns the shape of one example's predictions, by output where there are several.
 */
function checkPredictions(
  experiment: Experiment,
  instance: OwnInstance,
  data: DataShape,
): Instance['outputShape'] {
  const shapes = predictedShapes(instance, data, 2);
  // A first size of 2 may be a constant of the model's.
  predictedShapes(instance, data, 3);
  const targets = targetsOf(data);
  if (targets.length === 0) {
    const shape = shapes as readonly number[];
    checkShape(experiment.loss as OneLoss, shape, data, '');
    return shape;
  }
  const losses = lossesOf(experiment, data);
  for (const target of targets) {
    const shape = (shapes as Record<string, readonly number[]>)[target.name]!;
    checkShape(losses[target.name]!, shape, targetLike(target), ` of output '${target.name}'`);
  }
  return shapes;
}

function checkShape(loss: OneLoss, shape: readonly number[], data: DataShape, where: string): void {
  if (typeof loss === 'function') return;
  const classes = loss === 'softmaxCrossEntropy' || loss === 'negativeLogLikelihood';
  if (classes && data.classCount === 0) {
    throw invalid(`loss '${loss}'${where} needs classes, but the targets are numbers`);
  }
  const wanted =
    classes && !data.shares ? [...data.targetShape, data.classCount] : data.targetShape;
  if (isSameOrder(shape, wanted)) return;
  throw invalid(
    `the model's predictions${where} have shape [n,${shape}]; loss '${loss}' on this data needs [n${wanted.length > 0 ? `,${wanted}` : ''}], or as many elements in one row`,
  );
}

/** Whether reshaping one to the other leaves each element its meaning: [3,2] and [2,3] do not, [6] and [2,3] do. */
function isSameOrder(shape: readonly number[], wanted: readonly number[]): boolean {
  if (sizeOf(shape) !== sizeOf(wanted)) return false;
  const [a, b] = [shape, wanted].map((sizes) => sizes.filter((size) => size !== 1));
  return a!.length <= 1 || b!.length <= 1 || String(a) === String(b);
}

function predictedShapes(
  instance: OwnInstance,
  data: DataShape,
  count: number,
): Instance['outputShape'] {
  const names = targetsOf(data).map(({ name }) => name);
  const run = () => {
    const { inputs } = sidesOf(zerosOf(data, count), data);
    const given: unknown = instance.predict(inputs, false);
    if (names.length === 0) {
      if (given instanceof tf.Tensor) return [['', given.shape, given.dtype]];
      throw new Error(
        `it returned ${described(given)}; it must return one tensor whose first axis counts the examples`,
      );
    }
    return names.map((name) => {
      const output = (given as Record<string, unknown> | null)?.[name];
      if (output instanceof tf.Tensor) return [name, output.shape, output.dtype];
      throw new Error(
        `it returned ${described(output)} as the output '${name}'; it must return one tensor for each target (${names.join(', ')}), whose first axis counts the examples`,
      );
    });
  };
  let found: readonly [name: string, shape: number[], dtype: string][];
  try {
    found = tf.tidy(run as () => never) as unknown as typeof found;
  } catch (cause) {
    const shapes =
      data.fields.length === 0
        ? `[n,${data.inputShape}]`
        : inputsOf(data)
            .map(({ name, shape }) => `[n${shape.map((d) => `,${d}`).join('')}] (${name})`)
            .join(', ');
    throw invalid(`the model fails on inputs of shape ${shapes}: ${errorText(cause)}`, cause);
  }
  for (const [name, shape, dtype] of found) {
    const where = name === '' ? '' : ` of output '${name}'`;
    if (dtype !== 'float32') {
      throw invalid(
        `the model's predictions${where} are ${dtype}, which has no gradient; they must be float32`,
      );
    }
    if (shape[0] !== count) {
      throw invalid(
        `the model's predictions${where} for ${count} examples have shape [${shape}]; the first size must be ${count}: one prediction for each example`,
      );
    }
  }
  if (names.length === 0) return found[0]![1].slice(1);
  return Object.fromEntries(found.map(([name, shape]) => [name, shape.slice(1)]));
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
    tf.tidy(() => asRows(instance.predict(tensorsOf(minibatch, data).inputs, false), rows.length)),
  );
  const at = values.findIndex(Number.isNaN);
  if (at < 0) return;
  throw invalid(
    `the model's predictions for training example ${rows[Math.floor((at * rows.length) / values.length)]} are NaN at its initial parameters: check its initialisers, divisions, roots and logarithms`,
  );
}

/** One model, or several by name, for an objective: what they take and give is its matter. */
function objectiveInstance(
  built: unknown,
  data: DataShape,
  tensors: RowLookup | null,
): OwnInstance {
  const isOne = built instanceof tf.LayersModel || isFunctionModel(built);
  if (!isOne && (!isRecord(built) || Object.keys(built).length === 0)) {
    throw invalid(
      `model() gave ${described(built)}; with an objective it must give a model, or an object of models by name`,
    );
  }
  const given = isOne ? { '': built } : (built as Record<string, unknown>);
  const models: Record<string, ModelPart> = {};
  const weights: ModelWeight[] = [];
  const layersModels: LayersModel[] = [];
  let foreign = false;
  for (const [name, model] of Object.entries(given)) {
    if (name !== '' && !/^[A-Za-z_][A-Za-z0-9_]{0,49}$/.test(name)) {
      throw invalid(
        `model() gave a model with the name '${name.slice(0, 60)}'; allowed: letters, digits and '_', 50 at most`,
      );
    }
    const prefix = name === '' ? '' : `${name}/`;
    if (model instanceof tf.LayersModel) {
      // A sequential model is built when its inputs are known.
      if (!model.built && model.inputs?.length === 1) model.build(model.inputs[0]!.shape);
      if (!model.built && isOne) model.build([null, ...data.inputShape]);
      if (!model.built) {
        throw invalid(
          `the model${name && ` '${name}'`} does not know the shape of its inputs: give its first layer an inputShape`,
        );
      }
      const own = layersPart(model, tensors, prefix, true);
      models[name] = own.part;
      weights.push(...own.weights);
      layersModels.push(model);
      foreign ||= own.foreign;
    } else {
      const own = functionInstance(model as FunctionModel, data, name);
      weights.push(...own.weights.map((weight) => ({ ...weight, name: prefix + weight.name })));
      models[name] = {
        apply: (inputs, training) =>
          (model as FunctionModel).predict(inputs as Tensor, { training }),
        variables: () =>
          Object.fromEntries(own.weights.map(({ name, variable }) => [name, variable])),
        layersModel: null,
        resetCalls: () => {},
      };
    }
  }
  const only = models[''];
  return {
    ...{ weights, models, foreign, layersModel: only?.layersModel ?? null },
    predict(inputs, training, noise = drawNoise) {
      if (only) {
        const told = applyOnly(only, inputs, training, noise);
        const nameOf = (i: number) => only.layersModel?.outputNames[i] ?? String(i);
        if (!Array.isArray(told)) return told as Tensors;
        return Object.fromEntries(told.map((output, i) => [nameOf(i), output]));
      }
      throw new DownpourError(
        'DP_USAGE',
        `the experiment has an objective over the models ${Object.keys(models).join(', ')}, so there is no one prediction: evaluate by its metrics, or use the exported models in a program (\`downpour export --format tfjs\`)`,
      );
    },
    penalties: () => layersModels.flatMap((model) => model.calculateLosses()),
  };
}

/** An objective may give its model other inputs than the data have. */
function applyOnly(model: ModelPart, inputs: Tensors, training: boolean, noise: NoiseSource) {
  try {
    return model.apply(inputs, training, noise);
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw invalid(
      `the model cannot predict from the inputs of the data, which only its objective knows to use: ${errorText(cause)}`,
      cause,
    );
  }
}

const isFunctionModel = (value: unknown): value is FunctionModel =>
  isRecord(value) && typeof value.predict === 'function' && isRecord(value.variables);

function functionInstance(model: FunctionModel, data: DataShape, name = ''): OwnInstance {
  const targets = targetsOf(data);
  const only = targets.length === 1 ? targets[0]!.name : null;
  const variables: unknown = (model as Partial<FunctionModel> | null | undefined)?.variables;
  if (typeof variables !== 'object' || variables === null || typeof model.predict !== 'function') {
    throw invalid(
      `model()${name && ` gave as '${name}'`}${name ? '' : ' gave'} neither a LayersModel nor { variables, predict }; build it with the \`tf\` that model() receives, not with another copy of TensorFlow.js`,
    );
  }
  const weights = Object.entries(model.variables).map(([name, entry]): ModelWeight => {
    const { variable, role, momentum } =
      entry instanceof tf.Variable
        ? { variable: entry, role: entry.trainable ? 'trainable' : 'frozen', momentum: undefined }
        : entry;
    if (!(variable instanceof tf.Variable)) {
      throw invalid(`model().variables.${name} is not a tf.variable made with the \`tf\` given`);
    }
    const spec = { name, shape: variable.shape, variable, role: role as ModelWeight['role'] };
    return momentum === undefined ? spec : { ...spec, momentum };
  });
  return {
    weights,
    predict: (inputs, training) => {
      const told = model.predict(inputs as Tensor, { training }) as Tensors;
      // One target that has a name, and an output that has none.
      return only !== null && told instanceof tf.Tensor ? { [only]: told } : told;
    },
    penalties: () => [],
    layersModel: null,
    foreign: true,
  };
}
