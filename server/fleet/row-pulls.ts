import { DownpourError } from '../../shared/errors.ts';
import type { Assignment } from '../core/run/calls.ts';

/**
 * For each minibatch: one for the rows that no answer has brought, one after its push was rejected, and each in two pieces
 * where the rows are many.
 */
export const PULLS_PER_LEASE = 4;

/** Judges whether the rows that a worker asks for are those that its work needs. */
export class RowPulls {
  #left = 0;
  readonly #evaluation = { id: -1, left: 0 };

  /** It is given work. @param examples of the evaluation, which it may ask for one by one. */
  given(
    { leases, evaluation }: Pick<Extract<Assignment, { kind: 'work' }>, 'leases' | 'evaluation'>,
    examples: number,
  ): void {
    this.#left = Math.max(this.#left, PULLS_PER_LEASE * leases.length);
    // A worker that comes back to the same one has had its rows.
    if (!evaluation || evaluation.id === this.#evaluation.id) return;
    Object.assign(this.#evaluation, { id: evaluation.id, left: examples });
  }

  /** Counts one. @param evaluation that the rows are for; null: a minibatch. */
  allow(evaluation: number | null): boolean {
    if (evaluation === null) return this.#left-- > 0;
    return evaluation === this.#evaluation.id && this.#evaluation.left-- > 0;
  }
}

/** A message about rows came for a run that has none. */
export const noTables = (type: string, run: string) =>
  new DownpourError(
    'DP_ROWS_INVALID',
    `'${type}' for run '${run}', which has no tables: pull and push parameters alone`,
  );
