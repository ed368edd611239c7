/** Means and how far they can be trusted. */

export interface Estimate {
  readonly count: number;
  /** Different values, to twelve digits: of fewer than two nothing is known about how they scatter. */
  readonly distinct: number;
  readonly mean: number;
  /** The standard error of the mean; NaN for fewer than two different values. */
  readonly standardError: number;
  /** The lower end of the interval of the mean, by Student's t; NaN for fewer than two different values. */
  readonly low: number;
  readonly high: number;
  /** The share of such intervals that hold the true mean, e.g. 0.95. */
  readonly level: number;
}

/** Mean, standard error (with n − 1) and confidence interval. @throws RangeError for no values. */
export function estimate(values: readonly number[], level = 0.95): Estimate {
  const count = values.length;
  if (count === 0) throw new RangeError('an estimate needs at least one value');
  const mean = meanOf(values);
  const distinct = new Set(values.map((value) => Number(value.toPrecision(12)))).size;
  if (distinct < 2) {
    const none = Number.NaN;
    return { count, distinct, mean, standardError: none, low: none, high: none, level };
  }
  const standardError = deviationOf(values) / Math.sqrt(count);
  const half = studentQuantile((1 + level) / 2, count - 1) * standardError;
  return { count, distinct, mean, standardError, low: mean - half, high: mean + half, level };
}

/** The same with its interval within what a share can be. */
export function asShare(value: Estimate): Estimate {
  const within = (end: number) => Math.min(1, Math.max(0, end));
  return { ...value, low: within(value.low), high: within(value.high) };
}

/** Wilson's score interval of a share that was seen in so many cases. Both NaN for none. */
export function shareInterval(
  count: number,
  of: number,
  level = 0.95,
): { readonly low: number; readonly high: number } {
  if (of === 0) return { low: Number.NaN, high: Number.NaN };
  // With so many degrees of freedom Student's t is the normal distribution.
  const z = studentQuantile((1 + level) / 2, 1e6);
  const share = count / of;
  const middle = share + (z * z) / (2 * of);
  const half = z * Math.sqrt((share * (1 - share)) / of + (z * z) / (4 * of * of));
  const scale = 1 + (z * z) / of;
  return { low: Math.max(0, (middle - half) / scale), high: Math.min(1, (middle + half) / scale) };
}

export function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The standard deviation of a sample (with n − 1); NaN for fewer than two values. */
export function deviationOf(values: readonly number[]): number {
  const mean = meanOf(values);
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return values.length < 2 ? Number.NaN : Math.sqrt(squares / (values.length - 1));
}

/** P(T ≤ t) of Student's distribution with `freedom` degrees. */
export function studentCdf(t: number, freedom: number): number {
  const tail = 0.5 * incompleteBeta(freedom / (freedom + t * t), freedom / 2, 0.5);
  return t >= 0 ? 1 - tail : tail;
}

/** The t that a share of Student's distribution lies below. @param share 0 < share < 1. */
export function studentQuantile(share: number, freedom: number): number {
  if (share < 0.5) return -studentQuantile(1 - share, freedom);
  let high = 1;
  while (studentCdf(high, freedom) < share) high *= 2;
  let low = 0;
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2;
    if (studentCdf(middle, freedom) < share) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/**
 * The regularised incomplete beta function I_x(a, b), by its continued fraction (Abramowitz and
 * Stegun 26.5.8, evaluated by Lentz's method).
 */
function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  // The fraction converges fast on this side only.
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = Math.exp(
    logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log(1 - x),
  );
  const tiny = 1e-300;
  const away = (value: number) => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / away(1 - ((a + b) * x) / (a + 1));
  let fraction = d;
  for (let m = 1; m <= 300; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    for (const term of [even, odd]) {
      d = 1 / away(1 + term * d);
      c = away(1 + term / c);
      fraction *= d * c;
    }
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return (front * fraction) / a;
}

/** ln Γ(x) for x > 0: Stirling's series, after shifting x to where it is exact to 1e-15. */
function logGamma(x: number): number {
  let shift = 0;
  let z = x;
  while (z < 15) {
    shift -= Math.log(z);
    z++;
  }
  const q = 1 / (z * z);
  const series = (1 / 12 - q * (1 / 360 - q * (1 / 1260 - q / 1680))) / z;
  return shift + (z - 0.5) * Math.log(z) - z + 0.5 * Math.log(2 * Math.PI) + series;
}
