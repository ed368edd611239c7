import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Lease, Work } from '../../shared/protocol.ts';
import { permutation, STREAMS } from '../../shared/random.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import {
  type Experiment,
  loadExperiment,
  mustBeExperiment,
  type Tensor,
} from '../../worker/experiment.ts';
import { layersPart } from '../../worker/model/layers-model.ts';
import { buildModel } from '../../worker/model.ts';
import { drawNoise } from '../../worker/noise.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { type LayersModel, tf } from '../../worker/tf.ts';
import { createTrainer } from '../../worker/trainer.ts';
import { FakeExchange, workOf } from '../support/fake-exchange.ts';
import { useModels } from '../support/models.ts';

/** Carried state: tensors that live from minibatch to minibatch, each worker's own. */

const COUNT = 40;
const data = () => ({
  train: {
    inputs: { values: Float32Array.from({ length: COUNT }, (_, i) => i), shape: [COUNT, 1] },
  },
});

/** What is carried doubles, and takes the sum of the minibatch's rows: it tells which minibatches it has seen, in order. */
const seen: Experiment = {
  data,
  model: ({ tf }) => ({
    variables: { w: tf.variable(tf.scalar(1)) },
    predict: (x: Tensor) => x,
  }),
  carried: ({ tf }) => ({ trail: tf.tensor1d([0, 7]) }),
  objective: ({ model, batch, carried, training, tf }) => {
    const trail = carried.trail!;
    const next = tf.concat1d([
      tf.reshape(trail.slice(0, 1).mul(2).add(batch.inputs.sum()), [1]),
      trail.slice(1, 1) as never,
    ]);
    const loss = model.variables.w!.mul(batch.inputs.mean());
    return {
      loss,
      metrics: { trail: trail.slice(0, 1) },
      ...(training && { carried: { trail: next } }),
    };
  },
};

const models = useModels();
async function build(changes: Partial<Experiment> = {}, partial: PartialConfig = {}) {
  const experiment = { ...seen, ...changes };
  const config = resolveConfig({ seed: 3, minibatchSize: 4, ...partial });
  const prepared = prepareData(dataOf(data()), prepareOptions(experiment, config));
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  return { config, prepared, model, minibatch: gather(prepared, 'train', [0, 1, 2, 3]) };
}
const problemOf = (changes: Partial<Experiment>, config: PartialConfig = {}) =>
  build(changes, config).then(
    () => 'nothing was refused',
    (error) => `${error.code}: ${error.message}`,
  );

async function worker(depth = 1, changes: Partial<Experiment> = {}, more: PartialConfig = {}) {
  const { config, prepared, model } = await build(changes, { ...more, consistency: { depth } });
  const exchange = new FakeExchange();
  const signal = new AbortController().signal;
  const trainer = createTrainer({
    ...{ run: 'r', config, model, prepared, exchange, signal, log: () => {} },
  });
  const sumOf = ({ start, count, epoch }: Lease) => {
    const order = examplesOf({ start, count, epoch });
    return [...gather(prepared, 'train', order).inputs].reduce((a, b) => a + b, 0);
  };
  const examplesOf = ({ start, count, epoch }: Pick<Lease, 'start' | 'count' | 'epoch'>) =>
    permutation(config.seed, STREAMS.epoch + epoch, prepared.train.count).subarray(
      start,
      start + count,
    );
  return { exchange, trainer, sumOf, model };
}
const lease = (id: number): Lease => ({
  id,
  epoch: 0,
  start: 4 * (id - 1),
  count: 4,
  part: 'train',
});
const work = (step: number, ids: number[], rest?: Partial<Work>): Work =>
  workOf(step, ids.map(lease), rest);
/** What a push carries: it stands behind the gradient of the one weight. */
const trailOf = ({ gradient }: FakeExchange['pushes'][number]) => gradient[1]!;
const answer = (sequence: number, outcome: 'applied' | 'rejected' = 'applied') => ({
  acknowledgements: [
    { sequence, outcome, staleness: 0, code: null, message: null } as Work['acknowledgements'][0],
  ],
});
/** Parameters as the server has them: w, and what is carried there. */
const theta = (trail: number) => Float32Array.of(1, trail, 7);

