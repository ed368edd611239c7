import { invalid } from '../model/data-shape.ts';

/** Numbers that functions for images are given. */

/** @throws DownpourError DP_EXPERIMENT_INVALID: it is no number from `low` to `high`. */
export function numberIn(what: string, given: unknown, low: number, high: number): number {
  if (typeof given === 'number' && given >= low && given <= high) return given;
  throw invalid(`${what} is ${shown(given)}; allowed: a number from ${low} to ${high}`);
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: it is no whole number from `low` to `high`. */
export function wholeIn(what: string, given: unknown, low: number, high: number): number {
  if (Number.isInteger(given) && (given as number) >= low && (given as number) <= high) {
    return given as number;
  }
  throw invalid(`${what} is ${shown(given)}; allowed: a whole number from ${low} to ${high}`);
}

const shown = (given: unknown) =>
  typeof given === 'number' ? String(given) : (JSON.stringify(given) ?? 'undefined');
