/** What a check of an experiment found. */

export type CheckVerdict = 'ok' | 'advice' | 'problem';

export interface Finding {
  /** Stable, for scripts: `--accept` takes it. */
  readonly check: string;
  readonly verdict: CheckVerdict;
  /** One or two sentences with the numbers. */
  readonly text: string;
  /** What to do; null where all is well. */
  readonly next: string | null;
  readonly numbers: Readonly<Record<string, unknown>>;
}

export function finding(
  check: string,
  verdict: CheckVerdict,
  text: string,
  next: string | null,
  numbers: Readonly<Record<string, unknown>> = {},
): Finding {
  return { check, verdict, text, next: verdict === 'ok' ? null : next, numbers };
}

/** What a check cannot do with so few examples: no fault of theirs. */
export function tooFew(check: string, what: string, count: number, needed: number): Finding {
  const text = `Not enough examples to tell ${what}: ${count}, needs ${needed}.`;
  return finding(check, 'ok', text, null, { count, needed });
}

/** Three significant digits. */
export const short = (value: number): string =>
  Number.isFinite(value) ? String(Number(value.toPrecision(3))) : String(value);
export const percent = (share: number): string => `${Number((100 * share).toPrecision(3))} %`;
export const mean = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]!;
  return sum / values.length;
};
/** L2. */
export const norm = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! * values[i]!;
  return Math.sqrt(sum);
};
