import { nearest } from '../shared/spelling.ts';
import {
  addClassCounts,
  balancedWeights,
  type ClassWeights,
  type GivenClassWeights,
  isForOneTarget,
  SHOWN_MAX,
} from './class-weights.ts';
import { type Column, sizeOf } from './data/columns.ts';
import type { PreparedData } from './data/examples.ts';
import type { Experiment } from './experiment.ts';
import { fieldText } from './fields.ts';
import { lossesOf, type OneLoss, SMOOTHED } from './losses.ts';
import { type DataShape, invalid, targetLike, targetsOf } from './model/data-shape.ts';

/** The weights of classes that an experiment gives, for the data that there are. */

interface WeightedTarget {
  readonly data: DataShape;
  readonly loss: OneLoss;
  readonly column: Column;
  readonly classes: readonly string[] | null;
  /** Where there are several, for messages. */
  readonly where: string;
}

/**
 * The weights of the classes of each target by its name; `targets` is the name of the one without.
 * @throws DownpourError DP_EXPERIMENT_INVALID: they do not fit the classes or the loss.
 */
export function classWeightsOf(
  experiment: Experiment,
  prepared: PreparedData,
  data: DataShape,
): Readonly<Record<string, readonly number[]>> {
  const { classWeights: given } = experiment;
  if (given === undefined) return {};
  const all: Record<string, WeightedTarget> = {};
  const { train } = prepared;
  const targets = targetsOf(data);
  if (targets.length === 0) {
    const { targets: column } = train;
    const { loss } = experiment;
    all.targets = { data, loss: loss as OneLoss, column, classes: prepared.classes, where: '' };
  } else {
    const losses = lossesOf(experiment, data);
    for (const target of targets) {
      const { name } = target;
      const column = train.fields![name]!;
      const where = targets.length === 1 ? '' : ` for the output '${name}'`;
      all[name] = {
        ...{ data: targetLike(target), loss: losses[name]!, column, where },
        classes: column.classes ?? null,
      };
    }
  }
  const names = Object.keys(all);
  const byOutput = byOutputOf(given, names);
  return Object.fromEntries(
    Object.entries(byOutput).map(([name, own]) => {
      const counts = prepared.classCounts?.[name];
      return [name, weightsOf(own, all[name]!, counts)];
    }),
  );
}

function byOutputOf(
  given: GivenClassWeights,
  names: readonly string[],
): Readonly<Record<string, ClassWeights>> {
  const isPlain = isForOneTarget(given);
  if (isPlain && names.length === 1) return { [names[0]!]: given };
  const list = names.map((name) => `'${name}'`).join(', ');
  if (isPlain) {
    throw invalid(
      `classWeights is for one target, but the data have the targets ${list}: give an object with weights for each that needs them, such as classWeights: { ${names[0]}: 'balanced' }`,
    );
  }
  if (names[0] === 'targets') {
    throw invalid(
      `classWeights names the output '${Object.keys(given)[0]}', but the targets of the data have no names: give 'balanced', an array, or an object of numbers by class`,
    );
  }
  for (const name of Object.keys(given)) {
    if (names.includes(name)) continue;
    const near = nearest(name, names);
    throw invalid(
      `classWeights names '${name}', which is no target of the data; ${near ? `did you mean '${near}'?` : `targets: ${list}`}`,
    );
  }
  return given as Readonly<Record<string, ClassWeights>>;
}

function weightsOf(
  given: ClassWeights,
  { data, loss, column, classes, where }: WeightedTarget,
  known: readonly number[] | undefined,
): readonly number[] {
  if (!(SMOOTHED as readonly unknown[]).includes(loss)) {
    const seen = typeof loss === 'string' ? `'${loss}'` : 'a function';
    throw invalid(
      `classWeights${where} needs one of the losses ${SMOOTHED.join(', ')}; the loss is ${seen}${typeof loss === 'string' ? '' : ', which can weigh its examples itself'}`,
    );
  }
  const isYesNo = loss === 'sigmoidCrossEntropy';
  const answers = sizeOf(data.targetShape);
  if (isYesNo && answers > 1) {
    throw invalid(
      `classWeights${where} weighs one answer of each example, but the targets have ${answers} answers of yes or no: write the loss as a function (targets, predictions) that weighs each`,
    );
  }
  const classCount = isYesNo ? 2 : data.classCount;
  if (given === 'balanced') {
    if (known) return balancedWeights(known);
    const counts = new Array<number>(classCount).fill(0);
    addClassCounts(counts, column, loss);
    return balancedWeights(counts);
  }
  if (Array.isArray(given)) {
    if (given.length === classCount) return given as readonly number[];
    throw invalid(
      `classWeights${where} has ${given.length} numbers for ${classCount} classes: give one for each`,
    );
  }
  const weights = new Array<number>(classCount).fill(1);
  for (const [key, weight] of Object.entries(given as Readonly<Record<string, number>>)) {
    const named = classes?.indexOf(key) ?? -1;
    const at = named >= 0 ? named : /^\d+$/.test(key) ? Number(key) : -1;
    if (at < 0 || at >= classCount) throw unknownClass(key, classes, classCount, where);
    weights[at] = weight;
  }
  if (weights.some((weight) => weight > 0)) return weights;
  throw invalid(
    `classWeights${where} is 0 for each of the ${classCount} classes; give one above 0`,
  );
}

function unknownClass(
  key: string,
  classes: readonly string[] | null,
  classCount: number,
  where: string,
) {
  const near = classes && nearest(key, classes);
  const names = classes ? `${classes.slice(0, SHOWN_MAX).map(fieldText).join(', ')}, or ` : '';
  return invalid(
    `classWeights${where} has the class ${fieldText(key)}, which the data do not have; ${near ? `did you mean ${fieldText(near)}?` : `allowed: ${names}0 to ${classCount - 1}`}`,
  );
}
