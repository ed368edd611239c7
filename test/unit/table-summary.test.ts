import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeCsv } from '../../worker/data/table-summary.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-tables-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

describe('the summary of a table', () => {
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
        numbers: { mean: 2, deviation: 1, min: 1, max: 3 },
        categories: { 1: 1, 3: 1 },
      },
      { name: 'c', count: 3, missing: 0, numbers: null, categories: { a: 2, b: 1 } },
    ]);
  });
});