describe('what a worker carries', () => {
  test('goes on from minibatch to minibatch, whatever other workers have pushed meanwhile', async () => {
    const { exchange, trainer, sumOf } = await worker();
    await trainer.work(work(0, [1]), theta(0));
    await trainer.work(work(5, [2], answer(1)), theta(-99));
    await trainer.work(work(9, [3], answer(2)), theta(-98));
    const [a, b, c] = [1, 2, 3].map((id) => sumOf(lease(id)));
    expect(exchange.pushes.map(trailOf)).toEqual([a, 2 * a! + b!, 4 * a! + 2 * b! + c!]);
  });

  test('is as it was before a push that was refused, when its minibatch is computed again', async () => {
    const { exchange, trainer, sumOf } = await worker();
    await trainer.work(work(0, [1]), theta(0));
    await trainer.work(work(1, [2], answer(1)), theta(0));
    await trainer.work(work(4, [2], answer(2, 'rejected')), theta(0));
    await trainer.work(work(5, [3], answer(3)), theta(0));
    const [a, b, c] = [1, 2, 3].map((id) => sumOf(lease(id)));
    const again = 2 * a! + b!;
    expect(exchange.pushes.map(trailOf)).toEqual([a, again, again, 2 * again + c!]);
  });

  test('with two pushes under way: one that follows a refused one stays, two that were refused are undone', async () => {
    const { exchange, trainer, sumOf } = await worker(2);
    await trainer.work(work(0, [1, 2]), theta(0));
    const [a, b, c] = [1, 2, 3].map((id) => sumOf(lease(id)));
    const both = {
      acknowledgements: [1, 2].map((n) => answer(n, 'rejected').acknowledgements[0]!),
    };
    await trainer.work(work(1, [1, 2], both), theta(0));
    expect(exchange.pushes.map(trailOf)).toEqual([a, 2 * a! + b!, a, 2 * a! + b!]);
    await trainer.work(work(2, [2, 3], answer(3, 'rejected')), theta(0));
    expect(exchange.pushes[4]!.lease).toBe(3);
    expect(trailOf(exchange.pushes[4]!)).toBe(4 * a! + 2 * b! + c!);
  });

  test.each<[string, (trainer: Awaited<ReturnType<typeof worker>>['trainer']) => Partial<Work>]>([
    [
      'the connection is new',
      (trainer) => {
        trainer.noteRejoin();
        return answer(1);
      },
    ],
    ['the parameters were rolled back', () => ({ ...answer(1), generation: 2 })],
  ])('is what the server has when %s', async (_, happens) => {
    const { exchange, trainer, sumOf } = await worker();
    await trainer.work(work(0, [1]), theta(0));
    const change = happens(trainer);
    await trainer.work(work(3, [2], change), theta(1000));
    expect(trailOf(exchange.pushes[1]!)).toBe(2000 + sumOf(lease(2)));
    // And its own from then on.
    await trainer.work(work(4, [3], { ...change, ...answer(2) }), theta(-5));
    expect(trailOf(exchange.pushes[2]!)).toBe(2 * trailOf(exchange.pushes[1]!) + sumOf(lease(3)));
  });

  test('begins as the server has it for a worker that comes later: what one that went had is lost', async () => {
    const { exchange, trainer, sumOf } = await worker();
    await trainer.work(work(50, [4]), theta(300));
    expect(trailOf(exchange.pushes[0]!)).toBe(600 + sumOf(lease(4)));
  });
});

describe('when a group thaws', () => {
  test('what is carried comes from the server, behind more parameters; no pattern freezes it', async () => {
    const two: Partial<Experiment> = {
      model: ({ tf }) => ({
        variables: { w: tf.variable(tf.scalar(1)), v: tf.variable(tf.scalar(1)) },
        predict: (x: Tensor) => x,
      }),
      objective: (args) => {
        const given = seen.objective!(args) as { loss: Tensor };
        return { ...given, loss: given.loss.mul(args.model.variables.v!) };
      },
    };
    const config = { groups: { late: { pattern: ['v', 'carried/*'], frozen: { untilStep: 1 } } } };
    const { exchange, trainer, sumOf, model } = await worker(1, two, config);
    expect(model.layout.tensors.map(({ name, role }) => `${name} ${role}`)).toEqual([
      ...['w trainable', 'carried/trail statistics', 'v frozen'],
    ]);
    await trainer.work(work(0, [1], { frozen: ['late'] }), Float32Array.of(1, 0, 7, 1));
    await trainer.work(work(1, [2], { frozen: [], ...answer(1) }), Float32Array.of(1, 1, 50, 7));
    expect(model.layout.exchangedSize).toBe(4);
    expect(exchange.pushes[1]!.gradient[2]).toBe(100 + sumOf(lease(2)));
  });
});

