import { errorCode } from '../../shared/errors.ts';
import type { RunSummary } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';

/** Commands that choose a run by themselves take none that a study has made: its trials may have seen a part of the data. */

export interface RunsAndTrials {
  /** Oldest first, as all of them. */
  readonly own: readonly RunSummary[];
  /** The runs of studies. */
  readonly trials: readonly RunSummary[];
}

/** All runs of a server, apart. */
export async function runsAndTrials(
  client: Pick<RestClient, 'runs' | 'studies'>,
): Promise<RunsAndTrials> {
  const runs = [...(await client.runs())].sort((a, b) => a.createdAt.localeCompare(b.createdAt));
  // Release 0.1.0 wrote down no study: the studies that the server knows begin the names of their trials.
  const studies = (await client.studies()).filter(({ run }) => run === null);
  const isTrial = ({ id, study }: RunSummary) =>
    study != null || studies.some(({ name }) => id.startsWith(`${name}-`));
  return {
    own: runs.filter((run) => !isTrial(run)),
    trials: runs.filter(isTrial),
  };
}

/** All trials of a study, archived ones too; null: the server has a run of that name, or no such study. */
export async function studyNamed(
  client: Pick<RestClient, 'run' | 'runs'>,
  name: string,
): Promise<RunSummary[] | null> {
  try {
    await client.run(name);
    return null;
  } catch (error) {
    if (errorCode(error) !== 'DP_RUN_UNKNOWN') throw error;
  }
  // An older server does not know the question.
  const trials = await client.runs({ study: name, archived: 'all' }).catch(() => []);
  return trials.length > 0 ? trials : null;
}
