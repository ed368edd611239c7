import type { Transform } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { type Column, columnName, rowSize } from './columns.ts';
import { Covariance, symmetricMatrix, whiteningMatrix } from './whitening/zca.ts';

/** What is done to inputs before a model sees them: measured on the training part, applied to all. */

export type InputTransform = Transform;

/** How an input is standardised. */
export type Standardise =
  | InputTransform['kind']
  | {
      readonly kind: 'zca';
      /** Is added to each eigenvalue of the covariance, in the unit of the inputs (bytes are divided by 255). Default: 0.01. */
      readonly epsilon?: number;
    };

/** Adding this to the variance of pixels between 0 and 1 leaves what is no noise. */
const EPSILON = 0.01;

const kindOfStandardise = (given: Standardise): InputTransform['kind'] =>
  typeof given === 'string' ? given : given.kind;

/** Measures the transform on the inputs of the training part. */
export function fitTransform(inputs: Column, standardise: Standardise): InputTransform {
  const size = measuredSize(inputs, standardise);
  if (size === 0) return transformOf(inputs, standardise, { mean: [], deviation: [] });
  const moments = momentsFor(inputs, standardise, size);
  moments.addFirst(inputs.values);
  moments.addSecond(inputs.values);
  return transformOf(inputs, standardise, moments.result());
}

/** What measures an input in two passes, as it is to be standardised. @param size of `measuredSize`, above 0 */
export const momentsFor = (
  inputs: Column,
  standardise: Standardise,
  size: number,
): RunningMoments | WhiteningMoments =>
  kindOfStandardise(standardise) === 'zca'
    ? new WhiteningMoments(size, epsilonOf(standardise), inputs.values instanceof Uint8Array)
    : new RunningMoments(size);

const epsilonOf = (standardise: Standardise): number =>
  (typeof standardise === 'string' ? undefined : standardise.epsilon) ?? EPSILON;

/**
 * Numbers that have a mean and a deviation of their own.
 * @returns 0: nothing is to be measured.
 * @throws DownpourError DP_EXPERIMENT_INVALID: missing numbers have nothing that replaces them; too many inputs to be whitened.
 */
