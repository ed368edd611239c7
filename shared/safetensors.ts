import { DownpourError } from './errors.ts';

// The safetensors format: a u64 little-endian length, that many bytes of JSON which name each
// tensor's type, shape and place, then the data. Offsets count from the start of the data. The
// data must be covered completely and only once.
// Source: https://github.com/huggingface/safetensors, section "Format".

/** Bytes of one element, by type. Checkpoints are F32, packed data also F64, I32 and U8; files of others have all of them. */
export const DTYPE_BYTES = {
  F32: 4,
  F64: 8,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
} as const;
export type Dtype = keyof typeof DTYPE_BYTES;

/** The largest header that is read: a lie about the length must not cost memory. */
export const HEADER_BYTES_MAX = 64 * 1024 * 1024;
/** The most dimensions that a tensor may have. */
const RANK_MAX = 32;
/** Bytes of the length that stands before the header. */
export const PREFIX_BYTES = 8;

const ALIGNMENT_BYTES = 8;
const METADATA = '__metadata__';
const SPACE = 0x20;

/** A tensor to write, in the order in which its data will follow. */
export interface TensorEntry {
  readonly name: string;
  /** Default: F32. */
  readonly dtype?: Dtype;
  readonly shape: readonly number[];
  /** Bytes of an element × the product of `shape`. */
  readonly byteLength: number;
}

/** A tensor that a header announces. `begin` and `end` are bytes from the start of the data. */
export interface StoredTensor {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  /** The tensors in the order of their data. */
  readonly tensors: readonly StoredTensor[];
  readonly metadata: Readonly<Record<string, string>>;
  /** Where the data starts in the file, in bytes: length, header and padding. */
  readonly dataStart: number;
}

/**
 * The bytes that come before the data of a file, the length included. They are
 * padded with spaces so that the data starts at a multiple of 8 bytes: a reader may look at a
 * mapped file through a Float32Array.
 *
 * Throws DP_LAYOUT_INVALID when a name is used twice or a size contradicts its shape.
 */
