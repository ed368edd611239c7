import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import jpeg from 'jpeg-js';
import { PNG } from 'pngjs';
import { errorText } from '../../shared/errors.ts';
import type { ExperimentData } from './examples.ts';
import { corrupt, readDataFile, unreadable } from './files.ts';

/** Folders of pictures, one folder a class, as bytes of shape [n, height, width, channels]. */

export interface ImageFolderOptions {
  /** 1: grey, 3: red, green, blue. Default 3. What is transparent counts as if it were not. */
  readonly channels?: 1 | 3;
  /** Of all pixels together; default 2 GiB. */
  readonly bytesMax?: number;
}

export interface ImageData extends ExperimentData {
  /** Folder names in sorted order: class 0, 1, … */
  readonly classes: readonly string[];
}

const IMAGES_BYTES_MAX = 2 * 2 ** 30;
/** Of one file. */
const FILE_BYTES_MAX = 64 * 2 ** 20;
const PIXELS_MAX = 50_000_000;
/** Deflate packs at most 1032 to 1; a picture that claims more than its file can hold is refused unread. */
const DEFLATE_RATIO_MAX = 1032;

/**
 * Reads the PNG and JPEG files of `folder/CLASS/*`; other files are passed over. All pictures must
 * have the same size.
 * @throws DownpourError DP_DATA_MISSING when there is no folder, no class or no picture in one;
 * DP_DATA_CORRUPT naming the file that is damaged or of another size, or when all are too much.
 */
export async function loadImageFolder(
  folder: string,
  options: ImageFolderOptions = {},
): Promise<ImageData> {
  const { channels = 3, bytesMax = IMAGES_BYTES_MAX } = options;
  const { classes, files } = await listImages(folder);
  const first = await decodeFile(files[0]!.path);
  const size = first.width * first.height * channels;
  if (files.length * size > bytesMax) {
    throw corrupt(
      folder,
      `${files.length} pictures of ${first.width}×${first.height}×${channels} are ${files.length * size} bytes; allowed: ${bytesMax}. Make them smaller or raise bytesMax`,
    );
  }
  const values = new Uint8Array(files.length * size);
  const labels = new Uint8Array(files.length);
  for (const [i, file] of files.entries()) {
    const image = i === 0 ? first : await decodeFile(file.path, first);
    copyPixels(image.rgba, values.subarray(i * size, (i + 1) * size), channels);
    labels[i] = file.label;
  }
  const count = files.length;
  return {
    train: {
      count,
      inputs: { values, shape: [count, first.height, first.width, channels] },
      targets: { values: labels, shape: [count], classes },
    },
    classCount: classes.length,
    source: `${count} pictures of ${first.width}×${first.height} in ${classes.length} classes from ${folder}`,
    classes,
  };
}

async function listImages(folder: string) {
  const list = async (path: string) => {
    try {
      return (await readdir(path)).filter((name) => !name.startsWith('.')).sort();
    } catch (error) {
      throw unreadable(path, error);
    }
  };
  const classes: string[] = [];
  for (const name of await list(folder)) {
    const entry = await stat(join(folder, name)).catch((error) => {
      throw unreadable(join(folder, name), error);
    });
    if (entry.isDirectory()) classes.push(name);
  }
  if (classes.length < 2 || classes.length > 256) {
    throw unreadable(
      folder,
      new Error(`it has ${classes.length} folders; 2 to 256 are needed, one for each class`),
    );
  }
  const files: { path: string; label: number }[] = [];
  for (const [label, name] of classes.entries()) {
    const path = join(folder, name);
    const images = (await list(path)).filter((file) => /\.(png|jpe?g)$/i.test(file));
    if (images.length === 0) {
      throw unreadable(path, new Error('the class has no .png, .jpg or .jpeg file'));
    }
    for (const image of images) files.push({ path: join(path, image), label });
  }
  return { classes, files };
}

