import { checkpointFolder, readCheckpoint, writeCheckpoint } from '../../files/checkpoint.ts';
import { type CheckpointManifest, listCheckpoints } from '../../files/manifest.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { CreateRun } from '../../shared/rest.ts';
import type { RunOptions, RunState } from '../core/run/state.ts';
import { Run } from '../core/run.ts';
import type { StateStore } from '../store/state-store.ts';

/**
 * Writes the first checkpoint of a run that begins with the parameters of another one, which is left as it is.
 * @param source its checkpoints are on disk.
 * @throws DownpourError DP_CHECKPOINT_MISSING, DP_CHECKPOINT_CORRUPT, DP_DISK or what the store throws.
 */
export async function beginFork(
  source: Run,
  { checkpoint: which, data }: Omit<NonNullable<CreateRun['fork']>, 'run'>,
  options: Omit<RunOptions, 'fork'>,
  server: {
    readonly root: string;
    readonly store: StateStore;
    readonly token: number;
    readonly life: number;
    readonly now: () => number;
  },
): Promise<{ readonly fork: Run; readonly manifest: CheckpointManifest }> {
  const from = checkpointFolder(server.root, source.id);
  const written = await listCheckpoints(from);
  const origin = written.findLast(({ kind, file }) => kind === which || file === which);
  if (!origin) {
    throw new DownpourError(
      'DP_CHECKPOINT_MISSING',
      `run '${source.id}' has no checkpoint '${which}'; it has: ${written.map(({ file }) => file).join(', ') || 'none yet'}`,
    );
  }
  const { tensors } = await readCheckpoint(from, origin);
  const { step, file: checkpoint, layoutHash } = origin;
  const state = origin.state as RunState;
  // More may be known by now than an old checkpoint says.
  const known = { data: source.data ?? state.data, facts: source.facts ?? state.facts ?? null };
  const fork = Run.fork(
    { ...options, fork: { run: source.id, step, checkpoint, ...(data && { data }) } },
    { ...state, ...known },
    tensors,
  );
  await server.store.mayWrite(server.token);
  const manifest = await writeCheckpoint(checkpointFolder(server.root, fork.id), {
    ...{ run: fork.id, step: 0, kind: 'last', layoutHash },
    tensors: fork.tensors(),
    state: { ...fork.state(server.now()), life: server.life },
    now: new Date(),
  });
  return { fork, manifest };
}
