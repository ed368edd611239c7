import { beforeAll, describe, expect, test } from 'vitest';
import type { PartialConfig } from '../../shared/config.ts';
import { meanOf } from '../../study/statistics.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { openEngine } from '../../worker/engine.ts';
import type { ModelArguments } from '../../worker/experiment.ts';
import { initializers, layers } from '../../worker/layers.ts';
import { type Tensor, tf } from '../../worker/tf.ts';
import { digits, type Trainable, type Trained, trainHere } from '../support/train-here.ts';

// Deep Learning chapters 6, 8, 9 and 10: what makes a training get on. On real digits, by the server's
// own update rules; the commands that compare the same on a cluster are in docs/methodology.md.

let few: PreparedData;
/** 14 by 14 pixels. */
let small: PreparedData;
beforeAll(async () => {
  await openEngine({ engine: 'wasm' });
  few = await digits(800);
  small = await digits(800, 0.5, 2);
});

const mlp: Trainable = {
  loss: 'softmaxCrossEntropy',
  model: (args) =>
    tf.sequential({
      layers: [...layers.hidden(args, { units: 32 }), tf.layers.dense({ units: args.classCount })],
    }),
};

/** Each of several, with as many seeds. */
async function compare<K extends string>(
  variants: Readonly<Record<K, PartialConfig>>,
  seeds: number,
  options: { data?: PreparedData; experiment?: Trainable; base?: PartialConfig } = {},
): Promise<Record<K, readonly Trained[]>> {
  const { data = few, experiment = mlp, base = {} } = options;
  const results: [string, Trained[]][] = [];
  for (const [name, variant] of Object.entries<PartialConfig>(variants)) {
    const runs: Trained[] = [];
    for (let seed = 1; seed <= seeds; seed++) {
      const hyperparameters = { ...base.hyperparameters, ...variant.hyperparameters };
      runs.push(await trainHere(data, experiment, { ...base, ...variant, hyperparameters, seed }));
    }
    results.push([name, runs]);
  }
  return Object.fromEntries(results) as unknown as Record<K, readonly Trained[]>;
}
const error = (runs: readonly Trained[]) => meanOf(runs.map(({ validation }) => validation.error));
const loss = (runs: readonly Trained[]) => meanOf(runs.map(({ validation }) => validation.loss));

describe('§6.2.2: the loss must fit the output units', () => {
  test('cross-entropy learns where squared and absolute errors of a softmax have next to no gradient', async () => {
    // Sure of itself and wrong, as a network may be at any time in its training.
    const sure = tf.initializers.varianceScaling({
      scale: 1000,
      mode: 'fanIn',
      distribution: 'uniform',
    });
    const ending = (activation: 'linear' | 'softmax') => (args: ModelArguments) =>
      tf.sequential({
        layers: [
          ...layers.hidden(args, { units: 32 }),
          tf.layers.dense({ units: args.classCount, activation, kernelInitializer: sure }),
        ],
      });
    const truth = (targets: Tensor) =>
      tf.cast(tf.oneHot(tf.cast(targets as never, 'int32'), 10), 'float32');
    const squared: Trainable = {
      ...{ model: ending('softmax'), error: 'misclassification' },
      loss: (targets, p) => tf.mean(tf.square(tf.sub(p, truth(targets)))),
    };
    const absolute: Trainable = {
      ...squared,
      loss: (targets, p) => tf.mean(tf.abs(tf.sub(p, truth(targets)))),
    };
    const entropy: Trainable = { model: ending('linear'), loss: 'softmaxCrossEntropy' };
    const best: number[] = [];
    const norms: number[] = [];
    for (const experiment of [entropy, squared, absolute]) {
      // Each at the rate that suits it best.
      const runs = [];
      for (const learningRate of [0.01, 0.1, 1]) {
        runs.push(await trainHere(few, experiment, { epochsMax: 6, learningRate }));
      }
      best.push(Math.min(...runs.map(({ validation }) => validation.error)));
      norms.push(runs[0]!.gradientNorms[0]!);
    }
    expect(best[0]).toBeLessThan(best[1]! - 0.1);
    expect(best[0]).toBeLessThan(best[2]! - 0.1);
    expect(norms[1]! / norms[0]!).toBeLessThan(0.02);
  });
});

