import { type Digest, digest } from '../../shared/digest.ts';
import { DownpourError } from '../../shared/errors.ts';
import { permutation, random, STREAMS } from '../../shared/random.ts';
import {
  type Column,
  columnOf,
  type GivenColumn,
  isFloat,
  kindOf,
  rowSize,
  sizeOf,
  takeRows,
} from './columns.ts';
import { lookUpInto } from './lookup.ts';

/**
 * Examples in plain typed arrays: the seeded split, standardisation by the training part alone
 * (Deep Learning §12.2.1), and gathering minibatches. Nothing here knows of tensors or files.
 */

/** Inputs and targets that belong together, row by row. Bytes stay bytes until they are gathered. */
export interface Examples {
  readonly count: number;
  readonly inputs: Column;
  readonly targets: Column;
}

/** What an experiment's `data` returns. Without `validation`, it is split from `train` by the run's seed. */
export interface ExperimentData {
  readonly train: Examples;
  readonly validation?: Examples;
  readonly test?: Examples;
  /** Number of classes, where targets are classes: labels 0 … classCount − 1, or one column a class. */
  readonly classCount?: number;
  /** The name of class 0, 1, …; also the targets of a part may have them. */
  readonly classes?: readonly string[] | null;
  /** One line: what was used and how many examples. */
  readonly source: string;
}

/** Examples as an experiment may give them. */
export interface GivenExamples {
  readonly count: number;
  readonly inputs: GivenColumn;
  readonly targets: GivenColumn;
}

/** What an experiment's `data` may return: as `ExperimentData`, with numbers of any type. */
export interface GivenData extends Omit<ExperimentData, 'train' | 'validation' | 'test'> {
  readonly train: GivenExamples;
  readonly validation?: GivenExamples;
  readonly test?: GivenExamples;
}

/**
 * What an experiment's data mean.
 * @throws DownpourError DP_EXPERIMENT_INVALID, DP_DATA_CORRUPT
 */
export function dataOf(given: GivenData): ExperimentData {
  const { train, validation, test, ...rest } = given;
  return {
    ...rest,
    train: examplesOf('train', train),
    ...(validation ? { validation: examplesOf('validation', validation) } : {}),
    ...(test ? { test: examplesOf('test', test) } : {}),
  };
}

function examplesOf(part: string, { count, inputs, targets }: GivenExamples): Examples {
  return {
    count,
    inputs: columnOf(inputs, `inputs of the ${part} part`),
    targets: columnOf(targets, `targets of the ${part} part`),
  };
}

/**
 * What is done to every input x: (x · scale − mean) / deviation. Plain numbers, so that an exported
 * model can carry it as JSON.
 */
export interface InputTransform {
  readonly kind: 'none' | 'global' | 'feature';
  /** 1/255 for bytes, else 1. */
  readonly scale: number;
  /** Of x · scale in the training part. Length: none 0, global 1, feature one a feature of an example. */
  readonly mean: readonly number[];
  /** As `mean`; 1 where a feature never varies. */
  readonly deviation: readonly number[];
}

/** The parts after the split and the preprocessing; index space of leases: [0, train.count) training, then validation. */
export interface PreparedData {
  /** Raw values; `gather` applies `transform`. */
  readonly train: Examples;
  readonly validation: Examples;
  readonly test: Examples | null;
  /** 16 hex digits that differ between workers whose data, split or transform differ. */
  readonly fingerprint: string;
  /** The same of the data as they were given, before split and transform. */
  readonly rawFingerprint: string;
  readonly source: string;
  readonly classCount: number | null;
  /** The name of class 0, 1, …, where the data have them. */
  readonly classes: readonly string[] | null;
  /** One for each number of an example's input. */
  readonly inputNames: readonly string[] | null;
  /** One for each number of an example's target. */
  readonly targetNames: readonly string[] | null;
  readonly transform: InputTransform;
}

export interface PrepareOptions {
  readonly seed: number;
  /** Of the split, where it is not `seed`. */
  readonly splitSeed?: number | null;
  /** Share of the training examples set apart when the data has no validation part, in [0, 1). */
  readonly validationFraction: number;
  /** k-fold: fold `fold` of `folds` validates, instead of a fraction. */
  readonly validation?: {
    readonly folds: number | null;
    readonly fold: number;
    readonly stratified: boolean;
    /** A fold that takes no part. */
    readonly apart?: number | null;
  };
  /** Share of the training part that is kept, in (0, 1]; smaller ones lie within larger ones. */
  readonly trainFraction?: number;
  /** As many examples as are kept, drawn from them by `seed` with replacement (Deep Learning §7.11). */
  readonly bootstrap?: boolean;
  readonly standardise: 'none' | 'global' | 'feature';
}

