import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Reading } from '../../shared/reading.ts';
import { nearest } from '../../shared/spelling.ts';
import { type Column, elementAt, emptyColumn, sizeOf } from './columns.ts';
import { DATA_PARTS, type Examples, type ExperimentData, type Field } from './examples.ts';

/**
 * What an experiment's `data` may return. All of it is converted here: numbers of any type become one of four
 * types without loss. Anything else is refused, and the message says what was found and where.
 */

/** Numbers that an experiment may return. The nesting of arrays gives their shape. */
export type GivenNumbers =
  | NodeJS.TypedArray
  | readonly (number | boolean | bigint)[]
  | readonly GivenNumbers[];

/** A column that an experiment may return. */
export interface GivenColumn extends Pick<Column, 'names' | 'classes' | 'missing' | 'reading'> {
  readonly values: GivenNumbers;
  /** Needed for a typed array. For nested arrays the default is their nesting. */
  readonly shape?: readonly number[];
}

/** A field: a column, or sequences of unequal length. */
export interface GivenField extends GivenColumn {
  /** Number of classes of a target; `classes` says it too. */
  readonly classCount?: number;
  /** The values are one array for each example, of unequal lengths: this number fills them up. */
  readonly pad?: number;
}

/** Examples that an experiment may return. */
export interface GivenExamples {
  /** Default: the first size of the shapes. */
  readonly count?: number;
  /** One input, or several by name. */
  readonly inputs: GivenColumn | Readonly<Record<string, GivenField>>;
  /** One target, or several by name; an objective needs none. */
  readonly targets?: GivenColumn | Readonly<Record<string, GivenField>>;
}

/** What an experiment's `data` may return: like `ExperimentData`, but with numbers of any type. */
export interface GivenData
  extends Omit<ExperimentData, 'train' | 'validation' | 'test' | 'source'> {
  readonly train: GivenExamples;
  readonly validation?: GivenExamples | null;
  readonly test?: GivenExamples | null;
  readonly source?: string;
}

/** Names that other libraries use for these fields. */
const ALIASES: Readonly<Record<string, string>> = {
  ...{ training: 'train', val: 'validation', valid: 'validation', dev: 'validation' },
  ...{ x: 'inputs', xs: 'inputs', features: 'inputs', data: 'values' },
  ...{ y: 'targets', ys: 'targets', labels: 'targets', label: 'targets', outputs: 'targets' },
};
const DATA_FIELDS = [...DATA_PARTS, 'classCount', 'classes', 'source'];
const EXAMPLES_FIELDS = ['count', 'inputs', 'targets'];
const COLUMN_FIELDS = ['values', 'shape', 'names', 'classes', 'missing', 'reading'];

/**
 * Converts what `data` returned.
 * @throws DownpourError DP_EXPERIMENT_INVALID for anything but examples, DP_DATA_CORRUPT for a number
 *   that cannot be kept without loss. The message says where it is and what to do.
 */
export function dataOf(given: unknown): ExperimentData {
  if (!isRecord(given)) {
    const forgot = given === undefined || given === null ? '; was `return` forgotten?' : ';';
    throw invalid(
      `data() returned ${describe(given)}${forgot} ${given === undefined || given === null ? 'It' : 'it'} must return { train: { inputs: { values, shape }, targets: { values, shape } }, source }, or a promise of it`,
    );
  }
  mustKnow('what data() returned', given, DATA_FIELDS);
  const { train, validation, test, classCount, classes, source, ...rest } = given;
  if (!isRecord(train)) {
    throw invalid(
      train === undefined
        ? `data() returned no train: it has ${listed(Object.keys(given))}; its training examples belong in train: { inputs, targets }`
        : `train of what data() returned is ${describe(train)}; it must be { inputs, targets }`,
    );
  }
  if (classCount !== undefined && classCount !== null) {
    if (!(Number.isInteger(classCount) && (classCount as number) >= 1)) {
      throw invalid(
        `classCount of what data() returned is ${describe(classCount)}; allowed: a whole number from 2; leave it out if targets are not classes`,
      );
    }
  }
  if (source !== undefined && typeof source !== 'string') {
    throw invalid(`source of what data() returned is ${describe(source)}; it must be a string`);
  }
  const parts = {
    train: examplesOf('train', train),
    ...(isAbsent(validation) ? {} : { validation: examplesOf('validation', validation) }),
    ...(isAbsent(test) ? {} : { test: examplesOf('test', test) }),
  };
  const count = parts.train.count;
  return {
    ...rest,
    ...parts,
    ...(isAbsent(classCount) ? {} : { classCount: classCount as number }),
    ...(isAbsent(classes) ? {} : { classes: textsOf(classes, 'classes of what data() returned') }),
    source: source ?? `${count} training example${count === 1 ? '' : 's'}`,
  };
}

