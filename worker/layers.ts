import { DownpourError } from '../shared/errors.ts';
import { type Random, random, STREAMS } from '../shared/random.ts';
import type { ModelArguments } from './experiment.ts';
import {
  adaptivePooling,
  globalContrastLayer,
  localContrastLayer,
  rowsAndColumns,
} from './image-layers.ts';
import { maskedMean } from './masked-mean.ts';
import { drawNoise, type NoiseSource } from './noise.ts';
import { resetAfterGru } from './reset-after-gru.ts';
import { rows } from './rows/layer.ts';
import {
  type Layer,
  type LayerArguments,
  type LayerInputs,
  registerOwnClass,
  type Tensor,
  tf,
  Wrapper,
} from './tf.ts';

/**
 * Layers and initial values of *Deep Learning* that TensorFlow.js lacks:
 *
 *     import { initializers, layers, losses } from 'downpour/layers';
 *
 * They are saved and loaded with a LayersModel as its own are; a program that loads such a model
 * imports this module first. What TensorFlow.js has is not here: docs/layers.md lists it.
 */

type Kwargs = { readonly training?: boolean };

const one = (inputs: LayerInputs): Tensor => (Array.isArray(inputs) ? inputs[0]! : inputs);

/** A layer that draws noise in training: where from is put in place by the model it is in. */
export interface Noisy {
  noise: NoiseSource;
}

/** Whether a layer wants a source of noise. */
export const isNoisy = (layer: object): layer is Noisy =>
  layer instanceof NoisyReLU || layer instanceof WeightNoise;

/**
 * max(0, x + n) with n drawn from N(0, σ(x)), σ the logistic function, in training; max(0, x) else. The
 * noise is that of a sum of binary units with shared weights (Nair and Hinton 2010, §2).
 */
class NoisyReLU extends tf.layers.Layer implements Noisy {
  static readonly className = 'NoisyReLU';
  noise: NoiseSource = drawNoise;

  override computeOutputShape<S>(inputShape: S): S {
    return inputShape;
  }

  override call(inputs: LayerInputs, { training }: Kwargs): Tensor {
    const x = one(inputs);
    if (training !== true) return tf.relu(x);
    return tf.tidy(() => {
      const n = this.noise({ kind: 'normal', shape: x.shape });
      // √σ(x) by way of its logarithm: σ(x) itself is 0 from x = −104 on, and √ has no slope there.
      return tf.relu(tf.add(x, tf.mul(tf.exp(tf.mul(tf.logSigmoid(x), 0.5)), n)));
    });
  }
}
registerOwnClass(NoisyReLU);

interface WeightNoiseArguments extends NonNullable<LayerArguments> {
  readonly layer: Layer;
  readonly stddev: number;
}

/**
 * A layer whose weights of rank 2 or more have noise N(0, stddev²) added in training, other noise for
 * each minibatch (Deep Learning §7.5: it leads to where small changes of the weights matter little).
 */
class WeightNoise extends Wrapper implements Noisy {
  static readonly className = 'WeightNoise';
  readonly stddev: number;
  noise: NoiseSource = drawNoise;

  constructor(args: WeightNoiseArguments) {
    super(args);
    this.stddev = args.stddev;
  }

  override build(inputShape: never): void {
    if (!this.layer.built) {
      this.layer.build(inputShape);
      this.layer.built = true;
    }
    super.build(inputShape);
  }

  override computeOutputShape(inputShape: never) {
    return this.layer.computeOutputShape(inputShape);
  }

  override getConfig() {
    return { ...super.getConfig(), stddev: this.stddev };
  }

