import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import type { ExperimentData, PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import type { Experiment, ModelArguments } from '../../worker/experiment.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const models: Model[] = [];
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});

/** Rows of a noisy rule, so that every gradient is far from 0. */
function examples(inputShape: number[], classCount: number | null, count = 40): PreparedData {
  const draw = random(7, 1);
  const size = inputShape.reduce((product, d) => product * d, 1);
  const inputs = Float32Array.from({ length: count * size }, () => draw.normal());
  const sums = Array.from({ length: count }, (_, i) =>
    inputs.subarray(i * size, (i + 1) * size).reduce((sum, x) => sum + x, 0),
  );
  const targets = classCount
    ? Int32Array.from(sums, (sum) => Math.abs(Math.round(sum)) % classCount)
    : Float32Array.from(sums, (sum) => Math.sin(sum));
  const data: ExperimentData = {
    train: {
      count,
      inputs: { values: inputs, shape: [count, ...inputShape] },
      targets: { values: targets, shape: [count] },
    },
    ...(classCount ? { classCount } : {}),
    source: 'made up',
  };
  return prepareData(data, { seed: 1, validationFraction: 0.2, standardise: 'none' });
}

async function build(
  model: Experiment['model'],
  data: PreparedData,
  rest: Partial<Experiment> = {},
): Promise<Model> {
  const experiment: Experiment = {
    data: () => {
      throw new Error('not asked for');
    },
    model,
    loss: data.classCount ? 'softmaxCrossEntropy' : 'meanSquaredError',
    ...rest,
  };
  const built = await buildModel(experiment, { seed: 3, hyperparameters: {} }, data);
  models.push(built);
  return built;
}

const first = (data: PreparedData, n = 16) =>
  gather(
    data,
    'train',
    Array.from({ length: n }, (_, i) => i),
  );
const names = (model: Model) => model.layout.tensors.map((t) => `${t.name} ${t.role}`);

const mlp = ({ tf, inputShape, classCount }: ModelArguments) =>
  tf.sequential({
    layers: [
      tf.layers.dense({ units: 5, activation: 'tanh', inputShape }),
      tf.layers.dense({ units: classCount || 1 }),
    ],
  });

const normalised = ({ tf, inputShape, classCount }: ModelArguments) =>
  tf.sequential({
    layers: [
      tf.layers.conv2d({ filters: 3, kernelSize: 3, inputShape, activation: 'tanh' }),
      tf.layers.batchNormalization({ momentum: 0.9 }),
      tf.layers.flatten(),
      tf.layers.dense({ units: classCount, name: 'head' }),
    ],
  });

/** Largest difference between the gradient and central differences, over some elements. */
async function worstAgainstDifferences(model: Model, data: PreparedData): Promise<number> {
  const batch = first(data, 8);
  const start = await model.initialise(5);
  model.load(start.slice());
  const { gradient } = await model.step(batch, 1);
  const copy = gradient.slice();
  const h = 1e-2;
  let worst = 0;
  const { trainableSize } = model.layout;
  for (let i = 0; i < trainableSize; i += Math.ceil(trainableSize / 25)) {
    const at = async (delta: number) => {
      const moved = start.slice();
      moved[i]! += delta;
      model.load(moved);
      return (await model.step(batch, 1)).loss;
    };
    const slope = ((await at(h)) - (await at(-h))) / (2 * h);
    worst = Math.max(worst, Math.abs(slope - copy[i]!));
  }
  return worst;
}

