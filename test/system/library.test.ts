import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';
import { layers, sequential } from '@tensorflow/tfjs-layers';
import Fastify from 'fastify';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { downpour, type StartServerOptions, startServer } from '../../library/server.ts';
import { type TrainOptions, train } from '../../library/train.ts';
import { trainOn } from '../../library/train-on.ts';
import { startWorker } from '../../library/worker.ts';
import { LIMITS } from '../../shared/limits.ts';
import { defineExperiment, type Experiment } from '../../worker/experiment.ts';

// Edges of what programs call: signals, callbacks that throw, addresses that are taken, two at once.

let folder: string;
const unhandled: unknown[] = [];
const hear = (reason: unknown) => unhandled.push(reason);
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-library-'));
  unhandled.length = 0;
  process.on('unhandledRejection', hear);
});
afterEach(async () => {
  // Those of promises that were settled last are told in the next turn.
  await new Promise((done) => setImmediate(done));
  process.off('unhandledRejection', hear);
  rmSync(folder, { recursive: true, force: true });
  expect(unhandled).toEqual([]);
});

function line({ epochs = 3, ...parts }: Partial<Experiment> & { epochs?: number } = {}) {
  const values = Float32Array.from({ length: 100 }, (_, i) => i / 100);
  const column = (numbers: Float32Array) => ({ values: numbers, shape: [100, 1] });
  return defineExperiment({
    data: () => ({
      train: { inputs: column(values), targets: column(values.map((x) => 3 * x - 1)) },
    }),
    model: ({ tf, inputShape }) =>
      tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape })] }),
    loss: 'meanSquaredError',
    config: { learningRate: 0.1, epochsMax: epochs, earlyStopping: { enabled: false } },
    ...parts,
  });
}
const LONG = 100_000;

const options = (more: TrainOptions = {}): TrainOptions => ({
  ...{ state: join(folder, 'state'), engine: 'cpu', ...more },
});
/** The state is free again, and has a run in this phase. */
async function runsOf(state = join(folder, 'state')) {
  const server = await startServer({ state, port: 0 });
  const runs = await server.client.runs();
  await server.close();
  return runs;
}

