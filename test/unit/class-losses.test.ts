import { beforeAll, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import type { BatchArguments, FieldTensors } from '../../worker/batch.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { drawsOf } from '../../worker/draws.ts';
import { openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { layers, losses } from '../../worker/layers.ts';
import { buildModel } from '../../worker/model.ts';
import { withSeed } from '../../worker/noise.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { type LayersModel, type Tensor, tf } from '../../worker/tf.ts';

beforeAll(() => openEngine({ engine: 'cpu' }));

const CLASSES = 12;
/** By Zipf's law. */
const COUNTS = Array.from({ length: CLASSES }, (_, i) => Math.round(1_000 / (1 + i)));
const draw = random(3, 1);
/** The scores of all classes, for one example. */
const SCORES = Float32Array.from({ length: CLASSES }, () => draw.normal());
const RIGHT = 4;
const sampler = losses.unigramSampler(COUNTS);

/** Ids of the right class and of k that are drawn. */
const idsOf = (k: number, seed: number, count = 1): Tensor =>
  withSeed(seed, () => {
    const drawn = sampler.draw(drawsOf(), [count, k]);
    return tf.concat([tf.fill([count, 1], RIGHT, 'int32'), drawn], 1);
  });
const scoresAt = (all: Tensor, ids: Tensor): Tensor =>
  tf.reshape(tf.gather(all, tf.reshape(ids, [ids.size])), ids.shape);

/** The loss and its gradient by the scores of all classes. */
function lossAndGradient(loss: (all: Tensor) => Tensor, at: Float32Array = SCORES) {
  const { value, grad } = tf.valueAndGrad((all: Tensor) => tf.mean(loss(all)))(tf.tensor1d(at));
  return { value: value.dataSync()[0]!, gradient: [...grad.dataSync()] };
}
const fullSoftmax = (all: Tensor) => tf.sub(tf.logSumExp(all), tf.gather(all, RIGHT));
const softmax = () => {
  const sum = SCORES.reduce((total, score) => total + Math.exp(score), 0);
  return [...SCORES].map((score) => Math.exp(score) / sum);
};

describe('a sampler of classes', () => {
  test('draws each class as often as the power of its count says', () => {
    const total = COUNTS.reduce((sum, count) => sum + count ** 0.75, 0);
    const logs = [...sampler.logProbability(tf.range(0, CLASSES, 1, 'int32')).dataSync()];
    const n = 60_000;
    const drawn = [...idsOf(n, 1).dataSync()].slice(1);
    for (const [i, count] of COUNTS.entries()) {
      const p = count ** 0.75 / total;
      expect(Math.exp(logs[i]!)).toBeCloseTo(p, 5);
      const seen = drawn.reduce((sum, id) => sum + Number(id === i), 0) / n;
      // Five standard deviations.
      expect(Math.abs(seen - p)).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / n));
    }
  });

  test('never draws a class without a count, and refuses counts that are none', () => {
    const some = losses.unigramSampler([0, 3, 0, 1]);
    const drawn = withSeed(2, () => some.draw(drawsOf(), [500])).dataSync();
    expect(new Set(drawn)).toEqual(new Set([1, 3]));
    expect(() => losses.unigramSampler([0, 0])).toThrow('all counts are 0');
    expect(() => losses.unigramSampler([1, Number.NaN])).toThrow('count 1 is NaN');
    expect(() => losses.unigramSampler([1, -1])).toThrow('count 1 is -1');
  });
});

test('the sampled softmax approaches the full one, and its gradient does', () => {
  const full = lossAndGradient(fullSoftmax);
  const distance = (k: number) => {
    const sampled = lossAndGradient((all) => {
      const ids = idsOf(k, 7, 4);
      return losses.sampledSoftmax({
        scores: scoresAt(all, ids),
        ids,
        logProbabilities: sampler.logProbability(ids),
      });
    });
    const apart = sampled.gradient.map((g, i) => Math.abs(g - full.gradient[i]!));
    return [Math.abs(sampled.value - full.value), Math.max(...apart)];
  };
  const [few, many] = [distance(8), distance(5_000)];
  for (const apart of many) expect(apart).toBeLessThan(0.02);
  expect(many[0]!).toBeLessThan(few[0]!);
});