describe('§6.3: rectifiers', () => {
  test('ReLU, leaky, parametric and noisy ones train a deep network that sigmoids cannot', async () => {
    const of = (activation: string) => ({ hyperparameters: { activation } });
    const runs = await compare(
      {
        ...{ relu: of('relu'), leaky: of('leakyReLU'), prelu: of('prelu'), noisy: of('noisyReLU') },
        sigmoid: of('sigmoid'),
      },
      2,
      { base: { epochsMax: 8, learningRate: 0.05, hyperparameters: { layers: 3 } } },
    );
    expect(error(runs.sigmoid)).toBeGreaterThan(0.8);
    for (const rectifier of [runs.relu, runs.leaky, runs.prelu]) {
      expect(error(rectifier)).toBeLessThan(0.4);
    }
    // Noise in each unit of three layers costs.
    expect(error(runs.noisy)).toBeLessThan(0.65);
  });
});

describe('§8.3 and §8.5: optimizers', () => {
  test('momentum is faster than plain gradient descent, and may rise: 0.5, 0.9, 0.99', async () => {
    const runs = await compare(
      {
        sgd: { optimizer: { kind: 'sgd' } },
        half: { optimizer: { kind: 'momentum', momentum: 0.5 } },
        momentum: { optimizer: { kind: 'momentum', momentum: 0.9 } },
        rising: {
          optimizer: { kind: 'momentum' },
          momentumSchedule: { values: [0.5, 0.9, 0.99], steps: [13, 60] },
        },
      },
      2,
      { base: { epochsMax: 6, learningRate: 0.01 } },
    );
    expect(error(runs.momentum)).toBeLessThan(error(runs.sgd) - 0.2);
    expect(error(runs.rising)).toBeLessThan(error(runs.half) - 0.1);
    expect(loss(runs.rising)).toBeLessThan(loss(runs.momentum));
  });

  test('AdaDelta, RMSProp with and without momentum, and Adam do as well as tuned momentum: none is best', async () => {
    const runs = await compare(
      {
        momentum: { optimizer: { kind: 'momentum' }, learningRate: 0.01 },
        adadelta: { optimizer: { kind: 'adadelta' }, learningRate: 1 },
        rmsprop: { optimizer: { kind: 'rmsprop' }, learningRate: 0.003 },
        both: { optimizer: { kind: 'rmsprop', momentum: 0.9 }, learningRate: 0.0003 },
        adam: { optimizer: { kind: 'adam' }, learningRate: 0.003 },
      },
      2,
      { base: { epochsMax: 6 } },
    );
    const { momentum, ...adaptive } = runs;
    for (const run of Object.values(adaptive)) {
      expect(error(run)).toBeLessThan(error(momentum) + 0.03);
    }
    const errors = Object.values(adaptive).map(error);
    expect(Math.max(...errors) - Math.min(...errors)).toBeLessThan(0.06);
  });

  test('§8.3.1: a rate that decays, linearly to a floor, exponentially or on a plateau, ends lower than a constant one', async () => {
    const steps = 300;
    const runs = await compare(
      {
        constant: {},
        linear: { schedule: { kind: 'linear', steps, floor: 0.01 } },
        exponential: { schedule: { kind: 'exponential', factor: 0.5, steps: 50 } },
        plateau: { schedule: { kind: 'plateau', divideBy: 5, patience: 1 } },
      },
      3,
      // Small minibatches: the noise of their gradients never ends, and only a smaller rate makes it small.
      { base: { epochsMax: 6, minibatchSize: 8, learningRate: 0.3 } },
    );
    for (const decaying of [runs.linear, runs.exponential, runs.plateau]) {
      expect(loss(decaying)).toBeLessThan(loss(runs.constant) - 0.03);
    }
  });
});

describe('§8.2.2: the norm of the gradient over time', () => {
  test('does not become small while the training succeeds: no minimum is what it is held up by', async () => {
    const { losses, gradientNorms } = await trainHere(few, mlp, {
      ...{ epochsMax: 8, learningRate: 0.05, hyperparameters: { layers: 3 } },
    });
    const [first, last] = [losses.slice(0, 20), losses.slice(-20)].map(meanOf);
    expect(last).toBeLessThan(first! / 2);
    const norms = [gradientNorms.slice(0, 20), gradientNorms.slice(-20)].map(meanOf);
    expect(norms[1]).toBeGreaterThan(norms[0]!);
  });
});

describe('§8.4: initial values', () => {
  test('their scale decides: a tenth or tenfold of He does not train a deep network', async () => {
    const of = (initialScale: number) => ({ hyperparameters: { initialScale } });
    const runs = await compare({ low: of(0.1), right: of(1), high: of(10) }, 2, {
      base: { epochsMax: 4, hyperparameters: { layers: 3 } },
    });
    expect(error(runs.right)).toBeLessThan(0.5);
    expect(error(runs.low)).toBeGreaterThan(0.8);
    expect(error(runs.high)).toBeGreaterThan(0.8);
  });
});

