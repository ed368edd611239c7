import { appendFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { dataOf } from '../../worker/data/given.ts';
import { csvSource } from '../../worker/data/sources/csv.ts';
import { Offsets } from '../../worker/data/sources/offsets.ts';
import { type CsvParts, loadCsv } from '../../worker/data/tables/csv.ts';
import type { CsvOptions } from '../../worker/data/tables/csv-options.ts';
import { readFrom as read } from '../support/source-reading.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-csv-source-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(name: string, bytes: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

/** Every part, field and fact as `loadCsv` has them, whatever the order of reading. */
async function mustAgree(files: string | readonly string[] | CsvParts, options: CsvOptions) {
  const eager = await loadCsv(files, options);
  const lazy = await csvSource(files, options);
  const { train: _, validation: __, test: ___, ...facts } = eager;
  const { train: ____, validation: _____, test: ______, ...own } = lazy;
  expect(own).toEqual(facts);
  // What `data()` may return.
  const checked = dataOf(lazy);
  expect([checked.classCount, checked.classes ?? null]).toEqual([eager.classCount, eager.classes]);
  for (const part of ['train', 'validation', 'test'] as const) {
    const wanted = eager[part];
    const source = lazy[part];
    expect(source?.count).toBe(wanted?.count);
    if (!wanted || !source) continue;
    const backwards = Array.from({ length: wanted.count }, (_, i) => wanted.count - 1 - i);
    const order = [...backwards, 0, 0];
    const rows = await read(source, order);
    for (const name of ['inputs', 'targets'] as const) {
      const { values, shape, ...rest } = wanted[name];
      const { shape: one, type: _, classCount: __, ...field } = source.fields[name]!;
      expect(field).toEqual(rest);
      expect(one).toEqual(shape.slice(1));
      const size = values.length / wanted.count;
      const picked = order.flatMap((row) => [...values.subarray(row * size, (row + 1) * size)]);
      expect(rows[name]!.constructor).toBe(values.constructor);
      expect(Array.from(rows[name]!)).toEqual(picked);
    }
  }
  return lazy;
}

const AUTO = 'examples/data/auto-mpg.csv';

describe('a table by position', () => {
  it('gives the numbers, names and notes of loadCsv for real data', async () => {
    const options = { targets: ['mpg'], categorical: ['origin'], ignore: ['name'] };
    await mustAgree(AUTO, { ...options, missing: 'mean' });
    await mustAgree(AUTO, { ...options, missing: 'drop', testFraction: 0.2 });
  });

  it('reads every way to write a table as loadCsv does', async () => {
    const options: CsvOptions = { targets: ['y'] };
    await mustAgree(await file('crlf.csv', 'x,y\r\n1,2\r\n\r\n3,4\r\n'), options);
    await mustAgree(await file('cr.csv', 'x,y\r1,2\r3,4'), options);
    await mustAgree(await file('sep.csv', 'sep=;\nx;y\n1;2\n3;4\n'), options);
    await mustAgree(await file('trailing.csv', 'x,y\n1,2,\n3,4,\n'), options);
    await mustAgree(await file('blank.csv', 'x,y\n1,2\n,\n,\n'), options);
    await mustAgree(await file('comments.csv', '# a\nx,y\n# b\n1,2\n# c\n3,4\n# d\n'), {
      ...options,
      comment: '#',
    });
    const quoted = 'x,t,y\n1,"a\nb, ""c""",2\n3,é€😀,4\n5,"a\nb, ""c""",6\n';
    await mustAgree(await file('quoted.csv', quoted), { ...options, categorical: ['t'] });
    await mustAgree(await file('mark.csv', `\ufeff${quoted}`), { ...options, hashed: { t: 8 } });
    const wide = Buffer.concat([Buffer.of(0xff, 0xfe), Buffer.from(quoted, 'utf16le')]);
    await mustAgree(await file('wide.csv', wide), { ...options, categorical: ['t'] });
    const latin = Buffer.from('x;t;y\n1,5;\x80\xe9;2\n2,5;b;4\n', 'latin1');
    await mustAgree(await file('latin.csv', latin), {
      ...{ ...options, categorical: ['t'], encoding: 'windows-1252', decimal: ',' },
    });
    const dates = 'd,k,y\n2024-12-31,a,1\n,b,2\n2024-01-01T12:30,,3\n';
    const dated: CsvOptions = { ...options, dates: ['d'], categorical: ['k'], missing: 'mean' };
    await mustAgree(await file('dates.csv', dates), dated);
  });

  it('shares classes and categories between files and parts', async () => {
    const a = await file('a.csv', 'x,c,kind\n1,red,cat\n2,blue,dog\n');
    const b = await file('b.csv', 'kind,x,c\nbird,3,red\ncat,4,green\n');
    const options: CsvOptions = { targets: ['kind'], task: 'classification', categorical: ['c'] };
    await mustAgree([a, b], options);
    await mustAgree({ train: a, validation: [b, a], test: b }, { ...options, labels: 'oneHot' });
  });

  it('finds rows behind characters of several bytes, over pieces of the file', async () => {
    const row = (i: number) => `${i},${'é€😀x'[i % 4]}${'ü'.repeat(i % 60)},${i % 7}\n`;
    const text = Array.from({ length: 90_000 }, (_, i) => row(i)).join('');
    const path = await file('large.csv', `x,t,y\n${text}`);
    const { train } = await csvSource(path, { targets: ['y'], ignore: ['t'] });
    expect(Buffer.byteLength(text)).toBeGreaterThan(5 * 2 ** 20);
    const order = [89_999, 0, 64, 63, 70_001, 70_000, 12_345];
    const { inputs, targets } = await read(train, order);
    expect(Array.from(inputs!)).toEqual(order);
    expect(Array.from(targets!)).toEqual(order.map((i) => i % 7));
  });

  it('has a key that changes with the file and with how it is read', async () => {
    const path = await file('keyed.csv', 'x,z,y\n1,1,2\n3,3,4\n');
    const key = async (options: CsvOptions) => (await csvSource(path, options)).train.key;
    const first = await key({ targets: ['y'] });
    expect(await key({ targets: ['y'] })).toBe(first);
    expect(await key({ targets: ['z'] })).not.toBe(first);
    expect(await key({ targets: ['y'], testFraction: 0.5 })).not.toBe(first);
    await appendFile(path, '5,5,6\n');
    expect(await key({ targets: ['y'] })).not.toBe(first);
  });
});

describe('what cannot be read by position', () => {
  const options: CsvOptions = { targets: ['y'] };
  const sjis = Buffer.concat([
    Buffer.from('x,t,y\n1,'),
    Buffer.of(0x83, 0x41),
    Buffer.from(',2\n'),
  ]);
  const table: [string, string | Uint8Array | null, CsvOptions, string, RegExp][] = [
    ['missing', null, options, 'DP_DATA_MISSING', /does not exist/],
    ['empty', '', options, 'DP_DATA_CORRUPT', /it is empty/],
    ['no-rows', 'x,y\n', options, 'DP_DATA_CORRUPT', /no line after the header/],
    ['gzip', gzipSync('x,y\n1,2\n'), options, 'DP_DATA_CORRUPT', /compressed by gzip.*gunzip/],
    ['parquet', 'PAR1\0\0\0\0', options, 'DP_DATA_CORRUPT', /a Parquet file/],
    [
      'sjis',
      sjis,
      { ...options, ignore: ['t'], encoding: 'shift_jis' },
      'DP_DATA_CORRUPT',
      /save it as UTF-8/,
    ],
    ['cell', 'x,y\n1,2\nabc,3\n', options, 'DP_DATA_CORRUPT', /line 3, column 'x'/],
    ['option', 'x,y\n1,2\n', { ...options, lgo: 1 } as never, 'DP_EXPERIMENT_INVALID', /csvSource/],
  ];
  it.each(table)('%s', async (name, bytes, own, code, message) => {
    const path = join(folder, `bad-${name}.csv`);
    if (bytes !== null) await writeFile(path, bytes);
    const error = await csvSource(path, own).then(
      () => null,
      (reason: unknown) => reason,
    );
    expect(errorCode(error)).toBe(code);
    expect(errorText(error)).toMatch(message);
    if (code !== 'DP_EXPERIMENT_INVALID') expect(errorText(error)).toContain(path);
  });

  it('a file that changes while examples are read', async () => {
    const path = await file('changes.csv', 'x,y\n1,2\n3,4\n');
    const { train } = await csvSource(path, options);
    await read(train, [1]);
    await appendFile(path, '5,6\n');
    const reason = await read(train, [1]).catch((error: unknown) => error);
    expect(errorCode(reason)).toBe('DP_DATA_CORRUPT');
    expect(errorText(reason)).toMatch(/changes\.csv: it has changed since it was opened/);
    await rm(path);
    expect(errorCode(await read(train, [1]).catch((error: unknown) => error))).toBe(
      'DP_DATA_MISSING',
    );
  });

  it('a reading that is not needed any more', async () => {
    const path = await file('aborted.csv', 'x,y\n1,2\n');
    const { train } = await csvSource(path, options);
    const reason = new Error('stop');
    await expect(async () =>
      train.read(Int32Array.of(0), { signal: AbortSignal.abort(reason) }),
    ).rejects.toBe(reason);
  });
});

it('offsets of rows are kept as they are, also beyond 4 GiB, and refused where rows are further apart', () => {
  const gaps = fc.array(fc.integer({ min: 0, max: 2 ** 26 - 1 }), { maxLength: 400 });
  fc.assert(
    fc.property(gaps, (given) => {
      const offsets = new Offsets();
      let at = 0;
      const wanted = given.map((gap) => (at += gap));
      for (const each of wanted) expect(offsets.push(each)).toBe(true);
      offsets.trim();
      expect(wanted.map((_, i) => offsets.at(i))).toEqual(wanted);
    }),
  );
  const offsets = new Offsets();
  offsets.push(0);
  expect(offsets.push(2 ** 32 - 1)).toBe(true);
  expect(offsets.push(2 ** 32)).toBe(false);
});
