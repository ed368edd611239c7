import type { RunSummary } from '../../shared/rest.ts';

/** The columns of the table of runs, and the values that it is ordered by. */

/** What one line is ordered by; null: at the end, whichever way. */
export type Key = number | string | null;

export interface RunColumn {
  readonly name: string;
  readonly title: string;
  readonly key: (run: RunSummary) => Key;
  /** How one line that stands for several runs is ordered. Default: the largest. */
  readonly fold?: 'sum' | 'least';
  readonly class?: string;
}

export const COLUMNS: readonly RunColumn[] = [
  { name: 'run', title: 'Run', key: (run) => run.createdAt },
  { name: 'state', title: 'State', key: (run) => run.phase },
  { name: 'step', title: 'Step', key: (run) => run.step, class: 'number' },
  { name: 'loss', title: 'Training loss', key: (run) => run.trainingLoss, fold: 'least' },
  {
    ...{ name: 'best', title: 'Best validation', class: 'number', fold: 'least' },
    key: (run) => run.best?.error ?? run.best?.loss ?? null,
  },
  {
    ...{ name: 'speed', title: 'Throughput', class: 'number', fold: 'sum' },
    key: (run) => run.examplesPerSecond,
  },
  { name: 'time', title: 'Time', key: (run) => run.seconds, class: 'number', fold: 'sum' },
];

/** Columns of metrics that are shown before somebody chooses. */
export const METRICS_FIRST = 3;
/** What is measured on the training part, beside the metrics of the experiment. */
const ON_TRAINING: readonly string[] = ['trainingLoss', 'trainingError'];

/** Names of the experiments' own metrics, in alphabetical order. */
export function metricNamesOfRuns(runs: readonly RunSummary[]): string[] {
  const names = new Set<string>();
  for (const { best, validation } of runs) {
    for (const name of Object.keys((best ?? validation)?.metrics ?? {})) names.add(name);
  }
  return [...names].filter((name) => !ON_TRAINING.includes(name)).sort();
}

/** A metric at the best evaluation, or at the last one where none is the best. */
export const metricOf = ({ best, validation }: RunSummary, name: string) =>
  (best ?? validation)?.metrics[name] ?? null;

export const metricColumn = (name: string): RunColumn => ({
  ...{ name: `metric-${name}`, title: name, class: 'number col-metric' },
  key: (run) => metricOf(run, name),
});

/** @param runs of one line: a run, or the trials of a study. */
export function sortKey({ key, fold }: RunColumn, runs: readonly RunSummary[]): Key {
  const keys = runs.map(key).filter((each) => each !== null);
  if (keys.length <= 1) return keys[0] ?? null;
  if (fold === 'sum') return keys.reduce<number>((sum, each) => sum + Number(each), 0);
  return keys.reduce((a, b) => (a < b === (fold === 'least') ? a : b));
}
