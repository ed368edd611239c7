import type { StoredPicture } from './stored-picture.ts';

/** BMP of Windows and OS/2: 1, 4, 8, 16, 24 and 32 bits a pixel, not packed. */

/** Sizes of the second header: OS/2's, Windows' versions 3 to 5, and two between. */
const HEADERS = [12, 40, 52, 56, 64, 108, 124];
const [RGB, RLE8, RLE4, BITFIELDS, ALPHABITFIELDS] = [0, 1, 2, 3, 6];
const FILE_HEADER = 14;

export const isBmp = (bytes: Buffer): boolean =>
  bytes.length >= 18 &&
  bytes.toString('latin1', 0, 2) === 'BM' &&
  HEADERS.includes(bytes.readUInt32LE(14));

interface BmpHeader {
  readonly width: number;
  readonly height: number;
  /** The first row of the file is the topmost one. */
  readonly isTopDown: boolean;
  readonly bits: number;
  readonly compression: number;
  /** Where the header ends. */
  readonly end: number;
  readonly palette: { readonly at: number; readonly entryBytes: number; readonly count: number };
  readonly pixelsAt: number;
}

/** @returns null where the header is damaged, a sentence where the kind of BMP is not read */
export function openBmp(bytes: Buffer): StoredPicture | string | null {
  const header = headerOf(bytes);
  if (header === null) return null;
  const { width, height, bits, compression, pixelsAt } = header;
  if (compression === RLE8 || compression === RLE4)
    return 'a BMP with run-length compression, which is not read';
  const isMasked = compression === BITFIELDS || compression === ALPHABITFIELDS;
  if (compression !== RGB && !isMasked)
    return `a BMP with compression ${compression}, which is not read`;
  if (isMasked ? bits !== 16 && bits !== 32 : ![1, 4, 8, 16, 24, 32].includes(bits)) {
    return `a BMP of ${bits} bits a pixel, which is not read`;
  }
  return {
    width,
    height,
    orientation: 1,
    frames: 1,
    bytesMin: pixelsAt + rowBytes(header) * height,
    decode: () => (bits <= 8 ? indexed(bytes, header) : direct(bytes, header, isMasked)),
  };
}

function headerOf(bytes: Buffer): BmpHeader | null {
  const size = bytes.readUInt32LE(14);
  const end = FILE_HEADER + size;
  if (bytes.length < end) return null;
  const pixelsAt = bytes.readUInt32LE(10);
  if (size === 12) {
    const bits = bytes.readUInt16LE(24);
    const palette = { at: end, entryBytes: 3, count: bits <= 8 ? 2 ** bits : 0 };
    const [width, height] = [bytes.readUInt16LE(18), bytes.readUInt16LE(20)];
    return { width, height, isTopDown: false, bits, compression: RGB, end, palette, pixelsAt };
  }
  const height = bytes.readInt32LE(22);
  const bits = bytes.readUInt16LE(28);
  const compression = bytes.readUInt32LE(30);
  const used = bytes.readUInt32LE(46);
  const count = bits > 8 ? 0 : Math.min(2 ** bits, used || 2 ** bits);
  // Version 3 keeps its masks between header and palette.
  const masks =
    size !== 40 ? 0 : compression === BITFIELDS ? 12 : compression === ALPHABITFIELDS ? 16 : 0;
  return {
    width: Math.max(0, bytes.readInt32LE(18)),
    height: Math.abs(height),
    isTopDown: height < 0,
    ...{ bits, compression, end, pixelsAt },
    palette: { at: end + masks, entryBytes: 4, count },
  };
}

/** Rows are filled up to whole words of 4 bytes. */
const rowBytes = ({ width, bits }: BmpHeader): number => Math.ceil((width * bits) / 32) * 4;

const rowAt = (header: BmpHeader, y: number): number =>
  header.pixelsAt + rowBytes(header) * (header.isTopDown ? y : header.height - 1 - y);

function indexed(bytes: Buffer, header: BmpHeader): Uint8Array {
  const { width, height, bits, palette } = header;
  const rgba = new Uint8Array(width * height * 4).fill(255);
  const mask = 2 ** bits - 1;
  for (let y = 0, to = 0; y < height; y++) {
    const row = rowAt(header, y);
    for (let x = 0; x < width; x++, to += 4) {
      const bit = x * bits;
      const index = (bytes[row + (bit >> 3)]! >> (8 - bits - (bit & 7))) & mask;
      const entry = palette.at + index * palette.entryBytes;
      if (index >= palette.count || entry + 3 > bytes.length) {
        throw new Error(`a pixel has colour ${index} of a palette of ${palette.count}`);
      }
      rgba[to] = bytes[entry + 2]!;
      rgba[to + 1] = bytes[entry + 1]!;
      rgba[to + 2] = bytes[entry]!;
    }
  }
  return rgba;
}

/** Red, green, blue, and how opaque; a mask of 0 means that there is no such channel. */
function masksOf(bytes: Buffer, { bits, end }: BmpHeader, isMasked: boolean): number[] {
  if (!isMasked) return bits === 16 ? [0x7c00, 0x3e0, 0x1f, 0] : [0xff0000, 0xff00, 0xff, 0];
  const at = FILE_HEADER + 40;
  const size = end - FILE_HEADER;
  const hasAlpha = size >= 56 || bytes.readUInt32LE(30) === ALPHABITFIELDS;
  return [0, 1, 2, 3].map((c) => (c === 3 && !hasAlpha ? 0 : bytes.readUInt32LE(at + 4 * c)));
}

function direct(bytes: Buffer, header: BmpHeader, isMasked: boolean): Uint8Array {
  const { width, height, bits } = header;
  const rgba = new Uint8Array(width * height * 4);
  const channels = masksOf(bytes, header, isMasked).map((mask) => {
    const shift = mask === 0 ? 0 : 31 - Math.clz32(mask & -mask);
    return { mask, shift, max: mask >>> shift || 1 };
  });
  const step = bits / 8;
  let isOpaque = true;
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0, at = rowAt(header, y); x < width; x++, at += step, to += 4) {
      const pixel = bytes.readUIntLE(at, step);
      for (let c = 0; c < 4; c++) {
        const { mask, shift, max } = channels[c]!;
        rgba[to + c] = Math.round((((pixel & mask) >>> shift) * 255) / max);
      }
      if (rgba[to + 3] !== 0) isOpaque = false;
    }
  }
  // Nothing visible at all: programs that know no transparency leave those bits 0, and viewers show the colours.
  if (isOpaque) for (let at = 3; at < rgba.length; at += 4) rgba[at] = 255;
  return rgba;
}
