import { beforeAll, describe, expect, test } from 'vitest';
import { createUpdater } from '../../cli/study/updater.ts';
import { resolveConfig } from '../../shared/config.ts';
import { checkExperiment } from '../../worker/check/check.ts';
import { balancedWeights } from '../../worker/class-weights.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import type { ExampleSource } from '../../worker/data/source.ts';
import { openEngine } from '../../worker/engine.ts';
import { type Experiment, type ModelArguments, mustBeExperiment } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { askPython, pythonTest } from '../support/python.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

/** 40 examples of class 0, 15 of class 1, 5 of class 2. */
const LABELS = Array.from({ length: 60 }, (_, i) => (i % 12 === 7 ? 2 : i % 4 === 1 ? 1 : 0));
const inputs = Float32Array.from({ length: 120 }, (_, i) => Math.sin(1 + 7 * i));
const labelled = (labels: readonly number[], classCount?: number) => ({
  train: {
    count: labels.length,
    inputs: { values: inputs.slice(0, 2 * labels.length), shape: [labels.length, 2] },
    targets: { values: Int32Array.from(labels), shape: [labels.length] },
  },
  ...(classCount !== undefined && { classCount }),
  source: 'made',
});

const linear =
  (units: number) =>
  ({ tf, inputShape }: ModelArguments) =>
    tf.sequential({ layers: [tf.layers.dense({ units, inputShape })] });

const config = resolveConfig({ seed: 1, validationFraction: 0.5 });

async function prepared(experiment: Partial<Experiment>, data: ExperimentData) {
  const own = { model: linear(3), loss: 'softmaxCrossEntropy', ...experiment } as Experiment;
  const parts = await prepareAny({ validation: data.train, ...data }, prepareOptions(own, config), {
    log: () => {},
  });
  return { own, parts };
}

/** Loss of a training step, of an evaluation, and the gradient, at the same parameters. */
async function measured(experiment: Partial<Experiment>, data: ExperimentData) {
  const { own, parts } = await prepared(experiment, data);
  const model = await buildModel(own, config, parts, { record: false });
  model.load(await model.initialise(5));
  const rows = Array.from({ length: parts.train.count }, (_, i) => i);
  const minibatch = gather(parts, 'train', rows);
  const step = await model.step(minibatch, 1);
  const result = { training: step.loss, gradient: Array.from(step.gradient) };
  const { loss, error } = await model.measure(minibatch);
  const { values } = await model.predict(minibatch);
  const { classWeights } = model;
  model.dispose();
  return { ...result, evaluation: loss, error, values: Array.from(values), classWeights };
}

const softmaxLosses = (values: readonly number[], labels: readonly number[], k: number) =>
  labels.map((label, i) => {
    const row = values.slice(i * k, (i + 1) * k);
    return Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) - row[label]!;
  });
const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;

