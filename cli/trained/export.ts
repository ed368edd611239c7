import { existsSync } from 'node:fs';
import { mkdir, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { readTensors } from '../../files/tensor-file.ts';
import { type DataFacts, vocabularyOfField } from '../../shared/data-facts.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { modelScript } from '../bundles/model-script.ts';
import {
  EXIT,
  print,
  printJson,
  type RunCommandOptions,
  tell,
  untilInterrupted,
} from '../options.ts';
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
import { readme, readmeOfModels } from './export-readme.ts';
import {
  chosenTables,
  vectorsText,
  type WrittenVectors,
  writeProjectorConfig,
  writeVectors,
} from './export-vectors.ts';
import { openStoredRows } from './trained-rows.ts';
import { isVectorFormat, VECTOR_FORMATS, type VectorFormat } from './vector-formats.ts';

export interface ExportOptions extends RunCommandOptions {
  readonly to: string;
  readonly format: 'safetensors' | 'tfjs' | 'tensorboard' | 'jsonl' | VectorFormat;
  /** Only this table, of formats of vectors. Default: all. */
  readonly table?: string;
  readonly kind?: 'best' | 'last' | 'final';
  readonly experiments?: string[];
  readonly data?: string;
}

/** `downpour export <run or file> --to FOLDER` */
export async function exportCommand(what: string, options: ExportOptions): Promise<void> {
  const interruption = untilInterrupted();
  const { signal } = interruption;
  try {
    await exportTo(resolve(options.to), what, { ...options, signal });
  } catch (error) {
    if (!signal.aborted) throw error;
    tell('interrupted: no file was left half written');
    process.exitCode = EXIT.interrupted;
  } finally {
    interruption.dispose();
  }
}

async function exportTo(to: string, what: string, options: AbortableExport): Promise<void> {
  if (options.table !== undefined && !isVectorFormat(options.format)) {
    throw new DownpourError(
      'DP_USAGE',
      `--table is given with --format ${options.format}; it is for ${VECTOR_FORMATS.join(', ')}: leave it out, or choose one of these`,
    );
  }
  let made: string | undefined;
  try {
    made = await mkdir(to, { recursive: true });
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
    options.signal.throwIfAborted();
    const { facts } = copied;
    if (isVectorFormat(options.format)) {
      await exportVectors(copied, partial, to, { ...options, format: options.format });
      return;
    }
    let about = aboutModel(copied);
    const files: string[] = [];
    if (options.format === 'safetensors') {
      const file = `${facts.run}.safetensors`;
      await rename(partial, join(to, file));
      files.push(file);
    } else {
      const written = await writeTfjs(copied, partial, to, options);
      about = written.about;
      files.push(...written.files, 'README.md');
      if (written.models.length === 0) {
        files.push('predict.js');
        await writeFile(join(to, 'predict.js'), await modelScript());
      }
      const text = written.models.length > 0 ? readmeOfModels : readme;
      await writeFile(join(to, 'README.md'), text(about));
    }
    await writeFile(join(to, 'downpour.json'), `${JSON.stringify(about, null, 2)}\n`);
    files.push('downpour.json');
    tellFiles(facts, `${facts.kind} parameters of step ${groups(facts.step)}`, to, {
      files,
      json: options.json,
    });
  } finally {
    await rm(partial, { force: true });
    // What is refused leaves no empty folder; one with files stays.
    if (made !== undefined) await rmdir(to).catch(() => {});
  }
}

type AbortableExport = ExportOptions & { readonly signal: AbortSignal };

/** Rows of tables, a file or two for each. @param path of the copied tensors. */
async function exportVectors(
  copied: Copied,
  path: string,
  to: string,
  options: AbortableExport & { readonly format: VectorFormat },
): Promise<void> {
  const { facts } = copied;
  const { format, signal, json } = options;
  const stored = await openStoredRows(path, facts.config);
  if (!stored) {
    throw new DownpourError(
      'DP_USAGE',
      `run ${facts.run} has no tables, and --format ${format} writes the rows of tables: use --format safetensors, which has all parameters by their names`,
    );
  }
  try {
    const tables: WrittenVectors[] = [];
    const chosen = chosenTables(stored, options.table);
    const wordsOf = await wordsOfTables(copied, options.experiments);
    for (const table of chosen) {
      const words = wordsOf(table.name);
      tables.push(await writeVectors(table, { format, to, words, signal, log: tell }));
    }
    const files = tables.flatMap((table) => table.files);
    if (format === 'projector') files.push(await writeProjectorConfig(to, tables));
    const what = `${facts.kind} parameters of step ${groups(facts.step)}`;
    tellFiles(facts, what, to, { files, json, tables });
  } finally {
    await stored.close();
  }
}

/**
 * The texts of the ids of a table, which come with the field that it is looked up by. If all fields of ids have the same ones, the
 * model need not be asked.
 */
async function wordsOfTables(
  copied: Copied,
  experiments: readonly string[] | undefined,
): Promise<(table: string) => readonly string[] | null> {
  const known = copied.data.facts;
  if (!known) return () => null;
  const { inputs, fields = [] } = known;
  const ids = [
    ...(inputs.shape[0] === 0 ? [] : [{ name: 'inputs', kind: inputs.kind }]),
    ...fields.flatMap(({ name, role, column }) =>
      role === 'input' ? [{ name, kind: column.kind }] : [],
    ),
  ].filter(({ kind }) => kind === 'int32');
  const lists = ids.map(({ name }) => vocabularyOfField(known, name));
  if (lists.every((list) => list === null)) return () => null;
  const [first] = lists;
  if (lists.every((list) => JSON.stringify(list) === JSON.stringify(first))) return () => first!;
  const { loadExperiment } = await import('../../worker/experiment.ts');
  const { openEngine } = await import('../../worker/engine.ts');
  const { buildModel } = await import('../../worker/model.ts');
  const { examplesLike } = await import('../../worker/data/facts.ts');
  await openEngine({ engine: 'wasm' });
  const experiment = await loadExperiment(await experimentOf(copied.facts, experiments));
  const like = examplesLike(known);
  const model = await buildModel(experiment, copied.facts.config, like, { later: known });
  const { bindings = [] } = model.rows ?? {};
  model.dispose();
  return (table) => {
    const own = bindings.filter((binding) => binding.table === table);
    return own.map(({ field }) => vocabularyOfField(known, field)).find((list) => list) ?? null;
  };
}

interface ToldFiles {
  readonly files: readonly string[];
  readonly json: boolean | undefined;
  /** Tables that were written as vectors. */
  readonly tables?: readonly WrittenVectors[];
}

function tellFiles(
  { run, step }: { readonly run: string; readonly step: number },
  what: string,
  to: string,
  { files, json, tables = [] }: ToldFiles,
): void {
  const paths = files.map((file) => join(to, file));
  if (json) {
    printJson({ run, step, files: paths, ...(tables.length > 0 && { tables }) });
    return;
  }
  for (const line of [`${run}, ${what}:`, ...paths.map((path) => `  ${path}`)]) print(line);
  for (const table of tables) print(vectorsText(table));
}

async function courseFrom(id: string, options: ExportOptions): Promise<Course> {
  const usedServer = await openUsedServer({ ...options, run: id });
  try {
    return await courseOfRun(usedServer, id);
  } finally {
    await usedServer.close();
  }
}

/** @param path of the copied tensors. @returns the files of the model or of several, and what `downpour.json` says; of the data as they are now, where an older release kept nothing of them. */
async function writeTfjs(
  copied: Copied,
  path: string,
  to: string,
  options: AbortableExport,
): Promise<{
  readonly about: Record<string, unknown>;
  readonly files: readonly string[];
  readonly models: readonly string[];
}> {
  const { facts } = copied;
  const { loadExperiment } = await import('../../worker/experiment.ts');
  const { openEngine } = await import('../../worker/engine.ts');
  const { keysFile, writeLayersModel } = await import('../../worker/layers-format.ts');
  const { lossNames } = await import('../../worker/outputs.ts');
  const { examplesLike } = await import('../../worker/data/facts.ts');
  // Only shapes are computed: an engine that is always there does.
  await openEngine({ engine: 'wasm' });
  const experiment = await loadExperiment(await experimentOf(facts, options.experiments));
  const dataFolder = resolve(options.data ?? 'data');
  const known = copied.data.facts ?? (await factsOfNow(copied, experiment, dataFolder));
  const { config } = facts;
  const { tensors } = await readTensors(path);
  const { tables = [], close } = (await openStoredRows(path, config)) ?? {};
  try {
    const data = { facts: known, dataFolder, tables };
    const model = { experiment, config, tensors, log: tell, ...data };
    const { places, models } = await writeLayersModel({ ...model, to, signal: options.signal });
    const folders = models.length > 0 ? models : ['.'];
    const files = [
      ...folders.flatMap((name) => [join(name, 'model.json'), join(name, 'weights.bin')]),
      ...places.flatMap(({ keys, tables }) => (keys ? keysFile(tables) : [])),
    ];
    const idPlaces = places.map(({ keys, tables, ...place }) => ({
      ...place,
      ...(keys && { keys: keysFile(tables) }),
    }));
    const about = aboutModel({ ...copied, data: { ...copied.data, facts: known } });
    const losses = lossNames(experiment, examplesLike(known));
    const more = { ...(places.length > 0 && { idPlaces }), ...(models.length > 0 && { models }) };
    return { about: { ...about, ...losses, ...more }, files, models };
  } finally {
    await close?.();
  }
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
