import { decodeGradient, encodeBf16, encodedBytes } from './compression.ts';
import { DownpourError } from './errors.ts';
import { LIMITS } from './limits.ts';

/**
 * Rows of tables as bytes, in a push, in a pull and in their answers. Everything is little-endian, and each part is
 * padded with zeros to a multiple of 4. For each table, in the order of the names:
 *
 * | what | bytes of n rows |
 * |---|---|
 * | n | u32 |
 * | keys | n u32, strictly rising |
 * | values in `f32` | 4 · n · width |
 * | values in `bf16` | 2 · n · width: as in `compression.ts` |
 * | values in `int8` | n f32 scales, then n · width signed bytes: value = byte · scale of the row |
 *
 * Keys alone are the same without values. A key is the id of a row: each is there once, and repeated ids of a minibatch
 * are summed by the worker first.
 */
export const ROW_ENCODINGS = ['f32', 'bf16', 'int8'] as const;
export type RowEncoding = (typeof ROW_ENCODINGS)[number];

/** What both sides know of a table. */
export interface RowShape {
  readonly name: string;
  /** Numbers in a row. */
  readonly width: number;
  /** Keys are below it. */
  readonly keysMax: number;
}

/** Some rows of one table. */
export interface TableRows {
  /** Strictly rising, shape [n]. */
  readonly keys: Uint32Array;
  /** Shape [n, width]. */
  readonly values: Float32Array;
}

/** Rows of one table in a message, values as they are there. */
export interface EncodedRows {
  readonly keys: Uint32Array;
  /** Values of all of them in their encoding: a view of the message. */
  readonly values: Uint8Array;
}

/** Bytes of the values of n rows. */
export function rowValueBytes(encoding: RowEncoding, n: number, width: number): number {
  if (encoding === 'int8') return 4 * n + Math.ceil((n * width) / 4) * 4;
  return encodedBytes(encoding, n * width);
}

/** Bytes of rows of all tables. @param counts rows of each. */
export function rowBytes(
  shapes: readonly RowShape[],
  counts: readonly number[],
  encoding: RowEncoding,
): number {
  let bytes = 0;
  for (const [i, { width }] of shapes.entries()) {
    bytes += 4 + 4 * counts[i]! + rowValueBytes(encoding, counts[i]!, width);
  }
  return bytes;
}

/** @param rows of each table, in the order of the shapes. @param room bytes behind them, zeros. */
export function encodeRows(
  shapes: readonly RowShape[],
  rows: readonly TableRows[],
  encoding: RowEncoding,
  room = 0,
): Uint8Array {
  const counts = rows.map(({ keys }) => keys.length);
  const bytes = new Uint8Array(rowBytes(shapes, counts, encoding) + room);
  let at = 0;
  for (const [i, { width }] of shapes.entries()) {
    const { keys, values } = rows[i]!;
    at = writeKeys(keys, bytes, at);
    const end = at + rowValueBytes(encoding, keys.length, width);
    encodeRowValues(
      encoding,
      values.subarray(0, keys.length * width),
      width,
      bytes.subarray(at, end),
    );
    at = end;
  }
  return bytes;
}

/** What `encodeKeys` needs. */
export const keyBytes = (keys: readonly Uint32Array[]): number =>
  keys.reduce((sum, each) => sum + 4 + 4 * each.length, 0);

/** @param keys of each table, in the order of the shapes. */
export function encodeKeys(keys: readonly Uint32Array[]): Uint8Array {
  const bytes = new Uint8Array(keyBytes(keys));
  let at = 0;
  for (const each of keys) at = writeKeys(each, bytes, at);
  return bytes;
}

/** @returns where the keys end. */
export function writeKeys(keys: Uint32Array, out: Uint8Array, at: number): number {
  const start = out.byteOffset + at;
  const target = new Uint32Array(out.buffer, start, 1 + keys.length);
  target[0] = keys.length;
  target.set(keys, 1);
  return at + 4 + 4 * keys.length;
}

/** @param values shape [n, width]. @param out exactly `rowValueBytes`, zeros. */
function encodeRowValues(
  encoding: RowEncoding,
  values: Float32Array,
  width: number,
  out: Uint8Array,
): void {
  if (encoding === 'f32') {
    out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  } else if (encoding === 'bf16') encodeBf16(values, out);
  else encodeInt8Rows(values, width, out);
}

