import { quantileOf } from '../shared/quantile.ts';
import { random } from '../shared/random.ts';

/**
 * Error over training-set size as error = c + a·n^(−b), which learning curves follow over wide ranges
 * (Hestness et al. 2017, arXiv:1712.00409); c ≥ 0 is what no data removes.
 */
export interface PowerLaw {
  readonly a: number;
  readonly b: number;
  readonly c: number;
  at(n: number): number;
}

/** Fitted laws: the best one, and how far others that the data allow lie apart. */
export interface Extrapolation {
  readonly law: PowerLaw;
  /** The ends that 90 % of the resampled fits lie between. */
  interval(n: number): { readonly low: number; readonly high: number };
  /** The error falls as examples grow in 95 % of the resampled fits. */
  readonly falls: boolean;
}

/** Two sizes are a line through two points: nothing tells how far it can be believed. */
export const SIZES_MIN = 3;
/** With fewer sizes a floor is whatever the noise makes of it. */
const FLOOR_SIZES_MIN = 4;

export interface ErrorAtSize {
  readonly n: number;
  readonly error: number;
}

/** A smaller error is as good as 0. */
const LEAST = 1e-12;
const GRID = 20;
const ROUNDS = 3;
const RESAMPLES = 300;
const STREAM = 0x2300_0000;

/**
 * Least squares of log error: for each c of a grid, a line through log(error − c) over log n.
 * @param points positive errors at two sizes or more. @returns null when there are fewer.
 */
export function fitPowerLaw(points: readonly ErrorAtSize[]): PowerLaw | null {
  const usable = points.filter(({ n, error }) => n > 0 && error > 0 && Number.isFinite(error));
  const sizes = new Set(usable.map(({ n }) => n)).size;
  if (sizes < 2) return null;
  let [low, high] = [0, 0.998 * Math.min(...usable.map(({ error }) => error))];
  let best = { c: 0, ...tried(usable, 0) };
  // Finer and finer around the best.
  for (let round = 0; sizes >= FLOOR_SIZES_MIN && round < ROUNDS; round++) {
    const step = (high - low) / GRID;
    for (let i = 0; i <= GRID; i++) {
      const c = low + i * step;
      const next = tried(usable, c);
      // A floor must earn its place: without the margin, rounding would choose one.
      if (next.residual < best.residual * (1 - 1e-9) - 1e-15) best = { c, ...next };
    }
    [low, high] = [Math.max(0, best.c - step), Math.min(high, best.c + step)];
  }
  return best.law;
}

function tried(points: readonly ErrorAtSize[], c: number): { law: PowerLaw; residual: number } {
  const law = lawWithFloor(points, c);
  const residual = points.reduce((sum, { n, error }) => sum + Math.log(error / law.at(n)) ** 2, 0);
  return { law, residual };
}

function lawWithFloor(points: readonly ErrorAtSize[], c: number): PowerLaw {
  const xs = points.map(({ n }) => Math.log(n));
  const ys = points.map(({ error }) => Math.log(error - c));
  const mean = (values: readonly number[]) => values.reduce((s, v) => s + v, 0) / values.length;
  const [mx, my] = [mean(xs), mean(ys)];
  const sxx = xs.reduce((sum, x) => sum + (x - mx) ** 2, 0);
  const sxy = xs.reduce((sum, x, i) => sum + (x - mx) * (ys[i]! - my), 0);
  // More data never makes it worse in the long run: a rising line is noise.
  const b = Math.max(0, -sxy / sxx);
  const a = Math.exp(my + b * mx);
  return { a, b, c, at: (n) => c + a * n ** -b };
}

/**
 * Fits, then fits again to resampled residuals (a bootstrap). @returns null for fewer than `SIZES_MIN` sizes, and
 * where an error is 0 or below, which has no logarithm: to leave such points out would make the rest look worse.
 */
export function extrapolate(points: readonly ErrorAtSize[], seed = 1): Extrapolation | null {
  const usable = points.filter(({ n, error }) => n > 0 && error > LEAST && Number.isFinite(error));
  if (usable.length < points.length) return null;
  if (new Set(usable.map(({ n }) => n)).size < SIZES_MIN) return null;
  const law = fitPowerLaw(usable);
  if (!law) return null;
  const residuals = usable.map(({ n, error }) => Math.log(error / law.at(n)));
  // As many numbers were fitted to them, so they are too small.
  const free = Math.max(1, usable.length - (law.c > 0 ? 3 : 2));
  const scale = Math.sqrt(usable.length / free);
  const draw = random(seed, STREAM);
  const laws = Array.from({ length: RESAMPLES }, () => {
    const again = usable.map(({ n }) => ({
      n,
      error: law.at(n) * Math.exp(scale * residuals[draw.below(residuals.length)]!),
    }));
    return fitPowerLaw(again) ?? law;
  });
  // The least that counts as falling: a hundredth less for each tenfold of the examples.
  const falling = laws.filter(({ b }) => b > 0.005).length;
  return {
    law,
    falls: law.b > 0.005 && falling >= 0.95 * laws.length,
    interval(n) {
      const values = laws.map((other) => other.at(n));
      return { low: quantileOf(values, 0.05), high: quantileOf(values, 0.95) };
    },
  };
}
