import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import type { Lease, Work } from '../../shared/protocol.ts';
import { permutation, STREAMS } from '../../shared/random.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { batchSizeOf, evaluate } from '../../worker/evaluate.ts';
import { minibatchSeed } from '../../worker/minibatches.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { createTrainer } from '../../worker/trainer.ts';
import { FakeExchange, workOf } from '../support/fake-exchange.ts';

const SEED = 5;
const COUNT = 50;

/** 50 rows whose only input is the row's own number, so that a gradient tells which were used. */
function rows(): PreparedData {
  const values = Float32Array.from({ length: COUNT }, (_, i) => i);
  const shape = [COUNT, 1];
  const part = { count: COUNT, inputs: { values, shape }, targets: { values, shape: [COUNT] } };
  return prepareData(
    { train: part, validation: part, test: part, source: 'rows' },
    { seed: SEED, validationFraction: 0.2, standardise: 'none' },
  );
}

let model: Model;
let prepared: PreparedData;
beforeAll(() => openEngine({ engine: 'cpu' }));
beforeEach(async () => {
  prepared = rows();
  model = await buildModel(
    {
      data: () => {
        throw new Error('not asked for');
      },
      model: ({ tf }) =>
        tf.sequential({
          layers: [tf.layers.dense({ units: 1, inputShape: [1], useBias: false })],
        }),
      // Its gradient is the mean of the inputs: the rows' numbers.
      loss: (_, predictions) => predictions.mean(),
      metrics: { targets: (targets) => targets.mean() },
      error: (targets, predictions) =>
        predictions
          .sub(targets.reshape([-1, 1]))
          .abs()
          .mean(),
    },
    { seed: SEED, hyperparameters: {} },
    prepared,
  );
});
afterEach(() => model.dispose());

const signal = new AbortController().signal;
const theta = (w: number) => Float32Array.of(w);
const none = new Float32Array(0);

function setUp(depth = 1) {
  const config = { ...resolveConfig({ consistency: { depth } }), seed: SEED };
  const exchange = new FakeExchange();
  const lines: string[] = [];
  const trainer = createTrainer({
    ...{ run: 'r', config, model, prepared, exchange, signal },
    log: (line) => lines.push(line),
  });
  return { exchange, trainer, lines };
}

const lease = (id: number, start: number, count: number, epoch = 0): Lease => ({
  ...{ id, epoch, start, count, part: 'train' },
});
const applied = (sequence: number, rest: object = {}): Pick<Work, 'acknowledgements'> => ({
  acknowledgements: [
    { ...{ sequence, outcome: 'applied', staleness: 0, code: null, message: null }, ...rest },
  ],
});
const meanOf = (values: Iterable<number>) => {
  const all = [...values];
  return all.reduce((sum, x) => sum + x, 0) / all.length;
};

test.each(['DP_TENSOR_SIZE', 'DP_ROWS_INVALID'])(
  'a payload that the server refuses with %s ends the work, since the next one would be like it',
  async (code) => {
    const { trainer } = setUp();
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(1));
    const refused = applied(1, { outcome: 'rejected', code, message: 'it has 3 bytes' });
    await expect(trainer.work(workOf(0, [lease(1, 0, 8)], refused), none)).rejects.toMatchObject({
      code,
    });
  },
);

