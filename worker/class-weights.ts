import { type Column, isFloat } from './data/columns.ts';
import { isRecord } from './fields.ts';

/** How much an example of each class counts in the loss, for classes of which some are rare. */

/**
 * `'balanced'`: n / (k · nᶜ) for class c with nᶜ of the n training examples, k classes that occur. Else a number for each
 * class in their order, or by the class's name or number; a class that is left out has 1.
 */
export type ClassWeights = 'balanced' | readonly number[] | Readonly<Record<string, number>>;

/** For one target; for several, by the name of the output. */
export type GivenClassWeights = ClassWeights | Readonly<Record<string, ClassWeights>>;

const isWeight = (value: unknown): value is number =>
  typeof value === 'number' && value >= 0 && value <= WEIGHT_MAX;
const WEIGHT_MAX = 1e6;

export const isForOneTarget = (value: unknown): value is ClassWeights => {
  if (value === 'balanced') return true;
  if (!Array.isArray(value) && !isRecord(value)) return false;
  const weights = Object.values(value);
  return weights.every(isWeight) && weights.some((weight) => weight > 0);
};

/** As the field of an experiment is checked. */
export const isClassWeights = (value: unknown): boolean =>
  isForOneTarget(value) ||
  (isRecord(value) && Object.keys(value).length > 0 && Object.values(value).every(isForOneTarget));

export const CLASS_WEIGHTS_ALLOWED = `'balanced', an array with a number for each class, an object of numbers by class (each from 0 to ${WEIGHT_MAX}, one above 0), or an object with one of these for each output`;

/** Whether the classes of the training part must be counted. */
export const needsClassCounts = (given: GivenClassWeights | undefined): boolean =>
  given === 'balanced' ||
  (isRecord(given) && (Object.values(given) as unknown[]).includes('balanced'));

/** Adds how often each class is in some targets; of shares, their sums. @param counts one for each class; of yes and no, 2. */
export function addClassCounts(counts: number[], { values, shape }: Column, loss: unknown): void {
  const classCount = counts.length;
  if (loss === 'sigmoidCrossEntropy') {
    for (const yes of values) {
      counts[0]! += 1 - yes;
      counts[1]! += yes;
    }
  } else if (isFloat(values) && shape.length > 1 && shape.at(-1) === classCount) {
    for (let i = 0; i < values.length; i++) counts[i % classCount]! += values[i]!;
  } else for (const label of values) counts[label]!++;
}

/** The weights that make all classes count alike; classes that do not occur have 1. */
export function balancedWeights(counts: readonly number[]): number[] {
  const all = counts.reduce((sum, count) => sum + count, 0);
  const present = counts.filter((count) => count > 0).length;
  return counts.map((count) => (count > 0 ? all / (present * count) : 1));
}

/** For logs: `no 0.53, yes 9.1`. */
export function classWeightsText(
  weights: readonly number[],
  classes: readonly string[] | null,
): string {
  const shown = weights
    .slice(0, SHOWN_MAX)
    .map((weight, c) => `${classes?.[c] ?? c} ${Number(weight.toPrecision(4))}`);
  const more = weights.length - shown.length;
  return `${shown.join(', ')}${more > 0 ? `, and ${more} more` : ''}`;
}

export const SHOWN_MAX = 20;