interface Image {
  readonly width: number;
  readonly height: number;
  /** 8 bits each. */
  readonly rgba: Uint8Array;
}

/** @param like the size that all must have */
async function decodeFile(path: string, like?: Image): Promise<Image> {
  const bytes = await readDataFile(path, { bytesMax: FILE_BYTES_MAX });
  const size = pngSize(bytes) ?? jpegSize(bytes);
  if (size === null) throw corrupt(path, 'neither a PNG nor a JPEG file, or its header is damaged');
  const { width, height } = size;
  // All of this is known before any pixel is decoded or memory taken.
  if (like && (width !== like.width || height !== like.height)) {
    throw corrupt(
      path,
      `the picture is ${width}×${height}, the first one ${like.width}×${like.height}; bring all to one size`,
    );
  }
  if (width === 0 || height === 0 || width * height > PIXELS_MAX) {
    throw corrupt(path, `the picture is ${width}×${height}; allowed: 1 to ${PIXELS_MAX} pixels`);
  }
  if (size.bytesMin > bytes.length) {
    throw corrupt(
      path,
      `its header says ${width}×${height} pixels, more than ${bytes.length} bytes can hold: the file is damaged`,
    );
  }
  try {
    const image =
      size.format === 'png'
        ? PNG.sync.read(bytes)
        : jpeg.decode(bytes, {
            useTArray: true,
            tolerantDecoding: false,
            maxMemoryUsageInMB: 1024,
          });
    if (image.data.length !== width * height * 4) throw new Error('its pixels are incomplete');
    return { width, height, rgba: image.data };
  } catch (error) {
    throw corrupt(path, `the picture cannot be decoded: ${errorText(error)}`, error);
  }
}

interface ImageSize {
  readonly format: 'png' | 'jpeg';
  readonly width: number;
  readonly height: number;
  /** The file must have at least as many to hold the pixels. */
  readonly bytesMin: number;
}

function pngSize(bytes: Buffer): ImageSize | null {
  if (bytes.length < 33 || bytes.toString('latin1', 0, 8) !== '\x89PNG\r\n\x1a\n') return null;
  if (bytes.toString('latin1', 12, 16) !== 'IHDR') return null;
  const width = bytes.readUInt32BE(16);
  const height = bytes.readUInt32BE(20);
  const samples = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[bytes[25]!];
  if (samples === undefined) return null;
  const raw = (width * height * samples * bytes[24]!) / 8;
  return { format: 'png', width, height, bytesMin: raw / DEFLATE_RATIO_MAX };
}

/** From the start-of-frame segment, the first of the markers C0 … CF that isn't a table's. */
function jpegSize(bytes: Buffer): ImageSize | null {
  if (bytes.length < 4 || bytes.readUInt16BE(0) !== 0xffd8) return null;
  let at = 2;
  while (at + 9 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1]!;
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      const height = bytes.readUInt16BE(at + 5);
      const width = bytes.readUInt16BE(at + 7);
      // A progressive picture codes an empty run of 32,767 blocks of 8×8 in about 3 bytes.
      return { format: 'jpeg', width, height, bytesMin: (width * height) / (32_767 * 64) };
    }
    at += marker === 0xff ? 1 : 2 + bytes.readUInt16BE(at + 2);
  }
  return null;
}

function copyPixels(rgba: Uint8Array, target: Uint8Array, channels: 1 | 3): void {
  const pixels = rgba.length / 4;
  for (let p = 0; p < pixels; p++) {
    const r = rgba[4 * p]!;
    const g = rgba[4 * p + 1]!;
    const b = rgba[4 * p + 2]!;
    if (channels === 1) {
      // Luma of ITU-R BT.601, in integers: grey stays exactly what it was.
      target[p] = (299 * r + 587 * g + 114 * b + 500) / 1000;
    } else {
      target[3 * p] = r;
      target[3 * p + 1] = g;
      target[3 * p + 2] = b;
    }
  }
}
