import { LIMITS } from '../../shared/limits.ts';
import { type Column, emptyColumn } from './columns.ts';
import { describe, invalid, isAbsent, isRecord, typedArrayName } from './described.ts';
import type { ExampleField, Examples } from './examples.ts';
import { columnOf } from './given-column.ts';

/** Fields by name that a function of an experiment gave, and sequences of unequal length. */

/** Whether it is an object of columns by name, instead of one column. */
export const areFields = (given: unknown): given is Record<string, unknown> =>
  isRecord(given) &&
  !('values' in given) &&
  Object.keys(given).length > 0 &&
  Object.values(given).every((each) => isRecord(each) && 'values' in each);

export const FIELD_NAME = /^[A-Za-z_][A-Za-z0-9_-]{0,49}$/;

export function examplesOfFields(
  part: string,
  given: Record<string, unknown>,
  wanted: number | undefined,
): Examples {
  let count = wanted;
  const fields: Record<string, ExampleField> = {};
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

function fieldOf(
  given: Record<string, unknown>,
  role: 'input' | 'target',
  where: string,
  count: number | undefined,
): { readonly field: ExampleField; readonly mask?: ExampleField } {
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
    field: { ...columnOf({ ...column, values }, where, count), role, pad: pad as number },
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