/** Rows of a part, ready for a tensor. `inputShape` and `targetShape` are of one example. */
export interface Minibatch {
  /** Shape [n, ...inputShape], transformed. */
  readonly inputs: Float32Array;
  readonly inputShape: readonly number[];
  /** Shape [n, ...targetShape]; Int32Array when the column holds bytes or integers. */
  readonly targets: Float32Array | Int32Array;
  readonly targetShape: readonly number[];
}

export type Part = 'train' | 'validation' | 'test' | 'trainAndValidation';

/**
 * Splits, checks and measures what an experiment's `data` returned. The validation part is chosen by
 * integer arithmetic from the seed, so every worker has the same one; rows keep their order.
 * @throws DownpourError DP_EXPERIMENT_INVALID when parts don't fit together, DP_DATA_CORRUPT for a
 * value that is not finite, DP_DATA_LABEL for a label outside of the classes.
 */
export function prepareData(data: ExperimentData, options: PrepareOptions): PreparedData {
  const given = { train: data.train, validation: data.validation, test: data.test };
  for (const [part, examples] of Object.entries(given)) {
    if (examples === undefined) continue;
    checkExamples(part, examples, data.train);
    checkFinite(`inputs of the ${part} part`, examples.inputs);
    if (data.classCount !== undefined) {
      checkLabels(examples.targets, data.classCount, `${part} part`);
    } else {
      checkFinite(`targets of the ${part} part`, examples.targets);
    }
  }
  const { train, validation } = split(data, options);
  const transform = fitTransform(train.inputs, options.standardise);
  const test = data.test ?? null;
  return {
    train,
    validation,
    test,
    fingerprint: fingerprint({ train, validation, test }, transform),
    rawFingerprint: fingerprint({ ...data, validation: data.validation ?? null, test }, null),
    source: data.source,
    classCount: data.classCount ?? null,
    classes: data.classes ?? data.train.targets.classes ?? null,
    inputNames: data.train.inputs.names ?? null,
    targetNames: data.train.targets.names ?? null,
    transform,
  };
}

/**
 * Copies rows out of a part, transformed. In `trainAndValidation` (the refit of Algorithms 7.2 and
 * 7.3) an index ≥ train.count addresses validation.
 * @param into an earlier result for as many rows, overwritten and returned: nothing is allocated. With
 * more room than needed, views of it are returned; with too little, new arrays. Since an upload may
 * share the array with its tensor, alternate between two.
 * @throws DownpourError DP_DATA_MISMATCH for an index that the part lacks.
 */
export function gather(
  prepared: PreparedData,
  part: Part,
  indices: Int32Array | readonly number[],
  into?: Minibatch,
): Minibatch {
  const first = part === 'trainAndValidation' ? prepared.train : prepared[part];
  const second = part === 'trainAndValidation' ? prepared.validation : null;
  if (first === null) {
    throw new DownpourError('DP_DATA_MISMATCH', 'this data has no test part to take rows from');
  }
  const firstCount = first.count;
  const count = firstCount + (second?.count ?? 0);
  const n = indices.length;
  const inputSize = rowSize(first.inputs);
  const targetSize = rowSize(first.targets);
  const batch = room(first, n, into);
  const scaler = scalerOf(prepared.transform);
  const lookup = scaler.table === null ? null : lookUpInto(batch.inputs, scaler.table);
  for (let i = 0; i < n; i++) {
    const index = indices[i]!;
    if (!(index >= 0 && index < count && Number.isInteger(index))) {
      throw new DownpourError(
        'DP_DATA_MISMATCH',
        `example ${index} was asked of the ${part} part, which has ${count}: this worker's data differs from the run's`,
      );
    }
    const from = index < firstCount ? first : second!;
    const row = index < firstCount ? index : index - firstCount;
    const { values } = from.inputs;
    if (lookup && values instanceof Uint8Array) {
      lookup.add(values, row * inputSize, inputSize, i * inputSize);
    } else {
      copyScaled(scaler, values, row * inputSize, batch.inputs, i * inputSize, inputSize);
    }
    copy(from.targets.values, row * targetSize, batch.targets, i * targetSize, targetSize);
  }
  lookup?.flush();
  return batch;
}

