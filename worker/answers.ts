import type { Answers } from '../shared/answers.ts';
import { concatFloats } from '../shared/codec.ts';
import { errorCode } from '../shared/errors.ts';
import { answerKind } from '../shared/prediction.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { collect } from './data/stored.ts';
import { batchSizeOf, partCount } from './evaluate.ts';
import type { Experiment } from './experiment.ts';
import type { OneLoss } from './losses.ts';
import type { Model, NamedOutput } from './model.ts';
import { type ExperimentOutput, outputNamed, outputsOf } from './outputs.ts';
import { nextTurn } from './turn.ts';

/**
 * Answers one by one, where an evaluation gives means: for the worst errors, calibration, ensembles.
 * The model holds the parameters asked about.
 */

export interface AnswersOptions {
  readonly part: 'train' | 'validation' | 'test';
  /** The most examples to answer, evenly spaced. */
  readonly examplesMax?: number;
  readonly signal?: AbortSignal | undefined;
}

export interface OutputAnswers {
  readonly output: ExperimentOutput;
  readonly answers: Answers;
}

/** Answers of one output. @param name of the output; absent: there is one. @returns which examples of the part they are of, too. */
export async function answersOf(
  model: Model,
  experiment: Experiment,
  prepared: PreparedData,
  { output: name, ...options }: AnswersOptions & { readonly output?: string | undefined },
): Promise<OutputAnswers & { readonly rows: Int32Array }> {
  const output = outputNamed(outputsOf(experiment, prepared), name);
  const { each, rows } = await answersOfEach(model, experiment, prepared, options, [output]);
  return { ...each[0]!, rows };
}

/**
 * @param outputs default: all.
 * @returns the answers of each output, and which examples of the part they are of.
 * @throws the signal's reason; what `outputsOf` throws.
 */
export async function answersOfEach(
  model: Model,
  experiment: Experiment,
  prepared: PreparedData,
  { part, examplesMax = Infinity, signal }: AnswersOptions,
  outputs: readonly ExperimentOutput[] = outputsOf(experiment, prepared),
): Promise<{ readonly each: readonly OutputAnswers[]; readonly rows: Int32Array }> {
  const rows = spread(partCount(prepared, part), examplesMax);
  const batchSize = batchSizeOf(prepared);
  const told = outputs.map((): ToldRows => ({ outputs: [], targets: [], width: 1 }));
  for (let start = 0; start < rows.length; start += batchSize) {
    signal?.throwIfAborted();
    const piece = rows.subarray(start, start + batchSize);
    const batch = await collect(prepared, part, piece, { signal });
    const predicted = await model.outputs(batch);
    for (const [i, { name }] of outputs.entries()) {
      const { values, shape } = predicted.find((output) => output.name === name)!;
      told[i]!.outputs.push(values);
      told[i]!.targets.push(name === '' ? batch.targets : batch.fields![name]!.values);
      told[i]!.width = shape.length > 1 ? shape.at(-1)! : 1;
    }
    await nextTurn();
  }
  const each = outputs.map((output, i) => ({
    output,
    answers: assemble(output, rows.length, told[i]!),
  }));
  if (each.some(({ output }) => typeof output.loss === 'function')) {
    await measureLosses(model, prepared, part, rows, each, signal);
  }
  return { each, rows };
}

/** Indices of a part, evenly spaced. */
function spread(all: number, examplesMax: number): Int32Array {
  const count = Math.min(all, examplesMax);
  return Int32Array.from({ length: count }, (_, i) => Math.floor((i * all) / count));
}

/** What one output has told of all examples, minibatch after minibatch. */
interface ToldRows {
  readonly outputs: Float32Array[];
  readonly targets: (Float32Array | Int32Array)[];
  /** Size of the last axis. */
  width: number;
}

/** A loss by name, or one of the user's, whose outputs are taken for logits where they may be. */
const OWN_LOSS = 'own';

/** What the numbers of an output mean. @param width of their last axis. */
const kindOfAnswers = (
  { loss, classCount }: Pick<ExperimentOutput, 'loss' | 'classCount'>,
  width: number,
) => answerKind(typeof loss === 'string' ? loss : OWN_LOSS, classCount, width);

