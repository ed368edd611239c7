/** Learning rates that are fair to compare: each arm has its own, and an optimum at the edge of a grid is none. */

export interface Tuned {
  readonly rate: number;
  /** Of each rate that was tried, ascending. */
  readonly tried: readonly { readonly rate: number; readonly value: number }[];
}

const STEP = 2;
/** The grid is extended so often on each side. */
const EXTENSIONS_MAX = 8;

/**
 * The best of a grid of powers of 2 around `start`, which grows until the best is inside.
 * @param evaluate higher is better; not finite: it diverged.
 */
export async function tuneRate(
  start: number,
  evaluate: (rate: number) => Promise<number>,
): Promise<Tuned> {
  const values = new Map<number, number>();
  const at = async (power: number) => {
    const known = values.get(power);
    if (known !== undefined) return known;
    const value = await evaluate(start * STEP ** power);
    const finite = Number.isFinite(value) ? value : Number.NEGATIVE_INFINITY;
    values.set(power, finite);
    return finite;
  };
  let best = 0;
  for (const power of [-1, 0, 1]) if ((await at(power)) > (await at(best))) best = power;
  for (let i = 0; i < EXTENSIONS_MAX; i++) {
    const before = best;
    for (const power of [best - 1, best + 1])
      if ((await at(power)) > (await at(best))) best = power;
    if (best === before) break;
  }
  const tried = [...values]
    .map(([power, value]) => ({ rate: start * STEP ** power, value }))
    .sort((a, b) => a.rate - b.rate);
  return { rate: start * STEP ** best, tried };
}

/**
 * The largest of the rates start · 2ⁿ that is stable, where all below it are too.
 * @returns null: none of them is.
 */
export async function largestStable(
  start: number,
  isStable: (rate: number) => Promise<boolean>,
): Promise<number | null> {
  let rate = start;
  if (await isStable(rate)) {
    for (let i = 0; i < 2 * EXTENSIONS_MAX; i++) {
      if (!(await isStable(rate * STEP))) return rate;
      rate *= STEP;
    }
    return rate;
  }
  for (let i = 0; i < 2 * EXTENSIONS_MAX; i++) {
    rate /= STEP;
    if (await isStable(rate)) return rate;
  }
  return null;
}
