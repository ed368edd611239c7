/**
 * Eigenvalues and eigenvectors of a symmetric matrix: Householder's reduction to three diagonals, then the implicit QL
 * algorithm (tred2 and tql2 of EISPACK; Wilkinson and Reinsch, Handbook for Automatic Computation II). It uses nothing but +, −, ×, ÷
 * and square roots, so every machine gives the same bits.
 */

/** More sweeps than any symmetric matrix needs. */
const SWEEPS_MAX = 100;

export interface SymmetricEigen {
  readonly values: Float64Array;
  /** Row i is the eigenvector of value i: shape [n, n]. */
  readonly vectors: Float64Array;
}

/** @param matrix shape [n, n], symmetric; it is overwritten, and is `vectors` of the result */
export function symmetricEigen(matrix: Float64Array, n: number): SymmetricEigen {
  const values = new Float64Array(n);
  const beside = new Float64Array(n);
  // Squares of very large and very small numbers would leave the range of float64.
  const largest = matrix.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (largest > 0) for (let i = 0; i < matrix.length; i++) matrix[i]! /= largest;
  reduce(matrix, n, values, beside);
  iterate(matrix, n, values, beside);
  for (let i = 0; i < n; i++) values[i]! *= largest;
  return { values, vectors: matrix };
}

/** To three diagonals: `d` and, beside it, `e`. `z` becomes the transformation, one vector a row. */
function reduce(z: Float64Array, n: number, d: Float64Array, e: Float64Array): void {
  for (let i = n - 1; i > 0; i--) {
    const row = i * n;
    let scale = 0;
    for (let k = 0; k < i; k++) scale += Math.abs(z[row + k]!);
    let h = 0;
    if (i === 1 || scale === 0) {
      e[i] = z[row + i - 1]!;
      d[i] = 0;
      continue;
    }
    for (let k = 0; k < i; k++) {
      z[row + k]! /= scale;
      h += z[row + k]! * z[row + k]!;
    }
    const f = z[row + i - 1]!;
    const g = f > 0 ? -Math.sqrt(h) : Math.sqrt(h);
    e[i] = scale * g;
    h -= f * g;
    z[row + i - 1] = f - g;
    e.fill(0, 0, i);
    // e = A u, by the lower triangle.
    for (let j = 0; j < i; j++) {
      const own = j * n;
      const u = z[row + j]!;
      let sum = z[own + j]! * u;
      for (let k = 0; k < j; k++) {
        sum += z[own + k]! * z[row + k]!;
        e[k]! += z[own + k]! * u;
      }
      e[j]! += sum;
    }
    let along = 0;
    for (let j = 0; j < i; j++) {
      e[j]! /= h;
      along += e[j]! * z[row + j]!;
    }
    const half = along / (2 * h);
    for (let j = 0; j < i; j++) e[j]! -= half * z[row + j]!;
    for (let j = 0; j < i; j++) {
      const own = j * n;
      const [u, q] = [z[row + j]!, e[j]!];
      for (let k = 0; k <= j; k++) z[own + k]! -= u * e[k]! + q * z[row + k]!;
    }
    d[i] = h;
  }
  accumulate(z, n, d);
  e.copyWithin(0, 1);
  e[n - 1] = 0;
}

/** The product of the reflections, whose vectors are the rows of `z`. */
function accumulate(z: Float64Array, n: number, d: Float64Array): void {
  d[0] = 0;
  const u = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const row = i * n;
    const h = d[i]!;
    d[i] = z[row + i]!;
    if (h !== 0) {
      for (let k = 0; k < i; k++) u[k] = z[row + k]!;
      // The rows before hold the transposed product: row j loses its share along u.
      for (let j = 0; j < i; j++) {
        const own = j * n;
        let along = 0;
        for (let k = 0; k < i; k++) along += z[own + k]! * u[k]!;
        along /= h;
        for (let k = 0; k < i; k++) z[own + k]! -= along * u[k]!;
      }
    }
    z[row + i] = 1;
    for (let j = 0; j < i; j++) {
      z[row + j] = 0;
      z[j * n + i] = 0;
    }
  }
}

/** @param z is turned with the diagonals: its rows become the eigenvectors. */
function iterate(z: Float64Array, n: number, d: Float64Array, e: Float64Array): void {
  // What is below it is rounding.
  const least =
    Number.EPSILON *
    d.reduce((most, value, i) => Math.max(most, Math.abs(value) + Math.abs(e[i]!)), 0);
  for (let l = 0; l < n; l++) {
    for (let sweep = 0; ; sweep++) {
      let m = l;
      while (m < n - 1 && Math.abs(e[m]!) > least) m++;
      if (m === l) break;
      if (sweep === SWEEPS_MAX) throw new Error(`no eigenvalues after ${SWEEPS_MAX} sweeps`);
      turn(z, n, { d, e, l, m });
    }
  }
}

interface Diagonals {
  readonly d: Float64Array;
  readonly e: Float64Array;
  readonly l: number;
  readonly m: number;
}

/** One sweep of rotations, from m to l. */
function turn(z: Float64Array, n: number, { d, e, l, m }: Diagonals): void {
  let g = (d[l + 1]! - d[l]!) / (2 * e[l]!);
  let r = Math.sqrt(g * g + 1);
  g = d[m]! - d[l]! + e[l]! / (g + (g >= 0 ? r : -r));
  let [s, c, p] = [1, 1, 0];
  for (let i = m - 1; i >= l; i--) {
    const f = s * e[i]!;
    const b = c * e[i]!;
    r = Math.sqrt(f * f + g * g);
    e[i + 1] = r;
    if (r === 0) {
      d[i + 1]! -= p;
      e[m] = 0;
      return;
    }
    s = f / r;
    c = g / r;
    g = d[i + 1]! - p;
    r = (d[i]! - g) * s + 2 * c * b;
    p = s * r;
    d[i + 1] = g + p;
    g = c * r - b;
    const [low, high] = [i * n, (i + 1) * n];
    for (let k = 0; k < n; k++) {
      const above = z[high + k]!;
      const below = z[low + k]!;
      z[high + k] = s * below + c * above;
      z[low + k] = c * below - s * above;
    }
  }
  d[l]! -= p;
  e[l] = g;
  e[m] = 0;
}
