import jpeg from 'jpeg-js';
import { PNG } from 'pngjs';

/** Files of small pictures, made in memory. */

export type Rgb = readonly [number, number, number];
type Rgba = readonly [number, number, number, number];

/** Row by row. */
export function rgbaOf(
  width: number,
  height: number,
  pixel: (x: number, y: number) => Rgb | Rgba,
): Buffer {
  const data = Buffer.alloc(width * height * 4, 255);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) data.set(pixel(x, y), (y * width + x) * 4);
  }
  return data;
}

export function png(
  width: number,
  height: number,
  pixel: (x: number, y: number) => Rgb | Rgba,
): Buffer {
  const image = new PNG({ width, height });
  image.data = rgbaOf(width, height, pixel);
  return PNG.sync.write(image);
}

/** One that differs by `value`, 0 … 255. */
export const dot = (value = 0): Buffer => png(1, 1, () => [value, value, value]);

/** With one sample of chrominance a pixel, in YCbCr as JFIF has it. */
export function jpg(width: number, height: number, pixel: (x: number, y: number) => Rgb): Buffer {
  return jpeg.encode({ width, height, data: rgbaOf(width, height, pixel) }, 100).data;
}

/** A PNG with a chunk behind its header. */
export function withChunk(file: Buffer, kind: string, content: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(kind, 'latin1'), content]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(content.length);
  const check = Buffer.alloc(4);
  check.writeUInt32BE(crc32(body));
  return Buffer.concat([file.subarray(0, 33), length, body, check, file.subarray(33)]);
}

/** As in the PNG specification, annex D. */
export function crc32(bytes: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** An Exif block whose only field is the orientation. */
export function exifOf(orientation: number, order: 'II' | 'MM' = 'MM'): Buffer {
  const block = Buffer.alloc(26);
  block.write(order, 'latin1');
  const u16 = (value: number, at: number) =>
    order === 'II' ? block.writeUInt16LE(value, at) : block.writeUInt16BE(value, at);
  u16(42, 2);
  // The directory lies at byte 8: one field, 0x0112, of type SHORT, one value.
  if (order === 'II') block.writeUInt32LE(8, 4);
  else block.writeUInt32BE(8, 4);
  u16(1, 8);
  u16(0x0112, 10);
  u16(3, 12);
  if (order === 'II') block.writeUInt32LE(1, 14);
  else block.writeUInt32BE(1, 14);
  u16(orientation, 18);
  return block;
}

/** A JPEG with a segment behind its first two bytes. */
export function withSegment(file: Buffer, marker: number, content: Buffer): Buffer {
  const head = Buffer.from([0xff, marker, 0, 0]);
  head.writeUInt16BE(content.length + 2, 2);
  return Buffer.concat([file.subarray(0, 2), head, content, file.subarray(2)]);
}

/** Without the segments of a marker. */
export function withoutSegments(file: Buffer, marker: number): Buffer {
  const parts = [file.subarray(0, 2)];
  let at = 2;
  while (file[at + 1] !== 0xda) {
    const end = at + 2 + file.readUInt16BE(at + 2);
    if (file[at + 1] !== marker) parts.push(file.subarray(at, end));
    at = end;
  }
  return Buffer.concat([...parts, file.subarray(at)]);
}