const isAbsent = (value: unknown) => value === undefined || value === null;

function examplesOf(part: string, given: unknown): Examples {
  const name = `the ${part} part`;
  if (!isRecord(given)) {
    throw invalid(
      `${name} of what data() returned is ${describe(given)}; it must be { inputs, targets }`,
    );
  }
  mustKnow(name, given, EXAMPLES_FIELDS);
  if (given.inputs === undefined) {
    throw invalid(
      `${name} of what data() returned has no inputs; it has ${listed(Object.keys(given))}. Give inputs: { values, shape } and targets: { values, shape }`,
    );
  }
  const { count } = given;
  if (count !== undefined && !(Number.isInteger(count) && (count as number) >= 1)) {
    throw invalid(`${name} of the data has ${describe(count)} examples; it needs at least 1`);
  }
  const wanted = count as number | undefined;
  if (given.fields !== undefined || isEmpty(given.targets)) return examplesAgain(name, given);
  if (areFields(given.inputs) || areFields(given.targets) || given.targets === undefined) {
    return examplesOfFields(name, given, wanted);
  }
  const inputs = columnOf(given.inputs, `inputs of ${name}`, wanted);
  const targets = columnOf(given.targets, `targets of ${name}`, wanted ?? inputs.shape[0]!);
  if (targets.missing !== undefined) {
    throw invalid(
      `targets of ${name}: \`missing\` is only for inputs; remove the rows whose target is missing`,
    );
  }
  return { count: inputs.shape[0]!, inputs, targets };
}

/** Whether it is an object of columns by name, instead of one column. */
const areFields = (given: unknown): given is Record<string, unknown> =>
  isRecord(given) &&
  !('values' in given) &&
  Object.keys(given).length > 0 &&
  Object.values(given).every((each) => isRecord(each) && 'values' in each);

const FIELD_NAME = /^[A-Za-z_][A-Za-z0-9_-]{0,49}$/;

function examplesOfFields(
  part: string,
  given: Record<string, unknown>,
  wanted: number | undefined,
): Examples {
  let count = wanted;
  const fields: Record<string, Field> = {};
  const short: { inputs?: Column; targets?: Column } = {};
  for (const [each, role] of [
    ['inputs', 'input'],
    ['targets', 'target'],
  ] as const) {
    const of = given[each];
    if (of === undefined) continue;
    if (!areFields(of)) {
      short[each] = columnOf(of, `${each} of ${part}`, count);
      count ??= short[each].shape[0]!;
      continue;
    }
    for (const [name, field] of Object.entries(of)) {
      const where = `field '${name}' of ${part}`;
      if (!FIELD_NAME.test(name) || name === 'inputs' || name === 'targets' || name in {}) {
        throw invalid(
          `${where}: a field cannot have this name; allowed: letters, digits, '_' and '-', 50 at most, and neither 'inputs' nor 'targets'`,
        );
      }
      if (name in fields) {
        throw invalid(`${where}: inputs and targets both have this name; give each its own`);
      }
      const made = fieldOf(field as Record<string, unknown>, role, where, count);
      count ??= made.field.shape[0]!;
      fields[name] = made.field;
      if (!made.mask) continue;
      const mask = `${name}_mask`;
      if (mask in of) throw invalid(`${where}: its mask has the name of another field, '${mask}'`);
      fields[mask] = made.mask;
    }
  }
  const names = Object.keys(fields);
  if (names.length > LIMITS.fieldsMax) {
    throw invalid(
      `${part} of the data has ${names.length} fields, masks included; at most ${LIMITS.fieldsMax} are allowed: put numbers of one kind together in one field`,
    );
  }
  return {
    count: count!,
    inputs: short.inputs ?? emptyColumn(count!),
    targets: short.targets ?? emptyColumn(count!),
    ...(names.length > 0 ? { fields } : {}),
  };
}

/** What stands for targets that there are not, after conversion. */
const isEmpty = (given: unknown): boolean =>
  isRecord(given) && Array.isArray(given.shape) && given.shape.length === 2 && given.shape[1] === 0;