  override call(inputs: LayerInputs, kwargs: Kwargs): LayerInputs {
    if (kwargs.training !== true || this.stddev === 0) return this.layer.call(inputs, kwargs);
    return tf.tidy(() => {
      const noised = this.layer.trainableWeights.filter(({ shape }) => shape.length >= 2);
      try {
        for (const weight of noised) {
          const clean = weight.read();
          const noise = tf.mul(this.noise({ kind: 'normal', shape: clean.shape }), this.stddev);
          // However often the layer reads it in this step (recurrent ones do).
          const value = tf.add(clean, noise);
          weight.read = () => value as never;
        }
        return this.layer.call(inputs, kwargs);
      } finally {
        for (const weight of noised) delete (weight as { read?: unknown }).read;
      }
    });
  }
}
registerOwnClass(WeightNoise);

/** tfjs-layers' own base class of initial values, which it does not export. */
const Initializer = Object.getPrototypeOf(tf.initializers.zeros().constructor) as {
  new (): ReturnType<typeof tf.initializers.zeros>;
};

/** Draws of the model's own seed, or of a seed given. */
const drawsOf = (seed: number | undefined): Random =>
  random(seed ?? Math.floor(Math.random() * 2 ** 32), STREAMS.parameters);

export interface SparseArguments {
  /** Weights of each unit that are not 0; all of them where there are fewer inputs. */
  readonly connections?: number;
  /** Their standard deviation. */
  readonly scale?: number;
  readonly seed?: number;
}

/**
 * Each unit begins with k incoming weights from N(0, scale²), all others 0: units stay different, and how
 * large their inputs are does not depend on how many there are (Martens 2010, §5; Deep Learning §8.4).
 * The last axis is that of the units.
 */
class SparseNormal extends Initializer {
  static readonly className = 'SparseNormal';
  readonly #args: SparseArguments;

  constructor(args: SparseArguments = {}) {
    super();
    this.#args = args;
    const { connections = 15 } = args;
    if (!(Number.isInteger(connections) && connections > 0)) {
      throw invalid(`sparse: connections is ${connections}; it must be a whole number above 0`);
    }
  }

  override apply(shape: number[]): Tensor {
    const { connections = 15, scale = 1, seed } = this.#args;
    const units = shape.at(-1)!;
    const inputs = sizeOf(shape) / units;
    const draw = drawsOf(seed);
    const values = new Float32Array(inputs * units);
    for (let unit = 0; unit < units; unit++) {
      for (const input of someOf(inputs, Math.min(connections, inputs), draw)) {
        values[input * units + unit] = scale * draw.normal();
      }
    }
    return tf.tensor(values, shape);
  }

  override getConfig() {
    return { ...this.#args };
  }
}
registerOwnClass(SparseNormal);

export interface EchoStateArguments {
  /** Largest size of an eigenvalue. */
  readonly spectralRadius?: number;
  /** Share of the weights that are not 0. */
  readonly density?: number;
  readonly seed?: number;
}

/**
 * Recurrent weights that let a state echo for long: sparse, scaled to a spectral radius, 1.2 as a rule
 * (Deep Learning §10.8 and §8.4; Sutskever 2012 §5, for networks that are trained afterwards as well).
 * Square matrices only. A reservoir that is never trained is a `simpleRNN` with it and `trainable: false`.
 */
class EchoState extends Initializer {
  static readonly className = 'EchoState';
  readonly #args: EchoStateArguments;

  constructor(args: EchoStateArguments = {}) {
    super();
    this.#args = args;
  }

  override apply(shape: number[]): Tensor {
    const { spectralRadius: wanted = 1.2, density = 0.1, seed } = this.#args;
    const [n = 0, columns] = shape;
    if (shape.length !== 2 || columns !== n) {
      throw invalid(`echoState is for square recurrent weights; these have shape [${shape}]`);
    }
    const draw = drawsOf(seed);
    const connections = Math.min(n, Math.max(3, Math.round(density * n)));
    // A small sparse matrix may have no cycle, and so no eigenvalue but 0.
    for (let attempt = 0; attempt < 100; attempt++) {
      const values = new Float64Array(n * n);
      for (let unit = 0; unit < n; unit++) {
        for (const from of someOf(n, connections, draw)) values[from * n + unit] = draw.normal();
      }
      const radius = spectralRadius(values, n);
      if (radius > 1e-3)
        return tf.tensor(
          Float32Array.from(values, (x) => (x * wanted) / radius),
          shape,
        );
    }
    throw invalid(
      `echoState: no matrix of size ${n} with density ${density} has an eigenvalue but 0`,
    );
  }

