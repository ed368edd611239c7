import type { RunConfig } from '../../shared/config.ts';
import type { ErrorMeasure } from '../../shared/protocol.ts';
import { permutation, STREAMS } from '../../shared/random.ts';
import type { TableRows } from '../../shared/rows.ts';
import type { PreparedData } from '../data/examples.ts';
import { gather } from '../data/gather.ts';
import { minibatchSeed } from '../minibatches.ts';
import type { Step } from '../model/steps.ts';
import type { MinibatchMeasures, Model } from '../model.ts';
import type { RowSource } from '../rows/model-rows.ts';
import { exampleClasses, sampleOf } from './data.ts';
import { type Finding, finding, mean, norm, percent, short, tooFew } from './finding.ts';
import { checkActivations } from './model.ts';

/** What a short training shows, with the update rule of the server and the learning rate of the user. */

/** One update of the server: the caller has it, a worker knows only gradients. */
export interface Updater {
  /** Trainable and statistics, shape [exchangedSize]. */
  readonly parameters: Float32Array;
  /** Rows of tables as they are now; null: there are none. */
  readonly rows: RowSource | null;
  /**
   * @param given as `Model.step` gives it. @param step from 1.
   * @returns false: not finite, or a parameter overflowed; nothing was applied.
   */
  apply(given: Pick<Step, 'gradient' | 'rows'>, step: number): boolean;
}

export interface TrialOptions {
  readonly prepared: PreparedData;
  readonly model: Model;
  readonly config: Pick<RunConfig, 'seed' | 'minibatchSize' | 'learningRate'>;
  readonly updater: Updater;
  /** The most updates; an epoch at most as well. */
  readonly steps: number;
}

const SAMPLE = 512;
/** The ratio of update to parameter is measured so often. */
const RATIOS = 10;

export interface Ratio {
  readonly tensor: string;
  /** Size of an update over size of the parameters, L2: the middle of those measured. */
  readonly ratio: number;
  readonly largest: number;
  readonly moved: boolean;
  /** The norm of the gradient, first and last. */
  readonly gradientNorm: readonly [number, number];
}

type Means = Omit<MinibatchMeasures, 'each'>;

export interface ShortTraining {
  readonly steps: number;
  readonly losses: readonly number[];
  readonly before: Means;
  readonly after: Means;
  readonly validationBefore: Means;
  readonly validation: Means;
  /** That `before` and `after` were measured on. */
  readonly examples: { readonly training: number; readonly validation: number };
  /** Why it ended early. */
  readonly diverged: string | null;
  readonly ratios: readonly Ratio[];
  /** The largest update of the rows of a table that an update changed, over their size; null: none was measured. */
  readonly rowsLargest: number | null;
  /** Training mode and evaluation mode on the same examples. */
  readonly modes: { readonly training: number; readonly evaluation: number };
}

/** Trains for a while and judges what happened. The model holds the trained parameters afterwards. */
export async function checkTraining(options: TrialOptions): Promise<Finding[]> {
  const trained = await trainShortly(options);
  const { prepared, model } = options;
  return [
    checkProgress(trained, options.config.learningRate),
    Object.keys(model.classWeights).length > 0
      ? weighed(trained)
      : checkDirection(trained, model.errorMeasure, majorityOf(prepared)),
    checkRatios(trained),
    trained.examples.training < MODES_MIN
      ? tooFew('modes', 'training mode from evaluation mode', trained.examples.training, MODES_MIN)
      : checkModes(trained, model),
    ...(trained.diverged ? [] : await checkActivations(prepared, model, 'activations-trained')),
  ];
}

