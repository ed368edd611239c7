import { DownpourError } from '../../shared/errors.ts';
import { ARRAYS, type Column, isFloat, kindOf, type NumberKind } from './columns.ts';
import type { Examples, ExperimentData } from './examples.ts';

/** The parts of one data set must agree in shapes, names, classes and types: the same number must mean the same. */

/** The parts that data have, by name. */
export function partsOf({ train, validation, test }: ExperimentData): [string, Examples][] {
  const parts: [string, Examples | undefined][] = [
    ['train', train],
    ['validation', validation],
    ['test', test],
  ];
  return parts.filter((part): part is [string, Examples] => part[1] !== undefined);
}

/**
 * @returns the same data, with one number type for each column in all parts, and with the common classes.
 * @throws DownpourError DP_DATA_MISMATCH: parts differ; the message names the first difference and what to do.
 */
export function agreeing(data: ExperimentData): ExperimentData {
  const parts = partsOf(data);
  const columns = (of: 'inputs' | 'targets') =>
    parts.map(
      ([name, examples]): StatedPart => ({ part: `the ${name} part`, column: examples[of] }),
    );
  for (const of of ['inputs', 'targets'] as const) {
    mustHaveOneList(of, 'names', columns(of));
    mustHaveOneList(of, 'vocabulary', columns(of));
    mustHaveOneShape(of, columns(of));
  }
  const classes = classesOf(data, columns('targets'));
  const inputs = ofOneKind(columns('inputs'), inputsKind);
  const targets = ofOneKind(columns('targets'), targetsKind);
  const missing = inputs.some((column) => column.missing) ? ({ missing: 'mean' } as const) : {};
  const agreed = parts.map(([name, examples], i) => [
    name,
    { ...examples, inputs: { ...inputs[i]!, ...missing }, targets: targets[i]! },
  ]);
  return {
    ...data,
    ...Object.fromEntries(agreed),
    ...(classes ? { classes, classCount: classes.length } : {}),
  };
}

interface StatedPart {
  readonly part: string;
  readonly column: Column;
}

const disagree = (message: string) => new DownpourError('DP_DATA_MISMATCH', message);

function mustHaveOneShape(of: string, [first, ...others]: readonly StatedPart[]): void {
  const shape = (column: Column) => column.shape.slice(1).join(', ');
  for (const { part, column } of others) {
    if (shape(column) === shape(first!.column)) continue;
    throw disagree(
      `${of} of ${part} have the shape [${shape(column)}] for one example, but those of ${first!.part} have [${shape(first!.column)}]; give all parts the same shape (for tables: read all files with the same columns and categories)`,
    );
  }
}

/** All parts that have a list must have the same one. */
function mustHaveOneList(of: string, list: keyof typeof ADVICE, all: readonly StatedPart[]): void {
  const [first, ...others] = all.filter(({ column }) => column[list] !== undefined);
  for (const { part, column } of others) {
    const known = first!.column[list]!;
    const given = column[list]!;
    const at = differenceOf(known, given);
    if (at === null) continue;
    const says = (names: readonly string[]) =>
      at < names.length ? `'${names[at]}'` : `none (it has ${names.length})`;
    const what = {
      names: `column ${at} of the ${of}`,
      classes: `class ${at}`,
      vocabulary: `id ${at} of the vocabulary`,
    };
    throw disagree(
      `${what[list]} is ${says(known)} in ${first!.part} and ${says(given)} in ${part}, so the same number would mean different things. To fix this, ${ADVICE[list]}`,
    );
  }
}

/** What to do where lists of parts differ. */
const ADVICE = {
  names: 'read all files together, with the same columns and the same categories',
  classes: 'read all files together, or give the reader the full list of classes',
  vocabulary: 'build one vocabulary from the training part, and use it for all parts',
} as const;

/** Where two lists differ first; null: nowhere. */
function differenceOf(a: readonly string[], b: readonly string[]): number | null {
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i;
  return null;
}

/** The one list of classes: of the data, or of any part. */
function classesOf(
  { classes, classCount }: ExperimentData,
  targets: readonly StatedPart[],
): readonly string[] | null {
  const lists = classes
    ? [{ part: 'the data', column: { ...targets[0]!.column, classes } }, ...targets]
    : targets;
  mustHaveOneList('targets', 'classes', lists);
  const known = lists.find(({ column }) => column.classes)?.column.classes ?? null;
  if (known && classCount !== undefined && classCount !== known.length) {
    throw disagree(
      `classCount is ${classCount}, but there are ${known.length} classes: ${known
        .slice(0, 5)
        .map((name) => `'${name}'`)
        .join(', ')}${known.length > 5 ? ', …' : ''}; leave classCount out, or correct one of them`,
    );
  }
  return known;
}

function ofOneKind(
  all: readonly StatedPart[],
  choose: (all: readonly StatedPart[]) => NumberKind,
): Column[] {
  const kind = all.every(({ column }) => kindOf(column.values) === kindOf(all[0]!.column.values))
    ? null
    : choose(all);
  return all.map(({ column }) =>
    kind === null || kindOf(column.values) === kind
      ? column
      : { ...column, values: ARRAYS[kind].from(column.values) },
  );
}

/** Whole numbers up to this are float32 numbers too. */
const FLOAT32_WHOLE_MAX = 2 ** 24;

/** The kind that holds inputs of different kinds. */
function inputsKind(all: readonly StatedPart[]): NumberKind {
  const kinds = all.map(({ column }) => kindOf(column.values));
  const bytes = all[kinds.indexOf('uint8')];
  if (bytes) {
    const other = kinds.findIndex((kind) => kind !== 'uint8');
    throw disagree(
      `inputs of ${bytes.part} are bytes (pixels, divided by 255), but those of ${all[other]!.part} are ${kinds[other]}; give all parts the same type`,
    );
  }
  return floatKind(all);
}

/** Labels may be of any type; whole numbers stay so where the training part has them. */
function targetsKind(all: readonly StatedPart[]): NumberKind {
  const isWhole = ({ column: { values } }: StatedPart) =>
    !isFloat(values) || values.every((value) => Object.is(value, value | 0));
  return !isFloat(all[0]!.column.values) && all.every(isWhole) ? 'int32' : floatKind(all);
}

/** A float kind that has all of their numbers. */
function floatKind(all: readonly StatedPart[]): NumberKind {
  const fits = ({ column: { values } }: StatedPart) =>
    values instanceof Float64Array
      ? false
      : !(values instanceof Int32Array) ||
        values.every((value) => Math.abs(value) <= FLOAT32_WHOLE_MAX);
  return all.every(fits) ? 'float32' : 'float64';
}
