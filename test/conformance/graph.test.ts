/**
 * A step run as one recorded graph (native engine) gives what single operations give. Skips by name
 * where the engine is not installed; `downpour engine install`.
 */
import { beforeAll, describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { type Experiment, loadExperiment, type ModelArguments } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

/** ‖difference‖ / ‖gradient‖: what TensorFlow fuses rounds otherwise; 1.4e-7 was the most seen. */
const TOLERANCE = 1e-5;
const BATCH_SIZE = 8;

const installed = readEngine(engineFolder('cpu')) !== null;

interface Case {
  readonly model: Experiment['model'];
  readonly loss?: Experiment['loss'];
  readonly labelSmoothing?: number;
  readonly classWeights?: 'balanced';
  readonly record?: boolean;
  readonly inputShape?: readonly number[];
  readonly classCount?: number | null;
  /** Inputs are whole numbers below this one, for an embedding. */
  readonly ids?: number;
  /** An example has a target at each of so many places; default: one. */
  readonly places?: number;
  /** What `execution` says in the end. */
  readonly execution?: RegExp;
}

const dense = ({ tf, inputShape, classCount }: ModelArguments) =>
  tf.sequential({ layers: [tf.layers.dense({ units: classCount || 1, inputShape })] });

/** A layer of the user's with a weight of its own: y = x² w. */
const squaring = ({ tf, inputShape, classCount }: ModelArguments) => {
  class Square extends tf.layers.Layer {
    static readonly className = 'Square';
    w: ReturnType<InstanceType<typeof tf.layers.Layer>['addWeight']> | null = null;
    override build(shape: number[]): void {
      this.w = this.addWeight('w', [shape.at(-1)!], 'float32', tf.initializers.ones());
      super.build(shape);
    }
    override call(inputs: Tensor | Tensor[]): Tensor {
      return tf.mul(tf.square([inputs].flat()[0]!), this.w!.read());
    }
    override computeOutputShape(shape: number[]): number[] {
      return shape;
    }
  }
  return tf.sequential({
    layers: [
      tf.layers.dense({ units: 4, inputShape, activation: 'tanh' }),
      new Square({}) as never,
      tf.layers.dense({ units: classCount }),
    ],
  });
};

/** A layer of the user's that does something else each time. */
const drifting = ({ tf, inputShape, classCount }: ModelArguments) => {
  let calls = 0;
  class Drift extends tf.layers.Layer {
    static readonly className = 'Drift';
    override call(inputs: Tensor | Tensor[]): Tensor {
      return tf.mul(Array.isArray(inputs) ? inputs[0]! : inputs, ++calls);
    }
    override computeOutputShape(shape: number[]): number[] {
      return shape;
    }
  }
  return tf.sequential({
    layers: [tf.layers.dense({ units: classCount, inputShape }), new Drift({}) as never],
  });
};

const CASES: Readonly<Record<string, Case>> = {
  'dense, softmax cross-entropy': { model: dense },
  'dense, mean squared error': { model: dense, classCount: null },
  'dense, mean absolute error': { model: dense, classCount: null, loss: 'meanAbsoluteError' },
  'dense, sigmoid cross-entropy': {
    model: ({ tf, inputShape }) =>
      tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape })] }),
    classCount: 2,
    loss: 'sigmoidCrossEntropy',
  },
  'two hidden layers, dropout with and without a seed, regularisation': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.dense({
            units: 9,
            activation: 'relu',
            inputShape,
            kernelRegularizer: tf.regularizers.l1l2({ l1: 0.01, l2: 0.1 }),
          }),
          tf.layers.dropout({ rate: 0.3 }),
          tf.layers.dense({ units: 7, activation: 'elu' }),
          tf.layers.dropout({ rate: 0.5, seed: 4 }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
  },
  'convolution, pooling, batch normalisation, dropout of whole channels': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.conv2d({ filters: 4, kernelSize: 3, padding: 'same', inputShape }),
          tf.layers.maxPooling2d({ poolSize: 2 }),
          tf.layers.batchNormalization({ momentum: 0.9 }),
          tf.layers.reLU(),
          tf.layers.dropout({ rate: 0.4, noiseShape: [null, 1, 1, null] as never }),
          tf.layers.separableConv2d({ filters: 3, kernelSize: 2 }),
          tf.layers.batchNormalization({ momentum: 0.5 }),
          tf.layers.averagePooling2d({ poolSize: 2 }),
          tf.layers.flatten(),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [8, 8, 2],
  },
  'a nested model that is frozen, normalisation included': {
    model: ({ tf, inputShape, classCount }) => {
      const inner = tf.sequential({
        layers: [
          tf.layers.dense({ units: 4, inputShape }),
          tf.layers.batchNormalization({ momentum: 0.5 }),
        ],
      });
      inner.trainable = false;
      return tf.sequential({ layers: [inner, tf.layers.dense({ units: classCount })] });
    },
  },
  'two branches that meet': {
    model: ({ tf, inputShape, classCount }) => {
      const input = tf.input({ shape: inputShape });
      const one = tf.layers.dense({ units: 5, activation: 'tanh' }).apply(input);
      const two = tf.layers.dense({ units: 5, activation: 'sigmoid' }).apply(input);
      const sum = tf.layers.concatenate().apply([one, two] as never);
      const output = tf.layers.dense({ units: classCount }).apply(sum);
      return tf.model({ inputs: input, outputs: output as never });
    },
  },
  'an LSTM in both directions': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.bidirectional({
            layer: tf.layers.lstm({ units: 3 }) as never,
            inputShape,
            mergeMode: 'concat',
          }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [5, 2],
  },
  'an embedding of ids, and a GRU': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.embedding({ inputDim: 7, outputDim: 4, inputLength: inputShape[0]! }),
          tf.layers.gru({ units: 3 }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [5],
    ids: 7,
  },
  'a masked embedding, and recurrent cells with dropout in two layers': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.embedding({
            ...{ inputDim: 7, outputDim: 4, inputLength: inputShape[0]!, maskZero: true },
          }),
          tf.layers.lstm({ units: 3, dropout: 0.3, recurrentDropout: 0.2, returnSequences: true }),
          tf.layers.bidirectional({
            layer: tf.layers.gru({ units: 3, dropout: 0.3 }) as never,
            mergeMode: 'concat',
          }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [5],
    ids: 7,
  },
  'a GRU that resets after the product': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          layers.resetAfterGru({ units: 3, inputShape, recurrentActivation: 'sigmoid' }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [5, 2],
  },
  'a model of characters: whole numbers as inputs, a class for each place': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.embedding({ inputDim: 7, outputDim: 4, inputLength: inputShape[0]! }),
          tf.layers.lstm({ units: 3, returnSequences: true }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [5],
    ids: 7,
    places: 5,
  },
  'noise on inputs, on weights and in units': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.gaussianNoise({ stddev: 0.3, inputShape }),
          layers.weightNoise({ layer: tf.layers.dense({ units: 8 }), stddev: 0.2 }),
          layers.noisyReLU(),
          tf.layers.dropout({ rate: 0.3 }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
  },
  'layers of images': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          layers.globalContrast({ inputShape, lambda: 0.1 }),
          layers.localContrast({ window: 3 }),
          ...layers.rowsAndColumns({ units: 2, cell: 'lstm' }),
          layers.adaptivePooling({ size: 2 }),
          tf.layers.flatten(),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    inputShape: [5, 4, 2],
  },
  'labels that are smoothed': { model: dense, labelSmoothing: 0.1 },
  'classes that have weights': { model: dense, classWeights: 'balanced' },
  'logarithms of probabilities': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.dense({ units: classCount, inputShape, activation: 'logSoftmax' as never }),
        ],
      }),
    loss: 'negativeLogLikelihood',
  },
  'noise that draws its own numbers': {
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.alphaDropout({ rate: 0.3, inputShape }),
          tf.layers.dense({ units: classCount }),
        ],
      }),
    execution: /^operations: a layer draws random numbers of its own$/,
  },
  'a loss of the user': {
    model: dense,
    loss: (_, predictions) => tf.mean(tf.square(predictions)),
    execution: /^operations: it has code of others$/,
  },
  'a layer of the user': { model: drifting, execution: /^operations: it has code of others$/ },
  'a loss of the user, asked for': {
    model: dense,
    loss: (_, predictions) => tf.mean(tf.square(predictions)),
    record: true,
  },
  'a layer of the user, not asked for': {
    model: squaring,
    execution: /^operations: it has code of others$/,
  },
  'a layer of the user, asked for': { model: squaring, record: true },
  'a layer of the user that does something else each time, asked for': {
    ...{ model: drifting, record: true },
    execution: /^operations: as a graph it gives something else/,
  },
  'statistics of a function of variables, asked for': {
    record: true,
    model: ({ tf, inputShape, classCount }) => {
      const w = tf.tidy(() => tf.variable(tf.ones([...inputShape, classCount])));
      const mean = tf.tidy(() => tf.variable(tf.zeros([...inputShape])));
      return {
        variables: { w, mean: { variable: mean, role: 'statistics', momentum: 0.9 } },
        predict: (x: Tensor, { training }: { training: boolean }) => {
          if (training) mean.assign(tf.mean(x, 0));
          return tf.matMul(tf.sub(x, mean) as never, w as never);
        },
      };
    },
  },
  'library layers, not wanted': { model: dense, record: false, execution: /^operations$/ },
  'a function of variables': {
    model: ({ tf, inputShape, classCount }) => {
      const w = tf.tidy(() => tf.variable(tf.randomNormal([...inputShape, classCount])));
      return { variables: { w }, predict: (x: Tensor) => tf.matMul(x as never, w as never) };
    },
    execution: /^operations: it has code of others$/,
  },
};

