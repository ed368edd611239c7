import type { Column, NumberKind } from './columns.ts';
import { refuseOtherKind } from './file-kinds.ts';
import { corrupt, type FileReadOptions, readDataFile } from './files.ts';
import { checkOptions, checkPath, READ_FIELDS } from './reader-options.ts';

/**
 * NumPy's .npy, versions 1 to 3: a magic, the version, the length of the header, the header (a Python
 * dictionary with `descr`, `fortran_order` and `shape`), then the elements.
 */

const MAGIC = Buffer.from('\x93NUMPY', 'latin1');
const TYPES = ['b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'] as const;
type Type = (typeof TYPES)[number];
/** Kinds of elements that are no numbers of these types, and what to do about them. */
const OTHER_KINDS: Readonly<Record<string, string>> = {
  c: 'complex numbers; save their real and imaginary parts, or their absolute values, as an extra axis',
  O: 'Python objects; give the array a type of numbers: array.astype(numpy.float32)',
  U: 'texts; save numbers: numpy.unique(labels, return_inverse=True)[1]',
  S: 'texts; save numbers: numpy.unique(labels, return_inverse=True)[1]',
  a: 'texts; save numbers: numpy.unique(labels, return_inverse=True)[1]',
  M: "dates; save numbers: array.astype('datetime64[ms]').astype(numpy.int64)",
  m: "durations; save numbers: array.astype('timedelta64[ms]').astype(numpy.int64)",
  V: 'raw bytes (numpy knows no bfloat16); convert before saving: array.astype(numpy.float32)',
  f: 'floats of another size; save array.astype(numpy.float64)',
};

/** NumPy itself allows at most 64 dimensions. */
const RANK_MAX = 64;

/**
 * Reads a .npy file, gzip or not, in either byte order; Fortran order is transposed. u1 stays bytes
 * (pixels); f2 and f4 become Float32Array, f8 Float64Array, b1 and other integers Int32Array, or Float64Array
 * where one needs more than 32 bits.
 * @throws DownpourError DP_DATA_MISSING, DP_DATA_CORRUPT; the latter too for elements that are no numbers,
 * and for an integer that float64 would round
 */
export async function readNpy(path: string, options: FileReadOptions = {}): Promise<Column> {
  checkPath('readNpy', path);
  checkOptions('readNpy', options, READ_FIELDS);
  return parseNpy(await readDataFile(path, options), path);
}

/** True for bytes that begin like a .npy file. */
export function isNpy(bytes: Uint8Array): boolean {
  return bytes.length >= MAGIC.length && MAGIC.every((byte, i) => bytes[i] === byte);
}

/**
 * @param bytes of the whole file; the column may be a view of them. @param name for errors
 * @param rankMin 0: a single number is read too
 */
export function parseNpy(bytes: Uint8Array, name: string, rankMin: 0 | 1 = 1): Column {
  const header = npyHeader(bytes, name, bytes.length, rankMin);
  const { fortranOrder, shape, start } = header;
  const values = npyElements(bytes.subarray(start), header, name);
  if (!fortranOrder || shape.length < 2) return { values, shape };
  return { values: fromFortranOrder(values, shape), shape };
}

/**
 * Some elements of a file, one after the other. @param first the place of the first one in the file, for errors
 * @param kind of integers; default: int32, and float64 where one of these elements needs more
 */
export function npyElements(
  bytes: Uint8Array,
  { type, bigEndian }: NpyHeader,
  name: string,
  { first = 0, kind }: { first?: number; kind?: NumberKind } = {},
): Column['values'] {
  const length = bytes.length / Number(type[1]);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const own = viewOf(view, type, !bigEndian, length);
  if (own) return own;
  const floats = type === 'f8' || kind === 'float64';
  const Values = floats ? Float64Array : type[0] === 'f' ? Float32Array : Int32Array;
  return readElements(reader(view, type, !bigEndian, name, first), new Values(length));
}

export interface NpyHeader {
  readonly type: (typeof TYPES)[number];
  readonly bigEndian: boolean;
  readonly fortranOrder: boolean;
  readonly shape: readonly number[];
  /** The byte of the first element. */
  readonly start: number;
}

/** @param bytes the first ones of the file, all that `NPY_HEADER_BYTES` are. @param fileBytes size of the file */
export function npyHeader(
  bytes: Uint8Array,
  name: string,
  fileBytes = bytes.length,
  rankMin: 0 | 1 = 1,
): NpyHeader {
  const header = parseHeader(bytes, name, rankMin);
  const { type, shape, start } = header;
  const elementBytes = Number(type[1]);
  // Compared before anything is allocated: a damaged header may ask for any size.
  const length = shape.reduce((product, size) => product * size, 1);
  if (length * elementBytes !== fileBytes - start) {
    throw corrupt(
      name,
      `its header says shape (${shape.join(', ')}) of ${type}, ${length * elementBytes} bytes; ${fileBytes - start} follow. The file is truncated or damaged`,
    );
  }
  return header;
}

/** No header of numbers is longer. */
export const NPY_HEADER_BYTES = 2 ** 16;

