import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type CheckpointManifest, checkpointFolder, readCheckpoint } from '../server/checkpoint.ts';
import type { RunConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { CheckpointSummary, Evaluation } from '../shared/rest.ts';
import type { Session } from './embedded.ts';

/** A checkpoint for a command that reads one: from a file, from a state folder, or over the network. */

/** What is told of a checkpoint: `downpour.json` beside an exported model says it. */
export interface CheckpointFacts {
  readonly run: string;
  readonly kind: string;
  readonly step: number;
  readonly experiment: string;
  readonly experimentHash: string;
  readonly layoutHash: string | null;
  readonly config: RunConfig;
  /** Of the parameters that are best so far, and of the one look at the test part. */
  readonly best: Evaluation | null;
  readonly test: Evaluation | null;
  readonly testedAt: string | null;
  readonly checkpointSha256: string;
}

/** The part of a manifest's state that an export tells. */
interface KnownState {
  readonly options: {
    readonly experiment: string;
    readonly experimentHash: string;
    readonly config: RunConfig;
  };
  readonly best: { readonly evaluation: Evaluation } | null;
  readonly test: Evaluation | null;
  readonly testedAt?: string | null;
}

/** Copies a checkpoint of the disk. @param partial where to. @throws DownpourError of its reading. */
export async function copyFromFile(path: string, partial: string): Promise<CheckpointFacts> {
  const { manifest } = await readCheckpoint(process.cwd(), path);
  await copyFile(join(resolve(path), '..', manifest.file), partial);
  return factsOf(manifest);
}

function factsOf(manifest: CheckpointManifest): CheckpointFacts {
  const { options, best, test, testedAt = null } = manifest.state as KnownState;
  return {
    run: manifest.run,
    kind: manifest.kind,
    step: manifest.step,
    experiment: options.experiment,
    experimentHash: options.experimentHash,
    layoutHash: manifest.layoutHash,
    config: options.config,
    best: best?.evaluation ?? null,
    test,
    testedAt,
    checkpointSha256: manifest.sha256,
  };
}

/**
 * Copies the newest checkpoint of a run, of the first of these kinds that it has.
 * @throws DownpourError DP_CHECKPOINT_MISSING, DP_CHECKPOINT_CORRUPT or what the server says.
 */
export async function copyFromRun(
  { client, state }: Session,
  id: string,
  kinds: readonly CheckpointSummary['kind'][],
  partial: string,
): Promise<CheckpointFacts> {
  const run = await client.run(id);
  const checkpoints = await client.checkpoints(id);
  const checkpoint = kinds
    .map((wanted) => checkpoints.findLast(({ kind }) => kind === wanted))
    .find((found) => found !== undefined);
  if (!checkpoint) {
    const known = [...new Set(checkpoints.map(({ kind }) => kind))].join(', ') || 'none';
    throw new DownpourError(
      'DP_CHECKPOINT_MISSING',
      `run ${id} has no checkpoint '${kinds.join("' or '")}' yet; it has: ${known}`,
    );
  }
  if (state !== null) {
    await copyFile(join(checkpointFolder(state, id), checkpoint.file), partial);
  } else {
    await download(await client.checkpointFile(id, checkpoint.kind), partial, checkpoint.sha256);
  }
  return {
    run: run.id,
    kind: checkpoint.kind,
    step: checkpoint.step,
    experiment: run.experiment,
    experimentHash: run.experimentHash,
    layoutHash: run.layoutHash,
    config: run.config,
    best: run.best,
    test: run.test,
    testedAt: run.testedAt,
    checkpointSha256: checkpoint.sha256,
  };
}

async function download(
  body: ReadableStream<Uint8Array>,
  path: string,
  sha256: string,
): Promise<void> {
  const hash = createHash('sha256');
  const hashing = new Transform({
    transform(chunk, _encoding, done) {
      hash.update(chunk);
      done(null, chunk);
    },
  });
  await pipeline(body, hashing, createWriteStream(path));
  const seen = hash.digest('hex');
  if (seen === sha256) return;
  throw new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `the checkpoint arrived with SHA-256 ${seen}, the server says ${sha256}: a newer one may just have replaced it; try again`,
  );
}