  override getConfig() {
    return { ...this.#args };
  }
}
registerOwnClass(EchoState);

/**
 * The largest size of an eigenvalue of a square matrix [n, n]: how fast a vector grows under it, over so
 * many products that whatever turns (complex pairs) averages out: right to about 0.1 %.
 */
export function spectralRadius(matrix: ArrayLike<number>, n: number): number {
  const entries: { to: number; from: number; weight: number }[] = [];
  for (let i = 0; i < n * n; i++) {
    if (matrix[i] !== 0) entries.push({ from: Math.floor(i / n), to: i % n, weight: matrix[i]! });
  }
  const draw = random(1, STREAMS.parameters);
  let x = Float64Array.from({ length: n }, () => draw.normal());
  let growth = 0;
  for (let product = -PRODUCTS / 4; product < PRODUCTS; product++) {
    const next = new Float64Array(n);
    for (const { to, from, weight } of entries) next[to]! += weight * x[from]!;
    const norm = Math.hypot(...next);
    if (norm === 0) return 0;
    if (product >= 0) growth += Math.log(norm);
    for (let i = 0; i < n; i++) next[i]! /= norm;
    x = next;
  }
  return Math.exp(growth / PRODUCTS);
}
const PRODUCTS = 4096;

/** k of the numbers below n, each as likely as any other. */
function someOf(n: number, k: number, draw: Random): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = 0; i < k; i++) {
    const j = i + draw.below(n - i);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order.slice(0, k);
}

const sizeOf = (shape: readonly number[]) => shape.reduce((product, d) => product * d, 1);
const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);

/**
 * What `layers.hidden` reads of an experiment's hyperparameters, each by its own name; so
 * `downpour ablate` and `downpour search` can turn it. A model of another form reads the same names.
 */
export interface HiddenKnobs {
  /** Hidden layers. */
  readonly layers?: number;
  /** How many units each hidden layer has. */
  readonly units?: number;
  /** What the units are multiplied by. */
  readonly unitsTimes?: number;
  /** Instead of units: as many as give the model about so many parameters, output layer included. */
  readonly parameters?: number;
  /** relu, leakyReLU, prelu, noisyReLU, elu, tanh or sigmoid. */
  readonly activation?: string;
  /** Share of the inputs that is dropped (the book's 0.8 that stays is 0.2 here). */
  readonly inputDropout?: number;
  /** Share of each hidden layer that is dropped. */
  readonly dropout?: number;
  /** Batch normalisation before each activation. */
  readonly batchNorm?: boolean;
  /** Standard deviation of Gaussian noise on the inputs. */
  readonly inputNoise?: number;
  /** … and on the weights of the hidden layers. */
  readonly weightNoise?: number;
  /** he, glorot, orthogonal or sparse; default: he, glorot for tanh and sigmoid. */
  readonly initializer?: string;
  /** What initial weights are multiplied by. */
  readonly initialScale?: number;
}

export interface HiddenOptions {
  /** The units of the layer that follows; counted with `parameters`. Default: classCount, or 1. */
  readonly outputs?: number;
}

const FUSED = ['relu', 'elu', 'tanh', 'sigmoid'];
const ACTIVATIONS = [...FUSED, 'leakyReLU', 'prelu', 'noisyReLU'];

/**
 * The hidden layers of a fully connected network, as the hyperparameters want them.
 *
 *     tf.sequential({ layers: [...layers.hidden(args, { units: 256 }), tf.layers.dense({ units: args.classCount })] })
 *
 * @param defaults of the knobs; those without one are off, one layer of 128 `relu` units.
 * @throws DownpourError DP_EXPERIMENT_INVALID: a knob is out of range.
 */
