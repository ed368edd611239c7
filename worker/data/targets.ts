import { DownpourError } from '../../shared/errors.ts';
import { type Column, elementAt, isFloat, rowSize } from './columns.ts';
import type { ExperimentData } from './examples.ts';
import { partsOf } from './parts.ts';

/** Do targets mean what the loss takes them for? Wrong ones would train, and look right. */

const CLASS_LOSSES: readonly unknown[] = ['softmaxCrossEntropy', 'negativeLogLikelihood'];

/**
 * @param loss of the experiment: a name, or null for a function of its own.
 * @returns the data; with one-hot rows of whole numbers as shares of float32.
 * @throws DownpourError DP_DATA_LABEL with part, row and value; DP_EXPERIMENT_INVALID: no classCount.
 */
export function mustBeTargets(data: ExperimentData, loss: string | null): ExperimentData {
  const given = withShares(data);
  const { classCount } = given;
  if (classCount === undefined && CLASS_LOSSES.includes(loss)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `loss '${loss}' needs classes, but data() returned no classCount: ${classAdvice(given.train.targets)}`,
    );
  }
  for (const [part, { targets }] of partsOf(given)) {
    mustSuit(targets, `${part} part`, loss, classCount);
  }
  return given;
}

/** @throws DownpourError DP_DATA_LABEL: a target that the loss or the classes do not allow. */
export function mustSuit(
  targets: Column,
  where: string,
  loss: string | null,
  classCount: number | undefined,
): void {
  if (loss === 'sigmoidCrossEntropy') checkYesNo(targets, where);
  else if (classCount !== undefined) checkLabels(targets, classCount, where);
}

/** Rows of whole numbers, a 1 for the class and a 0 for each other, become shares of each class. */
function withShares(data: ExperimentData): ExperimentData {
  const { classCount } = data;
  if (classCount === undefined) return data;
  const parts = partsOf(data);
  if (!parts.every(([, { targets }]) => isOneHot(targets, classCount))) return data;
  const changed = parts.map(([part, examples]) => {
    const targets = { ...examples.targets, values: Float32Array.from(examples.targets.values) };
    return [part, { ...examples, targets }];
  });
  return { ...data, ...Object.fromEntries(changed) };
}

/** Whether all rows of whole numbers have one 1 and else 0; not so where there are no rows. */
export function isOneHot({ values, shape }: Column, classCount: number): boolean {
  if (isFloat(values) || shape.length < 2 || shape.at(-1) !== classCount) return false;
  for (let i = 0; i < values.length; i += classCount) {
    let sum = 0;
    for (let c = 0; c < classCount; c++) {
      const value = values[i + c]!;
      if (value !== 0 && value !== 1) return false;
      sum += value;
    }
    if (sum !== 1) return false;
  }
  return values.length > 0;
}

/**
 * Checks class labels: whole numbers 0 … classCount − 1, shape [n] (or [n, …]), or, as floats of shape
 * [n, classCount], shares of each class that add up to 1.
 * @param where named in the message, e.g. a file or a part
 * @throws DownpourError DP_DATA_LABEL with the row (0-based), the value and what is allowed.
 */
export function checkLabels(column: Column, classCount: number, where = 'data'): void {
  const { values, shape } = column;
  const error = (i: number, seen: string, allowed: string, at = elementAt(column, i)) =>
    labelError(`${where}, ${at}: ${seen}; allowed: ${allowed}. ${labelAdvice(column, classCount)}`);
  if (isFloat(values) && shape.length > 1 && shape.at(-1) === classCount) {
    for (let i = 0; i < values.length; i += classCount) {
      let sum = 0;
      for (let c = 0; c < classCount; c++) {
        const share = values[i + c]!;
        if (!(share >= 0 && share <= 1)) throw error(i + c, `probability ${share}`, '0 … 1');
        sum += share;
      }
      if (!(Math.abs(sum - 1) <= 1e-3)) {
        const row = elementAt({ ...column, shape: shape.slice(0, -1) }, i / classCount);
        throw error(i, `probabilities with the sum ${sum}`, 'a sum of 1', row);
      }
    }
    return;
  }
  for (let i = 0; i < values.length; i++) {
    const label = values[i]!;
    if (!(label >= 0 && label < classCount && Number.isInteger(label))) {
      const allowed = `whole numbers 0 … ${classCount - 1} (${classCount} classes)`;
      throw error(i, `label ${label}`, allowed);
    }
  }
}

/** Yes or no: 1 or 0, or how likely. */
function checkYesNo(column: Column, where: string): void {
  const { values } = column;
  for (let i = 0; i < values.length; i++) {
    if (values[i]! >= 0 && values[i]! <= 1) continue;
    throw labelError(
      `${where}, ${elementAt(column, i)}: target ${values[i]}; loss 'sigmoidCrossEntropy' takes targets from 0 (no) to 1 (yes). ${yesNoAdvice(column)}`,
    );
  }
}

/**
 * A loss of classes has nothing to tell apart where there is one only.
 * @throws DownpourError DP_DATA_LABEL
 */
