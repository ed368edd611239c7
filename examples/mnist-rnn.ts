import { defineExperiment, loadMnist } from 'downpour';
import { layers } from 'downpour/layers';

/**
 * Handwritten digits by recurrent layers instead of the convolutions of mnist-cnn. They read the rows of an image in
 * both directions, then its columns (ReNet, Visin et al. 2015; Deep Learning §10.3). As there, patches of 2 × 2 pixels are
 * the steps of a row.
 */
export default defineExperiment({
  data: ({ folder, log }) => loadMnist({ dataFolder: folder, log }),
  standardise: 'global',

  model: ({ tf, inputShape, classCount, hyperparameters }) => {
    const { units = 24, cell = 'gru', dropout = 0.3 } = hyperparameters;
    const patches = { kernelSize: 2, strides: 2, filters: 2 * Number(units) };
    const reader = { units: Number(units), cell: cell as 'gru' | 'lstm' | 'simpleRNN' };
    return tf.sequential({
      layers: [
        tf.layers.conv2d({ ...patches, inputShape }),
        ...layers.rowsAndColumns(reader),
        tf.layers.conv2d(patches),
        ...layers.rowsAndColumns(reader),
        tf.layers.flatten(),
        tf.layers.dropout({ rate: Number(dropout) }),
        tf.layers.dense({ units: classCount }),
      ],
    });
  },
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: 64,
    learningRate: 0.002,
    optimizer: { kind: 'adam' },
    // A long product of matrices may explode: Deep Learning §10.11.1.
    clip: { norm: 1 },
    averaging: { kind: 'ema', decay: 0.999 },
    schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
    earlyStopping: { patience: 3 },
    epochsMax: 8,
  },
});