/** Examples that were converted before, as a page is sent them. */
function examplesAgain(part: string, given: Record<string, unknown>): Examples {
  const { count, inputs, targets, fields } = given as unknown as Examples;
  const short = { inputs, targets, count };
  for (const each of ['inputs', 'targets'] as const) {
    const known = short[each] as Column | undefined;
    if (!isEmpty(known)) short[each] = columnOf(known, `${each} of ${part}`, count);
  }
  const converted = Object.entries(fields ?? {}).map(([name, field]): [string, Field] => {
    const where = `field '${name}' of ${part}`;
    if (!isRecord(field) || !['input', 'mask', 'target'].includes(field.role)) {
      throw invalid(`${where}: ${describe(field)}; give inputs and targets by name instead`);
    }
    const { role, classCount, ...column } = field;
    const known = classCount === undefined ? {} : { classCount };
    return [name, { ...columnOf(column, where, count), role, ...known }];
  });
  return fields ? { ...short, fields: Object.fromEntries(converted) } : short;
}

function fieldOf(
  given: Record<string, unknown>,
  role: 'input' | 'target',
  where: string,
  count: number | undefined,
): { readonly field: Field; readonly mask?: Field } {
  const { pad, classCount, ...column } = given;
  if (!isAbsent(classCount) && !(Number.isInteger(classCount) && (classCount as number) >= 1)) {
    throw invalid(
      `${where}: classCount is ${describe(classCount)}; allowed: a whole number from 2`,
    );
  }
  if (role === 'input' && (!isAbsent(classCount) || !isAbsent(given.classes))) {
    throw invalid(
      `${where}: only targets have classes; an input that is a category is an id, or one number for each category`,
    );
  }
  if (role === 'target' && (!isAbsent(pad) || !isAbsent(given.missing))) {
    throw invalid(`${where}: only inputs may have \`pad\` or \`missing\``);
  }
  const known = isAbsent(classCount) ? {} : { classCount: classCount as number };
  if (isAbsent(pad)) return { field: { ...columnOf(column, where, count), role, ...known } };
  const { values, mask } = padded(column.values, pad, where);
  return {
    field: { ...columnOf({ ...column, values }, where, count), role },
    mask: { ...columnOf(mask, `mask of ${where}`, count), role: 'mask' },
  };
}

/** Numbers that padding may come to; more is a mistake, or needs windows. */
const PADDED_MAX = 2 ** 28;

/** Sequences, brought to one length; and 1 where there was a number. */
function padded(given: unknown, pad: unknown, where: string) {
  if (typeof pad !== 'number' || !Number.isFinite(pad)) {
    throw invalid(`${where}: pad is ${describe(pad)}; allowed: a number, such as 0`);
  }
  if (!Array.isArray(given) || given.length === 0) {
    throw invalid(`${where}: with pad, values must be an array of sequences, one for each example`);
  }
  const lengths = given.map((sequence, row) => {
    if (Array.isArray(sequence) || typedArrayName.call(sequence) !== undefined) {
      return (sequence as readonly unknown[]).length;
    }
    throw invalid(
      `${where}, row ${row}: ${describe(sequence)}; allowed: an array or a typed array`,
    );
  });
  const longest = lengths.reduce((a, b) => Math.max(a, b), 0);
  const first = given.find((sequence) => sequence.length > 0)?.[0];
  const width = Array.isArray(first) || typedArrayName.call(first) ? first.length : null;
  const total = longest * given.length * (width ?? 1);
  if (longest === 0 || total > PADDED_MAX) {
    throw invalid(
      `${where}: the longest of ${given.length} sequences has ${longest} steps, which makes ${total} numbers when all are padded; allowed: 1 to ${PADDED_MAX}. Cut long sequences into windows`,
    );
  }
  const filler = width === null ? pad : new Array<number>(width).fill(pad);
  const isWhole = given.every((sequence) => typedArrayName.call(sequence) === 'Int32Array');
  const rows = given.map((sequence) => {
    const row = [...sequence, ...new Array(longest - sequence.length).fill(filler)];
    return isWhole && Number.isInteger(pad) ? Int32Array.from(row) : row;
  });
  const mask = new Float32Array(given.length * longest);
  lengths.forEach((length, row) => {
    mask.fill(1, row * longest, row * longest + length);
  });
  return { values: rows, mask: { values: mask, shape: [given.length, longest] } };
}

/**
 * Converts one column.
 * @param where the column's name for messages: `inputs of the train part`
 * @param count the number of examples, if it is known.
 * @throws DownpourError DP_EXPERIMENT_INVALID for anything but numbers and for a shape that does not fit;
 *   DP_DATA_CORRUPT for a number that cannot be kept without loss.
 */
