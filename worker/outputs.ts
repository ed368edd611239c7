import { DownpourError } from '../shared/errors.ts';
import { nearest } from '../shared/spelling.ts';
import { type Column, rowSize } from './data/columns.ts';
import type { PreparedData } from './data/examples.ts';
import type { Experiment } from './experiment.ts';
import { lossesOf, type OneLoss } from './losses.ts';
import { dataShape, targetsOf } from './model/data-shape.ts';

/** The outputs of an experiment with a loss, each with its target: what it answers, and what would be right. */

export interface ExperimentOutput {
  /** Name of the target; '': there is one, without a name. */
  readonly name: string;
  readonly loss: OneLoss;
  /** Null: the target is numbers. */
  readonly classCount: number | null;
  /** The name of class 0, 1, …; null: they have none. */
  readonly classes: readonly string[] | null;
  /** One for each number of the target; null: they have none. */
  readonly targetNames: readonly string[] | null;
  /** Numbers of one example's target. */
  readonly targetSize: number;
}

type OutputData = Pick<PreparedData, 'train' | 'classCount' | 'transforms'> &
  Partial<Pick<PreparedData, 'classes' | 'targetNames'>>;

/**
 * In the order of the data.
 * @throws DownpourError DP_USAGE: the experiment has an objective, which gives no loss of single outputs; what
 *   `lossesOf` throws.
 */
export function outputsOf(experiment: Experiment, data: OutputData): readonly ExperimentOutput[] {
  if (experiment.objective) {
    throw new DownpourError(
      'DP_USAGE',
      'telling answers one by one needs a loss, but the experiment has an objective: report what matters as metrics of the objective',
    );
  }
  const { train, classCount, classes = null, targetNames = null } = data;
  const shape = dataShape(data);
  const targets = targetsOf(shape);
  if (targets.length === 0) {
    const own = { classCount, classes, targetNames, targetSize: rowSize(train.targets) };
    return [{ name: '', loss: experiment.loss as OneLoss, ...own }];
  }
  const losses = lossesOf(experiment, shape);
  return targets.map(({ name, classCount }): ExperimentOutput => {
    const field: Column = train.fields![name]!;
    return {
      ...{ name, loss: losses[name]!, classCount: classCount > 0 ? classCount : null },
      ...{ classes: field.classes ?? null, targetNames: field.names ?? null },
      targetSize: rowSize(field),
    };
  });
}

/**
 * The output of this name; without a name, the only one.
 * @param option that names it, for messages: `--output`.
 * @throws DownpourError DP_USAGE: there is none of this name, or several to choose from.
 */
export function outputNamed<Output extends Pick<ExperimentOutput, 'name'>>(
  outputs: readonly Output[],
  name: string | undefined,
  option = '--output',
): Output {
  const names = outputs.map((output) => output.name);
  if (name === undefined) {
    if (outputs.length === 1) return outputs[0]!;
    throw new DownpourError(
      'DP_USAGE',
      `the experiment has the outputs ${names.join(', ')}: choose one, for example ${option} ${names[0]}`,
    );
  }
  const found = outputs.find((output) => output.name === name);
  if (found) return found;
  const near = nearest(name, names);
  const known =
    names[0] === ''
      ? 'it has one output, without a name: leave the option out'
      : `its outputs are ${names.join(', ')}`;
  throw new DownpourError(
    'DP_USAGE',
    `${option} is '${name}', which is no output of the experiment; ${near ? `did you mean '${near}'?` : known}`,
  );
}

/** The names of the losses, for programs that read what the outputs mean; null: of the user's own. */
export function lossNames(experiment: Experiment, data: OutputData) {
  const { loss, objective } = experiment;
  const nameOf = (given: unknown) => (typeof given === 'string' ? given : null);
  if (objective || data.train.fields === undefined) return { loss: nameOf(loss) };
  const named = outputsOf(experiment, data).map(({ name, loss }) => [name, nameOf(loss)] as const);
  if (named.every(([name]) => name === '')) return { loss: nameOf(loss) };
  return { loss: null, losses: Object.fromEntries(named) };
}
