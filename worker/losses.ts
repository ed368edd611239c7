import type { ErrorMeasure } from '../shared/protocol.ts';
import { nearest } from '../shared/spelling.ts';
import { sizeOf } from './data/columns.ts';
import type { Experiment, Hyperparameters, LossName, Measure } from './experiment.ts';
import { isRecord } from './fields.ts';
import { type DataShape, invalid, targetsOf } from './model/data-shape.ts';
import { type Tensor, tf } from './tf.ts';

/** The losses and the error that are built in. Each is the mean over the examples of a minibatch. */

/** The loss of one target. */
export type OneLoss = LossName | Measure;

/**
 * The loss of each target that has a name.
 * @throws DownpourError DP_EXPERIMENT_INVALID: a target has none, or a loss is of no target.
 */
export function lossesOf({ loss }: Experiment, data: DataShape): Record<string, OneLoss> {
  const targets = targetsOf(data).map(({ name }) => name);
  const list = targets.map((name) => `'${name}'`).join(', ');
  const example = `loss: { ${targets.map((name) => `${name}: …`).join(', ')} }`;
  if (!isRecord(loss)) {
    if (targets.length === 1) return { [targets[0]!]: loss as OneLoss };
    throw invalid(`the data have the targets ${list}: give each its loss, ${example}`);
  }
  for (const name of Object.keys(loss)) {
    if (targets.includes(name)) continue;
    const near = nearest(name, targets);
    throw invalid(
      `loss names '${name}', which is no target of the data; ${near ? `did you mean '${near}'?` : targets.length > 0 ? `targets: ${list}` : 'their targets have no names: give one loss'}`,
    );
  }
  const missing = targets.find((name) => !(name in loss));
  if (missing === undefined) return loss as Record<string, OneLoss>;
  throw invalid(`loss has none for the target '${missing}' of the data: ${example}`);
}

/** The smoothing of labels: a share ε of certainty is spread evenly over all classes (Deep Learning §7.5.1). */
export function smoothingOf(
  { labelSmoothing, loss }: Experiment,
  hyperparameters: Hyperparameters,
): number {
  if (labelSmoothing === undefined) return 0;
  const share =
    typeof labelSmoothing === 'function' ? labelSmoothing(hyperparameters) : labelSmoothing;
  if (!(share >= 0 && share < 1)) {
    throw invalid(`labelSmoothing is ${share}; it must be at least 0 and below 1`);
  }
  const losses = isRecord(loss) ? Object.values(loss) : [loss];
  if (share > 0 && !losses.some((each) => (SMOOTHED as readonly unknown[]).includes(each))) {
    const allowed = SMOOTHED.join(', ');
    throw invalid(`labelSmoothing ${share} needs one of these losses: ${allowed}`);
  }
  return share;
}
export const SMOOTHED: readonly LossName[] = [
  'softmaxCrossEntropy',
  'sigmoidCrossEntropy',
  'negativeLogLikelihood',
];

/** How a built-in loss departs from its plain form. */
export interface LossForm {
  /** The share ε of `smoothingOf`. */
  readonly smoothing?: number;
  /** How much an example of each class counts; its labels are not smoothed for that. */
  readonly weights?: readonly number[] | undefined;
}

/** Whether all losses of an experiment can weigh their classes. */
export const canWeighClasses = ({ loss }: Pick<Experiment, 'loss'>): boolean =>
  (isRecord(loss) ? Object.values(loss) : [loss]).every((each) =>
    (SMOOTHED as readonly unknown[]).includes(each),
  );

/** −Σ truth · log p over the classes, of what gives log p. */
function crossEntropyOf(
  logarithms: (predictions: Tensor) => Tensor,
  { classCount, shares }: DataShape,
  { smoothing = 0, weights }: LossForm,
): Measure {
  return (targets, predictions) => {
    const logs = logarithms(tf.reshape(predictions, [-1, classCount]));
    // `gatherND` has no gradient in TensorFlow.js, so labels become rows of zeros and a one.
    const truth = shares
      ? tf.reshape(targets, [-1, classCount])
      : tf.cast(tf.oneHot(tf.cast(tf.reshape(targets, [-1]), 'int32'), classCount), 'float32');
    const smoothed =
      smoothing === 0 ? truth : tf.add(tf.mul(truth, 1 - smoothing), smoothing / classCount);
    const losses = tf.mul(logs, smoothed);
    if (!weights) return tf.mul(tf.sum(losses), -1 / logs.shape[0]!);
    const weight = tf.sum(tf.mul(truth, tf.tensor1d([...weights])), 1, true);
    return tf.mul(tf.sum(tf.mul(losses, weight)), -1 / logs.shape[0]!);
  };
}

