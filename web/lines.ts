/** Numbers of curves: smoothed, read between their points, averaged. */

export interface PlotLine {
  /** Ascending. */
  readonly x: readonly number[];
  readonly y: readonly (number | null)[];
}

/** The mean of several lines, and the band of one standard deviation around it. */
export interface MeanLine extends PlotLine {
  /** Null where fewer than two of the lines have a value. */
  readonly low: readonly (number | null)[];
  readonly high: readonly (number | null)[];
}

/** @returns the line at the given places, which ascend; null outside of the line. */
export function readAt({ x, y }: PlotLine, at: readonly number[]): (number | null)[] {
  let i = 0;
  return at.map((value) => {
    while (i < x.length - 1 && x[i + 1]! < value) i++;
    if (x.length === 0 || value < x[0]! || value > x.at(-1)!) return null;
    const a = y[i];
    const b = y[i + 1];
    if (a == null || b == null) return a ?? null;
    const share = (value - x[i]!) / (x[i + 1]! - x[i]!);
    return a + (b - a) * Math.min(1, share);
  });
}

/**
 * A mean that forgets the past evenly, bias corrected, so that it begins at the first value.
 * @param weight of the past, 0 to below 1; 0: as it is.
 */
export function smoothed(y: readonly (number | null)[], weight: number): (number | null)[] {
  if (weight === 0) return [...y];
  let sum = 0;
  let total = 0;
  return y.map((value) => {
    if (value === null || !Number.isFinite(value)) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/**
 * The mean of several lines over those that have a value there, with one sample standard deviation (n − 1) to both sides.
 * Where the lower end of the band would not be above 0 though all values are, it is the lowest value: a logarithmic axis
 * has no place for it.
 * @param points the most places; fewer if the lines have fewer.
 */
export function meanLine(lines: readonly PlotLine[], points: number): MeanLine {
  const x = placesOf(lines, points);
  const columns = lines.map((line) => readAt(line, x));
  const y: (number | null)[] = [];
  const low: (number | null)[] = [];
  const high: (number | null)[] = [];
  for (let i = 0; i < x.length; i++) {
    const values = columns.flatMap((column) => column[i] ?? []).filter(Number.isFinite);
    const mean =
      values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
    y.push(mean);
    if (mean === null || values.length < 2) {
      low.push(null);
      high.push(null);
      continue;
    }
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    const deviation = Math.sqrt(squares / (values.length - 1));
    const least = Math.min(...values);
    low.push(least > 0 && mean - deviation <= 0 ? least : mean - deviation);
    high.push(mean + deviation);
  }
  return { x, y, low, high };
}

/** All places where a line has a point, or as many at equal distances. */
function placesOf(lines: readonly PlotLine[], points: number): number[] {
  const all = new Set<number>();
  for (const { x } of lines) for (const place of x) all.add(place);
  const sorted = [...all].sort((a, b) => a - b);
  if (sorted.length <= points) return sorted;
  const [first, last] = [sorted[0]!, sorted.at(-1)!];
  return Array.from({ length: points }, (_, i) =>
    i === points - 1 ? last : first + ((last - first) * i) / (points - 1),
  );
}

/** Values span at least two decades, and all are above 0: equal factors read better than equal differences. */
export function spansDecades(values: Iterable<number | null>): boolean {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    if (value <= 0) return false;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high >= 100 * low;
}

export function lastOf(y: readonly (number | null | undefined)[]): number | null {
  for (let i = y.length - 1; i >= 0; i--) if (y[i] != null) return y[i]!;
  return null;
}

/** In a joined table most cells of a curve are empty. */
export function nearestValue(
  y: readonly (number | null | undefined)[],
  index: number,
): number | null {
  for (let d = 0; d < y.length; d++) {
    if (y[index - d] != null) return y[index - d]!;
    if (y[index + d] != null) return y[index + d]!;
  }
  return null;
}
