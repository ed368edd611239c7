import type { Transform } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { type Column, columnName, rowSize } from './columns.ts';

/** What is done to inputs before a model sees them: measured on the training part, applied to all. */

export type InputTransform = Transform;

/** MeasuredInputs the transform on the inputs of the training part. */
export function fitTransform(inputs: Column, kind: InputTransform['kind']): InputTransform {
  const size = measuredSize(inputs, kind);
  return size === 0
    ? transformOf(inputs, kind, { mean: [], deviation: [] })
    : transformOf(inputs, kind, meanAndDeviation(inputs.values, size));
}

/**
 * Numbers that have a mean and a deviation of their own.
 * @returns 0: nothing is to be measured.
 * @throws DownpourError DP_EXPERIMENT_INVALID: missing numbers have nothing that replaces them.
 */
export function measuredSize(inputs: Column, kind: InputTransform['kind']): number {
  if (inputs.missing === 'mean' && kind !== 'feature') {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the inputs have missing numbers, which the mean of their column replaces; that needs standardise: 'feature', but the experiment has standardise: '${kind}'`,
    );
  }
  return kind === 'none' ? 0 : kind === 'global' ? 1 : rowSize(inputs);
}

/** @param moments of the inputs of the training part. @throws DownpourError DP_DATA_CORRUPT: too large to divide by. */
export function transformOf(
  inputs: Column,
  kind: InputTransform['kind'],
  moments: MeanAndDeviation,
): InputTransform {
  const scale = inputs.values instanceof Uint8Array ? 1 / 255 : 1;
  if (kind === 'none') return { kind, scale, mean: [], deviation: [] };
  moments.deviation.forEach((deviation, f) => {
    const mean = moments.mean[f]!;
    const divides = deviation === 0 || Number.isFinite(1 / (deviation * scale));
    if (Number.isFinite(mean) && Number.isFinite(deviation) && divides) return;
    const what = kind === 'global' ? 'inputs' : columnName(inputs, f);
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `${what} of the train part cannot be standardised: mean ${mean}, standard deviation ${deviation}; use another unit`,
    );
  });
  return {
    kind,
    scale,
    mean: moments.mean.map((mean) => mean * scale),
    deviation: moments.deviation.map((deviation) => (deviation === 0 ? 1 : deviation * scale)),
  };
}

/** One number for each feature. */
export interface MeanAndDeviation {
  readonly mean: number[];
  readonly deviation: number[];
}

/** Mean and deviation of numbers that are all in memory. @param size features, interleaved. */
export function meanAndDeviation(values: ArrayLike<number>, size: number): MeanAndDeviation {
  const moments = new RunningMoments(size);
  moments.addFirst(values);
  moments.addSecond(values);
  return moments.result();
}

/**
 * Mean and standard deviation (of the population) of each of `size` interleaved features, in two
 * passes of float64. NaN is a missing number and is not counted; a feature with no number has mean 0. A feature that
 * never varies has deviation 0 exactly. Sums are of differences from the first value: a million times in ms, 1.7e12
 * each, would add up to more than float64 counts. Pieces of whole examples give the same bits as all at once.
 */
export class RunningMoments {
  readonly #size: number;
  readonly #counts: Float64Array;
  readonly #first: Float64Array;
  readonly #mean: Float64Array;
  readonly #squares: Float64Array;
  // The rounding of the mean would leave a constant feature a tiny deviation to divide by.
  readonly #varies: Uint8Array;
  #hasMean = false;

  constructor(size: number) {
    this.#size = size;
    this.#counts = new Float64Array(size);
    this.#first = new Float64Array(size);
    this.#mean = new Float64Array(size);
    this.#squares = new Float64Array(size);
    this.#varies = new Uint8Array(size);
  }

  /** The first pass. */
  addFirst(values: ArrayLike<number>): void {
    const [counts, first, mean, size] = [this.#counts, this.#first, this.#mean, this.#size];
    for (let i = 0, f = 0; i < values.length; i++) {
      const value = values[i]!;
      if (!Number.isNaN(value)) {
        if (counts[f]!++ === 0) first[f] = value;
        mean[f]! += value - first[f]!;
      }
      if (++f === size) f = 0;
    }
  }

  /** The second pass, over the same values. */
  addSecond(values: ArrayLike<number>): void {
    this.#endFirst();
    const [first, mean, size] = [this.#first, this.#mean, this.#size];
    const [squares, varies] = [this.#squares, this.#varies];
    for (let i = 0, f = 0; i < values.length; i++) {
      const value = values[i]!;
      if (!Number.isNaN(value)) {
        const d = value - mean[f]!;
        squares[f]! += d * d;
        if (value !== first[f]) varies[f] = 1;
      }
      if (++f === size) f = 0;
    }
  }

  result(): MeanAndDeviation {
    this.#endFirst();
    const deviation = Array.from(this.#squares, (sum, f) =>
      this.#varies[f] ? Math.sqrt(sum / this.#counts[f]!) : 0,
    );
    return { mean: Array.from(this.#mean), deviation };
  }

  #endFirst(): void {
    if (this.#hasMean) return;
    this.#hasMean = true;
    for (let f = 0; f < this.#size; f++) {
      const count = this.#counts[f]!;
      if (count > 0) this.#mean[f] = this.#first[f]! + this.#mean[f]! / count;
    }
  }
}

/** A transform made ready for speed. */
export interface Scaler {
  readonly identity: boolean;
  /** For bytes under one mean: all 256 results. */
  readonly table: Float32Array | null;
  readonly scale: number;
  readonly mean: Float64Array;
  readonly inverse: Float64Array;
}

const scalers = new WeakMap<InputTransform, Scaler>();

export function scalerOf(transform: InputTransform): Scaler {
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

/** Transforms `size` numbers. A missing one (NaN) becomes 0, which is the mean. */
export function copyScaled(
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
    for (let j = 0; j < size; j++) {
      const number = (source[start + j]! * scale - m) * factor;
      target[at + j] = Number.isNaN(number) ? 0 : number;
    }
  } else {
    for (let j = 0; j < size; j++) {
      const number = (source[start + j]! * scale - mean[j]!) * inverse[j]!;
      target[at + j] = Number.isNaN(number) ? 0 : number;
    }
  }
}

/** As they are. */
export function copy(
  source: Column['values'],
  start: number,
  target: Float32Array | Int32Array,
  at: number,
  size: number,
): void {
  for (let j = 0; j < size; j++) target[at + j] = source[start + j]!;
}

/** What is done to each number of an example: (x · scale − mean) · inverse. */
export interface Lines {
  readonly scale: number;
  readonly mean: Float64Array;
  readonly inverse: Float64Array;
}

/** The transform, told for each of `size` numbers. */
export function transformLines(transform: InputTransform, size: number): Lines {
  const { scale, mean, inverse } = scalerOf(transform);
  const all = (numbers: Float64Array) =>
    numbers.length === size ? numbers : new Float64Array(size).fill(numbers[0]!);
  return { scale, mean: all(mean), inverse: all(inverse) };
}
