import { beforeAll, describe, expect, test, vi } from 'vitest';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import type { Experiment, ModelArguments } from '../../worker/experiment.ts';
import { initializers, layers, spectralRadius } from '../../worker/layers.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { withSeed } from '../../worker/noise.ts';
import { type LayersModel, type Tensor, tf } from '../../worker/tf.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const valuesOf = (tensor: Tensor) => Array.from(tensor.dataSync());
const meanOf = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const deviationOf = (values: readonly number[]) =>
  Math.sqrt(meanOf(values.map((x) => (x - meanOf(values)) ** 2)));

describe('noisy ReLU (Nair and Hinton 2010)', () => {
  test('has noise of variance σ(x) in training, so its mean is above max(0, x); none else', () => {
    const layer = layers.noisyReLU();
    const x = tf.fill([20_000], 3) as Tensor;
    const training = withSeed(1, () => valuesOf(layer.apply(x, { training: true }) as Tensor));
    // At 3, σ is 0.953, and few are cut off at 0.
    expect(meanOf(training)).toBeCloseTo(3, 1);
    expect(deviationOf(training)).toBeCloseTo(Math.sqrt(0.953), 1);
    const zero = withSeed(1, () =>
      valuesOf(layer.apply(tf.zeros([20_000]), { training: true }) as Tensor),
    );
    // Half of N(0, 0.5) is kept: its mean is √(0.5 / 2π).
    expect(meanOf(zero)).toBeCloseTo(Math.sqrt(0.5 / (2 * Math.PI)), 1);
    expect(valuesOf(layer.apply(tf.tensor1d([-2, 3]), {}) as Tensor)).toEqual([0, 3]);
  });

  test('has a slope wherever its input is', () => {
    const layer = layers.noisyReLU();
    const slope = tf.grad((x) => tf.sum(layer.apply(x, { training: true }) as Tensor));
    for (const at of valuesOf(slope(tf.tensor1d([-1e4, -104, 0, 104, 1e4]))))
      expect(at).not.toBeNaN();
  });
});

describe('noise on weights', () => {
  const layer = () =>
    layers.weightNoise({
      layer: tf.layers.dense({ units: 3, kernelInitializer: 'ones' }),
      stddev: 0.5,
    });

  test('is other noise for each minibatch, on weights and not on biases, and none in evaluation', () => {
    const made = layer();
    const x = tf.ones([1, 4]);
    const at = (training: boolean) => valuesOf(made.apply(x, { training }) as Tensor);
    expect(at(false)).toEqual([4, 4, 4]);
    const [first, second] = [at(true), at(true)];
    expect(first).not.toEqual(second);
    expect(valuesOf(made.apply(tf.zeros([1, 4]), { training: true }) as Tensor)).toEqual([0, 0, 0]);
    // The weights themselves stay.
    expect(at(false)).toEqual([4, 4, 4]);
  });

  test('refuses a negative deviation', () => {
    expect(() => layers.weightNoise({ layer: tf.layers.dense({ units: 1 }), stddev: -1 })).toThrow(
      /-1/,
    );
  });
});