/** One scale for each row: the largest size over 127. A row that is not finite gets the scale NaN. */
function encodeInt8Rows(values: Float32Array, width: number, out: Uint8Array): void {
  const n = values.length / width;
  const scales = new DataView(out.buffer, out.byteOffset, 4 * n);
  const numbers = new Int8Array(out.buffer, out.byteOffset + 4 * n, n * width);
  for (let row = 0; row < n; row++) {
    let largest = 0;
    let sum = 0;
    for (let i = row * width; i < (row + 1) * width; i++) {
      const x = values[i]!;
      largest = Math.max(largest, Math.abs(x));
      sum += x - x;
    }
    const scale = Number.isNaN(sum) ? Number.NaN : Math.fround(largest / 127);
    scales.setFloat32(4 * row, scale, true);
    for (let i = row * width; i < (row + 1) * width; i++) {
      const q = scale > 0 ? Math.round(values[i]! / scale) : 0;
      numbers[i] = Math.max(-127, Math.min(127, q));
    }
  }
}

/** @param bytes exactly `rowValueBytes`. @param out shape [n, width]. */
export function decodeRowValues(
  encoding: RowEncoding,
  bytes: Uint8Array,
  width: number,
  out: Float32Array,
): void {
  if (encoding !== 'int8') {
    decodeGradient(encoding, bytes, out);
    return;
  }
  const n = out.length / width;
  const scales = new DataView(bytes.buffer, bytes.byteOffset, 4 * n);
  const numbers = new Int8Array(bytes.buffer, bytes.byteOffset + 4 * n, n * width);
  for (let row = 0; row < n; row++) {
    const scale = scales.getFloat32(4 * row, true);
    for (let i = row * width; i < (row + 1) * width; i++) out[i] = numbers[i]! * scale;
  }
}

/**
 * Rows of a message with their values. @throws DownpourError DP_ROWS_INVALID: a count or a key is wrong, or the length.
 */
export function decodeRows(
  shapes: readonly RowShape[],
  bytes: Uint8Array,
  encoding: RowEncoding,
): readonly TableRows[] {
  return readEncodedRows(shapes, bytes, encoding).map(({ keys, values }, i) => {
    const { width } = shapes[i]!;
    const numbers = new Float32Array(keys.length * width);
    decodeRowValues(encoding, values, width, numbers);
    return { keys, values: numbers };
  });
}

/** The same with values as they are. Allocates no more than the keys that are there. */
export function readEncodedRows(
  shapes: readonly RowShape[],
  bytes: Uint8Array,
  encoding: RowEncoding,
): readonly EncodedRows[] {
  return readTables(shapes, bytes, (n, width) => rowValueBytes(encoding, n, width));
}

/** Keys of a message. @throws DownpourError DP_ROWS_INVALID: a count or a key is wrong, or the length. */
export function decodeKeys(shapes: readonly RowShape[], bytes: Uint8Array): readonly Uint32Array[] {
  return readTables(shapes, bytes, () => 0).map(({ keys }) => keys);
}

function readTables(
  shapes: readonly RowShape[],
  bytes: Uint8Array,
  valueBytes: (n: number, width: number) => number,
): readonly EncodedRows[] {
  const source = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  let total = 0;
  const tables = shapes.map(({ name, width, keysMax }) => {
    if (at + 4 > bytes.length) throw invalid(`they end before table '${name}'`);
    const n = source.getUint32(at, true);
    at += 4;
    total += n;
    if (total > LIMITS.rowsPerMessageMax) {
      throw invalid(
        `they are ${total} up to table '${name}'; allowed: ${LIMITS.rowsPerMessageMax}`,
      );
    }
    const size = 4 * n + valueBytes(n, width);
    if (at + size > bytes.length) {
      throw invalid(
        `table '${name}' has ${n} rows of ${size} bytes, and ${bytes.length - at} bytes are left`,
      );
    }
    const keys = readKeys(source, at, n, { name, keysMax });
    const values = bytes.subarray(at + 4 * n, at + size);
    at += size;
    return { keys, values };
  });
  if (at !== bytes.length) throw invalid(`they take ${at} bytes, and ${bytes.length} are there`);
  return tables;
}

function readKeys(
  source: DataView,
  at: number,
  n: number,
  { name, keysMax }: Pick<RowShape, 'name' | 'keysMax'>,
): Uint32Array {
  const keys = new Uint32Array(n);
  let last = -1;
  for (let i = 0; i < n; i++) {
    const key = source.getUint32(at + 4 * i, true);
    if (key <= last || key >= keysMax) {
      const after = last < 0 ? '' : ` after ${last}`;
      throw invalid(
        `key ${key} of table '${name}' comes${after}; allowed: strictly rising, below ${keysMax}`,
      );
    }
    keys[i] = key;
    last = key;
  }
  return keys;
}

const invalid = (what: string) =>
  new DownpourError(
    'DP_ROWS_INVALID',
    `rows of tables are not valid: ${what}: see docs/protocol.md`,
  );
