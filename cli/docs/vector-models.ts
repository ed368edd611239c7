import { resolveConfig } from '../../shared/config.ts';
import type { Lease } from '../../shared/protocol.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { evaluate } from '../../worker/evaluate.ts';
import { type Experiment, loadExperiment, type Measure } from '../../worker/experiment.ts';
import { errorMeasureOf, misclassification, namedLoss } from '../../worker/losses.ts';
import { createOrders } from '../../worker/minibatches.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { tf } from '../../worker/tf.ts';
import { columnOf, shorter, splitFields, times } from './vector-facts.ts';

/** Losses and gradients among the vectors for workers in other languages, as TensorFlow.js computes them. */

const EXPERIMENT = new URL('../../examples/mnist-mlp.ts', import.meta.url).pathname;

export async function modelVectors() {
  await openEngine({ engine: 'cpu' });
  return { losses: lossVectors(), gradients: await gradientVectors() };
}

/** What the built-in losses make of predictions: the mean over the examples, and the error. */
function lossVectors() {
  const logits = [
    [1.5, -0.25, 0.5],
    [-2, 0, 100],
    [0.125, 0.25, -0.5],
    [3, 2, 1],
  ];
  const classes = { targets: [0, 2, 2, 1], predictions: logits };
  const answers = { targets: [1, 0, 1, 0], predictions: [[0.5], [-30], [-0.25], [2]] };
  const shares = logits.map((row) => row.map((x) => Math.log(Math.abs(x) + 0.125)));
  const values = { targets: [1, 0.5, -2, 3], predictions: [[1.25], [0], [2], [-30]] };
  const cases = [
    { loss: 'softmaxCrossEntropy', labelSmoothing: 0, ...classes },
    { loss: 'softmaxCrossEntropy', labelSmoothing: 0.1, ...classes },
    { loss: 'negativeLogLikelihood', labelSmoothing: 0, ...classes, predictions: shares },
    { loss: 'sigmoidCrossEntropy', labelSmoothing: 0, ...answers },
    { loss: 'sigmoidCrossEntropy', labelSmoothing: 0.1, ...answers },
    { loss: 'meanSquaredError', labelSmoothing: 0, ...values },
    { loss: 'meanAbsoluteError', labelSmoothing: 0, ...values },
  ] as const;
  return cases.map((each) => {
    const { loss, labelSmoothing, targets, predictions } = each;
    const integers = !loss.startsWith('mean');
    const classCount = !integers ? 0 : loss === 'sigmoidCrossEntropy' ? 2 : 3;
    const ofTargets = { targetShape: [], classCount, shares: false, integers };
    const shape = { inputShape: [1], ...ofTargets, fields: [] };
    const measured = (measure: Measure) =>
      tf.tidy(() => {
        const truth = tf.tensor1d([...targets], integers ? 'int32' : 'float32');
        const told = tf.tensor2d(predictions.map((row) => [...row]));
        return shorter(measure(truth, told).dataSync()[0]!);
      });
    const value = measured(namedLoss(loss, shape, { smoothing: labelSmoothing }));
    const outputShape = [predictions[0]!.length];
    const experiment = { loss } as Experiment;
    const counts = errorMeasureOf(experiment) === 'misclassification';
    const error = counts ? measured(misclassification(loss, shape, outputShape)) : value;
    return { ...each, classCount, value, error };
  });
}

/** Loss, gradient and evaluation of examples/mnist-mlp.ts on little pictures, without dropout. */
async function gradientVectors() {
  const count = 20;
  const columns = (n: number, factor: number) => ({
    count: n,
    inputs: {
      values: Uint8Array.from(times(9 * n, (i) => (i * factor) % 256)),
      shape: [n, 3, 3, 1],
    },
    targets: { values: Uint8Array.from(times(n, (i) => (i * 7) % 3)), shape: [n] },
  });
  const data: ExperimentData = {
    ...{ train: columns(count, 37), test: columns(9, 101) },
    ...{ classCount: 3, source: 'little pictures' },
  };
  const experiment = await loadExperiment(EXPERIMENT);
  const config = resolveConfig({
    ...{ seed: 6, minibatchSize: 7, evaluateTraining: 5 },
    hyperparameters: { units: 5, dropout: 0 },
  });
  const prepared = prepareData(data, prepareOptions(experiment, config));
  const model = await buildModel(experiment, config, prepared);
  const drawn = await model.initialise(config.seed);
  // Few digits; exact in f32.
  const parameters = drawn.map((value) => Math.round(value * 1024) / 1024);
  model.load(parameters);
  const { layout } = model;
  // The second is the last of its epoch, and smaller.
  const leases: Lease[] = [
    { id: 1, epoch: 0, start: 0, count: 7, part: 'train' },
    { id: 3, epoch: 0, start: 14, count: 2, part: 'train' },
    { id: 4, epoch: 5, start: 7, count: 7, part: 'trainAndValidation' },
  ];
  const pushes = [];
  for (const lease of leases) {
    const rows = createOrders(config.seed, prepared)(lease);
    const { loss, gradient } = await model.step(gather(prepared, lease.part, rows), 0);
    pushes.push({ lease, loss: shorter(loss), gradient: [...gradient].map(shorter) });
  }
  const evaluations = [];
  for (const part of ['train', 'validation', 'test'] as const) {
    const alsoTraining = part === 'validation' ? config.evaluateTraining : 0;
    const result = await evaluate(model, parameters, prepared, part, { alsoTraining });
    const metrics = Object.fromEntries(
      Object.entries(result.metrics).map(([name, value]) => [name, value && shorter(value)]),
    );
    const { loss, error, examples } = result;
    evaluations.push({ part, loss: shorter(loss!), error: shorter(error!), examples, metrics });
  }
  model.dispose();
  const { evaluateTraining, hyperparameters } = config;
  return [
    {
      experiment: 'mnist-mlp',
      config: { ...splitFields(config), hyperparameters, evaluateTraining },
      classCount: 3,
      parts: {
        train: { inputs: columnOf(data.train.inputs), targets: columnOf(data.train.targets) },
        test: { inputs: columnOf(data.test!.inputs), targets: columnOf(data.test!.targets) },
      },
      tensors: layout.tensors.map(({ name, shape, role }) => ({ name, shape, role })),
      ...{ parameters: [...parameters], pushes, evaluations },
    },
  ];
}
