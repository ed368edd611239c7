import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { main } from '../../cli/main.ts';
import { EXIT } from '../../cli/options.ts';
import { judgeTiny } from '../../cli/study/check-tiny.ts';
import { createUpdater } from '../../cli/study/updater.ts';
import csvRegression from '../../examples/csv-regression.ts';
import mnistCnn from '../../examples/mnist-cnn.ts';
import mnistMlp from '../../examples/mnist-mlp.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { permutation } from '../../shared/random.ts';
import { type TinySettings, tinyPlan, tinyResults } from '../../study/tiny.ts';
import { checkExperiment } from '../../worker/check/check.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { dataOf } from '../../worker/data/given.ts';
import { loadMnist } from '../../worker/data/mnist.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { takeExamples } from '../../worker/data/split.ts';
import { openEngine } from '../../worker/engine.ts';
import type { Experiment, Measure } from '../../worker/experiment.ts';
import { type Tensor, tf } from '../../worker/tf.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { studyOn, workForAll } from '../support/study.ts';

// Deep Learning §11.5: a defect looks like a model that learns badly. Each one planted here in a healthy
// experiment on real digits must be found by name; the healthy ones must not be accused of anything.

let digits: ExperimentData;
let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  await workForAll(cluster, 2, [FIXTURES]);
  const { train, test, classCount } = await loadMnist({ dataFolder: '/nowhere' });
  const first = (examples: typeof train, count: number) =>
    takeExamples(
      examples,
      Array.from({ length: count }, (_, i) => i),
    );
  digits = {
    ...{ train: first(train, 2500), test: first(test!, 500), source: 'digits' },
    classCount: classCount!,
  };
});

afterAll(() => cluster.close());

const dense = (units: number, more: object = {}) =>
  tf.layers.dense({ units, kernelInitializer: 'heNormal', ...more });
const healthy: Experiment = {
  data: () => digits,
  model: ({ tf, inputShape }) =>
    tf.sequential({
      layers: [
        tf.layers.flatten({ inputShape }),
        dense(64, { activation: 'relu' }),
        dense(32, { activation: 'relu' }),
        dense(10),
      ],
    }),
  loss: 'softmaxCrossEntropy',
  config: { learningRate: 0.1, minibatchSize: 32 },
};

async function check(
  experiment: Experiment,
  data: ExperimentData = digits,
  more: PartialConfig = {},
  steps = 60,
) {
  const config = resolveConfig(experiment.config, more);
  const prepared = prepareData(data, {
    ...{ seed: 1, validationFraction: 0.2, standardise: experiment.standardise ?? 'none' },
  });
  const before = tf.memory().numTensors;
  const findings = await checkExperiment({
    ...{ experiment, config, prepared, steps },
    updater: (layout, initial) => createUpdater(layout, config, initial),
  });
  expect(tf.memory().numTensors).toBe(before);
  const problems = findings.filter(({ verdict }) => verdict === 'problem');
  for (const { next } of problems) expect(next).toBeTruthy();
  return {
    findings,
    problems: problems.map((found) => found.check),
    text: findings.map((f) => `${f.check} ${f.verdict}: ${f.text}`).join('\n'),
  };
}

describe('healthy experiments are not accused', () => {
  test('digits', async () => {
    const { problems, text } = await check(healthy);
    expect(problems, text).toEqual([]);
  });

  test('each of the examples', async () => {
    for (const [experiment, data, steps] of [
      [mnistMlp, digits, 40],
      [mnistCnn, digits, 20],
      [
        csvRegression,
        dataOf(
          await csvRegression.data({ folder: '', seed: 1, hyperparameters: {}, log: () => {} }),
        ),
        200,
      ],
    ] as const) {
      const { problems, text } = await check(experiment, data, {}, steps);
      expect(problems, text).toEqual([]);
    }
  });
});

