import type { Transform } from '../../shared/data-facts.ts';
import { copyScaled, scalerOf } from '../data/transform.ts';
import { BadExample } from './encode.ts';

/**
 * Examples by the names of their fields, as the numbers that a model takes. Like encode.ts it needs nothing of Node: `predict`,
 * `serve-model` and the `predict.js` of an export read examples by it where no reader of files has said how.
 */

/** One field as `downpour.json` has it. */
export interface AboutField {
  readonly name: string;
  readonly role: 'input' | 'mask' | 'target';
  readonly kind: 'uint8' | 'int32' | 'float32' | 'float64';
  /** Shape of one example. */
  readonly shape: readonly number[];
  readonly inputTransform?: Transform;
  readonly classCount: number | null;
  readonly classes: readonly string[] | null;
  readonly names: readonly string[] | null;
  /** What stands behind the end of shorter sequences; the next field is their mask. */
  readonly pad?: number;
}

/** The rows of one field, standardised; ids stay whole numbers. */
export interface EncodedField {
  readonly values: Float32Array | Int32Array;
  /** Shape of one example. */
  readonly shape: readonly number[];
}

type ExampleRecord = Readonly<Record<string, unknown>>;

/** Inputs and masks of examples, by name. @throws BadExample that names the example and the field. */
export function encodeFields(
  fields: readonly AboutField[],
  examples: readonly unknown[],
): Record<string, EncodedField> {
  const given = fields.filter(({ role }) => role !== 'target');
  for (const [i, example] of examples.entries()) {
    const isObject = typeof example === 'object' && example !== null && !Array.isArray(example);
    if (isObject) continue;
    throw new BadExample(`example ${i}: it must be an object with ${given.map(wanted).join(', ')}`);
  }
  // Steps of each sequence of the field before, for its mask.
  let steps: Int32Array | null = null;
  const encoded = given.map((field): [string, EncodedField] => {
    const { name, shape, inputTransform: transform, role, pad } = field;
    const lengths: Int32Array | null = role === 'mask' ? steps : null;
    steps = pad === undefined ? null : new Int32Array(examples.length);
    const size = sizeOf(shape);
    const isId = role === 'input' && field.kind === 'int32' && transform?.kind === 'none';
    const Values = isId ? Int32Array : Float32Array;
    const values = new Values(examples.length * size);
    const scaler = isId || !transform ? null : scalerOf(transform);
    for (const [i, example] of examples.entries()) {
      const given = numbersOf(example as ExampleRecord, field, lengths?.[i]);
      const numbers = typeof given === 'string' || !steps ? given : padded(given, field, steps, i);
      const problem = typeof numbers === 'string' ? numbers : problemOf(numbers, field, isId);
      if (problem !== null) throw new BadExample(`example ${i}: '${name}' ${problem}`);
      if (scaler) {
        copyScaled(
          scaler,
          Float64Array.from(numbers as number[]),
          0,
          values as Float32Array,
          i * size,
          size,
        );
      } else values.set(numbers as number[], i * size);
    }
    return [name, { values, shape }];
  });
  return Object.fromEntries(encoded);
}

const sizeOf = (shape: readonly number[]) => shape.reduce((product, d) => product * d, 1);

const wanted = ({ name, shape }: AboutField) => {
  const size = sizeOf(shape);
  return `'${name}' (${size === 1 ? 'a number' : `${size} numbers`})`;
};

/** A shorter sequence brought to its whole length; @returns what is wrong, as a text. */
function padded(
  numbers: number[],
  { shape, pad }: AboutField,
  steps: Int32Array,
  example: number,
): number[] | string {
  const width = sizeOf(shape.slice(1));
  steps[example] = numbers.length / width;
  if (numbers.length % width !== 0) {
    return `has ${numbers.length} numbers; each step of the sequence has ${width}`;
  }
  const size = sizeOf(shape);
  if (numbers.length >= size) return numbers;
  return [...numbers, ...new Array<number>(size - numbers.length).fill(pad!)];
}

/** The field itself; a column for each of its numbers, by their names or as `name_0`; @returns what is wrong, as a text. */
function numbersOf(
  example: ExampleRecord,
  { name, names, shape, role, pad }: AboutField,
  length = shape[0],
): number[] | string {
  const size = sizeOf(shape);
  const own = example[name];
  if (own !== undefined && own !== null && own !== '') {
    const list = Array.isArray(own) ? own.flat(Infinity) : ArrayBuffer.isView(own) ? own : [own];
    return Array.from(list as ArrayLike<unknown>, numberOf);
  }
  let columns = names ?? Array.from({ length: size }, (_, i) => `${name}_${i}`);
  if (pad !== undefined) {
    // Empty cells behind the end of a sequence.
    const end = columns.findLastIndex((column) => (example[column] ?? '') !== '') + 1;
    if (end > 0) columns = columns.slice(0, end);
  }
  if (columns.some((column) => example[column] !== undefined)) {
    const lacking = columns.find((column) => (example[column] ?? '') === '');
    if (lacking !== undefined) return `lacks its column '${lacking}'; give a number`;
    return columns.map((column) => numberOf(example[column]));
  }
  if (role === 'mask') return Array.from({ length: size }, (_, i) => (i < length! ? 1 : 0));
  const more =
    size > 1 ? `, or the columns ${columns.slice(0, 2).join(', ')}${size > 2 ? ', …' : ''}` : '';
  return `is missing; give ${size === 1 ? 'a number' : `${size} numbers`}${more}`;
}

const numberOf = (value: unknown): number => {
  if (typeof value === 'string' && value.trim() !== '') return Number(value);
  return typeof value === 'number' || typeof value === 'boolean' ? Number(value) : Number.NaN;
};

function problemOf(
  numbers: readonly number[],
  { shape, kind }: AboutField,
  isId: boolean,
): string | null {
  const size = sizeOf(shape);
  if (numbers.length !== size) {
    return `has ${numbers.length} number${numbers.length === 1 ? '' : 's'}; the model takes ${size}${size > 1 ? `, in the shape [${shape}]` : ''}`;
  }
  const at = numbers.findIndex((value) => !Number.isFinite(value));
  if (at >= 0) return `has something that is not a number${size === 1 ? '' : ` at place ${at}`}`;
  const [least, most] =
    kind === 'uint8' ? [0, 255] : isId ? [-(2 ** 31), 2 ** 31 - 1] : [-Infinity, Infinity];
  const wrong = numbers.find(
    (value) => (isId && !Number.isInteger(value)) || value < least || value > most,
  );
  if (wrong === undefined) return null;
  return isId
    ? `is ${wrong}; it must be a whole number, which the training took for an id`
    : `is ${wrong}; bytes are from 0 to 255`;
}
