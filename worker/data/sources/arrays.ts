import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { ARRAYS, type Column, type FieldRole, type NumberKind, sizeOf } from '../columns.ts';
import { describe, isRecord } from '../described.ts';
import { HEAD_BYTES, refuseOtherKind } from '../file-kinds.ts';
import { corrupt } from '../files.ts';
import { IDX_HEADER_BYTES, idxElements, idxHeader, idxKind, isIdx } from '../idx.ts';
import { isNpy, NPY_HEADER_BYTES, type NpyHeader, npyElements, npyHeader } from '../npy.ts';
import { PositionedFile } from '../positioned-file.ts';
import { checkOptions, FIELD_RULES, isText, LOG, oneOf, optional } from '../reader-options.ts';
import type { ExampleSource, SourceField } from '../source.ts';
import { ReadProgress } from './read-progress.ts';

/** Arrays in .npy and IDX files of any size, read by position. */

export interface ArrayField {
  /** Path of a .npy or IDX file. Its first dimension counts the examples. */
  readonly file: string;
  /** Default: `target` for the field `targets`, else `input`. */
  readonly role?: FieldRole;
  /** The name of class 0, 1, …, for targets that are classes. */
  readonly classes?: readonly string[];
  /** Number of classes, instead of their names. */
  readonly classCount?: number;
  /** One for each number of an example. */
  readonly names?: readonly string[];
  /** `mean`: NaN is a missing number, and the mean of its feature replaces it. */
  readonly missing?: 'mean';
}

export interface ArraySourceOptions {
  /** Receives lines about progress. */
  readonly log?: (line: string) => void;
}

/** A file whose elements can be read from anywhere. */
interface ArrayFile {
  readonly file: PositionedFile;
  readonly kind: NumberKind;
  readonly shape: readonly number[];
  /** The byte of the first element. */
  readonly start: number;
  readonly elementBytes: number;
  /** @param first place of the first of these elements in the file */
  decode(bytes: Uint8Array, first: number): Column['values'];
}

const FIELDS = {
  file: { allowed: 'the path of a .npy or IDX file', test: isText },
  ...FIELD_RULES,
  missing: optional(oneOf('mean')),
};

/**
 * One part of the data in .npy and IDX files of any size, also above 2 GiB: a file for each field, whose first dimension
 * counts the examples. Numbers become what `readNpy` and `readIdx` make of them. Files of 64-bit and unsigned 32-bit
 * integers are read once at first, to find out whether all fit int32.
 *
 *     data: async () => ({
 *       train: await arraySource({ inputs: 'x.npy', targets: { file: 'y.npy', classes: ['cat', 'dog'] } }),
 *     })
 *
 * @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT for a file of another kind, truncated, compressed or in Fortran
 * order, and, when examples are read, for one that has changed; DP_DATA_MISMATCH where files differ in their count of
 * examples; DP_EXPERIMENT_INVALID for a wrong option
 */
export async function arraySource(
  files: Readonly<Record<string, string | ArrayField>>,
  options: ArraySourceOptions = {},
): Promise<ExampleSource> {
  const given = fieldsOf(files);
  checkOptions('arraySource', options, { log: LOG });
  const arrays: [string, ArrayField, ArrayFile][] = [];
  for (const [name, field] of given) {
    arrays.push([name, field, await openArray(field.file, options.log)]);
  }
  const [[firstName, , first]] = arrays as [[string, ArrayField, ArrayFile]];
  const count = first.shape[0]!;
  for (const [name, , { file, shape }] of arrays) {
    if (shape[0] === count) continue;
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `${file.path} has ${shape[0]} examples for '${name}', but ${first.file.path} has ${count} for '${firstName}'; the first dimension of all files must be the same`,
    );
  }
  const entries = arrays.map(([name, { file: _, ...facts }, { kind, shape }]) => {
    const field: SourceField = { ...facts, shape: shape.slice(1), type: kind };
    return [name, field] as const;
  });
  return {
    count,
    name: arrays.map(([, , { file }]) => file.path).join(', '),
    key: JSON.stringify(arrays.map(([name, , { file }]) => [name, file.path, file.version])),
    fields: Object.fromEntries(entries),
    async read(indices, { signal }) {
      // All at once: while a step is computed nothing that has come can ask for the next.
      const rows = arrays.map(([, , array]) => readRows(array, indices, signal));
      const values = await Promise.all(rows);
      return Object.fromEntries(arrays.map(([name], i) => [name, values[i]!]));
    },
  };
}

