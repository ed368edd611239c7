import { DownpourError } from '../shared/errors.ts';
import { classTree, mustBeCounts } from './class-tree.ts';
import type { Draws } from './draws.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * Losses over so many classes that a softmax over all of them would take too long, for objectives:
 *
 *     import { losses } from 'downpour/layers';
 *
 * Each gets the scores of a few classes of each example: of the right one, and of classes that were drawn at random
 * (*Deep Learning* §12.4.3). The vectors of the classes are rows of a table, so that a minibatch touches a few of them. Each gives one number
 * for each example, shape [n].
 */

export interface SampledScores {
  /** Shape [n, 1 + k]: the score of the right class first, then those of the k classes that were drawn. */
  readonly scores: Tensor;
  /** Shape [n, 1 + k], int32: these classes, or their places among the rows of a minibatch. They are compared alone. */
  readonly ids: Tensor;
  /** Shape [n, 1 + k]: `logProbability` of the sampler, of the ids before they became places. */
  readonly logProbabilities: Tensor;
}

/** Draws classes in the place of all of them. */
export interface ClassSampler {
  /** Number of classes. */
  readonly classCount: number;
  /** Classes of this shape, int32; with replacement. */
  draw(random: Draws, shape: readonly number[]): Tensor;
  /** The logarithm of the probability of classes. @param ids int32, of any shape. */
  logProbability(ids: Tensor): Tensor;
}

/**
 * Draws class i with a probability proportional to counts[i]^power (Mikolov et al. 2013: 0.75), by the alias method: two
 * random numbers for each class, however many classes there are (Vose 1991).
 * @throws DownpourError DP_EXPERIMENT_INVALID: counts are below 0 or all 0.
 */
function unigramSampler(counts: ArrayLike<number>, power = 0.75): ClassSampler {
  mustBeCounts(counts, 'unigramSampler');
  const n = counts.length;
  const weights = Float64Array.from(counts, (count) => count ** power);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  if (!(total > 0)) throw invalid('unigramSampler: all counts are 0; give one above 0 at least');
  const scaled = weights.map((weight) => (weight / total) * n);
  const keep = new Float32Array(n).fill(1);
  const alias = Int32Array.from({ length: n }, (_, i) => i);
  const small: number[] = [];
  const large: number[] = [];
  for (const [i, share] of scaled.entries()) (share < 1 ? small : large).push(i);
  while (small.length > 0 && large.length > 0) {
    const [low, high] = [small.pop()!, large.pop()!];
    keep[low] = scaled[low]!;
    alias[low] = high;
    scaled[high] = scaled[high]! - (1 - scaled[low]!);
    (scaled[high]! < 1 ? small : large).push(high);
  }
  // A class that is never drawn would be −Infinity, whose gradients are NaN.
  const logs = Float32Array.from(weights, (weight) => Math.log(Math.max(weight / total, RARE)));
  return {
    classCount: n,
    draw: (random, shape) =>
      tf.tidy(() => {
        const places = random.integers(shape, n);
        const kept = tf.less(random.uniform(shape), gathered(keep, places));
        return tf.where(kept, places, gathered(alias, places));
      }),
    logProbability: (ids) => tf.tidy(() => gathered(logs, ids)),
  };
}

function gathered(values: Float32Array | Int32Array, ids: Tensor): Tensor {
  const table = values instanceof Int32Array ? tf.tensor1d(values, 'int32') : tf.tensor1d(values);
  const flat = tf.gather(table, tf.reshape(ids, [ids.size]));
  return tf.reshape(flat, ids.shape);
}

/**
 * The sampled softmax: the sum over all classes is estimated by those that were drawn, each divided by how often it is drawn on
 * average (Bengio and Senécal 2003). The estimate of the sum has no bias; the loss approaches that of the full softmax as
 * k grows. The right class among those that were drawn is left out.
 */
function sampledSoftmax(given: SampledScores): Tensor {
  return tf.tidy(() => {
    const { scores, logExpected, isHit } = taken('sampledSoftmax', given);
    const [right, others] = parts(scores);
    const corrected = tf.where(isHit, tf.fill(others.shape, HIT), tf.sub(others, logExpected));
    const all = tf.concat([right, corrected], 1);
    return tf.sub(tf.logSumExp(all, 1), tf.reshape(right, [-1]));
  });
}

