import { inflateSync } from 'node:zlib';
import { PNG } from 'pngjs';
import { type Orientation, orientationOf } from './exif.ts';
import type { StoredPicture } from './stored-picture.ts';

/** PNG: what its chunks say, and its pixels. Of an animated one, the picture that it shows at first. */

/** Deflate packs at most 1032 to 1; a picture that claims more than its file can hold is refused unread. */
const DEFLATE_RATIO_MAX = 1032;
/** Bits a pixel are this many samples times the depth, by colour type. */
const SAMPLES: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };

export const isPng = (bytes: Buffer): boolean =>
  bytes.toString('latin1', 0, 8) === '\x89PNG\r\n\x1a\n';

/** @returns null where the header is damaged */
export function openPng(bytes: Buffer): StoredPicture | null {
  if (bytes.length < 33 || bytes.toString('latin1', 12, 16) !== 'IHDR') return null;
  const width = bytes.readUInt32BE(16);
  const height = bytes.readUInt32BE(20);
  const samples = SAMPLES[bytes[25]!];
  if (samples === undefined) return null;
  const bits = samples * bytes[24]!;
  const isInterlaced = bytes[28] === 1;
  const { orientation, frames, data, end } = chunksOf(bytes);
  return {
    width,
    height,
    orientation,
    frames,
    bytesMin: (width * height * bits) / 8 / DEFLATE_RATIO_MAX,
    decode: () => {
      // The library unpacks these without a bound. Adam7: rows begin and end on bytes in 7 passes.
      if (isInterlaced) {
        const bytesMax = (width * height * bits) / 8 + 15 * height + 15;
        inflateSync(Buffer.concat(data), { maxOutputLength: Math.ceil(bytesMax) });
      }
      // Viewers show what stands before the end, whatever somebody has put behind it.
      return PNG.sync.read(bytes.subarray(0, end)).data;
    },
  };
}

/** What the chunks say beside the pixels. */
function chunksOf(bytes: Buffer) {
  let orientation: Orientation = 1;
  let frames = 1;
  const data: Buffer[] = [];
  let at = 8;
  while (at + 12 <= bytes.length) {
    const length = bytes.readUInt32BE(at);
    const kind = bytes.toString('latin1', at + 4, at + 8);
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (kind === 'eXIf') orientation = orientationOf(content);
    if (kind === 'acTL' && content.length >= 4) frames = Math.max(1, content.readUInt32BE(0));
    if (kind === 'IDAT') data.push(content);
    at += 12 + length;
    if (kind === 'IEND') break;
  }
  return { orientation, frames, data, end: Math.min(at, bytes.length) };
}
