import { defineExperiment, loadMnist } from 'downpour';
import { layers } from 'downpour/layers';

/** Handwritten digits by a network with one hidden layer. */
export default defineExperiment({
  data: ({ folder, log }) => loadMnist({ dataFolder: folder, log }),

  model: (args) =>
    args.tf.sequential({
      layers: [
        // One layer of ReLUs, unless a hyperparameter changes it: docs/layers.md.
        ...layers.hidden(args, { units: 256, dropout: 0.2 }),
        // No softmax here: the loss applies it to these logits.
        args.tf.layers.dense({ units: args.classCount }),
      ],
    }),
  loss: 'softmaxCrossEntropy',
  // Browsers that open /join may train this experiment too: docs/join.md.
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
