import { ERRORS, type ErrorCode } from '../shared/errors.ts';
import type { StudyFailure } from './report.ts';
import type { Trial } from './study.ts';

/** Why trials of a study failed, in their own words. */

/** So many different reasons are told; of the others their number. */
const REASONS = 3;

/** `3 of 10 trials failed and are not counted: ‹reason› (2 of them), ‹reason›.`; null: none failed. */
export function failuresText(trials: readonly Trial[]): string | null {
  const count = failed(trials).length;
  if (count === 0) return null;
  const of = `${count} of ${trials.length} trial${trials.length === 1 ? '' : 's'}`;
  return `${of} failed and ${count === 1 ? 'is' : 'are'} not counted: ${reasonsText(trials)}.`;
}

/**
 * What the command fails with, where a study has measured nothing.
 * @param measured trials with a result
 */
export function failureOf(trials: readonly Trial[], measured: number): StudyFailure | null {
  if (measured > 0) return null;
  if (trials.length === 0) {
    return { code: 'DP_RUN_FAILED', message: 'no trial was run, so there is nothing to report' };
  }
  const ends = failed(trials);
  const codes = new Set(ends.map(({ end }) => end?.code));
  const [code] = codes;
  const known = codes.size === 1 && code !== undefined && code in ERRORS;
  const reasons = ends.length === 0 ? 'none had a finite value' : reasonsText(trials);
  return {
    code: known && code !== 'DP_INTERNAL' ? (code as ErrorCode) : 'DP_RUN_FAILED',
    message: `none of ${trials.length} trial${trials.length === 1 ? '' : 's'} was measured: ${reasons}`,
  };
}

const failed = (trials: readonly Trial[]) => trials.filter(({ end }) => end?.kind === 'failed');

function reasonsText(trials: readonly Trial[]): string {
  const counts = new Map<string, number>();
  for (const { end } of failed(trials)) {
    const reason = end!.reason.replace(/[.\s]+$/, '') || 'no reason was given';
    counts.set(reason, (counts.get(reason) ?? 0) + 1);
  }
  const sorted = [...counts].sort(([, a], [, b]) => b - a);
  const told = sorted
    .slice(0, REASONS)
    .map(([reason, count]) =>
      count > 1 && counts.size > 1 ? `${reason} (${count} of them)` : reason,
    );
  const more = sorted.length - told.length;
  return `${told.join('; ')}${more > 0 ? `; and ${more} other reasons` : ''}`;
}