describe('names and layout', () => {
  test('are the same however many layers the process has made before', async () => {
    const data = examples([4], 3);
    const one = await build(mlp, data);
    tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape: [1] })] }).dispose();
    const two = await build(mlp, data);
    expect(names(one)).toEqual([
      'dense_1/kernel trainable',
      'dense_1/bias trainable',
      'dense_2/kernel trainable',
      'dense_2/bias trainable',
    ]);
    expect(two.layout).toEqual(one.layout);
  });

  test('keep the names that the user gave, and put statistics behind the trained ones', async () => {
    const model = await build(normalised, examples([6, 6, 1], 3));
    expect(names(model)).toEqual([
      'conv2d_1/kernel trainable',
      'conv2d_1/bias trainable',
      'batch_normalization_1/gamma trainable',
      'batch_normalization_1/beta trainable',
      'head/kernel trainable',
      'head/bias trainable',
      'batch_normalization_1/moving_mean statistics',
      'batch_normalization_1/moving_variance statistics',
    ]);
    expect(model.layout.tensors.at(-1)!.momentum).toBe(0.9);
  });

  test('a layer that is not trainable is frozen, also one inside a nested model', async () => {
    const model = await build(
      ({ tf, inputShape, classCount }) => {
        const inner = tf.sequential({
          layers: [
            tf.layers.dense({ units: 4, inputShape }),
            tf.layers.batchNormalization({ momentum: 0.5 }),
          ],
        });
        inner.trainable = false;
        return tf.sequential({ layers: [inner, tf.layers.dense({ units: classCount })] });
      },
      examples([4], 3),
    );
    expect(names(model)).toEqual([
      'dense_1/kernel trainable',
      'dense_1/bias trainable',
      'sequential_1/dense_1/kernel frozen',
      'sequential_1/dense_1/bias frozen',
      'sequential_1/batch_normalization_1/gamma frozen',
      'sequential_1/batch_normalization_1/beta frozen',
      'sequential_1/batch_normalization_1/moving_mean frozen',
      'sequential_1/batch_normalization_1/moving_variance frozen',
    ]);
  });

  test('both directions of a bidirectional LSTM have names of their own', async () => {
    const model = await build(
      ({ tf, inputShape, classCount }) =>
        tf.sequential({
          layers: [
            tf.layers.bidirectional({
              layer: tf.layers.lstm({ units: 2 }) as never,
              inputShape,
              mergeMode: 'concat',
            }),
            tf.layers.dense({ units: classCount }),
          ],
        }),
      examples([3, 2], 3),
    );
    expect(new Set(model.layout.tensors.map((t) => t.name)).size).toBe(8);
    expect(await worstAgainstDifferences(model, examples([3, 2], 3))).toBeLessThan(2e-3);
  });
});

describe('fresh parameters', () => {
  test('are the same for the same seed and others for another, dropout and orthogonal included', async () => {
    const recurrent = ({ tf, inputShape, classCount }: ModelArguments) =>
      tf.sequential({
        layers: [
          tf.layers.gru({ units: 3, inputShape }),
          tf.layers.dropout({ rate: 0.5 }),
          tf.layers.dense({ units: classCount, kernelInitializer: 'heNormal' }),
        ],
      });
    const data = examples([3, 2], 3);
    const one = await build(recurrent, data);
    const two = await build(recurrent, data);
    const values = await one.initialise(11);
    expect(values.length).toBe(one.layout.size);
    expect(await two.initialise(11)).toEqual(values);
    expect(await one.initialise(12)).not.toEqual(values);
  });

  test('leave Math.random as it was', async () => {
    const before = Math.random;
    const model = await build(mlp, examples([4], 3));
    await model.initialise(1);
    await model.step(first(examples([4], 3)), 1);
    expect(Math.random).toBe(before);
  });
});

