import { packDoubles, unpackDoubles } from '../../../shared/data-facts.ts';
import { DownpourError } from '../../../shared/errors.ts';
import { symmetricEigen } from './symmetric-eigen.ts';

/**
 * ZCA whitening (Bell and Sejnowski 1997; *Deep Learning* §12.2.1.1): after (Σ + ε)^(−1/2) (x − mean) all inputs have about
 * variance 1 and no correlation, and of all such matrices the symmetric one changes the inputs least.
 */

/** Sums of products of `size` interleaved inputs, for their covariance. */
export class Covariance {
  readonly #size: number;
  readonly #shift: ArrayLike<number> | null;
  /** Upper triangle of a full matrix. */
  readonly #sums: Float64Array;
  #count = 0;

  /**
   * @param mean of the inputs: what is summed are differences from it. Null: the inputs are bytes, whose sums are exact without
   * it, and whose zeros cost nothing then.
   */
  constructor(size: number, mean: ArrayLike<number> | null) {
    this.#size = size;
    this.#shift = mean;
    this.#sums = new Float64Array(size * size);
  }

  /** @param values of whole examples */
  add(values: ArrayLike<number>): void {
    const [size, shift, sums] = [this.#size, this.#shift, this.#sums];
    const places = new Uint32Array(size);
    const numbers = new Float64Array(size);
    for (let at = 0; at < values.length; at += size) {
      let count = 0;
      for (let i = 0; i < size; i++) {
        const number = values[at + i]! - (shift === null ? 0 : shift[i]!);
        if (number === 0) continue;
        places[count] = i;
        numbers[count++] = number;
      }
      for (let a = 0; a < count; a++) {
        const row = places[a]! * size;
        const number = numbers[a]!;
        for (let b = a; b < count; b++) sums[row + places[b]!]! += number * numbers[b]!;
      }
      this.#count++;
    }
  }

  /**
   * @param mean of the inputs. @param scale that they are multiplied by
   * @returns the covariance of the population, shape [size, size]
   */
  result(mean: ArrayLike<number>, scale: number): Float64Array {
    const size = this.#size;
    const covariance = new Float64Array(size * size);
    for (let i = 0; i < size; i++) {
      for (let j = i; j < size; j++) {
        const product = this.#shift === null ? mean[i]! * mean[j]! : 0;
        const own = (this.#sums[i * size + j]! / this.#count - product) * scale * scale;
        covariance[i * size + j] = own;
        covariance[j * size + i] = own;
      }
    }
    return covariance;
  }
}

/**
 * (covariance + epsilon)^(−1/2).
 * @param covariance shape [size, size]; it is overwritten
 * @returns its upper triangle, row by row, as base64 of float64
 * @throws DownpourError DP_DATA_CORRUPT: the covariance is not finite
 */
export function whiteningMatrix(covariance: Float64Array, size: number, epsilon: number): string {
  if (!covariance.every(Number.isFinite)) {
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      'inputs of the train part cannot be whitened: their covariance is not a finite number; use another unit',
    );
  }
  const { values, vectors } = symmetricEigen(covariance, size);
  // Rounding may bring an eigenvalue of 0 below it.
  const factors = values.map((value) => 1 / Math.sqrt(Math.max(0, value) + epsilon));
  const triangle = new Float64Array((size * (size + 1)) / 2);
  for (let q = 0; q < size; q++) {
    const row = q * size;
    const factor = factors[q]!;
    let at = 0;
    for (let i = 0; i < size; i++) {
      const own = factor * vectors[row + i]!;
      for (let j = i; j < size; j++) triangle[at++]! += own * vectors[row + j]!;
    }
  }
  return packDoubles(triangle);
}

/** A symmetric matrix of shape [size, size]. @param packed its upper triangle, as `whiteningMatrix` gives it */
export function symmetricMatrix(packed: string, size: number): Float64Array {
  const triangle = unpackDoubles(packed);
  const matrix = new Float64Array(size * size);
  let at = 0;
  for (let i = 0; i < size; i++) {
    for (let j = i; j < size; j++) {
      matrix[i * size + j] = triangle[at]!;
      matrix[j * size + i] = triangle[at++]!;
    }
  }
  return matrix;
}