describe('random filters', () => {
  const of = (trained?: string) =>
    tf.sequential({
      layers: layers.trained({ hyperparameters: trained === undefined ? {} : { trained } }, [
        tf.layers.conv2d({ inputShape: [6, 6, 1], filters: 3, kernelSize: 3 }),
        tf.layers.batchNormalization(),
        tf.layers.reLU(),
        tf.layers.flatten(),
        tf.layers.dense({ units: 2 }),
        tf.layers.activation({ activation: 'linear' }),
      ] as never),
    });

  test('keep their initial values where only the last layer with weights is trained', () => {
    const names = (model: LayersModel) =>
      model.trainableWeights.map(({ originalName }) => originalName.replace(/.*\//, ''));
    expect(names(of())).toEqual(['kernel', 'bias', 'gamma', 'beta', 'kernel', 'bias']);
    expect(names(of('all'))).toHaveLength(6);
    const last = of('last');
    expect(names(last)).toEqual(['kernel', 'bias']);
    expect(last.trainableWeights[0]!.shape).toEqual([48, 2]);
    expect(() => of('none')).toThrow(/hyperparameters.trained is 'none'; allowed: all, last/);
  });

  test('are frozen on the server: their tensors have no gradient', async () => {
    const train = {
      count: 4,
      inputs: { values: new Float32Array(4 * 36).map((_, i) => (i * 7) % 5), shape: [4, 6, 6, 1] },
      targets: { values: Int32Array.of(0, 1, 0, 1), shape: [4] },
    };
    const data = { train, validation: train, classCount: 2, source: 'numbers' };
    const model = await buildModel(
      { data: () => data, model: () => of('last'), loss: 'softmaxCrossEntropy' },
      { seed: 1, hyperparameters: {} },
      prepareData(data, { seed: 1, validationFraction: 0, standardise: 'none' }),
    );
    expect(model.layout.tensors.map(({ role }) => role)).toEqual([
      ...['trainable', 'trainable'],
      ...['frozen', 'frozen', 'frozen', 'frozen', 'frozen', 'frozen'],
    ]);
    model.dispose();
  });
});

describe('initial values', () => {
  const rms = (initializer: { apply(shape: number[]): Tensor }, shape: number[]) =>
    Math.sqrt(meanOf(valuesOf(initializer.apply(shape)).map((x) => x * x)));

  test.each([
    ['heUniform', () => tf.initializers.heUniform({}), Math.sqrt(2 / 400)],
    ['glorotUniform', () => tf.initializers.glorotUniform({}), Math.sqrt(2 / 500)],
    ['leCunUniform', () => tf.initializers.leCunUniform({}), Math.sqrt(1 / 400)],
    // Cut off at two deviations and not made up for: docs/layers.md tells.
    ['heNormal', () => tf.initializers.heNormal({}), 0.88 * Math.sqrt(2 / 400)],
    ['glorotNormal', () => tf.initializers.glorotNormal({}), 0.88 * Math.sqrt(2 / 500)],
  ] as const)('%s of TensorFlow.js has its deviation', (_, make, expected) => {
    expect(rms(make() as never, [400, 100]) / expected).toBeCloseTo(1, 1);
  });

  test('orthogonal of TensorFlow.js is orthogonal, times its gain', () => {
    const q = tf.initializers.orthogonal({ gain: 2 } as never).apply([9, 5]);
    const product = valuesOf(tf.matMul(q as never, q as never, true, false));
    product.forEach((value, i) => {
      expect(value).toBeCloseTo(i % 6 === 0 ? 4 : 0, 4);
    });
  });

  test.each([[[9, 5]], [[5, 9]], [[7, 7]], [[3, 3, 2, 4]]])(
    'orthogonal gives the numbers of TensorFlow.js for shape %j and the same seed',
    (shape) => {
      const given = tf.initializers.orthogonal({ gain: 2, seed: 3 }).apply(shape);
      const columns = shape.at(-1)!;
      const rows = given.size / columns;
      const longer: [number, number] = [Math.max(rows, columns), Math.min(rows, columns)];
      // As TensorFlow.js has it: the Q of which the R has a positive diagonal.
      const [q, r] = tf.linalg.qr(tf.randomNormal(longer, 0, 1, 'float32', 3)) as [Tensor, Tensor];
      const signs = tf.sign(tf.sum(tf.mul(r, tf.eye(longer[1])), 0));
      const signed = tf.mul(tf.mul(q, signs), 2);
      const expected = valuesOf(rows < columns ? tf.transpose(signed) : signed);
      for (const [i, value] of valuesOf(given as Tensor).entries()) {
        expect(value).toBeCloseTo(expected[i]!, 5);
      }
    },
  );

  test('orthogonal weights of an LSTM come without a warning, and no tensor stays', () => {
    const warn = vi.spyOn(console, 'warn');
    const before = tf.memory().numTensors;
    const weights = tf.initializers.orthogonal({} as never).apply([128, 512]) as Tensor;
    expect(warn).not.toHaveBeenCalled();
    expect(tf.memory().numTensors).toBe(before + 1);
    const product = valuesOf(tf.matMul(weights, weights, false, true));
    for (const [i, value] of product.entries()) expect(value).toBeCloseTo(i % 129 === 0 ? 1 : 0, 5);
    warn.mockRestore();
  });

  test('sparse gives each unit 15 incoming weights of the scale, and no two units the same', () => {
    const values = valuesOf(initializers.sparse({ scale: 0.5 }).apply([200, 300]) as Tensor);
    const column = (unit: number) => values.filter((_, i) => i % 300 === unit);
    for (const unit of [0, 1, 299]) expect(column(unit).filter((x) => x !== 0)).toHaveLength(15);
    expect(deviationOf(values.filter((x) => x !== 0))).toBeCloseTo(0.5, 1);
    expect(column(0)).not.toEqual(column(1));
    // All of few inputs are taken, and images have theirs in several axes.
    expect(valuesOf(initializers.sparse().apply([3, 2]) as Tensor).includes(0)).toBe(false);
    const filters = valuesOf(initializers.sparse({ connections: 4 }).apply([3, 3, 2, 5]) as Tensor);
    expect(filters.filter((x) => x !== 0)).toHaveLength(20);
  });

  test('the spectral radius of matrices whose eigenvalues are known', () => {
    const turn = [Math.cos(1), -Math.sin(1), Math.sin(1), Math.cos(1)].map((x) => 1.7 * x);
    expect(spectralRadius(turn, 2)).toBeCloseTo(1.7, 3);
    expect(spectralRadius([0.3, 5, 0, -0.9], 2)).toBeCloseTo(0.9, 2);
    expect(spectralRadius([0, 1, 0, 0], 2)).toBe(0);
  });

  test.each([5, 40, 150])('echoState of %i units is sparse with spectral radius 1.2', (n) => {
    const values = withSeed(3, () => valuesOf(initializers.echoState().apply([n, n]) as Tensor));
    expect(values.filter((x) => x !== 0)).toHaveLength(n * Math.max(3, Math.round(0.1 * n)));
    // By squaring: ‖A^(2^10)‖^(1/2^10), another way than its own.
    let power = tf.tensor2d(values, [n, n]);
    let logarithm = 0;
    for (let k = 0; k < 10; k++) {
      power = tf.matMul(power, power);
      const norm = tf.norm(power).dataSync()[0]!;
      logarithm = 2 * logarithm + Math.log(norm);
      power = tf.div(power, norm);
    }
    expect(Math.exp(logarithm / 2 ** 10)).toBeCloseTo(1.2, 1);
  });

  test('echoState refuses what is not square', () => {
    expect(() => initializers.echoState().apply([4, 5])).toThrow(/\[4,5\]/);
  });

  test('are the same for the same seed of the model', () => {
    const of = (seed: number) =>
      withSeed(seed, () => valuesOf(initializers.sparse().apply([9, 9]) as Tensor));
    expect(of(1)).toEqual(of(1));
    expect(of(1)).not.toEqual(of(2));
  });

  test('the forget gate of an LSTM begins at 1 when unitForgetBias says so; TensorFlow.js leaves it at 0', () => {
    const bias = (unitForgetBias?: boolean) => {
      const layer = tf.layers.lstm({
        units: 2,
        ...(unitForgetBias === undefined ? {} : { unitForgetBias }),
      });
      layer.apply(tf.zeros([1, 3, 2]));
      return valuesOf(layer.getWeights()[2]!);
    };
    expect(bias(true)).toEqual([0, 0, 1, 1, 0, 0, 0, 0]);
    expect(bias()).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
  });
});

/** Ten examples of four inputs and three classes. */
const data = prepareData(
  {
    train: {
      count: 10,
      inputs: { values: Float32Array.from({ length: 40 }, (_, i) => Math.sin(i)), shape: [10, 4] },
      targets: { values: Int32Array.from({ length: 10 }, (_, i) => i % 3), shape: [10] },
    },
    classCount: 3,
    source: 'made up',
  },
  { seed: 1, validationFraction: 0.2, standardise: 'none' },
);
const minibatch = {
  inputs: Float32Array.from({ length: 16 }, (_, i) => Math.cos(i)),
  targets: Int32Array.from([0, 1, 2, 1]),
  inputShape: [4],
  targetShape: [],
};
async function build(model: Experiment['model'], rest: Partial<Experiment> = {}): Promise<Model> {
  const experiment: Experiment = {
    data: () => Promise.reject(new Error('not asked for')),
    ...{ model, loss: 'softmaxCrossEntropy', ...rest },
  };
  return buildModel(experiment, { seed: 3, hyperparameters: {} }, data);
}

describe('in a model', () => {
  const noisy = ({ tf, inputShape, classCount }: ModelArguments): LayersModel =>
    tf.sequential({
      layers: [
        tf.layers.gaussianNoise({ stddev: 0.1, inputShape }),
        layers.weightNoise({
          layer: tf.layers.dense({
            units: 6,
            kernelInitializer: initializers.sparse({ connections: 2 }),
          }),
          stddev: 0.1,
        }),
        layers.noisyReLU(),
        tf.layers.dense({ units: classCount }),
      ],
    });

  test('weights have stable names, and a minibatch its own noise', async () => {
    const model = await build(noisy);
    expect(model.layout.tensors.map(({ name }) => name)).toEqual([
      'weight_noise_1/kernel',
      'weight_noise_1/bias',
      'dense_1/kernel',
      'dense_1/bias',
    ]);
    const start = await model.initialise(1);
    model.load(start);
    const gradient = async (seed: number) => (await model.step(minibatch, seed)).gradient.slice();
    expect(await gradient(1)).toEqual(await gradient(1));
    expect(await gradient(1)).not.toEqual(await gradient(2));
    expect(await model.measure(minibatch)).toEqual(await model.measure(minibatch));
    model.dispose();
  });

  test('are saved and loaded as those of TensorFlow.js are', async () => {
    const args = {
      tf,
      seed: 1,
      hyperparameters: {},
      inputShape: [4],
      classCount: 3,
      pretrained: null,
    };
    const model = noisy(args);
    let saved: Parameters<typeof tf.io.fromMemory>[0] | undefined;
    await model.save(
      tf.io.withSaveHandler(async (artifacts) => {
        saved = JSON.parse(JSON.stringify({ ...artifacts, weightData: undefined })) as never;
        (saved as { weightData: unknown }).weightData = artifacts.weightData;
        return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
      }),
    );
    const loaded = await tf.loadLayersModel(tf.io.fromMemory(saved!));
    const x = tf.tensor2d(minibatch.inputs, [4, 4]);
    expect(valuesOf(loaded.predict(x) as Tensor)).toEqual(valuesOf(model.predict(x) as Tensor));
    expect(loaded.layers.map((layer) => layer.getClassName())).toEqual([
      'GaussianNoise',
      'WeightNoise',
      'NoisyReLU',
      'Dense',
    ]);
    expect(loaded.layers[1]!.getConfig().stddev).toBe(0.1);
  });
});

describe('losses by name', () => {
  const linear = ({ tf, inputShape, classCount }: ModelArguments) =>
    tf.sequential({ layers: [tf.layers.dense({ units: classCount, inputShape })] });
  const logarithms = ({ tf, inputShape, classCount }: ModelArguments) =>
    tf.sequential({
      layers: [
        tf.layers.dense({ units: classCount, inputShape, activation: 'logSoftmax' as never }),
      ],
    });

  async function lossOf(model: Experiment['model'], rest: Partial<Experiment>) {
    const built = await build(model, rest);
    built.load(await built.initialise(5));
    const step = await built.step(minibatch, 1);
    const result = { training: step.loss, gradient: Array.from(step.gradient) };
    const { loss, error } = await built.measure(minibatch);
    const { values } = await built.predict(minibatch);
    built.dispose();
    return { ...result, evaluation: loss, error, values };
  }

  test('the negative log-likelihood of logarithms is the cross-entropy of logits', async () => {
    const entropy = await lossOf(linear, {});
    const likelihood = await lossOf(logarithms, { loss: 'negativeLogLikelihood' });
    expect(likelihood.training).toBeCloseTo(entropy.training, 5);
    expect(likelihood.error).toBe(entropy.error);
    likelihood.gradient.forEach((g, i) => {
      expect(g).toBeCloseTo(entropy.gradient[i]!, 5);
    });
  });

  test('smoothed labels (§7.5.1) are those of training alone', async () => {
    const share = 0.3;
    const plain = await lossOf(linear, {});
    const smoothed = await lossOf(linear, { labelSmoothing: share });
    expect(smoothed.evaluation).toBe(plain.evaluation);
    // (1 − ε) of the cross-entropy, and ε of that with all classes alike.
    const all = await lossOf(logarithms, { loss: 'negativeLogLikelihood' });
    const alike = -meanOf(Array.from(all.values));
    expect(smoothed.training).toBeCloseTo((1 - share) * plain.training + share * alike, 5);
  });

  test('smoothing may follow a hyperparameter, and needs a loss of classes', async () => {
    const byName = await lossOf(linear, { labelSmoothing: () => 0.3 });
    expect(byName.training).toBe((await lossOf(linear, { labelSmoothing: 0.3 })).training);
    const squared = { loss: () => tf.scalar(0), labelSmoothing: 0.1 };
    await expect(build(linear, squared)).rejects.toThrow(/labelSmoothing 0.1/);
    await expect(build(linear, { labelSmoothing: () => 1 })).rejects.toThrow(/below 1/);
  });
});

describe('hidden layers by their knobs', () => {
  const args = { inputShape: [28, 28, 1], classCount: 10 };
  const modelOf = (
    hyperparameters: Record<string, number | string | boolean>,
    shape = args.inputShape,
  ) =>
    tf.sequential({
      layers: [
        ...layers.hidden({ ...args, inputShape: shape, hyperparameters }, { units: 256 }),
        tf.layers.dense({ units: 10 }),
      ],
    });
  const kinds = (hyperparameters: Record<string, number | string | boolean>) =>
    modelOf(hyperparameters).layers.map((layer) => layer.getClassName());

  test('without any it is one layer of the default units', () => {
    expect(kinds({})).toEqual(['Flatten', 'Dense', 'Dense']);
    expect(modelOf({}).countParams()).toBe(785 * 256 + 257 * 10);
    expect(modelOf({ unitsTimes: 2 }).countParams()).toBe(785 * 512 + 513 * 10);
    expect(modelOf({}, [6]).countParams()).toBe(7 * 256 + 257 * 10);
  });

  test.each([
    [{ layers: 4 }],
    [{ layers: 1 }],
    [{ layers: 3, batchNorm: true }],
    [{ layers: 2, activation: 'prelu' }],
  ])('a count of parameters decides the units: %o', (knobs) => {
    const wanted = 203_530;
    const count = modelOf({ ...knobs, parameters: wanted }).trainableWeights.reduce(
      (sum, { shape }) => sum + shape.reduce((a, b) => a! * b!, 1)!,
      0,
    );
    expect(Math.abs(count / wanted - 1)).toBeLessThan(0.01);
  });

  test('each knob has its layer', () => {
    expect(kinds({ inputDropout: 0.2, dropout: 0.5, inputNoise: 0.1, layers: 2 })).toEqual([
      ...['Flatten', 'GaussianNoise', 'Dropout', 'Dense', 'Dropout', 'Dense', 'Dropout', 'Dense'],
    ]);
    expect(kinds({ batchNorm: true, weightNoise: 0.1, activation: 'noisyReLU' })).toEqual([
      ...['Flatten', 'WeightNoise', 'BatchNormalization', 'NoisyReLU', 'Dense'],
    ]);
    expect(kinds({ activation: 'leakyReLU' })).toContain('LeakyReLU');
    expect(kinds({ activation: 'prelu' })).toContain('PReLU');
  });

  test.each(['he', 'glorot', 'orthogonal', 'sparse'])(
    'the scale multiplies initial values of %s',
    (initializer) => {
      const size = (initialScale: number) =>
        withSeed(1, () => {
          const [dense] = modelOf({ initializer, initialScale, units: 20 }, [30]).layers.slice(1);
          return Math.sqrt(meanOf(valuesOf(dense!.getWeights()[0]!).map((x) => x * x)));
        });
      expect(size(3) / size(1)).toBeCloseTo(3, 4);
    },
  );

  test('what is out of range is named', () => {
    expect(() => modelOf({ dropout: 1 })).toThrow('hyperparameters.dropout is 1');
    expect(() => modelOf({ activation: 'rely' })).toThrow("'rely'");
  });
});

describe('the mean of a sequence', () => {
  test('leaves padding out, and is zeros for padding alone', () => {
    const embedding = tf.layers.embedding({
      ...{ inputDim: 3, outputDim: 2, maskZero: true, inputLength: 3 },
    });
    const model = tf.sequential({ layers: [embedding, layers.maskedMean()] });
    embedding.setWeights([tf.tensor2d([9, 9, 1, 2, 3, 6], [3, 2])]);
    const ids = tf.tensor2d([1, 2, 0, 2, 0, 0, 0, 0, 0], [3, 3]);
    expect(valuesOf(model.predict(ids) as Tensor)).toEqual([2, 4, 3, 6, 0, 0]);
    expect(model.outputs[0]!.shape).toEqual([null, 2]);
    // Without a mask all count.
    const plain = layers.maskedMean().apply(tf.tensor3d([1, 2, 3, 6], [1, 2, 2])) as Tensor;
    expect(valuesOf(plain)).toEqual([2, 4]);
  });
});
