import { DownpourError } from '../../../shared/errors.ts';
import type { ImageReading } from '../../../shared/reading.ts';
import { isRecord } from '../../fields.ts';
import type { Examples, ExperimentData } from '../examples.ts';
import { corrupt } from '../files.ts';
import {
  checkOptions,
  checkPath,
  isTexts,
  LOG,
  oneOf,
  optional,
  TEST_FRACTION,
} from '../reader-options.ts';
import { holdOut } from '../split.ts';
import { PassedOver, someOf } from './image-files.ts';
import { type FoundImages, findImages, type ImageParts } from './image-parts.ts';
import { paint } from './paint.ts';
import { type Picture, readPicture, type SizeOf } from './pictures.ts';
import { readAll } from './read-all.ts';

/** Folders of pictures, one folder a class, as bytes of shape [n, height, width, channels]. */

/** What pictures become as numbers. */
export interface PictureOptions {
  /** 1: grey, 3: red, green, blue. Default 3. */
  readonly channels?: 1 | 3;
  /** Height and width, or one number for both, that all pictures are brought to. Default: they must have one size. */
  readonly size?: number | readonly [number, number];
  /**
   * How they are brought to `size`. `crop` (default) scales a picture until it covers the size, and cuts off what sticks out on
   * both sides alike. `pad` scales it until it fits in, and fills the rest with the background. `stretch` scales height and
   * width each by itself.
   */
  readonly fit?: 'crop' | 'pad' | 'stretch';
  /** The colour behind transparent pixels: red, green, blue, 0 … 255. Default white. */
  readonly background?: readonly [number, number, number];
}

