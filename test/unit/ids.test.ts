import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Column } from '../../worker/data/columns.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { mustBeIds } from '../../worker/ids.ts';
import { buildModel } from '../../worker/model.ts';
import { type LayersModel, tf } from '../../worker/tf.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const ROWS = 30;
const LENGTH = 3;
const embedding = (more = {}) =>
  tf.layers.embedding({ inputDim: ROWS, outputDim: 2, name: 'words', ...more });

const MODELS: Record<string, () => LayersModel> = {
  first: () => tf.sequential({ layers: [embedding({ inputLength: LENGTH }), tf.layers.flatten()] }),
  'behind what moves ids': () => {
    const input = tf.input({ shape: [LENGTH] });
    const moved = tf.layers.reshape({ targetShape: [LENGTH, 1] }).apply(input);
    const flat = tf.layers.flatten().apply(moved);
    const output = tf.layers.flatten().apply(embedding().apply(flat));
    return tf.model({ inputs: input, outputs: output as never });
  },
  'in a model in a model': () =>
    tf.sequential({
      layers: [
        tf.sequential({ layers: [embedding({ inputLength: LENGTH })] }),
        tf.layers.flatten(),
      ],
    }),
};

const examplesOf = (values: Column['values']) => ({
  count: values.length / LENGTH,
  inputs: { values, shape: [values.length / LENGTH, LENGTH] },
  targets: { values: new Float32Array(values.length / LENGTH), shape: [values.length / LENGTH] },
});
const prepared = (
  train: Column['values'],
  test: Column['values'] = train.slice(0, LENGTH),
  standardise: 'none' | 'feature' = 'none',
) =>
  prepareData(
    { train: examplesOf(train), test: examplesOf(test), source: '' },
    { seed: 1, validationFraction: 0, standardise },
  );
const told = (f: () => unknown) => {
  try {
    f();
    return null;
  } catch (error) {
    expect(error).toMatchObject({ code: 'DP_EXPERIMENT_INVALID' });
    return (error as Error).message;
  }
};

describe.each(Object.entries(MODELS))('ids for an embedding that is %s', (_, model) => {
  test('are taken where each has a row, else named by part, row, column and value', () => {
    const built = model();
    const kinds = fc.constantFrom(Int32Array, Float32Array, Float64Array);
    const ids = fc.array(fc.integer({ min: 0, max: ROWS - 1 }), {
      minLength: 2 * LENGTH,
      maxLength: 2 * LENGTH,
    });
    const wrong = fc.constantFrom(-1, ROWS, ROWS + 11, 2 ** 24);
    fc.assert(
      fc.property(kinds, ids, fc.option(wrong), fc.nat(2 * LENGTH - 1), (Kind, good, bad, at) => {
        const values = Kind.from(good);
        if (bad !== null) values[at] = bad;
        const message = told(() => mustBeIds(built, prepared(Kind.from(good), values)));
        if (bad === null) expect(message).toBeNull();
        else {
          expect(message).toContain(
            `inputs of the test part, row ${Math.floor(at / LENGTH)}, column ${at % LENGTH}: ${bad} is not an id of the embedding 'words', which has rows 0 … 29; `,
          );
          expect(message).toContain(bad < 0 ? 'whole numbers from 0' : `inputDim to ${bad + 1}`);
        }
      }),
      { numRuns: 60 },
    );
    for (const layer of built.layers) layer.dispose();
  });

  test('are refused as bytes, as fractions and standardised', () => {
    const built = model();
    const ids = [1, 2, 3, 4, 5, 6];
    expect(told(() => mustBeIds(built, prepared(Uint8Array.from(ids))))).toMatch(
      /bytes \(pixels, divided by 255\), .* Int32Array/,
    );
    expect(told(() => mustBeIds(built, prepared(Float32Array.from(ids, (id) => id / 2))))).toMatch(
      /row 0, column 0: 0.5 is not an id/,
    );
    const standardised = prepared(Int32Array.from(ids), Int32Array.from(ids), 'feature');
    expect(told(() => mustBeIds(built, standardised))).toMatch(
      /standardise: 'feature' would turn them into fractions/,
    );
    for (const layer of built.layers) layer.dispose();
  });
});

test('what a model computes before an embedding is its own matter', () => {
  const model = tf.sequential({
    layers: [
      tf.layers.activation({ activation: 'relu', inputShape: [LENGTH] }),
      embedding(),
      tf.layers.flatten(),
    ],
  });
  mustBeIds(model, prepared(Float32Array.of(-1, 0.5, 99)));
  for (const layer of model.layers) layer.dispose();
});

test('a model is not built for ids that it has no row for', async () => {
  const experiment = {
    data: () => ({}) as never,
    model: () =>
      tf.sequential({
        layers: [
          embedding({ inputLength: LENGTH }),
          tf.layers.flatten(),
          tf.layers.dense({ units: 1 }),
        ],
      }),
    loss: 'meanSquaredError' as const,
  };
  const config = { seed: 1, hyperparameters: {} };
  const before = tf.memory().numTensors;
  await expect(
    buildModel(experiment, config, prepared(Int32Array.of(1, 2, 30))),
  ).rejects.toMatchObject({ code: 'DP_EXPERIMENT_INVALID' });
  expect(tf.memory().numTensors).toBe(before);
  (await buildModel(experiment, config, prepared(Int32Array.of(1, 2, 29)))).dispose();
});