describe('§9.9: random filters', () => {
  test('a convolution that is never trained helps a last layer that is', async () => {
    const model = (filters: number): Trainable => ({
      loss: 'softmaxCrossEntropy',
      model: ({ inputShape, classCount }) =>
        tf.sequential({
          layers: [
            ...(filters === 0
              ? []
              : [
                  tf.layers.conv2d({
                    ...{ filters, kernelSize: 3, inputShape, activation: 'relu' as const },
                    ...{ kernelInitializer: 'heUniform' as const, trainable: false },
                  }),
                  tf.layers.maxPooling2d({ poolSize: 2 }),
                ]),
            tf.layers.flatten(filters === 0 ? { inputShape } : {}),
            tf.layers.dense({ units: classCount }),
          ],
        }),
    });
    const options = { data: small, base: { epochsMax: 8 } };
    const { it: linear } = await compare({ it: {} }, 2, { ...options, experiment: model(0) });
    const { it: random } = await compare({ it: {} }, 2, { ...options, experiment: model(16) });
    expect(loss(random)).toBeLessThan(loss(linear) - 0.2);
    expect(error(random)).toBeLessThan(error(linear));
    // Only the last layer is exchanged: 576 features of random filters, 10 classes.
    expect(random[0]!.parameters).toBe(577 * 10);
    expect(Object.keys(random[0]!.norms)).toEqual(['dense_1/kernel', 'dense_1/bias']);
  });
});

describe('chapter 10: sequences, the rows of digits one after another', () => {
  const rows = ({ inputShape }: ModelArguments) =>
    tf.layers.reshape({ targetShape: [14, 14], inputShape });

  test('§10.11.1: clipping the norm of the gradient keeps a recurrent network from flying apart', async () => {
    const experiment: Trainable = {
      loss: 'softmaxCrossEntropy',
      model: (args) =>
        tf.sequential({
          layers: [
            rows(args),
            tf.layers.simpleRNN({
              ...{ units: 16, activation: 'relu' },
              recurrentInitializer: tf.initializers.orthogonal({ gain: 1.6 } as never),
            }),
            tf.layers.dense({ units: args.classCount }),
          ],
        }),
    };
    const base = { epochsMax: 4, learningRate: 0.3 };
    const runs = await compare({ free: {}, clipped: { clip: { norm: 1 } } }, 3, {
      ...{ data: small, experiment, base },
    });
    expect(runs.free.some(({ diverged }) => diverged)).toBe(true);
    expect(runs.clipped.some(({ diverged }) => diverged)).toBe(false);
    expect(error(runs.clipped)).toBeLessThan(error(runs.free) - 0.05);
  });

  test('§10.8: a reservoir that echoes (spectral radius 1.2) and is never trained remembers the first rows', async () => {
    const reservoir = (spectralRadius: number): Trainable => ({
      loss: 'softmaxCrossEntropy',
      model: (args) =>
        tf.sequential({
          layers: [
            rows(args),
            tf.layers.simpleRNN({
              ...{ units: 80, trainable: false },
              kernelInitializer: tf.initializers.randomUniform({ minval: -0.3, maxval: 0.3 }),
              recurrentInitializer: initializers.echoState({ spectralRadius }),
            }),
            tf.layers.dense({ units: args.classCount }),
          ],
        }),
    });
    const options = { data: small, base: { epochsMax: 4 } };
    const echo = await compare({ it: {} }, 1, { ...options, experiment: reservoir(1.2) });
    const forgets = await compare({ it: {} }, 1, { ...options, experiment: reservoir(0.05) });
    expect(error(echo.it)).toBeLessThan(error(forgets.it) - 0.2);
  });

  test('§10.10.2: with a forget gate that begins at 1 an LSTM still feels its first input at the end', () => {
    const felt = (unitForgetBias: boolean) =>
      meanOf(
        [1, 2, 3].map((seed) => {
          const lstm = tf.layers.lstm({
            ...{ units: 12, unitForgetBias },
            kernelInitializer: tf.initializers.glorotUniform({ seed }),
            recurrentInitializer: tf.initializers.glorotUniform({ seed: seed + 10 }),
          });
          const digit = tf.tensor3d(
            Array.from(small.train.inputs.values.slice(0, 196)),
            [1, 14, 14],
          );
          const gradient = tf.grad((x) => tf.sum(lstm.apply(x) as Tensor))(digit);
          // The first row: blank or not, its slope counts.
          return tf.norm(tf.slice(gradient, [0, 0, 0], [1, 1, 14])).dataSync()[0]!;
        }),
      );
    expect(felt(true)).toBeGreaterThan(5 * felt(false));
  });
});
