import type { RunConfig } from '../shared/config.ts';
import { type DownpourError, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import { nearest } from '../shared/spelling.ts';
import { sizeOf } from './data/columns.ts';
import type { Experiment, Measure } from './experiment.ts';
import { isRecord } from './fields.ts';
import {
  errorMeasureOf,
  type LossForm,
  lossesOf,
  misclassification,
  namedLoss,
  type OneLoss,
  SMOOTHED,
  smoothingOf,
} from './losses.ts';
import { minibatchMean } from './minibatch-value.ts';
import { type DataShape, invalid, targetLike, targetsOf } from './model/data-shape.ts';
import type { Instance } from './model/instance.ts';
import type { Tensors } from './model/tensors.ts';
import { type PartMetric, type PartMetricName, partMetric } from './part-metrics.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * The loss, error and metrics of predictions: one number for each minibatch. The user's functions are tried before
 * training, on made-up examples of the right shapes, and checked again at each minibatch. A function that returns
 * anything else is refused, and the message names it.
 */

export interface Measures {
  readonly loss: InnerMeasure;
  /** The loss with label smoothing. */
  readonly trainingLoss: InnerMeasure;
  readonly error: InnerMeasure;
  readonly metrics: readonly (readonly [name: string, measure: InnerMeasure])[];
  /** Metrics that need all examples of a part. */
  readonly ofParts: readonly InnerPartMetric[];
}

/** Like `Measure`; targets and predictions of several outputs are by name. */
export type InnerMeasure = (targets: Tensors, predictions: Tensors) => Tensor;

/** Like `PartMetric`. */
export interface InnerPartMetric extends Omit<PartMetric, 'each'> {
  readonly name: string;
  readonly each: InnerMeasure;
}

/** Weights of the classes of each target, as `classWeightsOf` gives them. */
type Weights = Readonly<Record<string, readonly number[]>>;

/**
 * @param outputShape of one example's predictions; of several outputs, by name.
 * @param weights training and evaluations have them alike, so that early stopping looks at what training lowers.
 * @throws DownpourError DP_EXPERIMENT_INVALID: a function fails, does not return a number, or compares targets with the
 *   predictions of other examples.
 */
export async function measuresOf(
  experiment: Experiment,
  config: Pick<RunConfig, 'hyperparameters'>,
  data: DataShape,
  outputShape: Instance['outputShape'],
  weights: Weights = {},
): Promise<Measures> {
  const smoothing = smoothingOf(experiment, config.hyperparameters);
  const { loss, error, metrics, lossWeights } = experiment;
  const targets = targetsOf(data);
  if (targets.length > 0) {
    return measuresOfOutputs(experiment, data, outputShape as Shapes2, { smoothing, weights });
  }
  if (isRecord(loss)) lossesOf(experiment, data);
  if (isRecord(error) || lossWeights) {
    throw invalid(
      `${lossWeights ? 'lossWeights' : 'error'} names outputs, but the targets of the data have no names`,
    );
  }
  const nested = Object.entries(metrics ?? {}).find(([, metric]) => isRecord(metric));
  if (nested) {
    throw invalid(
      `metrics has an object for '${nested[0]}', as for an output, but the targets of the data have no names`,
    );
  }
  const one = { loss: loss as OneLoss, error: error as OneError, metrics: metrics as OwnMetrics };
  const form = { smoothing, weights: weights.targets };
  return measuresOfOne(one, data, outputShape as readonly number[], form);
}

type OneError = Exclude<Experiment['error'], Readonly<Record<string, unknown>>>;
type OwnMetrics = Readonly<Record<string, Measure | PartMetricName>> | undefined;
type Shapes2 = Readonly<Record<string, readonly number[]>>;

interface OneOutput {
  readonly loss: OneLoss;
  readonly error: OneError;
  readonly metrics: OwnMetrics;
}

/** @param where goes before the names of functions in messages. */
async function measuresOfOne(
  { loss: given, error: wanted, metrics = {} }: OneOutput,
  data: DataShape,
  outputShape: readonly number[],
  { smoothing = 0, weights }: LossForm,
  where = '',
): Promise<Measures> {
  const shapes = { data, outputShape };
  const isOwn = typeof given === 'function';
  const loss = isOwn
    ? await ownMeasure(`${where}loss`, given, shapes)
    : namedLoss(given, data, { weights });
  const trainingLoss =
    isOwn || smoothing === 0 ? loss : namedLoss(given, data, { smoothing, weights });
  const error =
    typeof wanted === 'function'
      ? await ownMeasure(`${where}error`, wanted, shapes)
      : errorMeasureOf({ loss: given, ...(wanted ? { error: wanted } : {}) }) === 'loss'
        ? loss
        : misclassification(given, data, outputShape);
  const own: [string, Measure][] = [];
  const ofParts: (PartMetric & { name: string })[] = [];
  for (const [name, metric] of Object.entries(metrics)) {
    if (typeof metric === 'string') {
      ofParts.push({ name, ...partMetric(name, metric, data, outputShape, where) });
    } else own.push([name, await ownMeasure(`${where}metric '${name}'`, metric, shapes)]);
  }
  return { loss, trainingLoss, error, metrics: own, ofParts } as unknown as Measures;
}

/** The loss is the weighted sum of those of the outputs, which are metrics by their own. */
async function measuresOfOutputs(
  experiment: Experiment,
  data: DataShape,
  outputShapes: Shapes2,
  { smoothing, weights }: { readonly smoothing: number; readonly weights: Weights },
): Promise<Measures> {
  const { error, metrics = {}, lossWeights = {} } = experiment;
  const targets = targetsOf(data);
  const losses = lossesOf(experiment, data);
  const names = targets.map(({ name }) => name);
  const named = { metrics, lossWeights, ...(isRecord(error) ? { error } : {}) };
  for (const [field, value] of Object.entries(named)) {
    for (const name of Object.keys(value)) mustBeTarget(field, name, names);
  }
  const parts: { name: string; weight: number; own: Measures; counts: boolean }[] = [];
  const all: [string, InnerMeasure][] = [];
  const ofParts: InnerPartMetric[] = [];
  for (const target of targets) {
    const { name } = target;
    const loss = losses[name]!;
    const isClasses = (SMOOTHED as readonly unknown[]).includes(loss);
    const given = metrics[name];
    if (given !== undefined && !isRecord(given)) {
      throw invalid(
        `metrics has ${typeof given === 'string' ? `'${given}'` : 'a function'} for the output '${name}'; give an object: metrics: { ${name}: { ${typeof given === 'string' ? `${given}: '${given}'` : 'name: (targets, predictions) => …'} } }`,
      );
    }
    const asked = isRecord(error) ? (error as Record<string, OneError>)[name] : undefined;
    const one = { loss, error: asked, metrics: given as OwnMetrics };
    const own = await measuresOfOne(
      ...([one, targetLike(target), outputShapes[name]!] as const),
      ...([{ smoothing: isClasses ? smoothing : 0, weights: weights[name] }] as const),
      `output '${name}': `,
    );
    parts.push({ name, weight: lossWeights[name] ?? 1, own, counts: isClasses });
    const at = (measure: InnerMeasure): InnerMeasure => {
      return (all, predictions) => measure(sideOf(all, name), sideOf(predictions, name));
    };
    all.push([`${name}/loss`, at(own.loss)]);
    if (own.error !== own.loss) all.push([`${name}/error`, at(own.error)]);
    for (const [metric, measure] of own.metrics) all.push([`${name}/${metric}`, at(measure)]);
    for (const metric of own.ofParts) {
      ofParts.push({ ...metric, name: `${name}/${metric.name}`, each: at(metric.each) });
    }
  }
  const told = [...all.map(([name]) => name), ...ofParts.map(({ name }) => name)];
  const longest = told.reduce((a, b) => (b.length > a.length ? b : a));
  if (longest.length > 64 || told.length > METRICS_MAX) {
    throw invalid(
      `the outputs have ${told.length} metrics, of which the longest name is '${longest}'; at most ${METRICS_MAX} metrics with names of 64 characters are allowed: each output has its loss, its error and its own`,
    );
  }
  const sum = (of: 'loss' | 'trainingLoss'): InnerMeasure => {
    return (targets, predictions) =>
      parts
        .map(({ name, weight, own }) => {
          const value = own[of](sideOf(targets, name), sideOf(predictions, name));
          return weight === 1 ? value : tf.mul(value, weight);
        })
        .reduce((a, b) => tf.add(a, b));
  };
  const loss = sum('loss');
  const [chosen] = isRecord(error) ? Object.keys(error) : [];
  return {
    ...{ loss, trainingLoss: sum('trainingLoss'), metrics: all, ofParts },
    error:
      chosen === undefined
        ? loss
        : (targets, predictions) =>
            parts
              .find(({ name }) => name === chosen)!
              .own.error(sideOf(targets, chosen), sideOf(predictions, chosen)),
  };
}

/** Evaluations of the training part add two of their own. */
const METRICS_MAX = LIMITS.metricCountMax - 2;

const sideOf = (all: Tensors, name: string): Tensor => (all as Record<string, Tensor>)[name]!;

function mustBeTarget(field: string, name: string, targets: readonly string[]): void {
  if (targets.includes(name)) return;
  const near = nearest(name, targets);
  throw invalid(
    `${field} names '${name}', which is no target of the data; ${near ? `did you mean '${near}'?` : `targets: ${targets.join(', ')}`}`,
  );
}

interface Shapes {
  readonly data: DataShape;
  readonly outputShape: readonly number[];
}

/** How a function gets the targets. */
type TargetForm = (targets: Tensor, predictions: Tensor) => Tensor;

const asTheyAre: TargetForm = (targets) => targets;
const likePredictions: TargetForm = (targets, predictions) =>
  tf.reshape(targets, predictions.shape);

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
  const isLoss = /(^|: )loss$/.test(what);
  const measures = forms.map((form): Measure => {
    return (targets, predictions) =>
      minibatchMean(
        what,
        own(form(targets, predictions), predictions),
        predictions.shape[0]!,
        isLoss,
      );
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
