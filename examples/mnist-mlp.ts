import { defineExperiment, loadMnist } from 'downpour';

/** Handwritten digits by a network with one hidden layer. */
export default defineExperiment({
  data: ({ folder, log }) => loadMnist({ dataFolder: folder, log }),

  model: ({ tf, hyperparameters, inputShape, classCount }) => {
    const { units = 256, dropout = 0.2 } = hyperparameters;
    return tf.sequential({
      layers: [
        tf.layers.flatten({ inputShape }),
        tf.layers.dense({
          units: Number(units),
          activation: 'relu',
          kernelInitializer: 'heNormal',
        }),
        tf.layers.dropout({ rate: Number(dropout) }),
        // Logits: the softmax is in the loss.
        tf.layers.dense({ units: classCount }),
      ],
    });
  },
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: 64,
    // Momentum adds to what staleness does: at 0.05 four workers no longer agree on a direction.
    learningRate: 0.02,
    optimizer: { kind: 'momentum', momentum: 0.9 },
    averaging: { kind: 'ema', decay: 0.999 },
    schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
    earlyStopping: { patience: 3, minImprovement: 0.0005 },
    epochsMax: 30,
  },
});
