import type { RunSummary } from './rest.ts';

/** When a run's training ends, or why it has, and what follows: in words that hold for its configuration. */

type StoppingFacts = Pick<RunSummary, 'phase' | 'stepsMax' | 'earlyStopping'>;

const THEN: Readonly<Record<string, string>> = {
  restore: 'then the best parameters are restored',
  retrain:
    'then it retrains on training and validation examples, for as many updates as the best had',
  continue:
    'then it continues from the best parameters on all examples, until the validation loss meets the target',
};

const AFTERWARDS: Readonly<Record<string, string>> = {
  restore: 'the best parameters were restored',
  retrain: 'it was retrained on training and validation examples',
  continue: 'it continued from the best parameters on all examples',
};

/** @param groups how whole numbers are told. @returns one sentence, without its full stop. */
export function stoppingText(run: StoppingFacts, groups: (value: number) => string): string {
  const { enabled, patience, patienceLeft, metric, afterStop, stoppedAt } = run.earlyStopping;
  const then = THEN[afterStop] ?? afterStop;
  if (stoppedAt !== null) {
    const stopped = `Training stopped at step ${groups(stoppedAt)}`;
    if (run.phase === 'failed') return stopped;
    const isDone = run.phase === 'finished' || run.phase === 'testing';
    return `${stopped}; ${isDone ? (AFTERWARDS[afterStop] ?? afterStop) : then}`;
  }
  if (run.phase === 'failed') return 'Training failed before it came to its end';
  const last = run.stepsMax === null ? null : `step ${groups(run.stepsMax)}`;
  if (enabled) {
    const left = `${groups(patienceLeft)} of ${groups(patience)} evaluation${patience === 1 ? '' : 's'} without a lower validation ${metric} are left before training stops`;
    return `${left}${last === null ? '' : `, at ${last} at the latest`}; ${then}`;
  }
  // Epochs become steps once a worker has told how many examples there are.
  return `Early stopping is off: training ends at ${last ?? 'its last epoch'}; ${then}`;
}
