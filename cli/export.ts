import { createHash } from 'node:crypto';
import { createWriteStream, existsSync } from 'node:fs';
import { copyFile, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import {
  type CheckpointManifest,
  checkpointFolder,
  readCheckpoint,
  readTensors,
} from '../server/checkpoint.ts';
import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { Evaluation } from '../shared/rest.ts';
import type { ExportOptions } from './commands.ts';
import { openSession } from './embedded.ts';
import { DEFAULT_EXPERIMENTS, print, printJson, tell } from './options.ts';
import { groups } from './progress.ts';

/** What `downpour.json` beside an exported model says of it. */
interface Facts {
  readonly run: string;
  readonly kind: string;
  readonly step: number;
  readonly experiment: string;
  readonly experimentHash: string;
  readonly layoutHash: string | null;
  readonly config: RunConfig;
  /** Of the parameters that are best so far, and of the test at the end of the run. */
  readonly best: Evaluation | null;
  readonly test: Evaluation | null;
  readonly checkpointSha256: string;
}

/** `downpour export <run or file> --to FOLDER` */
export async function exportCommand(what: string, options: ExportOptions): Promise<void> {
  const to = resolve(options.to);
  try {
    await mkdir(to, { recursive: true });
  } catch (cause) {
    throw new DownpourError('DP_DISK', `cannot create ${to}: ${errorText(cause)}`, { cause });
  }
  // Written under another name first: a copy that breaks off leaves nothing that looks whole.
  const partial = join(to, `.${process.pid}.part`);
  try {
    const isFile = /\.(safetensors|json)$/.test(what) || existsSync(what);
    const facts = isFile ? await fromFile(what, partial) : await fromRun(what, partial, options);
    const files: string[] = [];
    const about: Record<string, unknown> = { ...facts };
    if (options.format === 'safetensors') {
      const file = `${facts.run}.safetensors`;
      await rename(partial, join(to, file));
      files.push(file);
    } else {
      const { tensors } = await readTensors(partial);
      about.inputTransform = await writeTfjs(facts, tensors, to, options);
      files.push('model.json', 'weights.bin');
    }
    await writeFile(join(to, 'downpour.json'), `${JSON.stringify(about, null, 2)}\n`);
    files.push('downpour.json');
    const paths = files.map((file) => join(to, file));
    if (options.json) return printJson({ run: facts.run, step: facts.step, files: paths });
    print(`${facts.run}, ${facts.kind} parameters of step ${groups(facts.step)}:`);
    for (const path of paths) print(`  ${path}`);
  } finally {
    await rm(partial, { force: true });
  }
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
}

async function fromFile(path: string, partial: string): Promise<Facts> {
  const { manifest } = await readCheckpoint(process.cwd(), path);
  await copyFile(join(resolve(path), '..', manifest.file), partial);
  return factsOf(manifest);
}

function factsOf(manifest: CheckpointManifest): Facts {
  const { options, best, test } = manifest.state as KnownState;
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
    checkpointSha256: manifest.sha256,
  };
}

async function fromRun(id: string, partial: string, options: ExportOptions): Promise<Facts> {
  const session = await openSession({ ...options, run: id });
  try {
    const { client } = session;
    const run = await client.run(id);
    const checkpoints = await client.checkpoints(id);
    const checkpoint = checkpoints.findLast(({ kind }) => kind === options.kind);
    if (!checkpoint) {
      const kinds = [...new Set(checkpoints.map(({ kind }) => kind))].join(', ') || 'none';
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `run ${id} has no checkpoint '${options.kind}' yet; it has: ${kinds}`,
      );
    }
    if (session.state !== null) {
      await copyFile(join(checkpointFolder(session.state, id), checkpoint.file), partial);
    } else {
      await download(await client.checkpointFile(id, options.kind), partial, checkpoint.sha256);
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
      checkpointSha256: checkpoint.sha256,
    };
  } finally {
    await session.close();
  }
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

async function writeTfjs(
  facts: Facts,
  tensors: Awaited<ReturnType<typeof readTensors>>['tensors'],
  to: string,
  options: ExportOptions,
) {
  const { experimentFolders, loadExperiment, findExperiments } = await import(
    '../worker/experiment.ts'
  );
  const { openEngine } = await import('../worker/engine.ts');
  const { writeLayersModel } = await import('../worker/layers-format.ts');
  const folders = experimentFolders(options.experiments ?? DEFAULT_EXPERIMENTS);
  const found = (await findExperiments(folders)).get(facts.experiment);
  if (!found) {
    throw new DownpourError(
      'DP_EXPERIMENT_UNKNOWN',
      `the model is made by the experiment '${facts.experiment}', which is in none of ${folders.join(', ')}: name its folder by --experiments`,
    );
  }
  if (found.hash !== facts.experimentHash) {
    tell(`${found.path} has changed since the run; its model is used as it is now`);
  }
  // Only shapes are computed: an engine that is always there does.
  await openEngine({ engine: 'wasm' });
  return writeLayersModel({
    experiment: await loadExperiment(found.path),
    config: facts.config,
    tensors,
    dataFolder: resolve(options.data ?? 'data'),
    to,
    log: tell,
  });
}
