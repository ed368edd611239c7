import { expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { predictionsOf } from '../../shared/prediction.ts';
import { answersOf } from '../../worker/answers.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { evaluate } from '../../worker/evaluate.ts';
import type { Experiment, LossName } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { useModels } from '../support/models.ts';

// Answers one by one have the losses of an evaluation, whatever form the targets have.

const COUNT = 60;
const config = resolveConfig({ seed: 4, minibatchSize: 8, learningRate: 0.05 });
const models = useModels();

/** Probabilities of three classes, none of them 0 or 1. */
const soft = Array.from({ length: COUNT }, (_, i) => {
  const rest = 0.1 + (i % 5) / 20;
  return [0, 1, 2].map((c) => (c === i % 3 ? 1 - rest : rest / 2));
});
const oneHot = Array.from({ length: COUNT }, (_, i) => [0, 1, 2].map((c) => (c === i % 3 ? 1 : 0)));

async function answered(loss: LossName, targets: readonly (readonly number[])[]) {
  const experiment: Experiment = {
    data: () => ({
      train: {
        inputs: { values: soft.map((_, i) => [Math.sin(i), Math.cos(3 * i)]) },
        targets: { values: targets },
      },
      classes: ['a', 'b', 'c'],
    }),
    model: ({ tf, inputShape }) =>
      tf.sequential({ layers: [tf.layers.dense({ units: 3, inputShape })] }),
    loss,
  };
  const given = dataOf(await experiment.data({} as never));
  const prepared = prepareData(given, prepareOptions(experiment, config));
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  const parameters = await model.initialise(4);
  const evaluation = await evaluate(model, parameters, prepared, 'validation');
  model.load(parameters);
  const { answers } = await answersOf(model, experiment, prepared, { part: 'validation' });
  const mean = answers.losses.reduce((a, b) => a + b, 0) / answers.count;
  return { answers, evaluation, mean };
}

test.each([
  ['softmaxCrossEntropy', soft, 'classes'],
  ['softmaxCrossEntropy', oneHot, 'classes'],
  ['meanSquaredError', oneHot, 'numbers'],
  ['meanAbsoluteError', soft, 'numbers'],
] as const)('%s of rows with a number for each class', async (loss, targets, kind) => {
  const { answers, evaluation, mean } = await answered(loss, targets);
  expect(answers.kind).toBe(kind);
  expect(mean).toBeCloseTo(evaluation.loss!, 5);
});

test('one-hot rows that are learnt by a squared error are answered by numbers, with the names of the classes', async () => {
  const { answers } = await answered('meanSquaredError', oneHot);
  const [first] = predictionsOf(answers, answers.count, {
    ...{ classes: ['a', 'b', 'c'], targetNames: null },
  });
  const [a, b, c] = Array.from(answers.outputs.subarray(0, 3), (x) => Number(x.toPrecision(7)));
  expect(first).toEqual({ prediction: { a, b, c } });
  // A class number has one name, which is that of none of the three outputs.
  const named = predictionsOf(answers, answers.count, { classes: null, targetNames: ['kind'] });
  expect(Object.keys(named[0]!.prediction)).toEqual(['0', '1', '2']);
});
