import {
  type DataFacts,
  dataDifference,
  type FieldFacts,
  packTransform,
  unpackTransform,
} from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { DataSummary } from '../../shared/protocol.ts';
import { inputNamesOf, type Reading } from '../../shared/reading.ts';
import { ARRAYS, type Column, kindOf, vocabularyOf } from './columns.ts';
import type { ExampleField, PreparedData } from './examples.ts';
import type { InputTransform } from './transform.ts';

/** Makes what a run keeps about its data, and compares it with data that are read later. */

/** @throws DownpourError DP_DATA_CORRUPT: inputs that are too large to be standardised. */
export function factsOf(prepared: PreparedData): DataFacts {
  const { train, transform, classCount, classes, inputNames, targetNames } = prepared;
  return {
    transform: packTransform(transform),
    inputs: column(train.inputs),
    targets: column(train.targets),
    classCount,
    classes: list(classes),
    inputNames: list(inputNames),
    targetNames: list(targetNames),
    ...(train.fields && { fields: fieldFacts(train.fields, prepared.transforms ?? {}) }),
    ...readingFacts(train.inputs),
    ...words(train.inputs.vocabulary ?? null),
  };
}

const column = ({ values, shape }: Column) => ({ kind: kindOf(values), shape: shape.slice(1) });
const list = (names: readonly string[] | null) => names && [...names];
const words = (vocabulary: readonly string[] | null) =>
  vocabulary && { vocabulary: [...vocabulary] };

function fieldFacts(
  fields: Readonly<Record<string, ExampleField>>,
  transforms: Readonly<Record<string, InputTransform>>,
): FieldFacts[] {
  return Object.entries(fields).map(([name, field]) => ({
    ...{ name, role: field.role, column: column(field) },
    transform: transforms[name] ? packTransform(transforms[name]) : null,
    classCount: field.classes?.length ?? field.classCount ?? null,
    classes: list(field.classes ?? null),
    names: list(field.names ?? null),
    ...(field.pad !== undefined && { pad: field.pad }),
    ...words(vocabularyOf(field)),
  }));
}

/** How the inputs were read, where that is known and they are what was read. */
function readingFacts({ reading, names, shape }: Column): Pick<DataFacts, 'reading'> {
  if (!reading) return {};
  return isAsRead(reading, shape.slice(1), names) ? { reading: JSON.stringify(reading) } : {};
}

/** Whether inputs of this shape are what was read. */
function isAsRead(
  reading: Reading,
  shape: readonly number[],
  names: readonly string[] | undefined,
): boolean {
  switch (reading.kind) {
    case 'table':
      return JSON.stringify(inputNamesOf(reading)) === JSON.stringify(names);
    case 'images':
      return String(shape) === String([reading.height, reading.width, reading.channels]);
    case 'text':
      return String(shape) === String([reading.length]);
  }
}

/** @param depends fields of the configuration that `data()` has read. */
export function dataSummary(prepared: PreparedData, depends: readonly string[]): DataSummary {
  return {
    trainCount: prepared.train.count,
    validationCount: prepared.validation.count,
    testCount: prepared.test?.count ?? 0,
    fingerprint: prepared.fingerprint,
    rawFingerprint: prepared.rawFingerprint,
    depends: depends.slice(0, DEPENDS_MAX).map((name) => name.slice(0, 200)),
    source: prepared.source.slice(0, 2000),
  };
}
const DEPENDS_MAX = 1000;

/** A part of the data without examples: all that a model's shapes follow from. */
export function examplesLike({
  inputs,
  targets,
  classCount,
  fields,
}: DataFacts): Pick<PreparedData, 'train' | 'classCount' | 'transforms'> {
  const empty = ({ kind, shape }: DataFacts['inputs']): Column => ({
    values: new ARRAYS[kind](0),
    shape: [0, ...shape],
  });
  const named = fields?.map((facts): [string, ExampleField] => {
    const { name, role, column, classes, pad } = facts;
    const known = {
      ...(facts.classCount !== null && { classCount: facts.classCount }),
      ...(classes && { classes }),
      ...(pad !== undefined && { pad }),
    };
    return [name, { ...empty(column), role, ...known }];
  });
  const train = { count: 0, inputs: empty(inputs), targets: empty(targets) };
  if (!fields || !named) return { train, classCount };
  const transforms = fields.flatMap(({ name, transform }) =>
    transform ? [[name, unpackTransform(transform)] as const] : [],
  );
  return {
    ...{ train: { ...train, fields: Object.fromEntries(named) }, classCount },
    transforms: Object.fromEntries(transforms),
  };
}

/**
 * The transform that a run's parameters were trained with, for these inputs.
 * @throws DownpourError DP_DATA_MISMATCH: these are of another kind or shape.
 */
export function transformFor(facts: DataFacts, inputs: Column): InputTransform {
  const own = { kind: kindOf(inputs.values), shape: inputs.shape.slice(1) };
  const { kind, shape } = facts.inputs;
  if (own.kind !== kind || String(own.shape) !== String(shape)) {
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `the inputs are ${own.kind} of shape [${own.shape}], but the run's parameters were trained on ${kind} of shape [${shape}]: restore the old data, or train a new run on these`,
    );
  }
  return unpackTransform(facts.transform);
}

/** The same of a field. @throws DownpourError DP_DATA_MISMATCH: the run has no such field, or of another kind or shape. */
export function fieldTransformFor(facts: DataFacts, name: string, field: Column): InputTransform {
  const known = facts.fields?.find((each) => each.name === name);
  if (!known?.transform) {
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `the run's data have no input of this name; they have ${facts.fields?.map((each) => each.name).join(', ') || 'one input and one target'}: restore the old data, or train a new run on these`,
    );
  }
  return transformFor({ ...facts, inputs: known.column, transform: known.transform }, field);
}

/** What a run knows about its data. */
export interface KnownData {
  readonly run: string;
  readonly summary: DataSummary | null;
  readonly facts: DataFacts | null;
}

/**
 * Compares data that were read now with those that a run was trained on.
 * @throws DownpourError DP_DATA_MISMATCH that says what both have, and what to do.
 */
export function mustBeDataOf({ run, summary, facts }: KnownData, prepared: PreparedData): void {
  const own = { data: dataSummary(prepared, []), facts: factsOf(prepared) };
  const difference = dataDifference({ data: summary, facts }, own);
  if (!difference) return;
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `the data have changed since run ${run} was trained: they have ${difference}. It is no longer known which examples it was trained on: restore the old data (or give their folder with --data), or train a new run on these`,
  );
}
