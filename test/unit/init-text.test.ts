import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type InitOptions, initCommand } from '../../cli/init/init.ts';
import { DownpourError } from '../../shared/errors.ts';
import { loadWritten, printedBy } from '../support/written-experiments.ts';

let folder: string;
const written: string[] = [];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-init-text-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** What `init` says and writes; of a refusal its code and message. */
async function init(name: string, data: string, options: InitOptions = {}): Promise<string> {
  const file = join(folder, `${name}.ts`);
  try {
    const path = join(folder, data);
    const said = await printedBy(() =>
      initCommand(file, { data: path, yes: true, force: true, ...options }),
    );
    written.push(file);
    return `${said}---\n${await readFile(file, 'utf8')}`.replaceAll(`${folder}/`, '');
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    return `${error.code} ${error.message}`.replaceAll(`${folder}/`, '');
  }
}

const words = (salt: number, count: number, kinds: number) =>
  Array.from({ length: count }, (_, i) => `w${((i + salt) * 7919) % kinds}`).join(' ');

describe('init', () => {
  test('writes a language model of characters for a text', async () => {
    await writeFile(
      join(folder, 'book.txt'),
      'to be or not to be, that is the question\n'.repeat(60),
    );
    const text = await init('book', 'book.txt');
    expect(text).toContain(
      'book.txt: 1,984 characters to train on, 192 to validate, 192 for `downpour test`; a language model: which character follows, of 16\n--words predicts words instead of characters\n',
    );
    expect(text).toContain("file: resolve(import.meta.dirname, 'book.txt'),");
    expect(text).toContain('testFraction: 0.1,');
    expect(await init('untested', 'book.txt', { testFraction: 0 })).not.toContain('testFraction');
  });

  test('writes one of words, whose vectors are a table if they are many', async () => {
    const few = await init('few', 'book.txt', { words: true });
    expect(few).toContain('which word follows, of 12\n');
    expect(few).toContain("tokens: 'words',");
    expect(few).toContain('tf.layers.embedding({ inputDim: classCount');
    expect(few).not.toContain('minCount');
    await writeFile(join(folder, 'many.txt'), words(0, 60_000, 12_000));
    const many = await init('many', 'many.txt', { words: true });
    expect(many).toContain('the words of the training part that stand there twice or more');
    expect(many).toContain('the vectors of 12,002 words are a table');
    expect(many).toContain(
      "tables: { word: { rows: 20000, width: 64, optimizer: { kind: 'adam' } } },",
    );
    expect(many).toContain("layers.rows({ table: 'word', inputShape: [WINDOW] }),");
  });

  test('takes a folder of texts without classes as documents', async () => {
    await mkdir(join(folder, 'tales'));
    for (let i = 0; i < 10; i++) {
      await writeFile(join(folder, `tales/${i}.txt`), 'once upon a time '.repeat(20));
    }
    expect(await init('tales', 'tales')).toMatch(/tales: 2,\d+ characters to train on, 320 to/);
  });

  test('writes the classes of a folder of texts, with or without endings', async () => {
    for (const [name, word] of [
      ['ham', 'meeting'],
      ['spam', 'money'],
    ] as const) {
      await mkdir(join(folder, 'mails', name), { recursive: true });
      for (let i = 0; i < 12; i++) {
        const end = i % 2 ? '' : '.txt';
        await writeFile(join(folder, 'mails', name, `${i}${end}`), `${word} ${words(i, 15, 9)}`);
      }
    }
    const text = await init('mails', 'mails/');
    expect(text).toContain('mails/: 24 texts; classes ham (12), spam (12)\n');
    expect(text).toContain(
      'an example is 20 of them, and a vocabulary of the training part has at most 13 entries\n',
    );
    expect(text).toContain("loadTextFolder(resolve(import.meta.dirname, 'mails'), {");
    expect(text).toContain('validationFraction: 0.2,');
    expect(text).not.toContain('testFraction');
    for (const name of ['a', 'b']) {
      await mkdir(join(folder, 'letters', name), { recursive: true });
      await writeFile(join(folder, 'letters', name, '1'), 'plain');
      await writeFile(join(folder, 'letters', name, '2'), Buffer.from('caf\xe9', 'latin1'));
    }
    const latin = await init('latin', 'letters');
    expect(latin).toContain('classes a, b: fewer than 10 texts; add more');
    expect(latin).toContain('not all texts are UTF-8, so they are read as windows-1252');
    expect(latin).toContain("encoding: 'windows-1252',");
  });

  test('finds the column of texts of a table, or takes the one that is named', async () => {
    const rows = Array.from({ length: 240 }, (_, i) => {
      const verdict = i % 2 ? 'good' : 'bad';
      return `${i},a ${verdict} film with ${words(i, 6, 97)},${verdict},${(i % 9) / 2}`;
    });
    await writeFile(join(folder, 'films.csv'), `id,review,verdict,stars\n${rows.join('\n')}\n`);
    const alone = rows.map((row) => row.split(',').slice(1, 3).join(','));
    await writeFile(join(folder, 'alone.csv'), `review,verdict\n${alone.join('\n')}\n`);
    const found = await init('alone', 'alone.csv');
    expect(found).toContain(
      "alone.csv: 240 examples; predicts verdict (classification) from the words of column 'review'\n",
    );
    expect(found).toContain('testFraction: 0.15,');
    // Other columns are of use: all are taken, and the note names the option.
    const hashed = await init('hashed', 'films.csv', { target: 'verdict' });
    expect(hashed).toContain("hashed: { 'review':");
    expect(hashed).toContain('--text review learns from its words alone');
    const named = await init('named', 'films.csv', { target: 'stars', text: 'review' });
    expect(named).toContain("leaves out columns 'id', 'verdict'");
    expect(named).toContain("task: 'regression',");
    expect(named).toContain('args.tf.layers.dense({ units: 1 }),');
    expect(await init('x', 'films.csv', { text: 'reviews', target: 'stars' })).toBe(
      "DP_USAGE films.csv has no column 'reviews' to read texts from; did you mean 'review'? It has 'id', 'review', 'verdict'",
    );
    expect(await init('x', 'films.csv', { text: 'verdict', target: 'verdict' })).toMatch(
      /^DP_USAGE films.csv: --text and --target are both 'verdict'/,
    );
  });

  test.each([
    ['a zero byte', 'zero\0byte', /^DP_DATA_CORRUPT odd\/down\/0\.txt: line 1: a zero byte/],
    [
      'half of UTF-16',
      Buffer.of(0xff, 0xfe, 0x00),
      /odd\/down\/0\.txt: line 1 is not utf-16le: byte 2/,
    ],
  ])('says of a text with %s what is wrong with it', async (_, odd, told) => {
    for (const side of ['down', 'up']) {
      await mkdir(join(folder, 'odd', side), { recursive: true });
      for (let i = 0; i < 12; i++) {
        const text = side === 'down' && i === 0 ? odd : `${side} ${words(i, 5, 9)}`;
        await writeFile(join(folder, 'odd', side, `${i}.txt`), text);
      }
    }
    expect(await init('odd', 'odd')).toMatch(told);
  });

  test('refuses options that mean nothing for the data', async () => {
    expect(await init('x', 'book.txt', { target: 'a' })).toBe(
      'DP_USAGE --target is only for tables, but book.txt has texts: leave it out',
    );
    expect(await init('x', 'mails', { words: true })).toBe(
      'DP_USAGE --words is only for the language model of a text, but mails is a folder of texts: leave it out',
    );
    expect(await init('x', 'book.txt', { model: 'cnn' })).toMatch(
      /^DP_USAGE --model cnn is for images, but book.txt is a text/,
    );
    await writeFile(join(folder, 'tiny.txt'), 'tiny');
    expect(await init('x', 'tiny.txt')).toMatch(/^DP_DATA_CORRUPT tiny.txt: the train part has/);
  });

  test('writes files that load, and whose models are built', () => {
    const kinds = ['book', 'many', 'mails', 'alone', 'named'].map((name) =>
      join(folder, `${name}.ts`),
    );
    expect(written).toEqual(expect.arrayContaining(kinds));
    const models = loadWritten(kinds, true);
    for (const { parameters } of models) expect(parameters).toBeGreaterThan(0);
  }, 120_000);
});