describe('a gradient', () => {
  test('agrees with finite differences: classes', async () => {
    const data = examples([4], 3);
    expect(await worstAgainstDifferences(await build(mlp, data), data)).toBeLessThan(1e-3);
  });

  test('agrees with finite differences: batch normalisation in training mode', async () => {
    const data = examples([6, 6, 1], 3);
    expect(await worstAgainstDifferences(await build(normalised, data), data)).toBeLessThan(2e-3);
  });

  test.each(['meanSquaredError', 'meanAbsoluteError'] as const)(
    'agrees with finite differences: %s',
    async (loss) => {
      const data = examples([4], null);
      const model = await build(mlp, data, { loss });
      expect(await worstAgainstDifferences(model, data)).toBeLessThan(2e-3);
    },
  );

  test('agrees with finite differences: two classes by one logit', async () => {
    const data = examples([4], 2);
    const model = await build(
      ({ tf, inputShape }) =>
        tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape })] }),
      data,
      { loss: 'sigmoidCrossEntropy' },
    );
    expect(await worstAgainstDifferences(model, data)).toBeLessThan(1e-3);
  });

  test('includes the regularisation of layers, which the loss reported leaves out', async () => {
    const data = examples([4], 3);
    const l2 = 0.5;
    const with_ = (regularised: boolean) =>
      build(
        ({ tf, inputShape, classCount }) =>
          tf.sequential({
            layers: [
              tf.layers.dense({
                units: classCount,
                inputShape,
                ...(regularised ? { kernelRegularizer: tf.regularizers.l2({ l2 }) } : {}),
              }),
            ],
          }),
        data,
      );
    const plain = await with_(false);
    const regularised = await with_(true);
    const parameters = await plain.initialise(1);
    plain.load(parameters.slice());
    regularised.load(parameters.slice());
    const a = await plain.step(first(data), 1);
    const b = await regularised.step(first(data), 1);
    expect(b.loss).toBeCloseTo(a.loss, 6);
    for (let i = 0; i < 12; i++) {
      expect(b.gradient[i]!).toBeCloseTo(a.gradient[i]! + 2 * l2 * parameters[i]!, 5);
    }
  });

  test('is of zeros where the loss does not reach', async () => {
    const data = examples([2], null);
    const model = await build(({ tf }) => {
      const w = tf.variable(tf.ones([2, 1]));
      const unused = tf.variable(tf.ones([3]));
      return {
        variables: { w, unused },
        predict: (x: Tensor) => tf.matMul(x as never, w as never),
      };
    }, data);
    model.load(Float32Array.of(1, 2, 5, 5, 5));
    const { gradient } = await model.step(first(data), 1);
    expect([...gradient.subarray(2)]).toEqual([0, 0, 0]);
    expect(gradient[0]).not.toBe(0);
  });

  test('of dropout: another mask for another minibatch, the same for the same', async () => {
    const data = examples([20], 3);
    for (const layer of ['dropout', 'gaussianNoise', 'gaussianDropout', 'alphaDropout'] as const) {
      const model = await build(
        ({ tf, inputShape, classCount }) =>
          tf.sequential({
            layers: [
              tf.layers[layer]({ rate: 0.5, stddev: 0.5, inputShape } as never),
              tf.layers.dense({ units: classCount }),
            ],
          }),
        data,
      );
      model.load(await model.initialise(1));
      const one = (await model.step(first(data), 101)).gradient.slice();
      const other = (await model.step(first(data), 102)).gradient.slice();
      const again = (await model.step(first(data), 101)).gradient.slice();
      expect(again, layer).toEqual(one);
      expect(other, layer).not.toEqual(one);
    }
  });

  test('comes with the statistics of exactly this minibatch', async () => {
    const data = examples([2], 3);
    const model = await build(
      ({ tf, inputShape, classCount }) =>
        tf.sequential({
          layers: [
            tf.layers.batchNormalization({ inputShape, momentum: 0.99 }),
            tf.layers.dense({ units: classCount }),
          ],
        }),
      data,
    );
    const batch = first(data);
    // Whatever averages were loaded, they do not enter.
    const parameters = await model.initialise(1);
    parameters.fill(123, model.layout.trainableSize);
    model.load(parameters);
    const { gradient } = await model.step(batch, 1);
    const n = batch.inputs.length / 2;
    for (let feature = 0; feature < 2; feature++) {
      let mean = 0;
      for (let i = 0; i < n; i++) mean += batch.inputs[2 * i + feature]! / n;
      let variance = 0;
      for (let i = 0; i < n; i++) variance += (batch.inputs[2 * i + feature]! - mean) ** 2 / n;
      expect(gradient[model.layout.trainableSize + feature]).toBeCloseTo(mean, 5);
      expect(gradient[model.layout.trainableSize + 2 + feature]).toBeCloseTo(variance, 5);
    }
  });

  test('leaves the averages that were loaded to the evaluation after it', async () => {
    const data = examples([6, 6, 1], 3);
    const model = await build(normalised, data);
    model.load(await model.initialise(2));
    const before = await model.measure(first(data));
    await model.step(first(data), 1);
    expect(await model.measure(first(data))).toEqual(before);
  });

  test('a frozen normalisation uses its averages in training too, and keeps them', async () => {
    const data = examples([3], 3);
    const model = await build(
      ({ tf, inputShape, classCount }) =>
        tf.sequential({
          layers: [
            tf.layers.batchNormalization({ inputShape, trainable: false }),
            tf.layers.dense({ units: classCount }),
          ],
        }),
      data,
    );
    const parameters = await model.initialise(1);
    model.load(parameters);
    const { loss } = await model.step(first(data), 1);
    expect(loss).toBeCloseTo((await model.measure(first(data))).loss, 6);
  });
});