test('the estimate of the sum over all classes has no bias', () => {
  // e^(loss + score of the right class) is the estimated sum.
  const ids = idsOf(5, 11, 20_000);
  const all = tf.tensor1d(SCORES);
  const loss = losses
    .sampledSoftmax({
      scores: scoresAt(all, ids),
      ids,
      logProbabilities: sampler.logProbability(ids),
    })
    .dataSync();
  const sums = [...loss].map((each) => Math.exp(each + SCORES[RIGHT]!));
  const mean = sums.reduce((sum, each) => sum + each, 0) / sums.length;
  const variance = sums.reduce((sum, each) => sum + (each - mean) ** 2, 0) / sums.length;
  const exact = SCORES.reduce((sum, score) => sum + Math.exp(score), 0);
  expect(Math.abs(mean - exact)).toBeLessThan(5 * Math.sqrt(variance / sums.length));
});

test("noise-contrastive estimation has the softmax's gradient on average, where scores are logarithms of probabilities", () => {
  const logs = Float32Array.from(softmax(), Math.log);
  const k = 2_000;
  const { gradient } = lossAndGradient((all) => {
    const ids = idsOf(k, 13, 8);
    return losses.noiseContrastive({
      scores: scoresAt(all, ids),
      ids,
      logProbabilities: sampler.logProbability(ids),
    });
  }, logs);
  for (const [i, p] of softmax().entries()) {
    expect(gradient[i]!).toBeCloseTo(p - Number(i === RIGHT), 1);
  }
});

test('negative sampling is what word2vec has', () => {
  const scores = tf.tensor2d([[2, -1, 0.5]]);
  const sigma = (x: number) => 1 / (1 + Math.exp(-x));
  const expected = -Math.log(sigma(2)) - Math.log(sigma(1)) - Math.log(sigma(-0.5));
  expect(losses.negativeSampling({ scores }).dataSync()[0]).toBeCloseTo(expected, 5);
  expect(() => losses.negativeSampling({ scores: tf.zeros([2, 1]) })).toThrow('[2,1]');
});

test('scores of exactly 0, as of rows that begin with zeros, have the gradient of finite differences', () => {
  const at = new Float32Array(CLASSES);
  const drawn = [1, RIGHT + 1, CLASSES - 1];
  const ids = tf.tensor2d([RIGHT, ...drawn], [1, 1 + drawn.length], 'int32');
  const given = (all: Tensor) => ({
    scores: scoresAt(all, ids),
    ids,
    logProbabilities: sampler.logProbability(ids),
  });
  const even = { ids, logProbabilities: tf.fill(ids.shape, -Math.log(drawn.length)) };
  const signs = tf.tensor2d([1, -1, 1, 0], [1, 4]);
  const all: Readonly<Record<string, (scores: Tensor) => Tensor>> = {
    negativeSampling: (scores) => losses.negativeSampling(given(scores)),
    // What is subtracted from the scores is 0 too.
    noiseContrastive: (scores) => losses.noiseContrastive({ ...given(scores), ...even }),
    sampledSoftmax: (scores) => losses.sampledSoftmax({ ...given(scores), ...even }),
    hierarchicalSoftmax: (scores) =>
      losses.hierarchicalSoftmax({ scores: scoresAt(scores, ids), signs }),
  };
  for (const [name, loss] of Object.entries(all)) {
    const { gradient } = lossAndGradient(loss, at);
    for (const id of [RIGHT, ...drawn]) {
      const moved = (by: number) => loss(tf.tensor1d(at.with(id, by))).dataSync()[0]!;
      expect(gradient[id], name).toBeCloseTo((moved(0.01) - moved(-0.01)) / 0.02, 3);
    }
  }
});

