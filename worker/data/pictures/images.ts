import { DownpourError } from '../../../shared/errors.ts';
import { isRecord } from '../../fields.ts';
import type { Examples, ExperimentData } from '../examples.ts';
import { corrupt } from '../files.ts';
import { checkOptions, checkPath, isTexts, optional } from '../reader-options.ts';
import { PassedOver, someOf } from './image-files.ts';
import { findImages, type ImageParts, type LabelledFile } from './image-parts.ts';
import { type Picture, readPicture } from './pictures.ts';

/** Folders of pictures, one folder a class, as bytes of shape [n, height, width, channels]. */

export interface ImageFolderOptions {
  /** 1: grey, 3: red, green, blue. Default 3. */
  readonly channels?: 1 | 3;
  /** The colour behind transparent pixels: red, green, blue, 0 … 255. Default white. */
  readonly background?: readonly [number, number, number];
  /** Names of all classes, in their order; default: the names of the folders, sorted. */
  readonly classes?: readonly string[];
  /** The largest size of all pixels together. Default 2 GiB. */
  readonly bytesMax?: number;
  /** Receives lines for the user: progress, and files that were skipped. */
  readonly log?: (line: string) => void;
}

export interface ImageData extends ExperimentData {
  /** Folder names in sorted order (numbers by number), or as given: class 0, 1, … */
  readonly classes: readonly string[];
  /** Skipped files, and what else a user should know. */
  readonly notes: readonly string[];
}

const IMAGES_BYTES_MAX = 2 * 2 ** 30;
/** As a page of paper or of a browser: drawings with a transparent ground are made to stand on it. */
const WHITE = [255, 255, 255] as const;

const isByte = (value: unknown): boolean =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 255;

const FIELDS = {
  channels: optional({ allowed: '1, 3', test: (value) => value === 1 || value === 3 }),
  background: optional({
    allowed: 'red, green and blue as whole numbers 0 … 255: [255, 255, 255]',
    test: (value) => Array.isArray(value) && value.length === 3 && value.every(isByte),
  }),
  classes: optional({
    allowed: 'at least two names, without repetition',
    test: (value) => isTexts(value) && value.length > 1 && new Set(value).size === value.length,
  }),
  bytesMax: optional({
    allowed: 'a number of bytes above 0',
    test: (value) => typeof value === 'number' && value > 0,
  }),
  log: optional({ allowed: 'a function', test: (value) => typeof value === 'function' }),
};

/**
 * Reads the pictures of `folder/CLASS`, with all folders in it; of `folder/train/CLASS`,
 * `folder/validation/CLASS` and `folder/test/CLASS`; or of one folder for each part. All pictures
 * must have the same size. docs/data.md lists the formats and what is refused.
 *
 *     loadImageFolder({ train: 'birds/train', test: 'birds/test' }, { channels: 1, log })
 *
 * @throws DownpourError DP_DATA_MISSING if a folder, its classes or the pictures of a class are missing;
 * DP_DATA_CORRUPT with the names of files that are damaged, of another size or in a format that is not read,
 * and if all pixels exceed `bytesMax`; DP_DATA_MISMATCH for a folder that is not in `classes`;
 * DP_EXPERIMENT_INVALID for a wrong option
 */
export async function loadImageFolder(
  folder: string | ImageParts,
  options: ImageFolderOptions = {},
): Promise<ImageData> {
  checkFolder(folder);
  checkOptions('loadImageFolder', options, FIELDS);
  const { channels = 3, bytesMax = IMAGES_BYTES_MAX, background = WHITE, log } = options;
  const passed = new PassedOver();
  const found = await findImages(folder, options.classes, passed);
  const { classes, parts } = found;
  const root = typeof folder === 'string' ? folder : folder.train;
  const origin = typeof folder === 'string' ? folder : Object.values(folder).join(', ');
  const files = parts.flatMap((part) => part.files);

  const first = { path: files[0]!.path, ...(await readPicture(files[0]!.path)) };
  const { width, height } = first;
  const size = width * height * channels;
  if (files.length * size > bytesMax) {
    throw corrupt(
      root,
      `${files.length} pictures of ${width}×${height}×${channels} are ${files.length * size} bytes; allowed: ${bytesMax}. Make them smaller or raise bytesMax`,
    );
  }
  const values = new Uint8Array(files.length * size);
  const counts = { transparent: 0, vanished: [] as string[], frames: 0 };
  const paint = (picture: Picture, i: number) => {
    const pixels = values.subarray(i * size, (i + 1) * size);
    const kind = copyPixels(picture.rgba, pixels, channels, background);
    if (kind !== 'opaque') counts.transparent++;
    if (kind === 'vanished') counts.vanished.push(files[i]!.path);
    if (picture.frames > 1) counts.frames++;
  };
  await readAll(files, first, paint, log);

  let at = 0;
  const examples = parts.map(({ name, files: own }): [string, Examples] => {
    const [from, to] = [at, at + own.length];
    at = to;
    const labels = own.map(({ label }) => label);
    return [
      name,
      {
        count: own.length,
        inputs: {
          values: values.subarray(from * size, to * size),
          shape: [own.length, height, width, channels],
        },
        targets: {
          values: classes.length > 256 ? Int32Array.from(labels) : Uint8Array.from(labels),
          shape: [own.length],
          classes,
        },
      },
    ];
  });
  const notes = [...found.notes, ...notesOf(counts, found.nested, background)];
  const over = passed.text(root);
  if (over) notes.push(over);
  for (const note of notes) log?.(`${root}: ${note}`);
  const spread =
    parts.length > 1
      ? ` (${parts.map((part) => `${part.files.length} ${part.name}`).join(', ')})`
      : '';
  return {
    ...(Object.fromEntries(examples) as {
      train: Examples;
      validation?: Examples;
      test?: Examples;
    }),
    classCount: classes.length,
    source: `${files.length} pictures of ${width}×${height}${spread} in ${classes.length} classes from ${origin}${notes.map((note) => `; ${note}`).join('')}`,
    classes,
    notes,
  };
}

