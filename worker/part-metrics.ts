import { nearest } from '../shared/spelling.ts';
import { sizeOf } from './data/columns.ts';
import { type DataShape, invalid } from './model/data-shape.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * Metrics of a whole part that are no means over its examples. A minibatch gives a few numbers for each example, and the
 * metric is computed from those of all examples, so it does not depend on how they are divided into minibatches.
 */

const NAMES = ['auc', 'rmse', 'r2'] as const;

/**
 * `auc`: the share of pairs of a positive and a negative example that the model puts in order, a tie counts half (two classes).
 * `rmse`: root of the mean squared error. `r2`: 1 − squared error over the variance of the targets (one number each).
 */
export type PartMetricName = (typeof NAMES)[number];

export interface PartMetric {
  /** Numbers for each example. */
  readonly width: number;
  /** @returns of one minibatch, shape [n, width]. */
  each(targets: Tensor, predictions: Tensor): Tensor;
  /** @param values of a part, shape [n, width]. @returns NaN: it has no value. */
  over(values: Float32Array): number;
}

/** What else may stand for a metric than a function. */
export const PART_METRICS = NAMES.map((name) => `'${name}'`).join(', ');

/**
 * @param where goes before the name of the metric in messages. @param outputShape of one example's predictions.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the metric has no meaning for these targets.
 */
export function partMetric(
  name: string,
  given: string,
  { classCount, shares, targetShape }: DataShape,
  outputShape: readonly number[],
  where = '',
): PartMetric {
  const [targets, outputs] = [sizeOf(targetShape), sizeOf(outputShape)];
  const refuse = (needs: string) =>
    invalid(
      `${where}metric '${name}' is '${given}', which needs ${needs}; the targets have ${classCount > 0 ? `${classCount} classes` : 'no classes'} and shape [${targetShape}], the predictions shape [${outputShape}]: use a function, or leave the metric out`,
    );
  switch (given) {
    case 'auc':
      if (
        shares ||
        targets !== 1 ||
        classCount > 2 ||
        (outputs !== 1 && !(outputs === 2 && classCount === 2))
      ) {
        throw refuse('two classes, and one target with one or two predictions for each example');
      }
      return { width: 2, each: scoresOf(outputs), over: areaUnderCurve };
    case 'rmse':
      if (targets !== outputs) throw refuse('as many predictions as targets');
      return { width: 1, each: squaredErrors, over: (squares) => Math.sqrt(mean(squares)) };
    case 'r2':
      if (targets !== 1 || outputs !== 1) throw refuse('one number to predict for each example');
      return { width: 2, each: pairsOf, over: explainedShare };
  }
  const near = nearest(given, NAMES);
  throw invalid(
    `${where}metric '${name}' is '${given}'; allowed: a function (targets, predictions), ${PART_METRICS}${near ? `; did you mean '${near}'?` : ''}`,
  );
}

const column = (tensor: Tensor) => tf.reshape(tf.cast(tensor, 'float32'), [-1, 1]);
const pairsOf = (targets: Tensor, predictions: Tensor) =>
  tf.concat([column(targets), column(predictions)], 1);

/** Two logits are compared by their difference, which orders examples as the probability does. */
const scoresOf =
  (outputs: number) =>
  (targets: Tensor, predictions: Tensor): Tensor => {
    if (outputs === 1) return pairsOf(targets, predictions);
    const [no, yes] = tf.split(tf.reshape(predictions, [-1, 2]), 2, 1);
    return pairsOf(targets, tf.sub(yes!, no!));
  };

const squaredErrors = (targets: Tensor, predictions: Tensor): Tensor => {
  const truth = tf.cast(tf.reshape(targets, predictions.shape), 'float32');
  const squares = tf.square(tf.sub(predictions, truth));
  return tf.mean(tf.reshape(squares, [predictions.shape[0]!, -1]), 1, true);
};

const mean = (values: Float32Array) =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

/** From the ranks of the positive examples (Mann and Whitney). @param pairs of a target and a score. */
function areaUnderCurve(pairs: Float32Array): number {
  const count = pairs.length / 2;
  const scores = new Float32Array(count);
  for (let i = 0; i < count; i++) scores[i] = pairs[2 * i + 1]!;
  if (scores.some(Number.isNaN)) return Number.NaN;
  const order = Uint32Array.from(scores, (_, i) => i).sort((a, b) => scores[a]! - scores[b]!);
  let [positives, rankSum] = [0, 0];
  for (let start = 0, end = 0; start < count; start = end) {
    let tied = 0;
    while (end < count && scores[order[end]!] === scores[order[start]!]) {
      if (pairs[2 * order[end]!]! > 0.5) tied++;
      end++;
    }
    positives += tied;
    rankSum += (tied * (start + 1 + end)) / 2;
  }
  const negatives = count - positives;
  return (rankSum - (positives * (positives + 1)) / 2) / (positives * negatives);
}

/** @param pairs of a target and its prediction. */
function explainedShare(pairs: Float32Array): number {
  const count = pairs.length / 2;
  let sum = 0;
  for (let i = 0; i < count; i++) sum += pairs[2 * i]!;
  let [variance, left] = [0, 0];
  for (let i = 0; i < count; i++) {
    variance += (pairs[2 * i]! - sum / count) ** 2;
    left += (pairs[2 * i]! - pairs[2 * i + 1]!) ** 2;
  }
  return variance > 0 ? 1 - left / variance : Number.NaN;
}