describe('weights of classes', () => {
  const data = labelled(LABELS, 3);
  const balanced = [60 / (3 * 40), 60 / (3 * 15), 60 / (3 * 5)];

  test('balanced ones are n / (k nᶜ), of the classes that occur', () => {
    expect(balancedWeights([40, 15, 5])).toEqual(balanced);
    expect(balancedWeights([30, 0, 10])).toEqual([40 / 60, 1, 2]);
  });

  pythonTest(['sklearn'])(
    'balanced ones, and the loss with them, are those of scikit-learn',
    async () => {
      const { training, evaluation, values, classWeights } = await measured(
        { classWeights: 'balanced' },
        data,
      );
      const told = await askPython<{ weights: number[]; loss: number }>(
        `
import json, sys, numpy as np
from sklearn.utils.class_weight import compute_class_weight
from sklearn.metrics import log_loss
y, logits = (np.array(each) for each in json.loads(sys.argv[1]))
weights = compute_class_weight('balanced', classes=np.array([0, 1, 2]), y=y)
logits = logits.reshape(-1, 3)
p = np.exp(logits - logits.max(axis=1, keepdims=True))
p /= p.sum(axis=1, keepdims=True)
# scikit-learn divides by the sum of the weights, which is their number here.
print(json.dumps({'weights': weights.tolist(), 'loss': log_loss(y, p, sample_weight=weights[y])}))`,
        [JSON.stringify([LABELS, values])],
      );
      for (const [c, weight] of classWeights.targets!.entries()) {
        expect(weight).toBeCloseTo(told.weights[c]!, 12);
      }
      expect(training).toBeCloseTo(told.loss, 5);
      expect(evaluation).toBeCloseTo(told.loss, 5);
    },
  );

  test('multiply the loss of each example, in training and in evaluations; the error is the same', async () => {
    const plain = await measured({}, data);
    const losses = softmaxLosses(plain.values, LABELS, 3);
    expect(plain.training).toBeCloseTo(mean(losses), 5);
    const weights = [0.5, 2, 7];
    const weighed = await measured({ classWeights: weights }, data);
    const wanted = mean(losses.map((loss, i) => weights[LABELS[i]!]! * loss));
    expect(weighed.training).toBeCloseTo(wanted, 5);
    expect(weighed.evaluation).toBeCloseTo(wanted, 5);
    expect(weighed.error).toBe(plain.error);
    expect(weighed.gradient).not.toEqual(plain.gradient);
    // The gradient is that of a data set in which examples are repeated.
    const whole = await measured({ classWeights: [1, 2, 3] }, data);
    const repeated = [0, 1, 2].flatMap((c) =>
      Array.from({ length: c + 1 }, () =>
        LABELS.flatMap((label, i) => (label === c ? [i] : [])),
      ).flat(),
    );
    const twice = labelled(
      repeated.map((i) => LABELS[i]!),
      3,
    );
    twice.train.inputs.values = Float32Array.from(
      repeated.flatMap((i) => [inputs[2 * i]!, inputs[2 * i + 1]!]),
    );
    twice.train.inputs.shape = [repeated.length, 2];
    const other = await measured({}, twice);
    for (const [i, g] of whole.gradient.entries()) {
      expect(g * 60).toBeCloseTo(other.gradient[i]! * repeated.length, 3);
    }
  });

  test('are of shares of classes, of logarithms, of smoothed labels and of sequences too', async () => {
    const classWeights = [0.5, 2, 7];
    const labels = await measured({ classWeights }, data);
    const shares = {
      ...data,
      train: {
        ...data.train,
        targets: {
          values: Float32Array.from(
            LABELS.flatMap((label) => [0, 1, 2].map((c) => Number(c === label))),
          ),
          shape: [60, 3],
        },
      },
    };
    expect((await measured({ classWeights }, shares)).training).toBeCloseTo(labels.training, 6);
    expect((await measured({ classWeights: 'balanced' }, shares)).classWeights.targets).toEqual(
      balanced,
    );
    const logarithms = ({ tf, inputShape }: ModelArguments) =>
      tf.sequential({
        layers: [tf.layers.dense({ units: 3, inputShape, activation: 'logSoftmax' as never })],
      });
    const likelihood = { model: logarithms, loss: 'negativeLogLikelihood', classWeights } as const;
    expect((await measured(likelihood, data)).training).toBeCloseTo(labels.training, 5);
    const smooth = await measured({ classWeights, labelSmoothing: 0.3 }, data);
    expect(smooth.evaluation).toBe(labels.evaluation);
    const wanted = mean(
      LABELS.map((label, i) => {
        const all = softmaxLosses(labels.values.slice(3 * i, 3 * i + 3), [0], 3);
        const row = labels.values.slice(3 * i, 3 * i + 3);
        const log = row.map((x) => x - row[0]! - all[0]!);
        const truth = [0, 1, 2].map((c) => 0.1 + 0.7 * Number(c === label));
        return classWeights[label]! * -log.reduce((sum, l, c) => sum + l * truth[c]!, 0);
      }),
    );
    expect(smooth.training).toBeCloseTo(wanted, 5);
    const pairs = {
      ...data,
      train: {
        ...data.train,
        count: 30,
        inputs: { values: inputs, shape: [30, 4] },
        targets: { values: Int32Array.from(LABELS), shape: [30, 2] },
      },
    };
    const sequence = ({ tf, inputShape }: ModelArguments) =>
      tf.sequential({
        layers: [
          tf.layers.dense({ units: 6, inputShape }),
          tf.layers.reshape({ targetShape: [2, 3] }),
        ],
      });
    const two = await measured({ model: sequence, classWeights }, pairs);
    const each = softmaxLosses(two.values, LABELS, 3);
    expect(two.training).toBeCloseTo(
      mean(each.map((loss, i) => classWeights[LABELS[i]!]! * loss)),
      5,
    );
  });

  test('are of yes and no', async () => {
    const answers = LABELS.map((label) => Number(label === 2));
    const yesNo = labelled(answers);
    const own = { model: linear(1), loss: 'sigmoidCrossEntropy' } as const;
    const plain = await measured(own, yesNo);
    const losses = plain.values.map((x, i) => Math.log1p(Math.exp(answers[i] ? -x : x)));
    const { training, classWeights } = await measured({ ...own, classWeights: 'balanced' }, yesNo);
    expect(classWeights.targets).toEqual([60 / (2 * 55), 60 / (2 * 5)]);
    expect(training).toBeCloseTo(
      mean(losses.map((loss, i) => classWeights.targets![answers[i]!]! * loss)),
      5,
    );
    const smooth = await measured({ ...own, classWeights: { 1: 6 }, labelSmoothing: 0.2 }, yesNo);
    expect(smooth.classWeights.targets).toEqual([1, 6]);
    const wanted = plain.values.map((x, i) => {
      const [yes, no] = [Math.log1p(Math.exp(-x)), Math.log1p(Math.exp(x))];
      const share = 0.1 + 0.8 * answers[i]!;
      return (answers[i] ? 6 : 1) * (share * yes + (1 - share) * no);
    });
    expect(smooth.training).toBeCloseTo(mean(wanted), 5);
  });

  test('by the name of the class or its number; classes that are left out have 1', async () => {
    const named = { ...data, classes: ['cat', 'dog', 'owl'] };
    expect(
      (await measured({ classWeights: { owl: 7, 0: 0.5 } }, named)).classWeights.targets,
    ).toEqual([0.5, 1, 7]);
    await expect(measured({ classWeights: { owls: 7 } }, named)).rejects.toThrow(
      /has the class "owls".*did you mean "owl"/,
    );
    await expect(measured({ classWeights: { 3: 7 } }, data)).rejects.toThrow(
      /has the class "3".*allowed: 0 to 2/,
    );
    await expect(measured({ classWeights: [1, 2] }, data)).rejects.toThrow(
      /2 numbers for 3 classes/,
    );
  });

  test('need a loss that can have them', async () => {
    const own = (targets: { mul(by: number): never }) => targets.mul(1);
    await expect(measured({ loss: own as never, classWeights: 'balanced' }, data)).rejects.toThrow(
      /needs one of the losses softmaxCrossEntropy.*the loss is a function, which can weigh its examples itself/,
    );
    const numbers = {
      model: linear(1),
      loss: 'meanSquaredError',
      classWeights: 'balanced',
    } as const;
    await expect(measured(numbers, labelled(LABELS))).rejects.toThrow(
      /the loss is 'meanSquaredError'/,
    );
    const several = {
      ...labelled(LABELS),
      train: {
        ...labelled(LABELS).train,
        targets: { values: Int32Array.from(LABELS.flatMap(() => [0, 1])), shape: [60, 2] },
      },
    };
    const manyAnswers = {
      model: linear(2),
      loss: 'sigmoidCrossEntropy',
      classWeights: [1, 2],
    } as const;
    await expect(measured(manyAnswers, several)).rejects.toThrow(
      /the targets have 2 answers of yes or no/,
    );
    await expect(measured({ classWeights: { kind: 'balanced' } }, data)).rejects.toThrow(
      /names the output 'kind'/,
    );
  });

  test.each([
    ['a wrong name', 'balance'],
    ['a negative number', [1, -1]],
    ['no number above 0', [0, 0]],
    ['NaN', { yes: Number.NaN }],
    ['nothing', {}],
  ])('%s is refused with what is allowed', (_, classWeights) => {
    const experiment = {
      data: () => data,
      model: linear(3),
      loss: 'softmaxCrossEntropy',
      classWeights,
    };
    expect(() => mustBeExperiment(experiment, 'my.ts')).toThrow(
      /classWeights is .*allowed: 'balanced', an array/,
    );
  });

  test('are not allowed beside an objective', () => {
    const experiment = {
      data: () => data,
      model: linear(3),
      objective: () => 0,
      classWeights: 'balanced',
    };
    expect(() => mustBeExperiment(experiment, 'my.ts')).toThrow(
      /classWeights is not allowed beside objective/,
    );
  });

  test('of several outputs are by their names', async () => {
    const both = dataOf({
      train: {
        inputs: { x: { values: inputs, shape: [60, 2] } },
        targets: {
          kind: { values: Int32Array.from(LABELS), shape: [60], classes: ['cat', 'dog', 'owl'] },
          size: { values: Float32Array.from(LABELS), shape: [60, 1] },
        },
      },
    });
    const model = ({ tf }: ModelArguments) => {
      const x = tf.input({ shape: [2], name: 'x' });
      const outputs = [
        tf.layers.dense({ units: 3, name: 'kind' }).apply(x),
        tf.layers.dense({ units: 1, name: 'size' }).apply(x),
      ];
      return tf.model({ inputs: [x], outputs: outputs as never });
    };
    const loss = { kind: 'softmaxCrossEntropy', size: 'meanSquaredError' } as const;
    const own = { model, loss };
    const plain = await measured(own, both);
    const weighed = await measured({ ...own, classWeights: { kind: 'balanced' } }, both);
    expect(weighed.classWeights).toEqual({ kind: balanced });
    const kinds = plain.values.length / 60;
    const losses = softmaxLosses(
      LABELS.flatMap((_, i) => plain.values.slice(i * kinds, i * kinds + 3)),
      LABELS,
      3,
    );
    const more = mean(losses.map((each, i) => (balanced[LABELS[i]!]! - 1) * each));
    expect(weighed.training - plain.training).toBeCloseTo(more, 5);
    await expect(measured({ ...own, classWeights: 'balanced' }, both)).rejects.toThrow(
      /the targets 'kind', 'size': give an object/,
    );
    await expect(measured({ ...own, classWeights: { kinds: 'balanced' } }, both)).rejects.toThrow(
      /did you mean 'kind'/,
    );
    await expect(measured({ ...own, classWeights: { size: 'balanced' } }, both)).rejects.toThrow(
      /for the output 'size' needs one of the losses/,
    );
  });

  test('of a source are those of its training part, as of arrays', async () => {
    const split = resolveConfig({ seed: 3, validationFraction: 0.3 });
    const own = {
      model: linear(3),
      loss: 'softmaxCrossEntropy',
      classWeights: 'balanced',
    } as unknown as Experiment;
    const options = prepareOptions(own, split);
    const source: ExampleSource = {
      count: 60,
      fields: {
        inputs: { shape: [2], type: 'float32' },
        targets: { shape: [], type: 'int32', classCount: 3 },
      },
      read: (indices) => ({
        inputs: Float32Array.from(
          [...indices].flatMap((i) => [inputs[2 * i]!, inputs[2 * i + 1]!]),
        ),
        targets: Int32Array.from([...indices], (i) => LABELS[i]!),
      }),
    };
    const weightsOf = async (data: ExperimentData) => {
      const parts = await prepareAny(data, options, { log: () => {} });
      const model = await buildModel(own, split, parts, { record: false });
      model.dispose();
      return model.classWeights.targets;
    };
    const stored = await weightsOf(dataOf({ train: source }));
    expect(stored).toEqual(await weightsOf(data));
    expect(stored).not.toEqual(balanced);
  });
});

