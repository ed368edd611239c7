import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import type { Lease, Push, Work } from '../../shared/protocol.ts';
import { decodeKeys, decodeRows, encodeRows, type TableRows } from '../../shared/rows.ts';
import { rowShapes } from '../../shared/tables.ts';
import type { Landing } from '../../wire/connection.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { createOrders } from '../../worker/minibatches.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { type RowsAnswer, RowsLost } from '../../worker/rows/requests.ts';
import type { RowPuller, RowsOfPush } from '../../worker/rows/rows-exchange.ts';
import { createTrainer, type TrainerOptions } from '../../worker/trainer.ts';
import { FakeExchange, workOf } from '../support/fake-exchange.ts';

const SEED = 5;
const COUNT = 40;
const WIDTH = 2;

/** Example i has the word 3 i, and the target i. */
const data = dataOf({
  train: {
    inputs: { values: Int32Array.from({ length: COUNT }, (_, i) => 3 * i), shape: [COUNT, 1] },
    targets: { values: Float32Array.from({ length: COUNT }, (_, i) => i), shape: [COUNT, 1] },
  },
  source: 'words',
});
const prepared = prepareData(data, { seed: SEED, validationFraction: 0.2, standardise: 'none' });
const experiment = mustBeExperiment(
  {
    data: () => data,
    tables: { word: { rows: 'hash', width: WIDTH } },
    model: ({ tf }: Parameters<Experiment['model']>[0]) =>
      tf.sequential({
        layers: [
          layers.rows({ table: 'word', combine: 'sum', inputShape: [1] }),
          tf.layers.dense({ units: 1, kernelInitializer: 'ones' }),
        ],
      }),
    loss: 'meanSquaredError',
  } satisfies Experiment,
  'test',
);
const config = { ...resolveConfig(experiment.config), seed: SEED };
const shapes = rowShapes(config);

let model: Model;
beforeAll(() => openEngine({ engine: 'cpu' }));
beforeEach(async () => {
  model = await buildModel(experiment, config, prepared);
});
afterEach(() => model.dispose());

/** Row k is [k, −k] + the row step. */
const rowsAt = (keys: Uint32Array, step: number): TableRows => ({
  keys,
  values: Float32Array.from([...keys].flatMap((key) => [key + step, -key + step])),
});
const encoded = (keys: Uint32Array, step: number) =>
  encodeRows(shapes, [rowsAt(keys, step)], 'f32');

/** A server that answers requests for rows; the test answers the rest. */
class ExchangeOfRows extends FakeExchange implements RowPuller {
  readonly tails: Uint8Array[] = [];
  readonly pulls: { evaluation: number | null; keys: number[] }[] = [];
  /** The row step of rows that are pulled. */
  step = 100;
  isLost = false;

  override pushReady(
    push: Omit<Push, 'type' | 'sequence'>,
    payloads: readonly Landing[],
    rows?: readonly RowsOfPush[],
  ): number {
    this.tails.push(rows![0]!.tail);
    return super.pushReady(push, payloads);
  }

  async pullRows(
    { evaluation }: Parameters<RowPuller['pullRows']>[0],
    bytes: Uint8Array,
  ): Promise<RowsAnswer> {
    if (this.isLost) throw new RowsLost('the connection was lost');
    const [keys] = decodeKeys(shapes, bytes);
    this.pulls.push({ evaluation, keys: [...keys!] });
    const { step } = this;
    return { step, generation: 1, encoding: 'f32', parts: [encoded(keys!, step)] };
  }
}

function setUp(more: Partial<TrainerOptions> = {}) {
  const exchange = new ExchangeOfRows();
  const { signal } = new AbortController();
  const options = { run: 'r', config, model, prepared, exchange, signal, log: () => {}, ...more };
  return { exchange, trainer: createTrainer(options) };
}

const lease = (id: number): Lease => ({ id, epoch: 0, start: 4 * id, count: 4, part: 'train' });
const answered = (sequence: number, outcome: 'applied' | 'rejected' = 'applied') => ({
  acknowledgements: [
    {
      ...{ sequence, outcome, staleness: 0, message: null },
      code: outcome === 'applied' ? null : 'DP_PUSH_STALE',
    } as Work['acknowledgements'][number],
  ],
});
/** Kernel, then bias. */
const theta = () => Float32Array.of(1, 1, 0);
/** The words of a lease, rising. */
const wordsOf = (id: number) =>
  [...gather(prepared, 'train', createOrders(SEED, prepared)(lease(id))).inputs].sort(
    (a, b) => a - b,
  );

test('the first minibatch pulls its rows; each push names those of the next, and its answer brings them', async () => {
  const { exchange, trainer } = setUp();
  await trainer.work(workOf(0, [lease(1), lease(2)]), theta());
  expect(exchange.pulls).toEqual([{ evaluation: null, keys: wordsOf(1) }]);
  const [first] = exchange.pushes;
  const { step, bytes, wanted } = first!.rows!;
  expect(step).toBe(100);
  const [gradient] = decodeRows(shapes, exchange.tails[0]!.subarray(0, bytes), 'f32');
  expect([...gradient!.keys]).toEqual(wordsOf(1));
  // The prediction of row [k, −k] + 100 is 200, and the target k / 3: each example is a quarter of the loss.
  const expected = [...gradient!.keys].flatMap((key) => Array(WIDTH).fill((200 - key / 3) / 2));
  for (const [i, value] of gradient!.values.entries()) expect(value).toBeCloseTo(expected[i]!, 3);
  const asked = decodeKeys(shapes, exchange.tails[0]!.subarray(bytes, bytes + wanted))[0]!;
  expect([...asked]).toEqual(wordsOf(2));

  const rows = encoded(asked, 7);
  const brought = { rows: { step: 7, encoding: 'f32', bytes: rows.length } as const };
  const message = workOf(1, [lease(2), lease(3)], { ...answered(1), ...brought });
  await trainer.work(message, theta(), undefined, [rows]);
  expect(exchange.pulls).toHaveLength(1);
  expect(exchange.pushes[1]!.rows!.step).toBe(7);
});

