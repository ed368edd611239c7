import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Examples } from '../../worker/data/examples.ts';
import { type CsvParts, loadCsv } from '../../worker/data/tables/csv.ts';
import type { CsvOptions } from '../../worker/data/tables/csv-options.ts';
import type { CsvData } from '../../worker/data/tables/table.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-parts-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Writes files of the parts, and reads them in one call. */
async function load(
  texts: Readonly<Record<string, string | readonly string[]>>,
  options: CsvOptions,
): Promise<CsvData> {
  const parts: Record<string, string | string[]> = {};
  for (const [part, given] of Object.entries(texts)) {
    const paths: string[] = [];
    for (const [i, text] of [given].flat().entries()) {
      const path = join(folder, `${part}${i || ''}.csv`);
      await writeFile(path, text);
      paths.push(path);
    }
    parts[part] = typeof given === 'string' ? paths[0]! : paths;
  }
  return loadCsv(parts as unknown as CsvParts, options);
}

const failure = (texts: Readonly<Record<string, string>>, options: CsvOptions) =>
  load(texts, options).then(
    () => 'read',
    (error) => `${error.code} ${error.message.replaceAll(`${folder}/`, '')}`,
  );

const FRUIT: CsvOptions = { targets: ['kind'], task: 'classification' };

describe('several files of one data set', () => {
  it('have one list of classes, whichever of them a file lacks', async () => {
    const data = await load(
      {
        train: 'size,kind\n0,apple\n2,banana\n4,cherry\n',
        validation: 'size,kind\n4,cherry\n',
        test: 'kind,size\nbanana,2.5\ncherry,4.5\ndate,6\n',
      },
      FRUIT,
    );
    expect(data.classes).toEqual(['apple', 'banana', 'cherry', 'date']);
    expect(data.classCount).toBe(4);
    expect([...data.train.targets.values]).toEqual([0, 1, 2]);
    expect([...data.validation!.targets.values]).toEqual([2]);
    expect([...data.test!.targets.values]).toEqual([1, 2, 3]);
    expect([...data.test!.inputs.values]).toEqual([2.5, 4.5, 6]);
    for (const part of [data.train, data.validation!, data.test!]) {
      expect(part.targets.classes).toEqual(data.classes);
      expect(part.inputs.names).toEqual(['size']);
      expect(part.targets.names).toEqual(['kind']);
    }
    expect(data.source.replaceAll(`${folder}/`, '')).toBe(
      '3 train, 1 validation, 3 test examples with 1 input from train.csv, validation.csv, test.csv',
    );
  });

  it('have one list of the categories of each column', async () => {
    const data = await load(
      { train: 'c,y\nred,1\nblue,2\n', test: 'c,y\ngreen,3\nred,4\n' },
      { targets: ['y'], categorical: ['c'] },
    );
    expect(data.inputNames).toEqual(['c=blue', 'c=green', 'c=red']);
    expect([...data.train.inputs.values]).toEqual([0, 0, 1, 1, 0, 0]);
    expect([...data.test!.inputs.values]).toEqual([0, 1, 0, 0, 0, 1]);
  });

  it('may be several of one part', async () => {
    const data = await load(
      { train: ['x,kind\n1,b\n', ',x,kind\n0,2,c\n1,3,a\n'], test: 'x,kind\n4,a\n' },
      FRUIT,
    );
    expect([...data.train.inputs.values]).toEqual([1, 2, 3]);
    expect([...data.train.targets.values]).toEqual([1, 2, 0]);
    expect(data.source).toContain(
      'train1.csv: column 1 is left out: it has no name and numbers the rows',
    );
  });

  it('must have the same columns, by name', async () => {
    const train = 'x,z,kind\n1,2,a\n2,1,b\n';
    expect(await failure({ train, test: 'x,kind\n1,a\n' }, FRUIT)).toBe(
      "DP_EXPERIMENT_INVALID test.csv has no column 'z' as train.csv has; it has 'x', 'kind'",
    );
    expect(await failure({ train, test: 'x,z\n1,1\n' }, FRUIT)).toContain(
      "test.csv has no column 'kind'",
    );
    const wider = 'x,z,w,kind\n1,2,3,a\n';
    expect(await failure({ train, test: wider }, FRUIT)).toContain(
      "DP_EXPERIMENT_INVALID test.csv has a column 'w', which train.csv does not have; name it in `ignore`",
    );
    expect(await failure({ train, test: wider }, { ...FRUIT, ignore: ['w'] })).toBe('read');
    expect(await failure({ train, test: wider }, { ...FRUIT, inputs: ['z', 'x'] })).toBe('read');
    expect(await failure({ train, test: train }, { ...FRUIT, ignore: ['v'] })).toContain(
      "no column 'v'",
    );
    expect(await failure({ train, test: 'x,z,kind\n' }, FRUIT)).toContain(
      'test.csv: it has no line after the header',
    );
  });

  it('name the file in what they refuse', async () => {
    const train = 'x,kind\n1,a\n2,b\n';
    expect(await failure({ train, test: 'x,kind\n1,a\nq,b\n' }, FRUIT)).toContain(
      "test.csv: line 3, column 'x': 'q'",
    );
    expect(await failure({ train: 'x,kind\n1,1\n2,2\n', test: 'x,kind\n1,01\n' }, FRUIT)).toBe(
      "DP_DATA_CORRUPT column 'kind': '01' (test.csv, line 2) and '1' (train.csv, line 2) are the same number in two spellings; write them in the same way. If they are two different names, list all names in `classes` or `categories`",
    );
    expect(await failure({ tran: train, test: train }, FRUIT)).toContain(
      "tran is not an option; did you mean 'train'?",
    );
    expect(await failure({ test: train }, FRUIT)).toContain('train is missing');
    await expect(loadCsv([], FRUIT)).rejects.toThrow(
      'train is []; allowed: a path, or a list of paths',
    );
    await expect(loadCsv(new URL('file:///a.csv') as never, FRUIT)).rejects.toThrow(
      'fileURLToPath',
    );
    await expect(loadCsv(undefined as never, FRUIT)).rejects.toThrow('the path is undefined');
  });

  it('take the classes that they are given, in their order, and no other', async () => {
    const train = 'x,kind\n1,b\n2,a\n';
    const given = { ...FRUIT, classes: ['c', 'b', 'a'] };
    const data = await load({ train }, given);
    expect([data.classes, data.classCount]).toEqual([['c', 'b', 'a'], 3]);
    expect([...data.train.targets.values]).toEqual([1, 2]);
    expect(await failure({ train, test: 'x,kind\n1,b\n2,d\n' }, given)).toBe(
      "DP_DATA_LABEL test.csv: line 3, column 'kind': 'd' is not one of the 3 listed names: 'c', 'b', 'a'",
    );
    const categories = { ...FRUIT, categories: { x: ['2', '1'] } };
    const inputs = (await load({ train: 'x,kind\n1.0,b\n+2,a\n' }, categories)).train.inputs;
    expect([inputs.names, [...inputs.values]]).toEqual([
      ['x=2', 'x=1'],
      [0, 1, 1, 0],
    ]);
    expect(await failure({ train: 'x,kind\n3,b\n' }, categories)).toContain(
      "DP_DATA_CORRUPT train.csv: line 2, column 'x': '3' is not one of the 2 listed names",
    );
    const refused = (options: object) => failure({ train }, { ...FRUIT, ...options });
    expect(await refused({ classes: ['a', 'b', 'a'] })).toContain("'a' occurs twice");
    expect(await refused({ classes: ['1', '1.0'] })).toContain("'1' and '1.0' are the same");
    const codes = { ...FRUIT, classes: ['01', '1'] };
    const { targets } = (await load({ train: 'x,kind\n1,1\n2,01\n' }, codes)).train;
    expect([...targets.values]).toEqual([1, 0]);
    expect(await refused({ classes: ['a', ' '] })).toContain('a name is empty');
    expect(await refused({ classes: [] })).toContain('no name is given');
    expect(await refused({ task: 'regression', classes: ['a'] })).toContain(
      "is only for task: 'classification'",
    );
    expect(await refused({ categories: { w: ['a'] } })).toContain("no column 'w'");
  });

  it('say where two names look alike', async () => {
    const { source, classes } = await load(
      { train: 'x,kind\n1,Setosa\n2,setosa\n3,caf\u00e9\n4,cafe\u0301 \n' },
      FRUIT,
    );
    expect(classes).toEqual(['Setosa', 'café', 'setosa']);
    expect(source).toContain(
      "; column 'kind' has 'Setosa' and 'setosa' as two names that differ only in case or spaces",
    );
    expect((await load({ train: 'x,kind\n1,a\n2,b\n' }, FRUIT)).source).not.toContain(';');
  });

  it('have one mapping, however the rows are spread over them', async () => {
    const name = fc.oneof(
      fc.constantFrom('1', '2', '10', '1.0', 'a', 'A', 'True', '-3'),
      fc.stringMatching(/^[a-zé"]{1,3}$/),
    );
    const row = fc.tuple(name, fc.nat(9));
    await fc.assert(
      fc.asyncProperty(
        fc.array(row, { minLength: 1, maxLength: 12 }),
        fc.array(row, { minLength: 1, maxLength: 12 }),
        fc.boolean(),
        async (train, test, swapped) => {
          const written = (text: string) => `"${text.replaceAll('"', '""')}"`;
          const file = (rows: readonly [string, number][], turned: boolean) =>
            [['x', 'kind'], ...rows.map(([kind, x]) => [String(x), kind])]
              .map((cells) => (turned ? cells.reverse() : cells).map(written).join())
              .join('\n');
          const apart = await load({ train: file(train, false), test: file(test, swapped) }, FRUIT);
          const together = await load({ train: file([...train, ...test], swapped) }, FRUIT);
          expect(apart.classes).toEqual(together.classes);
          const values = (part: Examples | undefined, column: 'inputs' | 'targets') => [
            ...part![column].values,
          ];
          for (const column of ['inputs', 'targets'] as const) {
            expect([...values(apart.train, column), ...values(apart.test, column)]).toEqual(
              values(together.train, column),
            );
          }
        },
      ),
      { numRuns: 25 },
    );
  });
});
