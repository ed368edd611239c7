import { fileURLToPath } from 'node:url';
import { defineExperiment, loadCsv } from 'downpour';
import { layers } from 'downpour/layers';

/** Miles per gallon of 392 cars from a CSV file, by a small network. */
export default defineExperiment({
  data: () =>
    loadCsv(fileURLToPath(new URL('./data/auto-mpg.csv', import.meta.url)), {
      targets: ['mpg'],
      categorical: ['origin'],
      ignore: ['name'],
    }),
  // Each column gets mean 0 and deviation 1, computed from the training part only.
  standardise: 'feature',

  model: (args) => {
    const { tf } = args;
    return tf.sequential({
      layers: [
        ...layers.hidden(args, { units: 32, activation: 'tanh' }),
        tf.layers.dense({ units: 1, biasInitializer: tf.initializers.constant({ value: 23 }) }),
      ],
    });
  },
  loss: 'meanSquaredError',
  // In miles per gallon.
  error: (targets, predictions) => targets.sub(predictions).abs().mean(),

  config: {
    minibatchSize: 16,
    learningRate: 0.01,
    optimizer: { kind: 'adam' },
    weightDecay: { rate: 0.001 },
    earlyStopping: { patience: 20, metric: 'loss' },
    epochsMax: 200,
  },
});
