import fc from 'fast-check';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { RunConfig } from '../../shared/config.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { evaluate } from '../../worker/evaluate.ts';
import { type Experiment, type Measure, mustBeExperiment } from '../../worker/experiment.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const models: Model[] = [];
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});

const COUNT = 700;
const inputs = Float32Array.from({ length: COUNT }, (_, i) => Math.sin(i));
/** A line with noise; targets of one number, in one of the two shapes that people give them. */
function line(targetShape: readonly number[] = []): PreparedData {
  const targets = inputs.map((x, i) => 2 * x + 0.3 * Math.cos(7 * i) + 1);
  return prepareData(
    {
      train: {
        count: COUNT,
        inputs: { values: inputs, shape: [COUNT, 1] },
        targets: { values: targets, shape: [COUNT, ...targetShape] },
      },
      source: 'a line',
    },
    { seed: 1, validationFraction: 0.5, standardise: 'none' },
  );
}
const labels = prepareData(
  {
    train: {
      count: COUNT,
      inputs: { values: inputs, shape: [COUNT, 1] },
      targets: {
        values: Int32Array.from(inputs, (x) => (x > 0.2 ? 1 : x < -0.4 ? 2 : 0)),
        shape: [COUNT],
      },
    },
    classCount: 3,
    source: 'three classes',
  },
  { seed: 1, validationFraction: 0.5, standardise: 'none' },
);

async function build(data: PreparedData, rest: Partial<Experiment>): Promise<Model> {
  const experiment: Experiment = {
    data: () => {
      throw new Error('not asked for');
    },
    model: ({ tf, classCount }) =>
      tf.sequential({ layers: [tf.layers.dense({ units: classCount || 1, inputShape: [1] })] }),
    loss: data.classCount ? 'softmaxCrossEntropy' : 'meanSquaredError',
    ...rest,
  };
  const config = { seed: 3, hyperparameters: {} } as Pick<RunConfig, 'seed' | 'hyperparameters'>;
  const built = await buildModel(experiment, config, data);
  models.push(built);
  await built.initialise(3);
  return built;
}

const measure = async (data: PreparedData, rest: Partial<Experiment>) =>
  (await build(data, rest)).measure(gather(data, 'train', [0, 5, 17, 60, 200]));

/** As people write the mean of squared errors, whatever shape the targets have. */
const SQUARED: Record<string, Measure> = {
  plain: (t, p) => t.sub(p).square().mean(),
  'one for each example': (t, p) => t.sub(p).square(),
  'targets reshaped': (t, p) => t.reshape(p.shape).sub(p).square().mean(),
  'predictions flattened': (t, p) => p.flatten().sub(t).square().mean(),
  'both flattened': (t, p) => p.flatten().sub(t.flatten()).square().mean(),
  'predictions squeezed': (t, p) => p.squeeze([1]).sub(t).square().mean(),
};

