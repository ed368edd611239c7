/** What comparisons with scikit-learn count with. */

/** What a model may be worse than scikit-learn's: points of a share. */
export const POINTS = 0.015;

/** Student's t, two-sided 95 %, by degrees of freedom. */
const T95: Readonly<Record<number, number>> = {
  1: 12.71,
  2: 4.3,
  3: 3.18,
  4: 2.78,
  5: 2.57,
  9: 2.26,
};

export const mean = (numbers: readonly number[]): number =>
  numbers.reduce((a, b) => a + b, 0) / numbers.length;

/** A number for people. @param isShare in percent */
export function shown(value: number, digits: number, isShare: boolean): string {
  // No minus before what is 0.00.
  const scaled = Number((isShare ? 100 * value : value).toFixed(digits)) + 0;
  return `${scaled.toFixed(digits)}${isShare ? ' %' : ''}`;
}

/** The mean, with its 95 % interval if there are several. */
export function shownMean(numbers: readonly number[], isShare: boolean): string {
  const { mean: m, half } = interval(numbers);
  const text = shown(m, 2, isShare);
  return numbers.length > 1 ? `${text} ± ${shown(half, 2, isShare)}` : text;
}

/** Mean and half the width of its 95 % interval. */
export function interval(numbers: readonly number[]): { mean: number; half: number } {
  const m = mean(numbers);
  const n = numbers.length;
  const variance = numbers.reduce((sum, x) => sum + (x - m) ** 2, 0) / Math.max(1, n - 1);
  return { mean: m, half: (T95[n - 1] ?? 1.96) * Math.sqrt(variance / n) };
}