test('rows that are never changed are pulled, and no byte of their gradients is pushed', async () => {
  const plain = setUp();
  await plain.trainer.work(workOf(0, [lease(1)]), theta());
  const whole = decodeRows(shapes, plain.exchange.tails[0]!, 'f32')[0]!;
  const words = wordsOf(1);
  for (const frozenWords of [words.slice(1, 3), words]) {
    const frozen = { has: (key: number) => frozenWords.includes(key) };
    const { exchange, trainer } = setUp({ frozenRows: () => frozen });
    await trainer.work(workOf(0, [lease(1)]), theta());
    expect(exchange.pulls[0]!.keys).toEqual(words);
    const kept = words.filter((word) => !frozen.has(word));
    const { bytes } = exchange.pushes[0]!.rows!;
    expect(bytes).toBe(4 + kept.length * 4 * (1 + WIDTH));
    const [own] = decodeRows(shapes, exchange.tails[0]!.subarray(0, bytes), 'f32');
    expect([...own!.keys]).toEqual(kept);
    for (const [i, key] of kept.entries()) {
      const at = WIDTH * words.indexOf(key);
      expect(own!.values.slice(WIDTH * i, WIDTH * (i + 1))).toEqual(
        whole.values.slice(at, at + WIDTH),
      );
    }
  }
  const tables = { word: { ...config.tables!.word!, learningRate: 0 } };
  const { exchange, trainer } = setUp({ config: { ...config, tables } });
  await trainer.work(workOf(0, [lease(1)]), theta());
  expect(exchange.pushes[0]!.rows!.bytes).toBe(4);
});

test('a push that was rejected is computed again from rows that are pulled', async () => {
  const { exchange, trainer } = setUp();
  await trainer.work(workOf(0, [lease(1), lease(2)]), theta());
  const asked = Uint32Array.from(wordsOf(2));
  const rows = encoded(asked, 7);
  const brought = { rows: { step: 7, encoding: 'f32', bytes: rows.length } as const };
  exchange.step = 105;
  const again = workOf(1, [lease(1), lease(2)], { ...answered(1, 'rejected'), ...brought });
  await trainer.work(again, theta(), undefined, [rows]);
  expect(exchange.pulls.map(({ keys }) => keys)).toEqual([wordsOf(1), wordsOf(1)]);
  expect(exchange.pushes[1]).toMatchObject({ lease: 1, rows: { step: 105 } });
});

test('the last minibatch, whose push brings no other rows, is computed again from rows that are pulled too', async () => {
  const { exchange, trainer } = setUp();
  await trainer.work(workOf(0, [lease(1)]), theta());
  exchange.step = 105;
  await trainer.work(workOf(1, [lease(1)], answered(1, 'rejected')), theta());
  // With the rows at hand it would be rejected for the same reason, without end.
  expect(exchange.pushes[1]).toMatchObject({ lease: 1, rows: { step: 105 } });
});

test('rows of an earlier generation are not used', async () => {
  const { exchange, trainer } = setUp();
  await trainer.work(workOf(0, [lease(1), lease(2)], { generation: 0 }), theta());
  // What is pulled belongs to generation 1: the parameters at hand are gone.
  expect(exchange.pushes).toEqual([]);
  await trainer.work(workOf(0, [lease(1), lease(2)]), theta());
  expect(exchange.pushes).toHaveLength(1);
});

test('an evaluation has rows of its own, and what comes after it has none of them', async () => {
  const { exchange, trainer } = setUp();
  const evaluation = { id: 9, part: 'validation' } as Work['evaluation'];
  await trainer.work(workOf(0, [], { evaluation }), theta());
  expect(exchange.evaluated).toHaveLength(1);
  expect(exchange.pulls.map(({ evaluation }) => evaluation)).toEqual([9]);
  expect(exchange.pulls[0]!.keys).toHaveLength(prepared.validation.count);
  await trainer.work(workOf(0, [lease(1)]), theta());
  expect(exchange.pulls[1]).toEqual({ evaluation: null, keys: wordsOf(1) });
  // No lease is known after it.
  expect(exchange.pushes[0]!.rows!.wanted).toBe(0);
});

test('rows that will not come end the work and not the worker', async () => {
  const { exchange, trainer } = setUp();
  exchange.isLost = true;
  await trainer.work(workOf(0, [lease(1)]), theta());
  expect(exchange.pushes).toEqual([]);
  exchange.isLost = false;
  trainer.noteRejoin();
  await trainer.work(workOf(0, [lease(1)]), theta());
  expect(exchange.pushes).toHaveLength(1);
});
