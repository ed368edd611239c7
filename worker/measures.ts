import type { RunConfig } from '../shared/config.ts';
import { type DownpourError, errorText } from '../shared/errors.ts';
import { sizeOf } from './data/columns.ts';
import type { Experiment, Measure } from './experiment.ts';
import { describe } from './fields.ts';
import { errorMeasureOf, misclassification, namedLoss, smoothingOf } from './losses.ts';
import { type DataShape, invalid } from './model/data-shape.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * The loss, error and metrics of predictions: one number for each minibatch. The user's functions are tried before
 * training, on made-up examples of the right shapes, and checked again at each minibatch. A function that returns
 * anything else is refused, and the message names it.
 */

export interface Measures {
  readonly loss: Measure;
  /** The loss with label smoothing. */
  readonly trainingLoss: Measure;
  readonly error: Measure;
  readonly metrics: readonly (readonly [name: string, measure: Measure])[];
}

/**
 * @param outputShape of one example's predictions.
 * @throws DownpourError DP_EXPERIMENT_INVALID: a function fails, does not return a number, or compares targets with the
 *   predictions of other examples.
 */
export async function measuresOf(
  experiment: Experiment,
  { hyperparameters }: Pick<RunConfig, 'hyperparameters'>,
  data: DataShape,
  outputShape: readonly number[],
): Promise<Measures> {
  const shapes = { data, outputShape };
  const smoothing = smoothingOf(experiment, hyperparameters);
  const { loss: given, error: wanted, metrics = {} } = experiment;
  const isOwn = typeof given === 'function';
  const loss = isOwn ? await ownMeasure('loss', given, shapes) : namedLoss(given, data);
  const trainingLoss = isOwn || smoothing === 0 ? loss : namedLoss(given, data, smoothing);
  const error =
    typeof wanted === 'function'
      ? await ownMeasure('error', wanted, shapes)
      : errorMeasureOf(experiment) === 'loss'
        ? loss
        : misclassification(experiment, data, outputShape);
  const own: [string, Measure][] = [];
  for (const [name, metric] of Object.entries(metrics)) {
    own.push([name, await ownMeasure(`metric '${name}'`, metric, shapes)]);
  }
  return { loss, trainingLoss, error, metrics: own };
}

interface Shapes {
  readonly data: DataShape;
  readonly outputShape: readonly number[];
}

/** How a function gets the targets. */
type Form = (targets: Tensor, predictions: Tensor) => Tensor;

const asTheyAre: Form = (targets) => targets;
const likePredictions: Form = (targets, predictions) => tf.reshape(targets, predictions.shape);

/** Numbers of examples that a function is tried with: what fits both by chance fits no one size. */
const COUNTS = [2, 3] as const;

/**
 * A function of the user's that gives one number. Where targets and predictions are equally many and of other
 * shapes ([n] and [n, 1]), and the function would compare each target with each prediction, it gets the targets in
 * the shape of the predictions.
 */
async function ownMeasure(what: string, own: Measure, shapes: Shapes): Promise<Measure> {
  const { targetShape } = shapes.data;
  const { outputShape } = shapes;
  const alike = String(targetShape) === String(outputShape);
  const many = sizeOf(targetShape) === sizeOf(outputShape);
  const forms = many && !alike ? [asTheyAre, likePredictions] : [asTheyAre];
  const isLoss = what === 'loss';
  const measures = forms.map((form): Measure => {
    return (targets, predictions) =>
      meanOf(what, own(form(targets, predictions), predictions), predictions.shape[0]!, isLoss);
  });
  const trials = measures.map((measure) => COUNTS.map((n) => tryOut(what, measure, shapes, n)));
  let chosen = trials.findIndex((all) => all.every(({ problem, spread }) => !problem && !spread));
  if (chosen < 0) {
    // To compare all with all may be meant, as of ranks: then it does not matter which shape they have.
    const flat: Measure = (targets, predictions) =>
      measures[0]!(tf.reshape(targets, [-1]), tf.reshape(predictions, [-1]));
    for (const [i, all] of trials.entries()) {
      if (all.some(({ problem }) => problem)) continue;
      if (
        await agree(
          all,
          COUNTS.map((n) => tryOut(what, flat, shapes, n)),
        )
      )
        chosen = i;
    }
  }
  if (chosen < 0) {
    // A matrix in place of a number is what came of it.
    const spread = trials[0]!.find((trial) => trial.spread);
    throw spread ? spreadError(what, spread) : trials[0]!.find(({ problem }) => problem)!.problem;
  }
  const measure = measures[chosen]!;
  if (isLoss) await checkLoss(measure, shapes, trials[chosen]![1]!);
  for (const { value } of trials.flat()) value?.dispose();
  return measure;
}

