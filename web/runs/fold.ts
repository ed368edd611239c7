import type { RunSummary } from '../../shared/rest.ts';
import { type RunColumn, sortKey } from './columns.ts';

/** Which lines the table of runs has: runs, and studies that stand for their trials. */

export type Show = 'all' | 'active' | 'ended' | 'archived';

export type ListLine =
  | { readonly kind: 'run'; readonly run: RunSummary; readonly isTrial: boolean }
  | {
      readonly kind: 'study';
      readonly study: string;
      readonly runs: readonly RunSummary[];
      readonly isOpen: boolean;
    };

export interface WantedRuns {
  readonly show: Show;
  /** Lower case; empty: all. */
  readonly filter: string;
  readonly column: RunColumn;
  readonly descending: boolean;
  /** Studies whose trials are listed. */
  readonly open: ReadonlySet<string>;
  readonly isActive: (run: RunSummary) => boolean;
}

/** A filter is for runs: the trials that match are listed, whether their study is open or not. */
export function listLines(runs: readonly RunSummary[], wanted: WantedRuns): ListLine[] {
  const { column, descending, filter, open } = wanted;
  const groups = new Map<string, RunSummary[]>();
  for (const run of runs) {
    if (!isWanted(run, wanted)) continue;
    const key = run.study === null ? `run ${run.id}` : `study ${run.study}`;
    const group = groups.get(key);
    if (group) group.push(run);
    else groups.set(key, [run]);
  }
  const sign = descending ? -1 : 1;
  const compare = (a: readonly RunSummary[], b: readonly RunSummary[]) => {
    const [x, y] = [sortKey(column, a), sortKey(column, b)];
    if (x === null || y === null) return x === y ? 0 : x === null ? 1 : -1;
    return x < y ? -sign : x > y ? sign : 0;
  };
  return [...groups.values()].sort(compare).flatMap((group): ListLine[] => {
    const [first] = group;
    const { study } = first!;
    if (study === null || group.length === 1) {
      return group.map((run) => ({ kind: 'run', run, isTrial: false }));
    }
    const isOpen = filter !== '' || open.has(study);
    const trials = isOpen
      ? [...group]
          .sort((a, b) => compare([a], [b]))
          .map((run): ListLine => ({ kind: 'run', run, isTrial: true }))
      : [];
    return [{ kind: 'study', study, runs: group, isOpen }, ...trials];
  });
}

function isWanted(run: RunSummary, { show, filter, isActive }: WantedRuns): boolean {
  if ((run.archived ?? false) !== (show === 'archived')) return false;
  if (show === 'active' || show === 'ended') {
    if (isActive(run) !== (show === 'active')) return false;
  }
  if (filter === '') return true;
  const { id, name, experiment, phase, study, tags = [], note } = run;
  return [id, name, experiment, phase, study, note, ...tags].some(
    (text) => text?.toLowerCase().includes(filter) ?? false,
  );
}
