import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { defineExperiment, textWindows } from 'downpour';

/** A language model of characters by one LSTM: which character follows. The text is `input.txt`, such as tinyshakespeare. */
const WINDOW = 64;

export default defineExperiment({
  data: ({ folder, log }) => {
    const files = ['input.txt', 'tinyshakespeare/input.txt'].map((name) => join(folder, name));
    return textWindows({
      file: files.find(existsSync) ?? files[0]!,
      window: WINDOW,
      validationFraction: 0.1,
      log,
    });
  },

  model: ({ tf, classCount }) =>
    tf.sequential({
      layers: [
        tf.layers.embedding({ inputDim: classCount, outputDim: 64, inputLength: WINDOW }),
        tf.layers.lstm({
          ...{ units: 128, returnSequences: true },
          recurrentActivation: 'sigmoid',
          // A gate that is open at the beginning lets gradients through: Deep Learning §10.10.1.
          unitForgetBias: true,
        }),
        tf.layers.dense({ units: classCount }),
      ],
    }),
  // In nats for each character.
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: 32,
    learningRate: 0.004,
    optimizer: { kind: 'adam' },
    // A long product of matrices may explode: Deep Learning §10.11.1.
    clip: { norm: 1 },
    earlyStopping: { patience: 3, metric: 'loss' },
    epochsMax: 15,
  },
});