export function encodeSafetensorsHeader(
  tensors: readonly TensorEntry[],
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array<ArrayBuffer> {
  const names = new Set<string>();
  const fields: string[] = [];
  if (Object.keys(metadata).length > 0) {
    fields.push(`${JSON.stringify(METADATA)}:${JSON.stringify(metadata)}`);
  }
  let begin = 0;
  for (const { name, dtype = 'F32', shape, byteLength } of tensors) {
    if (name === METADATA || names.has(name)) throw unwritable(name, 'its name is taken');
    names.add(name);
    const expected = bytesOf(shape, dtype);
    if (expected === null) throw unwritable(name, `its shape is [${shape.join(', ')}]`);
    if (byteLength !== expected) {
      throw unwritable(
        name,
        `it has ${byteLength} bytes where [${shape.join(', ')}] takes ${expected}`,
      );
    }
    const entry = { dtype, shape, data_offsets: [begin, begin + byteLength] };
    // Fields are joined as text: an object would move names such as "1" to the front, and would
    // take "__proto__" for something else.
    fields.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`);
    begin += byteLength;
  }
  const json = new TextEncoder().encode(`{${fields.join(',')}}`);
  const unpadded = PREFIX_BYTES + json.length;
  const bytes = new Uint8Array(Math.ceil(unpadded / ALIGNMENT_BYTES) * ALIGNMENT_BYTES).fill(SPACE);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(bytes.length - PREFIX_BYTES), true);
  bytes.set(json, PREFIX_BYTES);
  return bytes;
}

/**
 * How many bytes of JSON follow the first 8 bytes of a file: what a reader fetches next.
 * Throws DP_CHECKPOINT_CORRUPT when the file is too short for them, or they are too many.
 */
export function safetensorsHeaderLength(prefix: Uint8Array, fileBytes: number): number {
  if (prefix.length < PREFIX_BYTES || fileBytes < PREFIX_BYTES) {
    throw corrupt(`it has ${Math.min(prefix.length, fileBytes)} bytes, a header takes more`);
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (length > BigInt(HEADER_BYTES_MAX)) {
    throw corrupt(`it announces a header of ${length} bytes, at most ${HEADER_BYTES_MAX} are read`);
  }
  if (PREFIX_BYTES + Number(length) > fileBytes) {
    throw corrupt(`it announces a header of ${length} bytes and has ${fileBytes} altogether`);
  }
  return Number(length);
}

/**
 * Reads the header of a safetensors file and checks all that it says: types, shapes, and that
 * the data is covered from first to last byte, each byte once.
 *
 * @param bytes the file, or as much of its beginning as holds the header.
 * @param fileBytes the size of the whole file.
 *
 * Throws DP_CHECKPOINT_CORRUPT that names what is wrong.
 */
export function decodeSafetensorsHeader(
  bytes: Uint8Array,
  fileBytes: number = bytes.length,
): SafetensorsHeader {
  const length = safetensorsHeaderLength(bytes, fileBytes);
  const dataStart = PREFIX_BYTES + length;
  if (bytes.length < dataStart) {
    throw corrupt(`its header takes ${dataStart} bytes, ${bytes.length} were given`);
  }
  const header = parseObject(bytes.subarray(PREFIX_BYTES, dataStart));
  const metadata = readMetadata(header[METADATA]);
  const tensors: StoredTensor[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name !== METADATA) tensors.push(readEntry(name, entry));
  }
  // An empty tensor shares its place with the next: it comes first, else it would look like a hole.
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let covered = 0;
  for (const { name, begin, end } of tensors) {
    if (begin > covered) throw corrupt(`bytes ${covered} to ${begin} of its data have no tensor`);
    if (begin < covered) throw corrupt(`tensor ${quote(name)} overlaps the one before it`);
    covered = end;
  }
  const dataBytes = fileBytes - dataStart;
  if (covered !== dataBytes) {
    throw corrupt(`its tensors take ${covered} bytes, its data has ${dataBytes}`);
  }
  return { tensors, metadata, dataStart };
}

function parseObject(json: Uint8Array): Record<string, unknown> {
  let header: unknown;
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
    if (!text.startsWith('{')) throw new SyntaxError('it does not start with {');
    header = JSON.parse(text);
  } catch (error) {
    throw corrupt('its header is not JSON', error);
  }
  return header as Record<string, unknown>;
}

function readMetadata(value: unknown): Record<string, string> {
  const metadata: Record<string, string> = Object.create(null);
  if (value === undefined) return metadata;
  if (!isObject(value)) throw corrupt(`its ${METADATA} is not an object`);
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') throw corrupt(`its ${METADATA} ${quote(key)} is not text`);
    metadata[key] = text;
  }
  return metadata;
}

function readEntry(name: string, entry: unknown): StoredTensor {
  if (!isObject(entry)) throw corrupt(`tensor ${quote(name)} is not an object`);
  const { dtype, shape, data_offsets: offsets, ...others } = entry;
  for (const key of Object.keys(others)) {
    throw corrupt(`tensor ${quote(name)} has an unknown field ${quote(key)}`);
  }
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    const known = Object.keys(DTYPE_BYTES).join(', ');
    throw corrupt(`tensor ${quote(name)} has type ${quote(String(dtype))}, read are ${known}`);
  }
  const bytes = Array.isArray(shape) ? bytesOf(shape, dtype as Dtype) : null;
  if (bytes === null) {
    throw corrupt(`tensor ${quote(name)} has shape ${quote(JSON.stringify(shape))}`);
  }
  const [begin, end] = Array.isArray(offsets) && offsets.length === 2 ? offsets : [];
  if (!isCount(begin) || !isCount(end) || end - begin !== bytes) {
    throw corrupt(
      `tensor ${quote(name)} lies at ${quote(JSON.stringify(offsets))}, its shape takes ${bytes} bytes`,
    );
  }
  return { name, dtype: dtype as Dtype, shape: shape as number[], begin, end };
}

/** The bytes of a tensor, or null when its shape is not one. */
function bytesOf(shape: readonly unknown[], dtype: Dtype): number | null {
  if (shape.length > RANK_MAX) return null;
  let bytes: number = DTYPE_BYTES[dtype];
  for (const size of shape) {
    if (!isCount(size)) return null;
    bytes *= size;
  }
  return isCount(bytes) ? bytes : null;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Names come from files: they are shortened, and escaped, before they reach a terminal. */
function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

function corrupt(what: string, cause?: unknown): DownpourError {
  return new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `not a safetensors file that can be read: ${what}; use an older checkpoint or another copy`,
    cause === undefined ? undefined : { cause },
  );
}

function unwritable(name: string, what: string): DownpourError {
  return new DownpourError(
    'DP_LAYOUT_INVALID',
    `tensor ${quote(name)} cannot be written: ${what}; names are unique, sizes follow from shapes`,
  );
}
