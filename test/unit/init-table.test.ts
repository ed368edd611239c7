import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { unasked } from '../../cli/init/ask.ts';
import { type TableRequest, tableDraft } from '../../cli/init/table.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { loadWritten } from '../support/written-experiments.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-init-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** A table of `rows` rows, made of functions of the row. */
function table(
  columns: Record<string, (row: number) => unknown>,
  rows = 60,
  delimiter = ',',
): string {
  const cell = (value: unknown) => {
    const text = String(value);
    return text.includes(delimiter) || /["\r\n]/.test(text)
      ? `"${text.replaceAll('"', '""')}"`
      : text;
  };
  const lines = [Object.keys(columns).map(cell).join(delimiter)];
  for (let row = 0; row < rows; row++) {
    lines.push(
      Object.values(columns)
        .map((at) => cell(at(row)))
        .join(delimiter),
    );
  }
  return `${lines.join('\n')}\n`;
}

type Options = Omit<Partial<TableRequest>, 'data' | 'place'>;

/** What `init` says and writes; of a refusal its code and message. */
async function init(text: string | Buffer, options: Options = {}): Promise<string> {
  const data = join(folder, 'x.csv');
  await writeFile(data, text);
  try {
    const { notes, source } = await tableDraft({ data, place: `'x.csv'`, ...options }, unasked);
    return `${notes.join('\n')}\n---\n${source}`.replaceAll(folder, '');
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    return `${error.code} ${error.message}`.replaceAll(folder, '');
  }
}

/** Numbers that nothing can be read from: neither sorted nor the target. */
const noise = (salt: number) => (row: number) => ((row * 7919 + salt * 104_729) % 1009) / 10;
const quantity = { x: noise(1), z: noise(2), price: (row: number) => 100 + noise(3)(row) };
const left = (name: string) => `leaves out column '${name}': `;

describe('init on Parquet', () => {
  const fixture = (name: string) => join(import.meta.dirname, '../fixtures/parquet', name);
  const draft = (data: string, options: Options = {}) =>
    tableDraft({ data, place: JSON.stringify(data), target: 'x', ...options }, unasked);

  test('writes what it writes for the same table as CSV, with the reader of Parquet', async () => {
    const parquet = await draft(fixture('snappy.parquet'));
    const csv = await draft(fixture('table.csv'));
    const alike = (text: string) =>
      text
        .replaceAll('parquetSource', 'loadCsv')
        .replaceAll('snappy.parquet', 'table.csv')
        .replace(/ *\/\/ It holds lists or structures\.\n *'tags',\n/, '');
    expect(parquet.source).toContain("'tags',");
    expect(alike(parquet.source)).toBe(alike(csv.source));
    expect(parquet.source).toContain("import { defineExperiment, parquetSource } from 'downpour';");
    const file = join(folder, 'parquet.ts');
    await writeFile(file, parquet.source);
    const [written] = loadWritten([file], true);
    expect(written!.targets).toEqual(['x']);
    expect(written!.parameters).toBeGreaterThan(100);
  });

  test('refuses what says how text is written', async () => {
    await expect(draft(fixture('snappy.parquet'), { reading: { delimiter: ';' } })).rejects.toThrow(
      /--delimiter says how text is written, but .*snappy\.parquet is a Parquet file/,
    );
  });
});

describe('init on numbers with a slip', () => {
  const slips: readonly [string, (row: number) => unknown, string, string][] = [
    [
      'one typo in many',
      (row) => (row === 41 ? '150*' : noise(4)(row)),
      `'150*' in line 43 is not`,
      'correct it',
    ],
    [
      'infinity',
      (row) => (row === 3 ? 'inf' : noise(4)(row)),
      `'inf' in line 5 is not`,
      'infinite',
    ],
    [
      '-Infinity among few values',
      (row) => (row === 3 ? '-Infinity' : row % 6),
      `'-Infinity' in line 5 is not`,
      'infinite',
    ],
    [
      'a number beyond float32',
      (row) => (row === 3 ? '1e300' : noise(4)(row)),
      `'1e300' in line 5 is not`,
      'float32',
    ],
    [
      'a dash for what is missing',
      (row) => (row % 9 === 4 ? '-' : noise(4)(row)),
      `'-' in line 6 is the first of 7 that are not`,
      'empty cell',
    ],
    [
      'n.a. among few values',
      (row) => (row % 9 === 4 ? 'n.a.' : row % 5),
      `'n.a.' in line 6`,
      'empty cell',
    ],
    ['currency', (row) => `$${100 + row}`, `'$100' in line 2, the first of 60`, 'currency'],
    ['currency in few kinds', (row) => `€ ${100 + (row % 3)}`, `'€ 100' in line 2`, 'currency'],
    ['a currency behind', (row) => `${noise(4)(row)} EUR`, `in line 2`, 'currency'],
    [
      'thousands',
      (row) => `${1 + row},000`,
      `'1,000' in line 2`,
      '--decimal , reads it as 1, --thousands , reads it as 1000; otherwise',
    ],
    [
      'thousands with points',
      (row) => `1.${200 + row}.000`,
      `'1.200.000' in line 2`,
      '--decimal , --thousands . reads it as 1200000; otherwise',
    ],
    [
      'thousands with points, and a decimal comma',
      (row) => `1.${200 + row},50`,
      `'1.200,50' in line 2`,
      '--decimal , --thousands . reads it as 1200.5; otherwise',
    ],
    [
      'thousands with apostrophes',
      (row) => `1'${200 + row}`,
      `'1'200' in line 2`,
      `--thousands ''\\''' reads it as 1200; otherwise`,
    ],
    ['several units', (row) => `${noise(4)(row)} ${row % 2 ? 'kg' : 'lb'}`, 'in line 2', 'unit'],
    ['percentages', (row) => `${noise(4)(row)}%`, 'in line 2', 'percent'],
    ['percentages in few kinds', (row) => `${10 * (row % 3)} %`, `'0 %' in line 2`, 'percent'],
    [
      'losses in brackets',
      (row) => (row % 2 ? `(${1 + row})` : 5 + row),
      `'(2)' in line 3`,
      'write negative numbers with a hyphen',
    ],
    ['a decimal comma', (row) => `${row},5`, `'0,5' in line 2`, '--decimal ,'],
    ['codes', (row) => `0${1000 + row}`, `codes that begin with a 0 (line 2: '01000')`, ''],
    [
      'a number in two ways',
      (row) => ['1', '01', '2', '002'][row % 4],
      `'01' and '1' are the same number`,
      'in the same way',
    ],
    ['half of it text', (row) => (row % 2 ? `A${row}` : 1000 + 3 * row), `'A1' in line 3`, ''],
  ];
  test.each(slips)('leaves the input out and says where: %s', async (_, at, where, hint) => {
    const said = await init(table({ slip: at, ...quantity }));
    expect(said).toContain(left('slip'));
    const [line] = said.split('\n').filter((text) => text.startsWith(left('slip')));
    expect(line).toContain(where);
    expect(line).toContain(hint);
    expect(said).not.toContain('categorical: [');
  });
  test.each(slips)(
    'refuses to predict it, and calls no price a class: %s',
    async (_, at, where) => {
      const said = await init(table({ ...quantity, slip: at }));
      expect(said).toMatch(/^DP_USAGE .*column 'slip' cannot be predicted/);
      expect(said).toContain(where);
    },
  );

  test.each<[string, (row: number) => unknown]>([
    ['words', (row) => ['red', 'green', 'blue'][row % 3]],
    ['one more kind beside numbers', (row) => ['0', '1', '2', '3+'][row % 4]],
    ['truth', (row) => (row % 2 ? 'True' : 'False')],
    ['yes and no', (row) => (row % 3 ? 'yes' : 'no')],
    ['numbers with letters', (row) => ['4WD', '2WD'][row % 2]],
    ['a kind that is called none', (row) => ['none', 'some', 'all'][row % 3]],
    ['ranges', (row) => ['18-24', '25-34', '35-99'][row % 3]],
  ])('takes as a category, and says so: %s', async (_, at) => {
    const said = await init(table({ kind: at, ...quantity }));
    expect(said).toMatch(
      /^column 'kind' has [234] categories, which become one 0\/1 input each: /m,
    );
    expect(said).toContain("categorical: ['kind'],");
    expect(await init(table({ ...quantity, kind: at }))).toContain(
      'predicts kind (classification)',
    );
  });

  test('takes many kinds as a category where each has enough rows, not where it has few', async () => {
    const state = (row: number) => `state ${row % 30}`;
    expect(await init(table({ state, ...quantity }, 60))).toContain(left('state'));
    expect(await init(table({ state, ...quantity }, 600))).toContain("categorical: ['state'],");
  });

  test('takes few codes that begin with a 0 as a category', async () => {
    const said = await init(
      table({ zip: (row) => ['01067', '10115', '80331'][row % 3], ...quantity }),
    );
    expect(said).toContain("categorical: ['zip'],");
  });

  test('says which kinds are one to a reader', async () => {
    const said = await init(table({ fast: (row) => ['yes', 'Yes', 'no'][row % 3], ...quantity }));
    expect(said).toContain(`column 'fast': 'Yes' and 'yes' are different categories`);
  });
});

describe('init on how a file is written', () => {
  const german = (salt: number) => (row: number) => String(noise(salt)(row)).replace('.', ',');

  test.each([';', '\t', '|'])(
    'finds %j between cells, and a decimal comma, and writes both down',
    async (delimiter) => {
      const said = await init(table({ x: german(1), z: german(2), y: german(3) }, 60, delimiter));
      expect(said).toContain(
        `delimiter: '${delimiter === '\t' ? '\\t' : delimiter}',\n      decimal: ',',`,
      );
      expect(said).toContain(
        'numbers are read with a decimal comma; if commas mean something else, use --decimal .',
      );
      const points = await init(table(quantity, 60, delimiter));
      expect(points).not.toContain('decimal');
    },
  );

  test('takes what is said for it', async () => {
    const rows = {
      x: german(1),
      z: (row: number) => `${1 + row},5`,
      y: (row: number) => `1.${200 + ((row * row) % 700)},5`,
    };
    const said = await init(table(rows), { reading: { decimal: ',', thousands: '.' } });
    expect(said).toContain("decimal: ',',\n      thousands: '.',");
    expect(said).toContain('predicts y (regression)');
    const noted = `# measured\n${table(quantity)}`;
    expect(await init(noted)).toContain("--comment '#'");
    expect(await init(noted, { reading: { comment: '#' } })).toContain("comment: '#',");
    const western = Buffer.from(table({ x: noise(1), größe: noise(2), y: noise(3) }), 'latin1');
    expect(await init(western)).toMatch(/^DP_DATA_CORRUPT .*--encoding/);
    expect(await init(western, { reading: { encoding: 'windows-1252' } })).toContain(
      "encoding: 'windows-1252',",
    );
  });

  test('leaves out columns without a name', async () => {
    // As pandas writes rows of a table that was split.
    const shuffled = (row: number) => (row * 37) % 211;
    const said = await init(table({ '': shuffled, ...quantity }));
    expect(said).toContain(
      `${left('column 1')}the header has no name for it; add a name to the header`,
    );
  });

  test('predicts no column that a delimiter at the end of each line makes', async () => {
    const lines = table({ ...quantity, '': () => '' });
    expect(await init(lines)).toContain('predicts price (regression)');
    expect(await init(lines, { target: 'column 4' })).toMatch(
      /^DP_USAGE .*column 'column 4' cannot be predicted: it has no values/,
    );
    const named = table({ ...quantity, '': (row) => (row * 37) % 211 });
    expect(await init(named, { target: 'column 4' })).toMatch(
      /^DP_USAGE .*cannot be predicted: the header has no name for it; add a name to the header/,
    );
  });
});

describe('init on columns that say nothing, or too much', () => {
  test.each<[string, (row: number) => unknown, string]>([
    ['counts from 0', (row) => row, 'it counts the rows: 0, 1 … 59'],
    [
      'counts from 1, as pandas writes floats',
      (row) => `${row + 1}.0`,
      'it counts the rows: 1, 2 … 60',
    ],
    ['counts down', (row) => 500 - row, 'it counts the rows: 500'],
    ['counts in another order', (row) => (row * 7) % 60, 'in another order'],
    ['counts with gaps', (row) => row + Math.floor(row / 7), 'with gaps'],
    ['is constant', () => 7, `every row has '7'`],
    ['is constant text', () => 'DE', `every row has 'DE'`],
    ['is empty', () => '', 'it has no values'],
    ['holds names', (row) => `Ann ${row}`, 'a different text in each row'],
    [
      'holds too many kinds',
      (row) => `Ann ${row % 40}`,
      'too many different texts (40 in 60 rows)',
    ],
    ['holds times of day', (row) => `${row % 12}:${10 + (row % 50)} pm`, 'dates or times'],
    ['holds named months', (row) => `Jan ${(row % 28) + 1}, 2024`, 'dates or times'],
    ['holds few days', (row) => `2024-0${(row % 3) + 1}`, 'dates or times'],
    ['equals another column', (row) => noise(1)(row), `it equals column 'x'`],
    ['equals the target', (row) => quantity.price(row), 'it equals the target'],
    [
      'is the target in another unit',
      (row) => (quantity.price(row) * 0.92 - 3).toFixed(3),
      'a linear function',
    ],
  ])('leaves a column out and says why: it %s', async (_, at, why) => {
    const said = await init(
      table({ x: quantity.x, z: quantity.z, odd: at, price: quantity.price }),
    );
    expect(said).toContain(left('odd'));
    expect(said).toContain(why);
    // In the file, too.
    expect(said).toMatch(/ignore: \[\n\s+\/\/ .+\n\s+'odd',\n\s+\],/);
  });

  test.each<[string, (row: number) => unknown, RegExp]>([
    ['days', (row) => `2024-01-${String((row % 28) + 1).padStart(2, '0')}`, /dates: \['odd'\],\n/],
    [
      'days of America',
      (row) => `${(row % 12) + 1}/${(row % 28) + 1}/2024`,
      /dates: \['odd'\],\n\s+dateOrder: 'monthFirst',/,
    ],
    ['days of Germany', (row) => `${(row % 28) + 1}.${(row % 12) + 1}.2024`, /dates: \['odd'\],\n/],
    [
      'times with a zone',
      (row) => `2024-01-01T10:${10 + (row % 50)}:00+02:00`,
      /dates: \['odd'\],\n/,
    ],
    ['times of UTC', (row) => `2024-01-01 10:${10 + (row % 50)}:00 UTC`, /dates: \['odd'\],\n/],
    ['days as numbers', (row) => 20_240_101 + (row % 28), /dates: \['odd'\],\n/],
    ['gaps', (row) => (row % 8 === 2 ? '' : noise(5)(row)), /missing: 'mean',\n/],
    ['kinds with gaps', (row) => (row % 8 === 2 ? 'NA' : 'abc'[row % 3]), /missing: 'mean',\n/],
  ])('uses a column of %s', async (_, at, option) => {
    const said = await init(
      table({ x: quantity.x, z: quantity.z, odd: at, price: quantity.price }),
    );
    expect(said).not.toContain(left('odd'));
    expect(said).toMatch(option);
    expect(said.includes('lacks 8 of 60 values')).toBe(String(option).includes('missing'));
  });

  test('names a number that may mean a missing value, and no other', async () => {
    const said = (age: (row: number) => unknown) => init(table({ ...quantity, age }, 60));
    const ages = (row: number) => 20 + (row % 37);
    for (const code of [-999, 9999, -99]) {
      const stray = await init(
        table({ age: (row) => (row % 20 === 3 ? code : ages(row)), ...quantity }),
      );
      expect(stray).toContain(
        `column 'age' has ${code} in 3 rows, and other values from 20 to 56: if ${code} means a missing value, add missing: 'mean', missingTexts: ['${code}']`,
      );
    }
    expect(
      await init(
        table({ ...quantity, price: (row) => (row % 20 === 3 ? -999 : quantity.price(row)) }),
      ),
    ).toContain("column 'price' has -999 in 3 rows");
    for (const usual of [
      ages,
      (row: number) => (row === 7 ? 999 : ages(row)),
      (row: number) => (row % 20 === 3 ? 99 : 60 + (row % 37)),
      (row: number) => (row % 20 === 3 ? 1000 : ages(row)),
      (row: number) => 999 + (row % 2),
    ]) {
      expect(await said(usual)).not.toContain('means a missing value');
    }
  });

  test('leaves a column out that nearly always lacks its value, and days in no clear order', async () => {
    const sparse = await init(
      table({ x: quantity.x, odd: (row) => (row === 5 ? 1 : ''), price: quantity.price }),
    );
    expect(sparse).toContain(`${left('odd')}59 of 60 values are missing, the first in line 2`);
    const unclear = await init(
      table({
        x: quantity.x,
        odd: (row) => `${(row % 12) + 1}/${(row % 12) + 1}/2024`,
        price: quantity.price,
      }),
    );
    expect(unclear).toContain(`${left('odd')}it has dates or times`);
  });

  test('hashes the words of texts that share them, not names or codes', async () => {
    const words = ['red', 'large', 'old', 'house', 'garden', 'cheap', 'new', 'small'];
    const text = (row: number) =>
      [1, 3, 5, 7].map((k) => words[(row * k + k) % 8]).join(` ${row % 31} `);
    const many = { text, name: (row: number) => `Ann ${row}`, ...quantity };
    const said = await init(table(many, 400));
    expect(said).toContain("hashed: { 'text': 32 },");
    expect(said).toContain(left('name'));
    expect(await init(table(many, 100))).toContain(left('text'));
  });

  test('sets a test part aside where there are rows enough', async () => {
    expect(await init(table(quantity, 400))).toContain('testFraction: 0.15,');
    expect(await init(table(quantity, 100))).not.toContain('testFraction');
    expect(await init(table(quantity, 100), { testFraction: 0.3 })).toContain('testFraction: 0.3,');
    expect(await init(table(quantity, 400), { testFraction: 0 })).not.toContain('testFraction');
  });

  test('leaves out the target under other names, but no kind that agrees by chance', async () => {
    const kinds = ['setosa', 'versicolor', 'virginica'];
    const classes = (row: number) => Math.floor(noise(6)(row) / 34);
    const rows = { x: noise(1), name: (row: number) => kinds[classes(row)], target: classes };
    expect(await init(table(rows))).toContain(`${left('name')}it is the target under other names`);
    // Eight rows of two kinds: 1 of 128 columns agrees.
    const few = {
      x: noise(1),
      name: (row: number) => kinds[row % 2],
      target: (row: number) => row % 2,
    };
    expect(await init(table(few, 8))).toContain("categorical: ['name'],");
  });

  test('knows an identifier by name and values, and leaves a quantity alone', async () => {
    const whole = (row: number) => Math.round(noise(4)(row) * 10) * 97;
    expect(await init(table({ customer_id: whole, ...quantity }))).toContain(left('customer_id'));
    for (const name of ['population', 'bid', 'kidney']) {
      expect(await init(table({ [name]: whole, ...quantity }))).not.toContain('leaves out');
    }
  });

  test('says what to do about columns where none is left', async () => {
    const rows = { size: (row: number) => `${1 + row},001.5`, price: quantity.price };
    expect(await init(table(rows))).toMatch(
      /^DP_USAGE .*no column is left to predict 'price' from: 'size' \(it has .*; --thousands , reads it as 1001.5; otherwise write them as 1234.5\)$/,
    );
  });

  test('keeps the only column there is, and says what is odd about it', async () => {
    const said = await init(table({ x: (row) => row, y: (row) => 2 * row + 1 }), {
      task: 'regression',
      target: 'y',
    });
    expect(said).toContain(`keeps column 'x', the only one left`);
    const copy = await init(table({ x: noise(1), y: noise(1) }));
    expect(copy).toMatch(
      /^DP_USAGE .*no column is left to predict 'y' from: 'x' \(it equals the target\)/,
    );
  });
});

describe('init on a target', () => {
  test.each<[string, (row: number) => unknown, 'classification' | 'regression']>([
    ['0 and 1', (row) => row % 2, 'classification'],
    ['-1 and 1', (row) => 2 * (row % 2) - 1, 'classification'],
    ['2 and 4', (row) => 2 + 2 * (row % 2), 'classification'],
    ['0 … 9', (row) => row % 10, 'classification'],
    ['1.0, 2.0, 3.0 as pandas writes them', (row) => `${(row % 3) + 1}.0`, 'classification'],
    ['ratings 1 … 5', (row) => (row % 5) + 1, 'classification'],
    ['3 … 8', (row) => (row % 6) + 3, 'regression'],
    ['years', (row) => 2010 + (row % 8), 'regression'],
    ['halves', (row) => (row % 5) / 2, 'regression'],
    ['counts up to 15', (row) => row % 16, 'regression'],
    ['0, 1, 100', (row) => [0, 1, 100][row % 3], 'regression'],
    ['a quantity', quantity.price, 'regression'],
  ])('tells classes from quantities: %s', async (_, at, task) => {
    const said = await init(table({ x: quantity.x, z: quantity.z, y: at }));
    expect(said).toContain(`predicts y (${task})`);
  });

  test('measures the loss in deviations where the square of the target is too small or too large', async () => {
    for (const [times, size] of [
      [1e-9, 'small'],
      [1e9, 'large'],
    ] as const) {
      const scaled = { ...quantity, price: (row: number) => times * quantity.price(row) };
      expect(await init(table(scaled))).toMatch(
        new RegExp(
          `are too ${size}\\.\\n  loss: \\(targets, predictions\\) => .*div\\([\\d.e-]+\\)`,
        ),
      );
    }
    for (const times of [0.01, 1, 1e4]) {
      const usual = { ...quantity, price: (row: number) => times * quantity.price(row) };
      expect(await init(table(usual))).toContain("loss: 'meanSquaredError',");
    }
  });

  test('says how to choose the other task where numbers leave it open', async () => {
    const ratings = table({ ...quantity, y: (row) => (row % 5) + 1 });
    expect(await init(ratings)).toContain('1 … 5 are read as classes; --task regression');
    expect(await init(ratings, { task: 'regression' })).toContain('predicts y (regression)\n');
    const years = table({ ...quantity, y: (row) => 2010 + (row % 8) });
    expect(await init(years)).toContain(
      '2010 … 2017 are read as a quantity; --task classification',
    );
    expect(await init(table(quantity))).not.toContain('--task');
    // Nobody means halves as classes.
    const halves = table({ ...quantity, y: (row) => (row % 5) / 2 });
    expect(await init(halves)).not.toContain('--task');
  });

  test('leaves out rows without a target', async () => {
    const said = await init(table({ ...quantity, y: (row) => (row === 7 ? 'NA' : row % 2) }));
    expect(said).toContain('leaves out 1 row whose y is missing');
    expect(said).toContain("missing: 'mean',");
    const floats = table({ ...quantity, y: (row) => (row === 7 ? '' : `${row % 2}.0`) });
    expect(await init(floats)).toContain('predicts y (classification)');
    expect(await init(table({ ...quantity, y: (row) => (row < 2 ? '' : 'a') }))).toMatch(
      /^DP_USAGE .*each row that has a value has 'a'/,
    );
    expect(await init(table({ ...quantity, y: (row) => (row > 0 ? '' : row) }))).toMatch(
      /^DP_USAGE .*59 of 60 values are missing/,
    );
  });

  test.each<[string, (row: number) => unknown, RegExp]>([
    ['one class only', () => 'yes', /every row has 'yes', so there is nothing to learn/],
    [
      'a count of the rows',
      (row) => row + 1,
      /it counts the rows: 1, 2 … 60; predict another column/,
    ],
    ['names', (row) => `Ann ${row}`, /a different text in each row/],
    ['text of too many kinds', (row) => `Ann ${row % 45}`, /too many different texts/],
    ['dates', (row) => `2024-01-01 ${row % 24}:00`, /dates or times/],
  ])('refuses %s', async (_, at, message) => {
    const said = await init(table({ ...quantity, y: at }));
    expect(said).toMatch(/^DP_USAGE /);
    expect(said).toMatch(message);
  });

  test('refuses classes of one row each, and says which classes have one row', async () => {
    const many = await init(table(quantity), { task: 'classification' });
    expect(many).toMatch(/^DP_USAGE .*60 different values, 60 of them in one row only/);
    const rare = await init(
      table({ ...quantity, y: (row) => (row === 5 ? 'rare' : `k${row % 2}`) }),
    );
    expect(rare).toContain(`the class 'rare' has only one row`);
  });

  test('of a wrong name tells the nearest one, and finds one of another normal form', async () => {
    expect(await init(table(quantity), { target: 'prize' })).toContain(
      "no column 'prize'; did you mean 'price'?",
    );
    const accents = table({ ...quantity, 'cafe\u0301': noise(7) });
    expect(await init(accents, { target: 'caf\u00e9' })).toContain('(regression)');
  });

  test.each([
    ['no row', 'a,b\n', 'DP_DATA_CORRUPT /x.csv: it has a header but no rows'],
    ['one row', 'a,b\n1,2\n', 'DP_DATA_CORRUPT /x.csv: it has only one row after the header'],
    [
      'one column',
      table({ y: noise(1) }),
      `no column is left to predict 'y' from: the file has only one column`,
    ],
  ])('says the real reason where there is %s', async (_, text, message) => {
    expect(await init(text)).toContain(message);
  });

  test('fits the minibatch to few rows, and says that they are few', async () => {
    const said = await init(table(quantity, 6));
    expect(said).toContain('minibatchSize: 5,');
    expect(said).toContain('6 examples are few: 1 of them validates');
    expect(await init(table(quantity, 60))).not.toContain('are few');
  });
});

test('whatever stands in a table, init refuses it with a reason or writes what can be read', async () => {
  const number = fc.oneof(
    fc.integer({ min: -9, max: 9 }),
    fc.double({ noNaN: true }),
    fc.integer(),
  );
  const odd = fc.constantFrom(
    ...[
      '',
      'NA',
      '-',
      'inf',
      '1e999',
      '$5',
      '1,234',
      '0,5',
      '7 kg',
      '12%',
      '007',
      '01',
      '1.0',
      '+1',
      'True',
      'true',
    ],
    ...[
      'yes',
      'YES',
      'no',
      '2024-01-31',
      '10:30',
      '31.12.2024',
      '0x10',
      '1_000',
      '(3)',
      ' 4 ',
      'a"b',
      'a;b',
      'é',
      'e\u0301',
    ],
  );
  const cells = fc.oneof(
    fc.array(number, { minLength: 3, maxLength: 3 }),
    fc.array(odd, { minLength: 1, maxLength: 3 }),
    fc.array(fc.oneof(number, odd), { minLength: 2, maxLength: 5 }),
    fc.array(fc.string({ unit: 'grapheme' }), { minLength: 2, maxLength: 4 }),
  );
  const random = fc.record({
    columns: fc.array(fc.record({ cells, salt: fc.nat(97) }), { minLength: 1, maxLength: 4 }),
    rows: fc.constantFrom(0, 2, 3, 7, 40, 40),
    delimiter: fc.constantFrom(',', ';', '\t'),
    // The last column: an odd one, or one that can be predicted.
    target: fc.constantFrom(null, noise(9), (row: number) => ['a', 'b'][row % 2]),
  });
  const home = join(folder, 'random');
  await mkdir(home);
  const written: string[] = [];
  for (const [i, { columns, rows, delimiter, target }] of fc
    .sample(random, { numRuns: 120, seed: 3 })
    .entries()) {
    const text = table(
      {
        x: noise(1),
        ...Object.fromEntries(
          columns.map((column, c) => [
            `c${c}`,
            (row: number) =>
              column.cells[(row * (c + 3) + column.salt * (row % 5)) % column.cells.length],
          ]),
        ),
        ...(target ? { y: target } : {}),
      },
      rows,
      delimiter,
    );
    const data = join(home, `${i}.csv`);
    await writeFile(data, text);
    const request = { data, place: JSON.stringify(data) };
    try {
      const { source } = await tableDraft(request, unasked);
      await writeFile(join(home, `x${i}.ts`), source);
      written.push(join(home, `x${i}.ts`));
    } catch (error) {
      expect(errorCode(error), text).toMatch(/^DP_(USAGE|DATA_CORRUPT)$/);
    }
  }
  expect(written.length).toBeGreaterThan(60);
  expect(loadWritten(written)).toHaveLength(written.length);
}, 60_000);
