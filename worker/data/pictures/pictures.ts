import { DownpourError, errorText } from '../../../shared/errors.ts';
import { corrupt, readDataFile } from '../files.ts';
import { isBmp, openBmp } from './bmp.ts';
import { isTurned, upright } from './exif.ts';
import { isJpeg, openJpeg } from './jpeg.ts';
import { isPng, openPng } from './png.ts';
import { openBySharp } from './sharp.ts';
import type { StoredPicture } from './stored-picture.ts';

/**
 * One file as the picture that a viewer shows: read by what is in it, whatever its name; upright; 8
 * bits a sample; of an animation the first frame. Colour profiles and gamma are not applied.
 */

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** Row by row: red, green, blue, how opaque; 8 bits each, colours not multiplied by the opacity. */
  readonly rgba: Uint8Array;
  /** Frames or pages of the file; the first one is this picture. */
  readonly frames: number;
}

/** The picture, and its path, whose size all must have. */
export interface SizeOf {
  readonly path: string;
  readonly width: number;
  readonly height: number;
}

/** The most bytes of one file. */
const FILE_BYTES_MAX = 64 * 2 ** 20;
const PIXELS_MAX = 50_000_000;

/** Endings of pictures that are read. */
export const PICTURE_ENDINGS: readonly string[] = [
  ...['png', 'apng', 'jpg', 'jpeg', 'jpe', 'jfif', 'jif', 'pjpeg', 'pjp'],
  ...['bmp', 'dib', 'gif', 'webp', 'tif', 'tiff', 'avif'],
];
/** Endings of pictures that are not; left out in silence they would be missing. */
export const OTHER_PICTURE_ENDINGS: readonly string[] = [
  ...['heic', 'heif', 'hif', 'jxl', 'jp2', 'j2k', 'jpf', 'jpx', 'psd', 'svg', 'svgz', 'ico', 'cur'],
  ...['pbm', 'pgm', 'ppm', 'pnm', 'tga', 'pcx', 'exr', 'hdr', 'dds', 'dcm', 'xcf', 'eps'],
  ...['dng', 'cr2', 'cr3', 'nef', 'arw', 'orf', 'rw2', 'raf'],
];
export const CONVERT =
  'convert it to PNG, for example with ImageMagick: magick picture.heic picture.png';

/**
 * @param like whose size it must have
 * @throws DownpourError DP_DATA_CORRUPT naming the file: empty, no picture, of a kind that is not read,
 * damaged, too large, or of another size; DP_DATA_MISSING where it cannot be opened, or needs a package.
 */
export async function readPicture(path: string, like?: SizeOf): Promise<Picture> {
  return decodePicture(await readDataFile(path, { bytesMax: FILE_BYTES_MAX }), path, like);
}

/** Width and height as a viewer shows it: no pixel is decoded. @throws DownpourError as `readPicture`. */
export async function pictureSize(path: string): Promise<readonly [number, number]> {
  const stored = await openStored(await readDataFile(path, { bytesMax: FILE_BYTES_MAX }), path);
  return sizeShown(stored);
}

function sizeShown({ width, height, orientation }: StoredPicture): readonly [number, number] {
  return isTurned(orientation) ? [height, width] : [width, height];
}

/** The same of the bytes of a file. */
export async function decodePicture(bytes: Buffer, path: string, like?: SizeOf): Promise<Picture> {
  const stored = await openStored(bytes, path);
  const { orientation, frames } = stored;
  const [width, height] = sizeShown(stored);
  // All of this is known before any pixel is decoded or memory taken.
  if (like && (width !== like.width || height !== like.height)) {
    throw corrupt(
      path,
      `the picture is ${width}×${height}, but ${like.path} is ${like.width}×${like.height}; all must have the same size: set the option \`size\`, such as size: 64, which resizes them`,
    );
  }
  if (width === 0 || height === 0 || width * height > PIXELS_MAX) {
    throw corrupt(path, `the picture is ${width}×${height}; allowed: 1 to ${PIXELS_MAX} pixels`);
  }
  if (stored.bytesMin > bytes.length) {
    throw corrupt(
      path,
      `its header says ${width}×${height} pixels, more than ${bytes.length} bytes can hold: the file is damaged`,
    );
  }
  try {
    const rgba = await stored.decode();
    if (rgba.length !== width * height * 4) throw new Error('its pixels are incomplete');
    return { width, height, frames, rgba: upright(rgba, stored.width, stored.height, orientation) };
  } catch (error) {
    throw corrupt(path, `the picture cannot be decoded: ${reasonOf(error)}`, error);
  }
}