/**
 * Checks class labels: whole numbers 0 … classCount − 1, shape [n] (or [n, …]), or, as floats of shape
 * [n, classCount], shares of each class that add up to 1.
 * @param where named in the message, e.g. a file or a part
 * @throws DownpourError DP_DATA_LABEL with the row (0-based), the value and what is allowed.
 */
export function checkLabels(column: Column, classCount: number, where = 'data'): void {
  const { values, shape } = column;
  const size = rowSize(column);
  if (isFloat(values) && shape.length > 1 && shape.at(-1) === classCount) {
    for (let i = 0; i < values.length; i += classCount) {
      let sum = 0;
      for (let c = 0; c < classCount; c++) {
        const share = values[i + c]!;
        if (!(share >= 0 && share <= 1)) {
          throw labelError(where, Math.floor(i / size), `share ${share}`, '0 … 1');
        }
        sum += share;
      }
      if (!(Math.abs(sum - 1) <= 1e-3)) {
        throw labelError(where, Math.floor(i / size), `shares with the sum ${sum}`, 'a sum of 1');
      }
    }
    return;
  }
  for (let i = 0; i < values.length; i++) {
    const label = values[i]!;
    if (!(label >= 0 && label < classCount && Number.isInteger(label))) {
      const allowed = `whole numbers 0 … ${classCount - 1} (${classCount} classes)`;
      throw labelError(where, Math.floor(i / size), `label ${label}`, allowed);
    }
  }
}

function labelError(where: string, row: number, seen: string, allowed: string): DownpourError {
  return new DownpourError(
    'DP_DATA_LABEL',
    `${where}, row ${row}: ${seen}; allowed: ${allowed}. Correct the data or the experiment's classCount`,
  );
}

/** Copies whole examples. */
export function takeExamples(examples: Examples, rows: Int32Array | readonly number[]): Examples {
  return {
    count: rows.length,
    inputs: takeRows(examples.inputs, rows),
    targets: takeRows(examples.targets, rows),
  };
}

function checkExamples(part: string, examples: Examples, train: Examples): void {
  const invalid = (what: string) =>
    new DownpourError('DP_EXPERIMENT_INVALID', `the ${part} part of the experiment's data ${what}`);
  if (!(Number.isInteger(examples.count) && examples.count >= 1)) {
    throw invalid(`has ${examples.count} examples; it needs at least 1`);
  }
  for (const name of ['inputs', 'targets'] as const) {
    const { values, shape } = examples[name];
    if (shape[0] !== examples.count || sizeOf(shape, 0) !== values.length) {
      throw invalid(
        `has ${examples.count} examples, but ${name} of shape [${shape}] with ${values.length} numbers`,
      );
    }
    const like = train[name];
    const sameShape = String(shape.slice(1)) === String(like.shape.slice(1));
    if (!sameShape || kindOf(values) !== kindOf(like.values)) {
      throw invalid(
        `has ${name} of shape [${shape}] of ${kindOf(values)}, the train part of shape [${like.shape}] of ${kindOf(like.values)}`,
      );
    }
  }
}

function checkFinite(where: string, column: Column): void {
  const { values } = column;
  if (!isFloat(values)) return;
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i]!)) continue;
    const row = Math.floor(i / rowSize(column));
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `${where}, row ${row}: the value ${values[i]} is not a finite number; remove the row or fill it in`,
    );
  }
}

