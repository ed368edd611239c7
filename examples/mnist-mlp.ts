import { defineExperiment, loadMnist } from 'downpour';
import { layers } from 'downpour/layers';

/** Handwritten digits by a network with one hidden layer. */
export default defineExperiment({
  data: ({ folder, log }) => loadMnist({ dataFolder: folder, log }),

  model: (args) =>
    args.tf.sequential({
      layers: [
        // A layer of ReLUs, as long as no hyperparameter wants another: docs/layers.md.
        ...layers.hidden(args, { units: 256, dropout: 0.2 }),
        // Logits: the softmax is in the loss.
        args.tf.layers.dense({ units: args.classCount }),
      ],
    }),
  loss: 'softmaxCrossEntropy',
  // Also by those who open /join: docs/join.md.
  browser: true,

  config: {
    minibatchSize: 64,
    learningRate: 0.02,
    optimizer: { kind: 'momentum', momentum: 0.9 },
    averaging: { kind: 'ema', decay: 0.999 },
    schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
    earlyStopping: { patience: 3, minImprovement: 0.0005 },
    epochsMax: 30,
  },
});