describe('an objective with carried tensors', () => {
  test('has them as the last statistics of the layout, which a momentum of 0 lets the server keep as they are', async () => {
    const { model, minibatch } = await build();
    expect(model.carriedSize).toBe(2);
    expect(model.layout.tensors.at(-1)).toMatchObject({
      ...{ name: 'carried/trail', shape: [2], role: 'statistics', momentum: 0 },
      ...{ offset: 1, size: 2 },
    });
    expect([...(await model.initialise(3))]).toEqual([1, 0, 7]);
    const rows = [...minibatch.inputs].reduce((a, b) => a + b, 0);
    const { gradient } = await model.step(minibatch, 1);
    expect([...gradient]).toEqual([rows / 4, rows, 7]);
    model.load(Float32Array.of(1, 10, 7), 0, Float32Array.of(20, 8));
    expect([...(await model.step(minibatch, 1)).gradient]).toEqual([rows / 4, 40 + rows, 8]);
    // An evaluation has those of the parameters, and changes nothing.
    expect((await model.measure(minibatch)).metrics.trail).toBe(20);
    model.load(Float32Array.of(1, 10, 7));
    expect((await model.measure(minibatch)).metrics.trail).toBe(10);
    expect([...(await model.step(minibatch, 1)).gradient]).toEqual([rows / 4, 20 + rows, 7]);
  });

  test('draws the first ones from the seed of the run', async () => {
    const of = async (seed: number) => {
      const { model } = await build({ carried: ({ random }) => ({ trail: random.normal([2]) }) });
      return [...(await model.initialise(seed))].slice(1);
    };
    expect(await of(1)).toEqual(await of(1));
    expect(await of(1)).not.toEqual(await of(2));
  });

  test('leaves no tensor behind', async () => {
    const { model, minibatch } = await build();
    const { tf } = await import('../../worker/tf.ts');
    await model.step(minibatch, 1);
    const before = tf.memory().numTensors;
    for (let seed = 0; seed < 3; seed++) {
      model.load(Float32Array.of(1, 10, 7), seed, Float32Array.of(seed, 8));
      await model.step(minibatch, seed);
      await model.measure(minibatch);
    }
    expect(tf.memory().numTensors).toBe(before);
  });

  const returns = (carried: (tf: Parameters<Experiment['model']>[0]['tf']) => unknown) => ({
    objective: (({ model, batch, tf, training }) => ({
      loss: model.variables.w!.mul(batch.inputs.mean()),
      ...(training && { carried: carried(tf) }),
    })) as Experiment['objective'] as never,
  });
  test.each<[string, Partial<Experiment>, RegExp]>([
    [
      'gives no tensors',
      { carried: () => ({}) },
      /carried\(\) returned \{\}; it must return tensors/,
    ],
    ['is asynchronous', { carried: (async () => ({})) as never }, /carried\(\) returned a promise/],
    [
      'gives whole numbers',
      { carried: ({ tf }) => ({ trail: tf.zeros([2], 'int32') }) },
      /int32 of shape \[2\] as 'trail'; it must be a tensor of float32/,
    ],
    [
      'gives a bad name',
      { carried: ({ tf }) => ({ 'a/b': tf.zeros([2]) }) },
      /the name 'a\/b'; allowed: letters/,
    ],
    [
      'throws',
      {
        carried: () => {
          throw new Error('out of luck');
        },
      },
      /carried\(\) of the experiment failed: out of luck/,
    ],
    [
      'gives more bytes than are allowed',
      { carried: ({ tf }) => ({ trail: tf.zeros([LIMITS.carriedBytesMax / 4 + 1]) }) },
      new RegExp(`returned ${LIMITS.carriedBytesMax + 4} bytes; at most ${LIMITS.carriedBytesMax}`),
    ],
    ['is not returned', returns(() => undefined), /returned undefined.* as carried; .*'trail'/],
    [
      'is returned in part',
      returns(() => ({})),
      /undefined .*as carried 'trail'; it must return all/,
    ],
    [
      'is returned by another name',
      returns((tf) => ({ trial: tf.zeros([2]) })),
      /returned 'trial' in carried.*did you mean 'trail'\?/,
    ],
    [
      'is returned in another shape',
      returns((tf) => ({ trail: tf.zeros([3]) })),
      /float32 of shape \[3\] as carried 'trail'; it must be float32 of shape \[2\]/,
    ],
    [
      'is returned with numbers that are not finite',
      returns((tf) => ({ trail: tf.fill([2], Number.POSITIVE_INFINITY) })),
      /gives carried 'trail' that is not finite/,
    ],
    [
      'is returned where there is none',
      { ...returns((tf) => ({ trail: tf.zeros([2]) })), carried: undefined as never },
      /returned carried, and the experiment has no field carried/,
    ],
  ])('that %s is refused before training', async (_, changes, message) => {
    const problem = await problemOf(changes);
    expect(problem).toMatch(/^DP_EXPERIMENT_INVALID/);
    expect(problem).toMatch(message);
  });

  test('may have as many bytes as are allowed', async () => {
    const many = ({ tf }: { tf: { zeros(shape: number[]): never } }) => ({
      trail: tf.zeros([LIMITS.carriedBytesMax / 4]),
    });
    const { model } = await build({
      carried: many as never,
      objective: ({ model, batch, carried, training }) => ({
        loss: model.variables.w!.mul(batch.inputs.mean()),
        ...(training && { carried }),
      }),
    });
    expect(model.carriedSize).toBe(LIMITS.carriedBytesMax / 4);
  });

  test.each<[PartialConfig, RegExp]>([
    [
      { consistency: { mode: 'synchronous' } },
      /consistency\.mode is synchronous, .*allowed: async/,
    ],
    [{ consistency: { mode: 'buffered' } }, /consistency\.mode is buffered/],
    [{ local: { steps: 4 } }, /local\.steps is 4/],
  ])('is refused where the server would keep means: %o', async (config, message) => {
    expect(await problemOf({}, config)).toMatch(message);
    expect(await problemOf({}, { consistency: { mode: 'bounded' } })).toBe('nothing was refused');
  });

  test('is a field beside an objective alone', () => {
    const { objective: _, ...plain } = seen;
    expect(() => mustBeExperiment({ ...plain, loss: 'meanSquaredError' }, 'x')).toThrow(
      /carried needs an objective/,
    );
    expect(() => mustBeExperiment({ ...seen, carried: 3 }, 'x')).toThrow(
      /carried is 3; allowed: a fun/,
    );
  });
});

