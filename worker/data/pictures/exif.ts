/** How a camera was held: the Orientation of Exif, and pixels turned by it. */

/** 1: as stored. 2 to 8 as in Exif 2.32, table 6: mirrored, turned, or both. */
export type Orientation = 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8;

const ORIENTATION_TAG = 0x0112;
const [SHORT, LONG] = [3, 4];

/**
 * @param block an Exif block: TIFF's header, then its first directory. `Exif\0\0` may stand before it.
 * Damaged blocks and values out of range mean 1, as viewers take them.
 */
export function orientationOf(block: Buffer): Orientation {
  const tiff = block.toString('latin1', 0, 6) === 'Exif\0\0' ? block.subarray(6) : block;
  const order = tiff.toString('latin1', 0, 2);
  if (tiff.length < 8 || (order !== 'II' && order !== 'MM')) return 1;
  const little = order === 'II';
  const u16 = (at: number) => (little ? tiff.readUInt16LE(at) : tiff.readUInt16BE(at));
  const u32 = (at: number) => (little ? tiff.readUInt32LE(at) : tiff.readUInt32BE(at));
  const directory = u32(4);
  if (u16(2) !== 42 || directory + 2 > tiff.length) return 1;
  const count = u16(directory);
  for (let i = 0, at = directory + 2; i < count && at + 12 <= tiff.length; i++, at += 12) {
    if (u16(at) !== ORIENTATION_TAG) continue;
    const type = u16(at + 2);
    const value = type === SHORT ? u16(at + 8) : type === LONG ? u32(at + 8) : 1;
    return value >= 1 && value <= 8 ? (value as Orientation) : 1;
  }
  return 1;
}

/** Orientations 5 to 8 lie on their side: width and height change places. */
export const isTurned = (orientation: Orientation): boolean => orientation >= 5;

/**
 * @param rgba of a picture as it is stored, `width` × `height`, four bytes a pixel
 * @returns the pixels as they are to be seen; `rgba` itself where nothing is to be done
 */
export function upright(
  rgba: Uint8Array,
  width: number,
  height: number,
  orientation: Orientation,
): Uint8Array {
  if (orientation === 1) return rgba;
  const aligned = rgba.byteOffset % 4 === 0 ? rgba : new Uint8Array(rgba);
  const from = new Uint32Array(aligned.buffer, aligned.byteOffset, width * height);
  const to = new Uint32Array(width * height);
  const [columns, rows] = isTurned(orientation) ? [height, width] : [width, height];
  // Where the pixel that is seen at (0, 0) is stored, and how far off its neighbours are.
  const [right, down] = [width - 1, (height - 1) * width];
  const [start, stepX, stepY] = {
    2: [right, -1, width],
    3: [right + down, -1, -width],
    4: [down, 1, -width],
    5: [0, width, 1],
    6: [down, -width, 1],
    7: [right + down, -width, -1],
    8: [right, width, -1],
  }[orientation] as [number, number, number];
  for (let y = 0, at = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) to[at++] = from[start + x * stepX + y * stepY]!;
  }
  return new Uint8Array(to.buffer);
}
