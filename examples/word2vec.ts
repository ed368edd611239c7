import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defineExperiment, type Tensor } from 'downpour';
import { layers, losses } from 'downpour/layers';
import { buildVocabulary } from 'downpour/text';

/**
 * Vectors of words: word2vec's skip-gram with negative sampling (Mikolov et al. 2013). A word is to tell the words around it
 * from words that are drawn. The texts are the 500 files of the Brown corpus in the data folder (docs/results.md says where
 * they come from).
 */
const [WINDOW, NEGATIVES, WIDTH, ROWS] = [5, 5, 100, 20_000];
/** Places of the words around a word, from the nearest before it to the furthest behind it. */
const AROUND = Array.from({ length: 2 * WINDOW }, (_, k) => (k < WINDOW ? -1 - k : k - WINDOW + 1));
/** Words with a larger share of the text are thinned out. */
const FREQUENT = 1e-3;
/** All rows begin with steps of one size, whatever the number of pairs in a minibatch, which frequent words then make smaller. */
const OPTIMIZER = { kind: 'adagrad', initialAccumulator: 0 } as const;
/** Draws words by their counts to the power 0.75. `data` makes it. */
let sampler: ReturnType<typeof losses.unigramSampler>;

/** In lower case. Each word has its part of speech behind a slash; what has no letter is left out. */
async function readSentences(folder: string): Promise<string[]> {
  const names = (await readdir(folder)).filter((name) => /^c[a-r]\d\d$/.test(name)).sort();
  const texts = await Promise.all(names.map((name) => readFile(join(folder, name), 'utf8')));
  return texts
    .flatMap((text) =>
      text
        .toLowerCase()
        .replaceAll(/\/[^\s/]+(?=\s|$)/gm, '')
        .split('\n'),
    )
    .map((line) => (line.match(/\S*\p{L}\S*/gu) ?? []).join(' '));
}

export default defineExperiment({
  data: async ({ folder }) => {
    const sentences = await readSentences(folder);
    const words = buildVocabulary(sentences, { tokens: 'spaces', minCount: 5 });
    const texts = sentences.map((text) => words.encode(text).filter((id) => id !== words.unknown));
    const counts = new Array<number>(words.size).fill(0);
    for (const id of texts.flatMap((text) => [...text])) counts[id]!++;
    sampler = losses.unigramSampler(counts);
    const frequent = FREQUENT * counts.reduce((sum, count) => sum + count, 0);
    const share = counts.map((count) => Math.sqrt(frequent / count) + frequent / count);
    // Evenly, so that every worker has the same ones.
    const seen = new Array<number>(words.size).fill(0);
    const isKept = (id: number) => {
      const before = seen[id]!++;
      return (
        share[id]! >= 1 || Math.floor(share[id]! * (before + 1)) > Math.floor(share[id]! * before)
      );
    };
    const thinned = texts.map((text) => text.filter(isKept)).filter(({ length }) => length > 1);
    const all = thinned.flatMap((text) => [...text]);
    const context = thinned.flatMap((text) =>
      [...text].flatMap((_, i) => AROUND.map((place) => text[i + place] ?? -1)),
    );
    return {
      train: {
        inputs: {
          word: {
            ...{ values: Int32Array.from(all), shape: [all.length, 1] },
            vocabulary: words.entries,
          },
          context: {
            ...{ values: Int32Array.from(context), shape: [all.length, AROUND.length] },
            vocabulary: words.entries,
          },
        },
      },
      source: `the Brown corpus, ${words.size} words`,
    };
  },

  batch: {
    change: ({ word, context, ...rest }, { random, tf }) => {
      // Windows of all widths up to WINDOW are as likely, so that nearer words count more.
      const width = random.integers([word!.shape[0]!, 1], WINDOW).add(1);
      const distance = tf.tensor2d(AROUND, [1, AROUND.length], 'int32').abs();
      const near = tf.where(
        distance.lessEqual(width),
        context!,
        tf.fill(context!.shape, -1, 'int32'),
      );
      const drawn = sampler.draw(random, [word!.shape[0]!, NEGATIVES]);
      return { ...rest, word: word!, context: tf.concat([near, drawn], 1) };
    },
    evaluation: true,
  },

  tables: {
    word: { rows: ROWS, width: WIDTH, optimizer: OPTIMIZER },
    context: { rows: ROWS, width: WIDTH, optimizer: OPTIMIZER, initializer: { kind: 'zeros' } },
  },
  model: ({ tf }) => {
    const ids = (name: string, count: number) => tf.input({ shape: [count], name, dtype: 'int32' });
    const inputs = [ids('word', 1), ids('context', AROUND.length + NEGATIVES)];
    const rows = inputs.map((input, i) =>
      layers.rows({ table: i === 0 ? 'word' : 'context' }).apply(input),
    );
    const scores = tf.layers.dot({ axes: 2 }).apply(rows as never);
    const bias = tf.variable(tf.zeros([1]));
    return {
      pairs: tf.model({ inputs, outputs: scores as never }),
      // With −log NEGATIVES here, scores are pointwise mutual information (Levy and Goldberg 2014).
      shifted: { variables: { bias }, predict: (scores: Tensor) => scores.add(bias) },
    };
  },
  objective: ({ model, batch: { word, context }, tf }) => {
    const pairs = model.pairs!.apply({ word: word!, context: context! });
    const scores = model.shifted!.apply(pairs).reshape([-1, AROUND.length + NEGATIVES, 1]);
    const [near, drawn] = tf.split(scores, [AROUND.length, NEGATIVES], 1) as [Tensor, Tensor];
    // Each word around is told from the same drawn ones.
    const others = drawn.reshape([-1, 1, NEGATIVES]).tile([1, AROUND.length, 1]);
    const each = losses.negativeSampling({
      scores: tf.concat([near, others], 2).reshape([-1, 1 + NEGATIVES]),
    });
    const isThere = context!.slice([0, 0], [-1, AROUND.length]).notEqual(0).toFloat();
    return each.reshape([-1, AROUND.length]).mul(isThere).sum(1);
  },
  config: {
    minibatchSize: 512,
    learningRate: 0.05,
    validationFraction: 0.01,
    epochsMax: 5,
  },
});