export function columnOf(given: unknown, where: string, count?: number): Column {
  if (!isRecord(given) || !('values' in given)) {
    const advice = isTensor(given)
      ? 'give { values: tensor.dataSync(), shape: tensor.shape }'
      : 'give { values, shape }: a typed array or an array of numbers, and its shape, which begins with the number of examples';
    throw invalid(`${where} are ${describe(given)}; ${advice}`);
  }
  mustKnow(where, given, COLUMN_FIELDS);
  const { values: numbers, names, classes, missing, reading } = given;
  const shape = given.shape === undefined ? null : shapeOf(given.shape, where);
  const read = numbersOf(numbers, shape, where, count);
  const { values } = read;
  const is = `${where}: shape [${read.shape.join(', ')}]`;
  if (sizeOf(read.shape) !== values.length) {
    throw invalid(
      `${is} needs ${sizeOf(read.shape)} numbers, but values has ${values.length}${values.length === 0 ? ' (was its memory handed to another thread?)' : ''}; correct the shape: [examples, numbers of one example, …]`,
    );
  }
  if (read.shape[0] === 0 || values.length === 0) {
    throw invalid(`${is} has no numbers; at least 1 example of at least 1 number is needed`);
  }
  if (count !== undefined && read.shape[0] !== count) {
    throw invalid(
      `${is} means ${read.shape[0]} examples, but there are ${count}; inputs and targets need one row for each example`,
    );
  }
  const column: { -readonly [Key in keyof Column]: Column[Key] } = { values, shape: read.shape };
  if (!isAbsent(names)) {
    column.names = textsOf(names, `names of ${where}`);
    const size = sizeOf(read.shape, 1);
    if (column.names.length !== size) {
      throw invalid(
        `names of ${where}: there are ${column.names.length}, but an example has ${size} number${size === 1 ? '' : 's'}; give one name for each`,
      );
    }
  }
  if (!isAbsent(classes)) column.classes = classesOf(classes, `classes of ${where}`);
  if (!isAbsent(missing)) {
    if (missing !== 'mean') {
      throw invalid(`missing of ${where}: ${describe(missing)}; allowed: 'mean'`);
    }
    column.missing = missing;
  }
  // Only readers set it; where somebody has changed the names of the inputs, it does not fit any more.
  if (isRecord(reading)) column.reading = reading as unknown as Reading;
  return column;
}

function shapeOf(given: unknown, where: string): readonly number[] {
  const shape = typedArrayName.call(given) === undefined ? given : Array.from(given as Int32Array);
  const isShape = Array.isArray(shape) && shape.length > 0;
  if (isShape && shape.every((size) => Number.isInteger(size) && size >= 0)) return shape;
  throw invalid(
    `${where}: the shape is ${describe(given)}; allowed: an array of whole numbers that begins with the number of examples`,
  );
}

function textsOf(given: unknown, what: string): readonly string[] {
  if (Array.isArray(given) && Array.from(given).every((name) => typeof name === 'string')) {
    return given;
  }
  throw invalid(`${what}: ${describe(given)}; allowed: an array of strings`);
}

/** Names of class 0, 1, …: two of one name could not be told apart. */
function classesOf(given: unknown, what: string): readonly string[] {
  const classes = textsOf(given, what);
  const twice = classes.find((name, i) => classes.indexOf(name) !== i);
  if (twice === undefined) return classes;
  throw invalid(`${what}: two classes are named '${twice}'; give each class its own name`);
}

/** What kind a typed array is, also one of another realm or of a subclass; undefined: it is none. */
const typedArrayName = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)!.get! as (this: unknown) => string | undefined;

interface Numbers {
  readonly values: Column['values'];
  readonly shape: readonly number[];
}

