import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { parseCsv } from '../../worker/data/tables/csv.ts';
import type { CsvOptions } from '../../worker/data/tables/csv-options.ts';
import { dateParts } from '../../worker/data/tables/dates.ts';
import { placeOfWord, wordsOf } from '../../worker/data/tables/words.ts';

/** Tables as people have them: with gaps, dates, and texts of many kinds. */

const parse = (text: string, options: CsvOptions) =>
  parseCsv(Buffer.from(text), 'real.csv', options);

function failure(text: string, options: CsvOptions): string {
  try {
    parse(text, options);
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    return `${errorCode(error)} ${error.message}`;
  }
  return 'read';
}

function rowsOf(data: ReturnType<typeof parse>): number[][] {
  const { values, shape } = data.train.inputs;
  const width = shape[1]!;
  return Array.from({ length: shape[0]! }, (_, row) => [
    ...values.subarray(row * width, (row + 1) * width),
  ]);
}

const PREPARE = { seed: 1, validationFraction: 0, standardise: 'feature' } as const;

describe('missing values', () => {
  const text = 'a,kind,y\n1,x,1\n,y,2\n3,NA,3\n5,x,\n';

  test("'mean' keeps rows, says where a value lacks, and leaves out rows without a target", () => {
    const data = parse(text, { targets: ['y'], categorical: ['kind'], missing: 'mean' });
    expect(data.inputNames).toEqual(['a', 'a is missing', 'kind=x', 'kind=y', 'kind is missing']);
    expect(rowsOf(data)).toEqual([
      [1, 0, 1, 0, 0],
      [Number.NaN, 1, 0, 1, 0],
      [3, 0, 0, 0, 1],
    ]);
    expect(data.source).toBe(
      "3 examples with 5 inputs from real.csv; 1 row is left out: the target is missing; column 'a' lacks 1 value: its mean replaces them; column 'kind' lacks 1 value: its mean replaces them",
    );
  });

  test('the mean is that of the training part, and becomes 0', () => {
    const data = dataOf(parse(text, { targets: ['y'], inputs: ['a'], missing: 'mean' }));
    const prepared = prepareData(data, PREPARE);
    // 1 and 3 have mean 2 and deviation 1.
    expect(prepared.transform.mean[0]).toBe(2);
    const { inputs } = gather(prepared, 'train', [0, 1, 2]);
    expect([inputs[0], inputs[2], inputs[4]]).toEqual([-1, 0, 1]);
    expect([...inputs].every(Number.isFinite)).toBe(true);
  });

  test('needs the standardisation that has the means', () => {
    const data = dataOf(parse(text, { targets: ['y'], inputs: ['a'], missing: 'mean' }));
    for (const standardise of ['none', 'global'] as const) {
      expect(() => prepareData(data, { ...PREPARE, standardise })).toThrow(
        "that needs standardise: 'feature'",
      );
    }
  });

  test("'drop' leaves rows out; a table without gaps is the same under all three", () => {
    const data = parse(text, { targets: ['y'], categorical: ['kind'], missing: 'drop' });
    expect(rowsOf(data)).toEqual([[1, 1]]);
    expect(data.source).toContain('2 rows are left out: an input is missing');
    const whole = 'a,y\n1,2\n3,4\n';
    const all = [undefined, 'drop', 'mean'] as const;
    const read = all.map((missing) =>
      parse(whole, { targets: ['y'], ...(missing && { missing }) }),
    );
    expect(read[1]).toEqual(read[0]);
    expect(read[2]).toEqual(read[0]);
  });

  test('nothing is left: said at once', () => {
    const options: CsvOptions = { targets: ['y'], missing: 'drop' };
    expect(failure('a,y\n,1\n,2\n', options)).toMatch(/DP_DATA_CORRUPT .*missing in each/);
    expect(failure('a,b,y\n,1,1\n,2,2\n', { ...options, missing: 'mean' })).toMatch(
      /DP_EXPERIMENT_INVALID .*'a' has no value in any row/,
    );
    expect(failure('a,y\n,1\n3,2\n', { targets: ['y'] })).toMatch(/set `missing: 'mean'`/);
  });

  test('a list of texts is still what means a missing value', () => {
    const lists = [{ missing: ['-'] }, { missing: 'mean', missingTexts: ['-'] }] as const;
    expect(failure('a,y\n-,1\n2,2\n', { targets: ['y'], ...lists[0] })).toContain(
      "the value is missing ('-')",
    );
    expect(rowsOf(parse('a,y\n-,1\n2,2\n', { targets: ['y'], ...lists[1] }))[0]).toEqual([
      Number.NaN,
      1,
    ]);
    // Then NA is not one any more.
    expect(failure('a,y\nNA,1\n2,2\n', { targets: ['y'], ...lists[1] })).toContain('not a number');
  });

  test('a number among those texts is a missing value too, however it is written', () => {
    const table = 'a,b,y\n-999,1,2\n-999.0,2,-999\n3,-9,4\n';
    const options = { targets: ['y'], missingTexts: ['-999'] } as const;
    const read = parse(table, { ...options, missing: 'mean' });
    expect(rowsOf(read)).toEqual([
      [Number.NaN, 1, 1],
      [3, 0, -9],
    ]);
    expect(read.source).toMatch(
      /1 row is left out: the target is missing; column 'a' lacks 1 value/,
    );
    expect(rowsOf(parse(table, { ...options, missing: 'drop' }))).toEqual([[3, -9]]);
    expect(failure(table, options)).toContain("line 2, column 'a': the value is missing ('-999')");
    // Without the option it is a number, and with another decimal mark it is the same number.
    expect(rowsOf(parse(table, { targets: ['y'] }))).toHaveLength(3);
    const comma = { ...options, delimiter: ';', decimal: ',', missing: 'drop' } as const;
    expect(rowsOf(parse('a;y\n-999,0;1\n2,5;2\n', comma))).toEqual([[2.5]]);
  });

  test('numbers of an experiment may lack values too; targets may not', () => {
    const inputs = { values: [[1], [Number.NaN], [3]], missing: 'mean' } as const;
    const targets = { values: [1, 2, 3] };
    const prepared = prepareData(dataOf({ train: { inputs, targets } }), PREPARE);
    expect([...gather(prepared, 'train', [1]).inputs]).toEqual([0]);
    expect(() => dataOf({ train: { inputs, targets: { ...targets, missing: 'mean' } } })).toThrow(
      '`missing` is only for inputs',
    );
    expect(() => dataOf({ train: { inputs: { ...inputs, missing: 'drop' }, targets } })).toThrow(
      "allowed: 'mean'",
    );
    const unsaid = dataOf({ train: { inputs: { values: inputs.values }, targets } });
    expect(() => prepareData(unsaid, PREPARE)).toThrow('not a finite number');
  });

  test('moments are those of the numbers that are there', () => {
    const numbers = fc.array(
      fc.option(fc.integer({ min: -1000, max: 1000 }), { nil: Number.NaN }),
      {
        minLength: 2,
        maxLength: 30,
      },
    );
    fc.assert(
      fc.property(numbers, (values) => {
        const there = values.filter((value) => !Number.isNaN(value));
        fc.pre(there.length > 0);
        const prepare = (all: readonly number[]) =>
          prepareData(
            dataOf({
              train: {
                inputs: { values: all.map((value) => [value]), missing: 'mean' },
                targets: { values: all.map((_, i) => i) },
              },
            }),
            PREPARE,
          ).transform;
        fc.pre(there.length > 1);
        expect(prepare(values)).toEqual(prepare(there));
      }),
    );
  });
});

