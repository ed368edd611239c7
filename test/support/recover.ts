import type { Keeper } from '../../server/checkpoints/keeper.ts';
import type { InheritedRuns } from '../../server/checkpoints/recovery.ts';
import type { Run } from '../../server/core/run.ts';

/** All runs of a state folder, one after the other, as a server reads them. */
export async function recover(keeper: Keeper, replicas: InheritedRuns = null): Promise<Run[]> {
  const runs: Run[] = [];
  for (const known of await keeper.known(replicas)) {
    const run = await keeper.read(known, replicas);
    if (run) runs.push(run);
  }
  return runs;
}
