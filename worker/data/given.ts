import { DownpourError } from '../../shared/errors.ts';
import type { Column } from './columns.ts';
import type { Examples, ExperimentData } from './examples.ts';

/**
 * What an experiment's `data` may return, and the one door through which it comes: numbers of any type
 * become one of four kinds without loss, or are refused by name.
 */

/** Numbers as an experiment may give them: nested arrays have a shape of their own. */
export type GivenNumbers =
  | NodeJS.TypedArray
  | readonly number[]
  | readonly boolean[]
  | readonly GivenNumbers[];

/** A column as an experiment may give it. */
export interface GivenColumn extends Pick<Column, 'names' | 'classes'> {
  readonly values: GivenNumbers;
  /** Of a typed array; an array says it itself. */
  readonly shape?: readonly number[];
}

/** Examples as an experiment may give them. */
export interface GivenExamples {
  readonly count: number;
  readonly inputs: GivenColumn;
  readonly targets: GivenColumn;
}

/** What an experiment's `data` may return: as `ExperimentData`, with numbers of any type. */
export interface GivenData extends Omit<ExperimentData, 'train' | 'validation' | 'test'> {
  readonly train: GivenExamples;
  readonly validation?: GivenExamples;
  readonly test?: GivenExamples;
}

/**
 * What an experiment's data mean.
 * @throws DownpourError DP_EXPERIMENT_INVALID, DP_DATA_CORRUPT
 */
export function dataOf(given: GivenData): ExperimentData {
  const { train, validation, test, ...rest } = given;
  return {
    ...rest,
    train: examplesOf('train', train),
    ...(validation ? { validation: examplesOf('validation', validation) } : {}),
    ...(test ? { test: examplesOf('test', test) } : {}),
  };
}

function examplesOf(part: string, { count, inputs, targets }: GivenExamples): Examples {
  return {
    count,
    inputs: columnOf(inputs, `inputs of the ${part} part`),
    targets: columnOf(targets, `targets of the ${part} part`),
  };
}

/** What kind a typed array is, also one of another realm or of a subclass; undefined: it is none. */
const typedArrayName = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)!.get! as (this: unknown) => string | undefined;

/**
 * The column that a given one means.
 * @param where named in messages: `inputs of the train part`
 * @throws DownpourError DP_EXPERIMENT_INVALID: no numbers, or a shape that does not fit; DP_DATA_CORRUPT
 *   for a number that cannot be kept.
 */
export function columnOf(given: GivenColumn, where: string): Column {
  const { values, shape, names, classes } = given;
  const rest = { ...(names ? { names } : {}), ...(classes ? { classes } : {}) };
  const kind = typedArrayName.call(values);
  if (kind !== undefined && shape) {
    return { values: converted(values as NodeJS.TypedArray, kind), shape, ...rest };
  }
  throw new DownpourError('DP_EXPERIMENT_INVALID', `${where} cannot be read`);
}

function converted(given: NodeJS.TypedArray, kind: string): Column['values'] {
  const { buffer, byteOffset, length } = given;
  switch (kind) {
    case 'Uint8Array':
    case 'Uint8ClampedArray':
      return new Uint8Array(buffer, byteOffset, length);
    case 'Int32Array':
      return new Int32Array(buffer as ArrayBuffer, byteOffset, length);
    case 'Float32Array':
      return new Float32Array(buffer as ArrayBuffer, byteOffset, length);
    case 'Float64Array':
      return new Float64Array(buffer as ArrayBuffer, byteOffset, length);
    case 'Int8Array':
    case 'Int16Array':
    case 'Uint16Array':
      return Int32Array.from(given as Int16Array);
    default:
      return Float64Array.from(given as ArrayLike<number | bigint>, Number);
  }
}
