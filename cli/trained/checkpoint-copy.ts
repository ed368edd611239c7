import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { checkpointFolder, readCheckpoint } from '../../files/checkpoint.ts';
import type { CheckpointManifest } from '../../files/manifest.ts';
import { readTensors } from '../../files/tensor-file.ts';
import { copyWhole } from '../../files/whole-checkpoint.ts';
import type { ForkOrigin } from '../../server/core/run/state.ts';
import type { RunConfig } from '../../shared/config.ts';
import { type DataFacts, forkNote, unpackTransform } from '../../shared/data-facts.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { isOver } from '../../shared/phases.ts';
import type { DataSummary, Phase } from '../../shared/protocol.ts';
import { parseReading } from '../../shared/reading.ts';
import type { CheckpointSummary, Evaluation, RunData, RunDetail } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { type CheckpointKind, kindOfModel, measurementsOf } from '../../shared/trained-last.ts';
import type { KnownData } from '../../worker/data/facts.ts';
import { DEFAULT_EXPERIMENTS, type RunCommandOptions, tell } from '../options.ts';
import { openUsedServer, type UsedServer } from '../used-server.ts';

/** A checkpoint for a command that reads one: from a file, from a state folder, or over the network. */

/** What is told of a checkpoint: `downpour.json` beside an exported model says it. */
export interface CheckpointFacts {
  readonly run: string;
  readonly kind: CheckpointKind | 'mean';
  /** Whose parameters they are: of final ones that were restored, that of the best evaluation. */
  readonly step: number;
  readonly experiment: string;
  readonly experimentHash: string;
  readonly layoutHash: string | null;
  readonly config: RunConfig;
  /** The validation and the one look at the test part, each where it was made with these parameters. */
  readonly best: Evaluation | null;
  readonly test: Evaluation | null;
  readonly testedAt: string | null;
  /** They were trained on the validation examples, too. */
  readonly learntValidation: boolean;
  readonly checkpointSha256: string;
}

/** A checkpoint's tensors have been copied; this is what is known of them. */
export interface Copied {
  readonly facts: CheckpointFacts;
  readonly data: KnownData;
  /** As `dataNote` of a run. */
  readonly note: string | null;
}

/** All that a program needs that uses the parameters: `downpour.json`. */
export function aboutModel({ facts, data }: Copied): Record<string, unknown> {
  const { summary } = data;
  if (!data.facts) return { ...facts, data: summary };
  const {
    transform,
    inputs,
    targets,
    classCount,
    classes,
    inputNames,
    targetNames,
    reading,
    fields,
    vocabulary,
  } = data.facts;
  return {
    ...facts,
    data: summary,
    inputTransform: unpackTransform(transform),
    ...{ inputShape: inputs.shape, targetShape: targets.shape },
    ...{ classCount, classes, inputNames, targetNames },
    ...(fields && {
      fields: fields.map(({ transform, column, ...field }) => ({
        ...{ ...field, ...column },
        ...(transform ? { inputTransform: unpackTransform(transform) } : {}),
      })),
    }),
    ...(reading === undefined ? {} : { reading: parseReading(reading) }),
    ...(vocabulary && { vocabulary }),
  };
}

/**
 * The file of the experiment whose model the parameters are of; one that has changed is used, and said.
 * @param folders given; default: those of all commands. @throws DownpourError DP_EXPERIMENT_UNKNOWN.
 */
export async function experimentOf(
  { experiment, experimentHash }: CheckpointFacts,
  folders: readonly string[] = DEFAULT_EXPERIMENTS,
): Promise<string> {
  const { experimentFolders, findExperiments } = await import('../../worker/experiment.ts');
  const searched = experimentFolders([...folders]);
  const found = (await findExperiments(searched)).get(experiment);
  if (!found) {
    throw new DownpourError(
      'DP_EXPERIMENT_UNKNOWN',
      `the model is made by the experiment '${experiment}', which is in none of ${searched.join(', ')}: name its folder by --experiments`,
    );
  }
  if (found.hash !== experimentHash) {
    tell(`${found.path} has changed since the run; the current model is used`);
  }
  return found.path;
}

/** The part of a manifest's state that an export tells. */
interface KnownState {
  readonly phase: Phase;
  readonly options: {
    readonly experiment: string;
    readonly experimentHash: string;
    readonly config: RunConfig;
    readonly fork?: ForkOrigin;
  };
  readonly best: { readonly evaluation: Evaluation } | null;
  readonly test: Evaluation | null;
  readonly testedAt?: string | null;
  readonly stoppedAt: number | null;
  readonly data: DataSummary | null;
  readonly facts?: DataFacts | null;
  readonly originData?: DataSummary | null;
}

/** Copies a checkpoint of the disk. @param partial where to. @throws DownpourError of its reading. */
export async function copyFromFile(path: string, partial: string): Promise<Copied> {
  const { manifest } = await readCheckpoint(process.cwd(), path, false);
  await copyTo(partial, join(resolve(path), '..'), manifest);
  const { options, data: summary, facts = null, originData = null } = manifest.state as KnownState;
  return {
    facts: factsOf(manifest),
    data: { run: manifest.run, summary, facts },
    note: forkNote(options.fork, originData, summary),
  };
}

