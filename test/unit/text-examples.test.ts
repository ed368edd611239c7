import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { dataOf } from '../../worker/data/given.ts';
import { newTextFiles, readNewTexts } from '../../worker/data/texts/new-texts.ts';
import { encoderOf } from '../../worker/serving/encode.ts';
import { loadTextFolder, loadTextTable, type TextData } from '../../worker/text.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-texts-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function files(root: string, contents: Readonly<Record<string, string | Uint8Array>>) {
  for (const [name, text] of Object.entries(contents)) {
    const path = join(folder, root, name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, text);
  }
  return join(folder, root);
}

const readingOf = ({ train }: TextData) => (train as { inputs: { reading: never } }).inputs.reading;

describe('a folder of texts', () => {
  const mails = {
    'ham/1.txt': 'see you at noon',
    'ham/2': 'see the plan',
    'spam/old/a.txt': 'WIN money now win money',
    'spam/b.txt': '',
    'spam/.hidden': 'x',
  };

  it('has its subfolders as classes, and pads or cuts its texts', async () => {
    const lines: string[] = [];
    const data = await loadTextFolder(await files('mails', mails), {
      ...{ length: 4, lowerCase: true, log: (line) => lines.push(line) },
    });
    const { train, classes } = dataOf(data);
    expect(classes).toEqual(['ham', 'spam']);
    expect(data.vocabulary!.slice(0, 6)).toEqual(['', '', 'money', 'see', 'win', 'at']);
    expect(train.inputs.shape).toEqual([4, 4]);
    const words = (i: number) =>
      Array.from(train.inputs.values.subarray(4 * i, 4 * i + 4), (t) => data.vocabulary![t]);
    expect([0, 1, 2, 3].map(words)).toEqual([
      ['see', 'you', 'at', 'noon'],
      ['see', 'the', 'plan', ''],
      ['', '', '', ''],
      ['win', 'money', 'now', 'win'],
    ]);
    expect([...train.targets.values]).toEqual([0, 0, 1, 1]);
    expect(data.source).toMatch(
      /^4 texts from .*mails; 11 kinds of tokens; 1 are longer than 4 tokens, and their ends are left out; 1 have no token$/,
    );
    expect(lines).toHaveLength(2);
    // What a run keeps gives the same numbers.
    const encoder = encoderOf(readingOf(data));
    const target = new Float64Array(4);
    encoder.encode('WIN the lottery', target, 0);
    expect(Array.from(target, (t) => data.vocabulary![t])).toEqual(['win', 'the', '', '']);
    expect([...target]).toEqual([4, data.vocabulary!.indexOf('the'), 1, 0]);
    encoder.encode({ text: 'see' }, target, 0);
    expect([...target]).toEqual([3, 0, 0, 0]);
    encoder.encode([3, 2], target, 0);
    expect([...target]).toEqual([3, 2, 0, 0]);
    for (const bad of [7, {}, [12], [1, 2, 3, 4, 5], [1.5]]) {
      expect(() => encoder.encode(bad, target, 0)).toThrow(/it must be/);
    }
  });

  it('learns its words from the texts that are left for training', async () => {
    const many = Object.fromEntries(
      Array.from({ length: 20 }, (_, i) => [`${i % 2 ? 'a' : 'b'}/${i}`, `all w${i}`]),
    );
    const root = await files('many', many);
    const options = { length: 3, testFraction: 0.2, validationFraction: 0.25 };
    const data = await loadTextFolder(root, options);
    const { train, validation, test } = dataOf(data);
    expect([train, validation!, test!].map(({ count }) => count)).toEqual([12, 4, 4]);
    expect(data.size).toBe(2 + 1 + 12);
    for (const part of [validation!, test!]) {
      for (let i = 0; i < part.count; i++) {
        expect([...part.inputs.values.subarray(3 * i, 3 * i + 3)]).toEqual([2, 1, 0]);
      }
    }
    expect((await loadTextFolder(root, options)).vocabulary).toEqual(data.vocabulary);
  });

  it('may have folders for its parts', async () => {
    const root = await files('parts', {
      ...{ 'train/x/1': 'a', 'train/y/1': 'b', 'test/y/1': 'a c', 'val/x/1': 'b' },
    });
    const data = dataOf(await loadTextFolder(root, { length: 2 }));
    expect([data.train.count, data.validation!.count, data.test!.count]).toEqual([2, 1, 1]);
    expect([...data.test!.inputs.values]).toEqual([2, 1]);
    expect([...data.test!.targets.values]).toEqual([1]);
    await expect(loadTextFolder(root, { length: 2, testFraction: 0.5 })).rejects.toThrow(
      /testFraction is 0.5, but there is a test part already/,
    );
    await files('parts', { 'test/z/1': 'a' });
    const error = await loadTextFolder(root, { length: 2 }).catch((e: unknown) => e);
    expect(errorCode(error)).toBe('DP_DATA_MISMATCH');
    expect(errorText(error)).toMatch(/the training part has no class 'z'; it has x, y/);
  });

  it('is refused where it cannot be read', async () => {
    const one = await files('one', { 'a/1': 'a' });
    await expect(loadTextFolder(one, { length: 2 })).rejects.toThrow(
      /it has one folder; at least 2/,
    );
    await mkdir(join(one, 'b'));
    await expect(loadTextFolder(one, { length: 2 })).rejects.toThrow(/the class has no text/);
    const latin = await files('latin', { 'a/1': Buffer.from('caf\xe9', 'latin1'), 'b/1': 'b' });
    const error = await loadTextFolder(latin, { length: 2 }).catch((e: unknown) => e);
    expect(errorCode(error)).toBe('DP_DATA_CORRUPT');
    expect(errorText(error)).toMatch(/is not utf-8.*windows-1252/);
    const read = await loadTextFolder(latin, { length: 2, encoding: 'windows-1252' });
    expect(read.vocabulary).toContain('café');
    expect(readingOf(read)).toMatchObject({ encoding: 'windows-1252' });
    await expect(loadTextFolder(latin, { length: 0 })).rejects.toThrow(/length is 0; allowed/);
    await expect(
      loadTextFolder(latin, {
        encoding: 'latin1',
        length: 2,
        minCount: 2,
        tokens: { size: 3, encode: () => [1] },
      }),
    ).rejects.toThrow(/minCount: a tokenizer has its own vocabulary; leave it out/);
  });
});

