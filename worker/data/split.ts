import { DownpourError } from '../../shared/errors.ts';
import { permutation, random, STREAMS } from '../../shared/random.ts';
import { type Column, isFloat, rowSize, takeRows } from './columns.ts';
import type { Examples, ExperimentData, PrepareOptions } from './examples.ts';
import { mapFields } from './fields.ts';
import type { ChosenRows } from './fingerprint.ts';

/**
 * Which examples train and which validate. Chosen by integer arithmetic from the seed, so every worker has the
 * same parts.
 */

/**
 * Training and validation part, and which rows they are. Rows of each keep the order of the data.
 * @param classes of all training examples, if the targets are not in memory.
 */
export function split(
  data: ExperimentData,
  options: PrepareOptions,
  classes?: ArrayLike<number>,
): { train: Examples; validation: Examples; rows: ChosenRows } {
  const { seed, validationFraction, validation, trainFraction = 1, bootstrap = false } = options;
  const folds = validation?.folds ?? null;
  const examples = data.train;
  const n = examples.count;
  if (!(validationFraction >= 0 && validationFraction < 1)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `validationFraction is ${validationFraction}; allowed: 0 up to below 1`,
    );
  }
  if (folds !== null && data.validation) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      "validation.folds is set, but the experiment's data has its own validation part, which no fold would use: return its examples as training examples, or leave validation.folds out",
    );
  }
  const given = data.validation !== undefined;
  if (!given && (folds !== null || validationFraction > 0) && n < Math.max(2, folds ?? 2)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${n} training example${n === 1 ? '' : 's'} cannot be split into ${folds ?? 2} parts; give more, or a validation part`,
    );
  }
  const order = permutation(options.splitSeed ?? seed, STREAMS.split, n);
  let validates = order.subarray(0, 0);
  let trains = order;
  if (folds !== null && validation) {
    const { fold, apart, stratified } = validation;
    const dealt = stratified ? byClass(order, classes ?? stratifiedClasses(data)) : order;
    validates = dealt.filter((_, position) => position % folds === fold);
    const isOut = new Set([
      ...validates,
      ...dealt.filter((_, position) => position % folds === apart),
    ]);
    trains = order.filter((row) => !isOut.has(row));
    if (trains.length === 0) {
      throw new DownpourError(
        'DP_CONFIG_INVALID',
        `one of ${folds} folds validates and one is held out, so none is left to train on; use 3 folds or more`,
      );
    }
  } else if (!given && validationFraction > 0) {
    const count = Math.min(n - 1, Math.max(1, Math.round(n * validationFraction)));
    validates = order.subarray(0, count);
    trains = order.subarray(count);
  }
  const kept = Math.max(1, Math.round(trains.length * trainFraction));
  // Sorted, since rows near each other in the data are then near each other in memory.
  let rows = trains.subarray(0, kept);
  if (bootstrap) {
    const draw = random(seed, STREAMS.bootstrap);
    rows = rows.map((_, __, all) => all[draw.below(kept)]!);
  }
  const chosen = {
    train: kept === n && !bootstrap ? null : rows.slice().sort(),
    validation: data.validation ? null : validates.slice().sort(),
  };
  return {
    train: chosen.train ? takeExamples(examples, chosen.train) : examples,
    validation: data.validation ?? takeExamples(examples, chosen.validation!),
    rows: chosen,
  };
}

/**
 * Rows in an order where each class stands together: dealt out to the folds one by one, each fold
 * gets as many of a class as any other, to one example.
 */
function byClass(order: Int32Array, classes: ArrayLike<number>): Int32Array {
  // A stable sort: within a class the seed's order stays.
  return Int32Array.from(Array.from(order).sort((a, b) => classes[a]! - classes[b]!));
}

/**
 * The class of each training example.
 * @throws DownpourError DP_CONFIG_INVALID when the targets are no classes.
 */
export function stratifiedClasses({ train, classCount }: ExperimentData): Float64Array {
  const { values, shape } = train.targets;
  const size = rowSize(train.targets);
  const isShares = isFloat(values) && shape.length > 1 && size === classCount;
  if (classCount === undefined || (size !== 1 && !isShares)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      "validation.stratified needs one class for each example: the experiment's data has no classCount, or more than one target for each example; leave stratified out",
    );
  }
  const classOf = (row: number): number => {
    const target = values.subarray(row * size, (row + 1) * size);
    return isShares ? target.indexOf(Math.max(...target)) : target[0]!;
  };
  return Float64Array.from({ length: train.count }, (_, row) => classOf(row));
}

/**
 * Sets examples apart for the test part. They are chosen by the count alone, so that runs with other seeds, and trials of a
 * study, never train on them (Deep Learning §5.3).
 * @param fraction of them, in [0, 1); at least one is kept and, above 0, at least one is set apart.
 * @throws DownpourError DP_EXPERIMENT_INVALID: there is only one example.
 */
export function holdOut(
  examples: Examples,
  fraction = 0,
): { readonly train: Examples; readonly test: Examples | null } {
  const rows = heldOutRows(examples.count, fraction);
  if (rows === null) return { train: examples, test: null };
  return { train: takeExamples(examples, rows.train), test: takeExamples(examples, rows.test) };
}

/** The rows that `holdOut` gives to each part, in their order; null: all are training examples. */
export function heldOutRows(
  n: number,
  fraction = 0,
): { readonly train: Int32Array; readonly test: Int32Array } | null {
  if (fraction === 0) return null;
  if (n < 2) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `testFraction is ${fraction}, but ${n} example cannot be split; give more, or leave testFraction out`,
    );
  }
  const count = Math.min(n - 1, Math.max(1, Math.round(n * fraction)));
  const order = permutation(0, STREAMS.test, n);
  return { train: order.slice(count).sort(), test: order.slice(0, count).sort() };
}

/** Copies whole examples; of examples that are not in memory, it says which they are. */
export function takeExamples(examples: Examples, rows: Int32Array | readonly number[]): Examples {
  const { stored } = examples;
  if (stored) {
    const chosen = Int32Array.from(rows, (row) => (stored.rows ? stored.rows[row]! : row));
    const like = <C extends Column>(column: C): C => ({
      ...column,
      shape: [chosen.length, ...column.shape.slice(1)],
    });
    const { inputs, targets, fields } = examples;
    return {
      ...{ count: chosen.length, inputs: like(inputs), targets: like(targets) },
      ...(fields && { fields: mapFields(fields, like) }),
      stored: { ...stored, rows: chosen },
    };
  }
  return {
    count: rows.length,
    inputs: takeRows(examples.inputs, rows),
    targets: takeRows(examples.targets, rows),
    ...(examples.fields && {
      fields: mapFields(examples.fields, (field) => ({ ...field, ...takeRows(field, rows) })),
    }),
  };
}