function factsOf(manifest: CheckpointManifest): CheckpointFacts {
  const { options, phase, best, test, testedAt = null, stoppedAt } = manifest.state as KnownState;
  const { config } = options;
  const course = { phase, config, best: best?.evaluation ?? null, test, testedAt, stoppedAt };
  return {
    run: manifest.run,
    kind: manifest.kind,
    experiment: options.experiment,
    experimentHash: options.experimentHash,
    layoutHash: manifest.layoutHash,
    config,
    ...measurementsOf(course, manifest, true),
    checkpointSha256: manifest.sha256,
  };
}

const POLL_MS = 100;
/** How long a run that has ended may take to write its checkpoints; a full disk may never take them. */
const WRITING_MS = 30_000;

/** The checkpoints of a run. The server writes beside training: the last ones may come a moment after the end. */
export async function writtenCheckpoints(
  client: Pick<RestClient, 'checkpoints'>,
  { id, best, phase }: Pick<RunDetail, 'id' | 'best' | 'phase'>,
): Promise<CheckpointSummary[]> {
  const over = isOver(phase);
  for (let waited = 0; ; waited += POLL_MS) {
    const checkpoints = await client.checkpoints(id);
    const complete =
      (best === null || checkpoints.some((c) => c.kind === 'best' && c.step === best.step)) &&
      (phase !== 'finished' || checkpoints.some((c) => c.kind === 'final'));
    if (!over || complete || waited >= WRITING_MS) return checkpoints;
    await wait(POLL_MS);
  }
}

/** `copyFromRun`, of the server or the state folder that the options name. */
export async function copyOfRun(
  id: string,
  partial: string,
  options: RunCommandOptions & { readonly kind?: CheckpointKind; readonly signal?: AbortSignal },
): Promise<Copied> {
  const usedServer = await openUsedServer({ ...options, run: id });
  try {
    const { kind = null, signal } = options;
    signal?.throwIfAborted();
    return await copyFromRun(usedServer, id, kind, partial, signal);
  } finally {
    await usedServer.close();
  }
}

/**
 * Copies the newest checkpoint of a run.
 * @param kind null: the one that stands for the run.
 * @throws DownpourError DP_CHECKPOINT_MISSING, DP_CHECKPOINT_CORRUPT or what the server says.
 */
export async function copyFromRun(
  { client, state }: UsedServer,
  id: string,
  kind: CheckpointKind | null,
  partial: string,
  signal?: AbortSignal,
): Promise<Copied> {
  const run = await client.run(id);
  const wanted = kind ?? kindOfModel(run);
  const checkpoints = await writtenCheckpoints(client, run);
  const checkpoint = checkpoints.findLast((one) => one.kind === wanted);
  if (!checkpoint) {
    const known = [...new Set(checkpoints.map((one) => one.kind))].join(', ');
    throw new DownpourError(
      'DP_CHECKPOINT_MISSING',
      `run ${id} (${run.phase}) has no checkpoint '${wanted}' yet; ${known === '' ? 'it has none' : `it has: ${known}; choose one by --kind`}`,
    );
  }
  if (state !== null) await copyTo(partial, checkpointFolder(state, id), checkpoint);
  else {
    const body = await client.checkpointFile(id, checkpoint.kind);
    await download(body, partial, { ...checkpoint, signal });
  }
  const facts: CheckpointFacts = {
    run: run.id,
    kind: checkpoint.kind,
    experiment: run.experiment,
    experimentHash: run.experimentHash,
    layoutHash: run.layoutHash,
    config: run.config,
    ...measurementsOf({ ...run, stoppedAt: run.earlyStopping.stoppedAt }, checkpoint),
    checkpointSha256: checkpoint.sha256,
  };
  const data = { run: run.id, ...(await runData(client, run)) };
  return { facts, data, note: run.dataNote ?? null };
}

async function runData(client: RestClient, { id, data }: RunDetail): Promise<RunData> {
  try {
    return await client.runData(id);
  } catch (error) {
    // A server of an older release, which keeps nothing.
    if (errorCode(error) !== 'DP_NOT_FOUND') throw error;
    return { summary: data, facts: null };
  }
}

/** One file, also of a checkpoint whose rows are in several. */
async function copyTo(
  partial: string,
  folder: string,
  { file, continues }: { readonly file: string; readonly continues?: unknown },
): Promise<void> {
  if (continues === undefined) await copyFile(join(folder, file), partial);
  else await copyWhole(folder, file, partial);
}

async function download(
  body: ReadableStream<Uint8Array>,
  path: string,
  {
    sha256,
    step,
    continues,
    signal,
  }: CheckpointSummary & { readonly signal: AbortSignal | undefined },
): Promise<void> {
  const hash = createHash('sha256');
  const hashing = new Transform({
    transform(chunk, _encoding, done) {
      hash.update(chunk);
      done(null, chunk);
    },
  });
  await pipeline(body, hashing, createWriteStream(path), { ...(signal && { signal }) });
  if (continues !== undefined) {
    // The server has checked the files that it is put together from, and nobody knows the sum of the whole.
    const { metadata } = await readTensors(path, undefined, false);
    if (metadata.step === String(step)) return;
    throw new DownpourError(
      'DP_CHECKPOINT_CORRUPT',
      `the checkpoint that arrived is of step ${metadata.step}, the server says ${step}: a newer one has just replaced it; try again`,
    );
  }
  const seen = hash.digest('hex');
  if (seen === sha256) return;
  throw new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `the checkpoint arrived with SHA-256 ${seen}, the server says ${sha256}: a newer one may just have replaced it; try again`,
  );
}