/**
 * Noise-contrastive estimation: tells the right class from those that were drawn (Gutmann and Hyvärinen 2010; Mnih and Teh 2012). Scores
 * are logarithms of probabilities; their sum becomes 1 by itself. For the perplexity, normalise by a softmax over all classes.
 */
function noiseContrastive(given: SampledScores): Tensor {
  return tf.tidy(() => {
    const { scores, logExpected, logExpectedRight } = taken('noiseContrastive', given);
    const [right, others] = parts(scores);
    return contrast(tf.sub(right, logExpectedRight), tf.sub(others, logExpected));
  });
}

/** Negative sampling of word2vec: as `noiseContrastive` without probabilities. It learns vectors, and no probabilities. */
function negativeSampling({ scores }: Pick<SampledScores, 'scores'>): Tensor {
  mustBe('negativeSampling', 'scores', scores.shape.length === 2 && scores.shape[1]! >= 2, scores);
  return tf.tidy(() => contrast(...parts(scores)));
}

/** −log σ(right) − Σ log σ(−others). */
function contrast(right: Tensor, others: Tensor): Tensor {
  const yes = tf.reshape(logSigmoid(right), [-1]);
  const no = tf.sum(logSigmoid(tf.neg(others)), 1);
  return tf.neg(tf.add(yes, no));
}

export interface PathScores {
  /** Shape [n, depth]: the score of each inner node on the way to the right class. */
  readonly scores: Tensor;
  /** Shape [n, depth]: `signs` of the tree for these classes; 0 where there is no node. */
  readonly signs: Tensor;
}

/**
 * The hierarchical softmax: the probability of a class is the product of the decisions on its way through a tree
 * (`losses.classTree`), each σ(sign · score). Exact, with about log₂ of the classes scores. *Deep Learning* §12.4.3.2.
 */
function hierarchicalSoftmax({ scores, signs }: PathScores): Tensor {
  const isAlike = scores.shape.length === 2 && String(scores.shape) === String(signs.shape);
  mustBe('hierarchicalSoftmax', 'scores and signs', isAlike, scores);
  return tf.tidy(() => {
    const there = tf.abs(signs);
    return tf.neg(tf.sum(tf.mul(there, logSigmoid(tf.mul(signs, scores))), 1));
  });
}

/**
 * log σ(x) = x − max(0, x) − log(1 + e^−|x|). `tf.logSigmoid` loses a tensor of its gradient in a `tf.tidy`. At 0, where rows of
 * zeros begin, TensorFlow.js has the slopes 0 and −1 for max(0, x) and |x|: only in this form do they add up to 1/2.
 */
const logSigmoid = (x: Tensor): Tensor =>
  tf.sub(tf.sub(x, tf.relu(x)), tf.log1p(tf.exp(tf.neg(tf.abs(x)))));

const RARE = 1e-30;
/** A score that counts for nothing. */
const HIT = -1e9;

function taken(name: string, { scores, ids, logProbabilities }: SampledScores) {
  const isAlike = [ids, logProbabilities].every(
    ({ shape }) => String(shape) === String(scores.shape),
  );
  const isSampled = scores.shape.length === 2 && scores.shape[1]! >= 2;
  mustBe(name, 'scores, ids and logProbabilities', isAlike && isSampled, scores);
  const [rightId, otherIds] = parts(ids);
  const logCount = Math.log(otherIds.shape[1]!);
  const [right, others] = parts(logProbabilities);
  return {
    scores,
    isHit: tf.equal(otherIds, rightId),
    logExpected: tf.add(others, logCount),
    logExpectedRight: tf.add(right, logCount),
  };
}

const parts = (all: Tensor): [first: Tensor, others: Tensor] => [
  tf.slice(all, [0, 0], [-1, 1]),
  tf.slice(all, [0, 1], [-1, -1]),
];

function mustBe(name: string, what: string, isRight: boolean, { shape }: Tensor): void {
  if (isRight) return;
  throw invalid(
    `losses.${name} was given scores of shape [${shape}]; allowed: ${what} of one shape [examples, classes], the right class first and one that was drawn at least`,
  );
}

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);

export const losses = {
  sampledSoftmax,
  noiseContrastive,
  negativeSampling,
  hierarchicalSoftmax,
  unigramSampler,
  classTree,
};