test('`check` does not call answers worse where the loss weighs classes and the error does not', async () => {
  // Nothing tells the classes apart: weights bring the errors to the frequent class.
  const labels = Array.from({ length: 400 }, (_, i) => Number(i % 20 === 0));
  const noise = Float32Array.from({ length: 800 }, (_, i) => Math.sin(1 + 7 * i));
  const data = {
    train: {
      count: 400,
      inputs: { values: noise, shape: [400, 2] },
      targets: { values: Int32Array.from(labels), shape: [400] },
    },
    classCount: 2,
    source: 'made',
  };
  // It begins by answering with the frequent class.
  const model = ({ tf, inputShape }: ModelArguments) =>
    tf.sequential({
      layers: [
        tf.layers.dense({
          ...{ units: 2, inputShape, biasInitializer: tf.initializers.constant({ value: 0.5 }) },
          kernelInitializer: 'zeros',
        }),
        tf.layers.dense({
          ...{ units: 2, useBias: false },
          kernelInitializer: tf.initializers.constant({ value: 1 }),
        }),
      ],
    });
  const findingsOf = async (more: Partial<Experiment>) => {
    const own = { model, loss: 'softmaxCrossEntropy', ...more } as Experiment;
    const prepared = await prepareAny(
      { validation: data.train, ...data },
      prepareOptions(own, config),
      {
        log: () => {},
      },
    );
    const trial = resolveConfig({ seed: 1, validationFraction: 0.5, learningRate: 0.5 });
    const findings = await checkExperiment({
      ...{ experiment: own, config: trial, prepared, steps: 60 },
      updater: (layout, initial) => createUpdater(layout, trial, initial),
    });
    return Object.fromEntries(findings.map((found) => [found.check, found]));
  };
  const plain = await findingsOf({});
  expect(plain.direction!.text).not.toContain('weighs');
  expect(plain.classes!.next).toContain("set classWeights: 'balanced'");
  const weighed = await findingsOf({ classWeights: 'balanced' });
  expect(weighed.direction).toMatchObject({
    verdict: 'ok',
    text: expect.stringContaining('weighs the classes'),
  });
  expect(weighed.classes!.next).not.toContain('classWeights');
  expect(weighed['initial-loss']!.verdict).toBe('ok');
}, 60_000);
