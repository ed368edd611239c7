import { DownpourError } from '../../shared/errors.ts';
import { isFloat } from '../data/columns.ts';
import type { PreparedData } from '../data/examples.ts';

/** What a model and its losses need to know about the data, and how they refuse them. */

export const invalid = (message: string, cause?: unknown) =>
  new DownpourError('DP_EXPERIMENT_INVALID', message, cause === undefined ? {} : { cause });

/** The shapes and kinds of the data that a model is built for. */
export interface DataShape {
  /** The shape of one example's input. */
  readonly inputShape: readonly number[];
  /** The shape of one example's target; [] for one class or one number. */
  readonly targetShape: readonly number[];
  /** 0 where targets are numbers. */
  readonly classCount: number;
  /** Targets are probabilities of each class, not labels. */
  readonly shares: boolean;
  /** Targets are whole numbers, tensors of int32. */
  readonly integers: boolean;
}

/** Shapes and kinds are looked at; there need be no example. */
export type ModelData = Pick<PreparedData, 'train' | 'classCount'>;

export function dataShape({ train, classCount }: ModelData): DataShape {
  const targetShape = train.targets.shape.slice(1);
  return {
    inputShape: train.inputs.shape.slice(1),
    targetShape,
    classCount: classCount ?? 0,
    shares: isFloat(train.targets.values) && targetShape.at(-1) === classCount,
    integers: !isFloat(train.targets.values),
  };
}
