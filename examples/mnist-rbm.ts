import { defineExperiment, loadMnist, type Tensor } from 'downpour';

/**
 * A restricted Boltzmann machine of digits, trained by contrastive divergence with one step of Gibbs sampling (Hinton 2002;
 * Deep Learning §18.2, §20.2). That is not the gradient of any loss, so the objective returns the gradients themselves.
 */
export default defineExperiment({
  data: async ({ folder, log }) => {
    const { train, test, source } = await loadMnist({ dataFolder: folder, log });
    // Grey pixels are the probabilities of white ones.
    return { train: { inputs: train.inputs }, test: { inputs: test!.inputs }, source };
  },

  model: ({ tf, seed, inputShape, hyperparameters }) => {
    const { hidden = 128 } = hyperparameters as Record<string, number>;
    const pixels = inputShape.reduce((product, size) => product * size, 1);
    const variables = {
      weights: tf.variable(tf.randomNormal([pixels, hidden], 0, 0.01, 'float32', seed + 1)),
      // Most pixels are black.
      visible: tf.variable(tf.fill([pixels], -2)),
      hidden: tf.variable(tf.zeros([hidden])),
    };
    // What `downpour predict` shows: the probabilities of the hidden units.
    const predict = (inputs: Tensor) =>
      tf.sigmoid(inputs.reshape([-1, pixels]).matMul(variables.weights).add(variables.hidden));
    return { variables, predict };
  },

  objective: ({ model, batch, random, training, tf }) => {
    const { weights, visible, hidden } = model.variables as Record<string, Tensor>;
    const pixels = batch.inputs.reshape([-1, weights!.shape[0]!]);
    const count = pixels.shape[0]!;
    const hiddenOf = (v: Tensor) => v.matMul(weights!).add(hidden!).sigmoid();
    const up = hiddenOf(pixels);
    const states = tf.cast(random.uniform(up.shape).less(up), 'float32');
    const rebuilt = tf.matMul(states, weights!, false, true).add(visible!).sigmoid();
    // What is reported: the squared distance of each digit and what the machine makes of it.
    const error = rebuilt.sub(pixels).square().sum(1);
    if (!training) return { error };
    const again = hiddenOf(rebuilt);
    return {
      error,
      gradients: {
        weights: tf
          .matMul(rebuilt, again, true)
          .sub(tf.matMul(pixels, up, true))
          .div(count),
        visible: rebuilt.sub(pixels).mean(0),
        hidden: again.sub(up).mean(0),
      },
    };
  },

  config: {
    validationFraction: 0.05,
    minibatchSize: 100,
    learningRate: 0.1,
    optimizer: { kind: 'momentum', momentum: 0.5 },
    earlyStopping: { enabled: false },
    epochsMax: 5,
  },
});
