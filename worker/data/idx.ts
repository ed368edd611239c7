import type { Column, NumberKind } from './columns.ts';
import { refuseOtherKind } from './file-kinds.ts';
import { corrupt, type FileReadOptions, readDataFile } from './files.ts';
import { checkOptions, checkPath, READ_FIELDS } from './reader-options.ts';

/**
 * IDX, the format of MNIST: two zero bytes, the element type, the number of dimensions, each
 * dimension as a big-endian 32-bit number, then the elements in big-endian C order.
 */

const ELEMENTS: Readonly<Record<number, { bytes: number; name: string }>> = {
  8: { bytes: 1, name: 'unsigned byte' },
  9: { bytes: 1, name: 'signed byte' },
  11: { bytes: 2, name: 'short' },
  12: { bytes: 4, name: 'int' },
  13: { bytes: 4, name: 'float' },
  14: { bytes: 8, name: 'double' },
};

/**
 * Reads an IDX file, gzip or not. Unsigned bytes stay bytes; other integers become Int32Array, floats
 * Float32Array, doubles Float64Array.
 * @throws DownpourError DP_DATA_MISSING, DP_DATA_CORRUPT
 */
export async function readIdx(path: string, options: FileReadOptions = {}): Promise<Column> {
  checkPath('readIdx', path);
  checkOptions('readIdx', options, READ_FIELDS);
  return parseIdx(await readDataFile(path, options), path);
}

/** True for bytes that begin like an IDX file. */
export function isIdx(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && bytes[0] === 0 && bytes[1] === 0 && bytes[2]! in ELEMENTS;
}

/** @param bytes of the whole file; a column of unsigned bytes is a view of them. @param name for errors */
export function parseIdx(bytes: Uint8Array, name: string): Column {
  const { type, shape, start } = idxHeader(bytes, name);
  return { values: idxElements(bytes.subarray(start), type), shape };
}

export interface IdxHeader {
  /** The number that says it in the file. */
  readonly type: number;
  readonly elementBytes: number;
  readonly shape: readonly number[];
  /** The byte of the first element. */
  readonly start: number;
}

/** The most bytes of a header. */
export const IDX_HEADER_BYTES = 4 + 4 * 255;

/** @param bytes the first ones of the file, all that `IDX_HEADER_BYTES` are. @param fileBytes size of the file */
export function idxHeader(bytes: Uint8Array, name: string, fileBytes = bytes.length): IdxHeader {
  if (!isIdx(bytes)) {
    refuseOtherKind(bytes, name, 'an IDX file');
    const start = Buffer.from(bytes.subarray(0, 4)).toString('hex') || 'nothing';
    throw corrupt(
      name,
      `it is not an IDX file: it begins with ${start}, not with 0000, an element type (08, 09, 0b, 0c, 0d, 0e) and the number of dimensions`,
    );
  }
  const element = ELEMENTS[bytes[2]!]!;
  const rank = bytes[3]!;
  const start = 4 + 4 * rank;
  if (rank === 0) throw corrupt(name, 'its header has 0 dimensions; at least 1 is needed');
  if (bytes.length < start) {
    throw corrupt(name, `its header ends early: ${fileBytes} bytes of ${start}`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const shape = Array.from({ length: rank }, (_, i) => view.getUint32(4 + 4 * i));
  // Compared before anything is allocated: a damaged header may ask for any size.
  const length = shape.reduce((product, size) => product * size, 1);
  if (length * element.bytes !== fileBytes - start) {
    throw corrupt(
      name,
      `its header says ${shape.join(' × ')} elements of type ${element.name}, ${length * element.bytes} bytes; ${fileBytes - start} follow. The file is truncated or damaged: fetch it again`,
    );
  }
  return { type: bytes[2]!, elementBytes: element.bytes, shape, start };
}

/** The kind of numbers that each type of elements becomes. */
export const idxKind = (type: number): NumberKind =>
  type === 8 ? 'uint8' : type === 13 ? 'float32' : type === 14 ? 'float64' : 'int32';

/** Some elements of a file, one after the other. */
export function idxElements(bytes: Uint8Array, type: number): Column['values'] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length / ELEMENTS[type]!.bytes;
  if (type === 8) return new Uint8Array(view.buffer, view.byteOffset, length);
  if (type === 13) {
    const values = new Float32Array(length);
    for (let i = 0; i < length; i++) values[i] = view.getFloat32(4 * i);
    return values;
  }
  if (type === 14) {
    const values = new Float64Array(length);
    for (let i = 0; i < length; i++) values[i] = view.getFloat64(8 * i);
    return values;
  }
  const values = new Int32Array(length);
  for (let i = 0; i < length; i++) {
    values[i] =
      type === 9 ? view.getInt8(i) : type === 11 ? view.getInt16(2 * i) : view.getInt32(4 * i);
  }
  return values;
}
