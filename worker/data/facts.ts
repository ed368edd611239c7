import {
  type DataFacts,
  dataDifference,
  packTransform,
  unpackTransform,
} from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { DataSummary } from '../../shared/protocol.ts';
import { inputNamesOf } from '../../shared/reading.ts';
import { ARRAYS, type Column, kindOf } from './columns.ts';
import type { PreparedData } from './examples.ts';
import type { InputTransform } from './transform.ts';

/** Makes what a run keeps about its data, and compares it with data that are read later. */

/** @throws DownpourError DP_DATA_CORRUPT: inputs that are too large to be standardised. */
export function factsOf(prepared: PreparedData): DataFacts {
  const { train, transform, classCount, classes, inputNames, targetNames } = prepared;
  const column = ({ values, shape }: Column) => ({
    kind: kindOf(values),
    shape: shape.slice(1),
  });
  const list = (names: readonly string[] | null) => names && [...names];
  return {
    transform: packTransform(transform),
    inputs: column(train.inputs),
    targets: column(train.targets),
    classCount,
    classes: list(classes),
    inputNames: list(inputNames),
    targetNames: list(targetNames),
    ...readingFacts(train.inputs),
  };
}

/** How the inputs were read, where that is known and they are what was read. */
function readingFacts({ reading, names, shape }: Column): Pick<DataFacts, 'reading'> {
  if (!reading) return {};
  const isAsRead =
    reading.kind === 'table'
      ? JSON.stringify(inputNamesOf(reading)) === JSON.stringify(names)
      : String(shape.slice(1)) === String([reading.height, reading.width, reading.channels]);
  return isAsRead ? { reading: JSON.stringify(reading) } : {};
}

/** @param depends fields of the configuration that `data()` has read. */
export function summaryOf(prepared: PreparedData, depends: readonly string[]): DataSummary {
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
}: DataFacts): Pick<PreparedData, 'train' | 'classCount'> {
  const empty = ({ kind, shape }: DataFacts['inputs']): Column => ({
    values: new ARRAYS[kind](0),
    shape: [0, ...shape],
  });
  return { train: { count: 0, inputs: empty(inputs), targets: empty(targets) }, classCount };
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
  const own = { data: summaryOf(prepared, []), facts: factsOf(prepared) };
  const difference = dataDifference({ data: summary, facts }, own);
  if (!difference) return;
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `the data have changed since run ${run} was trained: they have ${difference}. It is no longer known which examples it was trained on: restore the old data (or give their folder with --data), or train a new run on these`,
  );
}
