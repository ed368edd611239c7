import { stat } from 'node:fs/promises';
import { relative } from 'node:path';
import { DownpourError } from '../../../shared/errors.ts';
import type { ImageReading } from '../../../shared/reading.ts';
import type { Column } from '../columns.ts';
import { corrupt, unreadable } from '../files.ts';
import { allPictures, PassedOver, readFolder } from './image-files.ts';
import { paint } from './paint.ts';
import { type Picture, readPicture } from './pictures.ts';
import { readAll } from './read-all.ts';

/** New pictures, read as those were that a model was trained on. */

const BYTES_MAX = 2 * 2 ** 30;

export interface NewImages {
  /** Bytes, shape [pictures, height, width, channels]. */
  readonly inputs: Column;
  /** The path of each picture, as named or as seen from the folder. */
  readonly files: readonly string[];
}

/**
 * Reads one picture, or all pictures of a folder and the folders in it.
 * @param log receives what is skipped, and progress.
 * @throws DownpourError DP_DATA_MISSING, DP_DATA_CORRUPT: a picture is damaged, or of another size than the model has where
 * no rule for sizes was given (`size`).
 */
export async function readNewImages(
  path: string,
  reading: ImageReading,
  log: (line: string) => void,
): Promise<NewImages> {
  const { width, height, channels, fit } = reading;
  const entry = await stat(path).catch((error) => {
    throw unreadable(path, error);
  });
  const passed = new PassedOver();
  const paths = entry.isDirectory() ? allPictures(await readFolder(path, passed)) : [path];
  const skipped = passed.text(path);
  if (skipped) log(`${path}: ${skipped}`);
  if (paths.length === 0) throw unreadable(path, new Error('it has no pictures'));
  const size = width * height * channels;
  if (paths.length * size > BYTES_MAX) {
    throw corrupt(
      path,
      `${paths.length} pictures of ${width}×${height}×${channels} are ${paths.length * size} bytes; at most ${BYTES_MAX} at a time`,
    );
  }
  const mustFit = ({ width: w, height: h }: Picture, file: string) => {
    if (fit !== undefined || (w === width && h === height)) return;
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `${file}: the picture is ${w}×${h}, but the model takes ${width}×${height}; resize it, or train with the option \`size\` of loadImageFolder, which resizes all pictures`,
    );
  };
  const values = new Uint8Array(paths.length * size);
  const first = await readPicture(paths[0]!);
  const files = paths.map((file) => ({ path: file }));
  const put = (picture: Picture, i: number) => {
    mustFit(picture, paths[i]!);
    paint(picture, values.subarray(i * size, (i + 1) * size), reading);
  };
  await readAll(files, first, null, put, log);
  const shape = [paths.length, height, width, channels];
  const names = entry.isDirectory() ? paths.map((file) => relative(path, file)) : paths;
  return { inputs: { values, shape }, files: names };
}