test('what is exported are the parameters that were loaded last', async () => {
  const data = examples([4], 3);
  const model = await build(
    ({ tf, inputShape, classCount }) =>
      tf.sequential({ layers: [tf.layers.dense({ units: classCount, inputShape })] }),
    data,
  );
  await model.initialise(1);
  const loaded = Float32Array.from({ length: model.layout.size }, (_, i) => i + 0.5);
  model.load(loaded);
  const own = (await model.topologies())![''] as unknown as { weightData: ArrayBuffer };
  expect(new Float32Array(own.weightData)).toEqual(loaded);
});

describe('memory', () => {
  test.each([
    ['dropout and regularisation', [8], false],
    ['batch normalisation', [6, 6, 1], true],
  ] as const)('50 steps leave no tensor behind: %s', async (_, shape, conv) => {
    const data = examples([...shape], 3);
    const model = await build(
      conv
        ? normalised
        : ({ tf, inputShape, classCount }) =>
            tf.sequential({
              layers: [
                tf.layers.dropout({ rate: 0.3, inputShape }),
                tf.layers.dense({ units: classCount, kernelRegularizer: 'l1l2' }),
              ],
            }),
      data,
    );
    const parameters = await model.initialise(1);
    model.load(parameters.slice());
    await model.step(first(data), 1);
    const { numTensors } = tf.memory();
    for (let i = 0; i < 50; i++) {
      model.load(parameters.slice());
      await model.step(first(data), i);
      if (i % 10 === 0) await model.measure(first(data));
    }
    expect(tf.memory().numTensors).toBe(numTensors);
  });

  test('building, initialising and disposing leaves no tensor behind', async () => {
    const data = examples([6, 6, 1], 3);
    const { numTensors } = tf.memory();
    const model = await build(normalised, data);
    models.pop();
    model.load(await model.initialise(1));
    await model.step(first(data), 1);
    model.dispose();
    expect(tf.memory().numTensors).toBe(numTensors);
  });

  test('a minibatch may be overwritten once the step has resolved, a gradient is private', async () => {
    const data = examples([4], 3);
    const model = await build(mlp, data);
    model.load(await model.initialise(1));
    const batch = first(data);
    const { gradient } = await model.step(batch, 1);
    const kept = gradient.slice();
    batch.inputs.fill(9);
    model.load(new Float32Array(model.layout.size));
    await model.step(batch, 2);
    expect(gradient).toEqual(kept);
  });
});

describe('a function of variables', () => {
  const affine = ({ tf, inputShape }: ModelArguments) => {
    const w = tf.variable(tf.randomNormal([inputShape[0]!, 1]));
    const offset = tf.variable(tf.zeros([1]), false);
    const mean = tf.variable(tf.zeros([1]), false);
    return {
      variables: {
        w,
        offset,
        mean: { variable: mean, role: 'statistics', momentum: 0.9 } as const,
      },
      predict(x: Tensor, { training }: { training: boolean }) {
        if (training) mean.assign(tf.reshape(tf.mean(x), [1]));
        return tf.add(tf.matMul(x as never, w as never), offset);
      },
    };
  };

  test('has roles, its own gradient, and statistics as it assigned them', async () => {
    const data = examples([3], null);
    const model = await build(affine, data);
    expect(names(model)).toEqual(['w trainable', 'mean statistics', 'offset frozen']);
    const parameters = await model.initialise(4);
    expect(parameters.subarray(0, 3).every((w) => w !== 0)).toBe(true);
    const batch = first(data);
    const { gradient } = await model.step(batch, 1);
    expect(gradient[3]).toBeCloseTo(
      batch.inputs.reduce((sum, x) => sum + x, 0) / batch.inputs.length,
      5,
    );
    expect(await worstAgainstDifferences(model, data)).toBeLessThan(1e-3);
  });
});