function parseHeader(bytes: Uint8Array, name: string, rankMin: 0 | 1): NpyHeader {
  if (!isNpy(bytes)) {
    refuseOtherKind(bytes, name, 'a .npy file');
    throw corrupt(name, 'it is not a .npy file: it does not begin with \\x93NUMPY');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = bytes[6] ?? 0;
  if (version < 1 || version > 3) {
    throw corrupt(name, `.npy version ${version}; versions 1, 2 and 3 are read`);
  }
  const at = version === 1 ? 10 : 12;
  const headerBytes =
    bytes.length < at
      ? Number.POSITIVE_INFINITY
      : version === 1
        ? view.getUint16(8, true)
        : view.getUint32(8, true);
  const start = at + headerBytes;
  if (start > bytes.length) {
    throw corrupt(name, `its header ends after the file's ${bytes.length} bytes: it is truncated`);
  }
  const header = Buffer.from(bytes.subarray(at, start)).toString(version === 3 ? 'utf8' : 'latin1');
  const descr = /'descr'\s*:\s*'([<>|=]?)([a-zA-Z]\d+)'/.exec(header);
  const order = /'fortran_order'\s*:\s*(True|False)/.exec(header);
  const shapeText = /'shape'\s*:\s*\(([\d,\sL]*)\)/.exec(header);
  if (!order || !shapeText || !/'descr'/.test(header)) {
    throw corrupt(name, 'its header lacks descr, fortran_order or shape');
  }
  const type = descr?.[2] as Type | undefined;
  if (type === undefined || !TYPES.includes(type)) throw otherType(header, name);
  const shape = (shapeText[1]!.match(/\d+/g) ?? []).map(Number);
  if (shape.length < rankMin || shape.length > RANK_MAX) {
    throw corrupt(name, `it has ${shape.length} dimensions; allowed: ${rankMin} to ${RANK_MAX}`);
  }
  const bigEndian = descr![1] === '>';
  return { type, bigEndian, fortranOrder: order[1] === 'True', shape, start };
}

function otherType(header: string, name: string) {
  const descr = /'descr'\s*:\s*([[(]|'[^']*')/.exec(header)?.[1] ?? '';
  if (descr === '[' || descr === '(') {
    return corrupt(
      name,
      "it has named fields (a structured type); save each field in its own file, such as numpy.save('x.npy', array['x'])",
    );
  }
  const kind = OTHER_KINDS[descr.replace(/^'[<>|=]?/, '')[0] ?? ''];
  return corrupt(
    name,
    kind
      ? `its elements (${descr}) are ${kind}`
      : `elements of type ${descr}; allowed: ${TYPES.join(', ')}. Convert with astype`,
  );
}

/** The elements where they are, if they can be used so: NumPy begins them at a multiple of 64 bytes. */
function viewOf(
  { buffer, byteOffset }: DataView,
  type: Type,
  little: boolean,
  length: number,
): Column['values'] | null {
  if (type === 'u1') return new Uint8Array(buffer, byteOffset, length);
  const Values = { f4: Float32Array, f8: Float64Array, i4: Int32Array }[type as string];
  if (!Values || !little || byteOffset % Values.BYTES_PER_ELEMENT !== 0) return null;
  return new Values(buffer as ArrayBuffer, byteOffset, length);
}

function readElements(
  read: (i: number) => number,
  into: Float32Array | Float64Array | Int32Array,
): Float32Array | Float64Array | Int32Array {
  let values = into;
  for (let i = 0; i < values.length; i++) {
    const value = read(i);
    if (values instanceof Int32Array && value !== (value | 0)) values = Float64Array.from(values);
    values[i] = value;
  }
  return values;
}

function reader(
  view: DataView,
  type: Type,
  little: boolean,
  name: string,
  first: number,
): (i: number) => number {
  switch (type) {
    case 'f2':
      return (i) => halfFloat(view.getUint16(2 * i, little));
    case 'f4':
      return (i) => view.getFloat32(4 * i, little);
    case 'f8':
      return (i) => view.getFloat64(8 * i, little);
    case 'b1':
      return (i) => (view.getUint8(i) === 0 ? 0 : 1);
    case 'u1':
      return (i) => view.getUint8(i);
    case 'i1':
      return (i) => view.getInt8(i);
    case 'u2':
      return (i) => view.getUint16(2 * i, little);
    case 'i2':
      return (i) => view.getInt16(2 * i, little);
    case 'u4':
      return (i) => view.getUint32(4 * i, little);
    case 'i4':
      return (i) => view.getInt32(4 * i, little);
    case 'i8':
    case 'u8':
      return (i) => {
        const low = view.getUint32(8 * i + (little ? 0 : 4), little);
        const at = 8 * i + (little ? 4 : 0);
        const high = type === 'i8' ? view.getInt32(at, little) : view.getUint32(at, little);
        const value = high * 2 ** 32 + low;
        if (Number.isSafeInteger(value)) return value;
        const exact =
          type === 'i8' ? view.getBigInt64(8 * i, little) : view.getBigUint64(8 * i, little);
        throw corrupt(
          name,
          `element ${first + i} is ${exact}; float64 holds whole numbers up to 2⁵³ exactly: subtract an offset before saving`,
        );
      };
  }
}

/** A float of 16 bits: 1 sign, 5 exponent, 10 fraction. */
function halfFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function fromFortranOrder(source: Column['values'], shape: readonly number[]): Column['values'] {
  const values = source.slice();
  const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((a, b) => a * b, 1));
  const index = new Array<number>(shape.length).fill(0);
  let from = 0;
  for (let i = 0; i < values.length; i++) {
    values[i] = source[from]!;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      from += strides[axis]!;
      if (++index[axis]! < shape[axis]!) break;
      from -= strides[axis]! * shape[axis]!;
      index[axis] = 0;
    }
  }
  return values;
}
