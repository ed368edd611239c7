import { existsSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { readTensors } from '../../files/checkpoint.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { tablesOf } from '../../shared/tables.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { modelScript } from '../bundles/model-script.ts';
import { print, printJson, type RunCommandOptions, tell } from '../options.ts';
import { groups } from '../output/progress.ts';
import { openUsedServer } from '../used-server.ts';
import {
  aboutModel,
  type Copied,
  copyFromFile,
  copyOfRun,
  experimentOf,
} from './checkpoint-copy.ts';
import {
  type Course,
  courseOfFile,
  courseOfRun,
  writeEventFile,
  writeHistory,
} from './export-course.ts';
import { readme } from './export-readme.ts';

export interface ExportOptions extends RunCommandOptions {
  readonly to: string;
  readonly format: 'safetensors' | 'tfjs' | 'tensorboard' | 'jsonl';
  readonly kind?: 'best' | 'last' | 'final';
  readonly experiments?: string[];
  readonly data?: string;
}

/** `downpour export <run or file> --to FOLDER` */
export async function exportCommand(what: string, options: ExportOptions): Promise<void> {
  const to = resolve(options.to);
  try {
    await mkdir(to, { recursive: true });
  } catch (cause) {
    throw new DownpourError('DP_DISK', `cannot create ${to}: ${errorText(cause)}`, { cause });
  }
  const isFile = /\.(safetensors|json)$/.test(what) || existsSync(what);
  if (options.format === 'tensorboard' || options.format === 'jsonl') {
    const course = isFile ? await courseOfFile(what) : await courseFrom(what, options);
    const write = options.format === 'jsonl' ? writeHistory : writeEventFile;
    const files = await write(course, to);
    const about = `the course up to step ${groups(course.step)}`;
    tellFiles(course, about, to, { files, json: options.json });
    return;
  }
  // Written under another name first: a copy that breaks off leaves nothing that looks whole.
  const partial = join(to, `.${process.pid}.part`);
  try {
    const copied = isFile
      ? await copyFromFile(what, partial)
      : await copyOfRun(what, partial, options);
    const { facts } = copied;
    let about = aboutModel(copied);
    const files: string[] = [];
    if (options.format === 'safetensors') {
      const file = `${facts.run}.safetensors`;
      await rename(partial, join(to, file));
      files.push(file);
    } else {
      const { tensors } = await readTensors(partial);
      about = await writeTfjs(copied, tensors, to, options);
      files.push('model.json', 'weights.bin', 'predict.js', 'README.md');
      await writeFile(join(to, 'predict.js'), await modelScript());
      await writeFile(join(to, 'README.md'), readme(about));
    }
    await writeFile(join(to, 'downpour.json'), `${JSON.stringify(about, null, 2)}\n`);
    files.push('downpour.json');
    tellFiles(facts, `${facts.kind} parameters of step ${groups(facts.step)}`, to, {
      files,
      json: options.json,
    });
  } finally {
    await rm(partial, { force: true });
  }
}

function tellFiles(
  { run, step }: { readonly run: string; readonly step: number },
  what: string,
  to: string,
  { files, json }: { readonly files: readonly string[]; readonly json: boolean | undefined },
): void {
  const paths = files.map((file) => join(to, file));
  if (json) printJson({ run, step, files: paths });
  else for (const line of [`${run}, ${what}:`, ...paths.map((path) => `  ${path}`)]) print(line);
}

async function courseFrom(id: string, options: ExportOptions): Promise<Course> {
  const usedServer = await openUsedServer({ ...options, run: id });
  try {
    return await courseOfRun(usedServer, id);
  } finally {
    await usedServer.close();
  }
}

/** @returns what `downpour.json` says; of the data as they are now, where an older release kept nothing of them. */
async function writeTfjs(
  copied: Copied,
  tensors: Awaited<ReturnType<typeof readTensors>>['tensors'],
  to: string,
  options: ExportOptions,
): Promise<Record<string, unknown>> {
  const { facts } = copied;
  const tables = tablesOf(facts.config);
  if (tables) {
    throw new DownpourError(
      'DP_USAGE',
      `run ${facts.run} has tables (${Object.keys(tables).join(', ')}), which a model of TensorFlow.js cannot hold: use --format safetensors, whose tensors @table.<name>.model.keys and .values are the rows`,
    );
  }
  const { loadExperiment } = await import('../../worker/experiment.ts');
  const { openEngine } = await import('../../worker/engine.ts');
  const { writeLayersModel } = await import('../../worker/layers-format.ts');
  const { lossNames } = await import('../../worker/outputs.ts');
  const { examplesLike } = await import('../../worker/data/facts.ts');
  const path = await experimentOf(facts, options.experiments);
  // Only shapes are computed: an engine that is always there does.
  await openEngine({ engine: 'wasm' });
  const experiment = await loadExperiment(path);
  const dataFolder = resolve(options.data ?? 'data');
  const known = copied.data.facts ?? (await factsOfNow(copied, experiment, dataFolder));
  const { config } = facts;
  await writeLayersModel({ experiment, config, tensors, facts: known, dataFolder, to, log: tell });
  const losses = lossNames(experiment, examplesLike(known));
  return { ...aboutModel({ ...copied, data: { ...copied.data, facts: known } }), ...losses };
}

/** @throws DownpourError DP_DATA_MISMATCH: there are more or fewer examples than the run had. */
async function factsOfNow(
  { facts, data }: Copied,
  experiment: Experiment,
  folder: string,
): Promise<DataFacts> {
  const { prepareExperiment } = await import('../../worker/prepare.ts');
  const { factsOf, mustBeDataOf } = await import('../../worker/data/facts.ts');
  const { standardisedAnew } = await import('./trained.ts');
  const { closeSources } = await import('../../worker/data/stored.ts');
  tell(standardisedAnew(facts.run));
  const where = { folder, log: tell };
  const { prepared } = await prepareExperiment(facts.experiment, experiment, facts.config, where);
  try {
    mustBeDataOf(data, prepared);
    return factsOf(prepared);
  } finally {
    await closeSources(prepared, tell);
  }
}