async function trainShortly(options: TrialOptions): Promise<ShortTraining> {
  const { prepared, model, config, updater } = options;
  const { seed, minibatchSize } = config;
  const sample = sampleOf(prepared, 'train', SAMPLE);
  const held = sampleOf(prepared, 'validation', SAMPLE);
  const measure = async () => ({ at: await model.measure(sample), on: await model.measure(held) });
  const order = permutation(seed, STREAMS.epoch, prepared.train.count);
  const perEpoch = Math.max(1, Math.floor(order.length / minibatchSize));
  const steps = Math.min(options.steps, Math.max(20, perEpoch));
  const tensors = model.layout.tensors.filter(
    ({ role, shape }) => role === 'trainable' && shape.length > 1,
  );
  const seen = tensors.map(() => ({
    ...{ ratios: [] as number[], gradients: [] as number[], moved: false },
  }));
  const losses: number[] = [];
  let diverged: string | null = null;
  let rowsLargest: number | null = null;
  model.load(updater.parameters);
  const before = await measure();
  for (let step = 1; step <= steps && diverged === null; step++) {
    const start = ((step - 1) % perEpoch) * minibatchSize;
    const rows = order.subarray(start, start + minibatchSize);
    const minibatch = gather(prepared, 'train', rows);
    const taken = await model.step(minibatch, minibatchSeed(seed, { epoch: 0, start }));
    const { loss, gradient } = taken;
    losses.push(loss);
    const looks = step % Math.max(1, Math.floor(steps / RATIOS)) === 0 || step === 1;
    const old = looks ? updater.parameters.slice() : null;
    const keys = (looks && taken.rows?.map((rows) => rows.keys)) || null;
    const oldRows = keys && ((await updater.rows?.(keys)) ?? null);
    if (!Number.isFinite(loss) || !updater.apply(taken, step)) {
      const what = Number.isFinite(loss) ? 'a gradient or a parameter' : 'the loss';
      diverged = `${what} was not finite at update ${step}`;
      break;
    }
    const { parameters } = updater;
    if (keys && oldRows) {
      for (const ratio of rowRatios(oldRows, await updater.rows!(keys))) {
        rowsLargest = Math.max(rowsLargest ?? 0, ratio);
      }
    }
    if (old) {
      tensors.forEach(({ offset, size }, i) => {
        const update = parameters.slice(offset, offset + size);
        for (let j = 0; j < size; j++) update[j]! -= old[offset + j]!;
        const moved = norm(update);
        if (moved > 0) seen[i]!.moved = true;
        // A tensor of zeros has no size of its own yet.
        const before = norm(old.subarray(offset, offset + size));
        if (before > 0) seen[i]!.ratios.push(moved / before);
        seen[i]!.gradients.push(norm(gradient.subarray(offset, offset + size)));
      });
    }
    model.load(parameters, step);
  }
  const after = await measure();
  const { loss: training } = await model.step(sample, seed);
  const middle = (values: readonly number[]) =>
    values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;
  return {
    ...{ steps: losses.length, losses, diverged },
    ...{ before: before.at, validationBefore: before.on, after: after.at, validation: after.on },
    ratios: tensors.map(({ name }, i) => {
      const { ratios, gradients, moved } = seen[i]!;
      const ends = [gradients[0] ?? 0, gradients.at(-1) ?? 0] as const;
      return {
        ...{ tensor: name, ratio: middle(ratios), largest: Math.max(0, ...ratios), moved },
        gradientNorm: ends,
      };
    }),
    rowsLargest,
    modes: { training, evaluation: after.at.loss },
    examples: {
      training: Math.min(SAMPLE, prepared.train.count),
      validation: Math.min(SAMPLE, prepared.validation.count),
    },
  };
}

/** How far the rows of each table have moved, of their size. Rows of zeros have none yet. */
function rowRatios(before: readonly TableRows[], after: readonly TableRows[]): number[] {
  return before.flatMap(({ values: old }, t) => {
    const { values } = after[t]!;
    const size = norm(old);
    return size > 0 ? [norm(values.map((value, i) => value - old[i]!)) / size] : [];
  });
}

/** A smaller fall of the loss is none. */
const FALL = 0.05;
/** A loss that falls, but by less, is not judged after fewer updates. */
const ENOUGH_UPDATES = 50;

