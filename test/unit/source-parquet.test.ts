import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { Kept } from '../../worker/data/sources/kept.ts';
import { type ParquetSourceOptions, parquetSource } from '../../worker/data/sources/parquet.ts';
import { ParquetFile } from '../../worker/data/sources/parquet-file.ts';
import { KeptColumns, ParquetRows } from '../../worker/data/sources/parquet-rows.ts';
import { loadCsv } from '../../worker/data/tables/csv.ts';
import { failureOf as failure, readFrom as read } from '../support/source-reading.ts';

/** Written by pyarrow 22: 100 rows in row groups of 30, and the same table as CSV. */
const FIXTURES = 'test/fixtures/parquet';
const path = (name: string) => join(FIXTURES, name);

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-parquet-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const OPTIONS: ParquetSourceOptions = {
  ...{ targets: ['kind'], task: 'classification', missing: 'mean' },
  ...{ categorical: ['zone', 'flag'], dates: ['day', 'time'], ignore: ['f', 'tags'] },
};

async function mustBeAsCsv(name: string, options: ParquetSourceOptions) {
  const { train, ...facts } = await parquetSource(path(name), options);
  const csv = await loadCsv(path('table.csv'), {
    ...{ ...options, ignore: options.ignore!.filter((column) => column !== 'tags') },
  });
  expect(facts.inputNames).toEqual(csv.inputNames);
  expect(facts.classes).toEqual(csv.classes);
  const { inputs, targets } = csv.train;
  expect(train.count).toBe(csv.train.count);
  expect(train.fields.inputs!.names).toEqual(inputs.names);
  const order = [...Array(train.count).keys()].map((i) => (i * 37) % train.count);
  const rows = await read(train, order);
  const width = inputs.names!.length;
  expect(rows.inputs).toEqual(
    Float64Array.from(
      order.flatMap((i) => [...inputs.values.subarray(i * width, (i + 1) * width)]),
    ),
  );
  expect(rows.targets).toEqual(Int32Array.from(order, (i) => targets.values[i]!));
  return facts;
}

describe('a Parquet file', () => {
  const files = ['snappy', 'zstd', 'gzip', 'none', 'brotli', 'lz4', 'v2'];
  it.each(files)('compressed by %s has the numbers of the same table as CSV', async (name) => {
    await mustBeAsCsv(`${name}.parquet`, OPTIONS);
  });

  it('leaves out the rows that CSV leaves out, and holds the same out', async () => {
    await mustBeAsCsv('snappy.parquet', { ...OPTIONS, missing: 'drop' });
    await mustBeAsCsv('snappy.parquet', { ...OPTIONS, testFraction: 0.2 });
  });

  it('keeps float32, ids of 64 bits and booleans as numbers', async () => {
    const { train } = await parquetSource(path('zstd.parquet'), {
      ...{ targets: ['x'], inputs: ['f', 'id', 'flag'] },
    });
    const { inputs } = await read(train, [1]);
    expect(Math.fround(inputs![0]!)).toBe(inputs![0]);
    expect([...inputs!.subarray(1)]).toEqual([1_000_000, 0]);
  });

  it('may be several files and parts, which share their categories', async () => {
    const options: ParquetSourceOptions = {
      targets: ['x'],
      inputs: ['zone'],
      categorical: ['zone'],
    };
    await copyFile(path('snappy.parquet'), join(folder, 'a.parquet'));
    await copyFile(path('v2.parquet'), join(folder, 'b.pq'));
    const both = await parquetSource(folder, options);
    expect(both.train.count).toBe(200);
    expect(await read(both.train, [1, 101])).toEqual({
      inputs: Float64Array.of(0, 0, 1, 0, 0, 1),
      targets: Float64Array.of(0.8216181435011584, 0.8216181435011584),
    });
    const parts = await parquetSource(
      { train: join(folder, 'a.parquet'), test: join(folder, 'b.pq') },
      options,
    );
    expect([parts.train.count, parts.test!.count]).toEqual([100, 100]);
  });

  it('decodes each column of a row group once where all are kept, and two readers wait for one', async () => {
    const { train } = await parquetSource(path('snappy.parquet'), OPTIONS);
    const decode = ParquetFile.prototype.decode;
    let count = 0;
    const decoded: string[] = [];
    ParquetFile.prototype.decode = function (...args) {
      count++;
      decoded.push(`${args[0].start} ${args[1]}`);
      return decode.apply(this, args);
    };
    try {
      await Promise.all([read(train, [99, 0, 31, 61]), read(train, [1, 62, 32, 98])]);
    } finally {
      ParquetFile.prototype.decode = decode;
    }
    // 4 row groups.
    expect(count % 4).toBe(0);
    expect(count).toBeGreaterThan(4);
    expect(new Set(decoded).size).toBe(count);
  });
});

