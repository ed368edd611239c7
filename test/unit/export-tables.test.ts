import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { unpackTransform } from '../../shared/data-facts.ts';
import { LIMITS } from '../../shared/limits.ts';
import { rowShapes } from '../../shared/tables.ts';
import { examplesLike, factsOf } from '../../worker/data/facts.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { keysFile, mustFitProgram, writeLayersModel } from '../../worker/layers-format.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import type { TrainedTable } from '../../worker/rows/stock-layers.ts';
import { openModel } from '../../worker/serving/exported-model.ts';
import { encodeFields } from '../../worker/serving/fields.ts';
import { tf } from '../../worker/tf.ts';

/** A model with tables, exported for plain TensorFlow.js: it says what the model says. */

const root = mkdtempSync(join(tmpdir(), 'downpour-export-tables-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
beforeAll(() => openEngine({ engine: 'wasm' }));

const COUNT = 24;
/** Words 1 to 19, 0 and −1 are padding; users are large numbers. */
const words = Array.from({ length: COUNT }, (_, i) =>
  [(i * 7) % 20, (i * 3) % 20, i % 4 ? (i * i) % 20 : 0, -1].map((id) => (i === 5 ? 0 : id)),
);
const users = Array.from({ length: COUNT }, (_, i) => (i % 9) * 1_000_003);
const bags = words.map((_, i) => [(i * 5) % 12, i % 12, i % 3 ? (i * 11) % 12 : -3]);
const weights = bags.map((_, i) => [0.5, 1 + (i % 3), 0.25]);
const data = dataOf({
  train: {
    inputs: {
      words: { values: Int32Array.from(words.flat()), shape: [COUNT, 4] },
      bag: { values: Int32Array.from(bags.flat()), shape: [COUNT, 3] },
      weights: { values: Float32Array.from(weights.flat()), shape: [COUNT, 3] },
      user: { values: Int32Array.from(users), shape: [COUNT] },
    },
    targets: { values: Float32Array.from(users, Math.sin), shape: [COUNT, 1] },
  },
  source: 'words, bags and users',
});
const plan = { seed: 1, validationFraction: 0, standardise: 'none' } as const;
const facts = factsOf(prepareData(data, plan));
const tables: PartialConfig['tables'] = {
  word: { rows: 20, width: 3 },
  item: { rows: 12, width: 2 },
  user: { rows: 'hash', width: 2 },
  bias: { rows: 'hash', width: 1 },
};
const config = resolveConfig({ tables });

type Combine = 'none' | 'sum' | 'mean';
function experimentOf(combine: Combine, bagged: object = { combine: 'sum' }): Experiment {
  return mustBeExperiment(
    {
      data: () => data,
      tables,
      model: ({ tf }: Parameters<Experiment['model']>[0]) => {
        const input = (name: string, shape: number[], dtype: 'int32' | 'float32' = 'int32') =>
          tf.input({ shape, name, dtype });
        const [words, bag, user] = [input('words', [4]), input('bag', [3]), input('user', [])];
        const weights = input('weights', [3], 'float32');
        const look = (args: Parameters<typeof layers.rows>[0], ids: unknown) =>
          layers.rows(args).apply(ids as never) as never;
        const each = look({ table: 'word', combine, maskZero: true }, words);
        const parts = [
          // A masked sequence, of which the padding is left out.
          combine === 'none' ? (tf.layers.lstm({ units: 3 }).apply(each) as never) : each,
          look({ table: 'item', ...bagged }, [bag, weights]),
          look({ table: 'item', combine: 'mean' }, bag),
          look({ table: 'user' }, user),
          look({ table: 'bias' }, user),
        ];
        const all = tf.layers.concatenate().apply(parts);
        const output = tf.layers.dense({ units: 1, activation: 'tanh' }).apply(all);
        return tf.model({ inputs: [words, bag, weights, user], outputs: output as never });
      },
      loss: 'meanSquaredError',
    },
    'test',
  );
}

/** Rows that follow from the key: as a checkpoint has them for keys with rows of their own. */
const trainedValue = (name: string, key: number, i: number) =>
  Math.fround(Math.sin(1 + key + 7 * i + name.length));
/** Users 2, 5 and 8 never got a row: theirs have the initial values, which are 0. */
const known = (name: string, key: number) =>
  name.length > 4 || !['user', 'bias'].includes(name) || (key / 1_000_003) % 3 !== 2;
const trainedTables: TrainedTable[] = rowShapes(config).map((shape) => {
  const { name, width } = shape;
  const isGrowing = tables![name]!.rows === 'hash';
  const all = isGrowing ? users : Array.from({ length: shape.keysMax }, (_, key) => key);
  const keys = Uint32Array.from(new Set(all.filter((key) => known(name, key)))).sort();
  return {
    ...{ ...shape, isGrowing, keys },
    read: async (wanted) =>
      Float32Array.from({ length: wanted.length * width }, (_, at) => {
        const key = wanted[Math.floor(at / width)]!;
        return keys.includes(key) ? trainedValue(name, key, at % width) : 0;
      }),
  };
});

async function predicted(model: Model): Promise<number[]> {
  const fields = Object.fromEntries(
    Object.entries(data.train.fields!).map(([name, { values, shape }]) => [
      name,
      { values: values as Int32Array, shape: shape.slice(1) },
    ]),
  );
  const inputs = { inputs: new Float32Array(0), inputShape: [0], count: COUNT, fields };
  model.rows!.from(async (keys) =>
    Promise.all(
      trainedTables.map(async ({ read }, t) => ({ keys: keys[t]!, values: await read(keys[t]!) })),
    ),
  );
  const [output] = await model.outputs({
    ...inputs,
    ...{ targets: new Float32Array(COUNT), targetShape: [1] },
  });
  return [...output!.values];
}

async function exported(experiment: Experiment) {
  const to = mkdtempSync(join(root, 'to-'));
  const model = await buildModel(experiment, config, examplesLike(facts), { later: facts });
  const vector = await model.initialise(3);
  model.load(vector);
  const tensors = model.layout.tensors.map(({ name, offset, size }) => ({
    ...{ name, values: vector.slice(offset, offset + size) },
  }));
  const expected = await predicted(model);
  model.dispose();
  const options = { experiment, config, tensors, facts, dataFolder: root, log: () => {} };
  const { places } = await writeLayersModel({ ...options, tables: trainedTables, to });
  const idPlaces = places.map(({ keys, tables, ...place }) => ({
    ...place,
    ...(keys && { keys: keysFile(tables) }),
  }));
  const fields = facts.fields!.map(({ column, transform: _, ...field }) => ({
    ...field,
    ...column,
  }));
  writeFileSync(
    join(to, 'downpour.json'),
    JSON.stringify({
      ...{ run: 'r', loss: 'meanSquaredError', fields, idPlaces },
      inputShape: [0],
    }),
  );
  return { to, expected };
}

const examples = words.map((_, i) => ({
  ...{ words: words[i], bag: bags[i], weights: weights[i], user: users[i] },
}));

describe('a model with tables in plain layers', () => {
  test.each<Combine>(['none', 'sum', 'mean'])(
    'says what it said: rows combined by %s',
    async (combine) => {
      const { to, expected } = await exported(experimentOf(combine));
      const opened = await openModel(tf as never, to);
      const told = (await opened.predict(examples)).map(({ prediction }) => prediction as number);
      // Sums in another order.
      for (const [i, value] of told.entries()) expect(value).toBeCloseTo(expected[i]!, 5);
      expect(new Set(told.map((value) => value.toFixed(4))).size).toBeGreaterThan(10);
      const names = readFileSync(join(to, 'model.json'), 'utf8');
      expect(names).not.toContain('"Rows"');
      await expect(
        opened.predict([examples[0]!, { ...examples[1]!, bag: [1, 12, 0] }]),
      ).rejects.toThrow(
        "example 1: 'bag' has 12, which is no id of the table: ids are whole numbers from 0 to 11",
      );
      opened.dispose();
    },
  );

  test('is refused if its embeddings are more than a program loads at once', () => {
    const rows = LIMITS.exportedTableBytesMax / 4 / 64;
    const fits = (...shapes: [number, number][]) =>
      mustFitProgram(
        [{ name: 'word' }, { name: 'item' }],
        shapes.map((shape) => ({ shape })),
      );
    expect(() => fits([rows - 1, 64], [64, 1])).not.toThrow();
    expect(() => fits([rows - 1, 64], [65, 1])).toThrow(
      /the tables word, item have 2147483652 bytes.*allowed: 2147483648/,
    );
  });

  test('leaves no tensor behind', async () => {
    await exported(experimentOf('mean'));
    const before = tf.memory().numTensors;
    await exported(experimentOf('mean'));
    expect(tf.memory().numTensors).toBe(before);
  });

  test('is refused by the name of the layer where plain layers cannot say the same', async () => {
    await expect(
      exported(experimentOf('sum', { combine: 'mean', name: 'bagged' })),
    ).rejects.toThrow(/layer 'bagged' gives a weighted mean: use combine 'sum'/);
  });
});

test('a model without tables takes lone numbers and ids from plain TensorFlow.js too', async () => {
  const given = dataOf({
    train: {
      inputs: {
        town: { values: Int32Array.from({ length: COUNT }, (_, i) => i % 5), shape: [COUNT] },
        age: { values: Float32Array.from({ length: COUNT }, (_, i) => i / 7), shape: [COUNT] },
        place: {
          values: Float32Array.from({ length: 2 * COUNT }, (_, i) => Math.cos(i)),
          shape: [COUNT, 2],
        },
      },
      targets: { values: Float32Array.from(users, Math.sin), shape: [COUNT, 1] },
    },
    source: 'lone numbers',
  });
  const lone = factsOf(prepareData(given, { ...plan, standardise: { age: 'feature' } }));
  const experiment = mustBeExperiment(
    {
      data: () => given,
      model: ({ tf }: Parameters<Experiment['model']>[0]) => {
        const town = tf.input({ shape: [], name: 'town', dtype: 'int32' });
        const age = tf.input({ shape: [], name: 'age' });
        const place = tf.input({ shape: [2], name: 'place' });
        const towns = tf.layers.embedding({ inputDim: 5, outputDim: 2 }).apply(town) as never;
        const ages = tf.layers.reshape({ targetShape: [1] }).apply(age) as never;
        const all = tf.layers.concatenate().apply([towns, ages, place]);
        const outputs = tf.layers.dense({ units: 1 }).apply(all) as never;
        return tf.model({ inputs: [town, age, place], outputs });
      },
      loss: 'meanSquaredError',
    },
    'test',
  );
  const plainConfig = resolveConfig({});
  const model = await buildModel(experiment, plainConfig, examplesLike(lone), { later: lone });
  const vector = await model.initialise(5);
  model.load(vector);
  const tensors = model.layout.tensors.map(({ name, offset, size }) => ({
    ...{ name, values: vector.slice(offset, offset + size) },
  }));
  const about = {
    ...{ run: 'r', loss: 'meanSquaredError', inputShape: [0] },
    fields: lone.fields!.map(({ column, transform, ...field }) => ({
      ...{ ...field, ...column, ...(transform && { inputTransform: unpackTransform(transform) }) },
    })),
  };
  const examples = Array.from({ length: 5 }, (_, i) => ({
    ...{ town: i, age: i / 3, place: [i, -i] },
  }));
  const fields = encodeFields(about.fields as never, examples);
  const [output] = await model.outputs({
    ...{ inputs: new Float32Array(0), inputShape: [0], count: 5, fields },
    ...{ targets: new Float32Array(5), targetShape: [1] },
  });
  model.dispose();
  const to = mkdtempSync(join(root, 'lone-'));
  const options = { experiment, config: plainConfig, tensors, facts: lone, dataFolder: root };
  await writeLayersModel({ ...options, log: () => {}, to });
  writeFileSync(join(to, 'downpour.json'), JSON.stringify(about));
  const opened = await openModel(tf as never, to);
  const told = (await opened.predict(examples)).map(({ prediction }) => prediction as number);
  for (const [i, value] of told.entries()) expect(value).toBeCloseTo(output!.values[i]!, 5);
  expect(new Set(told).size).toBe(5);
  opened.dispose();
});