function examples({ inputShape = [6], classCount = 3, ids, places = 1 }: Case): PreparedData {
  const draw = random(11, 1);
  const count = 60;
  const size = inputShape.reduce((product, d) => product * d, 1);
  const targets = classCount
    ? Int32Array.from({ length: count * places }, () => draw.below(classCount))
    : Float32Array.from({ length: count }, () => draw.normal());
  const inputs = Float32Array.from({ length: count * size }, () =>
    ids === undefined ? draw.normal() : draw.below(ids),
  );
  return prepareData(
    {
      train: {
        count,
        inputs: { values: inputs, shape: [count, ...inputShape] },
        targets: { values: targets, shape: places > 1 ? [count, places] : [count] },
      },
      ...(classCount ? { classCount } : {}),
      source: 'made up',
    },
    { seed: 1, validationFraction: 0.2, standardise: 'none' },
  );
}

/** ‖a − b‖ / ‖a‖ */
function distance(a: Float32Array, b: Float32Array): number {
  const norm = (x: Float32Array) => Math.sqrt(x.reduce((sum, value) => sum + value ** 2, 0));
  return norm(a.map((x, i) => x - b[i]!)) / norm(a);
}

/** Both ways through eight steps of two sizes of minibatch, parameters and statistics moving. */
async function compare(experiment: Experiment, prepared: PreparedData): Promise<Model> {
  const config = { seed: 3, hyperparameters: {} };
  const recorded = await buildModel(experiment, config, prepared);
  const stock = await buildModel(experiment, config, prepared, { record: false });
  const initial = await recorded.initialise(7);
  // Made anew too: a layer that counts its calls has as many from trials on made-up examples.
  await stock.initialise(7);
  recorded.load(initial.slice());
  stock.load(initial.slice());
  const parameters = initial.slice(0, recorded.layout.exchangedSize);
  let tensors = 0;
  for (let i = 0; i < 8; i++) {
    const rows = Array.from({ length: i % 2 ? 5 : BATCH_SIZE }, (_, row) => (3 * i + row) % 48);
    const minibatch = gather(prepared, 'train', rows);
    recorded.load(parameters.slice());
    stock.load(parameters.slice());
    const a = await stock.step(minibatch, i);
    const b = await recorded.step(minibatch, i);
    expect(distance(a.gradient, b.gradient), `step ${i}`).toBeLessThan(TOLERANCE);
    expect(Math.abs(b.loss - a.loss), `loss of step ${i}`).toBeLessThan(TOLERANCE);
    const { trainableSize } = recorded.layout;
    for (let p = 0; p < trainableSize; p++) parameters[p]! -= 0.1 * a.gradient[p]!;
    // Statistics that are not 0 and 1: a step must neither use nor move the ones loaded.
    for (let p = trainableSize; p < parameters.length; p++) parameters[p] = a.gradient[p]!;
    expect((await recorded.measure(minibatch)).loss).toBe((await stock.measure(minibatch)).loss);
    if (i > 5) expect(tf.memory().numTensors).toBe(tensors);
    tensors = tf.memory().numTensors;
  }
  stock.dispose();
  return recorded;
}