interface TrialCall {
  readonly value: Tensor | null;
  readonly problem: DownpourError | null;
  /** Shapes of targets and predictions, as many numbers each, that were combined each with each. */
  readonly spread: readonly (readonly number[])[] | null;
}

function tryOut(what: string, measure: Measure, shapes: Shapes, count: number): TrialCall {
  let spread: TrialCall['spread'] = null;
  /** What each tensor is made of: 1, targets; 2, predictions; 3, both. */
  const origins = new Map<number, number>();
  const originOf = (tensors: readonly Tensor[]) =>
    tensors.reduce((origin, { id }) => origin | (origins.get(id) ?? 0), 0);
  const restore = watchKernels((inputs, outputs) => {
    const origin = originOf(inputs);
    for (const { id } of outputs) origins.set(id, origin);
    const [a, b] = inputs;
    const size = outputs[0]?.size ?? 0;
    if (origin !== 3 || inputs.length !== 2 || !a || !b) return;
    if (a.size !== b.size || a.rank === b.rank || size <= a.size || a.size < count) return;
    spread ??= [a.shape, b.shape];
  });
  let given: readonly (readonly number[])[] = [];
  try {
    const value = tf.tidy(() => {
      const { targets, predictions } = examples(shapes, count);
      given = [targets.shape, predictions.shape];
      origins.set(targets.id, 1).set(predictions.id, 2);
      return measure(targets, predictions);
    });
    return { value, problem: null, spread };
  } catch (cause) {
    const isOurs = (cause as Partial<DownpourError>).code === 'DP_EXPERIMENT_INVALID';
    const problem = isOurs
      ? (cause as DownpourError)
      : invalid(
          `${what} fails on targets of shape [${given[0]}] and predictions of shape [${given[1]}]: ${errorText(cause)}`,
          cause,
        );
    return { value: null, problem, spread };
  } finally {
    restore();
  }
}

/** Made up: no two numbers are equal, classes take turns, all predictions could be shares. */
function examples({ data, outputShape }: Shapes, count: number) {
  const numbers = (size: number, step: number) =>
    Float32Array.from({ length: size }, (_, i) => 0.05 + 0.9 * (((i + 1) * step) % 1));
  const { classCount, shares, targetShape, integers } = data;
  const shape = [count, ...targetShape];
  const classes = Int32Array.from({ length: sizeOf(shape) }, (_, i) => i % (classCount || 2));
  const labels = tf.tensor1d(classes.slice(0, sizeOf(shape) / (shares ? classCount : 1)), 'int32');
  const targets = shares
    ? tf.oneHot(labels, classCount)
    : integers || classCount > 0
      ? labels
      : tf.tensor1d(numbers(classes.length, GOLDEN), 'float32');
  const size = count * sizeOf(outputShape);
  return {
    targets: tf.cast(tf.reshape(targets, shape), integers ? 'int32' : 'float32'),
    predictions: tf.tensor(numbers(size, Math.SQRT2), [count, ...outputShape], 'float32'),
  };
}
const GOLDEN = (Math.sqrt(5) - 1) / 2;

type Watcher = (inputs: readonly Tensor[], outputs: readonly Tensor[]) => void;

/** Tells of each operation. @returns ends that. */
function watchKernels(watcher: Watcher): () => void {
  const engine = tf.engine() as unknown as {
    runKernel(name: string, inputs: Record<string, unknown>, attributes?: object): unknown;
  };
  const { runKernel } = engine;
  engine.runKernel = (name, inputs, attributes) => {
    const outputs = runKernel.call(engine, name, inputs, attributes);
    const tensors = (values: unknown) =>
      [values].flat().filter((value): value is Tensor => value instanceof tf.Tensor);
    watcher(tensors(Object.values(inputs)), tensors(outputs));
    return outputs;
  };
  return () => {
    engine.runKernel = runKernel;
  };
}

async function agree(trials: readonly TrialCall[], others: readonly TrialCall[]): Promise<boolean> {
  for (const [i, { value }] of trials.entries()) {
    const other = others[i]!.value;
    if (!value || !other) return false;
    const [a, b] = [(await value.data())[0]!, (await other.data())[0]!];
    other.dispose();
    if (!(Math.abs(a - b) <= 1e-5 * Math.max(1, Math.abs(a)))) return false;
  }
  return true;
}

