import { join } from 'node:path';
import { conductStudy, type StudyOptions, type StudyPlan, type Trial } from '../../study/study.ts';
import { experimentName, hashExperiment } from '../../worker/experiment.ts';
import type { Cluster } from './cluster.ts';

/** Conducts a study on real workers that take whatever the server has. */
export async function studyOn(
  cluster: Cluster,
  name: string,
  file: string,
  plan: StudyPlan,
  parallel = 2,
  more: Partial<StudyOptions> = {},
): Promise<readonly Trial[]> {
  const { done, trials } = await conductStudy({
    ...{ client: cluster.client, name, plan, parallel, settings: name },
    folder: join(cluster.folder, 'studies', name),
    experiment: experimentName(file),
    experimentHash: await hashExperiment(file),
    signal: new AbortController().signal,
    onEvent: () => {},
    pollMs: 50,
    ...more,
  });
  if (!done) throw new Error(`study ${name} was not done`);
  return trials;
}

/** Workers of a cluster for all of its runs. */
export async function workForAll(
  cluster: Cluster,
  count: number,
  folders: readonly string[],
): Promise<void> {
  for (let i = 1; i <= count; i++) {
    cluster.work('any', `worker-${i}`, { run: null, once: false, folders });
  }
  await cluster.joined(count);
}