describe('train', () => {
  test('with a signal that is aborted already makes nothing', async () => {
    const signal = AbortSignal.abort(new Error('not today'));
    await expect(train(line(), options({ signal }))).rejects.toThrow('not today');
    await expect(
      trainOn(compiled(), { inputs: [[0]], targets: [[0]] }, options({ signal })),
    ).rejects.toThrow('not today');
    expect(await runsOf()).toEqual([]);
  });

  test('is stopped by its signal, with a checkpoint, and says the reason', async () => {
    const controller = new AbortController();
    const stopped = train(
      line({ epochs: LONG }),
      options({
        signal: controller.signal,
        onProgress: ({ run }) => void (run.step > 0 && controller.abort(new Error('enough'))),
      }),
    );
    await expect(stopped).rejects.toThrow('enough');
    const server = await startServer({ state: join(folder, 'state'), port: 0 });
    const [run] = await server.client.runs();
    expect(run!.phase).toBe('stopped');
    const checkpoints = await server.client.checkpoints(run!.id);
    expect(checkpoints.findLast(({ kind }) => kind === 'last')!.step).toBe(run!.step);
    await server.close();
  });

  test.each([
    [
      'onProgress that throws',
      {
        onProgress: () => {
          throw new Error('mine');
        },
      },
    ],
    [
      'onProgress that is rejected',
      {
        onProgress: async () => {
          throw new Error('mine');
        },
      },
    ],
    [
      'log that throws',
      {
        log: () => {
          throw new Error('mine');
        },
      },
    ],
  ])('%s stops the run, at a server of somebody else too', async (_what, wrong) => {
    const server = await startServer({ state: join(folder, 'state'), port: 0 });
    const failed = train(line({ epochs: LONG }), { server: server.url, engine: 'cpu', ...wrong });
    await expect(failed).rejects.toThrow('mine');
    expect((await server.client.runs()).map(({ phase }) => phase)).toEqual(['stopped']);
    await server.close();
  });

  test('fails with the words of an experiment that throws', async () => {
    const data = () => {
      throw new Error('the disk is elsewhere');
    };
    const failed = await train(line({ data }), options()).catch((error: unknown) => error);
    expect(failed).toMatchObject({ message: expect.stringContaining('the disk is elsewhere') });
    expect((failed as { code: string }).code).toMatch(/^DP_/);
    const model = () => {
      throw new Error('no such layer');
    };
    await expect(train(line({ model }), options())).rejects.toThrow('no such layer');
    // As a file, which worker processes load.
    writeFileSync(join(folder, 'broken.mjs'), "throw new Error('no such file');");
    await expect(train(join(folder, 'broken.mjs'), options())).rejects.toThrow('no such file');
    // The state is free again.
    await runsOf();
  });

  test.each([
    [{ workers: 0 }, /workers is 0, and no server is named/],
    [{ workers: -1 }, /workers is -1; allowed: a whole number from 0 to 1000/],
    [{ workers: 1.5 }, /workers is 1.5; allowed/],
    [{ workers: LIMITS.workerCountMax + 1 }, /workers is 1001; allowed/],
    [{ workers: 2 }, /the experiment is an object, whose functions no other process/],
    [{ worker: 1 } as TrainOptions, /train has no option 'worker'; did you mean 'workers'\?/],
    [{ epochs: 1 } as TrainOptions, /train has no option 'epochs'; known: workers, config/],
    [{ config: { epochsMax: -1 } }, /epochsMax/],
    [{ run: 'no name!' }, /id must be 1 to 64 lower-case letters, digits, '-' and '_'/],
  ])('refuses %o', async (wrong, says) => {
    await expect(train(line(), options(wrong))).rejects.toThrow(says);
  });

  test('two at once: each with a state of its own, or the second uses the server of the first and outlives it', async () => {
    const both = ['one', 'two'].map((name) =>
      train(line(), options({ state: join(folder, name), run: name })),
    );
    const results = await Promise.all(both);
    expect(results.map(({ run }) => [run.id, run.phase])).toEqual([
      ['one', 'finished'],
      ['two', 'finished'],
    ]);
    const controller = new AbortController();
    let begun = () => {};
    const training = new Promise<void>((done) => {
      begun = done;
    });
    const first = train(
      line({ epochs: LONG }),
      options({ signal: controller.signal, onProgress: () => begun() }),
    );
    await training;
    const lines: string[] = [];
    const short = await train(line(), options({ log: (told) => lines.push(told) }));
    expect(short.run.phase).toBe('finished');
    expect(short.parameters.size).toBe(2);
    expect(lines.join()).toContain('a server runs in');
    // The third goes on with a server of its own, at the same address, when the first one ends.
    let going = () => {};
    const underWay = new Promise<void>((done) => {
      going = done;
    });
    const third = train(
      line({ epochs: 60 }),
      options({ run: 'third', onProgress: ({ run }) => run.step > 0 && going() }),
    );
    await underWay;
    controller.abort(new Error('enough'));
    await expect(first).rejects.toThrow('enough');
    expect((await third).run.phase).toBe('finished');
    expect((await runsOf()).map(({ id, phase }) => [id, phase])).toEqual([
      [expect.stringMatching(/^experiment-/), 'stopped'],
      [short.run.id, 'finished'],
      ['third', 'finished'],
    ]);
  });
});