export function checkProgress(trained: ShortTraining, learningRate: number): Finding {
  const { before, after, validation, steps, diverged, ratios, rowsLargest } = trained;
  const fall = (before.loss - after.loss) / Math.max(1e-12, Math.abs(before.loss));
  const ofTensors = ratios.length > 0 ? Math.max(...ratios.map((ratio) => ratio.largest)) : null;
  // Rows are small at first: beside tensors they say that something moves, not that it moves too far.
  const largest = ofTensors ?? rowsLargest ?? 0;
  const most = Math.max(largest, rowsLargest ?? 0);
  const isMeasured = ofTensors !== null || rowsLargest !== null;
  const numbers = {
    ...{ steps, learningRate, fall, diverged },
    ...{ lossBefore: before.loss, lossAfter: after.loss, errorAfter: after.error },
    ...{ validationLoss: validation.loss, validationError: validation.error },
  };
  const text = `In ${steps} updates at learningRate ${learningRate} the training loss went from ${short(before.loss)} to ${short(after.loss)}, the error from ${short(before.error)} to ${short(after.error)} (validation ${short(validation.error)}).`;
  const find = '`downpour lr-find` finds a learning rate';
  if (!Number.isFinite(before.loss)) {
    return finding(
      'progress',
      'problem',
      `${text} The loss is not finite before any update: no learning rate changes that.`,
      'first fix what initial-loss says',
      numbers,
    );
  }
  if (diverged || !Number.isFinite(after.loss) || (fall < FALL && largest > 0.03)) {
    const why = diverged ?? 'it does not fall, and the updates are large';
    return finding(
      'progress',
      'problem',
      `${text} ${why[0]!.toUpperCase()}${why.slice(1)}: the learning rate is too high.`,
      `lower learningRate by a factor of 10 or more; ${find}`,
      numbers,
    );
  }
  if (fall >= FALL) return finding('progress', 'ok', text, null, numbers);
  if (before.loss === 0) {
    return finding(
      'progress',
      'advice',
      `${text} There was nothing to learn: the loss was 0 before any update.`,
      'look at the targets and the loss: is there anything to learn?',
      numbers,
    );
  }
  if (isMeasured && most < 1e-4) {
    const what = ofTensors === null ? 'rows' : 'tensor';
    return finding(
      'progress',
      'problem',
      `${text} It hardly moves: the largest update is ${short(most)} of its ${what}.`,
      `raise learningRate by a factor of 10 or more; ${find}`,
      numbers,
    );
  }
  if (fall > 0 && steps < ENOUGH_UPDATES) {
    return finding(
      'progress',
      'advice',
      `${text} These are too few updates to tell whether it learns.`,
      `${find}; train for more updates before you judge`,
      numbers,
    );
  }
  return finding(
    'progress',
    'problem',
    `${text} It does not learn${isMeasured ? ', although the updates have the usual size' : ''}.`,
    'look at the other findings first (labels, scale, output); then a larger model (Deep Learning §11.3)',
    numbers,
  );
}

/** Standard errors that a share must have changed by. */
const NOISES = 3;

/** Above it a loss can fall by half without a single answer that changes: the large class is said more surely. */
const LARGE = 0.7;

/** The share of the largest class; null: there are none. */
function majorityOf(prepared: PreparedData): number | null {
  const classes = exampleClasses(prepared);
  if (!classes) return null;
  const counts = new Map<number, number>();
  for (const c of classes) counts.set(c, (counts.get(c) ?? 0) + 1);
  return Math.max(...counts.values()) / classes.length;
}

/** A loss that weighs rare classes more falls while the share of errors rises, as it should. */
function weighed({ before, after }: ShortTraining): Finding {
  const text = `The loss went from ${short(before.loss)} to ${short(after.loss)}, the error on the same examples from ${short(before.error)} to ${short(after.error)}. The loss weighs the classes and the error does not, so they are not compared.`;
  return finding('direction', 'ok', text, null, {
    loss: [before.loss, after.loss],
    error: [before.error, after.error],
  });
}

