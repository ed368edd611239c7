import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defineExperiment, type Tensor, textWindows } from 'downpour';
import { losses } from 'downpour/layers';

/**
 * A language model of words by one LSTM: which word follows. The texts are the 500 files of the Brown corpus in the data
 * folder (docs/results.md says where they come from); whole files are the validation and the test part.
 */
const WINDOW = 50;
const UNITS = 200;
/** Words that a minibatch compares the right ones with, instead of all 12,000: Deep Learning §12.4.3.3. */
const DRAWN = 1024;

/** The words of a file without their tags, as `The/at jury/nn said/vbd ./.`. A line is a sentence. */
async function wordsOf(file: string): Promise<string> {
  const lines = (await readFile(file, 'utf8')).split('\n').map((line) => line.trim());
  const sentences = lines.filter((line) => line !== '');
  return sentences.map((line) => line.replace(/\/[^\s/]+(?=\s|$)/g, '')).join(' </s> ');
}

export default defineExperiment({
  data: async ({ folder, log }) => {
    const names = (await readdir(folder)).filter((name) => /^c[a-r]\d\d$/.test(name)).sort();
    return textWindows({
      texts: await Promise.all(names.map((name) => wordsOf(join(folder, name)))),
      ...{ tokens: 'spaces', lowerCase: true, minCount: 5, window: WINDOW },
      ...{ validationFraction: 0.1, testFraction: 0.1111, log },
    });
  },

  // The vectors of words are weights of the input and of the output (Press and Wolf 2017).
  model: ({ tf, classCount }) => ({
    words: tf.sequential({
      layers: [tf.layers.embedding({ inputDim: classCount, outputDim: UNITS, inputShape: [null] })],
    }),
    reader: tf.sequential({
      layers: [
        tf.layers.dropout({ rate: 0.4, inputShape: [WINDOW, UNITS] }),
        tf.layers.lstm({
          ...{ units: UNITS, returnSequences: true },
          ...{ recurrentActivation: 'sigmoid', unitForgetBias: true },
        }),
        tf.layers.dropout({ rate: 0.4 }),
      ],
    }),
  }),

  // In nats for each word: the perplexity is e to its power.
  objective: ({ model, batch, random, training, tf }) => {
    const { words, reader } = model as Required<typeof model>;
    const vectorsOf = (ids: Tensor) => words!.apply(ids).reshape([-1, UNITS]);
    const states = reader!.apply(words!.apply(batch.inputs)).reshape([-1, UNITS]);
    const right = batch.targets.reshape([-1, 1]);
    const meansOf = (loss: Tensor) => loss.reshape([-1, WINDOW]).mean(1);
    const [count, classCount] = [right.shape[0]!, Object.values(words!.variables)[0]!.shape[0]!];
    if (!training) {
      const all = vectorsOf(tf.range(0, classCount, 1, 'int32').reshape([1, -1]));
      const truth = tf.oneHot(right.reshape([-1]), classCount).toFloat();
      const logs = tf.logSoftmax(states.matMul(all, false, true));
      return meansOf(logs.mul(truth).sum(1).neg());
    }
    // Words are in the order of their frequency, which falls as the numbers rise (Zipf).
    const sampler = losses.unigramSampler(
      Array.from({ length: classCount }, (_, i) => 1 / (i + 1)),
      1,
    );
    const drawn = sampler.draw(random, [1, DRAWN]);
    const ids = tf.concat([right, tf.tile(drawn, [count, 1])], 1);
    const own = states.mul(vectorsOf(right)).sum(1, true);
    const scores = tf.concat([own, states.matMul(vectorsOf(drawn), false, true)], 1);
    const logProbabilities = sampler.logProbability(ids);
    return meansOf(losses.sampledSoftmax({ scores, ids, logProbabilities }));
  },

  config: {
    minibatchSize: 24,
    learningRate: 0.003,
    optimizer: { kind: 'adam' },
    schedule: { kind: 'exponential', factor: 0.5, steps: 1_600 },
    clip: { norm: 1 },
    earlyStopping: { patience: 2 },
    epochsMax: 10,
  },
});
