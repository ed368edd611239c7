import { fieldsOf } from '../../shared/fields.ts';
import type { RunDetail } from '../../shared/rest.ts';

/** Which runs belong together, and what their configurations differ in. */

export type GroupBy = 'configuration' | 'run' | 'experiment' | 'study' | 'tag';

export interface Compared {
  readonly id: string;
  readonly experiment: string;
  readonly study: string | null;
  readonly tags: readonly string[];
  /** Null: not read yet. */
  readonly detail: Pick<RunDetail, 'config' | 'experimentHash' | 'data'> | null;
}

export interface RunGroup {
  readonly label: string;
  /** Names of runs, in the order in which they were chosen. */
  readonly runs: readonly string[];
}

/** Runs of equal configuration except the seed are repetitions of one experiment. */
export function runGroups(runs: readonly Compared[], by: GroupBy): RunGroup[] {
  const groups = new Map<string, Compared[]>();
  for (const run of runs) {
    const key = keyOf(run, by);
    const group = groups.get(key);
    if (group) group.push(run);
    else groups.set(key, [run]);
  }
  const members = [...groups.values()];
  const differing = by === 'configuration' ? differences(members).map(({ field }) => field) : [];
  return [...groups].map(([key, group]) => ({
    label: labelOf(key, group, by, differing),
    runs: group.map(({ id }) => id),
  }));
}

function keyOf(run: Compared, by: GroupBy): string {
  switch (by) {
    case 'run':
      return run.id;
    case 'experiment':
      return run.experiment;
    case 'study':
      return run.study ?? 'no study';
    case 'tag':
      return run.tags.length === 0 ? 'no tag' : [...run.tags].sort().join(' ');
    case 'configuration': {
      if (!run.detail) return `run ${run.id}`;
      const { seed: _, ...config } = run.detail.config;
      return JSON.stringify([run.experiment, run.detail.experimentHash, config]);
    }
  }
}

/** Names of more fields than this are no name of a group. */
const NAMED_FIELDS = 3;

function labelOf(
  key: string,
  group: readonly Compared[],
  by: GroupBy,
  differing: readonly string[],
): string {
  const [first] = group;
  if (by !== 'configuration') return key;
  if (group.length === 1) return first!.id;
  const fields = differing.filter((field) => field !== 'seed');
  if (fields.length === 0 || fields.length > NAMED_FIELDS) {
    return `${first!.id} and ${group.length - 1} more`;
  }
  const values = valuesOf(first!);
  return fields.map((field) => `${shortName(field)} ${values.get(field) ?? '–'}`).join(', ');
}

const shortName = (field: string) => field.replace(/^hyperparameters\./, '');

export interface Difference {
  readonly field: string;
  /** For each group its values without repetition, in the order of its runs; `–`: a run of it has no such field. */
  readonly values: readonly (readonly string[])[];
}

/** The fields of the configuration that are not the same in all runs; seeds come last. */
export function differences(groups: readonly (readonly Compared[])[]): Difference[] {
  const read = groups.map((group) => group.filter(({ detail }) => detail !== null).map(valuesOf));
  const fields = new Set(read.flat().flatMap((values) => [...values.keys()]));
  const found: Difference[] = [];
  for (const field of fields) {
    const values = read.map((group) => [...new Set(group.map((each) => each.get(field) ?? '–'))]);
    if (new Set(values.flat()).size > 1) found.push({ field, values });
  }
  const isSeed = ({ field }: Difference) => field === 'seed';
  return [...found.filter((each) => !isSeed(each)), ...found.filter(isSeed)];
}

function valuesOf({ experiment, detail }: Compared): Map<string, string> {
  const { config, experimentHash, data } = detail!;
  return new Map([
    ['experiment', experiment],
    ['version of the experiment', experimentHash.slice(0, 12)],
    ...(data ? ([['data', data.source]] as const) : []),
    ...fieldsOf(config),
  ]);
}
