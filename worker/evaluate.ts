import { measuredOf } from '../shared/message-fields.ts';
import type { LeasePart } from '../shared/protocol.ts';
import { mix } from '../shared/random.ts';
import { rowSize, sizeOf } from './data/columns.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { collect } from './data/stored.ts';
import { dataShape, targetsOf } from './model/data-shape.ts';
import type { Model } from './model.ts';
import { nextTurn } from './turn.ts';

/** Means over the examples of a part, and metrics of the whole part; null: not finite. */
export interface EvaluationResult {
  readonly loss: number | null;
  readonly error: number | null;
  readonly examples: number;
  /** Null: not finite for some minibatch, or for the part. */
  readonly metrics: Readonly<Record<string, number | null>>;
}

/** Numbers of input and examples a batch may have; small enough for a CNN's activations. */
const BATCH_NUMBERS = 2 ** 19;
const BATCH_EXAMPLES = 512;
/**
 * Scores of classes that a batch may have. 512 windows of 50 words with 12,357 classes would be 1.3 GB for each operation of
 * a softmax; 16 of them are 40 MB.
 */
const BATCH_SCORES = 2 ** 23;

export interface EvaluateOptions {
  readonly signal?: AbortSignal;
  /**
   * So many training examples, evenly spaced, are measured as well, at the same parameters and with
   * training mode off: metrics `trainingLoss` and `trainingError`.
   */
  readonly alsoTraining?: number | undefined;
  /** Updates applied to the parameters. */
  readonly step?: number;
  /** Called while the model holds the parameters. */
  readonly meanwhile?: () => Promise<void>;
}

/**
 * Loss, error and metrics of some parameters on a whole part, training mode off. The model holds
 * afterwards what it held before.
 * @param parameters as `Model.load` takes them.
 * @throws the signal's reason.
 */
export async function evaluate(
  model: Model,
  parameters: Float32Array,
  prepared: PreparedData,
  part: LeasePart,
  { signal, alsoTraining = 0, step = 0, meanwhile }: EvaluateOptions = {},
): Promise<EvaluationResult> {
  const [before, beforeStep] = [model.loaded, model.loadedStep];
  model.load(parameters, step);
  try {
    const result = await measure(model, prepared, part, partCount(prepared, part), signal);
    await meanwhile?.();
    if (alsoTraining === 0) return result;
    const count = Math.min(alsoTraining, prepared.train.count);
    const { loss, error } = await measure(model, prepared, 'train', count, signal);
    const training = { trainingLoss: loss, trainingError: error };
    return { ...result, metrics: { ...result.metrics, ...training } };
  } finally {
    if (before) model.load(before, beforeStep);
  }
}

/** So that an experiment which draws random numbers in evaluations draws the same ones in each. */
const PART_SEEDS: Readonly<Record<LeasePart, number>> = {
  ...{ train: 1, validation: 2, test: 3, trainAndValidation: 4 },
};

/** Means over `examples` of a part's rows, evenly spaced. */
async function measure(
  model: Model,
  prepared: PreparedData,
  part: LeasePart,
  examples: number,
  signal: AbortSignal | undefined,
): Promise<EvaluationResult> {
  const all = partCount(prepared, part);
  const batchSize = batchSizeOf(prepared);
  const sums = { loss: 0, error: 0 };
  const metrics = new Map<string, number>();
  const each = model.partMetrics.map(({ width }) => new Float32Array(width * examples));
  let batch: Minibatch | undefined;
  const rowsFrom = (start: number) =>
    Int32Array.from({ length: Math.min(batchSize, examples - start) }, (_, i) =>
      Math.floor(((start + i) * all) / examples),
    );
  const isRead = prepared.train.stored !== undefined;
  let next: Minibatch | Promise<Minibatch> | null = null;
  for (let start = 0; start < examples; start += batchSize) {
    signal?.throwIfAborted();
    const count = Math.min(batchSize, examples - start);
    const given = next ?? collect(prepared, part, rowsFrom(start), { into: batch, signal });
    const after = start + batchSize;
    if (isRead) next = after < examples ? readOn(prepared, part, rowsFrom(after), signal) : null;
    batch = await given;
    const measured = await model.measure(batch, mix(PART_SEEDS[part], start));
    sums.loss += measured.loss * count;
    sums.error += measured.error * count;
    for (const [name, value] of Object.entries(measured.metrics)) {
      metrics.set(name, (metrics.get(name) ?? 0) + value * count);
    }
    measured.each.forEach((values, i) => {
      each[i]!.set(values, start * model.partMetrics[i]!.width);
    });
    // Lets the connection breathe: a part can take longer than the server's patience.
    await nextTurn();
  }
  const mean = (sum: number) => measuredOf(sum / examples);
  return {
    loss: mean(sums.loss),
    error: mean(sums.error),
    examples,
    metrics: Object.fromEntries([
      ...[...metrics].map(([name, sum]) => [name, mean(sum)]),
      ...model.partMetrics.map(({ name, over }, i) => [name, measuredOf(over(each[i]!))]),
    ]),
  };
}

/** While one piece is measured, the next one is read. */
function readOn(
  prepared: PreparedData,
  part: LeasePart,
  rows: Int32Array,
  signal: AbortSignal | undefined,
): Promise<Minibatch> {
  const reading = Promise.resolve(collect(prepared, part, rows, { signal }));
  // It is told when its turn comes; until then nobody may be there.
  reading.catch(() => {});
  return reading;
}

/** Examples that an evaluation puts through the model at once. */
export function batchSizeOf(prepared: PreparedData): number {
  const { inputs, fields = {} } = prepared.train;
  const all = [inputs, ...Object.values(fields)].reduce((sum, each) => sum + rowSize(each), 0);
  const size = Math.max(1, prepared.train.fields ? all : rowSize(inputs));
  const most = Math.min(BATCH_NUMBERS / size, BATCH_SCORES / scoresOf(prepared));
  return Math.min(BATCH_EXAMPLES, Math.max(16, Math.floor(most)));
}

/** Scores of classes that a model gives for one example; at least 1. */
function scoresOf(prepared: PreparedData): number {
  const data = dataShape(prepared);
  const targets = data.fields.length > 0 ? targetsOf(data) : [{ ...data, shape: data.targetShape }];
  const scores = targets.map(({ shape, classCount, shares }) =>
    shares ? sizeOf(shape) : sizeOf(shape) * classCount,
  );
  return Math.max(1, ...scores);
}

/** Examples of a part. */
export function partCount(prepared: PreparedData, part: LeasePart): number {
  const { train, validation, test } = prepared;
  if (part === 'trainAndValidation') return train.count + validation.count;
  return (part === 'train' ? train : part === 'validation' ? validation : test)?.count ?? 0;
}