describe('a loss of the user', () => {
  const wanted = async (data: PreparedData) => (await measure(data, {})).loss;

  test.each(Object.entries(SQUARED))('is the mean squared error: %s', async (name, loss) => {
    const data = line();
    const own = await measure(data, {
      loss,
      error: loss,
      metrics: { own: loss, 'loss of mine': loss },
    });
    const expected = await wanted(data);
    expect(own.loss, name).toBeCloseTo(expected, 5);
    expect(own.error).toBeCloseTo(expected, 5);
    expect(own.metrics.own).toBeCloseTo(expected, 5);
  });

  test.each(['plain', 'targets reshaped', 'both flattened'])(
    'is it also of targets of shape [n, 1]: %s',
    async (name) => {
      const data = line([1]);
      const { loss } = await measure(data, { loss: SQUARED[name]! });
      expect(loss).toBeCloseTo(await wanted(data), 5);
    },
  );

  test('is tried out, and nothing of that is left on the device', async () => {
    const before = tf.memory().numTensors;
    const own: Measure = (t, p) => tf.mean(tf.square(tf.sub(tf.reshape(t, p.shape), p)));
    (await build(line(), { loss: own })).dispose();
    expect(tf.memory().numTensors).toBe(before);
  });

  test('learns the line that it would learn with the loss by name', async () => {
    const data = line();
    const train = async (loss: Experiment['loss']) => {
      const model = await build(data, { loss });
      const weights = (await model.initialise(3)).slice();
      for (let step = 0; step < 60; step++) {
        model.load(weights);
        const rows = Array.from({ length: 32 }, (_, i) => (step * 32 + i) % data.train.count);
        const { gradient } = await model.step(gather(data, 'train', rows), step);
        for (let i = 0; i < weights.length; i++) weights[i]! -= 0.2 * gradient[i]!;
      }
      return weights;
    };
    const [own, named] = [await train(SQUARED.plain!), await train('meanSquaredError')];
    for (const [i, weight] of named.entries()) expect(own[i]).toBeCloseTo(weight, 4);
    expect(own[0]).toBeCloseTo(2, 0);
  });

  test.each<[string, Measure, RegExp]>([
    ['a sum', (t, p) => t.sub(p).square().sum(), /the sum over the examples/],
    ['no gradient', (t) => t.mean(), /no gradient/],
    ['steps', (t, p) => p.greater(t).cast('float32').mean(), /no gradient/],
    ['a number', () => 3 as never, /returned the number 3, which has no gradient/],
    ['nothing', () => undefined as never, /returned undefined \(is `return` missing\?\)/],
    ['a promise', (async () => tf.scalar(1)) as never, /returned a promise/],
    ['a string', () => 'low' as never, /returned "low"/],
    ['an int', (t, p) => p.greater(t).sum(), /returned a tensor of int32/],
    [
      'another vector',
      (_, p) => tf.concat([p.flatten(), p.flatten()]),
      /returned shape \[4\] for 2 examples/,
    ],
    ['a matrix', (_, p) => tf.matMul(p, p, false, true), /returned shape \[2,2\] for 2 examples/],
    [
      'an error',
      () => {
        throw new Error('my own');
      },
      /loss fails on .*my own/,
    ],
    [
      'a disposed tensor',
      (_, p) => {
        const mean = p.mean();
        mean.dispose();
        return mean;
      },
      /was disposed/,
    ],
    // The last axis of targets [n, 1] is taken away, and that of the predictions is not.
    [
      'all with all',
      (t, p) => t.flatten().sub(p).square().mean(),
      /broadcasts shape \[2\] with shape \[2,1\]/,
    ],
  ])('that is %s is refused by its name', async (_, loss, message) => {
    const data = line([1]);
    const refused = build(data, { loss });
    await expect(refused).rejects.toThrow(message);
    await expect(refused).rejects.toMatchObject({ code: 'DP_EXPERIMENT_INVALID' });
  });

  test('weighed by the examples, or in pairs on purpose, is no sum and stays as it is', async () => {
    const weighed: Measure = (t, p) => {
      const w = t.reshape(p.shape).square();
      return w.mul(t.reshape(p.shape).sub(p).square()).sum().div(w.sum());
    };
    // Pairs in the wrong order cost their distance, of each with each.
    const pairs: Measure = (t, p) =>
      p.sub(p.flatten()).mul(t.reshape(p.shape).sub(t.flatten())).neg().relu().mean();
    for (const loss of [weighed, pairs]) {
      expect(Number.isFinite((await measure(line(), { loss })).loss)).toBe(true);
    }
  });
});

