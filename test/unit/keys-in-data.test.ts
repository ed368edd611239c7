import { beforeAll, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { buildModel } from '../../worker/model.ts';
import { RowPlaces } from '../../worker/rows/places.ts';

/** Ids of rows that are none are found before training, in all parts, and no two ids become one. */

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const COUNT = 60;
type Ids = Int32Array | Float32Array | Float64Array | Uint8Array;

interface Given {
  readonly rows?: number | 'hash';
  readonly standardise?: 'none' | 'feature';
  /** The ids of a part; all others are 0, 1, 2. */
  readonly part?: 'train' | 'validation' | 'test';
  /** The field has a name. */
  readonly isNamed?: boolean;
}

/** Builds the model of an experiment whose ids have `id` at row 41 of a part. */
async function build(
  id: number,
  Type: new (length: number) => Ids,
  { rows = 10, standardise = 'none', part = 'train', isNamed = false }: Given = {},
): Promise<string | null> {
  const examplesOf = (own: string) => {
    const values = new Type(COUNT).map((_, i) => i % 3);
    if (own === part) values[41] = id;
    const column = { values, shape: [COUNT, 1] };
    return {
      inputs: isNamed ? { town: column } : column,
      targets: { values: Float32Array.from({ length: COUNT }, (_, i) => i % 5), shape: [COUNT, 1] },
    };
  };
  const experiment = mustBeExperiment(
    {
      data: () => {
        throw new Error('not asked for');
      },
      tables: { town: { rows, width: 2 } },
      model: ({ tf }: Parameters<Experiment['model']>[0]) => {
        const input = tf.input({ shape: [1], name: isNamed ? 'town' : 'inputs' });
        const towns = layers.rows({ table: 'town', combine: 'sum' }).apply(input);
        const output = tf.layers.dense({ units: 1 }).apply(towns);
        return tf.model({ inputs: input, outputs: output as never });
      },
      loss: 'meanSquaredError',
    },
    'test',
  );
  const [train, validation, test] = ['train', 'validation', 'test'].map(examplesOf);
  try {
    const data = dataOf({ train, validation, test } as never);
    const prepared = prepareData(data, { seed: 1, validationFraction: 0, standardise });
    const model = await buildModel(experiment, resolveConfig(experiment.config), prepared);
    model.dispose();
    return null;
  } catch (error) {
    expect(error).toMatchObject({ code: 'DP_EXPERIMENT_INVALID' });
    return (error as Error).message;
  }
}

describe('an id that has no row is refused before training', () => {
  test.each(['train', 'validation', 'test'] as const)('in the %s part', async (part) => {
    expect(await build(9, Int32Array, { part })).toBeNull();
    const told = `field 'inputs', ${part} part, row 41, has 10, which is no id of table 'town': ids are whole numbers from 0 to 9, and negative ones are padding; set rows of the table to 11 or more, or to 'hash'`;
    expect(await build(10, Int32Array, { part })).toBe(told);
    expect(await build(10, Int32Array, { part, isNamed: true })).toBe(
      told.replace('inputs', 'town'),
    );
  });

  test('if it is a fraction', async () => {
    expect(await build(2.5, Float64Array)).toMatch(
      /row 41, has 2\.5, which is no id of table 'town': ids are whole numbers from 0 to 9/,
    );
  });

  test('if it is beyond what a table that grows can have', async () => {
    const rows = 'hash';
    expect(await build(LIMITS.rowIdsMax - 1, Int32Array, { rows, isNamed: true })).toBeNull();
    expect(await build(LIMITS.rowIdsMax, Float64Array, { rows, isNamed: true })).toMatch(
      /has 2147483648, which is no id .*take a hash of each that is below 2147483648/,
    );
  });

  test('if float32 would make two ids one', async () => {
    const rows = 'hash';
    const most = LIMITS.floatIdsMax;
    for (const isNamed of [false, true]) {
      expect(await build(most - 1, Float64Array, { rows, isNamed })).toBeNull();
      expect(await build(most, Float64Array, { rows, isNamed })).toMatch(
        /row 41, has the id 16777216 of table 'town', but its numbers are float32.*as an Int32Array in a field with a name/,
      );
    }
    // A single input without a name becomes float32, of whatever type it is.
    expect(await build(most, Int32Array, { rows })).toContain('its numbers are float32');
    expect(await build(most, Int32Array, { rows, isNamed: true })).toBeNull();
  });

  test('and negative ones are padding', async () => {
    expect(await build(-1, Int32Array)).toBeNull();
    expect(await build(-7, Float64Array, { isNamed: true })).toBeNull();
  });

  test('if the field would be changed', async () => {
    expect(await build(1, Int32Array, { standardise: 'feature' })).toMatch(
      /standardise: 'feature' would turn them into fractions: leave the field out of standardise/,
    );
    expect(await build(1, Uint8Array)).toMatch(/has bytes .* give an Int32Array/);
  });
});

test('what a function makes of a minibatch is looked at when it is placed', () => {
  const places = new RowPlaces(
    [{ table: 'town', field: 'inputs', maskZero: false }],
    [{ name: 'town', width: 2, keysMax: LIMITS.rowIdsMax }],
  );
  const place = (id: number) =>
    places.place({
      ...{ inputs: Float32Array.of(1, id), inputShape: [1] },
      ...{ targets: new Float32Array(2), targetShape: [1] },
    });
  expect([...place(LIMITS.floatIdsMax - 1).keys[0]!]).toEqual([1, LIMITS.floatIdsMax - 1]);
  expect(() => place(LIMITS.floatIdsMax)).toThrow(/field 'inputs' has the id 16777216 .* float32/);
  expect(() => place(0.5)).toThrow(/has 0\.5, which is no id/);
});
