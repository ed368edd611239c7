import { open, realpath, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, extname, join, relative, resolve, sep } from 'node:path';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { pathArgument, shellCommand } from '../../shared/shell.ts';
import { unreadable } from '../../worker/data/files.ts';
import {
  beginsAsPicture,
  OTHER_PICTURE_ENDINGS,
  PICTURE_ENDINGS,
} from '../../worker/data/pictures/pictures.ts';
import { isTableFolder } from '../../worker/data/tables/table-files.ts';
import { TEXT_FILES } from '../../worker/data/texts/corpus.ts';
import { filesUnder } from '../../worker/data/texts/text-files.ts';
import { experimentName } from '../../worker/experiment.ts';
import { type GivenTableOptions, tableOptionsOf } from '../data/table-options.ts';
import { EXIT, print, printJson } from '../options.ts';
import { askAt, Interrupted, type Interview, unasked } from './ask.ts';
import type { Draft } from './draft.ts';
import {
  type ImagesRequest,
  imagesDraft,
  type ModelKind,
  mnistDraft,
  pretrainedDraft,
} from './images.ts';
import { code } from './source.ts';
import { type Task, tableDraft } from './table.ts';
import { languageDraft, textFolderDraft } from './text.ts';

/** `downpour init`: writes an experiment that runs at once, from what the data look like and a few answers. */

export interface InitOptions extends GivenTableOptions {
  readonly data?: string;
  readonly target?: string;
  readonly task?: Task;
  /** Column of texts to predict from. */
  readonly text?: string;
  /** Words instead of characters, for a language model. */
  readonly words?: boolean;
  readonly model?: ModelKind;
  /** A model.json to begin with. */
  readonly from?: string;
  readonly until?: string;
  readonly size?: number;
  readonly pixels?: readonly [number, number];
  readonly fresh?: boolean;
  readonly frozen?: boolean;
  readonly testFraction?: number;
  readonly force?: boolean;
  readonly yes?: boolean;
  readonly json?: boolean;
}

const MNIST = 'mnist';
const DEFAULT_FILE = 'experiment.ts';
const ENDINGS = ['.ts', '.mts', '.js', '.mjs'];

export async function initCommand(file: string | undefined, options: InitOptions): Promise<void> {
  const isAsking = !options.yes && !options.json && process.stdin.isTTY === true;
  const answers = isAsking ? askAt(process.stdin, process.stdout) : unasked;
  try {
    await init(file, options, answers);
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    process.exitCode = EXIT.interrupted;
  } finally {
    answers.close();
  }
}

async function init(
  file: string | undefined,
  options: InitOptions,
  answers: Interview,
): Promise<void> {
  const path = await answers.answer(file, 'Name of the file?', DEFAULT_FILE, (text) =>
    pathFor(text, options.force === true),
  );
  const { data, kind } = await answers.answer(
    options.data,
    `Data: a CSV file, a text, a folder of CSV files, of texts or of images, ${MNIST}?`,
    MNIST,
    findData,
  );
  const draft = await draftFor(path, data, kind, options, answers);
  await write(path, draft.source, options.force === true);
  if (options.json) {
    printJson({ file: path, notes: draft.notes });
    return;
  }
  const shown = pathArgument(relative('', path) || path);
  for (const note of draft.notes) print(note);
  print(`wrote ${shown}; next:`);
  for (const [command, what] of [
    ['check', 'checks the data and the model'],
    ['train', 'trains it, with two workers on this machine'],
  ] as const) {
    print(`  ${shellCommand('npx', 'downpour', command, shown)}     ${what}`);
  }
}

