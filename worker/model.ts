import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { createLayout, type Layout, type PlacedTensor, type TensorSpec } from '../shared/layout.ts';
import type { ErrorMeasure } from '../shared/protocol.ts';
import { STREAMS } from '../shared/random.ts';
import { sizeOf } from './data/columns.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { gather } from './data/gather.ts';
import { discard } from './discard.ts';
import type { Experiment, FunctionModel } from './experiment.ts';
import { canRecord, type Fed, Graphs, type Opened } from './graph.ts';
import { mustBeIds } from './ids.ts';
import { isNoisy } from './layers.ts';
import { type DataShape, dataShape, errorMeasureOf, invalid, type ModelData } from './losses.ts';
import { described, measuresOf } from './measures.ts';
import { drawNoise, type NoiseSource, seedRandom, withSeed } from './noise.ts';
import {
  isLibraryClass,
  type LayersModel,
  type Scalar,
  type Tensor,
  type Tensor1D,
  tf,
  type Variable,
} from './tf.ts';

/**
 * The user's model as the rest of the worker sees it: flat vectors in, flat vectors out. Tensors do
 * not leave this file, and nothing else calls `variableGrads`.
 */

export interface Step {
  /** Mean over the minibatch, without regularisation; may be NaN or infinite. */
  readonly loss: number;
  /** Gradient of the loss with regularisation, then statistics: shape [layout.exchangedSize]. */
  readonly gradient: Float32Array;
  /** Gives its memory back before the garbage collector would; it must not be used afterwards. */
  discard(): void;
}

/** Means over the examples of one minibatch. */
export interface Measured {
  readonly loss: number;
  readonly error: number;
  readonly metrics: Readonly<Record<string, number>>;
}

/** n examples' values, row-major: shape[0] is n. */
export interface Output {
  readonly values: Float32Array;
  readonly shape: readonly number[];
}

export interface LayerOutput extends Output {
  /** The layer's path, as tensors have it. */
  readonly layer: string;
  /** Class of the layer: `Dense`. */
  readonly kind: string;
  /** `relu`, `tanh`, …; null: linear, or none of its own. */
  readonly activation: string | null;
}

export interface Model {
  readonly layout: Layout;
  /** What `measure` has as the error. */
  readonly errorMeasure: ErrorMeasure;
  /**
   * Fresh parameters, shape [layout.size]: the same for the same seed, on every machine whose
   * logarithm and square root agree. The model holds them afterwards.
   */
  initialise(seed: number): Promise<Float32Array>;
  /**
   * Takes parameters; they are put on the device when something is computed there that is no recorded step.
   * @param parameters shape [layout.exchangedSize] or [layout.size]. Not to be written to by anybody
   *   before the next `load` or `dispose` returns: until then a tensor may use this very memory.
   */
  load(parameters: Float32Array): void;
  /** What was loaded last. */
  readonly loaded: Float32Array | null;
  /**
   * One gradient at the parameters loaded.
   * @param minibatch borrowed until the promise resolves. @param seed of dropout and other noise.
   */
  step(minibatch: Minibatch, seed: number): Promise<Step>;
  /** Loss, error and metrics at the parameters loaded, training mode off. */
  measure(minibatch: Minibatch): Promise<Measured>;
  /** Losses of regularised layers at the parameters loaded: what a step's gradient has beside its loss. */
  penalty(): Promise<number>;
  /** Training mode off. */
  predict(minibatch: Minibatch): Promise<Output>;
  /** What each layer gives, training mode off; empty for a function of variables. */
  activations(minibatch: Minibatch): Promise<readonly LayerOutput[]>;
  /** How steps are computed: `graph`, or `operations`, possibly with why. */
  readonly execution: string;
  /** What `tf.loadLayersModel` reads, with the parameters loaded; null for a function of variables. */
  topology(): Promise<Record<string, unknown> | null>;
  dispose(): void;
}

/** One tensor of the model and how it takes part. */
interface Weight extends TensorSpec {
  readonly variable: Variable;
}