function numbersOf(
  given: unknown,
  shape: readonly number[] | null,
  where: string,
  count: number | undefined,
): Numbers {
  const kind = typedArrayName.call(given);
  if (kind !== undefined) {
    const array = given as NodeJS.TypedArray;
    if (shape === null) {
      const per = count === undefined ? 0 : array.length / count;
      const guess =
        per >= 1 && Number.isInteger(per)
          ? [count, ...(per === 1 ? [] : [per])]
          : ['examples', '…'];
      throw invalid(
        `${where} have no shape: values is a ${kind} of ${array.length} numbers; give shape: [${guess.join(', ')}]`,
      );
    }
    return { values: typedNumbers(array, kind, shape, where), shape };
  }
  if (Array.isArray(given)) return arrayNumbers(given, shape, where);
  const advice = isTensor(given)
    ? 'give its numbers: { values: tensor.dataSync(), shape: tensor.shape }'
    : isBuffer(given)
      ? 'give a typed array on it: new Float32Array(buffer), new Uint8Array(buffer), …'
      : 'allowed: a typed array (Float32Array, Float64Array, Int32Array, Uint8Array for pixels, …) or an array of numbers';
  throw invalid(`values of ${where} is ${describe(given)}; ${advice}`);
}

const INT32 = { min: -(2 ** 31), max: 2 ** 31 - 1 } as const;

function typedNumbers(
  given: NodeJS.TypedArray,
  kind: string,
  shape: readonly number[],
  where: string,
): Column['values'] {
  const { length, byteOffset } = given;
  const buffer = steady(given);
  const start = buffer === given.buffer ? byteOffset : 0;
  switch (kind) {
    case 'Uint8Array':
    case 'Uint8ClampedArray':
      return new Uint8Array(buffer, start, length);
    case 'Int32Array':
      return new Int32Array(buffer, start, length);
    case 'Float32Array':
      return new Float32Array(buffer, start, length);
    case 'Float64Array':
      return new Float64Array(buffer, start, length);
    case 'Int8Array':
    case 'Int16Array':
    case 'Uint16Array':
      return Int32Array.from(given as Int16Array);
    case 'Uint32Array': {
      const values = given as Uint32Array;
      return values.every((value) => value <= INT32.max)
        ? Int32Array.from(values)
        : Float64Array.from(values);
    }
    case 'BigInt64Array':
    case 'BigUint64Array': {
      const values = given as BigInt64Array;
      const numbers = new Float64Array(length);
      for (let i = 0; i < length; i++) {
        numbers[i] = Number(values[i]!);
        if (!Number.isSafeInteger(numbers[i])) throw tooLong(values[i]!, where, shape, i);
      }
      return isInt32(numbers) ? Int32Array.from(numbers) : numbers;
    }
    default:
      // Float16Array, where a browser or Node has it: each is a float32 too.
      return Float32Array.from(given as unknown as ArrayLike<number>);
  }
}

/** Memory that stays as long and as it is: what others may write to or shorten is copied. */
function steady(given: NodeJS.TypedArray): ArrayBuffer {
  const buffer = given.buffer as ArrayBuffer & { resizable?: boolean };
  const isShared = Object.prototype.toString.call(buffer) === '[object SharedArrayBuffer]';
  if (!isShared && buffer.resizable !== true) return buffer;
  const copy = new Uint8Array(given.byteLength);
  copy.set(new Uint8Array(buffer, given.byteOffset, given.byteLength));
  return copy.buffer;
}

const isInt32 = (values: Float64Array) =>
  values.every((value) => value >= INT32.min && value <= INT32.max && Number.isInteger(value));

function tooLong(
  value: bigint,
  where: string,
  shape: readonly number[],
  index: number,
): DownpourError {
  return new DownpourError(
    'DP_DATA_CORRUPT',
    `${where}, ${elementAt({ shape }, index)}: ${value} is too large for a float64; allowed: −(2⁵³ − 1) … 2⁵³ − 1. Subtract an offset, or use a coarser unit`,
  );
}

/**
 * Arrays of numbers, nested or not, as float64; rows that are typed arrays of bytes stay bytes.
 * @param shape as given; null: the one that the arrays have.
 */
function arrayNumbers(given: readonly unknown[], shape: readonly number[] | null, where: string) {
  const own: number[] = [];
  for (let level: unknown = given; Array.isArray(level) || typedArrayName.call(level); ) {
    const { length } = level as readonly unknown[];
    own.push(length);
    level = length === 0 ? undefined : (level as readonly unknown[])[0];
  }
  const values = new Float64Array(sizeOf(own));
  const kinds = new Set<string>();
  let at = 0;
  const place = (index: number) => elementAt({ shape: own }, index);
  const fill = (level: unknown, depth: number): void => {
    const kind = typedArrayName.call(level);
    const isList = kind !== undefined || Array.isArray(level);
    if (depth < own.length) {
      if (!isList || (level as readonly unknown[]).length !== own[depth]) {
        const seen = isList ? `${(level as readonly unknown[]).length} entries` : describe(level);
        throw invalid(
          `${where}, ${place(at)}: ${seen}, but others have ${own[depth]} entries; all examples must have the same shape`,
        );
      }
      if (depth === own.length - 1) kinds.add(kind ?? 'Array');
      const list = level as readonly unknown[];
      // Holes of a sparse array are visited too.
      for (let i = 0; i < list.length; i++) fill(list[i], depth + 1);
      return;
    }
    values[at] = numberOf(level, () => `${where}, ${place(at)}`);
    at++;
  };
  fill(given, 0);
  return { values: ofKinds(values, kinds, where), shape: shape ?? own };
}

