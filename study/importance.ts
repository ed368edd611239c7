import { type Random, random } from '../shared/random.ts';
import { meanOf } from './statistics.ts';

/**
 * How much of what trials differ in comes from each hyperparameter: functional analysis of variance
 * over a random forest (Hutter, Hoos and Leyton-Brown 2014, "An Efficient Approach for Assessing
 * Hyperparameter Importance"). The forest learns value from place; of each tree, whose leaves are
 * boxes in the unit cube, the share of the variance that one dimension alone explains is exact.
 */

export interface ForestOptions {
  readonly trees?: number;
  readonly leafMin?: number;
  readonly seed?: number;
}

const STREAM = 0x2200_0000;

/** Rows that fall into a box, and what a tree says there. */
interface Leaf {
  readonly low: readonly number[];
  readonly high: readonly number[];
  readonly value: number;
}

/**
 * @param places shape [trials][dimensions], each in [0, 1]. @param values shape [trials], finite.
 * @returns for each dimension the share of the variance, 0 … 1, that it alone explains, mean over the
 *   trees; what is missing to a sum of 1 comes from dimensions acting together. All 0 when no tree
 *   found a difference.
 */
export function importance(
  places: readonly (readonly number[])[],
  values: readonly number[],
  options: ForestOptions = {},
): number[] {
  const { trees = 64, leafMin = 2, seed = 1 } = options;
  const dimensions = places[0]?.length ?? 0;
  const sums: number[] = Array(dimensions).fill(0);
  let counted = 0;
  for (let t = 0; t < trees; t++) {
    const draw = random(seed, STREAM + t);
    const rows = places.map(() => draw.below(places.length));
    const leaves: Leaf[] = [];
    const box = { low: Array(dimensions).fill(0), high: Array(dimensions).fill(1) };
    grow(places, values, rows, box, leafMin, draw, leaves);
    const shares = explained(leaves, dimensions);
    if (!shares) continue;
    counted++;
    for (let d = 0; d < dimensions; d++) sums[d]! += shares[d]!;
  }
  return sums.map((sum) => (counted === 0 ? 0 : sum / counted));
}

/** Splits the rows where it lowers the squared error most, among two thirds of the dimensions. */
function grow(
  places: readonly (readonly number[])[],
  values: readonly number[],
  rows: readonly number[],
  box: { readonly low: readonly number[]; readonly high: readonly number[] },
  leafMin: number,
  draw: Random,
  leaves: Leaf[],
): void {
  const split = bestSplit(places, values, rows, leafMin, draw);
  if (!split) {
    leaves.push({ ...box, value: meanOf(rows.map((row) => values[row]!)) });
    return;
  }
  const { dimension, at } = split;
  const below = rows.filter((row) => places[row]![dimension]! < at);
  const above = rows.filter((row) => places[row]![dimension]! >= at);
  const cut = (ends: readonly number[]) => ends.map((end, d) => (d === dimension ? at : end));
  const next = (half: readonly number[], sides: typeof box) =>
    grow(places, values, half, sides, leafMin, draw, leaves);
  next(below, { low: box.low, high: cut(box.high) });
  next(above, { low: cut(box.low), high: box.high });
}

function bestSplit(
  places: readonly (readonly number[])[],
  values: readonly number[],
  rows: readonly number[],
  leafMin: number,
  draw: Random,
): { dimension: number; at: number } | null {
  if (rows.length < 2 * leafMin) return null;
  const dimensions = places[0]!.length;
  const tried = new Set<number>();
  while (tried.size < Math.max(1, Math.ceil((2 * dimensions) / 3))) {
    tried.add(draw.below(dimensions));
  }
  const total = rows.reduce((sum, row) => sum + values[row]!, 0);
  const n = rows.length;
  let best: { dimension: number; at: number } | null = null;
  // Only this part of the sums of squares around the two means depends on the split.
  let bestGain = (total * total) / n + 1e-12 * Math.abs(total);
  for (const dimension of tried) {
    const sorted = [...rows].sort((a, b) => places[a]![dimension]! - places[b]![dimension]!);
    let left = 0;
    for (let i = 1; i < n; i++) {
      left += values[sorted[i - 1]!]!;
      const before = places[sorted[i - 1]!]![dimension]!;
      const after = places[sorted[i]!]![dimension]!;
      if (before === after || i < leafMin || n - i < leafMin) continue;
      const gain = (left * left) / i + (total - left) ** 2 / (n - i);
      if (gain <= bestGain) continue;
      bestGain = gain;
      best = { dimension, at: (before + after) / 2 };
    }
  }
  return best;
}

/** For each dimension the share of a tree's variance over the unit cube that it alone explains. */
function explained(leaves: readonly Leaf[], dimensions: number): number[] | null {
  const volumes = leaves.map(({ low, high }) =>
    low.reduce((volume, start, d) => volume * (high[d]! - start), 1),
  );
  const mean = leaves.reduce((sum, { value }, i) => sum + value * volumes[i]!, 0);
  const variance = leaves.reduce((sum, { value }, i) => sum + volumes[i]! * (value - mean) ** 2, 0);
  if (!(variance > 0)) return null;
  return Array.from({ length: dimensions }, (_, d) => {
    const cuts = [...new Set(leaves.flatMap(({ low, high }) => [low[d]!, high[d]!]))].sort(
      (a, b) => a - b,
    );
    let own = 0;
    for (let c = 1; c < cuts.length; c++) {
      const [start, end] = [cuts[c - 1]!, cuts[c]!];
      // The mean of the tree over all other dimensions, where this one lies between two cuts.
      let marginal = 0;
      leaves.forEach(({ low, high, value }, i) => {
        const covers = low[d]! <= start && high[d]! >= end;
        if (covers) marginal += (value * volumes[i]!) / (high[d]! - low[d]!);
      });
      own += (end - start) * (marginal - mean) ** 2;
    }
    return own / variance;
  });
}