test('windows that carry their states give the values of one pass over the streams, as docs/experiments.md says', async () => {
  const page = await readFile(join(import.meta.dirname, '../../docs/experiments.md'), 'utf8');
  const [, source] = /```ts\n\/\/ streams\.ts\n([\s\S]*?)```/.exec(page)!;
  const folder = join(import.meta.dirname, '../output/streams');
  await mkdir(folder, { recursive: true });
  const path = join(folder, 'streams.ts');
  await writeFile(path, source!);
  const { data, model, carried, objective } = await loadExperiment(path);
  await rm(folder, { recursive: true });
  const { reader } = (await model!({ tf } as never)) as unknown as { reader: LayersModel };
  const { part } = layersPart(reader);
  const { train } = (await data({} as never)) as unknown as StreamData;
  const { tokens, stream } = train.inputs;
  // As a minibatch has them: in an order of its own.
  const order = permutation(3, STREAMS.epoch, stream.shape[0]!);
  const batch = {
    tokens: tf.gather(tf.tensor(tokens.values, tokens.shape, 'int32'), [...order]),
    stream: tf.gather(tf.tensor(stream.values, stream.shape, 'int32'), [...order]),
  };
  const called = (state: Record<string, Tensor>, training: boolean) =>
    objective!({
      ...{ batch, carried: state, training, tf },
      model: { reader: { apply: (x: Tensor[]) => part.apply(x, training, drawNoise) } },
    } as never) as { loss: Tensor; carried: Record<string, Tensor> };
  const initial = carried!({ tf } as never) as Record<string, Tensor>;
  const [, length] = tokens.shape;
  const losses: Tensor[] = [];
  let state = initial;
  do {
    const given = called(state, true);
    losses.push(given.loss);
    state = given.carried;
  } while (state.position!.dataSync()[0]! > 0);
  expect(losses.length).toBeGreaterThan(10);
  const whole = called(initial, false).loss.dataSync();
  const windows = tf.stack(losses).mean(0).dataSync();
  // Float32, and another order of sums.
  for (const [i, loss] of whole.entries()) expect(windows[i]).toBeCloseTo(loss, 5);
  // Without its state, a window is another one.
  const alone = called({ ...initial, position: state.position!.add(length! - 5) }, true).loss;
  expect(alone.sub(losses.at(-1)!).abs().max().dataSync()[0]).toBeGreaterThan(1e-3);
  // At their beginning the streams have no state, whatever is left of the last pass.
  expect([...called(state, true).loss.dataSync()]).toEqual([...losses[0]!.dataSync()]);
});

interface StreamData {
  readonly train: {
    readonly inputs: Record<'tokens' | 'stream', { values: Int32Array; shape: number[] }>;
  };
}
