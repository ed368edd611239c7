import type { Column } from './columns.ts';
import { corrupt, type ReadOptions, readDataFile } from './files.ts';
import { checkOptions, checkPath, READ_FIELDS } from './reader-options.ts';

/**
 * NumPy's .npy, versions 1 to 3: a magic, the version, the length of the header, the header (a Python
 * dictionary with `descr`, `fortran_order` and `shape`), then the elements.
 */

const MAGIC = Buffer.from('\x93NUMPY', 'latin1');
const TYPES = ['f4', 'f8', 'i1', 'u1', 'i2', 'i4', 'i8', 'b1'] as const;
type Type = (typeof TYPES)[number];

/** NumPy itself allows at most 64 dimensions. */
const RANK_MAX = 64;

/**
 * Reads a .npy file, gzip or not, in either byte order; Fortran order is transposed. u1 stays bytes
 * (pixels); i1, i2, i4, i8 and b1 become Int32Array, f4 Float32Array, f8 Float64Array.
 * @throws DownpourError DP_DATA_MISSING, DP_DATA_CORRUPT; the latter too for an i8 that needs more than
 * 32 bits
 */
export async function readNpy(path: string, options: ReadOptions = {}): Promise<Column> {
  checkPath('readNpy', path);
  checkOptions('readNpy', options, READ_FIELDS);
  return parseNpy(await readDataFile(path, options), path);
}

/** True for bytes that begin like a .npy file. */
export function isNpy(bytes: Uint8Array): boolean {
  return bytes.length >= MAGIC.length && MAGIC.every((byte, i) => bytes[i] === byte);
}

/** @param bytes of the whole file; a column of u1 in C order is a view of them. @param name for errors */
export function parseNpy(bytes: Uint8Array, name: string): Column {
  const { type, bigEndian, fortranOrder, shape, start } = parseHeader(bytes, name);
  const elementBytes = Number(type[1]);
  // Compared before anything is allocated: a damaged header may ask for any size.
  const length = shape.reduce((product, size) => product * size, 1);
  if (length * elementBytes !== bytes.length - start) {
    throw corrupt(
      name,
      `its header says shape (${shape.join(', ')}) of ${type}, ${length * elementBytes} bytes; ${bytes.length - start} follow. The file is truncated or damaged`,
    );
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, bytes.length - start);
  const values =
    type === 'u1'
      ? new Uint8Array(view.buffer, view.byteOffset, length)
      : readElements(view, type, !bigEndian, length, name);
  if (!fortranOrder || shape.length < 2) return { values, shape };
  return { values: fromFortranOrder(values, shape), shape };
}

function parseHeader(bytes: Uint8Array, name: string) {
  if (!isNpy(bytes)) throw corrupt(name, 'no .npy file: it does not begin with \\x93NUMPY');
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
  if (type === undefined || !TYPES.includes(type)) {
    const seen = /'descr'\s*:\s*([^,]*)/.exec(header)?.[1];
    throw corrupt(
      name,
      `elements of type ${seen}; allowed: ${TYPES.join(', ')}. Convert with astype`,
    );
  }
  const shape = (shapeText[1]!.match(/\d+/g) ?? []).map(Number);
  if (shape.length === 0 || shape.length > RANK_MAX) {
    throw corrupt(name, `it has ${shape.length} dimensions; allowed: 1 to ${RANK_MAX}`);
  }
  const bigEndian = descr![1] === '>';
  return { type, bigEndian, fortranOrder: order[1] === 'True', shape, start };
}

function readElements(
  view: DataView,
  type: Exclude<Type, 'u1'>,
  little: boolean,
  length: number,
  name: string,
): Float32Array | Float64Array | Int32Array {
  const Values = type === 'f4' ? Float32Array : type === 'f8' ? Float64Array : Int32Array;
  const values = new Values(length);
  const read = reader(view, type, little, name);
  for (let i = 0; i < length; i++) values[i] = read(i);
  return values;
}

function reader(
  view: DataView,
  type: Exclude<Type, 'u1'>,
  little: boolean,
  name: string,
): (i: number) => number {
  switch (type) {
    case 'f4':
      return (i) => view.getFloat32(4 * i, little);
    case 'f8':
      return (i) => view.getFloat64(8 * i, little);
    case 'i1':
    case 'b1':
      return (i) => view.getInt8(i);
    case 'i2':
      return (i) => view.getInt16(2 * i, little);
    case 'i4':
      return (i) => view.getInt32(4 * i, little);
    case 'i8':
      return (i) => {
        const low = view.getInt32(8 * i + (little ? 0 : 4), little);
        const high = view.getInt32(8 * i + (little ? 4 : 0), little);
        // A number that fits in 32 bits has nothing but its sign above them.
        if (high !== low >> 31) {
          throw corrupt(
            name,
            `element ${i} is ${view.getBigInt64(8 * i, little)}; allowed: −2³¹ … 2³¹ − 1`,
          );
        }
        return low;
      };
  }
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
