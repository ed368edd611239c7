import { stat } from 'node:fs/promises';
import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { corrupt, unreadable } from '../files.ts';
import type { ImageParts, LabelledFile } from '../pictures/image-parts.ts';
import { type ImageFolderOptions, type OpenFolder, openFolder } from '../pictures/images.ts';
import { sharedPool } from '../pictures/picture-pool.ts';
import type { ExampleSource } from '../source.ts';
import { Kept } from './kept.ts';
import { holdOutRows, type SourceData } from './parts.ts';

/** Folders of pictures of any size: pictures are decoded when they are needed, in threads of their own. */

export interface ImageSourceOptions extends Omit<ImageFolderOptions, 'bytesMax'> {
  /** The most bytes of decoded pictures that are kept. Default: 64 MiB. */
  readonly keptBytes?: number;
}

export interface ImageSourceData extends SourceData {
  /** Folder names in sorted order (numbers by number), or as given: class 0, 1, … */
  readonly classes: readonly string[];
}

/** Files whose size and time are asked for at once. */
const TOGETHER = 64;

/**
 * The same as `loadImageFolder`, with the same folders, options and numbers, for pictures that do not fit in memory. Only the
 * names of files are read at first; a damaged picture is refused when a minibatch needs it. Pictures are decoded in up to four
 * threads while the model computes, and those used last are kept.
 *
 *     data: ({ log }) => imageFolderSource('photos', { size: 64, log })
 *
 * @throws DownpourError as `loadImageFolder` does; when examples are read, DP_DATA_CORRUPT also for a file that has changed
 */
export async function imageFolderSource(
  folder: string | ImageParts,
  options: ImageSourceOptions = {},
): Promise<ImageSourceData> {
  const { keptBytes = LIMITS.sourceCacheBytes, ...own } = options;
  if (!(Number.isFinite(keptBytes) && keptBytes >= 0)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `imageFolderSource: keptBytes is ${keptBytes}; allowed: a number of bytes from 0 on`,
    );
  }
  const opened = await openFolder('imageFolderSource', folder, own);
  const { found, origin, notes, reading } = opened;
  const { classes, parts } = found;
  const kept = new Kept<string, Uint8Array>(keptBytes);
  const sources = new Map<string, ExampleSource>();
  for (const { name, files } of parts) sources.set(name, await partOf(opened, name, files, kept));
  const count = parts.reduce((sum, { files }) => sum + files.length, 0);
  const { train, test: heldOut } = holdOutRows(sources.get('train')!, options.testFraction);
  const [validation, test] = [sources.get('validation'), heldOut ?? sources.get('test')];
  return {
    train,
    ...(validation ? { validation } : {}),
    ...(test ? { test } : {}),
    ...{ classes, classCount: classes.length },
    source: `${count} pictures as ${reading.width}×${reading.height} in ${classes.length} classes from ${origin}${notes.map((note) => `; ${note}`).join('')}`,
  };
}

async function partOf(
  { found, reading, like }: OpenFolder,
  part: string,
  files: readonly LabelledFile[],
  kept: Kept<string, Uint8Array>,
): Promise<ExampleSource> {
  const versions = await versionsOf(files);
  const { height, width, channels } = reading;
  const size = height * width * channels;
  const labels = Uint8Array.from(files, ({ label }) => label);
  const wide = Int32Array.from(files, ({ label }) => label);
  const { classes } = found;
  // Its pixels are not for the threads.
  const sizeOf = like && { path: like.path, width: like.width, height: like.height };
  const isWide = classes.length > 256;
  const pixelsOf = (index: number): Promise<Uint8Array> => {
    const { path } = files[index]!;
    return kept.get(path, size, async () => {
      if ((await versionOf(path)) !== versions[index]) {
        throw corrupt(
          path,
          'it has changed since its folder was read. The examples of a run must stay the same: start the worker again when nothing writes there',
        );
      }
      return sharedPool().decode({ path, canvas: reading, like: sizeOf });
    });
  };
  return {
    count: files.length,
    name: `${part} pictures`,
    key: JSON.stringify([reading, classes, files.map(({ path }, i) => [path, versions[i]])]),
    fields: {
      inputs: { shape: [height, width, channels], type: 'uint8', reading },
      targets: { shape: [], type: isWide ? 'int32' : 'uint8', classes },
    },
    async read(indices, { signal }) {
      const inputs = new Uint8Array(indices.length * size);
      await Promise.all(
        Array.from(indices, async (index, i) => {
          inputs.set(await pixelsOf(index), i * size);
          signal.throwIfAborted();
        }),
      );
      const all = isWide ? wide : labels;
      const targets = isWide ? new Int32Array(indices.length) : new Uint8Array(indices.length);
      indices.forEach((index, i) => {
        targets[i] = all[index]!;
      });
      return { inputs, targets };
    },
  };
}

async function versionsOf(files: readonly LabelledFile[]): Promise<string[]> {
  const versions: string[] = [];
  for (let from = 0; from < files.length; from += TOGETHER) {
    const some = files.slice(from, from + TOGETHER).map(({ path }) => versionOf(path));
    versions.push(...(await Promise.all(some)));
  }
  return versions;
}

async function versionOf(path: string): Promise<string> {
  const { size, mtimeMs } = await stat(path).catch((error) => {
    throw unreadable(path, error);
  });
  return `${size}, ${mtimeMs}`;
}
