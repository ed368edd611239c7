import { defineExperiment, loadMnist } from 'downpour';

/**
 * A variational autoencoder of digits (Kingma and Welling 2014; Deep Learning §20.10.3). Its loss is the negative
 * evidence lower bound, in nats: what it costs to tell the pixels, and how far the code is from a normal distribution.
 */
export default defineExperiment({
  data: async ({ folder, log }) => {
    const { train, test, source } = await loadMnist({ dataFolder: folder, log });
    // There is nothing to predict: the pixels are all there is.
    return { train: { inputs: train.inputs }, test: { inputs: test!.inputs }, source };
  },

  model: ({ tf, inputShape, hyperparameters }) => {
    const { code = 20, units = 400 } = hyperparameters as Record<string, number>;
    const pixels = inputShape.reduce((product, size) => product * size, 1);
    const dense = (units: number, inputSize?: number, activation?: 'relu') =>
      tf.layers.dense({
        units,
        ...(inputSize === undefined ? {} : { inputShape: [inputSize] }),
        ...(activation ? { activation } : {}),
        kernelInitializer: 'glorotUniform',
      });
    return {
      encoder: tf.sequential({ layers: [dense(units, pixels, 'relu'), dense(2 * code)] }),
      decoder: tf.sequential({ layers: [dense(units, code, 'relu'), dense(pixels)] }),
    };
  },

  objective: ({ model, batch, random, tf }) => {
    const pixels = batch.inputs.reshape([batch.inputs.shape[0]!, -1]);
    const [mean, logVariance] = tf.split(model.encoder!.apply(pixels), 2, 1);
    const noise = random.normal(mean!.shape);
    const code = mean!.add(noise.mul(logVariance!.mul(0.5).exp()));
    const logits = model.decoder!.apply(code);
    // Cross-entropy of grey pixels, from logits: max(x, 0) − x·z + log(1 + e^−|x|).
    const tells = logits.relu().sub(logits.mul(pixels)).add(logits.abs().neg().exp().log1p());
    const far = mean!.square().add(logVariance!.exp()).sub(logVariance!).sub(1).mul(0.5);
    return { loss: { reconstruction: tells.sum(1), divergence: far.sum(1) } };
  },

  config: {
    validationFraction: 0.05,
    minibatchSize: 100,
    learningRate: 0.003,
    optimizer: { kind: 'adam' },
    // 570 minibatches an epoch: the rate is 0 at the end of the tenth.
    schedule: { kind: 'cosine', steps: 5700 },
    // By itself from three workers on. Without it, staleness costs two workers 4 nats.
    consistency: { correction: 'lookahead' },
    earlyStopping: { enabled: false },
    epochsMax: 10,
  },
});