/** max(x, 0) − x·z + log(1 + e^−|x|) */
function sigmoidCrossEntropy({ smoothing = 0, weights }: LossForm): Measure {
  return (targets, predictions) => {
    const told = tf.cast(tf.reshape(targets, predictions.shape), 'float32');
    const z = smoothing === 0 ? told : tf.add(tf.mul(told, 1 - smoothing), smoothing / 2);
    const rest = tf.log1p(tf.exp(tf.neg(tf.abs(predictions))));
    const losses = tf.add(tf.sub(tf.relu(predictions), tf.mul(predictions, z)), rest);
    if (!weights) return tf.mean(losses);
    const [no, yes] = weights as [number, number];
    return tf.mean(tf.mul(losses, tf.add(tf.mul(told, yes - no), no)));
  };
}

const difference: Measure = (targets, predictions) =>
  tf.sub(predictions, tf.cast(tf.reshape(targets, predictions.shape), 'float32'));

/** A built-in loss. */
export function namedLoss(loss: LossName, data: DataShape, form: LossForm = {}): Measure {
  // It takes logits, so that nothing overflows.
  if (loss === 'softmaxCrossEntropy') return crossEntropyOf(tf.logSoftmax, data, form);
  if (loss === 'negativeLogLikelihood') return crossEntropyOf((logs) => logs, data, form);
  if (loss === 'sigmoidCrossEntropy') return sigmoidCrossEntropy(form);
  if (loss === 'meanSquaredError') return (t, p) => tf.mean(tf.square(difference(t, p)));
  return (t, p) => tf.mean(tf.abs(difference(t, p)));
}

export function errorMeasureOf({ error, loss }: Pick<Experiment, 'error' | 'loss'>): ErrorMeasure {
  if (isRecord(error))
    return Object.values(error)[0] === 'misclassification' ? 'misclassification' : 'own';
  if (typeof error === 'function') return 'own';
  const counts = (SMOOTHED as readonly unknown[]).includes(loss);
  return (
    (error as 'misclassification' | 'loss' | undefined) ?? (counts ? 'misclassification' : 'loss')
  );
}

/**
 * The share of wrong answers. @param outputShape of one example's predictions.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the predictions or the targets are not classes.
 */
export function misclassification(
  loss: unknown,
  { classCount, shares, targetShape }: DataShape,
  outputShape: readonly number[],
): Measure {
  if (loss === 'sigmoidCrossEntropy') {
    return (targets, predictions) => {
      const truth = tf.greater(tf.reshape(targets, predictions.shape), 0.5);
      return tf.mean(tf.cast(tf.notEqual(tf.greater(predictions, 0), truth), 'float32'));
    };
  }
  if (classCount === 0) {
    throw invalid(
      "error 'misclassification' needs classes, but the targets are numbers; use error 'loss'",
    );
  }
  const answers = shares ? sizeOf(targetShape) / classCount : sizeOf(targetShape);
  if (sizeOf(outputShape) !== answers * classCount) {
    throw invalid(
      `error 'misclassification' needs one prediction for each of the ${classCount} classes, but the model's predictions have shape [n${outputShape.map((d) => `,${d}`).join('')}]: use error 'loss', or a function (targets, predictions)`,
    );
  }
  return (targets, predictions) => {
    const answers = tf.argMax(tf.reshape(predictions, [-1, classCount]), 1);
    const truth = shares
      ? tf.argMax(tf.reshape(targets, [-1, classCount]), 1)
      : tf.cast(tf.reshape(targets, [-1]), 'int32');
    return tf.mean(tf.cast(tf.notEqual(answers, truth), 'float32'));
  };
}