/** A built model, whatever form the user gave it. */
interface Instance {
  readonly weights: readonly Weight[];
  /** @param noise where layers of dropout and noise get theirs, in training. */
  predict(inputs: Tensor, training: boolean, noise?: NoiseSource): Tensor;
  /** Losses of regularised layers. */
  penalties(): Scalar[];
  readonly layersModel: LayersModel | null;
  /** Of one example's predictions. */
  readonly outputShape: readonly number[];
  /** Code of others takes part in a step: what it does may change from one to the next. */
  readonly foreign: boolean;
}

export interface ModelOptions {
  /** Steps may run as a recorded graph where the engine can. Default true. */
  readonly record?: boolean;
}

/**
 * Builds the experiment's model for some data. An engine must be open.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the model cannot be built, or fits neither the data
 *   nor what the server can do; DP_LAYOUT_INVALID.
 */
export async function buildModel(
  experiment: Experiment,
  config: Pick<RunConfig, 'seed' | 'hyperparameters'>,
  prepared: ModelData | PreparedData,
  options: ModelOptions = {},
): Promise<Model> {
  const data = dataShape(prepared);
  const build = (seed: number) => buildInstance(experiment, config, data, seed);
  let instance = await build(config.seed);
  const layout = createLayout(instance.weights.map(({ variable: _, ...spec }) => spec));
  const placed = (of: Instance) => placeWeights(layout, of.weights);
  let weights = placed(instance);
  let loaded: Float32Array | null = null;
  /** What is loaded is on the device. */
  let uploaded = true;
  const { outputShape } = instance;
  const measures = await measuresOf(experiment, config, data, outputShape).catch((cause) => {
    disposeInstance(instance);
    throw cause;
  });
  const { loss, trainingLoss, error, metrics } = measures;
  const asynchronous = tf.getBackend() === 'webgpu';
  /** Of the others one shares its memory with its tensors. */
  const readsCopies = ['tensorflow', 'wasm'].includes(tf.getBackend());
  const foreign = instance.foreign || typeof experiment.loss === 'function';
  const graphs = options.record !== false && !foreign && canRecord() ? new Graphs() : null;

  const read = async (tensor: Tensor): Promise<Float32Array> => {
    const values = asynchronous ? await tensor.data() : tensor.dataSync();
    tensor.dispose();
    return values as Float32Array;
  };
  const inputSize = sizeOf(data.inputShape);
  const tensorsOf = ({ inputs, targets }: Minibatch) => {
    const count = inputs.length / inputSize;
    const dtype = targets instanceof Int32Array ? 'int32' : 'float32';
    return {
      inputs: tf.tensor(inputs, [count, ...data.inputShape], 'float32'),
      targets: tf.tensor(targets, [count, ...data.targetShape], dtype),
    };
  };
  /** Of one shape each, kept: assigning one to a variable costs no operation. */
  const zeros = new Map<string, { readonly tensor: Tensor; readonly fed: Fed }>();
  const zerosOf = (shape: readonly number[]) => {
    let known = zeros.get(String(shape));
    if (!known) {
      const fed = { values: new Float32Array(sizeOf(shape)), shape };
      known = { tensor: tf.keep(tf.zeros([...shape])), fed };
      zeros.set(String(shape), known);
    }
    return known;
  };
  const zero = (shape: readonly number[]): Tensor => zerosOf(shape).tensor;

  if ('transform' in prepared && prepared.train.count > 0) {
    await checkNumbers(instance, prepared, tensorsOf, read).catch((cause) => {
      disposeInstance(instance);
      throw cause;
    });
  }

  /** The statistics loaded, by name: a step moves the model's own, and then puts these back. */
  const held = new Map<string, Tensor>();
  const hold = (name: string, tensor: Tensor) => {
    held.get(name)?.dispose();
    held.set(name, tf.keep(tensor));
  };
  const holdAll = () => {
    for (const { role, name, variable } of weights) {
      if (role === 'statistics') hold(name, tf.clone(variable));
    }
  };
  holdAll();

  /** Frozen parameters by name, and those of them that are not on the device yet. */
  const frozen = new Map<string, Float32Array>();
  const waiting = new Set<string>();
  /** They outlive the next `load`, which brings none. */
  const keepFrozen = (whole: Float32Array) => {
    for (const { role, name, offset, size } of weights) {
      if (role !== 'frozen') continue;
      frozen.set(name, whole.slice(offset, offset + size));
      waiting.add(name);
    }
  };
  /** Null: not known, nothing was loaded that has it. */
  const valuesOf = ({ name, role, offset, size }: PlacedTensor): Float32Array | null =>
    role === 'frozen'
      ? (frozen.get(name) ?? null)
      : (loaded?.subarray(offset, offset + size) ?? null);

  /** Puts what is loaded on the device. */
  const upload = (): void => {
    if (uploaded) return;
    uploaded = true;
    for (const weight of weights) {
      const { name, role, variable, shape } = weight;
      if (role === 'frozen' && !waiting.delete(name)) continue;
      const fresh = tf.tensor(valuesOf(weight)!, [...shape], 'float32');
      variable.assign(fresh);
      if (role === 'statistics') hold(name, fresh);
      else fresh.dispose();
    }
  };

  /** What is fed to a step besides the minibatch: weights, and zeros of these shapes for statistics. */
  const given = () => weights.filter(({ role }) => role !== 'statistics');
  const zeroShapes = () => {
    const shapes = weights.filter(({ role }) => role === 'statistics').map(({ shape }) => shape);
    return [...new Map(shapes.map((shape) => [String(shape), shape])).values()];
  };

  /** All that a step depends on; null when not all of it is known. */
  const feedsOf = ({ inputs, targets }: Minibatch): Fed[] | null => {
    const count = inputs.length / inputSize;
    const fed = [
      { values: inputs, shape: [count, ...data.inputShape] },
      { values: targets, shape: [count, ...data.targetShape] },
      ...given().map((weight) => ({ values: valuesOf(weight), shape: weight.shape })),
      ...zeroShapes().map((shape) => zerosOf(shape).fed),
    ];
    return fed.every(({ values }) => values !== null) ? (fed as Fed[]) : null;
  };

  /** A step, with tensors of what `feedsOf` gives, in the same order. */
  const openStep = (minibatch: Minibatch): Opened => {
    upload();
    const { inputs, targets } = tensorsOf(minibatch);
    const variables = given().map(({ variable }) => variable);
    return {
      feeds: [inputs, targets, ...variables, ...zeroShapes().map(zero)],
      compute: (noise) => gradientOf(inputs, targets, noise),
    };
  };

  /** Gradient, statistics and loss behind each other, shape [layout.exchangedSize + 1]. */
  const gradientOf = (inputs: Tensor, targets: Tensor, noise: NoiseSource): Tensor =>
    tf.tidy(() => {
      const trained = weights.filter((w) => w.role === 'trainable');
      const statistics = weights.filter((w) => w.role === 'statistics');
      // From 0, one update leaves (1 − momentum) times the minibatch's own value.
      for (const { variable, shape } of statistics) variable.assign(zero(shape));
      let mean: Tensor | null = null;
      const { value, grads } = tf.variableGrads(
        () => {
          const data = trainingLoss(targets, instance.predict(inputs, true, noise));
          const penalties = instance.penalties();
          if (penalties.length === 0) return data as Scalar;
          mean = tf.keep(data.clone());
          return tf.addN([data, ...penalties.map((p) => tf.reshape(p, []))]) as Scalar;
        },
        trained.map((w) => w.variable),
      );
      const parts = trained.map(({ variable, shape }) =>
        flatten(grads[variable.name] ?? zero(shape)),
      );
      for (const { variable } of statistics) parts.push(flatten(variable));
      const result = tf.concat1d([...parts, flatten(mean ?? value)]);
      (mean as Tensor | null)?.dispose();
      for (const { name, variable } of statistics) variable.assign(held.get(name)!);
      return result;
    });

  return {
    layout,
    errorMeasure: errorMeasureOf(experiment),

    get loaded() {
      return loaded;
    },

    get execution() {
      if (graphs) return graphs.execution;
      return foreign ? 'operations: it has code of others' : 'operations';
    },

    async initialise(seed) {
      disposeInstance(instance);
      instance = await build(seed);
      weights = placed(instance);
      holdAll();
      const values = new Float32Array(layout.size);
      const flat = tf.tidy(() => tf.concat1d(weights.map((w) => flatten(w.variable))));
      values.set(await read(flat));
      loaded = values;
      uploaded = true;
      keepFrozen(values);
      waiting.clear();
      return values;
    },

    load(parameters) {
      const whole = parameters.length === layout.size;
      if (!whole && parameters.length !== layout.exchangedSize) {
        throw new DownpourError(
          'DP_TENSOR_SIZE',
          `parameters have ${parameters.length} elements; the model needs ${layout.exchangedSize} or ${layout.size}`,
        );
      }
      loaded = parameters;
      uploaded = false;
      if (whole) keepFrozen(parameters);
    },

    async step(minibatch, seed) {
      // Not given back by the tidy, which would look for tensors in every element.
      let computed: Float32Array | null = null;
      const flat = withSeed(seed, () =>
        tf.tidy(() => {
          const fed = graphs ? feedsOf(minibatch) : null;
          if (!graphs || !fed) return openStep(minibatch).compute(drawNoise);
          computed = graphs.run(String(fed[0]!.shape), fed, () => openStep(minibatch));
          return null as never;
        }),
      );
      const values = computed ?? (await read(flat));
      const gradient = values.subarray(0, layout.exchangedSize);
      for (const { role, offset, size, momentum } of weights) {
        if (role !== 'statistics') continue;
        // What a function of variables assigns is the minibatch's value already.
        const share = instance.layersModel === null ? 1 : 1 - momentum!;
        for (let i = offset; i < offset + size; i++) gradient[i]! /= share;
      }
      return {
        loss: values[layout.exchangedSize]!,
        gradient,
        discard: () => {
          if (readsCopies) discard(values);
        },
      };
    },

    async measure(minibatch) {
      upload();
      const flat = tf.tidy(() => {
        const { inputs, targets } = tensorsOf(minibatch);
        const predictions = instance.predict(inputs, false);
        const value = loss(targets, predictions);
        const measures = [value, error === loss ? value : error(targets, predictions)];
        for (const [, metric] of metrics) measures.push(metric(targets, predictions));
        return tf.stack(measures.map((m) => tf.cast(m, 'float32')));
      });
      const values = await read(flat);
      return {
        loss: values[0]!,
        error: values[1]!,
        metrics: Object.fromEntries(metrics.map(([name], i) => [name, values[2 + i]!])),
      };
    },

    async penalty() {
      upload();
      const total = tf.tidy(() => {
        const penalties = instance.penalties();
        if (penalties.length === 0) return tf.scalar(0);
        return tf.addN(penalties.map((p) => tf.reshape(p, [])));
      });
      return (await read(total))[0]!;
    },

    async predict(minibatch) {
      upload();
      const output = tf.tidy(() =>
        tf.cast(instance.predict(tensorsOf(minibatch).inputs, false), 'float32'),
      );
      const { shape } = output;
      return { values: (await read(output)).slice(), shape };
    },

    async activations(minibatch) {
      if (!instance.layersModel) return [];
      upload();
      const layers = observableLayers(instance.layersModel);
      const outputs = tf.tidy(() => {
        const probe = tf.model({
          inputs: instance.layersModel!.inputs,
          outputs: layers.map(({ output }) => output),
        });
        const given = probe.apply(tensorsOf(minibatch).inputs, { training: false });
        return [given].flat() as Tensor[];
      });
      const results: LayerOutput[] = [];
      for (const [i, { layer, kind, activation }] of layers.entries()) {
        const { shape } = outputs[i]!;
        const values = (await read(outputs[i]!)).slice();
        results.push({ layer, kind, activation, values, shape });
      }
      return results;
    },

    async topology() {
      upload();
      let topology: Record<string, unknown> | null = null;
      await instance.layersModel?.save(
        tf.io.withSaveHandler(async (artifacts) => {
          topology = artifacts as unknown as Record<string, unknown>;
          return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
        }),
      );
      return topology;
    },

    dispose() {
      disposeInstance(instance);
      graphs?.dispose();
      for (const { tensor } of zeros.values()) tensor.dispose();
      for (const tensor of held.values()) tensor.dispose();
    },
  };
}

