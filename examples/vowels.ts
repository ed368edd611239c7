import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defineExperiment } from 'downpour';

/**
 * Which of nine speakers says a vowel: sequences of unequal length, read in both directions. The data are JapaneseVowels
 * (Kudo, Toyama and Shimbo 1999), two files in the data folder; docs/results.md says where they come from.
 */
const LENGTH_MAX = 29;
const WIDTH = 12;

export default defineExperiment({
  data: async ({ folder }) => {
    const part = async (name: string) => {
      const text = await readFile(join(folder, `JapaneseVowels_${name}.ts`), 'utf8');
      const lines = text.split(/\r?\n/).filter((line) => /^-?\d/.test(line));
      // A line has 12 series of the same length, then the speaker.
      const utterances = lines.map((line) =>
        line.split(':').map((cell) => cell.split(',').map(Number)),
      );
      const values = new Float32Array(lines.length * LENGTH_MAX * WIDTH);
      utterances.forEach((series, i) => {
        for (const [feature, numbers] of series.slice(0, WIDTH).entries()) {
          numbers.forEach((x, t) => {
            values[(i * LENGTH_MAX + t) * WIDTH + feature] = x;
          });
        }
      });
      return {
        // The steps after the last one of an utterance stay zeros, which the masking layer leaves out.
        inputs: { values, shape: [lines.length, LENGTH_MAX, WIDTH] },
        targets: {
          values: Int32Array.from(utterances, (series) => series[WIDTH]![0]! - 1),
          shape: [lines.length],
          classes: Array.from({ length: 9 }, (_, i) => `speaker ${i + 1}`),
        },
      };
    };
    return { train: await part('TRAIN'), test: await part('TEST'), source: 'JapaneseVowels' };
  },

  model: ({ tf, classCount, hyperparameters }) => {
    const { bidirectional = true, units = 48 } = hyperparameters as {
      bidirectional?: boolean;
      units?: number;
    };
    const lstm = tf.layers.lstm({ units, recurrentActivation: 'sigmoid', unitForgetBias: true });
    return tf.sequential({
      layers: [
        tf.layers.masking({ maskValue: 0, inputShape: [LENGTH_MAX, WIDTH] }),
        bidirectional ? tf.layers.bidirectional({ layer: lstm, mergeMode: 'concat' }) : lstm,
        tf.layers.dropout({ rate: 0.5 }),
        tf.layers.dense({ units: classCount }),
      ],
    });
  },
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: 16,
    learningRate: 0.005,
    optimizer: { kind: 'adam' },
    clip: { norm: 1 },
    validationFraction: 0.1,
    earlyStopping: { enabled: false },
    epochsMax: 40,
  },
});