/** Where the experiment is to be. @throws DownpourError DP_USAGE, DP_EXPERIMENT_INVALID */
async function pathFor(file: string, force: boolean): Promise<string> {
  const path = resolve(file);
  if (!ENDINGS.includes(extname(path))) {
    throw new DownpourError(
      'DP_USAGE',
      `${file} does not end in ${ENDINGS.join(', ')}, which files of experiments do: ${basename(file, extname(file)) || 'experiment'}.ts`,
    );
  }
  experimentName(path);
  const folder = await stat(dirname(path)).catch(() => null);
  if (!folder?.isDirectory()) {
    throw new DownpourError(
      'DP_USAGE',
      `the folder ${dirname(path)} does not exist: create it first`,
    );
  }
  if (sep !== '\\' && dirname(path).includes('\\')) {
    throw new DownpourError(
      'DP_USAGE',
      `${dirname(path)} has a backslash in its name, so Node.js cannot load a module from it: choose another folder`,
    );
  }
  if (!force && (await stat(path).catch(() => null))) throw existsAlready(path);
  return path;
}

const existsAlready = (path: string, cause?: unknown) =>
  new DownpourError(
    'DP_USAGE',
    `${path} cannot be written: it exists already: choose another name, or --force`,
    { cause },
  );

async function write(path: string, source: string, force: boolean): Promise<void> {
  try {
    await writeFile(path, source, { flag: force ? 'w' : 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw existsAlready(path, error);
    throw new DownpourError('DP_USAGE', `${path} cannot be written: ${errorText(error)}`, {
      cause: error,
    });
  }
}

/** `text`: a text, or several without classes. `texts`: a folder with one subfolder of texts for each class. */
type DataKind = 'mnist' | 'images' | 'table' | 'text' | 'texts';

async function findData(data: string): Promise<{ data: string; kind: DataKind }> {
  if (data === MNIST) return { data, kind: 'mnist' };
  const entry = await stat(data).catch((error) => {
    throw unreadable(data, error);
  });
  if (!entry.isDirectory()) {
    return { data, kind: TEXT_FILES.fits.test(data) ? 'text' : 'table' };
  }
  // A folder of tables is one table.
  if (await isTableFolder(data)) return { data, kind: 'table' };
  const files = await filesUnder(data);
  if (files.some(isPictureFile)) return { data, kind: 'images' };
  const isFlat = files.every((file) => resolve(dirname(file)) === resolve(data));
  const isNamedText = files.some((file) => TEXT_FILES.fits.test(file));
  if (isFlat && isNamedText) return { data, kind: 'text' };
  const hasTexts = !isFlat && (isNamedText || (await isText(files[0]!)));
  return { data, kind: hasTexts ? 'texts' : 'images' };
}

const isPictureFile = (path: string): boolean =>
  [...PICTURE_ENDINGS, ...OTHER_PICTURE_ENDINGS].includes(extname(path).slice(1).toLowerCase());

/** Whether a file without a known ending may be a text: it has no zero byte at its beginning. */
async function isText(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0);
    return !buffer.subarray(0, bytesRead).includes(0) && !beginsAsPicture(buffer);
  } finally {
    await file.close();
  }
}
const HEAD_BYTES = 4096;

