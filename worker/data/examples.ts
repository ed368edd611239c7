import type { DataFacts } from '../../shared/data-facts.ts';
import { type Column, type FieldRole, rowSize } from './columns.ts';
import type { Stored } from './source.ts';
import type { InputTransform, Standardise } from './transform.ts';

/** Examples in plain typed arrays, as an experiment gives them and as training takes them. Nothing here knows of tensors or files. */

/** Inputs and targets that belong together, row by row. Bytes stay bytes until they are gathered. */
export interface Examples {
  readonly count: number;
  /** The shape is [count, 0] where the inputs are fields by name; the same for targets, which may also be absent. */
  readonly inputs: Column;
  readonly targets: Column;
  /** Fields by name, in their order. */
  readonly fields?: Readonly<Record<string, ExampleField>>;
  /** Where the examples are read from, if they are not in memory: the columns then have no values. */
  readonly stored?: Stored;
}

/** Several inputs or several targets: each is a field. */
export interface ExampleField extends Column {
  readonly role: FieldRole;
}

/** The column of a field. @param name `inputs` and `targets` where there is one of these alone. */
export const columnOfField = (examples: Examples, name: string): Column | undefined =>
  examples.fields?.[name] ?? (name === 'inputs' || name === 'targets' ? examples[name] : undefined);

/** The parts of a data set, in the order in which they are read and told. */
export const DATA_PARTS = ['train', 'validation', 'test'] as const;
export type DataPart = (typeof DATA_PARTS)[number];

/** What an experiment's `data` returns. Without `validation`, it is split from `train` by the run's seed. */
export interface ExperimentData {
  readonly train: Examples;
  readonly validation?: Examples;
  readonly test?: Examples;
  /** Number of classes, where targets are classes: labels 0 … classCount − 1, or one column a class. */
  readonly classCount?: number;
  /** The name of class 0, 1, …; also the targets of a part may have them. */
  readonly classes?: readonly string[] | null;
  /** One line: what was used and how many examples. */
  readonly source: string;
}

/** The parts after the split and the preprocessing; index space of leases: [0, train.count) training, then validation. */
export interface PreparedData {
  /** Raw values; `gather` applies `transform`. */
  readonly train: Examples;
  readonly validation: Examples;
  readonly test: Examples | null;
  /** Differs between workers whose data, split or transform differ. */
  readonly fingerprint: string;
  /** The same of the data as they were given, before split and transform. */
  readonly rawFingerprint: string;
  readonly source: string;
  readonly classCount: number | null;
  /** The name of class 0, 1, …, where the data have them. */
  readonly classes: readonly string[] | null;
  /** One for each number of an example's input. */
  readonly inputNames: readonly string[] | null;
  /** One for each number of an example's target. */
  readonly targetNames: readonly string[] | null;
  /** How often the training part has each class of each target, where it is read from a source and was asked for. */
  readonly classCounts?: Readonly<Record<string, readonly number[]>>;
  readonly transform: InputTransform;
  /** The same for each field that is an input. */
  readonly transforms?: Readonly<Record<string, InputTransform>>;
}

export interface PrepareOptions {
  readonly seed: number;
  /** The seed of the split, where it is not `seed`. */
  readonly splitSeed?: number | null;
  /** Share of the training examples set apart when the data has no validation part, in [0, 1). */
  readonly validationFraction: number;
  /** k-fold: fold `fold` of `folds` validates, instead of a fraction. */
  readonly validation?: {
    readonly folds: number | null;
    readonly fold: number;
    readonly stratified: boolean;
    /** A fold that takes no part. */
    readonly apart?: number | null;
  };
  /** Share of the training part that is kept, in (0, 1]; smaller ones lie within larger ones. */
  readonly trainFraction?: number;
  /** As many examples as are kept, drawn from them by `seed` with replacement (Deep Learning §7.11). */
  readonly bootstrap?: boolean;
  readonly standardise: Standardise | Readonly<Record<string, Standardise>>;
  /** The facts of a run whose parameters are used: its transform, instead of one that is measured. */
  readonly facts?: DataFacts | null;
  /** Name of the experiment's loss, which the targets must suit; null or none: a function of its own. */
  readonly loss?: string | null;
  /** The same for each target that is a field. */
  readonly losses?: Readonly<Record<string, string | null>>;
  /** There need be no targets: an objective is given the fields that there are. */
  readonly targetsOptional?: boolean;
  /** Counts the classes of sources; arrays are counted when it is needed. */
  readonly countClasses?: true;
}

/** Rows of a part, ready for a tensor. `inputShape` and `targetShape` are of one example. */
export interface Minibatch {
  /** Shape [n, ...inputShape], transformed. */
  readonly inputs: Float32Array;
  readonly inputShape: readonly number[];
  /** Shape [n, ...targetShape]; Int32Array when the column holds bytes or integers. */
  readonly targets: Float32Array | Int32Array;
  readonly targetShape: readonly number[];
  /** Fields by name. */
  readonly fields?: Readonly<Record<string, FieldRows>>;
  /** Examples; absent: as the inputs have it. */
  readonly count?: number;
}

/** Rows of one field; `shape` is that of one example. */
export interface FieldRows {
  readonly values: Float32Array | Int32Array;
  readonly shape: readonly number[];
}

/** Whether there is one input and one target, as those commands need that look at these. */
export const isPlain = ({ inputs, targets, fields }: Examples): boolean =>
  fields === undefined && rowSize(inputs) > 0 && rowSize(targets) > 0;
