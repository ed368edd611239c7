import { DownpourError } from '../../shared/errors.ts';
import { type Column, elementAt, sizeOf } from './columns.ts';
import {
  describe,
  invalid,
  isAbsent,
  isBuffer,
  isTensor,
  listed,
  typedArrayName,
} from './described.ts';

/** Numbers that functions of an experiment gave, of any type, as one of four types without loss. */

/** Numbers that an experiment may return. The nesting of arrays gives their shape. */
export type GivenNumbers =
  | NodeJS.TypedArray
  | readonly (number | boolean | bigint)[]
  | readonly GivenNumbers[];

interface FlatNumbers {
  readonly values: Column['values'];
  readonly shape: readonly number[];
}

/**
 * @param where the column's name for messages. @param count the number of examples, if it is known.
 * @throws DownpourError DP_EXPERIMENT_INVALID for anything but numbers, DP_DATA_CORRUPT for a number that cannot be kept
 *   without loss.
 */
export function numbersOf(
  given: unknown,
  shape: readonly number[] | null,
  where: string,
  count: number | undefined,
): FlatNumbers {
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