describe('the hierarchical softmax', () => {
  const tree = losses.classTree(COUNTS);
  const nodeScores = Float32Array.from({ length: tree.nodeCount }, () => draw.normal());
  /** The loss if class i is the right one. */
  const lossOf = (scores: Tensor, i: number): Tensor => {
    const nodes = tree.nodes.slice(i * tree.depth, (i + 1) * tree.depth);
    const signs = tf.tensor2d(tree.signs.slice(i * tree.depth, (i + 1) * tree.depth), [
      1,
      tree.depth,
    ]);
    const ids = tf.tensor1d(
      nodes.map((node) => Math.max(node, 0)),
      'int32',
    );
    return losses.hierarchicalSoftmax({
      scores: tf.reshape(tf.gather(scores, ids), [1, -1]),
      signs,
    });
  };

  test('gives probabilities: over all classes they sum to 1', () => {
    const scores = tf.tensor1d(nodeScores);
    let sum = 0;
    for (let i = 0; i < CLASSES; i++) sum += Math.exp(-lossOf(scores, i).dataSync()[0]!);
    expect(sum).toBeCloseTo(1, 5);
  });

  test('has the gradient of finite differences, on the way to the class alone', () => {
    const { gradient } = lossAndGradient((all) => lossOf(all, RIGHT), nodeScores);
    const onWay = new Set(tree.nodes.slice(RIGHT * tree.depth, (RIGHT + 1) * tree.depth));
    const at = (node: number, by: number) => {
      const moved = nodeScores.slice();
      moved[node] = moved[node]! + by;
      return lossOf(tf.tensor1d(moved), RIGHT).dataSync()[0]!;
    };
    for (const [node, g] of gradient.entries()) {
      expect(g).toBeCloseTo((at(node, 0.01) - at(node, -0.01)) / 0.02, 2);
      if (!onWay.has(node)) expect(g).toBe(0);
    }
  });

  test("Huffman's tree needs at most one decision more than the entropy, and a balanced one log₂ of the classes", () => {
    const total = COUNTS.reduce((sum, count) => sum + count, 0);
    const entropy = COUNTS.reduce((sum, c) => sum - (c / total) * Math.log2(c / total), 0);
    expect(tree.meanDepth).toBeGreaterThanOrEqual(entropy);
    expect(tree.meanDepth).toBeLessThan(entropy + 1);
    expect(tree.nodeCount).toBe(CLASSES - 1);
    expect(losses.classTree(new Array(16).fill(1))).toMatchObject({ depth: 4, meanDepth: 4 });
    // Each way is another one.
    const ways = Array.from({ length: CLASSES }, (_, i) =>
      String([...tree.signs.slice(i * tree.depth, (i + 1) * tree.depth)]),
    );
    expect(new Set(ways).size).toBe(CLASSES);
    expect(() => losses.classTree([1])).toThrow('1 classes');
  });
});

test('scores and ids of other shapes are refused with theirs', () => {
  const ids = idsOf(3, 1);
  for (const name of ['sampledSoftmax', 'noiseContrastive'] as const) {
    const wrong = { scores: tf.zeros([1, 5]), ids, logProbabilities: tf.zeros([1, 4]) };
    expect(() => losses[name](wrong)).toThrow('[1,5]');
  }
  const signs = tf.zeros([2, 2]);
  expect(() => losses.hierarchicalSoftmax({ scores: tf.zeros([2, 3]), signs })).toThrow('[2,3]');
});

/** Pairs of words: word i is beside words 2 i and 2 i + 1. */
const PAIRS = Array.from(
  { length: 96 },
  (_, i) => [i % 8, (2 * (i % 8) + (i % 2)) % CLASSES] as const,
);
const NEGATIVES = 4;
const tree = losses.classTree(COUNTS);

/** What a layer gives while a model is built. */
const node = (output: unknown) => output as LayersModel['inputs'][number];