describe('rows of a Parquet file that are asked for in order', () => {
  const all = [...Array(100).keys()];
  const rowsOf = async (name: string) => {
    const parquet = await ParquetFile.open(path(name));
    const chosen = { parquet, names: parquet.names, places: parquet.names.map((_, i) => i) };
    const [large, small] = [new KeptColumns(), new KeptColumns()];
    const ordered = new ParquetRows(chosen, large);
    // As with a file that is larger than what is kept.
    large.all = Number.POSITIVE_INFINITY;
    return { ordered, large, anywhere: new ParquetRows(chosen, small) };
  };
  const { signal } = new AbortController();

  it.each(['none', 'snappy', 'v2', 'zstd'])('are those of any order: %s.parquet', async (name) => {
    const { ordered, large, anywhere } = await rowsOf(`${name}.parquet`);
    const runs = [
      all.slice(0, 40),
      all.slice(40),
      // From the beginning again, with gaps, and behind them; then back.
      all.filter((row) => row % 3 === 0),
      all.slice(60, 70),
      all.slice(20, 30),
    ];
    const read = await Promise.all(runs.map((rows) => ordered.cells(rows, signal)));
    for (const [i, rows] of runs.entries()) {
      expect(read[i]).toEqual(await anywhere.cells(rows, signal));
    }
    expect(large.misses).toBe(0);
    // A minibatch is in no order.
    await ordered.cells([5, 1, 9, 3, 80, 2, 4, 6], signal);
    expect(large.misses).toBeGreaterThan(0);
  });

  it('can be read on after an abort and after an error', async () => {
    const { ordered, anywhere } = await rowsOf('none.parquet');
    const stopped = AbortSignal.abort(new Error('not needed'));
    expect(errorText(await failure(ordered.cells(all, stopped)))).toBe('not needed');
    expect(await ordered.cells(all, signal)).toEqual(await anywhere.cells(all, signal));
  });
});

describe('what is kept of a source', () => {
  it('stays within its bytes, and the one used longest ago goes first', async () => {
    const kept = new Kept<string, string>(100);
    const get = (key: string, bytes: number) => kept.get(key, bytes, async () => key);
    await get('a', 50);
    await get('b', 50);
    await get('a', 50);
    await get('c', 50);
    expect(['a', 'b', 'c'].map((key) => kept.has(key))).toEqual([true, false, true]);
    await get('large', 101);
    expect(['a', 'c', 'large'].map((key) => kept.has(key))).toEqual([false, false, true]);
    await get('a', 50);
    expect(kept.has('large')).toBe(false);
    expect(kept.misses).toBe(5);
  });

  it('makes again what could not be made', async () => {
    const kept = new Kept<string, number>(100);
    await expect(kept.get('a', 1, () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(await kept.get('a', 1, async () => 2)).toBe(2);
  });
});

describe('what is no Parquet file, or a damaged one', () => {
  const options: ParquetSourceOptions = { targets: ['x'], inputs: ['id'] };
  const cut = (bytes: Buffer) => bytes.subarray(0, bytes.length - 9);
  const lyingFooter = (bytes: Buffer) => {
    bytes.writeUInt32LE(2 ** 31, bytes.length - 8);
    return bytes;
  };
  const holed = (bytes: Buffer) => bytes.fill(0xff, 4, 400);
  // The footer speaks of bytes that are not there any more.
  const shortened = (bytes: Buffer) => Buffer.concat([bytes.subarray(0, 4), bytes.subarray(8_000)]);
  const table: [string, ((bytes: Buffer) => Uint8Array) | null, RegExp][] = [
    ['missing', null, /does not exist/],
    ['empty', () => Buffer.alloc(0), /it is empty/],
    ['text', () => Buffer.from('x,y\n1,2\n'), /it is not a Parquet file/],
    ['png', () => Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), /a PNG picture/],
    ['magic', () => Buffer.from('PAR1'), /does not end with PAR1/],
    ['cut', cut, /does not end with PAR1: the file is truncated/],
    ['footer', lyingFooter, /its description takes 2147483648 bytes/],
    ['encrypted', () => Buffer.from('PARE12345678PARE'), /encrypted/],
    ['holed', holed, /column '(id|x)': it cannot be decoded/],
    ['shortened', shortened, /is said to be at bytes.*truncated or damaged/],
  ];
  it.each(table)('%s', async (name, change, message) => {
    const bad = join(folder, `${name}.bad`);
    if (change) await writeFile(bad, change(await readFile(path('none.parquet'))));
    const error = await failure(parquetSource(bad, options));
    expect(errorText(error)).toMatch(message);
    expect(errorText(error)).toContain(bad);
    expect(errorCode(error)).toBe(change ? 'DP_DATA_CORRUPT' : 'DP_DATA_MISSING');
  });

  it('says what is wrong with columns and cells, by row', async () => {
    const of = (own: ParquetSourceOptions, name = 'zstd.parquet') =>
      failure(parquetSource(path(name), own)).then(errorText);
    expect(await of({ targets: ['y'] })).toMatch(/'tags' holds lists/);
    expect(await of({ targets: ['y'], ignore: ['tags'] })).toMatch(/has no column 'y'/);
    expect(await of({ targets: ['x'], inputs: ['gap'] })).toMatch(/row 3, column 'gap'.*missing/);
    expect(await of({ targets: ['x'], inputs: ['zone'] })).toMatch(/row 0, column 'zone'/);
    expect(await of({ targets: ['x'], inputs: ['id'] }, 'no-rows.parquet')).toMatch(/no rows/);
    expect(await of({ ...options, delimiter: ';' } as ParquetSourceOptions)).toMatch(
      /parquetSource: .*delimiter/,
    );
  });

  it('never does anything but read or refuse, wherever a byte is changed', async () => {
    const good = await readFile(path('v2.parquet'));
    const bad = join(folder, 'changed.parquet');
    for (let at = 0; at < good.length; at += 211) {
      const bytes = Buffer.from(good);
      bytes[at]! ^= 0x55;
      await writeFile(bad, bytes);
      const error = await failure(parquetSource(bad, options));
      if (error !== null) expect(errorCode(error)).toMatch(/^DP_DATA|^DP_EXPERIMENT_INVALID/);
    }
  });
});