describe('metrics of the user', () => {
  const accuracy: Measure = (t, p) => p.argMax(1).equal(t).mean();

  test('are one number each, in any form whose meaning is clear', async () => {
    const { metrics } = await measure(labels, {
      metrics: {
        accuracy,
        each: ((t, p) => p.argMax(1).equal(t)) satisfies Measure,
        integers: ((t, p) => p.argMax(1).equal(t).cast('int32')) satisfies Measure,
        number: () => 7,
        list: (t: Tensor) => [...t.dataSync()].map((value) => value * 2) as never,
        typed: (t: Tensor) => Float64Array.from(t.dataSync(), (value) => value * 2) as never,
        last: () => tf.tensor([9], [1, 1]),
      } as never,
    });
    const share = metrics.accuracy!;
    expect(share).toBeGreaterThan(0);
    expect(metrics.each).toBeCloseTo(share, 6);
    expect(metrics.integers).toBeCloseTo(share, 6);
    expect(metrics).toMatchObject({ number: 7, last: 9 });
    expect(metrics.list).toBe(metrics.typed);
  });

  test('that gives a vector for the classes is refused, and moves no other', async () => {
    const perClass: Measure = (_, p) => p.mean(0);
    await expect(build(labels, { metrics: { accuracy, perClass } })).rejects.toThrow(
      "metric 'perClass' returned shape [3] for 2 examples",
    );
  });

  test('that compares all with all is told so, not only that it gave a matrix', async () => {
    const all: Measure = (t, p) => t.flatten().sub(p);
    await expect(build(line([1]), { metrics: { all } })).rejects.toThrow(
      "metric 'all' broadcasts shape [2] with shape [2,1]",
    );
  });

  test('is looked at again at each minibatch', async () => {
    let many = false;
    const moody: Measure = (_, p) => (many ? tf.zeros([4]) : p.mean());
    const model = await build(labels, { metrics: { moody, last: () => tf.scalar(5) } });
    many = true;
    await expect(model.measure(gather(labels, 'train', [1, 2, 3]))).rejects.toThrow(
      "metric 'moody' returned shape [4] for 3 examples",
    );
  });

  test('a ranking of all with all is a metric (AUC)', async () => {
    // The share of pairs in the right order, for yes and no of shape [n] and [n, 1].
    const auc: Measure = (t, p) => {
      const y = t.flatten();
      const isPair = y.expandDims(1).greater(y.expandDims(0)).cast('float32');
      return p.sub(p.flatten()).greater(0).cast('float32').mul(isPair).sum().div(isPair.sum());
    };
    const { metrics } = await measure(line(), { metrics: { auc } });
    expect(metrics.auc).toBeGreaterThanOrEqual(0);
    expect(metrics.auc).toBeLessThanOrEqual(1);
  });

  test('any metric among any others keeps its own value', async () => {
    const forms: Measure[] = [
      (_, p) => p.mean(),
      (_, p) => p.mean(1),
      (_, p) => p.sum().expandDims(0),
      (t) => t.max(),
    ];
    const kinds = fc.array(fc.nat({ max: forms.length - 1 }), { minLength: 1, maxLength: 6 });
    const batch = gather(labels, 'train', [4, 8, 15, 16, 23, 42]);
    const alone: number[] = [];
    for (const each of forms)
      alone.push((await (await build(labels, { metrics: { each } })).measure(batch)).metrics.each!);
    await fc.assert(
      fc.asyncProperty(kinds, async (chosen) => {
        const metrics = Object.fromEntries(chosen.map((k, i) => [`m${i}`, forms[k]!]));
        const got = await (await build(labels, { metrics })).measure(batch);
        expect(Object.values(got.metrics)).toEqual(chosen.map((k) => alone[k]));
      }),
      { numRuns: 10 },
    );
  });

  test('of an evaluation are means over its examples, the smaller last minibatch as well; null where not finite', async () => {
    const data = line();
    const model = await build(data, {
      metrics: {
        own: SQUARED.plain!,
        undefinedForSome: (t: Tensor) => t.log().mean(),
        constructor: (t: Tensor) => t.mean(),
      } as never,
    });
    const { metrics, loss, examples } = await evaluate(
      model,
      model.loaded!,
      data,
      'trainAndValidation',
    );
    expect(examples).toBe(COUNT);
    expect(metrics.own).toBeCloseTo(loss!, 5);
    expect(metrics.undefinedForSome).toBeNull();
    const { train, validation } = data;
    const all = [...train.targets.values, ...validation.targets.values];
    expect(metrics.constructor).toBeCloseTo(all.reduce((a, b) => a + b, 0) / COUNT, 4);
  });

  describe('that are no means', () => {
    const yes = Int32Array.from(inputs, (x, i) => (x + Math.sin(3 * i) > 0.2 ? 1 : 0));
    const two = (shape: readonly number[], classCount?: number) =>
      prepareData(
        {
          train: {
            count: COUNT,
            inputs: { values: inputs.map((x) => Math.round(4 * x)), shape: [COUNT, 1] },
            targets: { values: classCount ? yes : Float32Array.from(yes), shape },
          },
          ...(classCount && { classCount }),
          source: 'two classes',
        },
        { seed: 1, validationFraction: 0.5, standardise: 'none' },
      );
    /** Every pair of a yes and a no. A tie is half of one in order. */
    const pairsInOrder = (scores: readonly number[], truth: readonly number[]) => {
      let [inOrder, all] = [0, 0];
      for (const [i, a] of scores.entries()) {
        for (const [j, b] of scores.entries()) {
          if (truth[i] !== 1 || truth[j] !== 0) continue;
          all++;
          inOrder += a > b ? 1 : a === b ? 0.5 : 0;
        }
      }
      return inOrder / all;
    };

    test.each([
      ['two logits', two([COUNT], 2), 'softmaxCrossEntropy', 2],
      ['one logit', two([COUNT, 1]), 'sigmoidCrossEntropy', 1],
    ] as const)('auc counts all pairs of the part, ties half: %s', async (_, data, loss, units) => {
      const model = await build(data, {
        loss,
        metrics: { auc: 'auc' },
        model: ({ tf }) => tf.sequential({ layers: [tf.layers.dense({ units, inputShape: [1] })] }),
      });
      for (const part of ['train', 'validation', 'trainAndValidation'] as const) {
        const { metrics, examples } = await evaluate(model, model.loaded!, data, part);
        const { inputs, targets } = gather(
          data,
          part,
          Int32Array.from({ length: examples }, (_, i) => i),
        );
        const rows = { ...gather(data, part, [0]), inputs, targets };
        const { values } = await model.predict(rows);
        const scores = Array.from(inputs, (_, i) =>
          units === 1 ? values[i]! : values[2 * i + 1]! - values[2 * i]!,
        );
        expect(new Set(scores).size).toBeLessThan(10);
        expect(metrics.auc).toBeCloseTo(pairsInOrder(scores, [...targets]), 6);
      }
    });

    test('rmse and r2 are of the whole part, however it is divided', async () => {
      const data = line();
      const model = await build(data, { metrics: { rmse: 'rmse', r2: 'r2' } });
      const { metrics, loss } = await evaluate(model, model.loaded!, data, 'trainAndValidation');
      expect(metrics.rmse).toBeCloseTo(Math.sqrt(loss!), 5);
      const all = [...data.train.targets.values, ...data.validation.targets.values];
      const mean = all.reduce((a, b) => a + b, 0) / COUNT;
      const variance = all.reduce((sum, value) => sum + (value - mean) ** 2, 0) / COUNT;
      expect(metrics.r2).toBeCloseTo(1 - loss! / variance, 5);
      const half = await evaluate(model, model.loaded!, data, 'train', { alsoTraining: 10 });
      expect(half.metrics.rmse).toBeCloseTo(Math.sqrt(half.loss!), 5);
      expect(half.metrics.rmse).not.toBeCloseTo(metrics.rmse!, 5);
    });

    test('are null where they have no value', async () => {
      const [data, one] = [two([COUNT, 1]), line()];
      for (const part of [data.train, data.validation]) part.targets.values.fill(1);
      for (const part of [one.train, one.validation]) part.targets.values.fill(2);
      const auc = await build(data, { loss: 'sigmoidCrossEntropy', metrics: { auc: 'auc' } });
      const r2 = await build(one, { metrics: { r2: 'r2' } });
      expect((await evaluate(auc, auc.loaded!, data, 'train')).metrics.auc).toBeNull();
      expect((await evaluate(r2, r2.loaded!, one, 'train')).metrics.r2).toBeNull();
    });

    test.each([
      ['auc', labels, /metric 'own' is 'auc', which needs two classes.*the targets have 3 classes/],
      ['rmse', labels, /which needs as many predictions as targets.*predictions shape \[3\]/],
      ['r2', labels, /which needs one number to predict/],
      [
        'auroc',
        labels,
        /metric 'own' is 'auroc'; allowed: .*'auc', 'rmse', 'r2'.*did you mean 'auc'/,
      ],
    ])('are refused where they mean nothing: %s', async (own, data, words) => {
      await expect(build(data, { metrics: { own: own as never } })).rejects.toThrow(words);
    });
  });

  test.each([
    'loss',
    'error',
    'trainingLoss',
    'trainingError',
    '__proto__',
    '',
    ' ',
    'a\nb',
    'x'.repeat(65),
  ])('cannot be called %j', (name) => {
    const metrics = Object.fromEntries([[name, () => tf.scalar(1)]]);
    const experiment = { data: () => {}, model: () => {}, loss: 'meanSquaredError', metrics };
    expect(() => mustBeExperiment(experiment, 'e.ts')).toThrow('metrics has the name');
    const fine = { ...experiment, metrics: { 'F1, of class "ä"': () => tf.scalar(1) } };
    expect(mustBeExperiment(fine, 'e.ts')).toBe(fine);
  });
});