/** Training and validation part. Rows of each keep the order of the data. */
function split(
  data: ExperimentData,
  options: PrepareOptions,
): { train: Examples; validation: Examples } {
  const { seed, validationFraction, validation, trainFraction = 1, bootstrap = false } = options;
  const folds = validation?.folds ?? null;
  const examples = data.train;
  const n = examples.count;
  if (!(validationFraction >= 0 && validationFraction < 1)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `validationFraction is ${validationFraction}; allowed: 0 up to below 1`,
    );
  }
  if (folds !== null && data.validation) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      "validation.folds is set, but the experiment's data has a validation part of its own, which no fold would use: return its examples as training examples, or set no folds",
    );
  }
  const given = data.validation !== undefined;
  if (!given && (folds !== null || validationFraction > 0) && n < Math.max(2, folds ?? 2)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${n} training example${n === 1 ? '' : 's'} cannot be split into ${folds ?? 2} parts; give more, or a validation part`,
    );
  }
  const order = permutation(options.splitSeed ?? seed, STREAMS.split, n);
  let validates = order.subarray(0, 0);
  let trains = order;
  if (folds !== null && validation) {
    const { fold, apart, stratified } = validation;
    const dealt = stratified ? byClass(order, data) : order;
    validates = dealt.filter((_, position) => position % folds === fold);
    const isOut = new Set([
      ...validates,
      ...dealt.filter((_, position) => position % folds === apart),
    ]);
    trains = order.filter((row) => !isOut.has(row));
  } else if (!given && validationFraction > 0) {
    const count = Math.min(n - 1, Math.max(1, Math.round(n * validationFraction)));
    validates = order.subarray(0, count);
    trains = order.subarray(count);
  }
  const kept = Math.max(1, Math.round(trains.length * trainFraction));
  // Sorted, since rows near each other in the data are then near each other in memory.
  const take = (rows: Int32Array) => takeExamples(examples, rows.slice().sort());
  let rows = trains.subarray(0, kept);
  if (bootstrap) {
    const draw = random(seed, STREAMS.bootstrap);
    rows = rows.map((_, __, all) => all[draw.below(kept)]!);
  }
  return {
    train: kept === n && !bootstrap ? examples : take(rows),
    validation: data.validation ?? take(validates),
  };
}

/**
 * Rows in an order where each class stands together: dealt out to the folds one by one, each fold
 * gets as many of a class as any other, to one example.
 * @throws DownpourError DP_CONFIG_INVALID when the targets are no classes.
 */
function byClass(order: Int32Array, { train, classCount }: ExperimentData): Int32Array {
  const { values, shape } = train.targets;
  const size = rowSize(train.targets);
  const isShares = isFloat(values) && shape.length > 1 && size === classCount;
  if (classCount === undefined || (size !== 1 && !isShares)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      "validation.stratified needs one class an example: the experiment's data has no classCount, or more than one target an example; leave stratified out",
    );
  }
  const classOf = (row: number): number => {
    const target = values.subarray(row * size, (row + 1) * size);
    return isShares ? target.indexOf(Math.max(...target)) : target[0]!;
  };
  const classes = Float64Array.from({ length: train.count }, (_, row) => classOf(row));
  // A stable sort: within a class the seed's order stays.
  return Int32Array.from(Array.from(order).sort((a, b) => classes[a]! - classes[b]!));
}

function fitTransform(inputs: Column, kind: InputTransform['kind']): InputTransform {
  const scale = inputs.values instanceof Uint8Array ? 1 / 255 : 1;
  if (kind === 'none') return { kind, scale, mean: [], deviation: [] };
  const moments = momentsOf(inputs.values, kind === 'global' ? 1 : rowSize(inputs));
  return {
    kind,
    scale,
    mean: moments.mean.map((mean) => mean * scale),
    deviation: moments.deviation.map((deviation) => (deviation === 0 ? 1 : deviation * scale)),
  };
}

/**
 * Mean and standard deviation (of the population) of each of `size` interleaved features, in two
 * passes of float64. A feature that never varies has deviation 0 exactly.
 */
export function momentsOf(
  values: ArrayLike<number>,
  size: number,
): { mean: number[]; deviation: number[] } {
  const rows = values.length / size;
  const mean = new Float64Array(size);
  const squares = new Float64Array(size);
  for (let i = 0, f = 0; i < values.length; i++) {
    mean[f]! += values[i]!;
    if (++f === size) f = 0;
  }
  for (let f = 0; f < size; f++) mean[f]! /= rows;
  // The rounding of the mean would leave a constant feature a tiny deviation to divide by.
  const varies = new Uint8Array(size);
  for (let i = 0, f = 0; i < values.length; i++) {
    const value = values[i]!;
    const d = value - mean[f]!;
    squares[f]! += d * d;
    if (value !== values[f]) varies[f] = 1;
    if (++f === size) f = 0;
  }
  const deviation = Array.from(squares, (sum, f) => (varies[f] ? Math.sqrt(sum / rows) : 0));
  return { mean: Array.from(mean), deviation };
}

/** A transform made ready for speed. */
interface Scaler {
  readonly identity: boolean;
  /** For bytes under one mean: all 256 results. */
  readonly table: Float32Array | null;
  readonly scale: number;
  readonly mean: Float64Array;
  readonly inverse: Float64Array;
}

const scalers = new WeakMap<InputTransform, Scaler>();

function scalerOf(transform: InputTransform): Scaler {
  let scaler = scalers.get(transform);
  if (scaler === undefined) {
    const { kind, scale } = transform;
    const mean = Float64Array.from(kind === 'none' ? [0] : transform.mean);
    const inverse = Float64Array.from(kind === 'none' ? [1] : transform.deviation, (d) => 1 / d);
    const table =
      kind === 'feature'
        ? null
        : Float32Array.from({ length: 256 }, (_, byte) => (byte * scale - mean[0]!) * inverse[0]!);
    scaler = { identity: kind === 'none' && scale === 1, table, scale, mean, inverse };
    scalers.set(transform, scaler);
  }
  return scaler;
}

function copyScaled(
  { identity, scale, mean, inverse }: Scaler,
  source: Column['values'],
  start: number,
  target: Float32Array,
  at: number,
  size: number,
): void {
  if (identity) {
    copy(source, start, target, at, size);
  } else if (mean.length === 1) {
    const m = mean[0]!;
    const factor = inverse[0]!;
    for (let j = 0; j < size; j++) target[at + j] = (source[start + j]! * scale - m) * factor;
  } else {
    for (let j = 0; j < size; j++) {
      target[at + j] = (source[start + j]! * scale - mean[j]!) * inverse[j]!;
    }
  }
}

function copy(
  source: Column['values'],
  start: number,
  target: Float32Array | Int32Array,
  at: number,
  size: number,
): void {
  for (let j = 0; j < size; j++) target[at + j] = source[start + j]!;
}

function room(like: Examples, n: number, into: Minibatch | undefined): Minibatch {
  const inputLength = n * rowSize(like.inputs);
  const targetLength = n * rowSize(like.targets);
  const Targets = isFloat(like.targets.values) ? Float32Array : Int32Array;
  const fits = into?.targets instanceof Targets;
  if (fits && into.inputs.length === inputLength && into.targets.length === targetLength) {
    return into;
  }
  const enough = fits && into.inputs.length >= inputLength && into.targets.length >= targetLength;
  return {
    inputs: enough ? into.inputs.subarray(0, inputLength) : new Float32Array(inputLength),
    inputShape: like.inputs.shape.slice(1),
    targets: enough ? into.targets.subarray(0, targetLength) : new Targets(targetLength),
    targetShape: like.targets.shape.slice(1),
  };
}

/** Sampled rows are enough to tell data sets apart; these bound what is read of large ones. */
const FINGERPRINT_ROWS = 1000;
const FINGERPRINT_INPUT_BYTES = 4 * 2 ** 20;
const FINGERPRINT_TARGET_BYTES = 16 * 2 ** 20;

function fingerprint(
  parts: Record<'train' | 'validation' | 'test', Examples | null>,
  transform: InputTransform | null,
): string {
  const sum = digest();
  const text = (value: unknown) => sum.update(new TextEncoder().encode(JSON.stringify(value)));
  text(transform && [transform.kind, transform.scale]);
  for (const part of [parts.train, parts.validation, parts.test]) {
    if (part === null) {
      text(null);
      continue;
    }
    for (const column of [part.inputs, part.targets]) {
      text([kindOf(column.values), ...column.shape]);
    }
    sampleRows(sum, part.inputs, FINGERPRINT_ROWS, FINGERPRINT_INPUT_BYTES);
    sampleRows(sum, part.targets, Number.POSITIVE_INFINITY, FINGERPRINT_TARGET_BYTES);
  }
  return sum.hex();
}

/** Takes in evenly spaced rows, the first and the last among them. */
function sampleRows(sum: Digest, { values, shape }: Column, rowsMax: number, bytesMax: number) {
  const count = shape[0]!;
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const rowBytes = count === 0 ? 0 : bytes.length / count;
  const rows = Math.min(count, rowsMax, Math.max(16, Math.floor(bytesMax / rowBytes)));
  for (let i = 0; i < rows; i++) {
    const row = rows === 1 ? 0 : Math.floor((i * (count - 1)) / (rows - 1));
    sum.update(bytes.subarray(row * rowBytes, (row + 1) * rowBytes));
  }
}