/** Learns the pairs by one of the losses, with the vectors of both words in tables. */
function pairsBy(
  name: 'sampledSoftmax' | 'noiseContrastive' | 'negativeSampling' | 'hierarchicalSoftmax',
) {
  const isTree = name === 'hierarchicalSoftmax';
  const column = (values: number[]) => ({
    values: Int32Array.from(values),
    shape: [PAIRS.length, 1],
  });
  const whole = (values: ArrayLike<number>, width: number) =>
    PAIRS.flatMap(([, right]) => Array.from(values).slice(right * width, (right + 1) * width));
  const shape = [PAIRS.length, tree.depth];
  const data = dataOf({
    train: {
      inputs: {
        word: column(PAIRS.map(([word]) => word)),
        candidates: isTree
          ? { values: Int32Array.from(whole(tree.nodes, tree.depth)), shape }
          : column(PAIRS.map(([, right]) => right)),
        more: isTree
          ? { values: Float32Array.from(whole(tree.signs, tree.depth)), shape }
          : { values: new Float32Array(PAIRS.length), shape: [PAIRS.length, 1] },
      },
    },
    source: 'pairs of words',
  });
  const experiment: Experiment = {
    data: () => data,
    tables: { word: { rows: 8, width: 3 }, other: { rows: CLASSES, width: 3 } },
    ...(!isTree && {
      batch: {
        change: (fields: FieldTensors, { tf, random }: BatchArguments) => {
          const drawn = sampler.draw(random, [fields.word!.shape[0]!, NEGATIVES]);
          const candidates = tf.concat([fields.candidates!, drawn], 1);
          return { ...fields, candidates, more: sampler.logProbability(candidates) };
        },
        evaluation: true,
      },
    }),
    model: ({ tf }) => {
      const width = isTree ? tree.depth : 1 + NEGATIVES;
      const word = tf.input({ shape: [1], name: 'word', dtype: 'int32' });
      const candidates = tf.input({ shape: [width], name: 'candidates', dtype: 'int32' });
      const given = node(layers.rows({ table: 'word' }).apply(word));
      const others = node(layers.rows({ table: 'other' }).apply(candidates));
      const scores = tf.layers.dot({ axes: 2 }).apply([given, others]);
      const flat = tf.layers.flatten().apply(node(scores));
      const dense = tf.layers.dense({ units: width, kernelInitializer: 'identity' });
      return tf.model({ inputs: [word, candidates], outputs: node(dense.apply(flat)) });
    },
    objective: ({ model, batch }) => {
      const { word, candidates: ids, more } = batch as FieldTensors & Record<string, Tensor>;
      const scores = model.apply({ word: word!, candidates: ids! });
      if (name === 'hierarchicalSoftmax') return losses[name]({ scores, signs: more! });
      return losses[name]({ scores, ids: ids!, logProbabilities: more! });
    },
  };
  const checked = mustBeExperiment(experiment, 'test');
  const config = { ...resolveConfig(checked.config!), seed: 3 };
  const prepared = prepareData(data, prepareOptions(checked, config));
  return { checked, prepared, config };
}

const LEARNT = [
  'sampledSoftmax',
  'noiseContrastive',
  'negativeSampling',
  'hierarchicalSoftmax',
] as const;
const NATIVE = readEngine(engineFolder('cpu')) ? (['native'] as const) : [];
describe.each(['wasm', ...NATIVE] as const)('an objective on tables, %s', (engine) => {
  beforeAll(() => openEngine({ engine }));

  test.each(LEARNT)('%s has the same gradients recorded or not', async (name) => {
    const { checked, prepared, config } = pairsBy(name);
    const minibatch = gather(
      prepared,
      'train',
      Int32Array.from({ length: 16 }, (_, i) => i),
    );
    const steps = [];
    for (const record of [true, false]) {
      const model = await buildModel(checked, config, prepared, { record });
      model.load(await model.initialise(3));
      const numbers = (keys: Uint32Array) =>
        Float32Array.from(
          keys.length > 0
            ? [...keys].flatMap((key) => [0, 1, 2].map((i) => Math.sin(key + i)))
            : [],
        );
      model.rows!.from(async (keys) => keys.map((own) => ({ keys: own, values: numbers(own) })));
      // What is repeated is recorded.
      for (let i = 0; i < 4; i++) await model.step(minibatch, 5);
      const { loss, rows } = await model.step(minibatch, 5);
      steps.push({ loss, rows: rows!.map(({ keys, values }) => ({ keys, values: [...values] })) });
      if (record && engine === 'native') expect(model.execution).toBe('graph');
      model.dispose();
    }
    const [recorded, plain] = steps;
    expect(recorded!.loss).toBeCloseTo(plain!.loss, 4);
    for (const [t, { keys, values }] of plain!.rows.entries()) {
      expect(recorded!.rows[t]!.keys).toEqual(keys);
      expect(values.some((value) => Math.abs(value) > 1e-4)).toBe(true);
      for (const [i, value] of values.entries()) {
        expect(recorded!.rows[t]!.values[i]).toBeCloseTo(value, 4);
      }
    }
  });
});