function fieldsOf(files: unknown): [string, ArrayField][] {
  const entries = isRecord(files) ? Object.entries(files) : [];
  if (entries.length === 0 || entries.length > LIMITS.fieldsMax) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `arraySource: the files are ${describe(files)}; allowed: an object with a file for each field, 1 to ${LIMITS.fieldsMax} of them, such as { inputs: 'x.npy', targets: 'y.npy' }`,
    );
  }
  return entries.map(([name, given]) => {
    const field = typeof given === 'string' ? { file: given } : given;
    checkOptions(`arraySource, field '${name}'`, field, FIELDS);
    const known = name === 'inputs' || name === 'targets';
    return [
      name,
      known || (field as ArrayField).role ? field : { ...(field as object), role: 'input' },
    ];
  }) as [string, ArrayField][];
}

async function openArray(path: string, log: ArraySourceOptions['log']): Promise<ArrayFile> {
  const file = await PositionedFile.open(path);
  const bytes = await file.head(Math.max(IDX_HEADER_BYTES, NPY_HEADER_BYTES, HEAD_BYTES));
  if (bytes.length === 0) throw corrupt(path, 'it is empty: it has 0 bytes');
  if (isIdx(bytes)) {
    const { type, ...header } = idxHeader(bytes, path, file.size);
    const decode = (elements: Uint8Array) => idxElements(elements, type);
    return counted({ file, kind: idxKind(type), ...header, decode });
  }
  if (!isNpy(bytes)) {
    refuseOtherKind(bytes, path, 'a .npy or IDX file');
    throw corrupt(path, 'it is neither a .npy nor an IDX file; write arrays with numpy.save');
  }
  const header = npyHeader(bytes, path, file.size);
  const { type, shape, start } = header;
  // With one number an example both orders are the same.
  if (header.fortranOrder && sizeOf(shape, 1) !== 1) {
    throw corrupt(
      path,
      "it is in Fortran order, so the numbers of an example lie far apart; save it with numpy.save('x.npy', numpy.ascontiguousarray(x))",
    );
  }
  const kind = await kindOfNpy(file, header, log);
  const decode = (elements: Uint8Array, first: number) =>
    npyElements(elements, header, path, { first, kind });
  return counted({ file, kind, shape, start, elementBytes: Number(type[1]), decode });
}

/** @throws DownpourError DP_DATA_CORRUPT: there are no examples, or more than an index counts. */
function counted(array: ArrayFile): ArrayFile {
  const { file, shape } = array;
  const [count] = shape as [number];
  const size = sizeOf(shape, 1);
  if (count > 0 && count < 2 ** 31 && size > 0) return array;
  throw corrupt(
    file.path,
    `its shape is (${shape.join(', ')}); allowed: 1 to ${2 ** 31 - 1} examples of at least 1 number each`,
  );
}

/** Integers that may be larger than int32 are looked at, all of them: their kind must be the same in every minibatch. */
async function kindOfNpy(
  file: PositionedFile,
  header: NpyHeader,
  log: ArraySourceOptions['log'],
): Promise<NumberKind> {
  const { type, start } = header;
  if (type === 'u1') return 'uint8';
  if (type === 'f8') return 'float64';
  if (type[0] === 'f') return 'float32';
  if (!['u4', 'i8', 'u8'].includes(type)) return 'int32';
  const progress = new ReadProgress(log, file.path, 'bytes', file.size);
  const elementBytes = Number(type[1]);
  let kind: NumberKind = 'int32';
  for (let at = start; at < file.size; at += LIMITS.readBytesMax) {
    const length = Math.min(LIMITS.readBytesMax, file.size - at);
    const bytes = await file.read({ start: at, length });
    const first = (at - start) / elementBytes;
    if (npyElements(bytes, header, file.path, { first }) instanceof Float64Array) kind = 'float64';
    progress.tell(at);
  }
  return kind;
}

async function readRows(
  { file, kind, shape, start, elementBytes, decode }: ArrayFile,
  indices: Int32Array,
  signal: AbortSignal,
): Promise<Column['values']> {
  const size = sizeOf(shape, 1);
  const rowBytes = size * elementBytes;
  const values = new ARRAYS[kind](indices.length * size);
  const ranges = Array.from(indices, (index) => ({
    start: start + index * rowBytes,
    length: rowBytes,
  }));
  await file.readAll(
    ranges,
    (bytes, i) => values.set(decode(bytes, indices[i]! * size), i * size),
    signal,
  );
  return values;
}
