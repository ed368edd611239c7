import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { inspectCommand } from '../../cli/data/inspect.ts';
import { unasked } from '../../cli/init/ask.ts';
import { tableDraft } from '../../cli/init/table.ts';
import { parseReading, type Reading, type TableReading } from '../../shared/reading.ts';
import { loadCsv } from '../../worker/data/tables/csv.ts';
import { readNewTable } from '../../worker/data/tables/read-inputs.ts';
import { encoderOf } from '../../worker/serving/encode.ts';

/** Columns of numbers with their unit: from the file to the answer of a trained model. */

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-units-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(text: string, name = 'parcels.csv'): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

const ROWS = Array.from({ length: 40 }, (_, i) => (i * 7919) % 101);
/** The unit now and then lacks its space, or is left out. */
const PARCELS = [
  'weight,size,grade,price',
  ...ROWS.map(
    (n, i) =>
      `${n}${['  kg', ' kg', 'kg', ''][i % 4]},${n % 17}.5 cm,${n % 3}a,${2 * n + (i % 5)} min`,
  ),
].join('\n');

const UNITS = { weight: 'kg', size: 'cm', price: 'min' };
const OPTIONS = { targets: ['price'], categorical: ['grade'] };
const readingOf = async (path: string) =>
  (await loadCsv(path, { ...OPTIONS, units: UNITS })).train.inputs.reading as TableReading;

describe('units', () => {
  test('are read with their numbers, and a reading keeps them', async () => {
    const path = await file(PARCELS);
    const { train } = await loadCsv(path, { ...OPTIONS, units: UNITS });
    const [width] = train.inputs.shape.slice(1);
    ROWS.forEach((n, i) => {
      expect([train.inputs.values[i * width!], train.inputs.values[i * width! + 1]]).toEqual([
        n,
        (n % 17) + 0.5,
      ]);
      expect(train.targets.values[i]).toBe(2 * n + (i % 5));
    });
    const reading = await readingOf(path);
    expect(parseReading(JSON.stringify(reading))).toEqual(reading);
    expect(reading.columns.map((column) => 'unit' in column && column.unit)).toEqual([
      ...['kg', 'cm', false],
    ]);
    expect(reading.targetUnits).toEqual({ price: 'min' });
  });

  test('a run without units keeps the reading that it always kept', async () => {
    const path = await file('x,y\n1,2\n3,4\n', 'plain.csv');
    const { train } = await loadCsv(path, { targets: ['y'] });
    expect(train.inputs.reading).toEqual({
      ...{ kind: 'table', targets: ['y'] },
      columns: [{ name: 'x', as: 'number', gap: false }],
    });
  });

  test('new examples may have them or not, in files and as records; another unit is refused', async () => {
    const reading = await readingOf(await file(PARCELS));
    const fresh = await file('grade,size,weight\n1a,3.5cm,12\n0a,4.5,13 kg\n', 'new.csv');
    const { inputs } = await readNewTable(fresh, reading);
    expect([...inputs.values]).toEqual([12, 3.5, 0, 1, 0, 13, 4.5, 1, 0, 0]);
    const encoder = encoderOf(reading as Reading);
    const encoded = (weight: unknown) => {
      const target = new Float64Array(encoder.size);
      encoder.encode({ weight, size: '3.5 cm', grade: '1a' }, target, 0);
      return target[0];
    };
    expect(['12 kg', '12kg', '12', 12].map(encoded)).toEqual([12, 12, 12, 12]);
    expect(() => encoded('12 lb')).toThrow("'weight' is '12 lb': it is not a number in kg");
    const wrong = await file('grade,size,weight\n1a,3.5,12 lb\n', 'wrong.csv');
    await expect(readNewTable(wrong, reading)).rejects.toThrow(
      "line 2, column 'weight': '12 lb' is not in kg, the unit of the column: convert it",
    );
  });

  test.for<[what: string, units: object, problem: RegExp]>([
    ['no unit', { weight: '' }, /units.*object of units of 1 to 12 characters/],
    ['a number', { weight: '2' }, /units.*object of units of 1 to 12 characters/],
    ['13 characters', { weight: 'abcdefghijklm' }, /units.*object of units of 1 to 12/],
    ['no such column', { wieght: 'kg' }, /has no column 'wieght'.*Did you mean 'weight'/],
    ['a category', { grade: 'a' }, /'grade' has a unit in `units`, but it is not read as numbers/],
  ])('are refused in the options: %s', async ([, units, problem]) => {
    const path = await file(PARCELS);
    await expect(loadCsv(path, { ...OPTIONS, units: { ...units } })).rejects.toThrow(problem);
  });

  test('12 characters are a unit', async () => {
    const path = await file('x,y\n1 abcdefghijkl,2\n3,4\n', 'long.csv');
    const { train } = await loadCsv(path, { targets: ['y'], units: { x: 'abcdefghijkl' } });
    expect([...train.inputs.values]).toEqual([1, 3]);
  });

  test('init writes them, and inspect shows them', async () => {
    const data = await file(PARCELS);
    const { notes, source } = await tableDraft({ data, place: "'parcels.csv'" }, unasked);
    expect(source).toContain("units: { 'price': 'min', 'weight': 'kg', 'size': 'cm' },");
    // Few kinds that begin with a number are names.
    expect(source).toContain("categorical: ['grade'],");
    expect(source).toContain('// In min.');
    expect(notes).toContain("column 'weight' has numbers in kg");
    const lines: string[] = [];
    const write = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
      lines.push(String(text));
      return true;
    });
    try {
      await inspectCommand(data, {});
    } finally {
      write.mockRestore();
    }
    expect(lines.join('')).toMatch(/^weight {2}in kg\n {2}mean /m);
  });
});
