/** Null: not finite, or unknown. */
interface EvaluatedTrial {
  readonly best: { readonly loss: number | null; readonly error: number | null } | null;
}

export interface BestTrial<Run> {
  readonly run: Run;
  readonly metric: 'error' | 'loss';
  readonly value: number;
}

/**
 * The trial of a study with the lowest validation error; with the lowest validation loss where some trials have no error.
 * Studies rank their trials by the same value. Null: none is evaluated.
 */
export function bestTrial<Run extends EvaluatedTrial>(runs: readonly Run[]): BestTrial<Run> | null {
  const evaluated = runs.flatMap((run) =>
    run.best ? [{ run, loss: run.best.loss, error: run.best.error }] : [],
  );
  const metric = evaluated.every(({ error }) => error !== null) ? 'error' : 'loss';
  let lowest: BestTrial<Run> | null = null;
  for (const each of evaluated) {
    const value = each[metric];
    if (value !== null && value < (lowest?.value ?? Infinity))
      lowest = { run: each.run, metric, value };
  }
  return lowest;
}
