import { DownpourError } from '../../shared/errors.ts';
import type { FieldRole } from '../data/columns.ts';
import { isFloat } from '../data/columns.ts';
import type { PreparedData } from '../data/examples.ts';
import { isWhole } from '../data/fields.ts';

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
  /** Several inputs or several targets. */
  readonly fields: readonly FieldShape[];
}

/** One field, as `DataShape` has the one target. */
export interface FieldShape {
  readonly name: string;
  readonly role: FieldRole;
  readonly shape: readonly number[];
  readonly classCount: number;
  readonly shares: boolean;
  readonly integers: boolean;
}

/** Shapes and kinds are looked at; there need be no example. */
export type ModelData = Pick<PreparedData, 'train' | 'classCount' | 'transforms'>;

export function dataShape({ train, classCount, transforms }: ModelData): DataShape {
  const targetShape = train.targets.shape.slice(1);
  return {
    fields: Object.entries(train.fields ?? {}).map(([name, field]): FieldShape => {
      const { role, values } = field;
      const shape = field.shape.slice(1);
      const classCount = field.classes?.length ?? field.classCount ?? 0;
      const shares = isFloat(values) && classCount > 0 && shape.at(-1) === classCount;
      const integers = isWhole(field, transforms?.[name]);
      return { name, role, shape, classCount, shares, integers };
    }),
    inputShape: train.inputs.shape.slice(1),
    targetShape,
    classCount: classCount ?? 0,
    shares: isFloat(train.targets.values) && targetShape.at(-1) === classCount,
    integers: !isFloat(train.targets.values),
  };
}

/** A field as if it were the one target: what losses need to know. */
export const targetLike = ({ shape, classCount, shares, integers }: FieldShape): DataShape => ({
  ...{ inputShape: [], targetShape: shape, classCount, shares, integers, fields: [] },
});

/** Targets by name; empty: there is one, or none. */
export const targetsOf = ({ fields }: DataShape): readonly FieldShape[] =>
  fields.filter(({ role }) => role === 'target');

/** Inputs by name, with masks; empty: there is one. */
export const inputsOf = ({ fields }: DataShape): readonly FieldShape[] =>
  fields.filter(({ role }) => role !== 'target');

/** Whether the data have the field `inputs`, and `targets`. */
export const hasInputs = ({ inputShape }: DataShape): boolean => inputShape[0] !== 0;
export const hasTargets = ({ targetShape }: DataShape): boolean => targetShape[0] !== 0;
