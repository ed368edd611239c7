/**
 * The value that a share of the others lie below, linear between neighbours; NaN of an empty list.
 * @param share 0 … 1.
 */
export function quantileOf(values: Iterable<number>, share: number): number {
  const sorted = Float64Array.from(values).sort();
  if (sorted.length === 0) return Number.NaN;
  const at = share * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  const above = sorted[Math.ceil(at)]!;
  // Infinities are values here: a diverged trial has the worst there is.
  return below === above ? below : below + (above - below) * (at - Math.floor(at));
}

export function medianOf(values: Iterable<number>): number {
  return quantileOf(values, 0.5);
}
