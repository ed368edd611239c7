import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { nameOf } from '../../worker/data/tables/cells.ts';
import { loadCsv, parseCsv } from '../../worker/data/tables/csv.ts';
import type { CsvOptions } from '../../worker/data/tables/csv-options.ts';

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
    expect(data.train.inputs).toMatchObject({
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
    const words = {
      '12 kg': 'is not a number; name its unit in `units`, or take it out of the column',
      '150*': 'is not a number; correct it',
      '0x10': 'is not a decimal number',
      '1_000': 'is not a number; correct it',
      Infinity: 'is not finite',
      '-inf': 'is not finite',
      '1e999': 'is more than a 64-bit number can hold',
      '1,5': "is not a number: `decimal: ','` reads it as 1.5",
      '1,500':
        'is not a number: `decimal: \',\'` reads it as 1.5, `thousands: ","` reads it as 1500',
      '1.234.567': 'is not a number: `decimal: \',\', thousands: "."` reads it as 1234567',
      '1 500,5': 'is not a number: `decimal: \',\', thousands: " "` reads it as 1500.5',
      '12%': 'is not a number; take the % out',
      $120: 'is not a number; take the currency out',
      '120 €': 'is not a number; take the currency out',
      True: 'is not a number; write 1 and 0',
      '2024-01-05': 'is not a number but a date or a time; name the column in `dates`',
      '-': "is not a number; if it means a missing value, fill it in, or set `missingTexts: ['-']` and `missing: 'mean'`; else name the column in `categorical`",
      "'5'": 'is not a number; `quote: "\'"` removes the quotes',
    };
    for (const [word, problem] of Object.entries(words)) {
      expect(failure(`x,c,y\n1,a,2\n"${word}",b,3\n`, options)).toContain(
        `line 3, column 'x': '${word}' ${problem}`,
      );
    }
  });

  it('refuses lines of another length, unclosed quotes, bad headers, empty files', () => {
    const options: CsvOptions = { targets: ['y'] };
    expect(failure('x,y\n1,2\n1,2,3\n', options)).toMatch(/line 3: 3 cells; the header has 2/);
    expect(failure('x,y\n1,2\n1\n', options)).toMatch(/line 3: 1 cell; the header has 2/);
    expect(failure('x,y\n1,"2\n', options)).toMatch(
      /^DP_DATA_CORRUPT .*line 2: the quote that begins cell 2 is never closed; .*`quote: null`/,
    );
    expect(failure('x,y\n"1\n\r\n\r",2\n3,4"5\n', options)).toMatch(
      /line 6, cell 2: a misplaced quote \(4"\)/,
    );
    expect(failure('x,y\n1,"2" 3\n', options)).toContain('line 2, cell 2: a misplaced quote (" 3)');
    expect(failure('x,y, x\n1,2,3\n', options)).toContain("columns 1 and 3 are both named 'x'");
    expect(failure('', options)).toContain('it is empty');
    expect(failure('x,y\n', options)).toContain('no line after the header');
  });

  it('says of a target what can be done with a target', () => {
    const target = (text: string) => failure(`x,y\n1,${text}\n`, { targets: ['y'] });
    expect(target('yes')).toMatch(/set `task: 'classification'` if the column holds classes$/);
    expect(target('True')).toMatch(/write 1 and 0, or set `task: 'classification'`/);
    expect(target('')).toMatch(
      /fill it in, or set `missing: 'drop'`, which leaves such lines out$/,
    );
    expect(failure('x,y\n1,?\n', { targets: ['y'], task: 'classification' })).toMatch(
      /fill it in, or set `missing: 'drop'`, which leaves such lines out; if '\?' is a category, set the option `missingTexts` to the texts that mean a missing value$/,
    );
  });

  it('finds the delimiter by the first lines, and asks where there are two', () => {
    const read = (text: string, options: Partial<CsvOptions> = {}) => {
      const { train } = parse(text, { targets: ['y'], ...options });
      return [...train.inputs.values, ...train.targets.values];
    };
    for (const d of [',', ';', '\t', '|']) {
      expect(read(`x${d}y\n1${d}2\n3${d}4\n`)).toEqual([1, 3, 2, 4]);
      expect(read(`"x, ; | z"${d}y\n1${d}2\n3${d}4\n`)).toEqual([1, 3, 2, 4]);
    }
    expect(read('x,1;y\n1;2\n3;4\n')).toEqual([1, 3, 2, 4]);
    expect(read('sep=;\nx;y\n1;2\n')).toEqual([1, 2]);
    expect(read('x;y\n1,5;2\n', { decimal: ',' })).toEqual([1.5, 2]);
    expect(read('x::y\n1::2\n', { delimiter: '::' })).toEqual([1, 2]);
    expect(read('x y\n1 2\n', { delimiter: ' ' })).toEqual([1, 2]);
    const options: CsvOptions = { targets: ['y'] };
    expect(failure('x,z;y\n1,5;2\n', options)).toContain(
      'the delimiter may be "," or ";": set the option `delimiter`',
    );
    expect(failure('x y\n1 2\n', options)).toContain('set the option `delimiter`');
    expect(failure('1,2\n3,4\n', options)).toContain('a header line with names must come first');
  });

  it('takes line ends of three kinds in one file, and counts each as a line', () => {
    const options: CsvOptions = { targets: ['y'] };
    const text = 'x,y\r1,2\n3,4\r\n\r\n5,6\r\r7,8';
    expect([...parse(text, options).train.inputs.values]).toEqual([1, 3, 5, 7]);
    expect(failure(`${text}\r9,a`, options)).toContain('line 8,');
    expect(failure('x,y\r\n1,"2\r\n3"\r\n', options)).toContain('line 2,');
    expect(failure('x,y\r\n1,2\r\n"a\r\nb",3\r\n', { ...options, categorical: ['x'] })).toBe(
      'read',
    );
    expect(failure('x,y\r\n"a\r\nb",3\r\nc,z\r\n', { ...options, categorical: ['x'] })).toContain(
      'line 4,',
    );
  });

  it('leaves out comments when told what they begin with', () => {
    const text = '# of 2024\nx,y\n1,2\n#3,4\n5,6\n# end';
    const { train } = parse(text, { targets: ['y'], comment: '#' });
    expect([...train.inputs.values]).toEqual([1, 5]);
    expect(failure(`${text}\n7,a`, { targets: ['y'], comment: '#' })).toContain('line 7,');
    for (const plain of ['# of 2024\nx,y\n1,2\n', 'x,y\n1,2\n# end']) {
      expect(failure(plain, { targets: ['y'] })).toContain(
        "leave out lines that begin with #, set `comment: '#'`",
      );
    }
  });

  it('takes quotes as characters when told so', () => {
    const { inputNames } = parse('x\ty\n5" pipe\t2\n"\t3\n', {
      ...{ targets: ['y'], categorical: ['x'], quote: null },
    });
    expect(inputNames).toEqual(['x="', 'x=5" pipe']);
  });

  it('reads decimal commas and thousands when told so', () => {
    const numbers = (text: string, options: Partial<CsvOptions>) => [
      ...parse(`x;y\n${text};1\n`, { targets: ['y'], ...options }).train.inputs.values,
    ];
    const german = { decimal: ',', thousands: '.' } as const;
    expect(numbers('-1,25e2', { decimal: ',' })).toEqual([-125]);
    expect(numbers('1.234,5', german)).toEqual([1234.5]);
    expect(numbers('12', german)).toEqual([12]);
    expect(numbers('1,234,567.5', { thousands: ',' })).toEqual([1234567.5]);
    expect(numbers('1\u202f234,5', { decimal: ',', thousands: ' ' })).toEqual([1234.5]);
    const refused = (text: string, options: Partial<CsvOptions>) =>
      failure(`x;y\n${text};1\n`, { targets: ['y'], ...options });
    expect(refused('1.5', { decimal: ',' })).toContain("`decimal: '.'` reads it as 1.5");
    expect(refused('1.5', german)).toContain('is not a number');
    expect(refused('1,23', { thousands: ',' })).toContain('is not a number');
    expect(refused('1234,567', { thousands: ',' })).toContain('is not a number');
    expect(refused('1', { thousands: '.' })).toContain("`thousands` and `decimal` are both '.'");
  });

  it('keeps numbers as float64, however large, small or close', () => {
    const times = ['1700000000000', '1700000000001', '9007199254740991', '1e99', '-1e-300'];
    const { train } = parse(`x,y\n${times.map((t) => `${t},${t}`).join('\n')}\n`, {
      targets: ['y'],
    });
    expect(train.inputs.values).toEqual(Float64Array.from(times, Number));
    expect(train.targets.values).toEqual(Float64Array.from(times, Number));
  });

  it('leaves out an index and empty columns without names, and says so', () => {
    const read = (text: string, options: Partial<CsvOptions> = {}) => {
      const data = parse(text, { targets: ['y'], ...options });
      return [data.inputNames.join(), data.source.replace(/^.*?cars\.csv/, '')];
    };
    const index = '; column 1 is left out: it has no name and numbers the rows';
    expect(read(',x,y\n0,5,2\n1,6,4\n')).toEqual(['x', index]);
    expect(read('"",x,y\n"7",5,2\n"3",6,4\n')).toEqual(['x', index]);
    const empty = '; column 3 is left out: it has no name and is empty';
    expect(read('x,y,\n1,2,\n3,4,\n')).toEqual(['x', empty]);
    expect(read('x,y,\n1,2\n3,4\n')).toEqual(['x', empty]);
    expect(read('x,y\n1,2,\n3,4,\n')).toEqual(['x', '']);
    expect(read('x,y\n1,2\n,\n,\n')).toEqual(['x', '; 2 lines of empty cells at the end left out']);
    expect(read(',x,y\n0.5,5,2\n', { inputs: ['column 1', 'x'] })).toEqual(['column 1,x', '']);
    expect(read(',x,y\n0.5,5,2\n', { ignore: ['column 1'] })).toEqual(['x', '']);
    expect(read(',x,y\na,5,2\n', { categorical: ['column 1'] })).toEqual(['column 1=a,x', '']);
    const options: CsvOptions = { targets: ['y'] };
    expect(failure('x,,y\n1,0.5,3\n', options)).toMatch(
      /column 2 has no name in the header, but it holds 0\.5 \(line 2\); name it there, or set `ignore: \['column 2'\]`/,
    );
    expect(failure(',x,y\n0,5,2\n1,5,2\n0,6,4\n', options)).toContain('numbers that occur twice');
    expect(failure('x,y\n1,2,\n3,4\n5,6,\n', options)).toBe('read');
    expect(failure('x,y\n1,2\n3,4,\n', options)).toContain('line 3: 3 cells; the header has 2');
    expect(failure('x,y\n1,2\n,\n5,6\n', options)).toContain(
      "line 3, column 'x': the value is missing",
    );
    expect(failure('x,y\n"a",1,2\n"b",3,4\n', options)).toContain('col.names = NA');
  });

  it('reads a text as a category or as missing, as it is told', () => {
    const countries = 'c,y\nNA,1\nDE,2\nNone,3\n';
    const options: CsvOptions = { targets: ['y'], categorical: ['c'] };
    expect(failure(countries, options)).toContain(
      "line 2, column 'c': the value is missing ('NA'); fill it in; or set `missing: 'mean'`, which puts the mean of the column there, or `missing: 'drop'`, which leaves such lines out; or name the column in `ignore`; if 'NA' is a category, set the option `missingTexts` to the texts that mean a missing value",
    );
    expect(parse(countries, { ...options, missing: ['?'] }).inputNames).toEqual([
      'c=DE',
      'c=NA',
      'c=None',
    ]);
    expect(
      parse(countries, { targets: ['y'], categories: { c: ['NA', 'DE', 'None', 'FR'] } })
        .inputNames,
    ).toEqual(['c=NA', 'c=DE', 'c=None', 'c=FR']);
    expect(failure(countries, { ...options, missing: ['None'] })).toContain(
      "line 4, column 'c': the value is missing",
    );
    expect(failure('c,y\n,1\n', { ...options, missing: [] })).toContain('the value is missing');
    expect(failure('c,y\n-,1\n', { targets: ['y'], missing: ['-'] })).toContain(
      'the value is missing',
    );
  });

  it('refuses what another program wrote, by name', () => {
    const options: CsvOptions = { targets: ['y'] };
    const kinds = {
      'PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0....................[Content_Types].xml':
        'an Excel workbook',
      'PK\x03\x04\x14\0\0\0\0\0\0\0!\0............\x05\0....x.npy': 'an .npz archive',
      'PK\x03\x04\x14\0\0\0\0\0\0\0!\0............\x05\0....x.csv': 'a zip archive',
      'PAR1\x15\x04': 'a Parquet file',
      '\x89HDF\r\n\x1a\n': 'an HDF5 file',
      '\x93NUMPY\x01\0': 'a .npy file; readNpy reads it',
      '\0\0\x08\x01\0\0\0\x01\x05': 'an IDX file; readIdx reads it',
      '{"x": [1, 2]}': 'a JSON file',
      '[{"x": 1}]': 'a JSON file',
      '[[1, 2], [3, 4]]': 'a JSON file',
      '<!DOCTYPE html><html>': 'an HTML page',
      '<table border="1">\n': 'an HTML page',
      '<?xml version="1.0"?><rows/>': 'an XML file',
      'version https://git-lfs.github.com/spec/v1\noid sha256:1': 'a pointer of Git LFS',
      'BZh91AY&SY\x00': 'compressed by bzip2',
      '\xfd7zXZ\0': 'compressed by xz',
    };
    for (const [start, what] of Object.entries(kinds)) {
      const bytes = Buffer.from(start, 'latin1');
      expect(() => parseCsv(bytes, 'x.csv', options)).toThrow(`x.csv: not a CSV file but ${what}`);
    }
    for (const name of [
      '[x]',
      '{x}',
      '[1]',
      '<x>',
      'PAR1',
      'ORC',
      'RDX',
      'BZh',
      'GIF89',
      'PK',
      'Rar!',
      'FEA1',
    ]) {
      expect(parse(`${name},y\n1,2\n`, options).inputNames).toEqual([name]);
    }
  });

  it('refuses misspelt options and wrong kinds, with the nearest name', () => {
    const refused = (options: object) => failure(CARS, options as CsvOptions);
    expect(refused({ target: ['kg'] })).toMatch(
      /DP_EXPERIMENT_INVALID loadCsv:.*target is not an option; did you mean 'targets'\?/s,
    );
    expect(refused({ targets: ['kg'], delimeter: ';' })).toBe(
      "DP_EXPERIMENT_INVALID loadCsv: delimeter is not an option; did you mean 'delimiter'?",
    );
    expect(refused({ targets: ['kg'], categoricals: ['colour'] })).toContain(
      "did you mean 'categorical'?",
    );
    const wrong = {
      ...{ targets: 'kg', task: 'classify', inputs: 'doors', ignore: [1], categorical: null },
      ...{ categories: { colour: 'red' }, labels: 'onehot', delimiter: '', encoding: 'utf-7' },
      ...{
        quote: 'ab',
        comment: 3,
        decimal: '·',
        thousands: '1',
        missing: 'NA',
        classes: [1],
        bytesMax: 0,
      },
    };
    for (const [key, value] of Object.entries(wrong)) {
      expect(refused({ targets: ['kg'], [key]: value })).toContain(
        `${key} is ${JSON.stringify(value)}; allowed: `,
      );
    }
  });

  it('names a column that the header lacks, and columns that contradict', () => {
    expect(failure(CARS, { targets: ['price'] })).toMatch(
      /^DP_EXPERIMENT_INVALID cars\.csv has no column 'price'; it has 'kg', 'colour'/,
    );
    expect(failure(CARS, { targets: ['Kg'] })).toContain("'fast'. Did you mean 'kg'?");
    expect(failure(CARS, { targets: ['kg'], inputs: ['kg'] })).toContain(
      'both an input and a target',
    );
    expect(failure(CARS, { targets: [] })).toContain('0 target columns');
    expect(failure('y\n1\n', { targets: ['y'] })).toContain('no column is left');
  });

  it('refuses an identifier as a category', () => {
    const lines = Array.from({ length: 1001 }, (_, i) => `id${i},1`);
    const options: CsvOptions = { targets: ['y'], categorical: ['id'] };
    expect(failure(`id,y\n${lines.join('\n')}`, options)).toMatch(/more than 1000 categories/);
    expect(failure(`id,y\n${lines.slice(1).join('\n')}`, options)).toBe('read');
  });

  it('finds columns by any name', () => {
    const name = fc.oneof(
      fc.string({ unit: 'grapheme', minLength: 1, maxLength: 8 }),
      fc.constantFrom(
        '__proto__',
        'constructor',
        'length',
        '0',
        '1e3',
        '*/',
        '"',
        ',',
        'a\nb',
        '#x',
        ' é',
        '%s',
      ),
    );
    const header = fc.uniqueArray(name, { minLength: 3, maxLength: 5, selector: nameOf });
    fc.assert(
      fc.property(header, (names) => {
        fc.pre(names.every((each) => nameOf(each) !== '' && !each.includes('\0')));
        const written = names.map((each) => `"${each.replaceAll('"', '""')}"`).join();
        const [target, category, ...rest] = names;
        const text = `${written}\n${names.map((_, i) => i).join()}\n`;
        const data = parse(text, { targets: [target!], categorical: [category!] });
        expect(data.targetNames).toEqual([nameOf(target!)]);
        expect(data.inputNames).toEqual([`${nameOf(category!)}=1`, ...rest.map(nameOf)]);
        expect([...data.train.inputs.values]).toEqual([1, ...rest.map((_, i) => i + 2)]);
        const listed = parse(text, {
          ...{ targets: [target!], categories: { [category!]: ['2', '1'] }, ignore: rest },
        });
        expect(listed.inputNames).toEqual(['2', '1'].map((each) => `${nameOf(category!)}=${each}`));
      }),
    );
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
