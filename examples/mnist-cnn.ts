import { defineExperiment, loadMnist } from 'downpour';

/** Handwritten digits by a small convolutional network with batch normalisation. */
export default defineExperiment({
  data: ({ folder, log }) => loadMnist({ dataFolder: folder, log }),
  standardise: 'global',

  model: ({ tf, inputShape, classCount, hyperparameters }) => {
    const { unitsTimes = 1, batchNorm = true, dropout = 0.3 } = hyperparameters;
    const convolution = (filters: number, shape?: number[]) => [
      tf.layers.conv2d({
        filters: Math.round(filters * Number(unitsTimes)),
        kernelSize: 5,
        padding: 'same',
        // No bias: the batch normalisation has its own offset.
        useBias: batchNorm !== true,
        kernelInitializer: 'heNormal',
        ...(shape ? { inputShape: shape } : {}),
      }),
      // Pool first: that leaves a quarter of the values to normalise.
      tf.layers.maxPooling2d({ poolSize: 2 }),
      ...(batchNorm === true ? [tf.layers.batchNormalization({ momentum: 0.9 })] : []),
      tf.layers.reLU(),
    ];
    return tf.sequential({
      layers: [
        ...convolution(16, inputShape),
        ...convolution(32),
        tf.layers.flatten(),
        tf.layers.dropout({ rate: Number(dropout) }),
        // No softmax here: the loss applies it to these logits.
        tf.layers.dense({ units: classCount }),
      ],
    });
  },
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: 64,
    learningRate: 0.001,
    optimizer: { kind: 'adam' },
    averaging: { kind: 'ema', decay: 0.999 },
    schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
    earlyStopping: { patience: 3 },
    epochsMax: 8,
  },
});
