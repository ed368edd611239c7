import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadCsv } from '../../worker/data/tables/csv.ts';
import { isTableFolder, tableFiles } from '../../worker/data/tables/table-files.ts';
import { profileTable } from '../../worker/data/tables/table-profile.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-tables-'));
  await writeFile(join(folder, '2025.csv'), 'a,kind,y\n1,red,10\n2,blue,20\n');
  await writeFile(join(folder, '2026-1.csv'), 'y,a,kind\n30,3,red\n40,,green\n');
  await writeFile(join(folder, '2026-2.csv.gz'), gzipSync('a,kind,y\n5,blue,50\n'));
  await writeFile(join(folder, 'README.md'), 'not a table');
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const OPTIONS = { targets: ['y'], categorical: ['kind'], missing: 'mean' } as const;
const namesOf = async (path: string) => (await tableFiles(path)).map((file) => basename(file));

test('a path is one file, a folder or a pattern; files come sorted by name', async () => {
  expect(await namesOf(folder)).toEqual(['2025.csv', '2026-1.csv', '2026-2.csv.gz']);
  expect(await namesOf(join(folder, '2026-*'))).toEqual(['2026-1.csv', '2026-2.csv.gz']);
  expect(await namesOf(join(folder, '202?.csv'))).toEqual(['2025.csv']);
  expect(await namesOf(join(folder, '2025.csv'))).toEqual(['2025.csv']);
  // The reader says that it is not there.
  expect(await namesOf(join(folder, 'no.csv'))).toEqual(['no.csv']);
  // A file of exactly this name is no pattern, and a point stands for itself.
  await writeFile(join(folder, 'a*.csv'), 'x\n1\n');
  expect(await namesOf(join(folder, 'a*.csv'))).toEqual(['a*.csv']);
  expect(await namesOf(join(folder, '20*.csv'))).toEqual(['2025.csv', '2026-1.csv']);
  await expect(tableFiles(join(folder, '1999-*.csv'))).rejects.toMatchObject({
    code: 'DP_DATA_MISSING',
    message: expect.stringContaining("fits '1999-*.csv'"),
  });
  const empty = join(folder, 'empty');
  await mkdir(empty);
  await expect(tableFiles(empty)).rejects.toThrow('none of its files ends in .csv');
  // With folders in it, it may be one of pictures.
  expect(await isTableFolder(folder)).toBe(false);
  await rm(empty, { recursive: true });
  expect(await isTableFolder(folder)).toBe(true);
});

test('a list, a folder and a pattern are read as one table, the same as one file', async () => {
  const list = ['2025.csv', '2026-1.csv', '2026-2.csv.gz'].map((name) => join(folder, name));
  const whole = join(folder, 'whole.txt');
  await writeFile(whole, 'a,kind,y\n1,red,10\n2,blue,20\n3,red,30\n,green,40\n5,blue,50\n');
  const one = await loadCsv(whole, OPTIONS);
  for (const files of [
    list,
    folder,
    join(folder, '20*'),
    { train: [list[0]!, join(folder, '2026-*')] },
  ]) {
    const data = await loadCsv(files, OPTIONS);
    expect(data.train).toEqual(one.train);
    expect(data.inputNames).toEqual(one.inputNames);
  }
});

test('a file with other columns is named with the column', async () => {
  await writeFile(join(folder, '2027.csv'), 'a,y\n1,2\n');
  await expect(loadCsv(folder, OPTIONS)).rejects.toThrow(/2027.csv .*'kind'.* as .*2025.csv has/);
  await expect(profileTable(folder)).rejects.toThrow(
    /2027.csv.*no column 'kind', as .*2025.csv has/,
  );
});

test('what is known of the columns of a table is known of all its files', async () => {
  const profile = await profileTable(folder);
  expect(profile.count).toBe(5);
  expect(
    profile.columns.map(({ name, missing, numberCount }) => [name, missing, numberCount]),
  ).toEqual([
    ['a', 1, 4],
    ['kind', 0, 0],
    ['y', 0, 5],
  ]);
  expect([...profile.columns[1]!.kinds!]).toEqual([
    ['red', 2],
    ['blue', 2],
    ['green', 1],
  ]);
});
