import { LIMITS } from '../../shared/limits.ts';
import { ARRAYS, type Column, emptyColumn, type FieldRole, sizeOf } from './columns.ts';
import { describe, invalid, isAbsent, isRecord, listed, mustKnow } from './described.ts';
import type { ExampleField, Examples } from './examples.ts';
import { columnTexts } from './given-column.ts';
import { FIELD_NAME } from './given-fields.ts';
import type { ExampleSource, SourceField } from './source.ts';

/** A part of the data that a function of an experiment gave as a source. */

const SOURCE_FIELDS = ['count', 'fields', 'read', 'name', 'key', 'readSeconds', 'close'];
const FIELD_FIELDS = [
  ...[
    'role',
    'shape',
    'type',
    'names',
    'classes',
    'classCount',
    'missing',
    'reading',
    'vocabulary',
  ],
];
const ROLES: readonly string[] = ['input', 'mask', 'target'] satisfies FieldRole[];
/** Rows are numbered by an Int32Array. */
const COUNT_MAX = 2 ** 31 - 1;

/** Whether it is a source, be it right or wrong, and no arrays. */
export const isSource = (given: Record<string, unknown>): boolean => 'read' in given;

/**
 * Checks a source and says what its examples are like: columns of the right type and shape that have no values.
 * @param part for messages: `the train part`
 * @throws DownpourError DP_EXPERIMENT_INVALID.
 */
export function examplesOfSource(part: string, given: Record<string, unknown>): Examples {
  const source = sourceOf(part, given);
  const where = `source${source.name === undefined ? '' : ` '${source.name}'`} of ${part}`;
  const short: { inputs?: Column; targets?: Column } = {};
  const named: Record<string, ExampleField> = {};
  for (const [name, { role: given, type, shape, ...texts }] of Object.entries(source.fields)) {
    const values = new ARRAYS[type](0);
    const role = given ?? roleOf(name)!;
    const field = { ...texts, values, shape: [source.count, ...shape] };
    if (name === 'inputs' || name === 'targets') short[name] = field;
    else named[name] = { ...field, role };
  }
  return {
    count: source.count,
    inputs: short.inputs ?? emptyColumn(source.count),
    targets: short.targets ?? emptyColumn(source.count),
    ...(Object.keys(named).length > 0 ? { fields: named } : {}),
    stored: { source, where, rows: null },
  };
}

const roleOf = (name: string): FieldRole | null =>
  name === 'inputs' ? 'input' : name === 'targets' ? 'target' : null;

function sourceOf(part: string, given: Record<string, unknown>): ExampleSource {
  const what = `the source of ${part}`;
  // An object of a class has fields of its own, which are not for us.
  if (Object.getPrototypeOf(given)?.constructor?.name === 'Object')
    mustKnow(what, given, SOURCE_FIELDS);
  const { count, fields, read, name, key, readSeconds, close } = given;
  for (const [field, value] of Object.entries({ read, close })) {
    if (typeof value === 'function' || (field === 'close' && isAbsent(value))) continue;
    throw invalid(
      `${what}: ${field} is ${describe(value)}; allowed: a function${field === 'read' ? ' (indices, { signal }) that gives the numbers of each field' : ''}`,
    );
  }
  if (!(Number.isInteger(count) && (count as number) >= 1 && (count as number) <= COUNT_MAX)) {
    throw invalid(
      `${what}: count is ${describe(count)}; allowed: the number of examples, 1 to ${COUNT_MAX}`,
    );
  }
  for (const [field, value] of Object.entries({ name, key })) {
    if (isAbsent(value) || typeof value === 'string') continue;
    throw invalid(`${what}: ${field} is ${describe(value)}; allowed: a text`);
  }
  const isSeconds = typeof readSeconds === 'number' && readSeconds > 0;
  if (!isAbsent(readSeconds) && !(isSeconds && readSeconds <= LIMITS.readSecondsMax)) {
    throw invalid(
      `${what}: readSeconds is ${describe(readSeconds)}; allowed: above 0, up to ${LIMITS.readSecondsMax}`,
    );
  }
  if (!isRecord(fields) || Object.keys(fields).length === 0) {
    throw invalid(
      `${what}: fields is ${describe(fields)}; allowed: an object such as { inputs: { shape: [28, 28, 1], type: 'uint8' }, targets: { shape: [], type: 'int32' } }`,
    );
  }
  const names = Object.keys(fields);
  if (names.length > LIMITS.fieldsMax) {
    throw invalid(
      `${what} has ${names.length} fields; at most ${LIMITS.fieldsMax} are allowed: put numbers of one kind together in one field`,
    );
  }
  const checked = names.map((each) => [each, fieldOf(each, fields[each], what)] as const);
  if (!checked.some(([each, { role }]) => (role ?? roleOf(each)) === 'input')) {
    throw invalid(
      `${what} has no input; it has ${listed(names)}: call one field 'inputs', or give a field the role 'input'`,
    );
  }
  const source = given as unknown as ExampleSource;
  return {
    ...{ count: source.count, fields: Object.fromEntries(checked) },
    // Its methods may need `this`.
    read: (indices, options) => source.read(indices, options),
    ...(isAbsent(name) ? {} : { name: source.name! }),
    ...(isAbsent(key) ? {} : { key: source.key! }),
    ...(isAbsent(readSeconds) ? {} : { readSeconds: source.readSeconds! }),
    ...(isAbsent(close) ? {} : { close: () => source.close!() }),
  };
}