describe('dates', () => {
  test.each([
    ['2024-12-31', [2024, 12, 31, 2, null]],
    ['2024/2/29', [2024, 2, 29, 4, null]],
    ['20240229', [2024, 2, 29, 4, null]],
    ['20240229.0', [2024, 2, 29, 4, null]],
    ['31.12.1999', [1999, 12, 31, 5, null]],
    ['2000-01-02T18:30', [2000, 1, 2, 7, 18.5]],
    ['2000-01-02 06:45:36.0+02:00', [2000, 1, 2, 7, 6.76]],
    ['2000-01-02 12:00 AM', [2000, 1, 2, 7, 0]],
    ['2000-01-02 1:15 pm', [2000, 1, 2, 7, 13.25]],
  ])('reads %s', (text, [year, month, day, weekday, hour]) => {
    expect(dateParts(text)).toEqual({ year, month, day, weekday, hour });
  });

  test.each([
    '2023-02-29',
    '2024-13-01',
    '2024-00-01',
    '2024-01-32',
    '2024-01-01T24:00',
    '1/2/2024',
    '2024-01',
    'May',
    '2024-01/02',
  ])('does not read %s', (text) => expect(dateParts(text)).toBeNull());

  test('takes the order that it was given', () => {
    expect(dateParts('1/2/2024', 'dayFirst')).toMatchObject({ day: 1, month: 2 });
    expect(dateParts('1/2/2024', 'monthFirst')).toMatchObject({ day: 2, month: 1 });
    expect(dateParts('31/12/2024', 'monthFirst')).toBeNull();
    // A point has the day first everywhere.
    expect(dateParts('1.2.2024', 'monthFirst')).toMatchObject({ day: 1, month: 2 });
  });

  test('agrees with the calendar of the language on all days of 400 years', () => {
    const day = fc.date({
      min: new Date('1800-01-01'),
      max: new Date('2199-12-31'),
      noInvalidDate: true,
    });
    fc.assert(
      fc.property(day, (date) => {
        const text = date.toISOString().slice(0, 10);
        expect(dateParts(text)!.weekday % 7).toBe(new Date(text).getUTCDay());
      }),
    );
  });

  test('become year, month, day, weekday, and hour where there is a time', () => {
    const days = parse('d,y\n2024-12-31,1\n2023-01-01,2\n', { targets: ['y'], dates: ['d'] });
    expect(days.inputNames).toEqual(['d: year', 'd: month', 'd: day', 'd: weekday']);
    expect(rowsOf(days)).toEqual([
      [2024, 12, 31, 2],
      [2023, 1, 1, 7],
    ]);
    const times = parse('d,y\n2024-12-31T06:00,1\n,2\n', {
      ...{ targets: ['y'], dates: ['d'], missing: 'mean' },
    });
    expect(times.inputNames.slice(4)).toEqual(['d: hour', 'd is missing']);
    expect(rowsOf(times)[0]).toEqual([2024, 12, 31, 2, 6, 0]);
  });

  test('errors name the cell and the option', () => {
    const options: CsvOptions = { targets: ['y'], dates: ['d'] };
    expect(failure('d,y\n1/2/2024,1\n', options)).toMatch(/line 2.*dateOrder: 'dayFirst'/);
    expect(failure('d,y\n2024-02-30,1\n', options)).toMatch(/not a date that exists/);
    expect(failure('d,y\n,1\n', options)).toMatch(/the value is missing/);
    expect(failure('d,y\n2024-02-01,1\n', { ...options, categorical: ['d'] })).toMatch(
      /both in `dates` and in `categorical`/,
    );
  });
});