export function measuredSize(inputs: Column, standardise: Standardise): number {
  const kind = kindOfStandardise(standardise);
  const size = rowSize(inputs);
  if (kind === 'zca' && size > LIMITS.whitenedInputsMax) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `an example has ${size} inputs, but standardise: 'zca' whitens at most ${LIMITS.whitenedInputsMax} together; make images smaller (32×32 in grey, 18×18 in colour), or use layers.localContrast`,
    );
  }
  if (inputs.missing === 'mean' && kind !== 'feature') {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the inputs have missing numbers, which the mean of their column replaces; that needs standardise: 'feature', but the experiment has standardise: '${kind}'`,
    );
  }
  return kind === 'none' ? 0 : kind === 'global' ? 1 : size;
}

/** @param moments of the inputs of the training part. @throws DownpourError DP_DATA_CORRUPT: too large to divide by. */
export function transformOf(
  inputs: Column,
  standardise: Standardise,
  moments: MeanAndDeviation,
): InputTransform {
  const kind = kindOfStandardise(standardise);
  const scale = inputs.values instanceof Uint8Array ? BYTE_SCALE : 1;
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
  const mean = moments.mean.map((each) => each * scale);
  if (kind === 'zca') {
    const { matrix } = moments;
    const deviation = mean.map(() => 1);
    return { kind, scale, mean, deviation, epsilon: epsilonOf(standardise), matrix: matrix! };
  }
  return {
    ...{ kind, scale, mean },
    deviation: moments.deviation.map((deviation) => (deviation === 0 ? 1 : deviation * scale)),
  };
}

/** One number for each feature. */
export interface MeanAndDeviation {
  readonly mean: number[];
  readonly deviation: number[];
  /** For inputs that are whitened: as in `InputTransform`. */
  readonly matrix?: string;
}

/** Pixels are between 0 and 1. */
const BYTE_SCALE = 1 / 255;

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

/** Mean and whitening matrix of each of `size` interleaved inputs, in two passes as `RunningMoments`. */
class WhiteningMoments {
  readonly #size: number;
  readonly #epsilon: number;
  readonly #areBytes: boolean;
  readonly #moments: RunningMoments;
  #covariance: Covariance | null = null;

  constructor(size: number, epsilon: number, areBytes: boolean) {
    this.#size = size;
    this.#epsilon = epsilon;
    this.#areBytes = areBytes;
    this.#moments = new RunningMoments(size);
  }

  addFirst(values: ArrayLike<number>): void {
    this.#moments.addFirst(values);
  }

  addSecond(values: ArrayLike<number>): void {
    const shift = this.#areBytes ? null : this.#moments.result().mean;
    this.#covariance ??= new Covariance(this.#size, shift);
    this.#moments.addSecond(values);
    this.#covariance.add(values);
  }

  result(): MeanAndDeviation {
    const { mean, deviation } = this.#moments.result();
    const covariance = this.#covariance!.result(mean, this.#areBytes ? BYTE_SCALE : 1);
    return { mean, deviation, matrix: whiteningMatrix(covariance, this.#size, this.#epsilon) };
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
  /** For inputs that are whitened: shape [size, size], symmetric; and its product with the mean. */
  readonly whitening: { readonly matrix: Float64Array; readonly shift: Float64Array } | null;
}

const scalers = new WeakMap<InputTransform, Scaler>();

export function scalerOf(transform: InputTransform): Scaler {
  let scaler = scalers.get(transform);
  if (scaler === undefined) {
    const { kind, scale } = transform;
    const mean = Float64Array.from(kind === 'none' ? [0] : transform.mean);
    const inverse = Float64Array.from(kind === 'none' ? [1] : transform.deviation, (d) => 1 / d);
    const table =
      kind === 'feature' || kind === 'zca'
        ? null
        : Float32Array.from({ length: 256 }, (_, byte) => (byte * scale - mean[0]!) * inverse[0]!);
    const whitening = transform.matrix === undefined ? null : whiteningOf(transform.matrix, mean);
    scaler = { identity: kind === 'none' && scale === 1, table, scale, mean, inverse, whitening };
    scalers.set(transform, scaler);
  }
  return scaler;
}

function whiteningOf(packed: string, mean: Float64Array): NonNullable<Scaler['whitening']> {
  const size = mean.length;
  const matrix = symmetricMatrix(packed, size);
  const shift = mean.map((_, i) => {
    let sum = 0;
    for (let j = 0; j < size; j++) sum += matrix[i * size + j]! * mean[j]!;
    return sum;
  });
  return { matrix, shift };
}

let whitened = new Float64Array(0);

/** matrix · x − matrix · mean: the zeros of x cost nothing, and most pixels of a digit are 0. */
function copyWhitened(
  { scale, whitening }: Scaler,
  source: Column['values'],
  start: number,
  target: Float32Array,
  at: number,
  size: number,
): void {
  const { matrix, shift } = whitening!;
  if (whitened.length < size) whitened = new Float64Array(size);
  const sums = whitened;
  for (let i = 0; i < size; i++) sums[i] = -shift[i]!;
  for (let j = 0; j < size; j++) {
    const x = source[start + j]! * scale;
    if (x === 0) continue;
    const row = j * size;
    for (let i = 0; i < size; i++) sums[i]! += x * matrix[row + i]!;
  }
  for (let i = 0; i < size; i++) target[at + i] = sums[i]!;
}

/** Transforms `size` numbers. A missing one (NaN) becomes 0, which is the mean. */
export function copyScaled(
  scaler: Scaler,
  source: Column['values'],
  start: number,
  target: Float32Array,
  at: number,
  size: number,
): void {
  const { identity, scale, mean, inverse, whitening } = scaler;
  if (whitening) {
    copyWhitened(scaler, source, start, target, at, size);
  } else if (identity) {
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