async function openStored(bytes: Buffer, path: string): Promise<StoredPicture> {
  const stored = await open(bytes, path);
  if (stored === null) throw corrupt(path, 'its header is damaged');
  if (typeof stored === 'string') throw corrupt(path, `it is ${stored}; ${CONVERT}`);
  return stored;
}

async function open(bytes: Buffer, path: string): Promise<StoredPicture | string | null> {
  if (bytes.length === 0) throw corrupt(path, 'the file is empty: it has 0 bytes');
  if (isPng(bytes)) return openPng(bytes);
  if (isJpeg(bytes)) return openJpeg(bytes);
  if (isBmp(bytes)) return openBmp(bytes);
  const format = formatOf(bytes);
  if (format === null) {
    throw corrupt(
      path,
      `it is not a picture, or its header is damaged: it begins with ${JSON.stringify(bytes.toString('latin1', 0, 12))}`,
    );
  }
  if (!BY_SHARP.includes(format)) return `a picture in ${format}, which is not read`;
  try {
    return await openBySharp(bytes, format, path, PIXELS_MAX);
  } catch (error) {
    if (error instanceof DownpourError) throw error;
    throw corrupt(path, `its header cannot be read: ${reasonOf(error)}`, error);
  }
}

/** What decoders say, some of them in many lines, some in words of their own. */
function reasonOf(error: unknown): string {
  // Thrown by a decoder that had not thought of such a file.
  if (error instanceof TypeError || error instanceof RangeError) return 'its data are damaged';
  const [reason = ''] = errorText(error).split('\n');
  if (/marker was not found|read requests|end of GIF|bad seek/.test(reason)) {
    return 'it ends too early: the file is truncated';
  }
  return /pixel limit/.test(reason) ? `it has more than the ${PIXELS_MAX} pixels allowed` : reason;
}

const BY_SHARP = ['GIF', 'WebP', 'TIFF', 'AVIF'];

/** The format by the first bytes; null: of no kind known here. */
function formatOf(bytes: Buffer): string | null {
  const text = bytes.toString('latin1', 0, 256);
  if (text.startsWith('RIFF') && text.startsWith('WEBP', 8)) return 'WebP';
  if (text.startsWith('ftyp', 4)) {
    // The brands: the main one, a version, then those that it is compatible with.
    const brands = text.slice(8, bytes.readUInt32BE(0));
    return /avi[fs]/.test(brands) ? 'AVIF' : /he[iv][cxmsf]|mif1|msf1/.test(brands) ? 'HEIC' : null;
  }
  if (/^\s*<(svg|\?xml)/.test(text) && text.includes('<svg')) return 'SVG';
  return BEGINNINGS.find(([, beginning]) => text.startsWith(beginning))?.[0] ?? null;
}

const BEGINNINGS: readonly (readonly [string, string])[] = [
  ...['GIF87a', 'GIF89a'].map((text) => ['GIF', text] as const),
  // Classic and big ones.
  ...['II*\0', 'MM\0*', 'II+\0', 'MM\0+'].map((text) => ['TIFF', text] as const),
  ['JPEG XL', '\xff\x0a'],
  ['JPEG XL', '\0\0\0\x0cJXL '],
  ['JPEG 2000', '\xff\x4f\xff\x51'],
  ['JPEG 2000', '\0\0\0\x0cjP  '],
  ['Photoshop', '8BPS'],
  ['icons of Windows', '\0\0\x01\0'],
  ['DDS', 'DDS '],
  ['OpenEXR', '\x76\x2f\x31\x01'],
  ...['P1', 'P2', 'P3', 'P4', 'P5', 'P6', 'P7'].map((text) => ['PNM', `${text}\n`] as const),
];

/** Whether the bytes begin as those of a picture, of a kind that is read or not. */
export const beginsAsPicture = (bytes: Buffer): boolean =>
  isPng(bytes) || isJpeg(bytes) || isBmp(bytes) || formatOf(bytes) !== null;
