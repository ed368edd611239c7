import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest';
import { stageRows } from '../../cli/own-tables.ts';
import {
  chosenTables,
  decimalOf,
  vectorsText,
  type WriteVectorsOptions,
  writeProjectorConfig,
  writeVectors,
} from '../../cli/trained/export-vectors.ts';
import {
  openStoredRows,
  type StoredRows,
  type StoredTable,
} from '../../cli/trained/trained-rows.ts';
import { type CheckpointTensor, writeTensors } from '../../files/tensor-file.ts';
import { RunTables } from '../../server/core/tables/run-tables.ts';
import { resolveConfig } from '../../shared/config.ts';
import { encodeRows } from '../../shared/rows.ts';
import { decimalAt } from '../../worker/embeddings/decimals.ts';
import { readWordVectors } from '../../worker/embeddings/word-vectors.ts';

/** Rows of tables of a checkpoint, as files of vectors. */

const root = mkdtempSync(join(tmpdir(), 'downpour-export-vectors-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folder: string;
const opened: StoredRows[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(root, 'to-'));
});
afterEach(async () => {
  for (const rows of opened.splice(0)) await rows.close();
});

const config = resolveConfig({
  seed: 5,
  tables: {
    film: { rows: 'hash', width: 2, optimizer: { kind: 'sgd' } },
    // Initial values decay, too.
    word: { rows: 12, width: 3, optimizer: { kind: 'sgd' }, weightDecay: 0.5 },
  },
});
const FILMS = Uint32Array.of(7, 900, 2 ** 31 - 1);
const WORD_KEYS = Uint32Array.from({ length: 12 }, (_, key) => key);
const rowsOf = (keys: Uint32Array, width: number) => ({
  keys,
  values: Float32Array.from({ length: keys.length * width }, (_, i) => Math.cos(1 + i) / 3),
});
const NONE = (width: number) => rowsOf(new Uint32Array(), width);

/** Words 2 and 3 begin with values of a file, words 3 to 5 and some films are trained. */
function trained(): RunTables {
  const tables = new RunTables(config);
  tables.begin(encodeRows(tables.shapes, [NONE(2), rowsOf(Uint32Array.of(2, 3), 3)], 'f32'));
  stageRows(tables, [rowsOf(FILMS, 2), rowsOf(Uint32Array.of(3, 4, 5), 3)]);
  tables.apply(0.1, { limit: Number.POSITIVE_INFINITY, factor: 1 }, () => 1);
  return tables;
}

/** The same rows, in the order in which two shards have them: those with an odd key behind the others. */
function ofTwoShards(tensors: readonly CheckpointTensor[]): CheckpointTensor[] {
  return tensors.map((tensor) => {
    const [table] = /^@table\.\w+/.exec(tensor.name)!;
    const keys = tensors.find(({ name }) => name === `${table}.model.keys`)!.values;
    const count = keys.length / 2;
    const rows = Array.from({ length: count }, (_, i) => i);
    const order = [0, 1].flatMap((odd) => rows.filter((i) => keys[2 * i + 1]! % 2 === odd));
    if (tensor.name.endsWith('moment')) return tensor;
    const size = tensor.values.length / count;
    const values = order.flatMap((i) => [...tensor.values.subarray(i * size, (i + 1) * size)]);
    return { ...tensor, values: Float32Array.from(values) };
  });
}

async function stored(change = (tensors: readonly CheckpointTensor[]) => tensors) {
  const tables = trained();
  const path = join(root, `${Math.random()}.safetensors`);
  await writeTensors(path, change(tables.named(null)));
  const rows = (await openStoredRows(path, config))!;
  opened.push(rows);
  return { tables, rows };
}

const options = (more: Partial<WriteVectorsOptions> = {}): WriteVectorsOptions => ({
  ...{ format: 'word2vec', to: folder, words: null, log: () => {} },
  ...{ signal: new AbortController().signal, ...more },
});
const tableOf = ({ tables }: StoredRows, name: string) =>
  tables.find((table) => table.name === name)!;