describe.skipIf(!installed)('a recorded step (needs: downpour engine install)', () => {
  beforeAll(async () => {
    await openEngine({ engine: 'native' });
  });

  test.each(Object.entries(CASES))('gives what single operations give: %s', async (_, each) => {
    const prepared = examples(each);
    const data = () => {
      throw new Error('not asked for');
    };
    const loss = each.loss ?? (prepared.classCount ? 'softmaxCrossEntropy' : 'meanSquaredError');
    const before = tf.memory().numTensors;
    const { labelSmoothing = 0, classWeights, record } = each;
    const asked = {
      ...(record !== undefined && { record }),
      ...(classWeights && { classWeights }),
    };
    const experiment = { data, model: each.model, loss, labelSmoothing, ...asked };
    const model = await compare(experiment, prepared);
    expect(model.execution).toMatch(each.execution ?? /^graph$/);
    model.dispose();
    expect(tf.memory().numTensors).toBe(before);
  });

  test('an index that a gather lacks is an error, as with the kernels of tfjs-node', () => {
    const gather = (index: number) => () =>
      tf.tidy(() => tf.gather(tf.tensor1d([1, 2, 3]), tf.tensor1d([index], 'int32')).dataSync());
    expect([...gather(2)()]).toEqual([3]);
    expect(gather(3)).toThrow(/3 is not in \[0, 3\)/);
    expect(gather(-1)).toThrow(/-1 is not in \[0, 3\)/);
  });

  test.each(['mnist-mlp', 'mnist-cnn', 'csv-regression'])('of the example %s', async (name) => {
    const experiment = await loadExperiment(
      new URL(`../../examples/${name}.ts`, import.meta.url).pathname,
    );
    const prepared = name.startsWith('mnist')
      ? examples({ model: dense, inputShape: [28, 28, 1], classCount: 10 })
      : examples({ model: dense, inputShape: [9], classCount: null });
    const model = await compare(experiment, prepared);
    expect(model.execution).toBe('graph');
    model.dispose();
  });
});
