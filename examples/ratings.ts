import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defineExperiment } from 'downpour';
import { layers } from 'downpour/layers';

/**
 * How many stars a user gives a film: biased matrix factorisation (Koren, Bell and Volinsky 2009). Users and films are
 * tables, of which a minibatch touches a few rows. The data are the 100,000 ratings of MovieLens, `ml-100k.inter` in the
 * data folder (docs/results.md says where it comes from).
 */
const TEST = 0.2;

/** A number from 0 to 1 that depends on the two whole numbers alone. */
function shuffled(i: number, seed: number): number {
  let bits = Math.imul(i + 1, 0x9e3779b1) ^ Math.imul(seed + 1, 0x85ebca6b);
  for (let round = 0; round < 2; round++) bits = Math.imul(bits ^ (bits >>> 15), 0x2c1b3c6d);
  return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
}

export default defineExperiment({
  // `split` is random, or time: then the last fifth of the ratings is the test part.
  data: async ({ folder, seed, hyperparameters: { split = 'random' } }) => {
    const text = await readFile(join(folder, 'ml-100k.inter'), 'utf8');
    const [, ...lines] = text.trim().split(/\r?\n/);
    const ratings = lines.map((line) => line.split('\t').map(Number));
    const order = (rating: number[], i: number) =>
      split === 'time' ? rating[3]! : shuffled(i, seed);
    const ordered = ratings
      .map((rating, i) => ({ rating, at: order(rating, i) }))
      .sort((a, b) => a.at - b.at)
      .map(({ rating }) => rating);
    const part = (rows: readonly number[][]) => {
      const ids = (column: number) => ({
        values: Int32Array.from(rows, (row) => row[column]!),
        shape: [rows.length, 1],
      });
      return {
        inputs: { user: ids(0), film: ids(1) },
        targets: { values: Float32Array.from(rows, (row) => row[2]!), shape: [rows.length, 1] },
      };
    };
    const trained = Math.round((1 - TEST) * ordered.length);
    return {
      train: part(ordered.slice(0, trained)),
      test: part(ordered.slice(trained)),
      source: 'MovieLens 100K',
    };
  },

  tables: {
    user: { rows: 1_000, width: 20, weightDecay: 0.0006, learningRate: 20 },
    film: { rows: 2_000, width: 20, weightDecay: 0.0006, learningRate: 20 },
    userBias: { rows: 1_000, width: 1, initializer: { kind: 'zeros' }, learningRate: 20 },
    filmBias: { rows: 2_000, width: 1, initializer: { kind: 'zeros' }, learningRate: 20 },
  },
  model: ({ tf }) => {
    const [user, film] = ['user', 'film'].map((name) =>
      tf.input({ shape: [1], name, dtype: 'int32' }),
    );
    const row = (table: string, ids: unknown) =>
      tf.layers.flatten().apply(layers.rows({ table }).apply(ids as never));
    const fit = tf.layers.dot({ axes: 1 }).apply([row('user', user), row('film', film)] as never);
    const parts = [fit, row('userBias', user), row('filmBias', film)];
    const mean = tf.initializers.constant({ value: 3.53 });
    const stars = tf.layers
      .dense({ units: 1, kernelInitializer: 'ones', biasInitializer: mean })
      .apply(tf.layers.concatenate().apply(parts as never));
    return tf.model({ inputs: [user, film] as never, outputs: stars as never });
  },
  loss: 'meanSquaredError',
  metrics: { rmse: 'rmse' },
  config: {
    validationFraction: 0.05,
    minibatchSize: 256,
    learningRate: 0.02,
    epochsMax: 25,
    earlyStopping: { patience: 8 },
    hyperparameters: { split: 'random' },
  },
});
