import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { type CsvOptions, loadCsv, parseCsv } from '../../worker/data/csv.ts';
import { prepareData } from '../../worker/data/examples.ts';

const AUTO_MPG = fileURLToPath(new URL('../../examples/data/auto-mpg.csv', import.meta.url));
const CARS = 'kg,colour,doors,fast\n1000,red,3,yes\n1200.5,blue,5,no\n900,red,5,yes\n';

const parse = (text: string, options: CsvOptions) =>
  parseCsv(Buffer.from(text), 'cars.csv', options);
const failure = (text: string, options: CsvOptions) => {
  try {
    parse(text, options);
  } catch (error) {
    return `${errorCode(error)} ${(error as Error).message}`;
  }
  return 'read';
};

describe('CSV', () => {
  it('reads a regression: named targets, categories as one 0/1 input each, in sorted order', () => {
    const data = parse(CARS, { targets: ['kg'], categorical: ['colour'], ignore: ['fast'] });
    expect(data.inputNames).toEqual(['colour=blue', 'colour=red', 'doors']);
    expect(data.train.inputs).toEqual({
      values: Float64Array.of(0, 1, 3, 1, 0, 5, 0, 1, 5),
      names: ['colour=blue', 'colour=red', 'doors'],
      shape: [3, 3],
    });
    expect(data.train.targets).toEqual({
      values: Float64Array.of(1000, 1200.5, 900),
      names: ['kg'],
      shape: [3, 1],
    });
    expect([data.classCount, data.classes]).toEqual([undefined, null]);
    expect(data.source).toBe('3 examples with 3 inputs from cars.csv');
  });

  it('reads a classification: class numbers in sorted order, or one column a class', () => {
    const options: CsvOptions = { targets: ['fast'], task: 'classification', inputs: ['kg'] };
    const data = parse(CARS, options);
    expect(data.classes).toEqual(['no', 'yes']);
    expect(data.classCount).toBe(2);
    expect(data.train.targets).toEqual({
      values: Int32Array.of(1, 0, 1),
      shape: [3],
      names: ['fast'],
      classes: ['no', 'yes'],
    });
    expect(parse(CARS, { ...options, labels: 'oneHot' }).train.targets).toEqual({
      values: Float64Array.of(0, 1, 1, 0, 0, 1),
      shape: [3, 2],
      names: ['fast=no', 'fast=yes'],
      classes: ['no', 'yes'],
    });
  });

  it('sorts classes that are numbers by number', () => {
    const data = parse('x,y\n1,10\n2,9\n3,2\n', { targets: ['y'], task: 'classification' });
    expect(data.classes).toEqual(['2', '9', '10']);
    expect(data.train.targets.values).toEqual(Int32Array.of(2, 1, 0));
  });

  it('takes quotes, byte order mark, empty lines, CRLF and other delimiters', () => {
    const text = '\ufeff"a; b";y\r\n" 1 ";2\r\n\r\n"-.5e1";+4.\r\n';
    const data = parse(text, { targets: ['y'], delimiter: ';' });
    expect(data.inputNames).toEqual(['a; b']);
    expect(Array.from(data.train.inputs.values)).toEqual([1, -5]);
    expect(Array.from(data.train.targets.values)).toEqual([2, 4]);
  });

  it('refuses missing values and words among numbers with line and column', () => {
    const options: CsvOptions = { targets: ['y'], categorical: ['c'] };
    for (const gap of ['', ' ', '?', 'NA', 'NaN', 'null']) {
      expect(failure(`x,c,y\n1,a,2\n${gap},b,3\n`, options)).toMatch(
        /^DP_DATA_CORRUPT cars\.csv: line 3, column 'x': the value is missing/,
      );
      expect(failure(`x,c,y\n1,a,2\n\n1,${gap},3\n`, options)).toMatch(/line 4, column 'c'/);
    }
    for (const word of ['12 kg', '0x10', '1,5', 'Infinity', '1e99', '1_000']) {
      expect(failure(`x,c,y\n1,a,2\n"${word}",b,3\n`, options)).toContain(
        `line 3, column 'x': '${word}' is no number`,
      );
    }
  });

  it('refuses lines of another length, unclosed quotes, bad headers, empty files', () => {
    const options: CsvOptions = { targets: ['y'] };
    expect(failure('x,y\n1,2\n1,2,3\n', options)).toMatch(/line 3: 3 cells; the header has 2/);
    expect(failure('x,y\n1,2\n1\n', options)).toMatch(/line 3: 1 cells/);
    expect(failure('x,y\n1,"2\n', options)).toMatch(/^DP_DATA_CORRUPT/);
    expect(failure('x,y,x\n1,2,3\n', options)).toContain("two columns are named 'x'");
    expect(failure('x,,y\n1,2,3\n', options)).toContain('column 2 has no name');
    expect(failure('', options)).toContain('it is empty');
    expect(failure('x,y\n', options)).toContain('no line after the header');
  });

  it('names a column that the header lacks, and columns that contradict', () => {
    expect(failure(CARS, { targets: ['price'] })).toMatch(
      /^DP_EXPERIMENT_INVALID cars\.csv has no column 'price'; it has 'kg', 'colour'/,
    );
    expect(failure(CARS, { targets: ['kg'], inputs: ['kg'] })).toContain('both input and target');
    expect(failure(CARS, { targets: [] })).toContain('0 target columns');
    expect(failure('y\n1\n', { targets: ['y'] })).toContain('no column is left');
  });

  it('refuses an identifier as a category', () => {
    const lines = Array.from({ length: 1001 }, (_, i) => `id${i},1`);
    const options: CsvOptions = { targets: ['y'], categorical: ['id'] };
    expect(failure(`id,y\n${lines.join('\n')}`, options)).toMatch(/more than 1000 categories/);
    expect(failure(`id,y\n${lines.slice(1).join('\n')}`, options)).toBe('read');
  });

  it('gives back every number that was written, as float64', () => {
    // Adding 0 makes -0 to 0: as text they are the same.
    const number = fc.float({ noNaN: true, noDefaultInfinity: true }).map((value) => value + 0);
    fc.assert(
      fc.property(fc.array(fc.tuple(number, number), { minLength: 1 }), (rows) => {
        const text = `x,y\n${rows.map((row) => row.map(String).join(',')).join('\n')}\n`;
        const { train } = parse(text, { targets: ['y'] });
        expect(train.inputs.values).toEqual(Float64Array.from(rows, ([x]) => x));
        expect(train.targets.values).toEqual(Float64Array.from(rows, ([, y]) => y));
      }),
    );
  });

  it('never does anything but read or refuse, whatever bytes it is given', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), fc.nat(CARS.length), (noise, at) => {
        const text = Buffer.from(CARS);
        const bytes = Buffer.concat([text.subarray(0, at), noise, text.subarray(at)]);
        try {
          const { train } = parseCsv(bytes, 'x', {
            targets: ['kg'],
            categorical: ['colour', 'fast'],
          });
          expect(train.inputs.values.length).toBe(train.count * train.inputs.shape[1]!);
        } catch (error) {
          if (!(error instanceof DownpourError)) throw error;
        }
      }),
      { numRuns: 500 },
    );
  });

  it('reads the cars of the example, standardised by feature', async () => {
    const data = await loadCsv(AUTO_MPG, {
      targets: ['mpg'],
      categorical: ['origin'],
      ignore: ['name'],
    });
    expect(data.train.count).toBe(392);
    expect(data.inputNames.slice(-4)).toEqual([
      'year',
      'origin=Europe',
      'origin=Japan',
      'origin=USA',
    ]);
    const prepared = prepareData(data, {
      seed: 1,
      validationFraction: 0.2,
      standardise: 'feature',
    });
    expect([prepared.train.count, prepared.validation.count]).toEqual([314, 78]);
    const packed = gzipSync(await readFile(AUTO_MPG));
    expect(() => parseCsv(packed, 'x', { targets: ['mpg'] })).toThrow(DownpourError);
  });
});
