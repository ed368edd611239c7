import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import {
  dataDifference,
  decodeFacts,
  encodeFacts,
  factsFor,
  forWorkers,
  hasVocabulary,
  vocabularyOfField,
} from '../../shared/data-facts.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { TableRows } from '../../shared/rows.ts';
import { rowShapes } from '../../shared/tables.ts';
import { factsOf } from '../../worker/data/facts.ts';
import { dataOf } from '../../worker/data/given.ts';
import { packData, unpackData } from '../../worker/data/packed.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { buildVocabulary } from '../../worker/data/texts/vocabulary.ts';
import { PretrainedTables, type TableVectors } from '../../worker/embeddings/table-vectors.ts';
import type { RowBinding } from '../../worker/rows/places.ts';

/** Ids whose field comes with the text of each: what the run keeps of it, and what word vectors take from it. */

const folder = mkdtempSync(join(tmpdir(), 'downpour-id-vocabulary-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const WORDS = buildVocabulary(['a cat saw a dog', 'a dog ran'], { tokens: 'words' });
const IDS = { values: Int32Array.of(2, 3, 4, 3), shape: [4, 1], vocabulary: WORDS.entries };
const targets = { values: [[1], [0], [1], [0]] };
const plan = { seed: 1, validationFraction: 0, standardise: 'none' } as const;
const prepare = (given: unknown) => prepareData(dataOf(given), plan);
const named = { train: { inputs: { word: IDS }, targets } };
const single = { train: { inputs: IDS, targets } };

describe('a vocabulary of ids', () => {
  test.each([
    ['a field', named, 'word'],
    ['the one input', single, 'inputs'],
  ])('of %s is kept with the run, and no worker is sent it', (_, given, field) => {
    const facts = decodeFacts(encodeFacts(factsOf(prepare(given))));
    expect(vocabularyOfField(facts, field)).toEqual(WORDS.entries);
    expect(vocabularyOfField(facts, 'targets')).toBeNull();
    expect(vocabularyOfField(forWorkers(facts), field)).toBeNull();
    expect(JSON.stringify(forWorkers(facts))).not.toContain('dog');
    // A page is sent it with the data.
    const packed = new Uint8Array(Buffer.concat(packData(dataOf(given))));
    expect(factsOf(prepare(unpackData(packed)))).toEqual(facts);
  });

  test('is left out for a server that does not take it', () => {
    for (const given of [named, single]) {
      const facts = { ...factsOf(prepare(given)), uses: ['predict' as const] };
      expect(factsFor(facts, () => true)).toEqual(facts);
      const older = factsFor(facts, (aside) => aside === 'uses');
      expect(older).toEqual({ ...forWorkers(facts), uses: ['predict'] });
      expect([hasVocabulary(facts), hasVocabulary(older)]).toEqual([true, false]);
    }
  });

  test('of a reader of texts is known by its fields, also by the names that an experiment gives them', () => {
    const reading = { kind: 'text', ...WORDS.kept, length: 1, as: 'next' } as const;
    const { vocabulary: _, ...read } = { ...IDS, reading };
    const facts = factsOf(prepare({ train: { inputs: read, targets: IDS } }));
    expect(facts.vocabulary).toBeUndefined();
    for (const field of ['inputs', 'targets']) {
      expect(vocabularyOfField(facts, field)).toEqual(WORDS.entries);
    }
    const other = factsOf(prepare({ train: { inputs: { text: read }, targets } }));
    expect(vocabularyOfField(other, 'text')).toEqual(WORDS.entries);
  });

  test('that is another one means other ids: a worker with it is not for the run', () => {
    const otherWords = [...WORDS.entries].reverse();
    for (const [given, changed, says] of [
      [named, { train: { inputs: { word: { ...IDS, vocabulary: otherWords } }, targets } }, 'word'],
      [single, { train: { inputs: { ...IDS, vocabulary: otherWords }, targets } }, 'inputs'],
    ] as const) {
      const [run, other] = [given, changed].map((each) => ({
        data: null,
        facts: factsOf(prepare(each)),
      }));
      expect(dataDifference(run!, run!)).toBeNull();
      expect(dataDifference(run!, other!)).toMatch(`another vocabulary of the`);
      expect(dataDifference(run!, other!)).toContain(says);
      // A worker of an older release says nothing of it.
      const { facts } = other!;
      expect(dataDifference(run!, { data: null, facts: forWorkers(facts) })).toBeNull();
    }
    expect(() =>
      prepare({
        ...named,
        validation: { inputs: { word: { ...IDS, vocabulary: ['x'] } }, targets },
      }),
    ).toThrow(
      /field 'word': id 0 of the vocabulary is '' in the train part.*build one vocabulary from the training part/,
    );
  });

  test.each([
    ['numbers that are no ids', { values: [[1.5]] }, ['a'], /the numbers are float64/],
    ['something else', {}, [1], /allowed: an array of strings/],
    ['an empty list', {}, [], /has 0 texts; allowed: 1 to 1048576/],
    [
      'too many texts',
      {},
      new Array<string>(LIMITS.vocabularySizeMax + 1).fill('a'),
      /has 1048577 texts/,
    ],
  ])('is refused: %s', (_, more, vocabulary, message) => {
    const inputs = { values: Int32Array.of(0), shape: [1, 1], ...more, vocabulary };
    expect(() => dataOf({ train: { inputs, targets: { values: [[1]] } } })).toThrow(message);
  });

  test('of the most texts that are allowed is taken', () => {
    const vocabulary = new Array<string>(LIMITS.vocabularySizeMax).fill('a');
    const inputs = { values: Int32Array.of(0), shape: [1, 1], vocabulary };
    const { train } = dataOf({ train: { inputs, targets: { values: [[1]] } } });
    expect(train.inputs.vocabulary).toBe(vocabulary);
  });
});

describe('a table that begins with vectors of a file', () => {
  const path = join(folder, 'few.txt');
  writeFileSync(path, 'dog 1 2\nbird 3 4\na 5 6\n');
  const SHA256 = '6efb6eac064671babe87b824b28bb5552c8b67a64cffaaa3dd01f2f7a18b14cd';
  const config: PartialConfig = { tables: { word: { rows: 8, width: 2 } } };

  async function begun(
    vectors: Partial<TableVectors>,
    given: unknown = named,
    bindings: readonly RowBinding[] = [{ table: 'word', field: 'word', maskZero: false }],
  ) {
    const resolved = resolveConfig(config);
    const pretrained = { from: path, sha256: SHA256, ...vectors };
    const opened = await PretrainedTables.open({
      ...{ tables: { word: { pretrained } }, config: resolved },
      ...{ args: { folder, seed: 1, hyperparameters: {}, log: () => {} } },
      ...{ prepared: prepare(given), bindings },
    });
    const rows: TableRows[] = [];
    await opened!.send(rowShapes(resolved), async ([own]) => void rows.push(own!));
    return { coverage: opened!.coverage()[0]!, rows };
  }

  test('takes the vocabulary of its field: words need not be repeated', async () => {
    const { coverage, rows } = await begun({});
    expect(rows).toEqual([{ keys: Uint32Array.of(2, 3), values: Float32Array.of(5, 6, 1, 2) }]);
    // Ids without a text are no words that are missing.
    expect(coverage).toEqual({
      ...{ table: 'word', words: 5, found: 2, tokens: { all: 4, found: 3 } },
      missing: ['cat', 'ran', 'saw'],
    });
    const own = await begun({}, single, [{ table: 'word', field: 'inputs', maskZero: false }]);
    expect(own.rows).toEqual(rows);
  });

  test('takes the words that it is given before those of the field', async () => {
    const { rows } = await begun({ words: () => ['bird', 'a'] });
    expect(rows).toEqual([{ keys: Uint32Array.of(0, 1), values: Float32Array.of(3, 4, 5, 6) }]);
  });

  test('gives all ids of a word its vector', async () => {
    const { coverage, rows } = await begun({ words: ['dog', '', 'a', 'dog', 'cat', 'dog', ''] });
    expect(rows).toEqual([
      { keys: Uint32Array.of(0, 2, 3, 5), values: Float32Array.of(1, 2, 5, 6, 1, 2, 1, 2) },
    ]);
    expect(coverage).toMatchObject({ words: 5, found: 4, missing: ['cat'] });
  });

  test('without words and without a vocabulary says what to give', async () => {
    const { vocabulary: _, ...ids } = IDS;
    await expect(begun({}, { train: { inputs: { word: ids }, targets } })).rejects.toThrow(
      /tables\.word\.pretrained has no words, and the ids of 'word' have no vocabulary: write pretrained: \{ from, sha256, words \}/,
    );
  });

  test('has room for the vocabulary of its field', async () => {
    const vocabulary = Array.from({ length: 9 }, (_, i) => `w${i}`);
    await expect(
      begun({}, { train: { inputs: { word: { ...IDS, vocabulary } }, targets } }),
    ).rejects.toThrow(
      /has room for 8 rows, and the vocabulary of its ids has 9 words: set rows to 9/,
    );
  });
});
