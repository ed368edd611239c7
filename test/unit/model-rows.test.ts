import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import type { TableRows } from '../../shared/rows.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { buildModel, type Model } from '../../worker/model.ts';

const ENGINES = [
  'cpu',
  'wasm',
  ...(readEngine(engineFolder('cpu')) ? ['native'] : []),
] as EngineName[];

const COUNT = 40;
const ROWS = 50;
const WORDS = 4;
const WIDTH = 3;
const SEED = 7;

/** Words 1 … 49, 0 is padding; users 0 … 9. */
const data = dataOf({
  train: {
    inputs: {
      words: {
        values: Int32Array.from(
          { length: COUNT * WORDS },
          (_, i) => (i * 7) % 5 && (i * 13) % ROWS,
        ),
        shape: [COUNT, WORDS],
      },
      user: { values: Int32Array.from({ length: COUNT }, (_, i) => (i * i) % 10), shape: [COUNT] },
    },
    targets: {
      values: Float32Array.from({ length: COUNT }, (_, i) => Math.sin(i)),
      shape: [COUNT, 1],
    },
  },
  source: 'words and users',
});
const prepared = prepareData(data, { seed: SEED, validationFraction: 0.2, standardise: 'none' });

/** The table of words, of users, and one that shares the ids of users. */
const tables = {
  word: { rows: ROWS, width: WIDTH },
  user: { rows: 10, width: WIDTH },
  bias: { rows: 10, width: 1 },
};
const valuesOf = (rows: number, width: number, by: number) =>
  Float32Array.from({ length: rows * width }, (_, i) => Math.cos(by + i));
const WHOLE = {
  word: valuesOf(ROWS, WIDTH, 1),
  user: valuesOf(10, WIDTH, 2),
  bias: valuesOf(10, 1, 3),
};

type Combine = 'none' | 'sum' | 'mean';

/** @param isDense the tables are embeddings, parameters as any other. */
function experimentOf(isDense: boolean, combine: Combine): Experiment {
  return mustBeExperiment(
    {
      data: () => data,
      ...(isDense ? {} : { tables }),
      model: ({ tf }: Parameters<Experiment['model']>[0]) => {
        const words = tf.input({ shape: [WORDS], name: 'words', dtype: 'int32' });
        const user = tf.input({ shape: [], name: 'user', dtype: 'int32' });
        const lookUp = (table: keyof typeof tables, more = {}) => {
          const { rows: inputDim, width: outputDim } = tables[table];
          return isDense
            ? tf.layers.embedding({ inputDim, outputDim, name: `dense-${table}` })
            : layers.rows({ table, ...more });
        };
        const each = lookUp('word', { combine, maskZero: true }).apply(words);
        const bag = combine === 'none' ? tf.layers.flatten().apply(each) : each;
        const all = tf.layers
          .concatenate()
          .apply([bag, lookUp('user').apply(user), lookUp('bias').apply(user)] as never);
        const kernelInitializer = 'ones';
        const output = tf.layers
          .dense({ units: 1, activation: 'tanh', kernelInitializer })
          .apply(all);
        return tf.model({ inputs: [words, user], outputs: output as never });
      },
      loss: 'meanSquaredError',
    },
    'test',
  );
}

const models: Model[] = [];
afterAll(() => {
  for (const model of models) model.dispose();
});

async function build(experiment: Experiment, more = {}): Promise<Model> {
  const config = { ...resolveConfig({ ...experiment.config, ...more }), seed: SEED };
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  await model.initialise(SEED);
  return model;
}

const pick = (keys: Uint32Array, name: keyof typeof WHOLE): TableRows => {
  const { width } = tables[name];
  const values = new Float32Array(keys.length * width);
  for (const [i, key] of keys.entries()) {
    values.set(WHOLE[name].subarray(key * width, (key + 1) * width), i * width);
  }
  return { keys, values };
};

const minibatchOf = (start: number, count: number) =>
  gather(
    prepared,
    'train',
    Int32Array.from({ length: count }, (_, i) => start + i),
  );

/** The dense model with the same tables, its padding a row of zeros. */
async function dense(combine: Combine): Promise<Model> {
  const model = await build(experimentOf(true, combine));
  const values = model.loaded!.slice();
  for (const { name, offset } of model.layout.tensors) {
    const table = Object.keys(tables).find((own) => name.startsWith(`dense-${own}/`));
    if (table) values.set(WHOLE[table as keyof typeof WHOLE], offset);
    if (table === 'word') values.fill(0, offset, offset + WIDTH);
  }
  model.load(values);
  return model;
}

