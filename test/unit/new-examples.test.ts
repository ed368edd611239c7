import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { encodeFacts, forWorkers } from '../../shared/data-facts.ts';
import { inputNamesOf, parseReading, type TableReading } from '../../shared/reading.ts';
import { factsOf } from '../../worker/data/facts.ts';
import { dataOf } from '../../worker/data/given.ts';
import { type Canvas, paint } from '../../worker/data/pictures/paint.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { parseCsv } from '../../worker/data/tables/csv.ts';
import type { CsvOptions } from '../../worker/data/tables/csv-options.ts';
import { readNewTable } from '../../worker/data/tables/read-inputs.ts';
import { BadExample, encoderOf } from '../../worker/serving/encode.ts';

/** New examples are read as those were that a model was trained on: from files, and one by one. */

const folder = mkdtempSync(join(tmpdir(), 'downpour-new-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const TEXT = `size,kind,day,note,y
1.5,red,2024-01-31T06:30,a big house,1
,blue,2024-02-29,the small house,2
-3,,2023-12-31,,3
4e2,red,2020-06-15T23:59,old,4
`;
const OPTIONS: CsvOptions = {
  ...{ targets: ['y'], categorical: ['kind'], dates: ['day'], hashed: { note: 4 } },
  missing: 'mean',
};
const data = parseCsv(Buffer.from(TEXT), 'x.csv', OPTIONS);
const reading = data.train.inputs.reading as TableReading;

test('a table says how it was read, and its input names follow', () => {
  expect(parseReading(JSON.stringify(reading))).toEqual(reading);
  expect(inputNamesOf(reading)).toEqual(data.inputNames);
  expect(() => parseReading('{"kind":"table"}')).toThrow('cannot be understood');
  expect(() => parseReading('no JSON')).toThrow('cannot be understood');
});

test('a run keeps it with its facts, workers are not sent it, and changed inputs lose it', () => {
  const prepare = (given: unknown) =>
    prepareData(dataOf(given), { seed: 1, validationFraction: 0, standardise: 'feature' });
  const facts = factsOf(prepare(data));
  expect(parseReading(facts.reading!)).toEqual(reading);
  expect(forWorkers(facts)).not.toHaveProperty('reading');
  expect(encodeFacts(facts).length).toBeGreaterThan(encodeFacts(forWorkers(facts)).length);
  const { inputs, targets } = data.train;
  const renamed = { ...inputs, names: data.inputNames.map((name) => `${name}²`) };
  expect(factsOf(prepare({ train: { inputs: renamed, targets } }))).not.toHaveProperty('reading');
  const own = { values: inputs.values, shape: inputs.shape, missing: 'mean' };
  expect(factsOf(prepare({ train: { inputs: own, targets } }))).not.toHaveProperty('reading');
});

test('the same file gives the same numbers, without its targets and in any order of columns', async () => {
  const rows = TEXT.trim()
    .split('\n')
    .map((line) => line.split(','));
  const path = join(folder, 'new.csv');
  writeFileSync(
    path,
    `${rows.map(([a, b, c, d]) => [d, 'x', c, b, a].join(',')).join('\n')}\n`.replace(
      'note,x',
      'note,other',
    ),
  );
  const { inputs, lines } = await readNewTable(path, reading);
  expect(inputs.values).toEqual(data.train.inputs.values);
  expect(lines).toEqual([2, 3, 4, 5]);
});

test('a record gives the same numbers as a line of a file', async () => {
  const cell = {
    size: fc.oneof(
      fc.double({ noNaN: true, noDefaultInfinity: true }).map(String),
      fc.constant(''),
    ),
    kind: fc.constantFrom('red', 'blue', '', 'NA', ' red '),
    day: fc.constantFrom('2024-02-29', '2023-01-01T05:06', '20200131'),
    note: fc.constantFrom('Big  HOUSE', 'house-house', '', 'x'),
  };
  const encoder = encoderOf(reading);
  const path = join(folder, 'property.csv');
  await fc.assert(
    fc.asyncProperty(fc.array(fc.record(cell), { minLength: 1, maxLength: 5 }), async (rows) => {
      // A line of nothing but empty cells at the end is none.
      fc.pre(Object.values(rows.at(-1)!).some((text) => text.trim() !== ''));
      const lines = rows.map(({ size, kind, day, note }) => [size, kind, day, note].join(','));
      writeFileSync(path, `size,kind,day,note\n${lines.join('\n')}\n`);
      const { inputs } = await readNewTable(path, reading);
      const target = new Float64Array(encoder.size * rows.length);
      for (const [i, row] of rows.entries()) encoder.encode(row, target, i * encoder.size);
      expect(target).toEqual(inputs.values);
    }),
    { numRuns: 60 },
  );
});

test('what does not fit is refused by both', async () => {
  const { missing: _, ...strict } = reading;
  const encoder = encoderOf({
    ...strict,
    columns: reading.columns.map((each) => ({ ...each, gap: false })),
  });
  const row = { size: 1, kind: 'red', day: '2024-01-01', note: '' };
  const encode = (change: object) =>
    encoder.encode({ ...row, note: 'a', ...change }, new Float64Array(encoder.size), 0);
  expect(() => encode({})).not.toThrow();
  for (const change of [
    { size: 'x' },
    { size: null },
    { kind: 'green' },
    { day: '2024-13-01' },
    { note: '' },
    { size: {} },
  ]) {
    expect(() => encode(change)).toThrow(BadExample);
  }
  expect(() => encoder.encode(7, new Float64Array(encoder.size), 0)).toThrow(BadExample);
  const path = join(folder, 'odd.csv');
  writeFileSync(path, 'size,kind,day,note\n1,green,2024-01-01,a\n');
  await expect(readNewTable(path, reading)).rejects.toThrow(
    "line 2, column 'kind': 'green' is not one of",
  );
});

test('what the model has never seen is taken by both, where that is asked for', async () => {
  const { missing: _, ...strict } = reading;
  const unmarked = strict.columns.map((each) => ({ ...each, gap: false }));
  const lenient: TableReading = { ...strict, columns: unmarked, unknown: 'none' };
  const path = join(folder, 'unknown.csv');
  writeFileSync(path, 'size,kind,day,note\n,green,2024-01-01,\n2,red,2024-01-01,a\n1,grey,,a\n');
  const { inputs, notes } = await readNewTable(path, lenient);
  const encoder = encoderOf(lenient);
  const target = new Float64Array(3 * encoder.size);
  [
    { size: null, kind: 'green', day: '2024-01-01', note: '' },
    { size: 2, kind: 'red', day: '2024-01-01', note: 'a' },
    { size: 1, kind: 'grey', day: '', note: 'a' },
  ].forEach((row, i) => {
    encoder.encode(row, target, i * encoder.size);
  });
  expect(target).toEqual(inputs.values);
  // A number or a date that is missing becomes the mean; a new category sets neither blue nor red.
  expect([...target.slice(0, 3)]).toEqual([Number.NaN, 0, 0]);
  expect(notes).toEqual([
    `${path}: column 'kind': 2 cells have categories that the model has never seen, the first in line 2: 'green'. None of the inputs of the column is set there`,
  ]);
});

test('a run whose data had gaps fills a gap in any column', async () => {
  const options = { targets: ['y'], missing: 'mean', markGapsFrom: 2 } as const;
  const table = parseCsv(Buffer.from('a,b,c,y\n1,,,1\n2,3,,2\n4,5,6,3\n'), 'x.csv', options);
  // One value of b is missing, two of c.
  expect(table.inputNames).toEqual(['a', 'b', 'c', 'c is missing']);
  expect([...(table.train.inputs.values as Float64Array).slice(0, 4)]).toEqual([
    1,
    Number.NaN,
    Number.NaN,
    1,
  ]);
  const own = table.train.inputs.reading as TableReading;
  const path = join(folder, 'gaps.csv');
  writeFileSync(path, 'a,b,c\n7,,\n');
  const { inputs } = await readNewTable(path, own);
  const target = new Float64Array(4);
  encoderOf(own).encode({ a: 7, b: null, c: '' }, target, 0);
  expect([...target]).toEqual([7, Number.NaN, Number.NaN, 1]);
  expect(target).toEqual(inputs.values);
});

test('a number of a program needs no reading: 0.125 is not 125 where points stand between thousands', async () => {
  const options: CsvOptions = {
    ...{ targets: ['y'], delimiter: ';', decimal: ',', thousands: '.', units: { w: 'kg' } },
    ...{ missing: 'mean', missingTexts: ['', '-999'] },
  };
  const table = parseCsv(
    Buffer.from('a;w;y\n1.250,5;2 kg;1\n-999;3;2\n0,125;-999;3\n'),
    'x.csv',
    options,
  );
  const own = table.train.inputs.reading as TableReading;
  const encoder = encoderOf(own);
  const encoded = (row: object) => {
    const target = new Float64Array(encoder.size);
    encoder.encode(row, target, 0);
    return [...target];
  };
  expect(encoded({ a: 0.125, w: 1.234 })).toEqual([0.125, 0, 1.234, 0]);
  expect(encoded({ a: -12.345, w: 1234 })).toEqual([-12.345, 0, 1234, 0]);
  expect(encoded({ a: -0, w: -999 })).toEqual([0, 0, Number.NaN, 1]);
  // A text is one of the file.
  expect(encoded({ a: '0.125', w: '1.234,5 kg' })).toEqual([125, 0, 1234.5, 0]);
  expect(encoded({ a: '-999,0', w: '' })).toEqual([Number.NaN, 1, Number.NaN, 1]);
  expect(() => encoded({ a: Number.POSITIVE_INFINITY, w: 1 })).toThrow(BadExample);
  const path = join(folder, 'comma.csv');
  writeFileSync(path, 'a;w\n-999,0;1.234,5 kg\n');
  const { inputs } = await readNewTable(path, own);
  expect([...inputs.values]).toEqual([Number.NaN, 1, 1234.5, 0]);
});

describe('a picture of another size', () => {
  const canvas = (change: Partial<Canvas>): Canvas => ({
    ...{ height: 4, width: 4, channels: 1, background: [255, 255, 255], fit: 'crop' },
    ...change,
  });
  const painted = (
    [width, height]: readonly [number, number],
    grey: (x: number, y: number) => number,
    on: Canvas,
  ) => {
    const rgba = new Uint8Array(width * height * 4);
    for (let i = 0; i < width * height; i++) {
      const value = grey(i % width, Math.floor(i / width));
      rgba.set([value, value, value, 255], 4 * i);
    }
    const target = new Uint8Array(on.width * on.height * on.channels);
    paint({ width, height, rgba, frames: 1 }, target, on);
    return [...target];
  };

  test.each(['crop', 'pad', 'stretch'] as const)('keeps one colour: %s', (fit) => {
    for (const size of [
      [4, 4],
      [8, 8],
      [2, 2],
      [3, 3],
      [17, 17],
    ] as const) {
      expect(new Set(painted(size, () => 77, canvas({ fit, channels: 3 })))).toEqual(new Set([77]));
    }
  });

  test('is cropped in the middle', () => {
    // 12×4: columns 4 to 7 stay.
    const seen = painted([12, 4], (x) => 10 * x, canvas({}));
    expect(seen.slice(0, 4)).toEqual([40, 50, 60, 70]);
    expect(painted([4, 12], (_, y) => 10 * y, canvas({})).filter((_, i) => i % 4 === 0)).toEqual([
      40, 50, 60, 70,
    ]);
  });

  test('is padded with the background', () => {
    const seen = painted([8, 4], () => 10, canvas({ fit: 'pad', background: [200, 200, 200] }));
    expect(seen).toEqual([...Array(4).fill(200), ...Array(8).fill(10), ...Array(4).fill(200)]);
  });

  test('a half is the weighted mean of four columns; the mean of all stays', () => {
    const seen = painted([8, 8], (x) => (x % 2 === 0 ? 0 : 200), canvas({}));
    // A triangle over 4 pixels weighs 1/8, 3/8, 3/8, 1/8. At the edge the outer one is missing.
    expect(seen.slice(0, 4)).toEqual([
      Math.round((200 * (3 + 0)) / 7),
      100,
      100,
      Math.round((200 * 4) / 7),
    ]);
  });

  test('what has the size is not touched', () => {
    const seen = painted([4, 4], (x, y) => 16 * x + y, canvas({}));
    expect(seen).toEqual(Array.from({ length: 16 }, (_, i) => 16 * (i % 4) + Math.floor(i / 4)));
  });
});