/** @throws DownpourError DP_USAGE, DP_DATA_MISSING or DP_DATA_CORRUPT. */
async function draftFor(
  path: string,
  data: string,
  kind: DataKind,
  options: InitOptions,
  answers: Interview,
): Promise<Draft> {
  mustSuitFrom(options, data, kind === 'images');
  const { target, task, text } = options;
  const reading = tableOptionsOf(options);
  const unfit = Object.entries({ target, task, text, ...reading }).find(
    ([, value]) => value !== undefined,
  );
  if (unfit && kind !== 'table') {
    const what = kind === 'text' || kind === 'texts' ? 'texts' : 'images';
    throw new DownpourError(
      'DP_USAGE',
      `--${unfit[0]} is only for tables, but ${data} has ${what}: leave it out`,
    );
  }
  if (options.words && kind !== 'text') {
    throw new DownpourError(
      'DP_USAGE',
      `--words is only for the language model of a text, but ${data} is ${KINDS[kind]}: leave it out`,
    );
  }
  if (options.model !== undefined && (kind === 'text' || kind === 'texts')) {
    throw new DownpourError(
      'DP_USAGE',
      `--model ${options.model} is for images, but ${data} is ${KINDS[kind]}: leave it out`,
    );
  }
  if (kind === 'text' || kind === 'texts') {
    const { testFraction } = options;
    const share = testFraction === undefined ? {} : { testFraction };
    const request = { data, place: await placeOf(path, data), ...share };
    if (kind === 'texts') return textFolderDraft(request);
    return languageDraft({ ...request, words: options.words === true });
  }
  if (kind !== 'table') {
    const choose = (fitting: ModelKind) =>
      answers.answer(options.model, 'Model (mlp, cnn)?', fitting, modelOf);
    if (data === MNIST) return mnistDraft(await choose('mlp'));
    const { testFraction } = options;
    const request = {
      ...{ data, place: await placeOf(path, data) },
      ...(testFraction === undefined ? {} : { testFraction }),
    };
    if (options.from === undefined) return imagesDraft(request, choose);
    return fromModel(path, { ...options, from: options.from }, request);
  }
  if (options.model === 'cnn') {
    throw new DownpourError(
      'DP_USAGE',
      `--model cnn is only for images, but ${data} is a table: use mlp`,
    );
  }
  const { testFraction } = options;
  const given = {
    ...(target === undefined ? {} : { target }),
    ...(task ? { task } : {}),
    ...(text === undefined ? {} : { text }),
    ...(testFraction === undefined ? {} : { testFraction }),
  };
  return tableDraft({ data, place: await placeOf(path, data), ...given, reading }, answers);
}

const KINDS: Readonly<Record<DataKind, string>> = {
  mnist: 'a set of images',
  images: 'a folder of images',
  table: 'a table',
  text: 'a text',
  texts: 'a folder of texts',
};

function modelOf(text: string): ModelKind {
  if (text === 'mlp' || text === 'cnn') return text;
  throw new DownpourError('DP_USAGE', `'${text}' is not a model; allowed: mlp, cnn`);
}

/** Options for a pretrained model, which mean nothing without one. */
const WITH_FROM = ['until', 'size', 'pixels', 'fresh', 'frozen'] as const;

/** @throws DownpourError DP_USAGE: options that do not go together. */
function mustSuitFrom(options: InitOptions, data: string, isFolder: boolean): void {
  const { from, model, fresh, frozen } = options;
  const lonely = WITH_FROM.find((name) => options[name] !== undefined);
  if (from === undefined && lonely !== undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `--${lonely} is about a pretrained model: name its model.json by --from, or leave --${lonely} out`,
    );
  }
  if (from === undefined) return;
  if (!isFolder) {
    throw new DownpourError(
      'DP_USAGE',
      `--from is for a folder of images, but --data is ${data}: write pretrained into the experiment by hand (docs/experiments.md)`,
    );
  }
  if (model !== undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `--model ${model} and --from are two models: leave one of them out`,
    );
  }
  if (fresh && frozen) {
    throw new DownpourError(
      'DP_USAGE',
      '--fresh and --frozen would leave random layers untrained: leave one of them out',
    );
  }
}

async function fromModel(
  path: string,
  { from, ...options }: InitOptions & { readonly from: string },
  request: ImagesRequest,
): Promise<Draft> {
  // They load TensorFlow.js, which init needs for this alone.
  const { openTrunk } = await import('./pretrained.ts');
  const place = await fromExperiment(path, from).catch((error) => {
    throw unreadable(from, error);
  });
  const how = { place, isTyped: /\.m?ts$/.test(path) };
  return pretrainedDraft(request, (size) => openTrunk({ ...options, from }, how, size));
}

/** A path as seen from the experiment. Folders that are links are followed, as Node does with modules. */
async function fromExperiment(path: string, file: string): Promise<string> {
  const full = resolve(file);
  const folder = await realpath(dirname(full));
  const from = relative(await realpath(dirname(path)), join(folder, basename(full)));
  return sep === '/' ? from : from.replaceAll(sep, '/');
}

/**
 * Source code for where the data lie as seen from the experiment, wherever it is called from. Not by a URL, in
 * which %, # and ? mean something.
 */
const placeOf = async (path: string, data: string): Promise<string> =>
  `resolve(import.meta.dirname, ${code(await fromExperiment(path, data))})`;