describe('startServer and startWorker', () => {
  test('a server is closed twice, with a worker that nobody has given a run', async () => {
    const server = await startServer({ state: join(folder, 'state'), port: 0 });
    const worker = startWorker({ server: server.url, engine: 'cpu' });
    const workers = async () => (await server.client.status()).workers;
    await expect.poll(workers).toHaveLength(1);
    expect(await server.client.runs()).toEqual([]);
    await Promise.all([worker.stop(), worker.stop()]);
    expect(await worker.ended).toEqual({ ended: [] });
    await Promise.all([server.close(), server.close()]);
    await server.close();
    await server.closed;
  });

  test('a signal that is aborted already starts nothing', async () => {
    const signal = AbortSignal.abort(new Error('not today'));
    await expect(startServer({ state: join(folder, 'state'), port: 0, signal })).rejects.toThrow(
      'not today',
    );
    const worker = startWorker({ server: 'http://127.0.0.1:1', engine: 'cpu', signal });
    expect(await worker.ended).toEqual({ ended: [] });
    await runsOf();
  });

  test('a port that is taken is named, and the state is free again', async () => {
    const other: Server = createServer();
    await new Promise<void>((done) => void other.listen(0, '127.0.0.1', done));
    const { port } = other.address() as AddressInfo;
    const failed = startServer({ state: join(folder, 'state'), port });
    await expect(failed).rejects.toThrow(String(port));
    other.close();
    await runsOf();
  });

  test('onProgress of a worker that throws ends that worker with it', async () => {
    const server = await startServer({ state: join(folder, 'state'), port: 0 });
    const hash = 'a'.repeat(64);
    await server.client.createRun({
      ...{ id: 'r', experiment: 'line', experimentHash: hash, config: { epochsMax: LONG } },
    });
    const worker = startWorker({
      ...{ server: server.url, engine: 'cpu', run: 'r' },
      experiments: { line: { experiment: line(), hash } },
      onProgress() {
        throw new Error('mine');
      },
    });
    await expect(worker.ended).rejects.toThrow('mine');
    await server.close();
  });

  test.each([
    [{ prot: 1 }, /startServer has no option 'prot'; did you mean 'port'\?/],
    [{ standbyOf: 'http://127.0.0.1:1' }, /'standbyOf'; `downpour serve` has it/],
    [{ join: {} }, /'join'; `downpour serve` has it: .* for browsers/],
  ])('startServer refuses %o', async (wrong, says) => {
    const given = { state: join(folder, 'state'), port: 0, ...wrong } as StartServerOptions;
    await expect(startServer(given)).rejects.toThrow(says);
  });

  test('startWorker refuses what it has not', () => {
    const start = (wrong: object) => () => startWorker({ ...wrong });
    expect(start({ workers: 2 })).toThrow(/'workers'; a worker computes on this thread/);
    expect(start({ experiment: '.' })).toThrow(/did you mean 'experiments'\?/);
  });
});

