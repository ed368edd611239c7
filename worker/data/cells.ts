/** What the text of one cell of a table means. */

const MISSING = new Set(['', '?', 'na', 'n/a', 'nan', 'null']);
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** @param text trimmed */
export function isMissing(text: string): boolean {
  return MISSING.has(text.toLowerCase());
}

/** @param text trimmed */
export function isNumber(text: string): boolean {
  return NUMBER.test(text);
}

/** By number when all are numbers, so that class 10 follows 9, else by code unit: no locale decides. */
export function sortNames(names: readonly string[]): string[] {
  return names.every(isNumber)
    ? [...names].sort((a, b) => Number(a) - Number(b) || (a < b ? -1 : 1))
    : [...names].sort();
}
