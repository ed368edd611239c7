import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { gather } from '../../worker/data/gather.ts';
import { dataOf, type GivenColumn } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';

const inputs = (count: number) => ({ values: Array.from({ length: count }, (_, i) => [i]) });
const countOf = ({ values, shape }: GivenColumn) => shape?.[0] ?? values.length;

function prepare(
  targets: GivenColumn,
  loss: string | null,
  more: { classCount?: number; classes?: string[]; test?: GivenColumn } = {},
) {
  const { test, ...rest } = more;
  const part = (column: GivenColumn) => ({ inputs: inputs(countOf(column)), targets: column });
  return prepareData(
    dataOf({ train: part(targets), ...(test ? { test: part(test) } : {}), ...rest }),
    {
      ...{ seed: 1, validationFraction: 0, standardise: 'none', loss },
    },
  );
}
const told = (f: () => unknown) => {
  try {
    f();
    return null;
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return `${code} ${message}`;
  }
};

const ARRAYS = [
  ...[Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array],
  ...[Uint32Array, Float32Array, Float64Array, Array],
] as { from(values: readonly number[]): number[] }[];
const anyArray = fc.constantFrom(...ARRAYS);

describe("targets of 'sigmoidCrossEntropy'", () => {
  test.each([
    [[1, 2, 2, 1], 'row 1: target 2; ', 'The targets are 1 and 2: subtract 1'],
    [[1, -1, 1, -1], 'row 1: target -1; ', 'The targets are -1 and 1: give (y + 1) / 2'],
    [[0, 255, 0, 255], 'row 1: target 255; ', 'The targets are 0 and 255: divide by 255'],
    [[3, 7, 3, 3], 'row 0: target 3; ', 'The targets are 3 and 7: give 0 for 3 and 1 for 7'],
    [[0, 1, 2, 1], 'row 2: target 2; ', "use 'softmaxCrossEntropy' with classCount: 3"],
    [[0.5, 1.5, 0, 1], 'row 1: target 1.5; ', "for numbers, use 'meanSquaredError'"],
  ])('%j are refused, and how to recode them is said', (values, where, advice) => {
    const message = told(() => prepare({ values }, 'sigmoidCrossEntropy'));
    expect(message).toMatch(/^DP_DATA_LABEL train part, /);
    expect(message).toContain(where);
    expect(message).toContain('takes targets from 0 (no) to 1 (yes)');
    expect(message).toContain(advice);
  });

  test('are read where all are from 0 to 1 and differ, in any type, in one column or more', () => {
    const cases = fc.record({
      Kind: anyArray,
      values: fc.array(fc.constantFrom<number>(0, 1), { minLength: 4, maxLength: 12 }),
      bad: fc.option(fc.constantFrom(2, 255, 100)),
      columns: fc.constantFrom(1, 2),
      where: fc.nat(),
    });
    fc.assert(
      fc.property(cases, ({ Kind, values, bad, columns, where }) => {
        const numbers = values.slice(0, 2 * Math.floor(values.length / 2));
        if (bad !== null) numbers[where % numbers.length] = Kind.from([bad])[0]!;
        const shape = columns === 1 ? [numbers.length] : [numbers.length / 2, 2];
        const message = told(() =>
          prepare({ values: Kind.from(numbers), shape }, 'sigmoidCrossEntropy'),
        );
        if (bad !== null && numbers.some((x) => x < 0 || x > 1)) {
          const row = Math.floor((where % numbers.length) / columns);
          expect(message).toMatch(new RegExp(`^DP_DATA_LABEL train part, row ${row}\\b`));
        } else if (numbers.every((x) => x === numbers[0])) {
          expect(message).toMatch(/^DP_DATA_LABEL all \d+ training examples have target/);
        } else expect(message).toBeNull();
      }),
      { numRuns: 300 },
    );
  });

  test('are checked in every part', () => {
    const targets = { values: [0, 1, 1] };
    expect(
      told(() => prepare(targets, 'sigmoidCrossEntropy', { test: { values: [1, 2] } })),
    ).toMatch(/^DP_DATA_LABEL test part, row 1: target 2/);
  });
});

