import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeCsv } from '../../worker/data/tables/table-summary.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-tables-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** As a moment of UTC: `Date.parse` reads a text without a zone by this machine's. */
const utc = (text: string) => `${text.replace(/Z$/, '')}Z`;

describe('the summary of a table', () => {
  it('counts a number under one name, however it is written, and says what was left out', async () => {
    const path = join(folder, 'grades.csv');
    await writeFile(path, 'grade,x\n1.0,a\n10,TRUE\n1,a\n2,a\n,\n');
    const { columns, notes } = await describeCsv(path);
    expect(columns[0]!.categories).toEqual({ 1: 2, 2: 1, 10: 1 });
    expect(columns[1]!.categories).toEqual({ TRUE: 1, a: 3 });
    expect(notes).toEqual(['1 line of empty cells at the end left out']);
  });

  it('describes columns, counting what is missing', async () => {
    const path = join(folder, 'x.csv');
    await writeFile(path, 'x,c\n1,a\n?,b\n3,a\n');
    const { columns, count, delimiter } = await describeCsv(path);
    expect([count, delimiter]).toEqual([3, ',']);
    expect(columns).toEqual([
      {
        name: 'x',
        count: 3,
        missing: 1,
        unit: null,
        numbers: { mean: 2, deviation: 1, min: 1, max: 3 },
        ...{ categories: { 1: 1, 3: 1 }, dates: null },
      },
      {
        ...{ name: 'c', count: 3, missing: 0, unit: null, numbers: null },
        ...{ categories: { a: 2, b: 1 }, dates: null },
      },
    ]);
  });

  it('describes Parquet as the same table of text', async () => {
    const of = (name: string) =>
      describeCsv(join(import.meta.dirname, '../fixtures/parquet', name));
    const [parquet, text] = [await of('zstd.parquet'), await of('table.csv')];
    expect([parquet.isParquet, text.isParquet]).toEqual([true, false]);
    expect(parquet.columns.map(({ name }) => name)).toEqual(text.columns.map(({ name }) => name));
    // Float32 has more digits than the text.
    const exact = (columns: typeof text.columns) =>
      columns
        .filter(({ name }) => name !== 'f')
        // Parquet has moments, whose text is ours.
        .map(({ dates, ...column }) => ({
          ...column,
          dates: dates && { count: dates.count, first: Date.parse(utc(dates.first)) },
        }));
    expect(exact(parquet.columns)).toEqual(exact(text.columns));
    expect(text.columns.filter(({ dates }) => dates !== null).length).toBeGreaterThan(0);
    const rounded = parquet.columns.find(({ name }) => name === 'f')!.numbers!;
    expect(rounded.max).toBeCloseTo(text.columns.find(({ name }) => name === 'f')!.numbers!.max, 6);
  });
});