export interface ImageFolderOptions extends PictureOptions {
  /** Share of the pictures that becomes the test part, where no folder does: the same in every run. Default: 0. */
  readonly testFraction?: number;
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

const isSide = (value: unknown): boolean =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= 10_000;

/** What a picture becomes. */
export const PICTURE_FIELDS = {
  channels: optional({ allowed: '1, 3', test: (value) => value === 1 || value === 3 }),
  size: optional({
    allowed: 'a whole number of pixels from 1 to 10000, or two: [height, width]',
    test: (value) =>
      isSide(value) || (Array.isArray(value) && value.length === 2 && value.every(isSide)),
  }),
  fit: optional(oneOf('crop', 'pad', 'stretch')),
  background: optional({
    allowed: 'red, green and blue as whole numbers 0 … 255: [255, 255, 255]',
    test: (value) => Array.isArray(value) && value.length === 3 && value.every(isByte),
  }),
};

const FIELDS = {
  ...PICTURE_FIELDS,
  testFraction: TEST_FRACTION,
  classes: optional({
    allowed: 'at least two names, without repetition',
    test: (value) => isTexts(value) && value.length > 1 && new Set(value).size === value.length,
  }),
  bytesMax: optional({
    allowed: 'a number of bytes above 0',
    test: (value) => typeof value === 'number' && value > 0,
  }),
  log: LOG,
};

/**
 * Reads the pictures of `folder/CLASS`, with all folders in it; of `folder/train/CLASS`,
 * `folder/validation/CLASS` and `folder/test/CLASS`; or of one folder for each part. All pictures
 * must have the same size, unless `size` is given. docs/data.md lists the formats and what is refused.
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
  const opened = await openFolder('loadImageFolder', folder, options);
  const { found, first, like, reading, origin, root } = opened;
  const { bytesMax = IMAGES_BYTES_MAX, background = WHITE, log } = options;
  const { classes, parts } = found;
  const files = parts.flatMap((part) => part.files);
  const { width, height, channels } = reading;
  const size = width * height * channels;
  if (files.length * size > bytesMax) {
    throw corrupt(
      root,
      `${files.length} pictures of ${width}×${height}×${channels} are ${files.length * size} bytes; allowed: ${bytesMax}. Make them smaller or raise bytesMax`,
    );
  }
  const values = new Uint8Array(files.length * size);
  const counts = { resized: 0, transparent: 0, vanished: [] as string[], frames: 0 };
  const put = (picture: Picture, i: number) => {
    const pixels = values.subarray(i * size, (i + 1) * size);
    const kind = paint(picture, pixels, reading);
    if (picture.width !== width || picture.height !== height) counts.resized++;
    if (kind !== 'opaque') counts.transparent++;
    if (kind === 'vanished') counts.vanished.push(files[i]!.path);
    if (picture.frames > 1) counts.frames++;
  };
  await readAll(files, first, like, put, log);

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
          reading,
        },
        targets: {
          values: classes.length > 256 ? Int32Array.from(labels) : Uint8Array.from(labels),
          shape: [own.length],
          classes,
        },
      },
    ];
  });
  const resized =
    counts.resized > 0
      ? [`${counts.resized} brought to ${width}×${height} (${WORDS[reading.fit!]})`]
      : [];
  const notes = [...found.notes, ...resized, ...notesOf(counts, found.nested, background)];
  if (opened.over) notes.push(opened.over);
  for (const note of notes) log?.(`${root}: ${note}`);
  const spread =
    parts.length > 1
      ? ` (${parts.map((part) => `${part.files.length} ${part.name}`).join(', ')})`
      : '';
  const all = Object.fromEntries(examples) as {
    readonly train: Examples;
    readonly validation?: Examples;
    readonly test?: Examples;
  };
  const { train, test } = holdOut(all.train, options.testFraction);
  return {
    ...{ ...all, train },
    ...(test ? { test } : {}),
    classCount: classes.length,
    source: `${files.length} pictures of ${width}×${height}${spread} in ${classes.length} classes from ${origin}${notes.map((note) => `; ${note}`).join('')}`,
    classes,
    notes,
  };
}

/** A folder whose files are known, and what its pictures become. */
export interface OpenFolder {
  readonly found: FoundImages;
  readonly first: Picture & SizeOf;
  /** The picture whose size all must have; null: they are brought to one size. */
  readonly like: (Picture & SizeOf) | null;
  readonly reading: ImageReading;
  readonly root: string;
  readonly origin: string;
  /** The files that are skipped; null: none. */
  readonly over: string | null;
  readonly notes: readonly string[];
}

/** @param reader its name, for messages @throws DownpourError as `loadImageFolder` */
export async function openFolder(
  reader: string,
  folder: string | ImageParts,
  options: ImageFolderOptions,
): Promise<OpenFolder> {
  checkFolder(reader, folder);
  checkOptions(reader, options, FIELDS);
  const { size: given } = options;
  const passed = new PassedOver();
  const found = await findImages(folder, options.classes, passed);
  const root = typeof folder === 'string' ? folder : folder.train;
  const origin = typeof folder === 'string' ? folder : Object.values(folder).join(', ');
  if (options.testFraction && found.parts.some(({ name }) => name === 'test')) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${reader}: \`testFraction\` is ${options.testFraction}, but ${origin} has a folder for the test part already; leave it out`,
    );
  }
  const { path } = found.parts[0]!.files[0]!;
  const first = { path, ...(await readPicture(path)) };
  const over = passed.text(root);
  return {
    ...{ found, first, root, origin, over, like: given === undefined ? first : null },
    notes: [...found.notes, ...(over ? [over] : [])],
    reading: imageReadingOf(options, first),
  };
}

/** @param first the picture whose size all have, where none is given */
export function imageReadingOf(
  { channels = 3, background = WHITE, size, fit = 'crop' }: PictureOptions,
  first: Pick<Picture, 'width' | 'height'>,
): ImageReading {
  const own = size ?? [first.height, first.width];
  const [height, width] = typeof own === 'number' ? [own, own] : own;
  return {
    ...{ kind: 'images', height, width, channels, background: [...background] },
    ...(size === undefined ? {} : { fit }),
  };
}

const WORDS = {
  crop: 'scaled and cropped',
  pad: 'scaled and padded',
  stretch: 'stretched',
} as const;

function checkFolder(reader: string, folder: unknown): asserts folder is string | ImageParts {
  if (!isRecord(folder)) {
    checkPath(reader, folder);
    return;
  }
  const isPath = {
    allowed: 'the path of a folder',
    test: (value: unknown) => typeof value === 'string' && value !== '',
  };
  checkOptions(reader, folder, {
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
