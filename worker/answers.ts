import type { Answers } from '../shared/answers.ts';
import { DownpourError } from '../shared/errors.ts';
import { answerKind } from '../shared/prediction.ts';
import { rowSize } from './data/columns.ts';
import type { Examples, Minibatch, PreparedData } from './data/examples.ts';
import { mustBePlain } from './data/fields.ts';
import { collect } from './data/stored.ts';
import { batchSizeOf, partCount } from './evaluate.ts';
import type { Experiment } from './experiment.ts';
import type { Model } from './model.ts';
import { nextTurn } from './turn.ts';

/**
 * Answers one by one, where an evaluation gives means: for the worst errors, calibration, ensembles.
 * The model holds the parameters asked about.
 */

export interface AnswersOptions {
  readonly part: 'train' | 'validation' | 'test';
  /** The most examples to answer, evenly spaced. */
  readonly examplesMax?: number;
  readonly signal?: AbortSignal;
}

/** @returns the answers and which examples of the part they are of. @throws the signal's reason. */
export async function answersOf(
  model: Model,
  experiment: Experiment,
  prepared: PreparedData,
  { part, examplesMax = Infinity, signal }: AnswersOptions,
): Promise<{ readonly answers: Answers; readonly rows: Int32Array }> {
  mustHaveAnswers(experiment, prepared.train);
  const all = partCount(prepared, part);
  const examples = Math.min(all, examplesMax);
  const rows = Int32Array.from({ length: examples }, (_, i) => Math.floor((i * all) / examples));
  const batchSize = batchSizeOf(prepared);
  const outputs: Float32Array[] = [];
  const targets: (Float32Array | Int32Array)[] = [];
  let width = 1;
  for (let start = 0; start < examples; start += batchSize) {
    signal?.throwIfAborted();
    const piece = rows.subarray(start, start + batchSize);
    const batch = await collect(prepared, part, piece, { signal });
    const { values, shape } = await model.predict(batch);
    outputs.push(values);
    targets.push(batch.targets);
    width = shape.length > 1 ? shape.at(-1)! : 1;
    await nextTurn();
  }
  const answers = assemble(experiment, prepared, examples, width, join(outputs), targets);
  if (typeof experiment.loss === 'function') {
    await measureLosses(model, prepared, part, rows, answers, signal);
  }
  return { answers, rows };
}

/** @throws DownpourError DP_USAGE: the experiment has an objective, or other data than one input and one target. */
export function mustHaveAnswers({ objective }: Experiment, train: Examples): void {
  if (objective) {
    throw new DownpourError(
      'DP_USAGE',
      'telling answers one by one needs a loss, but the experiment has an objective: report what matters as metrics of the objective',
    );
  }
  mustBePlain('telling answers one by one', train);
}

/** Its outputs are taken for logits where they may be. */
const OWN_LOSS = 'own';

function assemble(
  { loss }: Experiment,
  { classCount, train }: PreparedData,
  examples: number,
  lastWidth: number,
  outputs: Float32Array,
  targets: readonly (Float32Array | Int32Array)[],
): Answers {
  const answered = answerKind(typeof loss === 'string' ? loss : OWN_LOSS, classCount, lastWidth);
  const targetSize = rowSize(train.targets);
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
  const truths = labelsOf(targets, count, width);
  const losses = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const row = outputs.subarray(i * width, (i + 1) * width);
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (const logit of row) sum += Math.exp(logit - most);
    losses[i] = most + Math.log(sum) - row[truths[i]!]!;
  }
  return {
    ...{ kind: 'classes', count, width, outputs, truths, losses },
    perExample: count / examples,
  };
}

function distance(
  loss: Experiment['loss'],
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

function labelsOf(
  targets: readonly (Float32Array | Int32Array)[],
  count: number,
  classCount: number,
): Int32Array {
  const length = targets.reduce((sum, part) => sum + part.length, 0);
  const labels = new Int32Array(count);
  const isShares = length === count * classCount && classCount > 1;
  let at = 0;
  for (const part of targets) {
    if (!isShares) {
      labels.set(part, at);
      at += part.length;
      continue;
    }
    for (let i = 0; i < part.length; i += classCount) {
      const row = part.subarray(i, i + classCount);
      labels[at++] = row.indexOf(Math.max(...row));
    }
  }
  return labels;
}

/** A loss of the user's is known for a minibatch only: one example at a time, the first thousand. */
const MEASURED_MAX = 1000;

async function measureLosses(
  model: Model,
  prepared: PreparedData,
  part: AnswersOptions['part'],
  rows: Int32Array,
  { losses, perExample }: Answers,
  signal: AbortSignal | undefined,
): Promise<void> {
  losses.fill(Number.NaN);
  let batch: Minibatch | undefined;
  for (let i = 0; i < Math.min(rows.length, MEASURED_MAX); i++) {
    signal?.throwIfAborted();
    batch = await collect(prepared, part, [rows[i]!], { into: batch, signal });
    const { loss } = await model.measure(batch);
    losses.fill(loss, i * perExample, (i + 1) * perExample);
  }
}

function join(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
