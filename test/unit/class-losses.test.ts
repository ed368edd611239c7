import { beforeAll, describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import { drawsOf } from '../../worker/draws.ts';
import { openEngine } from '../../worker/engine.ts';
import { losses } from '../../worker/layers.ts';
import { withSeed } from '../../worker/noise.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

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
      return losses.sampledSoftmax({ scores: scoresAt(all, ids), ids, sampler });
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
  const loss = losses.sampledSoftmax({ scores: scoresAt(all, ids), ids, sampler }).dataSync();
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
    return losses.noiseContrastive({ scores: scoresAt(all, ids), ids, sampler });
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
    expect(() => losses[name]({ scores: tf.zeros([1, 5]), ids, sampler })).toThrow('[1,5]');
  }
  const signs = tf.zeros([2, 2]);
  expect(() => losses.hierarchicalSoftmax({ scores: tf.zeros([2, 3]), signs })).toThrow('[2,3]');
});