function hidden(
  {
    hyperparameters,
    inputShape,
    classCount,
  }: Pick<ModelArguments, 'hyperparameters' | 'inputShape' | 'classCount'>,
  defaults: HiddenKnobs = {},
  { outputs = classCount || 1 }: HiddenOptions = {},
): Layer[] {
  const knobs = readKnobs({ ...defaults, ...hyperparameters });
  const { layers: depth, activation, dropout, batchNorm } = knobs;
  const units = unitsOf(knobs, sizeOf(inputShape), outputs);
  const result: Layer[] = [
    inputShape.length > 1
      ? tf.layers.flatten({ inputShape })
      : (tf.layers.inputLayer({ inputShape }) as Layer),
  ];
  if (knobs.inputNoise > 0) result.push(tf.layers.gaussianNoise({ stddev: knobs.inputNoise }));
  if (knobs.inputDropout > 0) result.push(tf.layers.dropout({ rate: knobs.inputDropout }));
  for (let i = 0; i < depth; i++) {
    const fused = !batchNorm && FUSED.includes(activation);
    const dense = tf.layers.dense({
      units,
      // Batch normalisation has an offset of its own.
      useBias: !batchNorm,
      kernelInitializer: initializerOf(knobs),
      ...(fused ? { activation: activation as 'relu' } : {}),
    });
    result.push(
      knobs.weightNoise > 0 ? weightNoise({ layer: dense, stddev: knobs.weightNoise }) : dense,
    );
    if (batchNorm) result.push(tf.layers.batchNormalization({ momentum: 0.9 }));
    if (!fused) result.push(activationLayer(activation));
    if (dropout > 0) result.push(tf.layers.dropout({ rate: dropout }));
  }
  return result;
}

function activationLayer(activation: string): Layer {
  if (activation === 'leakyReLU') return tf.layers.leakyReLU({ alpha: 0.01 });
  if (activation === 'prelu') {
    return tf.layers.prelu({ alphaInitializer: tf.initializers.constant({ value: 0.25 }) });
  }
  if (activation === 'noisyReLU') return noisyReLU();
  return tf.layers.activation({ activation: activation as 'relu' });
}

type Knobs = Required<Omit<HiddenKnobs, 'parameters'>> & { readonly parameters: number | null };

function readKnobs(given: Readonly<Record<string, unknown>>): Knobs {
  const number = (name: keyof HiddenKnobs, fallback: number, low: number, high = Infinity) => {
    const value = Number(given[name] ?? fallback);
    if (value >= low && value <= high) return value;
    const range = high === Infinity ? `at least ${low}` : `from ${low} to ${high}`;
    throw invalid(`hyperparameters.${name} is ${String(given[name])}; it must be ${range}`);
  };
  const choice = (name: keyof HiddenKnobs, fallback: string, allowed: readonly string[]) => {
    const value = given[name] ?? fallback;
    if (allowed.includes(value as string)) return value as string;
    throw invalid(`hyperparameters.${name} is '${String(value)}'; allowed: ${allowed.join(', ')}`);
  };
  const activation = choice('activation', 'relu', ACTIVATIONS);
  const saturates = activation === 'tanh' || activation === 'sigmoid';
  return {
    layers: Math.round(number('layers', 1, 1, 1000)),
    units: number('units', 128, 1),
    unitsTimes: number('unitsTimes', 1, 1e-6),
    parameters: given.parameters === undefined ? null : number('parameters', 0, 1),
    activation,
    inputDropout: number('inputDropout', 0, 0, 0.99),
    dropout: number('dropout', 0, 0, 0.99),
    batchNorm: given.batchNorm === true,
    inputNoise: number('inputNoise', 0, 0),
    weightNoise: number('weightNoise', 0, 0),
    initializer: choice('initializer', saturates ? 'glorot' : 'he', [
      'he',
      'glorot',
      'orthogonal',
      'sparse',
    ]),
    initialScale: number('initialScale', 1, 0),
  };
}