const WORDS = ['', '', 'the', 'New York', 'naïve', '日本', 'cat', 'New_York', 'cat', '\n', '_'];

async function readBack(path: string) {
  const rows = new Map<string, readonly number[]>();
  const facts = await readWordVectors(path, ({ words, values }) => {
    const width = values.length / words.length;
    for (const [i, word] of words.entries()) {
      rows.set(word, [...values.subarray(i * width, (i + 1) * width)]);
    }
  });
  return { rows, width: facts.width, count: facts.words };
}

describe('rows of a checkpoint', () => {
  test.each([
    ['of one server', undefined],
    ['of two shards', ofTwoShards],
  ])('%s are read from its file as the server has them', async (_, change) => {
    const { tables, rows } = await stored(change);
    const [film, word] = rows.tables as [StoredTable, StoredTable];
    expect([film.isGrowing, word.isGrowing]).toEqual([true, false]);
    expect([...film.keys]).toEqual([...FILMS]);
    expect([...word.keys]).toEqual([2, 3, 4, 5]);
    expect([[...film.pretrained], [...word.pretrained]]).toEqual([[], [1, 1, 0, 0]]);
    const keys = [Uint32Array.of(0, 7, 8, 900, 2 ** 31 - 1), WORD_KEYS];
    const [f, w] = await Promise.all([film.read(keys[0]!), word.read(keys[1]!)]);
    expect(
      encodeRows(
        tables.shapes,
        [
          { keys: keys[0]!, values: f },
          { keys: keys[1]!, values: w },
        ],
        'f32',
      ),
    ).toEqual(tables.read(keys, 'f32', null));
    expect([...(await word.read(Uint32Array.of(4)))]).toEqual([...w.subarray(12, 15)]);
  });

  test('to continue from are refused, and a run without tables has none', async () => {
    const path = join(root, 'last.safetensors');
    await writeTensors(path, trained().tensors(null, null));
    await expect(openStoredRows(path, config)).rejects.toThrow(/use its best or final parameters/);
    expect(await openStoredRows(path, resolveConfig({}))).toBeNull();
  });
});

