import { meanOf } from '../../study/statistics.ts';

/** Learning rates that are fair to compare: each arm has its own, and an optimum at the edge of a grid is none. */

/** Seeds that no result is reported of. */
export const TUNING_SEED = 9_001;
const TUNING_SEEDS = [TUNING_SEED, TUNING_SEED + 1];

/** What a rate is judged by: the mean over the seeds for tuning. */
export async function tuningMean(train: (seed: number) => Promise<number>): Promise<number> {
  const values: number[] = [];
  for (const seed of TUNING_SEEDS) values.push(await train(seed));
  return meanOf(values);
}

export interface Tuned {
  readonly rate: number;
  /** Results of each rate that was tried, ascending. */
  readonly tried: readonly { readonly rate: number; readonly value: number }[];
}

const STEP = 2;
const COUNT_STEP = 4;
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
  const { at, tried } = await bestPower(evaluate, (power) => start * STEP ** power);
  return { rate: at, tried: tried.map(({ at: rate, value }) => ({ rate, value })) };
}

export interface TunedCount {
  readonly count: number;
  readonly tried: readonly { readonly count: number; readonly value: number }[];
}

/** As `tuneRate`, for a whole number such as the size of a buffer, in steps of 4. A limit of the number is no edge. */
export async function tuneCount(
  { start, least, most }: { readonly start: number; readonly least: number; readonly most: number },
  evaluate: (count: number) => Promise<number>,
): Promise<TunedCount> {
  const { at, tried } = await bestPower(evaluate, (power) =>
    Math.min(most, Math.max(least, Math.round(start * COUNT_STEP ** power))),
  );
  return { count: at, tried: tried.map(({ at: count, value }) => ({ count, value })) };
}

interface BestRate {
  readonly at: number;
  readonly tried: readonly { readonly at: number; readonly value: number }[];
}

async function bestPower(
  evaluate: (value: number) => Promise<number>,
  ofPower: (power: number) => number,
): Promise<BestRate> {
  const values = new Map<number, number>();
  const valueAt = async (power: number) => {
    const at = ofPower(power);
    const known = values.get(at);
    if (known !== undefined) return known;
    const value = await evaluate(at);
    const finite = Number.isFinite(value) ? value : Number.NEGATIVE_INFINITY;
    values.set(at, finite);
    return finite;
  };
  let best = 0;
  for (const power of [-1, 0, 1]) if ((await valueAt(power)) > (await valueAt(best))) best = power;
  for (let i = 0; i < EXTENSIONS_MAX; i++) {
    const before = best;
    for (const power of [best - 1, best + 1])
      if ((await valueAt(power)) > (await valueAt(best))) best = power;
    if (best === before) break;
  }
  const tried = [...values].map(([at, value]) => ({ at, value })).sort((a, b) => a.at - b.at);
  return { at: ofPower(best), tried };
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