describe('minibatches', () => {
  test('are the ranges of the seeded order of their epoch', async () => {
    const { exchange, trainer } = setUp();
    const order = permutation(SEED, STREAMS.epoch + 3, COUNT);
    await trainer.work(workOf(0, [lease(1, 8, 8, 3), lease(2, 16, 8, 3)]), theta(1));
    await trainer.work(workOf(1, [lease(2, 16, 8, 3)], applied(1)), theta(1));
    expect(exchange.pushes.map((push) => push.gradient[0])).toEqual([
      expect.closeTo(meanOf(order.subarray(8, 16)), 4),
      expect.closeTo(meanOf(order.subarray(16, 24)), 4),
    ]);
  });

  test('use every example of an epoch once, the small last one too, and go on into the next', async () => {
    const { exchange, trainer } = setUp();
    const leases: Lease[] = [];
    for (let epoch = 0; epoch < 2; epoch++) {
      for (let start = 0; start < COUNT; start += 16) {
        leases.push(lease(leases.length + 1, start, Math.min(16, COUNT - start), epoch));
      }
    }
    for (let i = 0; i < leases.length; i++) {
      await trainer.work(workOf(i, leases.slice(i, i + 2), i > 0 ? applied(i) : {}), theta(1));
    }
    const sumOf = (epoch: number) =>
      exchange.pushes
        .slice(4 * epoch, 4 * epoch + 4)
        .reduce((sum, { gradient }, i) => sum + gradient[0]! * leases[i]!.count, 0);
    expect(sumOf(0)).toBeCloseTo((COUNT * (COUNT - 1)) / 2, 1);
    expect(sumOf(1)).toBeCloseTo((COUNT * (COUNT - 1)) / 2, 1);
  });

  test('of a refit come from training and validation together', async () => {
    const { exchange, trainer } = setUp();
    const all = { ...lease(1, 0, 2 * COUNT), part: 'trainAndValidation' as const };
    await trainer.work(workOf(0, [all]), theta(1));
    expect(exchange.pushes[0]!.gradient[0]).toBeCloseTo((COUNT - 1) / 2, 3);
  });

  test('have a seed of their own that does not depend on the worker', () => {
    const seeds = new Set<number>();
    for (let epoch = 0; epoch < 20; epoch++) {
      for (let start = 0; start < 640; start += 64)
        seeds.add(minibatchSeed(SEED, { epoch, start }));
    }
    expect(seeds.size).toBe(200);
    expect(minibatchSeed(6, { epoch: 0, start: 0 })).not.toBe(
      minibatchSeed(5, { epoch: 0, start: 0 }),
    );
  });
});

describe('a push', () => {
  test('names the step and generation of the parameters that it was computed at', async () => {
    const { exchange, trainer } = setUp();
    await trainer.work(workOf(7, [lease(1, 0, 8)]), theta(2));
    // The parameters did not change: no payload.
    await trainer.work(workOf(7, [lease(2, 8, 8)], applied(1)), none);
    await trainer.work(workOf(9, [lease(3, 16, 8)], { ...applied(2), generation: 4 }), theta(3));
    expect(exchange.pushes.map(({ step, generation, lease }) => [lease, step, generation])).toEqual(
      [
        [1, 7, 1],
        [2, 7, 1],
        [3, 9, 4],
      ],
    );
    const order = permutation(SEED, STREAMS.epoch, COUNT);
    expect(exchange.pushes[1]!.loss).toBeCloseTo(2 * meanOf(order.subarray(8, 16)), 3);
    expect(exchange.pushes[2]!.loss).toBeCloseTo(3 * meanOf(order.subarray(16, 24)), 3);
  });

  test('waits for the reply to the last one, whatever else the server says', async () => {
    const { exchange, trainer } = setUp();
    await trainer.work(workOf(0, [lease(1, 0, 8), lease(2, 8, 8)]), theta(1));
    await trainer.work(workOf(1, [lease(1, 0, 8), lease(2, 8, 8)]), theta(1));
    expect(exchange.pushes.length).toBe(1);
    await trainer.work(workOf(2, [lease(2, 8, 8)], applied(1)), theta(1));
    expect(exchange.pushes.map((push) => push.lease)).toEqual([1, 2]);
  });

  test('goes ahead of the reply when the depth allows, never twice for a lease', async () => {
    const { exchange, trainer } = setUp(2);
    const leases = [lease(1, 0, 8), lease(2, 8, 8), lease(3, 16, 8)];
    await trainer.work(workOf(0, leases), theta(1));
    expect(exchange.pushes.map((push) => push.lease)).toEqual([1, 2]);
    await trainer.work(workOf(1, leases.slice(1), applied(1)), theta(1));
    expect(exchange.pushes.map((push) => push.lease)).toEqual([1, 2, 3]);
  });

  test('waits for parameters that have come already, when several are under way', async () => {
    const { exchange, trainer } = setUp(2);
    const leases = [lease(1, 0, 8), lease(2, 8, 8), lease(3, 16, 8)];
    exchange.hasReceived = true;
    await trainer.work(workOf(0, leases), theta(1));
    expect(exchange.pushes).toEqual([]);
    exchange.hasReceived = false;
    await trainer.work(workOf(5, leases), theta(2));
    expect(exchange.pushes.map(({ lease, step }) => [lease, step])).toEqual([
      [1, 5],
      [2, 5],
    ]);
  });

  test('that was too stale is computed anew at the newer parameters', async () => {
    const { exchange, trainer, lines } = setUp();
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(1));
    const stale = { outcome: 'rejected', code: 'DP_PUSH_STALE', message: 'stale' };
    await trainer.work(workOf(9, [lease(1, 0, 8)], applied(1, stale)), theta(5));
    expect(exchange.pushes.map(({ lease, step }) => [lease, step])).toEqual([
      [1, 0],
      [1, 9],
    ]);
    expect(lines).toEqual([]);
  });

  test('that was refused for another reason is told, once for each reason', async () => {
    const { trainer, lines } = setUp();
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(1));
    const refused = { outcome: 'rejected', code: 'DP_GRADIENT_NOT_FINITE', message: 'NaN' };
    await trainer.work(workOf(1, [], applied(1, refused)), none);
    await trainer.work(workOf(1, [], applied(2, refused)), none);
    await trainer.work(workOf(1, [], applied(3, { ...refused, message: 'infinite' })), none);
    expect(lines).toEqual([
      expect.stringMatching(/push 1 .*DP_GRADIENT_NOT_FINITE NaN/),
      expect.stringMatching(/push 3 .*DP_GRADIENT_NOT_FINITE infinite/),
    ]);
  });

  test('with a loss that is not finite says so by null', async () => {
    const { exchange, trainer } = setUp();
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(Number.POSITIVE_INFINITY));
    expect(exchange.pushes[0]!.loss).toBeNull();
  });

  test('goes out again after a new connection, before anything else is computed', async () => {
    const { exchange, trainer } = setUp();
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(1));
    trainer.noteRejoin();
    await trainer.work(workOf(0, [lease(1, 0, 8), lease(2, 8, 8)]), theta(1));
    expect(exchange.resent).toBe(1);
    expect(exchange.pushes.length).toBe(1);
    await trainer.work(workOf(1, [lease(2, 8, 8)], applied(1, { outcome: 'duplicate' })), theta(1));
    expect(exchange.pushes.map((push) => push.lease)).toEqual([1, 2]);
    expect(exchange.resent).toBe(1);
  });
});