/** Rows of bytes are pixels, and stay so. */
function ofKinds(
  values: Float64Array,
  kinds: ReadonlySet<string>,
  where: string,
): Column['values'] {
  const bytes = [...kinds].filter((kind) => kind === 'Uint8Array' || kind === 'Uint8ClampedArray');
  if (bytes.length === 0) {
    return ![...kinds].every((kind) => /^(Big)?U?[iI]nt/.test(kind)) || !isInt32(values)
      ? values
      : Int32Array.from(values);
  }
  if (bytes.length === kinds.size) return Uint8Array.from(values);
  throw invalid(
    `${where}: some rows are bytes (pixels, divided by 255), others are ${listed([...kinds].filter((kind) => !kind.startsWith('Uint8')))}; give all in one type`,
  );
}

function numberOf(given: unknown, where: () => string): number {
  if (typeof given === 'number') return given;
  if (typeof given === 'boolean') return given ? 1 : 0;
  if (typeof given === 'bigint' && Number.isSafeInteger(Number(given))) return Number(given);
  const advice =
    typeof given === 'string'
      ? 'convert text to numbers in data(); number classes 0, 1, … and give their names in `classes`'
      : isAbsent(given)
        ? 'fill it in or leave the row out'
        : 'only numbers and booleans are allowed';
  throw invalid(`${where()}: ${describe(given)} is not a number; ${advice}`);
}

/** Misspelt fields would be passed over in silence. @throws DownpourError naming the right one. */
function mustKnow(where: string, given: Record<string, unknown>, fields: readonly string[]): void {
  for (const key of Object.keys(given)) {
    if (fields.includes(key)) continue;
    const lower = key.toLowerCase();
    const alias = fields.find((field) => field.toLowerCase() === (ALIASES[lower] ?? lower));
    // Too many words are near to a short one: `text` is no misspelt `test`.
    const meant = alias ?? (key.length < 5 ? null : nearest(key, fields));
    if (meant === null || given[meant] !== undefined) continue;
    throw invalid(`${where} has an unknown field '${key}'; did you mean '${meant}'?`);
  }
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' &&
  value !== null &&
  !Array.isArray(value) &&
  !ArrayBuffer.isView(value) &&
  !isBuffer(value) &&
  !isTensor(value);

const isBuffer = (value: unknown) =>
  /^\[object (Shared)?ArrayBuffer\]$/.test(Object.prototype.toString.call(value));

/** Whether it is a tensor of any copy of TensorFlow.js. */
const isTensor = (value: unknown) =>
  typeof value === 'object' &&
  value !== null &&
  typeof (value as { dataSync?: unknown }).dataSync === 'function';

const listed = (names: readonly string[]) =>
  names.length === 0 ? 'no fields' : names.map((name) => `'${name}'`).join(', ');

/** A value for a message, in a few words. */
function describe(value: unknown): string {
  if (value === undefined || value === null) return value === null ? 'null' : 'nothing';
  if (isTensor(value)) return 'a TensorFlow.js tensor';
  const kind = typedArrayName.call(value);
  if (kind !== undefined) return withArticle(kind);
  if (Array.isArray(value)) return `an array (${short(value)})`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'object') {
    const name = Object.prototype.toString.call(value).slice(8, -1);
    return name === 'Object' ? `an object with ${listed(Object.keys(value))}` : withArticle(name);
  }
  if (typeof value === 'string') return `the text '${value.slice(0, 40)}'`;
  return String(value);
}

const withArticle = (name: string) =>
  `${/^[AEIOU]/i.test(name) && !name.startsWith('Ui') ? 'an' : 'a'} ${name}`;

function short(value: readonly unknown[]): string {
  const some = value
    .slice(0, 4)
    .map((each) => (each !== null && typeof each === 'object' ? '…' : String(each)));
  return `[${some.join(', ')}${value.length > 4 ? ', …' : ''}]`;
}

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
