import { random } from '../shared/random.ts';

/**
 * Sobol's sequence: points that fill the unit cube more evenly than random ones. Direction numbers:
 * Joe and Kuo 2008, "Constructing Sobol sequences with better two-dimensional projections"
 * (new-joe-kuo-6). Shifted at random by the seed, so that no point lies on a border and seeds differ.
 */

/** For each dimension from the second: the primitive polynomial's coefficients a, and m₁ … m_s. */
const DIRECTIONS: readonly (readonly [a: number, ...m: number[]])[] = [
  [0, 1],
  [1, 1, 3],
  [1, 1, 3, 1],
  [2, 1, 1, 1],
  [1, 1, 1, 3, 3],
  [4, 1, 3, 5, 13],
  [2, 1, 1, 5, 5, 17],
  [4, 1, 1, 5, 5, 5],
  [7, 1, 1, 7, 11, 19],
  [11, 1, 1, 5, 1, 1],
  [13, 1, 1, 1, 3, 11],
  [14, 1, 3, 5, 5, 31],
  [1, 1, 3, 3, 9, 7, 49],
  [13, 1, 1, 1, 15, 21, 21],
  [16, 1, 3, 1, 13, 27, 49],
  [19, 1, 1, 1, 15, 7, 5],
  [22, 1, 3, 1, 15, 13, 25],
  [25, 1, 1, 5, 5, 19, 61],
  [1, 1, 3, 7, 11, 23, 15, 103],
  [4, 1, 3, 7, 13, 13, 15, 69],
];

export const SOBOL_DIMENSIONS_MAX = DIRECTIONS.length + 1;

/** The stream of the study's seed for the shift of a dimension. */
const SHIFT_STREAM = 0x2100_0000;

/**
 * The point of an index. @param index from 0 to 2³² − 2. @param dimensions 1 … SOBOL_DIMENSIONS_MAX.
 * @returns shape [dimensions], each in [0, 1).
 */
export function sobolPoint(index: number, dimensions: number, seed: number): number[] {
  if (dimensions < 1 || dimensions > SOBOL_DIMENSIONS_MAX) {
    throw new RangeError(`${dimensions} dimensions; 1 to ${SOBOL_DIMENSIONS_MAX} have numbers`);
  }
  const shift = random(seed, SHIFT_STREAM);
  const gray = (index ^ (index >>> 1)) >>> 0;
  return Array.from({ length: dimensions }, (_, j) => {
    const v = directionsOf(j);
    let bits = shift.bits();
    for (let i = 0; i < 32; i++) if ((gray >>> i) & 1) bits ^= v[i]!;
    return (bits >>> 0) / 2 ** 32;
  });
}

const known = new Map<number, Uint32Array>();

/** v₁ … v₃₂ of a dimension, the binary fractions of its m by the polynomial's recurrence. */
function directionsOf(dimension: number): Uint32Array {
  let v = known.get(dimension);
  if (v) return v;
  v = new Uint32Array(32);
  if (dimension === 0) {
    for (let i = 0; i < 32; i++) v[i] = 2 ** (31 - i);
  } else {
    const [a, ...m] = DIRECTIONS[dimension - 1]!;
    const s = m.length;
    for (let i = 0; i < 32; i++) {
      if (i < s) {
        v[i] = m[i]! * 2 ** (31 - i);
        continue;
      }
      let next = v[i - s]! ^ (v[i - s]! >>> s);
      for (let k = 1; k < s; k++) if ((a >>> (s - 1 - k)) & 1) next ^= v[i - k]!;
      v[i] = next;
    }
  }
  known.set(dimension, v);
  return v;
}
