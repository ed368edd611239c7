import type { RunConfig } from '../../shared/config.ts';

/**
 * One gradient of several, for pushes of which some may hold anything: the reference and the only twin, since a step of
 * many pushes is rare. The mean is made while pushes arrive, by `Collected`.
 */

export type Aggregate = NonNullable<RunConfig['consistency']['aggregate']>;
export type RobustAggregate = Exclude<Aggregate, 'mean'>;

/**
 * @param vectors of one shape, at least one. @param faulty as `faultyMax`; of few pushes as many as their number allows.
 * @param out may be one of them.
 */
export function aggregate(
  kind: RobustAggregate,
  vectors: readonly Float32Array[],
  faulty: number,
  out: Float32Array,
): void {
  if (kind === 'krum') out.set(vectors[krum(vectors, faulty)]!);
  else if (kind === 'median') trimmedMean(vectors, Math.floor((vectors.length - 1) / 2), out);
  else trimmedMean(vectors, Math.min(faulty, Math.floor((vectors.length - 1) / 2)), out);
}

/**
 * The mean of each element without its `trim` largest and smallest values (Yin et al. 2018, arXiv:1803.01498). With all but
 * one or two values trimmed it is the median of each element.
 */
function trimmedMean(vectors: readonly Float32Array[], trim: number, out: Float32Array): void {
  const count = vectors.length;
  const sorted = new Float32Array(count);
  const kept = count - 2 * trim;
  for (let i = 0; i < out.length; i++) {
    // Few values: insertion is the fastest way to sort them.
    for (let k = 0; k < count; k++) {
      const value = vectors[k]![i]!;
      let at = k;
      for (; at > 0 && sorted[at - 1]! > value; at--) sorted[at] = sorted[at - 1]!;
      sorted[at] = value;
    }
    let sum = 0;
    for (let k = trim; k < trim + kept; k++) sum += sorted[k]!;
    out[i] = sum / kept;
  }
}

/**
 * The vector with the smallest sum of squared distances to its n − f − 2 nearest others (Blanchard et al. 2017,
 * arXiv:1703.02757). @returns its index.
 */
export function krum(vectors: readonly Float32Array[], faulty: number): number {
  const n = vectors.length;
  const f = Math.min(faulty, Math.max(0, Math.floor((n - 3) / 2)));
  const distances = vectors.map(() => new Float64Array(n));
  for (let a = 0; a < n; a++) {
    for (let b = 0; b < a; b++) {
      const distance = squaredDistance(vectors[a]!, vectors[b]!);
      distances[a]![b] = distance;
      distances[b]![a] = distance;
    }
  }
  let best = 0;
  let bestScore = Infinity;
  for (const [k, row] of distances.entries()) {
    // The first of the sorted ones is the distance to itself.
    const nearest = row.toSorted().subarray(1, Math.max(2, n - f - 1));
    const score = nearest.reduce((sum, distance) => sum + distance, 0);
    if (score >= bestScore) continue;
    best = k;
    bestScore = score;
  }
  return best;
}

function squaredDistance(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = a[i]! - b[i]!;
    sum += difference * difference;
  }
  return sum;
}