function checkFolder(folder: unknown): asserts folder is string | ImageParts {
  if (!isRecord(folder)) {
    checkPath('loadImageFolder', folder);
    return;
  }
  const isPath = {
    allowed: 'the path of a folder',
    test: (value: unknown) => typeof value === 'string' && value !== '',
  };
  checkOptions('loadImageFolder', folder, {
    ...{ train: isPath, validation: optional(isPath), test: optional(isPath) },
  });
}

function notesOf(
  counts: { transparent: number; vanished: readonly string[]; frames: number },
  nested: number,
  background: readonly number[],
): string[] {
  const { transparent, vanished, frames } = counts;
  const ground = background.every((value) => value === 255)
    ? 'white'
    : `[${background.join(', ')}]`;
  return [
    ...(nested > 0 ? [`${nested} in folders inside class folders`] : []),
    ...(transparent > 0 ? [`${transparent} with transparency, shown on ${ground}`] : []),
    ...(vanished.length > 0
      ? [
          `${vanished.length} of them ${vanished.length === 1 ? 'has' : 'have'} only one colour on that background and cannot be seen (${someOf(vanished)}): set \`background\``,
        ]
      : []),
    ...(frames > 0 ? [`${frames} with several frames or pages (only the first is read)`] : []),
  ];
}

// Reading.

/** The most bytes of all pictures that are decoded at a time. */
const DECODING_BYTES_MAX = 256 * 2 ** 20;
const DECODING_MAX = 8;
const BROKEN_MAX = 10;
const TELL_AFTER_MS = 2_000;
const TELL_EVERY_MS = 5_000;

/** @throws DownpourError naming the files that cannot be read; it looks no further after BROKEN_MAX */
async function readAll(
  files: readonly LabelledFile[],
  first: Picture & { readonly path: string },
  paint: (picture: Picture, i: number) => void,
  log: ImageFolderOptions['log'],
): Promise<void> {
  const bytes = first.width * first.height * 4;
  const together = Math.max(1, Math.min(DECODING_MAX, Math.floor(DECODING_BYTES_MAX / bytes)));
  const broken: { path: string; error: DownpourError }[] = [];
  const began = performance.now();
  let told = began + TELL_AFTER_MS - TELL_EVERY_MS;
  paint(first, 0);
  for (let from = 1; from < files.length && broken.length < BROKEN_MAX; from += together) {
    const some = files.slice(from, from + together);
    const read = await Promise.allSettled(some.map(({ path }) => readPicture(path, first)));
    for (const [i, result] of read.entries()) {
      if (result.status === 'fulfilled') paint(result.value, from + i);
      else if (result.reason instanceof DownpourError) {
        broken.push({ path: some[i]!.path, error: result.reason });
      } else throw result.reason;
    }
    const now = performance.now();
    if (now - told < TELL_EVERY_MS) continue;
    told = now;
    log?.(`${Math.min(files.length, from + together)} of ${files.length} pictures read`);
  }
  const [worst, ...others] = broken;
  if (worst === undefined) return;
  if (others.length === 0) throw worst.error;
  const { code, message } = worst.error;
  const more = broken.length >= BROKEN_MAX ? 'at least ' : '';
  const names = someOf(others.map(({ path }) => path));
  throw new DownpourError(
    code,
    `${message}. Also refused: ${more}${others.length} other pictures (${names})`,
    { cause: worst.error },
  );
}

/** @returns whether something was transparent, and whether nothing can be seen because of that */
function copyPixels(
  rgba: Uint8Array,
  target: Uint8Array,
  channels: 1 | 3,
  [red, green, blue]: readonly [number, number, number],
): 'opaque' | 'transparent' | 'vanished' {
  let isOpaque = true;
  let [alphaMin, alphaMax] = [255, 0];
  for (let at = 0, to = 0; at < rgba.length; at += 4) {
    const alpha = rgba[at + 3]!;
    let r = rgba[at]!;
    let g = rgba[at + 1]!;
    let b = rgba[at + 2]!;
    if (alpha < alphaMin) alphaMin = alpha;
    if (alpha > alphaMax) alphaMax = alpha;
    if (alpha !== 255) {
      isOpaque = false;
      // Integers, rounded, are the same everywhere.
      const rest = 255 - alpha;
      r = Math.floor((r * alpha + red * rest + 127) / 255);
      g = Math.floor((g * alpha + green * rest + 127) / 255);
      b = Math.floor((b * alpha + blue * rest + 127) / 255);
    }
    if (channels === 1) {
      // Luma of ITU-R BT.601, in integers: grey stays exactly what it was.
      target[to++] = (299 * r + 587 * g + 114 * b + 500) / 1000;
    } else {
      target[to++] = r;
      target[to++] = g;
      target[to++] = b;
    }
  }
  if (isOpaque) return 'opaque';
  const isFlat = target.every((value, i) => value === target[i % channels]);
  return isFlat && alphaMin !== alphaMax ? 'vanished' : 'transparent';
}
