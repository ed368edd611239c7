import type { Column } from './columns.ts';
import { describe, invalid, isAbsent, isRecord, listed, mustKnow, textsOf } from './described.ts';
import { DATA_PARTS, type ExampleField, type Examples, type ExperimentData } from './examples.ts';
import { columnOf } from './given-column.ts';
import { areFields, examplesOfFields } from './given-fields.ts';
import { examplesOfSource, isSource } from './given-source.ts';
import type { GivenNumbers } from './numbers.ts';
import type { ExampleSource } from './source.ts';

/**
 * What an experiment's `data` may return. All of it is converted here: numbers of any type become one of four
 * types without loss. Anything else is refused, and the message says what was found and where.
 */

/** A column that an experiment may return. */
export interface GivenColumn
  extends Pick<Column, 'names' | 'classes' | 'missing' | 'reading' | 'vocabulary'> {
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
  readonly train: GivenExamples | ExampleSource;
  readonly validation?: GivenExamples | ExampleSource | null;
  readonly test?: GivenExamples | ExampleSource | null;
  readonly source?: string;
}

const DATA_FIELDS = [...DATA_PARTS, 'classCount', 'classes', 'source'];
const EXAMPLES_FIELDS = ['count', 'inputs', 'targets'];

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
  // A source says it of its field.
  const known = isAbsent(classCount) ? parts.train.targets.classCount : classCount;
  return {
    ...rest,
    ...parts,
    ...(isAbsent(known) ? {} : { classCount: known as number }),
    ...(isAbsent(classes) ? {} : { classes: textsOf(classes, 'classes of what data() returned') }),
    source: source ?? `${count} training example${count === 1 ? '' : 's'}`,
  };
}

function examplesOf(part: string, given: unknown): Examples {
  const name = `the ${part} part`;
  if (!isRecord(given)) {
    throw invalid(
      `${name} of what data() returned is ${describe(given)}; it must be { inputs, targets }`,
    );
  }
  if (isSource(given)) return examplesOfSource(name, given);
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
  const converted = Object.entries(fields ?? {}).map(([name, field]): [string, ExampleField] => {
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
