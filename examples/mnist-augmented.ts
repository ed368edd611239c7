import { defineExperiment, loadMnist } from 'downpour';
import { augment } from 'downpour/images';

/** So many training digits; other ones for each seed. */
const DIGITS = 1_000;
const STEPS = 1_500;
const moved = augment('digits');

/**
 * What augmentation is worth with few examples: `downpour ablate examples/mnist-augmented.ts --repeats 5`. The test digits are
 * the validation part and are looked at once, after the last step.
 */
export default defineExperiment({
  data: async ({ folder, seed, log }) => {
    const { train, test, ...rest } = await loadMnist({ dataFolder: folder, log });
    const start = (seed * DIGITS) % (train.count - DIGITS + 1);
    const size = train.inputs.values.length / train.count;
    const inputs = train.inputs.values.slice(start * size, (start + DIGITS) * size);
    const few = {
      count: DIGITS,
      inputs: { values: inputs, shape: [DIGITS, ...train.inputs.shape.slice(1)] },
      targets: { values: train.targets.values.slice(start, start + DIGITS), shape: [DIGITS] },
    };
    return { ...rest, train: few, validation: test! };
  },
  standardise: 'global',

  batch: (fields, args) => (args.hyperparameters.augment === false ? fields : moved(fields, args)),

  model: ({ tf, inputShape, classCount }) => {
    const convolution = (filters: number, shape = {}) => [
      tf.layers.conv2d({ filters, kernelSize: 5, strides: 2, padding: 'same', ...shape }),
      tf.layers.batchNormalization({ momentum: 0.9 }),
      tf.layers.reLU(),
    ];
    return tf.sequential({
      layers: [
        ...convolution(16, { inputShape }),
        ...convolution(32),
        tf.layers.flatten(),
        tf.layers.dropout({ rate: 0.3 }),
        tf.layers.dense({ units: classCount }),
      ],
    });
  },
  loss: 'softmaxCrossEntropy',

  ablate: {
    'as they are': { hyperparameters: { augment: false } },
    augmented: { hyperparameters: { augment: true } },
  },

  config: {
    minibatchSize: 50,
    learningRate: 0.002,
    optimizer: { kind: 'adam' },
    schedule: { kind: 'cosine', steps: STEPS, floor: 0.01 },
    averaging: { kind: 'ema', decay: 0.99 },
    stepsMax: STEPS,
    evaluateEverySteps: STEPS,
  },
});