describe('hashed texts', () => {
  test('each word adds 1 or −1 to one input, whatever its case and place', () => {
    const options: CsvOptions = { targets: ['y'], hashed: { t: 8 } };
    const data = parse('t,y\n"Red house, red",1\n"HOUSE red RED!",2\n"",3\n', {
      ...options,
      missing: 'mean',
    });
    expect(data.inputNames.slice(0, 9)).toEqual([
      ...Array.from({ length: 8 }, (_, i) => `t#${i}`),
      't is missing',
    ]);
    const [first, second, third] = rowsOf(data);
    expect(first).toEqual(second);
    expect(third).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 1]);
    const expected = new Array<number>(8).fill(0);
    for (const word of ['red', 'house', 'red']) {
      const { input, sign } = placeOfWord(word, 8);
      expected[input]! += sign;
    }
    expect(first!.slice(0, 8)).toEqual(expected);
  });

  test('words spread over inputs and signs', () => {
    const counts = new Array<number>(16).fill(0);
    let signs = 0;
    for (let i = 0; i < 16_000; i++) {
      const { input, sign } = placeOfWord(`word${i}`, 16);
      counts[input]!++;
      signs += sign;
    }
    // Five standard deviations of a fair die, and of a fair coin.
    expect(Math.max(...counts.map((count) => Math.abs(count - 1000)))).toBeLessThan(155);
    expect(Math.abs(signs)).toBeLessThan(633);
  });

  test('words are runs of letters and digits of any script', () => {
    expect(wordsOf("L'été 2024: 東京-Tower")).toEqual(['l', 'été', '2024', '東京', 'tower']);
  });
});

describe('testFraction', () => {
  const text = `x,y\n${Array.from({ length: 100 }, (_, i) => `${i},${i % 7}`).join('\n')}\n`;
  const options: CsvOptions = { targets: ['y'], testFraction: 0.15 };

  test('sets rows apart, the same ones whatever the seed', () => {
    const data = parse(text, options);
    expect([data.train.count, data.test!.count]).toEqual([85, 15]);
    const all = [...data.train.inputs.values, ...data.test!.inputs.values];
    expect(all.sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, i) => i));
    const parts = [1, 2].map((seed) => prepareData(dataOf(data), { ...PREPARE, seed }).test);
    expect(parts[0]).toEqual(parts[1]);
    expect(parse(text, { targets: ['y'] }).test).toBeUndefined();
  });

  test('is refused where it cannot be', () => {
    expect(failure('x,y\n1,2\n', options)).toMatch(/1 example cannot be split/);
    expect(failure(text, { ...options, testFraction: 1 })).toMatch(/from 0 to below 1/);
  });
});