const flatten = (tensor: Tensor): Tensor1D => tf.reshape(tensor, [tensor.size]);

/** The weights in the order of the layout, each with its place. */
function placeWeights(layout: Layout, weights: readonly Weight[]): (PlacedTensor & Weight)[] {
  const byName = new Map(weights.map((weight) => [weight.name, weight]));
  return layout.tensors.map((tensor) => {
    const weight = byName.get(tensor.name);
    if (!weight || String(weight.shape) !== String(tensor.shape)) {
      throw invalid(
        `when the model is built again, its tensor '${tensor.name}' is different: model() must build the same tensors for every seed`,
      );
    }
    return { ...tensor, variable: weight.variable };
  });
}

function disposeInstance({ weights }: Pick<Instance, 'weights'>): void {
  for (const { variable } of weights) if (!variable.isDisposed) variable.dispose();
}

// Building.

async function buildInstance(
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

type OwnInstance = Omit<Instance, 'outputShape'>;

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

/** Of some training examples: what is NaN before any update no learning rate will mend. */
async function checkNumbers(
  instance: Instance,
  prepared: PreparedData,
  tensorsOf: (minibatch: Minibatch) => { readonly inputs: Tensor; readonly targets: Tensor },
  read: (tensor: Tensor) => Promise<Float32Array>,
): Promise<void> {
  if (instance.layersModel) mustBeIds(instance.layersModel, prepared);
  const { count } = prepared.train;
  const rows = [...new Set([0, 0.25, 0.5, 0.75].map((share) => Math.floor(share * count)))];
  const minibatch = gather(prepared, 'train', rows);
  const values = await read(tf.tidy(() => instance.predict(tensorsOf(minibatch).inputs, false)));
  const at = values.findIndex(Number.isNaN);
  if (at < 0) return;
  throw invalid(
    `the model's predictions for training example ${rows[Math.floor((at * rows.length) / values.length)]} are NaN at its initial parameters: check its initialisers, divisions, roots and logarithms`,
  );
}

type Layer = LayersModel['layers'][number];
type LayerWeight = Layer['weights'][number];

function layersInstance(model: LayersModel, { inputShape }: DataShape): OwnInstance {
  if (model.inputs.length !== 1 || model.outputs.length !== 1) {
    throw invalid(
      `the model has ${model.inputs.length} inputs and ${model.outputs.length} outputs; allowed: one of each`,
    );
  }
  const taken = model.inputs[0]!.shape.slice(1);
  const fits =
    taken.length === inputShape.length && taken.every((d, i) => d === null || d === inputShape[i]);
  if (!fits) {
    throw invalid(
      `the model takes inputs of shape [n,${taken}], but the data have [n,${inputShape}]: pass inputShape to the first layer`,
    );
  }
  const weights: Weight[] = [];
  const seen = new Set<LayerWeight>();
  const names = new Set<string>();
  const trainableWeights = new Set(model.trainableWeights);
  const source: { noise: NoiseSource } = { noise: drawNoise };
  const foreign = isForeign(model);
  for (const { layer, outer, path } of walkLayers(model)) {
    if (isLibraryClass(layer)) adaptNoise(layer, source);
    if (outer !== layer) adaptNoise(outer, source);
    const normalises = layer.getClassName() === 'BatchNormalization';
    if (normalises) adaptNormalisation(layer, path, trainableWeights);
    for (const weight of layer.weights) {
      if (seen.has(weight)) continue;
      seen.add(weight);
      if (weight.constraint != null) {
        throw invalid(
          `layer '${path}' has a weight constraint (${weight.constraint.getClassName()}); parameters are the server's: use maxNorm of the configuration, weightDecay or a regularizer`,
        );
      }
      const name = uniqueName(`${path}/${weight.originalName.split('/').at(-1)}`, names);
      const variable = weight.read() as Variable;
      const spec = { name, shape: variable.shape, variable };
      const { momentum } = layer as unknown as { momentum: number };
      if (trainableWeights.has(weight)) weights.push({ ...spec, role: 'trainable' });
      else if (normalises && isActive(layer)) {
        weights.push({ ...spec, role: 'statistics', momentum });
      } else weights.push({ ...spec, role: 'frozen' });
    }
  }
  return {
    weights,
    predict: (inputs, training, noise = drawNoise) => {
      source.noise = noise;
      return model.apply(inputs, { training }) as Tensor;
    },
    penalties: () => model.calculateLosses(),
    layersModel: model,
    foreign,
  };
}

/** Of a class of the user's, with a `call` of the user's, or with a state from step to step. */
function isForeign(layer: Layer): boolean {
  if (!isLibraryClass(layer) || Object.hasOwn(layer, 'call') || layer.stateful) return true;
  const { layers, layer: wrapped, forwardLayer, backwardLayer, cell, cells } = layer as Nested;
  const inner = [wrapped, forwardLayer, backwardLayer, cell, ...(layers ?? []), ...(cells ?? [])];
  return inner.some((each) => each !== undefined && isForeign(each));
}

/** Where layers keep other layers: models, wrappers, recurrent ones. */
type Nested = Layer &
  Partial<Record<'layer' | 'forwardLayer' | 'backwardLayer' | 'cell', Layer>> &
  Partial<Record<'layers' | 'cells', readonly Layer[]>>;

/** Takes the noise from elsewhere: cheaper, and one that a recorded step can be fed. */
function adaptNoise(layer: Layer, source: { noise: NoiseSource }): void {
  if (isNoisy(layer)) layer.noise = (request) => source.noise(request);
  const kind = layer.getClassName();
  const adapted = NOISES[kind]?.(layer, source);
  if (!adapted) return;
  layer.call = (inputs, kwargs) => {
    const x = Array.isArray(inputs) ? inputs[0]! : inputs;
    return kwargs.training === true ? adapted(x) : x;
  };
}

/** tfjs-layers' own, by class: what they do in training. */
const NOISES: Readonly<
  Record<string, (layer: Layer, source: { noise: NoiseSource }) => (x: Tensor) => Tensor>
> = {
  Dropout(layer, source) {
    const { rate, noiseShape, seed } = layer as unknown as {
      rate: number;
      noiseShape?: readonly (number | null)[];
      seed?: number;
    };
    return (x) => {
      if (!(rate > 0 && rate < 1)) return x;
      const shape = x.shape.map((size, i) => noiseShape?.[i] ?? size);
      return tf.mul(x, source.noise({ kind: 'dropout', shape, rate, seed }));
    };
  },
  GaussianNoise(layer, source) {
    const { stddev } = layer as unknown as { stddev: number };
    return (x) => tf.add(x, tf.mul(source.noise({ kind: 'normal', shape: x.shape }), stddev));
  },
};

/** Batch normalisation that takes part in training: it has trained weights of its own. */
function isActive(layer: Layer): boolean {
  return activeNormalisations.has(layer);
}
const activeNormalisations = new WeakSet<Layer>();

/**
 * A frozen normalisation must use its averages and leave them alone, also in training mode, where
 * tfjs would normalise by the minibatch and go on averaging.
 */
function adaptNormalisation(layer: Layer, path: string, trained: Set<LayerWeight>): void {
  const { center, scale, momentum } = layer as unknown as {
    center: boolean;
    scale: boolean;
    momentum: number;
  };
  if (layer.weights.some((weight) => trained.has(weight))) {
    if (!center || !scale) {
      throw invalid(
        `layer '${path}': batch normalisation without ${center ? 'scale' : 'center'} cannot be trained by TensorFlow.js 4.22 (it reads the missing weight): leave it on`,
      );
    }
    if (!(momentum >= 0 && momentum < 1)) {
      throw invalid(`layer '${path}' has momentum ${momentum}; allowed: from 0, below 1`);
    }
    activeNormalisations.add(layer);
    return;
  }
  const call = layer.call.bind(layer);
  layer.call = (inputs, kwargs) => call(inputs, { ...kwargs, training: false });
}

/**
 * The layers that hold weights, innermost first found, each with a stable path. tfjs numbers layers
 * over the life of the process (`dense_Dense7`); here they are numbered within their model
 * (`dense_1`), so that every worker and every rebuild has the same names.
 */
function* walkLayers(model: LayersModel, prefix = ''): Generator<Walked> {
  const given = new Set(model.layers.filter((l) => generatedKind(l) === null).map((l) => l.name));
  const counts = new Map<string, number>();
  for (const layer of model.layers) {
    let name = layer.name;
    const kind = generatedKind(layer);
    if (kind !== null) {
      do {
        const count = (counts.get(kind) ?? 0) + 1;
        counts.set(kind, count);
        name = `${kind}_${count}`;
      } while (given.has(name));
    }
    const path = prefix + name;
    if (layer instanceof tf.LayersModel) yield* walkLayers(layer, `${path}/`);
    else yield { layer: innermost(layer), outer: layer, path };
  }
}

interface Walked {
  readonly layer: Layer;
  /** The wrapper around it, or itself. */
  readonly outer: Layer;
  readonly path: string;
}

/** The layers on the model's way from input to output whose output is one tensor. */
function observableLayers(model: LayersModel) {
  const paths = new Map([...walkLayers(model)].map(({ layer, path }) => [layer, path]));
  return model.layers.flatMap((layer) => {
    const kind = layer.getClassName();
    // A layer that is used twice has no single output.
    if (kind === 'InputLayer' || layer.inboundNodes.length !== 1) return [];
    const { output } = layer;
    if (Array.isArray(output)) return [];
    const { activation } = layer as unknown as { activation?: { getClassName?(): string } };
    const own = activation?.getClassName?.() ?? ACTIVATION_LAYERS[kind] ?? null;
    const path = paths.get(innermost(layer)) ?? layer.name;
    return [{ layer: path, kind, output, activation: own === 'linear' ? null : own }];
  });
}

/** Layers that are an activation and nothing else. */
const ACTIVATION_LAYERS: Readonly<Record<string, string>> = {
  ...{ ReLU: 'relu', LeakyReLU: 'leakyrelu', ELU: 'elu', PReLU: 'prelu', Softmax: 'softmax' },
  NoisyReLU: 'relu',
};

/** Wrappers that leave the one layer inside them as it is. */
const WRAPPERS = ['TimeDistributed', 'WeightNoise'];

/** Inside wrappers with one layer, that layer. */
function innermost(layer: Layer): Layer {
  const wrapped = (layer as unknown as { layer?: Layer }).layer;
  return wrapped instanceof Object && WRAPPERS.includes(layer.getClassName())
    ? innermost(wrapped)
    : layer;
}

/** What a name that tfjs made up begins with (`dense` of `dense_Dense7`); null: the user's own. */
function generatedKind(layer: Layer): string | null {
  const type = layer.getClassName();
  if (layer instanceof tf.LayersModel) {
    const kind = type.toLowerCase();
    return new RegExp(`^${kind}_?\\d+$`).test(layer.name) ? kind : null;
  }
  const [, kind] = new RegExp(`^(.+)_${type}\\d+$`).exec(layer.name) ?? [];
  return kind ?? null;
}

/** Both directions of a bidirectional layer have a `kernel`. */
function uniqueName(name: string, names: Set<string>): string {
  let unique = name;
  for (let i = 2; names.has(unique); i++) unique = `${name}_${i}`;
  names.add(unique);
  return unique;
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