function assemble(output: ExperimentOutput, examples: number, told: ToldRows): Answers {
  const { loss, classCount, targetSize } = output;
  const { targets } = told;
  const outputs = concatFloats(told.outputs);
  const answered = kindOfAnswers(output, told.width);
  if (answered !== 'classes') {
    const isBinary = answered === 'binary';
    const width = isBinary ? 1 : outputs.length / examples;
    const count = outputs.length / width;
    const values = Float32Array.from(targets.flatMap((part) => [...part]));
    const truths = isBinary ? Int32Array.from(values, (value) => (value > 0.5 ? 1 : 0)) : values;
    const losses = new Float64Array(count);
    const size = targetSize === width ? width : 1;
    for (let i = 0; i < count; i++) {
      losses[i] = isBinary
        ? Math.log1p(Math.exp(-Math.abs(outputs[i]!))) +
          Math.max(outputs[i]!, 0) -
          outputs[i]! * values[i]!
        : distance(loss, outputs.subarray(i * width, (i + 1) * width), values, i * size);
    }
    const kind = isBinary ? 'binary' : 'numbers';
    return { kind, count, width, outputs, truths, losses, perExample: count / examples };
  }
  const width = classCount!;
  const count = outputs.length / width;
  const shares = sharesOf(targets, count, width);
  const truths = shares ? likeliest(shares, width) : labelsOf(targets, count);
  const losses = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const row = outputs.subarray(i * width, (i + 1) * width);
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (const logit of row) sum += Math.exp(logit - most);
    const whole = most + Math.log(sum);
    if (shares) {
      for (let c = 0; c < width; c++) losses[i]! += shares[i * width + c]! * (whole - row[c]!);
    } else losses[i] = whole - row[truths[i]!]!;
  }
  return {
    ...{ kind: 'classes', count, width, outputs, truths, losses },
    perExample: count / examples,
  };
}

function distance(
  loss: OneLoss,
  predicted: Float32Array,
  values: Float32Array,
  start: number,
): number {
  let sum = 0;
  predicted.forEach((value, j) => {
    const d = value - values[start + j]!;
    sum += loss === 'meanAbsoluteError' ? Math.abs(d) : d * d;
  });
  return sum / predicted.length;
}

/** Probabilities of the classes, shape [count, classCount]; null: targets are numbers of classes. */
function sharesOf(
  targets: ToldRows['targets'],
  count: number,
  classCount: number,
): Float32Array | null {
  const length = targets.reduce((sum, part) => sum + part.length, 0);
  if (length !== count * classCount) return null;
  return concatFloats(targets.map((part) => Float32Array.from(part)));
}

function labelsOf(targets: ToldRows['targets'], count: number): Int32Array {
  const labels = new Int32Array(count);
  let at = 0;
  for (const part of targets) {
    labels.set(part, at);
    at += part.length;
  }
  return labels;
}

/** The most probable class of each row. */
function likeliest(shares: Float32Array, classCount: number): Int32Array {
  return Int32Array.from({ length: shares.length / classCount }, (_, i) => {
    const row = shares.subarray(i * classCount, (i + 1) * classCount);
    return row.indexOf(Math.max(...row));
  });
}

/** A loss of the user's is known for a minibatch only: one example at a time, the first thousand. */
const MEASURED_MAX = 1000;

async function measureLosses(
  model: Model,
  prepared: PreparedData,
  part: AnswersOptions['part'],
  rows: Int32Array,
  each: readonly OutputAnswers[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const own = each.filter(({ output }) => typeof output.loss === 'function');
  for (const { answers } of own) answers.losses.fill(Number.NaN);
  let batch: Minibatch | undefined;
  for (let i = 0; i < Math.min(rows.length, MEASURED_MAX); i++) {
    signal?.throwIfAborted();
    batch = await collect(prepared, part, [rows[i]!], { into: batch, signal });
    const { loss, metrics } = await model.measure(batch);
    for (const { output, answers } of own) {
      const { losses, perExample } = answers;
      const value = output.name === '' ? loss : metrics[`${output.name}/loss`]!;
      losses.fill(value, i * perExample, (i + 1) * perExample);
    }
  }
}

/** What an objective gives for one example. */
export interface MeasuredExample {
  /** Index in the part. */
  readonly row: number;
  readonly loss: number;
  readonly error: number;
  /** What the model gives; null: there are several models, or several outputs. */
  readonly output: Float32Array | null;
}

/**
 * Loss and error of an objective, one example at a time: it has them for a minibatch only.
 * @returns at most a thousand, evenly spaced. @throws what the objective throws; the signal's reason.
 */
export async function measuredExamples(
  model: Model,
  prepared: PreparedData,
  { part, examplesMax = MEASURED_MAX, signal }: AnswersOptions,
): Promise<readonly MeasuredExample[]> {
  const rows = spread(partCount(prepared, part), Math.min(MEASURED_MAX, examplesMax));
  const measured: MeasuredExample[] = [];
  let predicts = model.predicts;
  for (const row of rows) {
    signal?.throwIfAborted();
    const batch = await collect(prepared, part, [row], { signal });
    const { loss, error } = await model.measure(batch);
    // An objective may give its model other inputs than the data have: then there is no output to show.
    const outputs = predicts ? await model.outputs(batch).catch(onlyInvalid) : [];
    predicts &&= outputs.length > 0;
    const output = outputs.length === 1 ? outputs[0]!.values : null;
    measured.push({ row, loss, error, output });
  }
  return measured;
}

function onlyInvalid(error: unknown): readonly NamedOutput[] {
  if (errorCode(error) === 'DP_EXPERIMENT_INVALID') return [];
  throw error;
}