describe('a file of vectors', () => {
  test('has each word with its row, which our own reader reads to the bit', async () => {
    const { rows } = await stored();
    const table = tableOf(rows, 'word');
    const all = await table.read(WORD_KEYS);
    for (const format of ['word2vec', 'glove'] as const) {
      const written = await writeVectors(table, options({ format, words: WORDS }));
      expect(written).toEqual({
        ...{ table: 'word', files: ['word.txt'], rows: 9, width: 3 },
        ...{ trained: 2, pretrained: 2, initial: 5, withoutWord: 3, changedWords: 3 },
      });
      const text = readFileSync(join(folder, 'word.txt'), 'utf8');
      expect(text.startsWith('9 3\n')).toBe(format === 'word2vec');
      const { rows: back, width, count } = await readBack(join(folder, 'word.txt'));
      expect([width, count]).toEqual([3, 9]);
      // A blank ends a word, and each word is there once.
      const names = ['the', 'New_York_', 'naïve', '日本', 'cat', 'New_York', 'cat_', '__', '_'];
      expect([...back.keys()]).toEqual(names);
      for (const [i, name] of names.entries()) {
        expect(back.get(name)).toEqual([...all.subarray(3 * (i + 2), 3 * (i + 3))]);
      }
      expect(vectorsText(written)).toBe(
        "table 'word': 9 rows of 3 numbers; 2 were trained, 2 began with vectors of a file, 5 have their initial values, since no push had them. Left out: 3 ids that have no word. 3 words have blanks or line breaks, or are there twice: they are written with '_'",
      );
    }
  });

  test('has numbers for words where there are none, and of a growing table the ids that have a row', async () => {
    const { rows } = await stored();
    await writeVectors(tableOf(rows, 'film'), options());
    const { rows: films } = await readBack(join(folder, 'film.txt'));
    expect([...films.keys()]).toEqual([...FILMS].map(String));
    const written = await writeVectors(tableOf(rows, 'word'), options());
    expect(written).toMatchObject({ rows: 12, initial: 8, withoutWord: 0 });
    expect((await readBack(join(folder, 'word.txt'))).count).toBe(12);
  });

  test('for the projector is one of numbers and one of words, which a third file names', async () => {
    const { rows } = await stored();
    const table = tableOf(rows, 'word');
    const written = await writeVectors(table, options({ format: 'projector', words: WORDS }));
    expect(await writeProjectorConfig(folder, [written])).toBe('projector_config.pbtxt');
    const lines = (name: string) => readFileSync(join(folder, name), 'utf8').trimEnd().split('\n');
    const values = await table.read(Uint32Array.of(2, 3));
    const first = lines('word-tensors.tsv')
      .slice(0, 2)
      .flatMap((line) => line.split('\t'));
    expect(Float32Array.from(first, Number)).toEqual(values);
    expect(lines('word-tensors.tsv')).toHaveLength(9);
    expect(lines('word-metadata.tsv').slice(0, 3)).toEqual(['the', 'New_York_', 'naïve']);
    expect(lines('projector_config.pbtxt')).toEqual([
      'embeddings {',
      '  tensor_name: "word"',
      '  tensor_path: "word-tensors.tsv"',
      '  metadata_path: "word-metadata.tsv"',
      '}',
    ]);
  });

  test('that is interrupted leaves nothing', async () => {
    const { rows } = await stored();
    const table = tableOf(rows, 'word');
    const controller = new AbortController();
    const interrupted: StoredTable = {
      ...table,
      // So many that there is a second piece.
      ...{ keysMax: 2 ** 17 },
      read: async (keys) => {
        controller.abort(new Error('interrupted'));
        return new Float32Array(3 * keys.length);
      },
    };
    for (const format of ['word2vec', 'projector'] as const) {
      const { signal } = controller;
      await expect(writeVectors(interrupted, options({ format, signal }))).rejects.toThrow(
        'interrupted',
      );
      expect(readdirSync(folder)).toEqual([]);
    }
  });

  test('is refused, with what to do, where it would say something else', async () => {
    const { rows } = await stored();
    const word = tableOf(rows, 'word');
    await expect(writeVectors({ ...word, width: 1 }, options({ format: 'glove' }))).rejects.toThrow(
      /rows of 1 number.*use --format word2vec/,
    );
    await expect(writeVectors(word, options({ words: ['', ''] }))).rejects.toThrow(
      /has no row to write: no id has a word/,
    );
    expect(chosenTables(rows, 'film').map(({ name }) => name)).toEqual(['film']);
    expect(chosenTables(rows, undefined)).toHaveLength(2);
    expect(() => chosenTables(rows, 'wrod')).toThrow(/--table is 'wrod'.*did you mean 'word'\?/);
    expect(() => chosenTables(rows, 'x')).toThrow(/its tables: film, word/);
  });
});

test('a number has as few decimals as give the same float32 again', () => {
  fc.assert(
    fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (x) => {
      const text = decimalOf(x);
      expect(Math.fround(Number(text)) === x).toBe(true);
      const bytes = Buffer.from(text);
      expect(Math.fround(decimalAt(bytes, 0, bytes.length)) === x).toBe(true);
    }),
    { numRuns: 2_000, seed: 7 },
  );
  const shown = [0, 0.5, -0.418, 0.000013, 1 / 3, 123.25, 1e-20, 3.4e38].map((x) =>
    decimalOf(Math.fround(x)),
  );
  expect(shown).toEqual([
    '0',
    '0.5',
    '-0.418',
    '0.000013',
    '0.33333334',
    '123.25',
    '1e-20',
    '3.4e+38',
  ]);
});