function unitsOf(knobs: Knobs, inputs: number, outputs: number): number {
  const { units, unitsTimes, parameters } = knobs;
  if (parameters === null) return Math.max(1, Math.round(units * unitsTimes));
  const count = (u: number) => parameterCount(knobs, u, inputs, outputs);
  let high = 1;
  while (count(high) < parameters) high *= 2;
  let low = high / 2;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (count(middle) < parameters) low = middle;
    else high = middle;
  }
  return low >= 1 && parameters - count(low) < count(high) - parameters ? low : high;
}

function parameterCount(
  { layers: depth, batchNorm, activation }: Knobs,
  units: number,
  inputs: number,
  outputs: number,
): number {
  // Offset and scale of the normalisation, or a bias; a slope a unit.
  const perUnit = (batchNorm ? 2 : 1) + (activation === 'prelu' ? 1 : 0);
  const within = (inputs + (depth - 1) * units + depth * perUnit) * units;
  return within + (units + 1) * outputs;
}

function initializerOf({ initializer, initialScale: scale }: Knobs) {
  if (initializer === 'orthogonal')
    return tf.initializers.orthogonal({ gain: Math.SQRT2 * scale, seed: undefined as never });
  if (initializer === 'sparse') return sparse({ scale });
  // Uniform: tfjs-layers cuts its normal ones off at two deviations, which makes them 12 % too small.
  const [gain, mode] = initializer === 'he' ? ([2, 'fanIn'] as const) : ([1, 'fanAvg'] as const);
  return tf.initializers.varianceScaling({
    scale: gain * scale * scale,
    mode,
    distribution: 'uniform',
  });
}

/**
 * The layers of a model, of which `hyperparameters.trained` says which are trained: `all` (default), or only the `last` one that
 * has weights. Then the others keep their random initial values, as random filters do (Deep Learning §9.9), and normalisations
 * among them leave their inputs as they are.
 *
 *     tf.sequential({ layers: layers.trained(args, [tf.layers.conv2d({ … }), …, tf.layers.dense({ units: args.classCount })]) })
 *
 * @returns the layers given.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the hyperparameter is something else.
 */
function trained(
  { hyperparameters }: Pick<ModelArguments, 'hyperparameters'>,
  list: readonly Layer[],
): Layer[] {
  const which = hyperparameters.trained ?? 'all';
  if (which !== 'all' && which !== 'last') {
    throw invalid(`hyperparameters.trained is '${String(which)}'; allowed: all, last`);
  }
  const own = list.findLastIndex((layer) => !WITHOUT_WEIGHTS.includes(layer.getClassName()));
  if (which === 'last') for (const layer of list.slice(0, own)) layer.trainable = false;
  return [...list];
}

/** Layers that may stand behind the last one that has weights. */
const WITHOUT_WEIGHTS = [
  ...['Activation', 'ReLU', 'LeakyReLU', 'ELU', 'Softmax', 'Dropout', 'Reshape', 'Flatten'],
  ...['GlobalAveragePooling2D', 'GlobalMaxPooling2D', 'GlobalAveragePooling1D'],
];

/** @throws DownpourError DP_EXPERIMENT_INVALID: a negative deviation. */
function weightNoise(args: WeightNoiseArguments): Layer {
  if (!(args.stddev >= 0))
    throw invalid(`weightNoise: stddev is ${args.stddev}; it must be at least 0`);
  return new WeightNoise(args);
}
const noisyReLU = (args: LayerArguments = {}): Layer => new NoisyReLU(args);
const sparse = (args?: SparseArguments) => new SparseNormal(args);
const echoState = (args?: EchoStateArguments) => new EchoState(args);

export const layers = {
  ...{
    hidden,
    noisyReLU,
    weightNoise,
    trained,
    adaptivePooling,
    rowsAndColumns,
    maskedMean,
    resetAfterGru,
    rows,
  },
  ...{ globalContrast: globalContrastLayer, localContrast: localContrastLayer },
};
export const initializers = { sparse, echoState };
export { losses } from './class-losses.ts';
