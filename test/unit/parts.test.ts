import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Column, kindOf } from '../../worker/data/columns.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';

const options = { seed: 1, validationFraction: 0, standardise: 'none' as const };
const ARRAYS = {
  uint8: Uint8Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
};
type Kind = keyof typeof ARRAYS;

const column = (values: Column['values'], more: Partial<Column> = {}): Column => ({
  values,
  shape: [values.length],
  ...more,
});
const part = (inputs: Column, targets: Column = column(new Float32Array(inputs.shape[0]!))) => ({
  count: inputs.shape[0]!,
  inputs,
  targets,
});
const told = (data: Omit<ExperimentData, 'source'>) => {
  try {
    prepareData({ ...data, source: '' }, options);
    return null;
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return `${code} ${message}`;
  }
};

describe('parts of different number types', () => {
  test('are of one type then, and every number is the same; pixels meet pixels alone', () => {
    const kind = fc.constantFrom(...(Object.keys(ARRAYS) as Kind[]));
    const whole = fc.array(fc.integer({ min: 0, max: 200 }), { minLength: 1, maxLength: 4 });
    const eighths = fc.integer({ min: -800, max: 800 }).map((x) => x / 8);
    const numbers = (of: Kind) =>
      of === 'uint8'
        ? whole
        : of === 'int32'
          ? fc.oneof(whole, fc.array(fc.integer(), { minLength: 1, maxLength: 4 }))
          : fc.oneof(whole, fc.array(eighths, { minLength: 1, maxLength: 4 }));
    const columns = kind.chain((of) =>
      numbers(of).map((values) => column(ARRAYS[of].from(values))),
    );
    fc.assert(
      fc.property(columns, columns, fc.boolean(), (first, second, asInputs) => {
        // Small spreads of large whole numbers are another matter: precision.
        const isLarge = [first, second].some(({ values }) =>
          values.some((x) => Math.abs(x) > 2 ** 24),
        );
        fc.pre(!isLarge || first.values.length === 1);
        const of = (values: Column) =>
          asInputs ? part(values) : part(column(new Float32Array(values.shape[0]!)), values);
        const data = { train: of(first), test: of(second), source: '' };
        const kinds = [first, second].map(({ values }) => kindOf(values));
        const bytes = kinds.filter((each) => each === 'uint8').length;
        if (asInputs && bytes === 1) {
          expect(told(data)).toMatch(
            /^DP_DATA_MISMATCH inputs of the \w+ part are bytes \(pixels, divided by 255\), but those of the \w+ part are (int|float)\d\d; give all parts the same type/,
          );
          return;
        }
        const name = asInputs ? 'inputs' : 'targets';
        const { train, test: other } = prepareData(data, options);
        expect(kindOf(train[name].values)).toBe(kindOf(other![name].values));
        expect(Array.from(train[name].values)).toEqual(Array.from(first.values));
        expect(Array.from(other![name].values)).toEqual(Array.from(second.values));
      }),
      { numRuns: 500 },
    );
  });

  test('float64 targets of a test part stay fractions beside float32 of training', () => {
    const train = part(column(Float32Array.of(1, 2)), column(Float32Array.of(0.5, 1)));
    const test = part(column(Float32Array.of(1, 2)), column(Float64Array.of(0.25, 0.75)));
    const prepared = prepareData({ train, test, source: '' }, options);
    expect(gather(prepared, 'test', [0, 1]).targets).toEqual(Float32Array.of(0.25, 0.75));
  });

  test('labels stay whole where training has them so', () => {
    const train = part(column(Float32Array.of(1, 2)), column(Uint8Array.of(0, 1)));
    const test = part(column(Float32Array.of(1, 2)), column(Float64Array.of(1, 0)));
    const prepared = prepareData({ train, test, classCount: 2, source: '' }, options);
    expect(gather(prepared, 'test', [0, 1]).targets).toEqual(Int32Array.of(1, 0));
  });
});

describe('parts that differ', () => {
  const two = (names: string[]) =>
    part(column(Float32Array.of(1, 2, 3, 4), { shape: [2, 2], names }));
  const labels = (classes?: string[]) =>
    part(column(Float32Array.of(1, 2)), column(Int32Array.of(0, 1), classes ? { classes } : {}));

  test('in classes or names are refused, with the first difference and what to do', () => {
    const train = labels(['cat', 'dog', 'owl']);
    expect(told({ train, test: labels(['cat', 'owl']) })).toBe(
      "DP_DATA_MISMATCH class 1 is 'dog' in the train part and 'owl' in the test part, so the same number would mean different things. To fix this, read all files together, or give the reader the full list of classes",
    );
    expect(told({ train, validation: labels(['cat', 'dog']) })).toContain(
      "class 2 is 'owl' in the train part and none (it has 2) in the validation part",
    );
    expect(told({ train, classes: ['cat', 'cow', 'owl'] })).toContain(
      "class 1 is 'cow' in the data and 'dog' in the train part",
    );
    expect(told({ train: two(['age', 'kg']), test: two(['kg', 'age']) })).toContain(
      "column 0 of the inputs is 'age' in the train part and 'kg' in the test part",
    );
    const three = part(
      column(new Float32Array(6), { shape: [2, 3], names: ['age', 'kg', 'sex=f'] }),
    );
    expect(told({ train: three, test: two(['age', 'kg']) })).toContain(
      "column 2 of the inputs is 'sex=f' in the train part and none (it has 2) in the test part",
    );
  });

  test('in shape are refused', () => {
    expect(told({ train: two(['a', 'b']), test: part(column(Float32Array.of(1, 2))) })).toMatch(
      /^DP_DATA_MISMATCH inputs of the test part have the shape \[\] for one example, but those of the train part have \[2\]/,
    );
  });

  test('only in having a list are not: the one that is there holds for all', () => {
    const data = { train: labels(), test: labels(['cat', 'dog']), source: '' };
    const { classes, classCount } = prepareData(data, options);
    expect([classes, classCount]).toEqual([['cat', 'dog'], 2]);
  });

  test('any two lists: the same or refused', () => {
    const lists = fc.uniqueArray(fc.string({ unit: 'binary' }), { minLength: 2, maxLength: 4 });
    fc.assert(
      fc.property(lists, lists, fc.boolean(), (a, b, same) => {
        const other = same ? [...a] : b;
        const message = told({ train: labels(a), test: labels(other) });
        if (JSON.stringify(a) === JSON.stringify(other)) expect(message).toBeNull();
        else expect(message).toMatch(/^DP_DATA_MISMATCH class \d is /);
      }),
    );
  });
});