describe('a planted defect is found:', () => {
  test('labels shuffled', async () => {
    const rows = permutation(3, 3, digits.train.count);
    const { targets } = takeExamples(digits.train, rows);
    const { problems, text } = await check(healthy, {
      ...digits,
      train: { ...digits.train, targets },
    });
    expect(problems, text).toContain('labels');
  });

  test('input not scaled', async () => {
    const raw = ({ inputs, ...rest }: typeof digits.train) => ({
      ...rest,
      inputs: { ...inputs, values: Float32Array.from(inputs.values) },
    });
    const { train, test: held } = digits;
    const { problems, text } = await check(healthy, {
      ...digits,
      train: raw(train),
      test: raw(held!),
    });
    expect(problems, text).toContain('scale');
  });

  test('loss sign flipped', async () => {
    const flipped: Measure = (targets, predictions) =>
      tf.mean(
        tf.sum(
          tf.mul(
            tf.logSoftmax(predictions),
            tf.cast(tf.oneHot(tf.cast(targets, 'int32'), 10), 'float32'),
          ),
          1,
        ),
      );
    const { problems, text } = await check(
      { ...healthy, loss: flipped, error: 'misclassification' },
      digits,
      { learningRate: 0.01 },
    );
    expect(problems, text).toContain('initial-loss');
    expect(problems, text).toContain('direction');
  });

  test('softmax twice', async () => {
    const model: Experiment['model'] = ({ tf, inputShape }) =>
      tf.sequential({
        layers: [
          tf.layers.flatten({ inputShape }),
          dense(64, { activation: 'relu' }),
          dense(10, { activation: 'softmax' }),
        ],
      });
    const { problems, text } = await check({ ...healthy, model });
    expect(problems, text).toEqual(['output']);
  });

  test('dead ReLUs from a huge bias', async () => {
    const biasInitializer = tf.initializers.constant({ value: -20 });
    const model: Experiment['model'] = ({ tf, inputShape }) =>
      tf.sequential({
        layers: [
          tf.layers.flatten({ inputShape }),
          dense(64, { activation: 'relu', biasInitializer }),
          dense(10),
        ],
      });
    const { problems, findings, text } = await check({ ...healthy, model });
    expect(problems, text).toContain('activations');
    expect(findings.find((found) => found.check === 'activations')!.text).toContain(
      'dense_1 (100 %)',
    );
  });

  test.each([
    [100, 'too high'],
    [1 / 1000, 'hardly moves'],
  ])('learning rate × %s', async (factor, words) => {
    const { problems, findings, text } = await check(healthy, digits, {
      learningRate: 0.1 * factor,
    });
    expect(problems, text).toContain('progress');
    expect(findings.find((found) => found.check === 'progress')!.text).toContain(words);
  });

  test('gradient of one layer zeroed', async () => {
    // What a `dataSync` in the middle of a model does: the value goes on, the gradient does not.
    const model: Experiment['model'] = ({ tf }) => {
      const normal = (shape: [number, number]) =>
        tf.tidy(() => tf.variable(tf.randomNormal(shape, 0, (2 / shape[0]) ** 0.5)));
      const [first, second] = [normal([784, 32]), normal([32, 10])];
      const stopped = tf.customGrad((x: unknown, save: unknown) => {
        void save;
        return {
          value: tf.clone(x as typeof first),
          gradFunc: (dy: typeof first) => tf.zerosLike(dy),
        };
      }) as unknown as (x: typeof first) => typeof first;
      return {
        variables: { first, second },
        predict: (inputs: Tensor) =>
          tf.matMul(tf.relu(tf.matMul(tf.reshape(inputs, [-1, 784]), stopped(first))), second),
      };
    };
    const { problems, findings, text } = await check({ ...healthy, model });
    expect(problems, text).toContain('gradient');
    expect(findings.find((found) => found.check === 'gradient')!.text).toContain(
      'first (gradient 0)',
    );
  });

  test('leak of test examples into training', async () => {
    const { train, test: held } = digits;
    const rows = Array.from({ length: 2500 }, (_, i) => i);
    const leaked = takeExamples(train, rows);
    const size = 784;
    for (let i = 0; i < 50; i++) {
      leaked.inputs.values.set(
        held!.inputs.values.subarray(i * size, (i + 1) * size),
        40 * i * size,
      );
      leaked.targets.values[40 * i] = held!.targets.values[i]!;
    }
    const { problems, text } = await check(healthy, { ...digits, train: leaked });
    expect(problems, text).toEqual(['duplicates']);
  });

  test('a layer frozen by accident', async () => {
    const model: Experiment['model'] = ({ tf, inputShape }) =>
      tf.sequential({
        layers: [
          tf.layers.flatten({ inputShape }),
          dense(64, { activation: 'relu', trainable: false }),
          dense(10),
        ],
      });
    const { problems, text } = await check({ ...healthy, model });
    expect(problems, text).toEqual(['frozen']);
  });

  const normalised =
    (
      statistics: (
        training: boolean,
        batch: () => { mean: ReturnType<typeof tf.mean>; variance: ReturnType<typeof tf.mean> },
      ) => { mean: ReturnType<typeof tf.mean>; variance: ReturnType<typeof tf.mean> },
    ): Experiment['model'] =>
    ({ tf }) => {
      const normal = (shape: [number, number]) =>
        tf.tidy(() => tf.variable(tf.randomNormal(shape, 0, (2 / shape[0]) ** 0.5)));
      const [first, second] = [normal([784, 32]), normal([32, 10])];
      return {
        variables: { first, second },
        predict: (inputs: Tensor, { training }: { training: boolean }) => {
          const x = tf.matMul(tf.reshape(inputs, [-1, 784]), first);
          const { mean, variance } = statistics(training, () => tf.moments(x, 0) as never);
          return tf.matMul(
            tf.relu(tf.div(tf.sub(x, mean), tf.sqrt(tf.add(variance, 1e-3)))),
            second,
          );
        },
      };
    };

  test('batch normalisation that uses the minibatch in evaluations too', async () => {
    const { problems, text } = await check({
      ...healthy,
      model: normalised((_, batch) => batch()),
    });
    expect(problems, text).toContain('independence');
  });

  test('batch normalisation whose moving averages are never moved', async () => {
    const model = normalised((training, batch) =>
      training ? batch() : { mean: tf.scalar(0), variance: tf.scalar(100) },
    );
    const { problems, text } = await check({ ...healthy, model });
    expect(problems, text).toContain('modes');
  });
});