describe('an experiment that does not fit is told before training', () => {
  const data = examples([4], 3);
  test.each<[string, Experiment['model'], RegExp]>([
    ['nothing', () => null as never, /neither a LayersModel nor/],
    [
      'a throw',
      () => {
        throw new Error('no such thing');
      },
      /model\(\) of the experiment failed: no such thing/,
    ],
    [
      'inputs of another shape',
      ({ tf }) => tf.sequential({ layers: [tf.layers.dense({ units: 3, inputShape: [5] })] }),
      /takes inputs of shape \[n,5\], but the data have \[n,4\]/,
    ],
    [
      'too few outputs',
      ({ tf, inputShape }) =>
        tf.sequential({ layers: [tf.layers.dense({ units: 2, inputShape })] }),
      /predictions have shape \[n,2\].*needs \[n,3\]/,
    ],
    [
      'a weight constraint',
      ({ tf, inputShape }) =>
        tf.sequential({
          layers: [tf.layers.dense({ units: 3, inputShape, kernelConstraint: 'maxNorm' })],
        }),
      /'dense_1' has a weight constraint/,
    ],
    [
      'normalisation without scale',
      ({ tf, inputShape }) =>
        tf.sequential({
          layers: [
            tf.layers.batchNormalization({ inputShape, scale: false }),
            tf.layers.dense({ units: 3 }),
          ],
        }),
      /'batch_normalization_1': batch normalisation without scale/,
    ],
  ])('%s', async (_, model, message) => {
    await expect(build(model, data)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringMatching(message),
    });
  });
});

describe('measuring', () => {
  test('gives the share answered wrongly and the metrics, with training mode off', async () => {
    const data = examples([4], 3);
    const model = await build(
      ({ tf, inputShape, classCount }) =>
        tf.sequential({
          layers: [
            tf.layers.dropout({ rate: 0.9, inputShape }),
            tf.layers.dense({ units: classCount }),
          ],
        }),
      data,
      { metrics: { ones: (targets) => tf.mean(tf.onesLike(tf.cast(targets, 'float32'))) } },
    );
    // Only biases: always class 2, with known logits.
    const parameters = new Float32Array(15);
    parameters.set([0, 0, 1], 12);
    model.load(parameters);
    const batch = first(data);
    const { loss, error, metrics } = await model.measure(batch);
    const labels = [...batch.targets];
    expect(error).toBeCloseTo(labels.filter((c) => c !== 2).length / labels.length, 6);
    const logSum = Math.log(2 + Math.E);
    const expected = labels.reduce((sum, c) => sum + logSum - (c === 2 ? 1 : 0), 0) / labels.length;
    expect(loss).toBeCloseTo(expected, 5);
    expect(metrics).toEqual({ ones: 1 });
  });

  test('what the error is, is known to those who tell it', async () => {
    const of = async (more: Partial<Experiment>, classCount: number | null = null) => {
      const dense: Experiment['model'] = ({ tf, inputShape }) =>
        tf.sequential({ layers: [tf.layers.dense({ units: classCount ?? 1, inputShape })] });
      return (await build(dense, examples([4], classCount), more)).errorMeasure;
    };
    expect(await of({}, 3)).toBe('misclassification');
    expect(await of({ error: 'loss' }, 3)).toBe('loss');
    expect(await of({})).toBe('loss');
    expect(await of({ error: (t, p) => tf.mean(tf.sub(t, p)) })).toBe('own');
  });
});