describe.each(ENGINES)('%s', (engine) => {
  beforeAll(async () => {
    await openEngine({ engine });
  });

  test('gradients of rows are those of an embedding, recorded or not', async () => {
    const whole = await dense('none');
    const model = await build(experimentOf(false, 'none'));
    model.rows!.from(async (keys) =>
      keys.map((own, t) => pick(own, model.rows!.shapes[t]!.name as keyof typeof WHOLE)),
    );
    // Sizes of minibatches and numbers of rows differ.
    for (const [start, count] of [
      [0, 8],
      [8, 8],
      [16, 8],
      [24, 8],
      [0, 3],
    ] as const) {
      const minibatch = minibatchOf(start, count);
      const keys = await model.rows!.keysOf(minibatch, 1);
      const wanted = await whole.step(minibatch, 1);
      const given = await model.step(minibatch, 1);
      expect(given.loss).toBeCloseTo(wanted.loss, 5);
      expect(given.rows!.map((rows) => [...rows.keys])).toEqual(keys.map((own) => [...own]));
      for (const { name, offset, size } of whole.layout.tensors) {
        const own = wanted.gradient.subarray(offset, offset + size);
        const t = model.rows!.shapes.findIndex((shape) => name.startsWith(`dense-${shape.name}/`));
        if (t < 0) {
          const { offset: at } = model.layout.tensors.find((tensor) => tensor.name === name)!;
          const mine = given.gradient.subarray(at, at + size);
          for (const [i, value] of own.entries()) expect(mine[i]).toBeCloseTo(value, 5);
          continue;
        }
        const { width, name: table } = model.rows!.shapes[t]!;
        const sum = new Float32Array(size);
        for (const [i, key] of given.rows![t]!.keys.entries()) {
          sum.set(given.rows![t]!.values.subarray(i * width, (i + 1) * width), key * width);
        }
        // Padding has no row, and so no gradient.
        if (table === 'word') own.fill(0, 0, WIDTH);
        for (const [i, value] of own.entries()) expect(sum[i]).toBeCloseTo(value, 5);
      }
    }
    expect((await model.measure(minibatchOf(3, 9))).loss).toBeCloseTo(
      (await whole.measure(minibatchOf(3, 9))).loss,
      5,
    );
    if (engine === 'native') expect(model.execution).toBe('graph');
  });

  test.each(['sum', 'mean'] as const)('a bag is the %s of its rows', async (combine) => {
    const model = await build(experimentOf(false, combine));
    const minibatch = minibatchOf(0, 6);
    const keys = await model.rows!.keysOf(minibatch, 1);
    const loaded = keys.map((own, t) =>
      pick(own, model.rows!.shapes[t]!.name as keyof typeof WHOLE),
    );
    const WORD = model.rows!.shapes.findIndex(({ name }) => name === 'word');
    model.rows!.load(loaded);
    const given = await model.predict(minibatch);
    const { words, user } = minibatch.fields!;
    for (let i = 0; i < 6; i++) {
      const ids = [...words!.values.subarray(i * WORDS, (i + 1) * WORDS)].filter((id) => id > 0);
      const share = combine === 'mean' ? 1 / ids.length : 1;
      const own = user!.values[i]!;
      let sum = WHOLE.bias[own]!;
      for (let k = 0; k < WIDTH; k++) {
        sum += WHOLE.user[own * WIDTH + k]!;
        for (const id of ids) sum += share * WHOLE.word[id * WIDTH + k]!;
      }
      expect(given.values[i]).toBeCloseTo(Math.tanh(sum), 5);
    }
    // The gradient of one element, by finite differences.
    const step = await model.step(minibatch, 1);
    const lossAt = async (by: number) => {
      const moved = loaded.map(({ keys, values }) => ({ keys, values: values.slice() }));
      moved[WORD]!.values[0]! += by;
      model.rows!.load(moved);
      return (await model.measure(minibatch)).loss;
    };
    const slope = ((await lossAt(0.01)) - (await lossAt(-0.01))) / 0.02;
    expect(step.rows![WORD]!.values[0]).toBeCloseTo(slope, 3);
  });
});