describe('a table with a column of texts', () => {
  const csv = 'id,review,stars\n1,"good, good film",5\n2,bad film,1\n3,so so,\n4,"",3\n';

  it('gives classes', async () => {
    const root = await files('table', { 'reviews.csv': csv });
    const data = await loadTextTable(join(root, 'reviews.csv'), {
      ...{ text: 'review', target: 'stars', length: 5 },
    });
    const { train, classes } = dataOf(data);
    expect(classes).toEqual(['1', '3', '5']);
    expect([...train.targets.values]).toEqual([2, 0, 1]);
    expect(data.vocabulary).toEqual(['', '', 'film', 'good', ',', 'bad']);
    expect(data.source).toMatch(/; 1 have no token; 1 rows without stars are left out$/);
    expect(readingOf(data)).toMatchObject({ as: 'padded', column: 'review', length: 5 });
  });

  it('has one class for each number, however it is written, and refuses two spellings of a code', async () => {
    const root = await files('stars', {
      // pandas writes whole numbers as 5.0 if the column has gaps.
      ...{ 'a.csv': 'review,stars\ngood,5\nbad,1\n', 'b.csv': 'review,stars\nso so,5.0\n,\n' },
      'codes/a.csv': 'review,zip\ngood,01\nbad,1\n',
    });
    const data = await loadTextTable(join(root, '*.csv'), {
      ...{ text: 'review', target: 'stars', length: 2 },
    });
    expect(data.classes).toEqual(['1', '5']);
    expect([...dataOf(data).train.targets.values]).toEqual([1, 0, 1]);
    await expect(
      loadTextTable(join(root, 'codes/a.csv'), { text: 'review', target: 'zip', length: 2 }),
    ).rejects.toThrow("'01' and '1' are the same number in two spellings");
  });

  it('keeps how the file is written, so new texts are read in the same way', async () => {
    const rows = '# of 2024\nreview|n\n\'good, "good"|film\'|1,5\nbad|2\n';
    const root = await files('quoted', { 'a.csv': rows });
    const data = await loadTextTable(join(root, 'a.csv'), {
      ...{ text: 'review', target: 'n', task: 'regression', length: 9 },
      ...{ quote: "'", comment: '#', delimiter: '|', decimal: ',' },
    });
    expect(await readNewTexts(join(root, 'a.csv'), readingOf(data))).toEqual({
      ...{ examples: ['good, "good"|film', 'bad'], lines: [3, 4] },
    });
  });

  it('gives numbers', async () => {
    const root = await files('table', { 'reviews.csv': csv });
    const data = await loadTextTable(join(root, 'reviews.csv'), {
      ...{ text: 'review', target: 'stars', task: 'regression', length: 5 },
    });
    const { train, classCount } = dataOf(data);
    expect(classCount).toBeUndefined();
    expect([...train.targets.values]).toEqual([5, 1, 3]);
    expect(train.targets.shape).toEqual([3, 1]);
    const name = (text: string, target: string) =>
      loadTextTable(join(root, 'reviews.csv'), {
        ...{ text, target, task: 'regression' as const, length: 5 },
      });
    await expect(name('review', 'review')).rejects.toThrow(
      /line 2, column 'review': 'good, good film' is not a number/,
    );
    await expect(name('reviews', 'stars')).rejects.toThrow(/no column 'reviews'/);
  });
});

describe('new texts', () => {
  const reading = { kind: 'text', tokens: 'words', size: 3, length: 4, as: 'padded' } as const;

  it('are files, lines of JSON, or a column of a table', async () => {
    const root = await files('news', {
      ...{ 'a.txt': 'one', 'deep/b.txt': 'two' },
    });
    const all = await newTextFiles(root, reading);
    expect(all.map((path) => path.slice(root.length + 1))).toEqual(['a.txt', 'deep/b.txt']);
    expect(await readNewTexts(all[1]!, reading)).toEqual({ examples: ['two'], lines: null });
    const others = await files('others', {
      'a.csv': 'n,text\n1,x y\n2,z\n',
      'b.jsonl': '"x"\n{"text":"y"}\n',
    });
    expect(await readNewTexts(join(others, 'a.csv'), reading)).toEqual({
      ...{ examples: ['x y', 'z'], lines: [2, 3] },
    });
    expect(await readNewTexts(join(others, 'b.jsonl'), reading)).toEqual({
      ...{ examples: ['x', { text: 'y' }], lines: [1, 2] },
    });
    await expect(
      readNewTexts(join(others, 'a.csv'), { ...reading, column: 'body' }),
    ).rejects.toThrow(/no column 'body', whose texts the model needs/);
  });
});