/** Does a lower loss mean a lower error? @param majority share of the largest class; null: there are none. */
export function checkDirection(
  trained: ShortTraining,
  measure: ErrorMeasure,
  majority: number | null,
): Finding {
  const { before, after, validationBefore, validation, examples } = trained;
  const fall = (before.loss - after.loss) / Math.abs(before.loss);
  // Shares of a few examples go up and down by chance.
  const noise = (share: number, count: number) =>
    measure === 'misclassification'
      ? NOISES * Math.sqrt((2 * Math.max(share * (1 - share), 1 / count)) / count)
      : 0;
  const isWorse = (a: number, b: number, count: number) =>
    fall > FALL && b > 1.02 * a && b - a > noise(a, count);
  // A validation error alone rises where the model learns its examples by heart.
  const against =
    isWorse(before.error, after.error, examples.training) ||
    (validationBefore.error > 0 &&
      after.error > 0.97 * before.error &&
      isWorse(validationBefore.error, validation.error, examples.validation));
  const numbers = {
    loss: [before.loss, after.loss],
    error: [before.error, after.error],
    validationError: [validationBefore.error, validation.error],
  };
  const text = `While the loss went from ${short(before.loss)} to ${short(after.loss)}, the error on the same examples went from ${short(before.error)} to ${short(after.error)}.`;
  if (against && before.error > 0) {
    return finding(
      'direction',
      'problem',
      `${text} Training makes the answers worse.`,
      'look at the sign of the loss, the order of its arguments (targets, predictions), and the error',
      numbers,
    );
  }
  if (fall > 0.5 && before.error > 0 && after.error > 0.97 * before.error) {
    const isEven = measure === 'misclassification' && majority !== null && majority < LARGE;
    return finding(
      'direction',
      isEven ? 'problem' : 'advice',
      `${text} The error has not followed.`,
      isEven
        ? 'look at the sign of the loss, the order of its arguments (targets, predictions), and the error'
        : 'this is usual at first if one class is much larger than the others; else check whether loss and error measure the same',
      numbers,
    );
  }
  return finding('direction', 'ok', text, null, numbers);
}

/** The 1 % mark: updates of about a hundredth to a thousandth of their tensor (Deep Learning §11.5). */
export function checkRatios({ ratios, diverged }: ShortTraining): Finding {
  const table = ratios.map(({ tensor, ratio }) => `${tensor} ${percent(ratio)}`).join(', ');
  const text = `An update is, of its tensor: ${table || 'no tensor of rank 2 or more'}; about 0.1 % to 1 % is usual.`;
  const numbers = { ratios };
  const still = ratios.filter(({ moved }) => !moved).map(({ tensor }) => tensor);
  if (still.length > 0 && !diverged) {
    return finding(
      'updates',
      'problem',
      `${text} ${still.join(', ')} never moved.`,
      'does the loss depend on this layer? Look for stopped gradients and dead units',
      numbers,
    );
  }
  const high = ratios.some(({ ratio }) => ratio > 0.1);
  const low = ratios.length > 0 && ratios.every(({ ratio }) => ratio < 1e-4);
  if (!high && !low) return finding('updates', 'ok', text, null, numbers);
  const next = `${high ? 'lower' : 'raise'} learningRate; \`downpour lr-find\` finds one`;
  return finding('updates', 'advice', text, next, numbers);
}

/** Statistics of a minibatch of fewer are not those of others. */
const MODES_MIN = 8;
/** A factor of the loss: evaluations may differ from training by noise and dropout, not by so much. */
const MODES = 1.5;

function checkModes({ modes, diverged, losses }: ShortTraining, { layout }: Model): Finding {
  const { training, evaluation } = modes;
  const hasStatistics = layout.tensors.some(({ role }) => role === 'statistics');
  const text = `On the same examples the loss is ${short(training)} in training mode and ${short(evaluation)} in evaluation mode.`;
  const scale = Math.abs(losses[0] ?? 1);
  const apart =
    evaluation > training + (MODES - 1) * Math.abs(training) + 0.1 * scale ||
    !Number.isFinite(evaluation);
  if (diverged || !apart) return finding('modes', 'ok', text, null, modes);
  return finding(
    'modes',
    'problem',
    `${text} Evaluations, and the model in use, are worse than training shows.`,
    hasStatistics
      ? 'the moving averages of batch normalisation do not follow: look at its momentum (0.9 to 0.99), the size of minibatches (8 at least), and where its statistics are assigned'
      : 'look at what the model does with `training`: normalisation needs moving averages that are assigned in training (role statistics)',
    { ...modes, meanLoss: mean(losses) },
  );
}
