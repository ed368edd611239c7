import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { io, Optimizer } from '@tensorflow/tfjs-core';
import { openScratch } from '../cli/scratch.ts';
import type { PartialConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { OptimizerConfig } from '../shared/optimizer-config.ts';
import { ownModule } from '../shared/own-files.ts';
import { typedArrayName } from '../worker/data/described.ts';
import { dataOf, type GivenColumn } from '../worker/data/given.ts';
import type { GivenNumbers } from '../worker/data/numbers.ts';
import { packData } from '../worker/data/packed.ts';
import { type ClassWeights, experimentName, type LossName } from '../worker/experiment.ts';
import { isLibraryClass, type LayersModel, tf } from '../worker/tf.ts';
import { mustBeOptions } from './options.ts';
import { TRAIN_OPTIONS, type TrainingResult, type TrainOptions, train } from './train.ts';

/** For programs that have a compiled model and arrays: what `model.fit` would train, by many workers. */

/** A compiled `LayersModel`, by whichever declarations of TensorFlow.js a program has. */
export interface CompiledModel {
  readonly name: string;
  readonly optimizer: object;
  readonly layers: readonly object[];
  getWeights(): readonly object[];
}

/** A tensor, by whichever declarations. */
export interface GivenTensor {
  readonly shape: readonly number[];
  readonly rankType: unknown;
  dataSync(): NodeJS.TypedArray;
}

/** A tensor; an array whose nesting gives its shape; or numbers and their shape. The first size is that of the examples. */
export type Numbers = GivenTensor | GivenNumbers | GivenColumn;

export interface ExamplesOn {
  readonly inputs: Numbers;
  readonly targets: Numbers;
}

export interface DataOn extends ExamplesOn {
  /** Default: a part of the examples, see `validationSplit`. */
  readonly validation?: ExamplesOn;
  /** Looked at once, at the end. */
  readonly test?: ExamplesOn;
}

/** The first four are those of `model.fit`. */
export interface TrainOnOptions extends Omit<TrainOptions, 'data' | 'name'> {
  /** At most so many: early stopping may end it before, unless `config` has it off. */
  readonly epochs?: number;
  /** Default: 32, as of `model.fit`. */
  readonly batchSize?: number;
  readonly validationSplit?: number;
  /** How much an example of each class counts in the loss: by class, or `'balanced'`. */
  readonly classWeight?: ClassWeights;
}

const OPTIONS = [
  ...['epochs', 'batchSize', 'validationSplit', 'classWeight'],
  ...TRAIN_OPTIONS.filter((name) => name !== 'data' && name !== 'name'),
];

/** What a loss of `compile` is here, and the activation of the model's end that is part of it. */
const LOSSES: Readonly<Record<string, { loss: LossName; end: 'softmax' | 'sigmoid' | null }>> = {
  categoricalCrossentropy: { loss: 'softmaxCrossEntropy', end: 'softmax' },
  sparseCategoricalCrossentropy: { loss: 'softmaxCrossEntropy', end: 'softmax' },
  binaryCrossentropy: { loss: 'sigmoidCrossEntropy', end: 'sigmoid' },
  meanSquaredError: { loss: 'meanSquaredError', end: null },
  meanAbsoluteError: { loss: 'meanAbsoluteError', end: null },
};

/**
 * Trains a compiled `LayersModel`, beginning with the weights that it has: its loss and its optimizer are those of
 * `model.compile`. Its weights are the trained ones afterwards.
 * @returns as `train`; `model()` gives the same model.
 * @throws DownpourError DP_USAGE: the model is not compiled, or has what a worker could not have: a loss or a layer of your
 *   own. Write an experiment then.
 */
export async function trainOn(
  given: CompiledModel,
  data: DataOn,
  options: TrainOnOptions = {},
): Promise<TrainingResult> {
  mustBeOptions('trainOn', options, OPTIONS);
  const { epochs, batchSize = 32, validationSplit, classWeight, config = {}, ...rest } = options;
  const model = ours(given);
  const { name: lossName, loss, end } = lossOf(model);
  const { modelTopology, weightSpecs, weightData } = await artifactsOf(model);
  if (end !== null) {
    openEnd(modelTopology as Topology, end, lossName, model.outputs[0]!.shape.length - 1);
  }
  const classCount = end === 'softmax' ? model.outputs[0]!.shape.at(-1)! : null;
  const packed = Buffer.concat(packData(dataOf(givenOf(data, lossName, classCount))));
  const { folder, remove } = await openScratch('trained');
  try {
    const json = JSON.stringify({ modelTopology, weightSpecs });
    const weights = new Uint8Array(tf.io.CompositeArrayBuffer.join(weightData ?? []));
    await writeFile(join(folder, 'data.bin'), packed);
    await writeFile(join(folder, 'model.json'), json);
    await writeFile(join(folder, 'weights.bin'), weights);
    const file = join(folder, `${nameOf(model)}.mjs`);
    const sha256 = createHash('sha256').update(packed).update(json).update(weights).digest('hex');
    await writeFile(file, sourceOf(loss, sha256, classWeight));
    const own: PartialConfig = {
      ...optimizerOf(model.optimizer),
      minibatchSize: batchSize,
      ...(epochs === undefined ? {} : { epochsMax: epochs }),
      ...(validationSplit === undefined ? {} : { validationFraction: validationSplit }),
    };
    const result = await train(file, { ...rest, config: { ...own, ...config } });
    const trained = await result.model();
    model.setWeights(trained.getWeights());
    trained.dispose();
    return { ...result, model: async <Model>() => model as Model };
  } finally {
    await remove();
  }
}

/** The experiment's file. A run's hash is of it alone, so it names what lies beside it. */
const sourceOf = (loss: LossName, sha256: string, classWeights?: ClassWeights) => `// ${sha256}
import { fittedExperiment } from ${JSON.stringify(ownModule('fitted', new URL('../worker/fitted.ts', import.meta.url)).href)};

const fileOf = (name) => new URL(name, import.meta.url);
export default fittedExperiment({
  loss: '${loss}',
  data: fileOf('data.bin'),
  model: fileOf('model.json'),
  weights: fileOf('weights.bin'),
  classWeights: ${JSON.stringify(classWeights)},
});
`;

function nameOf({ name }: LayersModel): string {
  try {
    return experimentName(`${name}.mjs`);
  } catch {
    return 'model';
  }
}

const wrong = (text: string) => new DownpourError('DP_USAGE', text);
const EXPERIMENT = 'write an experiment instead (docs/getting-started.md), and `train` it';

function ours(model: CompiledModel): LayersModel {
  if (!(model instanceof tf.LayersModel)) {
    throw wrong(
      `the model is no LayersModel of the TensorFlow.js ${tf.version_core} that Downpour uses: install one version of TensorFlow.js (\`npm ls @tensorflow/tfjs-core\` shows all)`,
    );
  }
  if (model.inputs.length !== 1 || model.outputs.length !== 1) {
    throw wrong(
      `the model has ${model.inputs.length} inputs and ${model.outputs.length} outputs; 1 of each can be trained`,
    );
  }
  const foreign = model.layers.find((layer) => !isLibraryClass(layer));
  if (foreign) {
    throw wrong(
      `layer '${foreign.name}' is a ${foreign.getClassName()}, a class of your own, which workers do not have: ${EXPERIMENT}`,
    );
  }
  return model;
}

function lossOf({ loss, optimizer }: LayersModel) {
  // `compile` has not been called.
  if (!optimizer)
    throw wrong('the model has no loss and no optimizer yet: call model.compile first');
  const name = Array.isArray(loss) ? loss[0] : loss;
  const known = typeof name === 'string' ? LOSSES[name] : undefined;
  if (typeof name === 'string' && known) return { name, ...known };
  const seen = typeof name === 'string' ? `'${name}'` : 'a function';
  throw wrong(
    `the model's loss is ${seen}; ${Object.keys(LOSSES).join(', ')} can be used. For another one ${EXPERIMENT}`,
  );
}

/** Optimizers of TensorFlow.js by their class, with their settings. */
function optimizerOf(optimizer: Optimizer): Pick<PartialConfig, 'learningRate' | 'optimizer'> {
  const { learningRate, ...given } = optimizer.getConfig() as Readonly<Record<string, number>>;
  const { momentum = 0, beta1 = 0, beta2 = 0, decay = 0, rho = 0, epsilon = 0 } = given;
  const kinds: Readonly<Record<string, OptimizerConfig>> = {
    SGD: { kind: 'sgd' },
    Momentum: { kind: given.useNesterov ? 'nesterov' : 'momentum', momentum },
    Adam: { kind: 'adam', beta1, beta2, epsilon },
    Adagrad: {
      ...{ kind: 'adagrad', initialAccumulator: given.initialAccumulatorValue ?? 0.1 },
      epsilon: 1e-7,
    },
    Adadelta: { kind: 'adadelta', decay: rho, epsilon },
    ...(given.centered ? {} : { RMSProp: { kind: 'rmsprop', decay, momentum, epsilon } as const }),
  };
  const name = optimizer.getClassName();
  const kind = kinds[name];
  if (kind) return { learningRate: learningRate!, optimizer: kind };
  const seen = given.centered ? `${name} with centered: true` : name;
  throw wrong(
    `the server has no optimizer ${seen}; compile the model with one of ${Object.keys(kinds).join(', ')}`,
  );
}

async function artifactsOf(model: LayersModel): Promise<io.ModelArtifacts> {
  let taken: io.ModelArtifacts | null = null;
  await model.save({
    save: async (artifacts) => {
      taken = artifacts;
      return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
    },
  });
  return taken!;
}

interface Topology {
  readonly config: {
    readonly layers: readonly LayerTopology[];
    readonly output_layers?: readonly (readonly [string, number, number])[];
  };
}
interface LayerTopology {
  class_name: string;
  readonly name?: string;
  readonly config: { name?: string; activation?: string; axis?: number };
}

/**
 * The losses have the softmax or the sigmoid inside, where nothing overflows: the end of the model becomes linear.
 * @param last axis of the output. That of a layer `softmax` is 1 if none is given.
 */
function openEnd(
  { config }: Topology,
  end: 'softmax' | 'sigmoid',
  loss: string,
  last: number,
): void {
  const name = config.output_layers?.[0]?.[0];
  const layer =
    name === undefined
      ? config.layers.at(-1)!
      : config.layers.find((each) => (each.name ?? each.config.name) === name)!;
  if (layer.config.activation === end) layer.config.activation = 'linear';
  else if (
    layer.class_name === 'Softmax' &&
    end === 'softmax' &&
    [-1, last].includes(layer.config.axis ?? 1)
  ) {
    layer.class_name = 'Activation';
    layer.config.activation = 'linear';
  } else {
    throw wrong(
      `the loss is '${loss}', so the model must end in ${end}; its last layer, '${layer.config.name}', is a ${layer.class_name} with ${layer.config.activation ?? 'no'} activation: give it activation: '${end}'`,
    );
  }
}

function givenOf(data: DataOn, loss: string, classCount: number | null) {
  const part = ({ inputs, targets }: ExamplesOn) => ({
    inputs: inputsOf(inputs),
    targets: loss === 'sparseCategoricalCrossentropy' ? classesOf(targets) : columnOf(targets),
  });
  return {
    train: part(data),
    ...(data.validation ? { validation: part(data.validation) } : {}),
    ...(data.test ? { test: part(data.test) } : {}),
    ...(classCount === null ? {} : { classCount }),
  };
}

/** The model takes the same numbers before and after: nothing may be done to them on the way. */
function inputsOf(numbers: Numbers): GivenColumn {
  const column = columnOf(numbers);
  if (!areBytes(column.values)) return column;
  throw wrong(
    'the inputs are bytes, which Downpour takes for pixels and divides by 255; the model would then need divided numbers in model.predict too. Give what model.fit takes: Float32Array.from(bytes), or Float32Array.from(bytes, (byte) => byte / 255)',
  );
}

const areBytes = (values: unknown): boolean =>
  Array.isArray(values)
    ? areBytes(values[0])
    : /^Uint8(Clamped)?Array$/.test(typedArrayName.call(values) ?? '');

function columnOf(numbers: Numbers): GivenColumn {
  if (numbers instanceof tf.Tensor) {
    const values = numbers.dataSync();
    // A tensor of booleans has bytes, and these would be pixels.
    return {
      values: numbers.dtype === 'bool' ? Int32Array.from(values) : values,
      shape: numbers.shape,
    };
  }
  const isColumn = typeof numbers === 'object' && 'values' in numbers && !Array.isArray(numbers);
  const isTyped = ArrayBuffer.isView(numbers);
  return isColumn && !isTyped ? (numbers as GivenColumn) : { values: numbers as GivenNumbers };
}

/** Whole numbers from 0, which TensorFlow.js takes as floats, one for each example or in a column. */
function classesOf(numbers: Numbers): GivenColumn {
  const { values, shape } = columnOf(numbers);
  const flat = Array.isArray(values) ? (values as unknown[]).flat(Infinity) : values;
  const whole = Int32Array.from(flat as ArrayLike<number>);
  const at = whole.findIndex((value, i) => value !== (flat as ArrayLike<number>)[i] || value < 0);
  if (at >= 0) {
    throw wrong(
      `the loss is 'sparseCategoricalCrossentropy', and target ${at} is ${(flat as ArrayLike<number>)[at]}; targets are whole numbers from 0, the classes`,
    );
  }
  const sizes = shape ?? (Array.isArray(values) ? [values.length] : [whole.length]);
  return {
    values: whole,
    shape: sizes.length > 1 && sizes.at(-1) === 1 ? sizes.slice(0, -1) : sizes,
  };
}
