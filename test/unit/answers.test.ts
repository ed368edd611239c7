import { expect, test } from 'vitest';
import { answerLines } from '../../shared/answer-lines.ts';
import type { Answers } from '../../shared/answers.ts';
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

test('several questions of yes and no are answered by their names, wherever these stand', () => {
  const answers: Pick<Answers, 'kind' | 'width' | 'count' | 'outputs'> = {
    ...{ kind: 'binary', width: 1, count: 6, outputs: Float32Array.of(3, -3, 3, -3, -3, 3) },
  };
  const names = ['sunny', 'warm', 'both'];
  for (const given of [
    { classes: null, targetNames: names },
    { classes: names, targetNames: null },
  ]) {
    const [first, second] = predictionsOf(answers, 2, given);
    expect(first!.prediction).toEqual({ sunny: '1', warm: '0', both: '1' });
    expect(second!.prediction).toEqual({ sunny: '0', warm: '0', both: '1' });
    expect(first!.confidence).toEqual({ sunny: 0.9525741, warm: 0.9525741, both: 0.9525741 });
    expect(first!.probabilities).toMatchObject({ sunny: { 1: 0.9525741 }, warm: { 0: 0.9525741 } });
    const whole: Answers = {
      ...answers,
      perExample: 3,
      losses: new Float64Array(6),
      truths: new Int32Array(6),
    };
    const [line] = answerLines(whole, Int32Array.of(0, 1), given, String);
    expect([line!.truth, line!.answer]).toEqual(['sunny 0', 'sunny 1']);
  }
  // Without names it is a list; one question of two classes has their names.
  const plain = predictionsOf(answers, 2, { classes: null, targetNames: ['one'] });
  expect(plain[0]!.prediction).toEqual(['1', '0', '1']);
  const single = predictionsOf(answers, 6, { classes: ['no', 'yes'], targetNames: ['rain'] });
  expect(single.map(({ prediction }) => prediction)).toEqual([
    'yes',
    'no',
    'yes',
    'no',
    'no',
    'yes',
  ]);
});