describe.each(['softmaxCrossEntropy', 'negativeLogLikelihood'])("targets of '%s'", (loss) => {
  test.each([
    [
      [1, 2, 3],
      3,
      'row 2: label 3; allowed: whole numbers 0 … 2 (3 classes). Labels count from 0: subtract 1',
    ],
    [
      [-1, 1, 1],
      2,
      'row 0: label -1; allowed: whole numbers 0 … 1 (2 classes). The targets are -1 and 1: give (y + 1) / 2',
    ],
    [[0, 255, 0], 2, 'The targets are 0 and 255: divide by 255'],
    [
      [0, 1, 4],
      3,
      "Correct the data or the experiment's classCount: labels up to 4 mean 5 classes",
    ],
    [
      [0, 0.5, 1],
      2,
      "row 1: label 0.5; allowed: whole numbers 0 … 1 (2 classes). These are not classes. If they are numbers to predict, use loss 'meanSquaredError'",
    ],
    [[0, Number.NaN, 1], 2, 'row 1: label NaN'],
    [
      [2, 2, 2],
      3,
      'all 3 training examples have label 2: with only one class there is nothing to learn',
    ],
    [[0, 0, 0], 1, 'the data have only 1 class (classCount is 1)'],
  ])('%j for %i classes are refused', (values, classCount, message) => {
    expect(told(() => prepare({ values }, loss, { classCount }))).toMatch(/^DP_DATA_LABEL /);
    expect(told(() => prepare({ values }, loss, { classCount }))).toContain(message);
  });

  test.each([
    [
      { values: [0, 1, 2] },
      'the targets are whole numbers 0 … 2; if they are classes, return classCount: 3',
    ],
    [
      { values: [0.5, 1, 2] },
      "numbers from 0.5 to 2; if they are not classes, use loss 'meanSquaredError'",
    ],
    [
      {
        values: [
          [0, 1, 0],
          [1, 0, 0],
        ],
      },
      'if they are the probabilities of 3 classes, return classCount: 3',
    ],
  ])('%j need a classCount', (targets, message) => {
    const error = told(() => prepare(targets, loss));
    expect(error).toMatch(
      /^DP_EXPERIMENT_INVALID loss '.*' needs classes, but data\(\) returned no/,
    );
    expect(error).toContain(message);
  });

  test('may be one-hot in any type, and then are shares', () => {
    fc.assert(
      fc.property(anyArray, fc.array(fc.nat(2), { minLength: 4, maxLength: 9 }), (Kind, labels) => {
        fc.pre(new Set(labels).size > 1);
        const rows = labels.flatMap((label) => [0, 1, 2].map((c) => Number(c === label)));
        const shape = [labels.length, 3];
        const data = prepare({ values: Kind.from(rows), shape }, loss, { classCount: 3 });
        const batch = gather(
          data,
          'train',
          labels.map((_, i) => i),
        );
        expect(batch.targets).toEqual(Float32Array.from(rows));
        const bytes = rows.map((x) => 255 * x);
        const message = told(() => prepare({ values: bytes, shape }, loss, { classCount: 3 }));
        expect(message).toMatch(/^DP_DATA_LABEL .*probability 255/);
        const whole = Int32Array.from(bytes);
        expect(told(() => prepare({ values: whole, shape }, loss, { classCount: 3 }))).toMatch(
          /^DP_DATA_LABEL .*label 255.*divide by 255/,
        );
      }),
      { numRuns: 60 },
    );
  });

  test('of sequences have a label for each place', () => {
    const values = Int32Array.of(0, 1, 2, 2, 1, 1);
    const data = prepare({ values, shape: [2, 3] }, loss, { classCount: 3 });
    expect(gather(data, 'train', [1]).targets).toEqual(Int32Array.of(2, 1, 1));
  });

  test('have as many classes as there are names', () => {
    expect(prepare({ values: [0, 1] }, loss, { classes: ['no', 'yes'] }).classCount).toBe(2);
    expect(
      told(() => prepare({ values: [0, 1] }, loss, { classes: ['no', 'yes'], classCount: 3 })),
    ).toMatch(/^DP_DATA_MISMATCH classCount is 3, but there are 2 classes: 'no', 'yes'/);
  });
});

describe('targets of losses of numbers', () => {
  test('may be anything finite, constant or classes too', () => {
    for (const loss of ['meanSquaredError', 'meanAbsoluteError', null]) {
      expect(told(() => prepare({ values: [1, 1, 1] }, loss))).toBeNull();
      expect(told(() => prepare({ values: [0, 1, 2] }, loss, { classCount: 3 }))).toBeNull();
      expect(
        told(() =>
          prepare(
            {
              values: [
                [1, -2],
                [3, 255],
              ],
            },
            loss,
          ),
        ),
      ).toBeNull();
      expect(told(() => prepare({ values: [1, Number.NaN] }, loss))).toMatch(
        /^DP_DATA_CORRUPT targets of the train part, row 1: the value NaN/,
      );
    }
  });

  test('are refused where float32 would lose their differences', () => {
    const times = [0, 1, 2, 3].map((i) => 1.7e12 + 1000 * i);
    expect(told(() => prepare({ values: times }, 'meanSquaredError'))).toMatch(
      /^DP_DATA_CORRUPT targets of the train part, numbers: numbers such as 1700000000000 .* subtract an offset from the target/,
    );
    const rounded = { values: Float32Array.from(times), shape: [4] };
    expect(told(() => prepare(rounded, 'meanSquaredError'))).toBeNull();
    const few = { values: Float32Array.from(times, (ms, i) => ms + 2e5 * i), shape: [4] };
    expect(told(() => prepare(few, 'meanSquaredError'))).toMatch(
      /^DP_DATA_CORRUPT targets of the train part, numbers: as float32, numbers such as \d+ are 131072 apart, .* lost/,
    );
    const days = [0, 1, 2, 3].map((i) => 1.7e12 + 864e5 * 365 * i);
    expect(told(() => prepare({ values: days }, 'meanSquaredError'))).toBeNull();
  });
});