describe('the plugin', () => {
  test.each([
    [{ join: 'line.mjs' }, /the plugin has no option 'join'; `downpour serve` has it/],
    [{ standbyOf: 'http://127.0.0.1:1' }, /'standbyOf'; `downpour serve` has it/],
    [{ peer: 'http://127.0.0.1:1' }, /'peer'; `downpour serve` has it/],
    [{ localSocket: true }, /'localSocket'; `startServer` has it/],
    [{ shards: 2 }, /'shards'; `startServer` has it/],
    [{ port: 7420 }, /'port'; the app listens/],
    [{ tls: {} }, /'tls'; the app listens/],
    [{ insecure: true }, /'insecure'; give `authorize/],
    [{ tokn: 'x' }, /'tokn'; did you mean 'token'\?/],
  ])('refuses %o', async (wrong, says) => {
    const app = Fastify();
    app.register(downpour, { prefix: '/t', state: folder, authorize: () => 'operator', ...wrong });
    await expect(app.ready()).rejects.toThrow(says);
    await app.close();
  });
});

describe('trainOn', () => {
  test('names its own options where one is unknown', async () => {
    const data = { inputs: [[0]], targets: [[0]] };
    for (const [wrong, says] of [
      [{ sampleWeight: [2] }, /^trainOn has no option 'sampleWeight'; .*epochs, batchSize/],
      [{ epoch: 3 }, /did you mean 'epochs'/],
    ] as const) {
      await expect(trainOn(compiled(), data, wrong as never)).rejects.toThrow(says);
    }
  });

  test.each([
    ['a dense layer', [layers.dense({ units: 3, inputShape: [2], activation: 'softmax' })]],
    ['a layer of its own', [layers.dense({ units: 3, inputShape: [2] }), layers.softmax()]],
    [
      'one with its axis',
      [layers.dense({ units: 3, inputShape: [2] }), layers.softmax({ axis: -1 })],
    ],
    [
      'an activation',
      [layers.dense({ units: 3, inputShape: [2] }), layers.activation({ activation: 'softmax' })],
    ],
  ])('takes a softmax at the end: %s', async (_, own) => {
    const model = sequential({ layers: own });
    model.compile({ optimizer: 'adam', loss: 'sparseCategoricalCrossentropy' });
    const data = {
      inputs: [
        [0, 1],
        [1, 0],
      ],
      targets: [0, 1],
    };
    // What it refuses is refused before the signal is looked at.
    const signal = AbortSignal.abort(new Error('not today'));
    await expect(trainOn(model, data, options({ signal }))).rejects.toThrow('not today');
  });

  test('classWeight of model.fit weighs the classes', async () => {
    // All 200 examples look alike, and 20 are of class 1: it is answered only if it counts more.
    const count = 200;
    const data = {
      inputs: Array.from({ length: count }, (_, i) => [(i % 7) / 7]),
      targets: Array.from({ length: count }, (_, i) => Number(i % 10 === 0)),
    };
    const shareOf = async (more: Partial<Parameters<typeof trainOn>[2]>) => {
      const model = sequential({
        layers: [layers.dense({ units: 2, inputShape: [1], activation: 'softmax' })],
      });
      model.compile({ optimizer: tf.train.sgd(0.5), loss: 'sparseCategoricalCrossentropy' });
      await trainOn(model, data, options({ epochs: 20, batchSize: 20, workers: 1, ...more }));
      const told = model.predict(tf.tensor2d([[0.5]])) as tf.Tensor;
      return (await told.data())[1]!;
    };
    expect(await shareOf({})).toBeLessThan(0.25);
    // n / (k nᶜ) is 0.56 and 5.
    expect(await shareOf({ classWeight: 'balanced' })).toBeGreaterThan(0.35);
    expect(await shareOf({ classWeight: { 0: 1, 1: 90 } })).toBeGreaterThan(0.75);
    await expect(shareOf({ classWeight: { 2: 5 } })).rejects.toThrow(
      /classWeights has the class "2", which the data do not have; allowed: 0 to 1/,
    );
  });

  test('trains on the numbers that model.fit takes: booleans are 0 and 1, and bytes are refused', async () => {
    const count = 60;
    const bits = Array.from({ length: count }, (_, i) => [i % 2 === 0]);
    const xs = tf.tensor2d(bits as never, [count, 1], 'bool');
    const ys = tf.tensor2d(bits.map(([bit]) => [bit ? 2 : -1]));
    const model = compiled();
    const own = { epochs: 20, batchSize: 8, workers: 1 };
    await trainOn(model, { inputs: xs, targets: ys }, options(own));
    const told = model.predict(tf.tensor2d([[1], [0]])) as tf.Tensor;
    const [yes, no] = Array.from(await told.data());
    expect(yes).toBeCloseTo(2, 1);
    expect(no).toBeCloseTo(-1, 1);
    const bytes = { values: Uint8Array.from(bits, ([bit]) => (bit ? 255 : 0)), shape: [count, 1] };
    for (const inputs of [bytes, Array.from(bytes.values, (byte) => Uint8Array.of(byte))]) {
      await expect(trainOn(model, { inputs, targets: ys }, options(own))).rejects.toThrow(
        /the inputs are bytes.*Float32Array\.from\(bytes\)/,
      );
    }
  });
});

function compiled() {
  const model = sequential({ layers: [layers.dense({ units: 1, inputShape: [1] })] });
  model.compile({ optimizer: tf.train.sgd(0.1), loss: 'meanSquaredError' });
  return model;
}