describe('32 examples', () => {
  const settings = (learningRate: number): TinySettings => ({
    ...{ examples: 32, minibatchSize: 8, steps: 240, workers: [1, 2], available: 1000, target: 0 },
    ...{ ownValidation: false, metric: 'trainingError', base: [{ learningRate }] },
  });
  const learn = async (learningRate: number) => {
    const own = settings(learningRate);
    const trials = await studyOn(
      cluster,
      `tiny-${Math.round(1e6 * learningRate)}`,
      join(FIXTURES, 'few-digits.ts'),
      tinyPlan(own),
      1,
      { keepCurves: true, lookahead: 0 },
    );
    expect(trials.map(({ data }) => data!.trainCount)).toEqual([32, 32]);
    return judgeTiny(tinyResults(trials, own), own);
  };

  test('§11.5: are learnt by heart, by one worker and by two', async () => {
    expect(await learn(0.1)).toMatchObject({ verdict: 'ok' });
  });

  test('§11.5: are not where something is wrong', async () => {
    expect(await learn(1e-5)).toMatchObject({ verdict: 'problem' });
  });
});

describe('the command', () => {
  async function run(...args: string[]) {
    let out = '';
    const stdout = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
      out += String(text);
      return true;
    });
    const file = join(FIXTURES, 'few-digits.ts');
    const quick = ['--no-tiny', '--no-throughput', '--steps', '30', '--engine', 'wasm'];
    try {
      return { code: await main(['check', file, ...quick, ...args]), out: () => out };
    } finally {
      stdout.mockRestore();
    }
  }

  test('prints a line a check with the next step, and its exit code tells scripts of problems', async () => {
    const { code, out } = await run();
    expect(code).toBe(EXIT.ok);
    expect(out()).toMatch(/^ok +gradient +Gradients of 4 tensors agree/m);
    expect(out()).toMatch(/^advice +count .*\n +→ compare settings by k-fold/m);
    const bad = await run('--learning-rate', '0.00001', '--json');
    expect(bad.code).toBe(EXIT.problems);
    const facts = JSON.parse(bad.out()) as { verdict: string; findings: { check: string }[] };
    expect(facts.verdict).toBe('problem');
    expect(facts.findings.map(({ check: name }) => name)).toContain('progress');
    const accepted = await run('--learning-rate', '0.00001', '--accept', 'progress');
    expect(accepted.code).toBe(EXIT.ok);
  });
});
