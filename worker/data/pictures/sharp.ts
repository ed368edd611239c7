import { DownpourError, errorText } from '../../../shared/errors.ts';
import type { Orientation } from './exif.ts';
import type { StoredPicture } from './stored-picture.ts';

/**
 * The door to sharp (libvips), an optional package that reads what has no decoder here. PNG and JPEG
 * never come this way: their pixels must be the same on a machine that cannot have the package.
 */

type Sharp = typeof import('sharp').default;

/** What libvips calls grey and RGB; of others its conversion depends on profiles. */
const SPACES: readonly string[] = ['b-w', 'grey16', 'srgb', 'rgb16', 'rgb'];

let loading: Promise<Sharp> | undefined;

/** @throws DownpourError DP_DATA_MISSING where the package is missing or cannot be loaded. */
async function sharpFor(path: string, format: string): Promise<Sharp> {
  try {
    loading ??= import('sharp').then((module) => module.default);
    return await loading;
  } catch (error) {
    throw new DownpourError(
      'DP_DATA_MISSING',
      `${path} is a picture in ${format}, which the package sharp reads. It is not installed here, or not for this machine (${errorText(error).split('\n')[0]}). Run npm install sharp in Downpour's folder, or convert such pictures to PNG`,
      { cause: error },
    );
  }
}

/** @returns a sentence where this kind of the format is not read. @throws what the package says of a damaged file. */
export async function openBySharp(
  bytes: Buffer,
  format: string,
  path: string,
  pixelsMax: number,
): Promise<StoredPicture | string> {
  const sharp = await sharpFor(path, format);
  const open = () =>
    // Profiles of colours are not applied, as with PNG and JPEG.
    sharp(bytes, { failOn: 'error', limitInputPixels: pixelsMax, ignoreIcc: true, pages: 1 });
  const { width, height, depth, space, orientation, pages } = await open().metadata();
  if (depth !== 'uchar' && depth !== 'ushort') {
    return `a ${format} with numbers of the kind '${depth}'; pictures of 8 or 16 bits are read`;
  }
  if (!SPACES.includes(space)) {
    return `a ${format} in the colour space '${space}'; grey and red, green, blue are read`;
  }
  const turn = (orientation ?? 1) as Orientation;
  return {
    width,
    height,
    orientation: turn,
    frames: pages ?? 1,
    bytesMin: 0,
    decode: async () => {
      const image = open().toColourspace('srgb').ensureAlpha();
      const { data, info } = await image
        .raw({ depth: 'uchar' })
        .toBuffer({ resolveWithObject: true });
      if (info.channels !== 4) throw new Error(`it has ${info.channels} channels`);
      return data;
    },
  };
}
