import jpeg from 'jpeg-js';
import { type Orientation, orientationOf } from './exif.ts';
import { interpolate, toRgb } from './jpeg-colours.ts';
import type { StoredPicture } from './stored-picture.ts';

/** JPEG: what its markers say, and its pixels by them. */

export const isJpeg = (bytes: Buffer): boolean =>
  bytes.length >= 3 && bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;

/** Frames that are read: sequential by Huffman's code, plain and extended, and progressive. */
const READ = [0xc0, 0xc1, 0xc2];
const LOSSLESS = [0xc3, 0xc7, 0xcb, 0xcf];
/** Not in front of a frame: tables of Huffman's and of the arithmetic code, an extension of JPEG's own. */
const NO_FRAME = [0xc4, 0xc8, 0xcc];

interface Markers {
  readonly process: number;
  readonly precision: number;
  readonly width: number;
  readonly height: number;
  /** Their identifiers. */
  readonly components: readonly number[];
  /** For each component, samples across and down in a block of all of them. */
  readonly sampling: readonly (readonly [number, number])[];
  readonly isJfif: boolean;
  /** What Adobe's marker says: 0 none, 1 YCbCr, 2 YCCK. */
  readonly adobeTransform: number | null;
  /** Where the byte of that stands. */
  readonly adobeAt: readonly number[];
  readonly orientation: Orientation;
}

/** @returns null where the header is damaged, a sentence where the kind of JPEG is not read */
export function openJpeg(bytes: Buffer): StoredPicture | string | null {
  const markers = markersOf(bytes);
  if (markers === null) return null;
  const { width, height, precision, components, process } = markers;
  if (LOSSLESS.includes(process)) return 'a lossless JPEG, which is not read';
  if (!READ.includes(process))
    return 'a JPEG with arithmetic coding or a hierarchy, which is not read';
  if (precision !== 8) return `a JPEG with ${precision} bits a sample; 8 are read`;
  if (![1, 3, 4].includes(components.length)) {
    return `a JPEG of ${components.length} components; 1, 3 and 4 are read`;
  }
  return {
    width,
    height,
    orientation: markers.orientation,
    frames: 1,
    // A progressive picture codes an empty run of 32,767 blocks of 8×8 in about 3 bytes.
    bytesMin: (width * height) / (32_767 * 64),
    decode: () => decode(bytes, markers),
  };
}

function decode(bytes: Buffer, markers: Markers): Uint8Array {
  const { width, height, components, sampling } = markers;
  const { data } = jpeg.decode(markersFor(bytes, markers), {
    useTArray: true,
    tolerantDecoding: false,
    maxMemoryUsageInMB: 1024,
    // Three components come as they are; here they become colours.
    ...(components.length === 3 ? { colorTransform: false } : {}),
  });
  if (components.length !== 3) return data;
  if (data.length !== width * height * 4) throw new Error('its pixels are incomplete');
  const [across, down] = [0, 1].map((i) => Math.max(...sampling.map((factors) => factors[i]!)));
  for (const [c, [h, v]] of sampling.entries()) {
    interpolate(data, width, height, c, [across! / h, down! / v]);
  }
  if (isYCbCr(markers)) toRgb(data);
  return data;
}

/** Whether three components are YCbCr, as libjpeg and so every viewer decides it. */
function isYCbCr({ isJfif, adobeTransform, components }: Markers): boolean {
  if (isJfif) return true;
  if (adobeTransform !== null) return adobeTransform !== 0;
  return String.fromCharCode(...components) !== 'RGB';
}

/** Version 100, transform 0. */
const ADOBE = Buffer.from('ffee000e41646f626500640000000000', 'hex');

/**
 * Adobe's marker as the library needs it: three components it would turn into colours itself; four
 * without the marker are Adobe's CMYK for viewers, and refused by the library.
 */
function markersFor(bytes: Buffer, { components, adobeTransform, adobeAt }: Markers): Buffer {
  if (components.length === 3 && adobeTransform) {
    const copy = Buffer.from(bytes);
    for (const at of adobeAt) copy[at] = 0;
    return copy;
  }
  if (components.length !== 4 || adobeTransform !== null) return bytes;
  return Buffer.concat([bytes.subarray(0, 2), ADOBE, bytes.subarray(2)]);
}

/** The segments up to the first scan. Null: there is no frame in front of it. */
function markersOf(bytes: Buffer): Markers | null {
  let frame: Pick<
    Markers,
    'process' | 'precision' | 'width' | 'height' | 'components' | 'sampling'
  > | null = null;
  let isJfif = false;
  let adobeTransform: number | null = null;
  const adobeAt: number[] = [];
  let orientation: Orientation | null = null;
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1]!;
    if (marker === 0xff) {
      at++;
      continue;
    }
    const content = bytes.subarray(at + 4, at + 2 + bytes.readUInt16BE(at + 2));
    const begins = (text: string) => content.toString('latin1', 0, text.length) === text;
    if (marker === 0xda) break;
    if (marker === 0xe0 && begins('JFIF\0')) isJfif = true;
    if (marker === 0xe1 && begins('Exif\0\0')) orientation ??= orientationOf(content);
    if (marker === 0xee && begins('Adobe') && content.length >= 12) {
      adobeTransform = content[11]!;
      adobeAt.push(at + 4 + 11);
    }
    if (marker >= 0xc0 && marker <= 0xcf && !NO_FRAME.includes(marker)) {
      if (frame !== null || content.length < 6 + 3 * (content[5] ?? 0)) return null;
      frame = {
        process: marker,
        precision: content[0]!,
        height: content.readUInt16BE(1),
        width: content.readUInt16BE(3),
        components: Array.from({ length: content[5]! }, (_, c) => content[6 + 3 * c]!),
        sampling: Array.from({ length: content[5]! }, (_, c) => {
          const factors = content[7 + 3 * c]!;
          return [factors >> 4, factors & 15] as const;
        }),
      };
    }
    at += 2 + bytes.readUInt16BE(at + 2);
  }
  return frame && { ...frame, isJfif, adobeTransform, adobeAt, orientation: orientation ?? 1 };
}