function fieldOf(name: string, given: unknown, what: string): SourceField {
  const where = `${what}, field '${name}'`;
  if (!FIELD_NAME.test(name) || name in {}) {
    throw invalid(
      `${where}: a field cannot have this name; allowed: letters, digits, '_' and '-', 50 at most`,
    );
  }
  if (!isRecord(given)) {
    throw invalid(`${where} is ${describe(given)}; allowed: { shape, type }, and a role`);
  }
  mustKnow(where, given, FIELD_FIELDS);
  const { shape, type, role, classCount } = given;
  const own = roleOf(name);
  if (isAbsent(role) ? own === null : !ROLES.includes(role as string)) {
    throw invalid(`${where}: role is ${describe(role)}; allowed: ${ROLES.join(', ')}`);
  }
  if (!isAbsent(role) && own !== null && role !== own) {
    throw invalid(`${where}: role is ${describe(role)}, but ${name} always has the role ${own}`);
  }
  if (!Object.keys(ARRAYS).includes(type as string)) {
    throw invalid(
      `${where}: type is ${describe(type)}; allowed: ${Object.keys(ARRAYS).join(', ')}`,
    );
  }
  const sizes = Array.isArray(shape) ? shape : null;
  const isShape = sizes?.every((size) => Number.isInteger(size) && size >= 1);
  if (!isShape || sizes!.length >= LIMITS.rankMax) {
    throw invalid(
      `${where}: shape is ${describe(shape)}; allowed: the shape of one example, up to ${LIMITS.rankMax - 1} whole numbers from 1; [] for a single number`,
    );
  }
  const field = { shape: sizes as number[], type: type as SourceField['type'] };
  const texts = columnTexts(given, where, sizeOf(field.shape), field.type);
  const isTarget = (role ?? own) === 'target';
  if (!isTarget && (!isAbsent(classCount) || texts.classes)) {
    throw invalid(
      `${where}: only targets have classes; an input that is a category is an id, or one number for each category`,
    );
  }
  if (isTarget && texts.missing) {
    throw invalid(`${where}: only inputs may have \`missing\``);
  }
  if (!isAbsent(classCount) && !(Number.isInteger(classCount) && (classCount as number) >= 1)) {
    throw invalid(
      `${where}: classCount is ${describe(classCount)}; allowed: a whole number from 2`,
    );
  }
  return {
    ...field,
    ...texts,
    ...(isAbsent(role) ? {} : { role: role as FieldRole }),
    ...(isAbsent(classCount) ? {} : { classCount: classCount as number }),
  };
}