function spreadError(what: string, { spread }: TrialCall): DownpourError {
  const [a, b] = spread ?? [];
  return invalid(
    `${what} broadcasts shape [${a}] with shape [${b}], so it compares targets with the predictions of other examples: give both the same shape, for example with targets.reshape(predictions.shape)`,
  );
}

/** A loss must have a gradient, and must not be the sum over the examples. */
async function checkLoss(measure: Measure, shapes: Shapes, whole: TrialCall): Promise<void> {
  const count = COUNTS[1];
  try {
    tf.tidy(() => {
      const { targets, predictions } = examples(shapes, count);
      // What is returned would outlive the tidy.
      tf.grad((p) => measure(targets, p))(predictions);
    });
  } catch (cause) {
    throw invalid(
      `loss has no gradient with respect to the predictions, so the model cannot learn from it: ${errorText(cause)}`,
      cause,
    );
  }
  const singles = tf.tidy(() => {
    const { targets, predictions } = examples(shapes, count);
    try {
      const rows = Array.from({ length: count }, (_, i) =>
        measure(tf.slice(targets, [i], [1]), tf.slice(predictions, [i], [1])),
      );
      return tf.stack(rows);
    } catch {
      // Not every loss can be had of one example.
      return null as unknown as Tensor;
    }
  });
  if (singles === null) return;
  const each = Array.from(await singles.data());
  singles.dispose();
  const of = (await whole.value!.data())[0]!;
  const sum = each.reduce((a, b) => a + b, 0);
  const near = (a: number, b: number) => Math.abs(a - b) <= 1e-4 * Math.abs(sum);
  if (near(of, sum) && !near(of, sum / count)) {
    throw invalid(
      `loss returns the sum over the examples: ${of} for ${count} examples, whose single losses are ${each.map((value) => Number(value.toPrecision(4))).join(', ')}; it must return their mean, or one number for each example`,
    );
  }
}

/**
 * One number of what a function gave: itself, or the mean of one for each example.
 * @throws DownpourError DP_EXPERIMENT_INVALID.
 */
function meanOf(what: string, given: unknown, count: number, isLoss: boolean): Tensor {
  const value = isLoss ? given : tensorOf(given);
  if (!(value instanceof tf.Tensor)) {
    throw invalid(`${what} returned ${described(given)}; ${allowed(count, isLoss)}`);
  }
  if (value.isDisposed) {
    throw invalid(`${what} returned a tensor that was disposed: do not dispose it, Downpour does`);
  }
  const { dtype, shape, size } = value;
  if (dtype === 'string' || dtype === 'complex64' || (isLoss && dtype !== 'float32')) {
    throw invalid(`${what} returned a tensor of ${dtype}; ${allowed(count, isLoss)}`);
  }
  const float = tf.cast(value, 'float32');
  if (size === 1) return tf.reshape(float, []);
  if (size === count && shape[0] === count) return tf.mean(float);
  throw invalid(
    `${what} returned shape [${shape}] for ${count} examples; ${allowed(count, isLoss)}`,
  );
}

const allowed = (count: number, isLoss: boolean) =>
  `allowed: ${isLoss ? 'a tensor of float32 with ' : ''}one number, the mean over the minibatch, or one number for each example (shape [${count}]), which Downpour averages`;

/** Numbers that JavaScript has computed are as good, where no gradient is needed. */
function tensorOf(given: unknown): unknown {
  if (typeof given === 'number') return tf.scalar(given);
  const isList = Array.isArray(given) || (ArrayBuffer.isView(given) && 'length' in given);
  if (!isList) return given;
  const list = Array.from(given as ArrayLike<unknown>);
  if (list.length === 0 || !list.every((value) => typeof value === 'number')) return given;
  return tf.tensor1d(Float32Array.from(list));
}

/** What a function gave, where a tensor was wanted. */
export function described(given: unknown): string {
  if (given === undefined) return 'undefined (is `return` missing?)';
  if (typeof (given as Partial<Promise<unknown>> | null)?.then === 'function') {
    return 'a promise (it must not be async; use no await and no tensor.data())';
  }
  if (typeof given === 'number') return `the number ${given}, which has no gradient`;
  if (Array.isArray(given)) return `an array of ${given.length}`;
  if (ArrayBuffer.isView(given)) return `a ${given.constructor.name}`;
  return describe(given);
}