describe('predictions', () => {
  const own = (predict: (x: Tensor) => unknown): Partial<Experiment> => ({
    loss: SQUARED.plain!,
    model: ({ tf }) => ({ variables: { w: tf.variable(tf.scalar(1)) }, predict: predict as never }),
  });

  test.each<[string, (x: Tensor) => unknown, RegExp]>([
    ['one for all examples', (x) => x.mean(0), /first size must be 2/],
    ['always two', () => tf.zeros([2, 1]), /for 3 examples have shape \[2,1\]/],
    ['integers', (x) => x.cast('int32'), /are int32/],
    ['an array', () => [1, 2], /an array of 2/],
    ['a promise', async (x) => x, /a promise/],
    ['nothing', () => undefined, /returned undefined/],
  ])('that are %s are refused', async (_, predict, message) => {
    await expect(build(line(), own(predict))).rejects.toThrow(message);
  });

  test('that are NaN before any update are refused, with the example', async () => {
    // The root of a negative number, of some inputs.
    const rooted = own((x) => x.sqrt());
    await expect(build(line(), rooted)).rejects.toThrow(
      /predictions for training example \d+ are NaN at its initial parameters/,
    );
    await expect(
      build(
        line(),
        own((x) => x.abs().sqrt()),
      ),
    ).resolves.toBeDefined();
  });

  test("error 'misclassification' needs one for each class", async () => {
    const one: Partial<Experiment> = {
      loss: 'meanSquaredError',
      error: 'misclassification',
      model: ({ tf }) =>
        tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape: [1] })] }),
    };
    await expect(build(labels, one)).rejects.toThrow(
      'needs one prediction for each of the 3 classes',
    );
    await expect(build(line(), one)).rejects.toThrow('needs classes');
  });
});

describe('predictions in another order than the targets', () => {
  const few = prepareData(
    {
      train: {
        count: 8,
        inputs: { values: inputs.slice(0, 8), shape: [8, 1] },
        targets: { values: inputs.slice(0, 48), shape: [8, 2, 3] },
      },
      source: 'tables of 2 rows and 3 columns',
    },
    { seed: 1, validationFraction: 0.5, standardise: 'none' },
  );
  const giving = (...targetShape: number[]) =>
    build(few, {
      model: ({ tf }) =>
        tf.sequential({
          layers: [
            tf.layers.dense({ units: 6, inputShape: [1] }),
            tf.layers.reshape({ targetShape }),
          ],
        }),
      loss: 'meanSquaredError',
    });

  test('are refused, since reshaping would compare numbers that do not belong together', async () => {
    await expect(giving(3, 2)).rejects.toThrow(/predictions have shape \[n,3,2\].*needs \[n,2,3\]/);
  });

  test('are taken where the order is the same', async () => {
    for (const shape of [[2, 3], [6], [2, 1, 3], [6, 1]]) await giving(...shape);
  });
});