export function mustVary(
  { train: { targets, count }, classCount, classes }: ExperimentData,
  loss: string | null,
  /** What was seen of all targets, where they are not in memory. */
  seen: Variety = varietyOf(targets, classCount),
): void {
  if (loss !== 'sigmoidCrossEntropy' && !CLASS_LOSSES.includes(loss)) return;
  if (classCount === 1) {
    throw labelError(
      `the data have only 1 class (classCount is 1), so there is nothing to learn; give examples of at least 2 classes`,
    );
  }
  if (count < 2 || seen.varies) return;
  const first = Array.from(seen.first);
  const isShares = areShares(targets, classCount);
  const label = isShares ? first.indexOf(Math.max(...first)) : first[0]!;
  const name = classes?.[label] === undefined ? '' : ` ('${classes[label]}')`;
  throw labelError(
    `all ${count} training examples have ${isShares || classCount !== undefined ? 'label' : 'target'} ${label}${name}: with only one class there is nothing to learn; give examples of other classes`,
  );
}

/** Whether targets differ from each other. */
export interface Variety {
  /** One label, or one share for each class. */
  readonly first: ArrayLike<number>;
  readonly varies: boolean;
}

const areShares = ({ values, shape }: Column, classCount: number | undefined) =>
  isFloat(values) && shape.length > 1 && shape.at(-1) === classCount;

/** @param before what was seen of earlier pieces. */
export function varietyOf(
  targets: Column,
  classCount: number | undefined,
  before?: Variety,
): Variety {
  if (before?.varies) return before;
  const { values, shape } = targets;
  const period = areShares(targets, classCount) ? shape.at(-1)! : 1;
  const first = before?.first ?? values.slice(0, period);
  return { first, varies: values.some((value, i) => value !== first[i % period]) };
}

const DISTINCT_MAX = 6;

/** The different values in order; null when they are more than a few. */
function distinct({ values }: Column): number[] | null {
  const seen = new Set<number>();
  for (const value of values) {
    seen.add(value);
    if (seen.size > DISTINCT_MAX) return null;
  }
  return [...seen].sort((a, b) => a - b);
}

function rangeOf({ values }: Column): { min: number; max: number; whole: boolean } {
  let [min, max, whole] = [Infinity, -Infinity, true];
  for (const value of values) {
    min = Math.min(min, value);
    max = Math.max(max, value);
    whole &&= Number.isInteger(value);
  }
  return { min, max, whole };
}

/** How two values become 0 and 1. */
function recoding([low, high]: readonly [number, number]): string {
  const told = `The targets are ${low} and ${high}`;
  if (low === -1 && high === 1) return `${told}: give (y + 1) / 2`;
  if (high - low === 1) return `${told}: subtract ${low}`;
  if (low === 0) return `${told}: divide by ${high}`;
  return `${told}: give 0 for ${low} and 1 for ${high}`;
}

function yesNoAdvice(column: Column): string {
  const seen = distinct(column);
  if (seen?.length === 2) return recoding(seen as [number, number]);
  const { min, max, whole } = rangeOf(column);
  const told = seen
    ? `The targets are ${seen.join(', ')}`
    : `The targets are from ${min} to ${max}`;
  return whole && min >= 0 && max < 1000
    ? `${told}: for more than two classes, use 'softmaxCrossEntropy' with classCount: ${max + 1}; for numbers, use 'meanSquaredError'`
    : `${told}: for numbers, use 'meanSquaredError'`;
}

function labelAdvice(column: Column, classCount: number): string {
  const { values, shape } = column;
  const otherwise = "the data or the experiment's classCount";
  const { min, max, whole } = rangeOf(column);
  const seen = distinct(column);
  if (!whole) {
    return isFloat(values) && shape.length > 1 && shape.at(-1) === classCount
      ? 'Divide each row by its sum'
      : `These are not classes. If they are numbers to predict, use loss 'meanSquaredError' and no classCount; else correct ${otherwise}`;
  }
  if (seen?.length === 2 && (classCount === 2 || seen[0] === 0)) {
    return `${recoding(seen as [number, number])}; or correct ${otherwise}`;
  }
  if (min === 1 && max === classCount) return 'Labels count from 0: subtract 1';
  return min >= 0 && max < 2 ** 20 && max >= classCount
    ? `Correct ${otherwise}: labels up to ${max} mean ${max + 1} classes`
    : `Correct ${otherwise}`;
}

function classAdvice(targets: Column): string {
  const { min, max, whole } = rangeOf(targets);
  const size = rowSize(targets);
  if (targets.shape.length > 1 && size > 1 && max <= 1 && min >= 0) {
    return `each example has ${size} targets, from ${min} to ${max}; if they are the probabilities of ${size} classes, return classCount: ${size} beside train`;
  }
  return whole && min >= 0
    ? `the targets are whole numbers ${min} … ${max}; if they are classes, return classCount: ${max + 1} beside train`
    : `the targets are numbers from ${min} to ${max}; if they are not classes, use loss 'meanSquaredError'`;
}

const labelError = (message: string) => new DownpourError('DP_DATA_LABEL', message);
