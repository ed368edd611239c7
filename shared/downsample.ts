/**
 * Which points of a long curve to draw: largest triangle three buckets (Steinarsson 2013, "Downsampling
 * Time Series for Visual Representation"), for several curves over the same x at once. From each of
 * count − 2 buckets comes the point that spans the largest triangles, summed over the curves, with the point
 * chosen before and the mean of the next bucket. So peaks stay, which every n-th point would lose.
 * @param x of equal length with each of `series`, ascending. A null or NaN of a series says nothing.
 * @param count of points wanted, at least 2. @returns ascending indices, first and last among them; all of
 *   them where there are no more.
 */
export function pickPoints(
  x: readonly number[],
  series: readonly (readonly (number | null)[])[],
  count: number,
): number[] {
  const n = x.length;
  if (n <= count) return Array.from({ length: n }, (_, i) => i);
  const scales = series.map(scaleOf);
  const chosen = [0];
  const width = (n - 2) / (count - 2);
  let last = 0;
  for (let bucket = 0; bucket < count - 2; bucket++) {
    const from = Math.floor(bucket * width) + 1;
    const to = Math.floor((bucket + 1) * width) + 1;
    const after = Math.min(n, Math.floor((bucket + 2) * width) + 1);
    const nextX = meanOf(x, to, after) ?? x[n - 1]!;
    const next = series.map((y) => meanOf(y, to, after));
    let best = from;
    let bestArea = -1;
    for (let i = from; i < to; i++) {
      let area = 0;
      for (let s = 0; s < series.length; s++) {
        const a = series[s]![last];
        const b = series[s]![i];
        const c = next[s];
        if (a == null || b == null || c == null) continue;
        const twice = (x[last]! - nextX) * (b - a) - (x[last]! - x[i]!) * (c - a);
        if (Number.isFinite(twice)) area += Math.abs(twice) * scales[s]!;
      }
      if (area > bestArea) {
        bestArea = area;
        best = i;
      }
    }
    chosen.push(best);
    last = best;
  }
  chosen.push(n - 1);
  return chosen;
}

/** So that each curve counts alike, whatever its unit. */
function scaleOf(y: readonly (number | null)[]): number {
  let low = Infinity;
  let high = -Infinity;
  for (const value of y) {
    if (value === null || !Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return high > low ? 1 / (high - low) : 0;
}

function meanOf(y: readonly (number | null)[], from: number, to: number): number | null {
  let sum = 0;
  let count = 0;
  for (let i = from; i < to; i++) {
    const value = y[i];
    if (value == null || !Number.isFinite(value)) continue;
    sum += value;
    count++;
  }
  return count === 0 ? null : sum / count;
}