describe('a payload', () => {
  test('is released when newer parameters are on the device, once, and not before', async () => {
    const { trainer } = setUp();
    const released: string[] = [];
    const release = (name: string) => () => void released.push(name);
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(1), release('a'));
    // Without one to compute on the parameters stay as they are, and so does the device.
    await trainer.work(workOf(1, [], applied(1)), theta(2), release('b'));
    expect(released).toEqual([]);
    await trainer.work(workOf(2, []), theta(3), release('c'));
    expect(released).toEqual(['b']);
    await trainer.work(workOf(2, [lease(2, 8, 8)]), none, release('empty'));
    expect(released).toEqual(['b', 'empty', 'a']);
    trainer.close();
    expect(released).toEqual(['b', 'empty', 'a', 'c']);
  });

  test('of an evaluation is released when the parameters before it are back', async () => {
    const { trainer } = setUp();
    const released: string[] = [];
    const release = (name: string) => () => void released.push(name);
    await trainer.work(workOf(0, [lease(1, 0, 8)]), theta(1), release('a'));
    const evaluation = { id: 3, part: 'validation' as const };
    await trainer.work(
      workOf(1, [], { ...applied(1), evaluation }),
      theta(2),
      release('evaluated'),
    );
    expect(released).toEqual(['evaluated']);
  });
});

