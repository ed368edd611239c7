import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { type Column, isFloat, rowSize } from './columns.ts';
import { transformFor } from './facts.ts';
import { fingerprint, rawFingerprint } from './fingerprint.ts';
import { lookUpInto } from './lookup.ts';
import { agreeing, partsOf } from './parts.ts';
import { mustBeFinite, mustFitFloat32 } from './precision.ts';
import { split } from './split.ts';
import { checkTargets, mustVary } from './targets.ts';
import { copy, copyScaled, fitTransform, type InputTransform, scalerOf } from './transform.ts';

/**
 * Examples in plain typed arrays: the seeded split, standardisation by the training part alone
 * (Deep Learning §12.2.1), and gathering minibatches. Nothing here knows of tensors or files.
 */

/** Inputs and targets that belong together, row by row. Bytes stay bytes until they are gathered. */
export interface Examples {
  readonly count: number;
  readonly inputs: Column;
  readonly targets: Column;
}

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
  readonly transform: InputTransform;
}

export interface PrepareOptions {
  readonly seed: number;
  /** Of the split, where it is not `seed`. */
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
  readonly standardise: 'none' | 'global' | 'feature';
  /** Of a run whose parameters are used: its transform, instead of one that is measured. */
  readonly facts?: DataFacts | null;
  /** Name of the experiment's loss, which the targets must suit; null or none: a function of its own. */
  readonly loss?: string | null;
}

/** Rows of a part, ready for a tensor. `inputShape` and `targetShape` are of one example. */
export interface Minibatch {
  /** Shape [n, ...inputShape], transformed. */
  readonly inputs: Float32Array;
  readonly inputShape: readonly number[];
  /** Shape [n, ...targetShape]; Int32Array when the column holds bytes or integers. */
  readonly targets: Float32Array | Int32Array;
  readonly targetShape: readonly number[];
}

export type Part = 'train' | 'validation' | 'test' | 'trainAndValidation';

/**
 * Splits, checks and measures what an experiment's `data` returned. The validation part is chosen by
 * integer arithmetic from the seed, so every worker has the same one; rows keep their order.
 * @throws DownpourError DP_DATA_MISMATCH when parts don't fit together, DP_DATA_CORRUPT for a value that
 * is not finite or lost in float32, DP_DATA_LABEL for targets that do not suit classes or loss,
 * DP_EXPERIMENT_INVALID for too few examples.
 */
export function prepareData(given: ExperimentData, options: PrepareOptions): PreparedData {
  const agreed = agreeing(given);
  for (const [part, { inputs, targets }] of partsOf(agreed)) {
    mustBeFinite(`inputs of the ${part} part`, inputs);
    if (agreed.classCount === undefined) mustBeFinite(`targets of the ${part} part`, targets);
  }
  const { loss = null } = options;
  const data = checkTargets(agreed, loss);
  const { train, validation, rows } = split(data, options);
  mustVary(data, loss);
  const transform = options.facts
    ? transformFor(options.facts, train.inputs)
    : fitTransform(train.inputs, options.standardise);
  const test = data.test ?? null;
  const parts = Object.entries({ train, validation, test }).flatMap(([name, examples]) =>
    examples === null || examples.count === 0 ? [] : [{ name, examples }],
  );
  mustFitFloat32(parts, transform);
  const raw = rawFingerprint(data);
  return {
    train,
    validation,
    test,
    fingerprint: fingerprint(raw, rows, transform),
    rawFingerprint: raw,
    source: data.source,
    classCount: data.classCount ?? null,
    classes: data.classes ?? null,
    inputNames: data.train.inputs.names ?? null,
    targetNames: data.train.targets.names ?? null,
    transform,
  };
}

/**
 * Copies rows out of a part, transformed. In `trainAndValidation` (the refit of Algorithms 7.2 and
 * 7.3) an index ≥ train.count addresses validation.
 * @param into an earlier result for as many rows, overwritten and returned: nothing is allocated. With
 * more room than needed, views of it are returned; with too little, new arrays. Since an upload may
 * share the array with its tensor, alternate between two.
 * @throws DownpourError DP_DATA_MISMATCH for an index that the part lacks.
 */
export function gather(
  prepared: PreparedData,
  part: Part,
  indices: Int32Array | readonly number[],
  into?: Minibatch,
): Minibatch {
  const first = part === 'trainAndValidation' ? prepared.train : prepared[part];
  const second = part === 'trainAndValidation' ? prepared.validation : null;
  if (first === null) {
    throw new DownpourError('DP_DATA_MISMATCH', 'this data has no test part to take rows from');
  }
  const firstCount = first.count;
  const count = firstCount + (second?.count ?? 0);
  const n = indices.length;
  const inputSize = rowSize(first.inputs);
  const targetSize = rowSize(first.targets);
  const batch = room(first, n, into);
  const scaler = scalerOf(prepared.transform);
  const lookup = scaler.table === null ? null : lookUpInto(batch.inputs, scaler.table);
  for (let i = 0; i < n; i++) {
    const index = indices[i]!;
    if (!(index >= 0 && index < count && Number.isInteger(index))) {
      throw new DownpourError(
        'DP_DATA_MISMATCH',
        `example ${index} was requested from the ${part} part, which has only ${count}: this worker's data differ from the run's`,
      );
    }
    const from = index < firstCount ? first : second!;
    const row = index < firstCount ? index : index - firstCount;
    const { values } = from.inputs;
    if (lookup && values instanceof Uint8Array) {
      lookup.add(values, row * inputSize, inputSize, i * inputSize);
    } else {
      copyScaled(scaler, values, row * inputSize, batch.inputs, i * inputSize, inputSize);
    }
    copy(from.targets.values, row * targetSize, batch.targets, i * targetSize, targetSize);
  }
  lookup?.flush();
  return batch;
}

function room(like: Examples, n: number, into: Minibatch | undefined): Minibatch {
  const inputLength = n * rowSize(like.inputs);
  const targetLength = n * rowSize(like.targets);
  const Targets = isFloat(like.targets.values) ? Float32Array : Int32Array;
  const fits = into?.targets instanceof Targets;
  if (fits && into.inputs.length === inputLength && into.targets.length === targetLength) {
    return into;
  }
  const enough = fits && into.inputs.length >= inputLength && into.targets.length >= targetLength;
  return {
    inputs: enough ? into.inputs.subarray(0, inputLength) : new Float32Array(inputLength),
    inputShape: like.inputs.shape.slice(1),
    targets: enough ? into.targets.subarray(0, targetLength) : new Targets(targetLength),
    targetShape: like.targets.shape.slice(1),
  };
}
