import { beforeAll, describe, expect, test } from 'vitest';
import { examplesThatFit } from '../../cli/trained/look.ts';
import { resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import { withWords, wordLosses } from '../../study/look-words.ts';
import type { Report } from '../../study/report.ts';
import { toldReport } from '../../study/telling.ts';
import { WordSpace } from '../../study/word-vectors.ts';
import type { Examples } from '../../worker/data/examples.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { type ModelArguments, mustBeExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { exampleWords, modelWords } from '../../worker/words.ts';

const TEXTS = ['', 'the', 'cat', 'dog', 'rare'];

test('words are ordered by the mean loss where they occur, and those that hardly occur are left out', () => {
  const ids = [...new Array(6).fill([1, 2, 2]), ...new Array(6).fill([1, 3, 0]), [4, -1, 99]];
  const losses = [...new Array(6).fill(3), ...new Array(5).fill(1), Number.NaN, 50];
  expect(wordLosses(TEXTS, losses, (i) => ids[i]!)).toEqual([
    { word: 'cat', count: 6, loss: 3 },
    { word: 'the', count: 11, loss: 23 / 11 },
    { word: 'dog', count: 5, loss: 1 },
  ]);
});

describe('a report', () => {
  const report: Report = {
    ...{ title: 'Looking at r', headings: ['example'], rows: [['1']], advice: 'Advice.' },
    ...{ plots: {}, facts: { name: 'r' } },
  };
  const words = ['the', 'cat', 'dog', '\n'];
  const space = new WordSpace(words, Float32Array.of(1, 0, 0, 1, 0.1, 1, 1, 1), 2);
  const losses = [{ word: 'cat', count: 7, loss: 2.5 }];

  test('lists the worst words and the neighbours of words, in the terminal, in a figure and for programs', () => {
    const told = withWords(report, {
      ...{ losses, lossesOf: 'examples with the word', spaces: { word: space }, asked: ['cat'] },
    });
    expect(told.more).toEqual([
      {
        title: 'Words with the highest mean loss (of examples with the word)',
        headings: ['word', 'times', 'mean loss'],
        rows: [['cat', '7', '2.5']],
      },
      {
        title: "Nearest neighbours in 'word', by cosine",
        headings: ['word', 'neighbours'],
        rows: [['cat', 'dog 1.00, "\\n" 0.71, the 0.00']],
      },
    ]);
    expect(told.plots['neighbours.svg']).toMatchObject({
      cards: [{ caption: ['cat'], shown: { text: 'dog 1.00\n"\\n" 0.71\nthe 0.00' } }],
    });
    expect(told.facts).toMatchObject({
      name: 'r',
      words: { worst: losses, near: { word: [{ word: 'cat', near: [{ word: 'dog' }, {}, {}] }] } },
    });
    // The dashboard has the figure.
    const facts = {
      kind: 'look',
      state: 'ended',
      experiment: 'e',
      run: 'r',
      trials: null,
      runs: [],
    } as const;
    expect(toldReport(facts, told).figures).toMatchObject([
      { title: 'Nearest neighbours of words' },
    ]);
  });

  test('chooses words of all frequencies and the worst ones by itself', () => {
    const many = Array.from({ length: 1_000 }, (_, i) => `w${i}`);
    const large = new WordSpace(
      many,
      Float32Array.from(many, (_, i) => 1 + i),
      1,
    );
    const given = { losses: [{ word: 'w999', count: 9, loss: 4 }], lossesOf: 'x', asked: [] };
    const { near } = withWords(report, { ...given, spaces: { word: large } }).facts.words as {
      near: { word: { word: string }[] };
    };
    const shown = near.word.map(({ word }) => word);
    expect(shown).toContain('w999');
    expect(shown.length).toBeGreaterThan(10);
    expect(new Set(shown).size).toBe(shown.length);
  });

  test('stays as it is without words', () => {
    const none = { losses: null, lossesOf: 'x', spaces: {}, asked: [] };
    expect(withWords(report, none)).toBe(report);
  });
});

describe("a model's words", () => {
  beforeAll(() => openEngine({ engine: 'cpu' }));

  const COUNT = 20;
  const ids = Int32Array.from({ length: 2 * COUNT }, (_, i) => i % TEXTS.length);
  /** @param vocabulary of the ids; absent: they have none. */
  async function built(isTable: boolean, vocabulary?: readonly string[]) {
    const given = {
      train: {
        inputs: { values: ids, shape: [COUNT, 2], ...(vocabulary && { vocabulary }) },
        targets: { values: new Float32Array(COUNT), shape: [COUNT, 1] },
      },
    };
    const experiment = mustBeExperiment(
      {
        data: () => given,
        ...(isTable && { tables: { word: { rows: TEXTS.length, width: 3 } } }),
        model: ({ tf }: ModelArguments) =>
          tf.sequential({
            layers: [
              isTable
                ? layers.rows({ table: 'word', inputShape: [2] })
                : tf.layers.embedding({
                    ...{ inputDim: TEXTS.length, outputDim: 3, inputLength: 2, name: 'words' },
                  }),
              tf.layers.flatten(),
              tf.layers.dense({ units: 1 }),
            ],
          }),
        loss: 'meanSquaredError',
      },
      'test',
    );
    const config = { ...resolveConfig(experiment.config!), seed: 3 };
    const prepared = prepareData(dataOf(given), prepareOptions(experiment, config));
    const model = await buildModel(experiment, config, prepared);
    return { model, prepared };
  }

  test('are rows of a table, or an embedding, by the vocabulary of their ids', async () => {
    const rows = await built(true, TEXTS);
    const source = async (keys: readonly Uint32Array[]) =>
      keys.map((own) => ({
        keys: own,
        values: Float32Array.from([...own].flatMap((key) => [key, key / 2, 1])),
      }));
    expect(await modelWords(rows.model, rows.prepared, source)).toEqual([
      {
        ...{ name: 'word', words: TEXTS.slice(1), width: 3 },
        values: Float32Array.of(1, 0.5, 1, 2, 1, 1, 3, 1.5, 1, 4, 2, 1),
      },
    ]);
    expect(await modelWords(rows.model, rows.prepared, null)).toEqual([]);

    const dense = await built(false, TEXTS);
    const parameters = (await dense.model.initialise(3)).slice();
    const { offset } = dense.model.layout.tensors.find(({ name }) => name === 'words/embeddings')!;
    parameters.set([7, 8, 9], offset + 2 * 3);
    dense.model.load(parameters);
    const [found] = await modelWords(dense.model, dense.prepared, null);
    expect(found).toMatchObject({ name: 'words', words: TEXTS.slice(1), width: 3 });
    expect([...found!.values.subarray(3, 6)]).toEqual([7, 8, 9]);
  });

  test('are nothing where ids have no vocabulary, but those given for a table', async () => {
    const { model, prepared } = await built(true);
    const source = async (keys: readonly Uint32Array[]) =>
      keys.map((own) => ({ keys: own, values: new Float32Array(3 * own.length) }));
    expect(await modelWords(model, prepared, source)).toEqual([]);
    expect(await exampleWords(prepared.train, Int32Array.of(0))).toBeNull();
    const given = { word: ['a', 'b'] };
    expect(await modelWords(model, prepared, source, given)).toMatchObject([{ words: ['a', 'b'] }]);
    const embedding = await built(false);
    expect(await modelWords(embedding.model, embedding.prepared, null)).toEqual([]);
  });

  test('of examples are those of the first input with a vocabulary', async () => {
    const { prepared } = await built(false, TEXTS);
    const found = await exampleWords(prepared.validation, Int32Array.of(1, 0));
    expect(found!.texts).toEqual(TEXTS);
    const first = prepared.validation.inputs.values;
    expect([...found!.idsOf(1)]).toEqual([...first.subarray(0, 2)]);
    expect([...found!.idsOf(0)]).toEqual([...first.subarray(2, 4)]);
  });
});

test('at most so many numbers of vectors are looked at, and of answers', async () => {
  const most = LIMITS.lookedNumbersMax;
  const column = { values: new Int32Array(0), shape: [0], vocabulary: TEXTS };
  const train = { inputs: column } as unknown as Examples;
  const wordsOf = async (width: number) => {
    const shapes = [{ name: 'word', width, keysMax: TEXTS.length }];
    const bindings = [{ table: 'word', field: 'inputs' }];
    const model = { embeddings: () => [], rows: { shapes, bindings } } as unknown as Model;
    const none = async () => [{ keys: new Uint32Array(0), values: new Float32Array(0) }];
    const [words] = await modelWords(model, { train }, none);
    return words!.words;
  };
  expect(await wordsOf(most / 2)).toEqual(['the', 'cat']);
  expect(await wordsOf(most / 2 + 1)).toEqual(['the']);
  const answers = (targetSize: number, classCount: number | null = null) =>
    examplesThatFit({ targetSize, classCount });
  expect(answers(most / 4)).toBe(4);
  expect(answers(most / 4 + 1)).toBe(3);
  // A label becomes a probability of each class.
  expect(answers(1, most / 4 + 1)).toBe(3);
});