describe('an evaluation', () => {
  test('is of the parameters sent with it; training goes on at its own', async () => {
    const { exchange, trainer } = setUp();
    await trainer.work(workOf(4, [lease(1, 0, 8)]), theta(1));
    const evaluation = { id: 3, part: 'validation' as const };
    await trainer.work(workOf(2, [], { ...applied(1), evaluation }), theta(10));
    expect(exchange.evaluated).toEqual([
      {
        ...{ type: 'evaluated', run: 'r', evaluation: 3, examples: COUNT },
        loss: expect.closeTo(10 * 24.5, 2),
        error: expect.closeTo(9 * 24.5, 2),
        metrics: { targets: expect.closeTo(24.5, 4) },
      },
    ]);
    await trainer.work(workOf(4, [lease(2, 0, 8)]), none);
    expect(exchange.pushes[1]).toMatchObject({ step: 4, loss: exchange.pushes[0]!.loss });
  });

  test('asked for in two replies is done once, and again after a lost connection', async () => {
    const { exchange, trainer } = setUp(2);
    await trainer.work(workOf(0, [lease(1, 0, 8), lease(2, 8, 8)]), theta(1));
    const evaluation = { id: 3, part: 'validation' as const };
    const released: string[] = [];
    for (const sequence of [1, 2]) {
      const message = workOf(1, [], { ...applied(sequence), evaluation });
      await trainer.work(message, theta(2), () => void released.push(`reply ${sequence}`));
    }
    expect(exchange.evaluated.length).toBe(1);
    expect(released).toEqual(['reply 1', 'reply 2']);
    trainer.noteRejoin();
    await trainer.work(workOf(1, [], { evaluation }), theta(2));
    expect(exchange.evaluated.length).toBe(2);
  });

  test('weighs the last, smaller batch by its size', async () => {
    const count = 1000;
    const values = Float32Array.from({ length: count }, (_, i) => i);
    const part = {
      count,
      inputs: { values, shape: [count, 1] },
      targets: { values, shape: [count] },
    };
    const large = prepareData(
      { train: part, validation: part, source: 'rows' },
      { seed: 1, validationFraction: 0.2, standardise: 'none' },
    );
    const result = await evaluate(model, theta(1), large, 'train');
    expect(result.loss).toBeCloseTo(499.5, 2);
    expect(result.examples).toBe(count);
    // And, where asked, some of the training examples, evenly spaced: 0, 250, 500 and 750.
    const both = await evaluate(model, theta(1), large, 'validation', { alsoTraining: 4 });
    expect(both.examples).toBe(count);
    expect(both.metrics.trainingLoss).toBeCloseTo(375, 2);
  });

  describe('of many classes puts fewer examples through the model at once', () => {
    const inputs = { values: new Float32Array(40), shape: [40, 1] };
    const labels = (places: number) => ({
      ...{ values: new Int32Array(40 * places), shape: [40, places] },
    });
    const sizeOf = (targets: object, classCount?: number) => {
      const data = dataOf({
        train: { inputs, targets } as never,
        ...(classCount === undefined ? {} : { classCount }),
      });
      const options = { seed: 1, validationFraction: 0.2, standardise: 'none' } as const;
      return batchSizeOf(prepareData(data, options));
    };

    // 2²³ scores in all, and 16 examples at least.
    test.each([
      ['a word of 16,384', labels(1), 16_384, 512],
      ['a word of 16,400', labels(1), 16_400, 511],
      ['50 words of 12,000', labels(50), 12_000, 16],
      ['50 characters of 65', labels(50), 65, 512],
      [
        'shares of 4,000 classes',
        { values: new Float32Array(40 * 4_000).fill(1 / 4_000), shape: [40, 4_000] },
        ...([4_000, 512] as const),
      ],
    ])('%s', (_, targets, classCount, size) => {
      expect(sizeOf(targets, classCount)).toBe(size);
    });

    test('the one of two targets that has most', () => {
      const word = { ...labels(50), classCount: 800 };
      const kind = { ...labels(1), classCount: 3 };
      expect(sizeOf({ kind, word })).toBe(Math.floor(2 ** 23 / (50 * 800)));
      expect(sizeOf({ kind })).toBe(512);
    });
  });

  test('that is not finite says so by null, and leaves such metrics out', async () => {
    const result = await evaluate(model, theta(Number.NaN), prepared, 'test');
    expect(result).toMatchObject({ loss: null, error: null, examples: COUNT });
  });

  test('ends when the worker is told to', async () => {
    const stop = new AbortController();
    stop.abort(new Error('enough'));
    model.load(theta(3));
    await expect(
      evaluate(model, theta(1), prepared, 'train', { signal: stop.signal }),
    ).rejects.toThrow('enough');
    expect((await model.measure(gather(prepared, 'train', [1]))).loss).toBeCloseTo(3, 5);
  });
});
