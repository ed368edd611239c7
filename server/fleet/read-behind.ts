import type { DownpourError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Keeper } from '../checkpoints/keeper.ts';
import { type InheritedRuns, type KnownRun, readingProgress } from '../checkpoints/recovery.ts';
import { type Coordinator, warning } from './coordinator.ts';
import { RunLoader } from './run-loader.ts';

/** Reads runs while the server listens; then their newest checkpoints are copied, where they are not yet. */
export function readBehind(
  known: readonly KnownRun[],
  options: {
    readonly keeper: Keeper;
    /** That a standby inherits. */
    readonly replicas?: InheritedRuns;
    readonly coordinator: Coordinator;
    readonly now: () => number;
    readonly log: Log;
    readonly onDefect: (error: DownpourError) => void;
  },
): RunLoader<KnownRun> {
  const { keeper, coordinator, log } = options;
  const told = readingProgress(known.length, options);
  let done = 0;
  const loader = new RunLoader({
    known,
    read(run) {
      told(done++);
      return keeper.read(run, options.replicas);
    },
    adopt: (run) => coordinator.adoptLate(run),
  });
  const created = known.flatMap(({ record }) => record?.createdAt ?? []);
  coordinator.load(loader, created);
  const catchUp = async () => {
    await loader.done;
    if (loader.left > 0) return;
    const ids = coordinator.runs.map(({ id }) => id);
    await coordinator.copier?.catchUp(ids).catch((error: unknown) => {
      log(warning('not all checkpoints are copied', error), { level: 'warn' });
    });
  };
  catchUp().catch(options.onDefect);
  return loader;
}
