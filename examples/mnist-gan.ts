import { defineExperiment, loadMnist, type Tensor } from 'downpour';

/**
 * A generative adversarial network of digits (Goodfellow et al. 2014; Deep Learning §20.10.4). It has two groups of
 * parameters with two losses: each loss reaches the parameters of the group that has its name, from one forward pass.
 */
export default defineExperiment({
  data: async ({ folder, log }) => {
    const { train, test, source } = await loadMnist({ dataFolder: folder, log });
    return { train: { inputs: train.inputs }, test: { inputs: test!.inputs }, source };
  },

  model: ({ tf, inputShape, hyperparameters }) => {
    const { code = 64 } = hyperparameters as Record<string, number>;
    const pixels = inputShape.reduce((product, size) => product * size, 1);
    const { dense, batchNormalization, leakyReLU, dropout } = tf.layers;
    return {
      generator: tf.sequential({
        layers: [
          dense({ units: 256, inputShape: [code] }),
          batchNormalization({ momentum: 0.9 }),
          leakyReLU({ alpha: 0.2 }),
          dense({ units: 512 }),
          batchNormalization({ momentum: 0.9 }),
          leakyReLU({ alpha: 0.2 }),
          dense({ units: pixels, activation: 'sigmoid' }),
        ],
      }),
      discriminator: tf.sequential({
        layers: [
          dense({ units: 512, inputShape: [pixels] }),
          leakyReLU({ alpha: 0.2 }),
          dropout({ rate: 0.3 }),
          dense({ units: 256 }),
          leakyReLU({ alpha: 0.2 }),
          dropout({ rate: 0.3 }),
          dense({ units: 1 }),
        ],
      }),
    };
  },

  objective: ({ model, batch, random, training, hyperparameters, tf }) => {
    const { code = 64 } = hyperparameters as Record<string, number>;
    const count = batch.inputs.shape[0]!;
    const real = batch.inputs.reshape([count, -1]);
    const made = model.generator!.apply(random.normal([count, code]));
    const [onReal, onMade] = [real, made].map((x) => model.discriminator!.apply(x));
    const loss = {
      generator: tf.softplus(onMade!.neg()),
      discriminator: tf.add(tf.softplus(onReal!.neg()), tf.softplus(onMade!)),
    };
    if (training) return { loss };
    // Losses of a game say little. How far the made digits are from the real ones: maximum mean discrepancy (§20.10.4).
    const kernel = (a: Tensor, b: Tensor) => {
      const squares = [a, b].map((x) => x.square().sum(1, true));
      const distances = squares[0]!
        .add(squares[1]!.transpose())
        .sub(tf.matMul(a, b, false, true).mul(2));
      return tf.addN([25, 50, 100, 200].map((width) => distances.div(-width).exp()));
    };
    const apart = (x: Tensor) => tf.sub(kernel(x, x).sum(), 4 * count).div(count * (count - 1));
    const error = apart(real).add(apart(made)).sub(kernel(real, made).mean().mul(2));
    return { loss, error };
  },

  config: {
    minibatchSize: 100,
    learningRate: 0.0002,
    optimizer: { kind: 'adam', beta1: 0.5 },
    groups: { generator: {}, discriminator: {} },
    averaging: { kind: 'ema', decay: 0.999 },
    validationFraction: 0.05,
    earlyStopping: { enabled: false, metric: 'error' },
    epochsMax: 30,
  },
});
