import { LIMITS } from '../../shared/limits.ts';
import type { Reading } from '../../shared/reading.ts';
import { type Column, kindOf, type NumberKind, sizeOf } from './columns.ts';
import {
  classesOf,
  describe,
  invalid,
  isAbsent,
  isRecord,
  isTensor,
  mustKnow,
  textsOf,
  typedArrayName,
} from './described.ts';
import { numbersOf } from './numbers.ts';

/** One column that a function of an experiment gave. */

const COLUMN_FIELDS = [
  ...['values', 'shape', 'names', 'classes', 'missing', 'reading', 'vocabulary'],
];

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
  const { values: numbers } = given;
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
  const kind = kindOf(values);
  return { values, shape: read.shape, ...columnTexts(given, where, sizeOf(read.shape, 1), kind) };
}

/** What a column has beside its numbers. @param size numbers of one example. @param kind of its numbers. */
export function columnTexts(
  { names, classes, missing, reading, vocabulary }: Record<string, unknown>,
  where: string,
  size: number,
  kind: NumberKind,
): Pick<Column, 'names' | 'classes' | 'missing' | 'reading' | 'vocabulary'> {
  const texts: { -readonly [Key in keyof ReturnType<typeof columnTexts>]: Column[Key] } = {};
  if (!isAbsent(names)) {
    texts.names = textsOf(names, `names of ${where}`);
    if (texts.names.length !== size) {
      throw invalid(
        `names of ${where}: there are ${texts.names.length}, but an example has ${size} number${size === 1 ? '' : 's'}; give one name for each`,
      );
    }
  }
  if (!isAbsent(classes)) texts.classes = classesOf(classes, `classes of ${where}`);
  if (!isAbsent(missing)) {
    if (missing !== 'mean') {
      throw invalid(`missing of ${where}: ${describe(missing)}; allowed: 'mean'`);
    }
    texts.missing = missing;
  }
  // Only readers set it; where somebody has changed the names of the inputs, it does not fit any more.
  if (isRecord(reading)) texts.reading = reading as unknown as Reading;
  if (!isAbsent(vocabulary)) texts.vocabulary = wordsOfIds(vocabulary, where, kind);
  return texts;
}

function wordsOfIds(given: unknown, where: string, kind: NumberKind): readonly string[] {
  if (kind !== 'int32') {
    throw invalid(
      `vocabulary of ${where}: the numbers are ${kind}, and a vocabulary has the text of each id; give the ids as an Int32Array, or leave the vocabulary out`,
    );
  }
  const words = textsOf(given, `vocabulary of ${where}`);
  if (words.length > 0 && words.length <= LIMITS.vocabularySizeMax) return words;
  throw invalid(
    `vocabulary of ${where} has ${words.length} texts; allowed: 1 to ${LIMITS.vocabularySizeMax}`,
  );
}

function shapeOf(given: unknown, where: string): readonly number[] {
  const shape = typedArrayName.call(given) === undefined ? given : Array.from(given as Int32Array);
  const isShape = Array.isArray(shape) && shape.length > 0;
  if (isShape && shape.every((size) => Number.isInteger(size) && size >= 0)) return shape;
  throw invalid(
    `${where}: the shape is ${describe(given)}; allowed: an array of whole numbers that begins with the number of examples`,
  );
}
