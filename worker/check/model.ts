import { random } from '../../shared/random.ts';
import type { TableRows } from '../../shared/rows.ts';
import type { Minibatch, PreparedData } from '../data/examples.ts';
import { sliceMinibatch } from '../data/gather.ts';
import type { Experiment } from '../experiment.ts';
import type { LayerOutput, Model, Output } from '../model.ts';
import type { RowSource } from '../rows/model-rows.ts';
import { exampleClasses, sampleOf } from './data.ts';
import { type Finding, finding, norm, percent, short, tooFew } from './finding.ts';
import { type CheckSubject, type TensorLosses, tensorLosses } from './group-losses.ts';

/** What can be said of a model with its initial parameters, before any training. */

const GRADIENT_EXAMPLES = 16;
/** Enough that a unit which is silent on all of them is silent on nearly all there are. */
const ACTIVATION_EXAMPLES = 256;
/** On fewer examples a healthy unit is silent by chance. */
const ACTIVATIONS_MIN = 8;
const LOSS_EXAMPLES = 512;

/** @param model initialised with `seed`, and left so. */
export async function checkModel(subject: CheckSubject, model: Model): Promise<Finding[]> {
  const { experiment, prepared, rows } = subject;
  const { seed } = subject.config;
  // Another seed first: the model then holds its own initial parameters again.
  const other = (await model.initialise(seed + 1)).slice();
  const initial = (await model.initialise(seed)).slice();
  model.load(initial);
  const sample = sampleOf(prepared, 'train', ACTIVATION_EXAMPLES);
  const output = model.predicts ? await model.predict(sample) : null;
  const last = (await model.activations(sample)).at(-1)?.activation;
  const losses = await tensorLosses(subject, model);
  const gradient = await checkGradient({ prepared, model, losses, rows }, initial, seed).finally(
    () => losses.dispose(),
  );
  return [
    checkFrozen(model, initial, other),
    gradient,
    await checkInitialLoss(experiment, prepared, model),
    ...(output ? [checkOutput(experiment, prepared, output, last)] : []),
    ...(output ? [await checkIndependence(prepared, model)] : []),
    ...(await checkActivations(prepared, model, 'activations')),
  ];
}

/** A frozen tensor with random values never learns; with the same ones for every seed it was trained. */
function checkFrozen({ layout }: Model, initial: Float32Array, other: Float32Array): Finding {
  const frozen = layout.tensors.filter(({ role }) => role === 'frozen');
  const isRandom = ({ offset, size }: (typeof frozen)[number]) =>
    initial.subarray(offset, offset + size).some((value, i) => value !== other[offset + i]);
  const stuck = frozen.filter(isRandom).map(({ name }) => name);
  const numbers = { frozen: frozen.map(({ name }) => name), random: stuck };
  if (stuck.length > 0) {
    return finding(
      'frozen',
      'problem',
      `${stuck.join(', ')} ${stuck.length === 1 ? 'is' : 'are'} not trained and random: the layer passes on noise permanently.`,
      'set trainable to true; if random features are meant (Deep Learning §9.9), --accept frozen',
      numbers,
    );
  }
  const text =
    frozen.length === 0
      ? `All ${layout.tensors.length} tensors take part in training.`
      : `${frozen.length} tensors are not trained and the same for every seed: ${numbers.frozen.join(', ')}.`;
  return finding(
    'frozen',
    frozen.length === 0 ? 'ok' : 'advice',
    text,
    'this is right for a pretrained part; else set trainable to true',
    numbers,
  );
}

/** Steps along a direction, as shares of the tensor's size. */
const STEPS = [0.1, 0.03, 0.01, 0.003] as const;
/** Rounding of a loss in f32, in its own size. */
const ROUNDING = 2e-5;
const GRADIENT_OK = 0.03;
const GRADIENT_BAD = 0.15;
const TENSORS_MAX = 50;

/** What the gradient is compared with: the loss as a function of one tensor. */
interface Slope {
  readonly name: string;
  readonly values: Float32Array;
  readonly expected: Float32Array;
  lossAt(values: Float32Array): number | Promise<number>;
}

interface GradientSubject {
  readonly prepared: PreparedData;
  /** Rows of the tables; null: there are none. */
  readonly rows: RowSource | null;
  readonly model: Model;
  readonly losses: TensorLosses;
}

/**
 * The gradient against central differences of the loss, tensor by tensor, along the gradient itself and
 * along a random direction near it (Deep Learning §11.5: "Compare back-propagated derivatives to numerical
 * derivatives"). Dropout has the same masks at both ends.
 */
async function checkGradient(
  { prepared, model, losses, rows }: GradientSubject,
  initial: Float32Array,
  seed: number,
): Promise<Finding> {
  if (model.givesGradients) {
    const text =
      'The objective returns the gradients, which need not be the slope of a loss: they were not compared with finite differences.';
    return finding('gradient', 'ok', text, '');
  }
  const minibatch = sampleOf(prepared, 'train', GRADIENT_EXAMPLES);
  const lossOf = async (own: Model) =>
    (await own.step(minibatch, seed)).loss + (await own.penalty());
  model.load(initial);
  const step = await model.step(minibatch, seed);
  const gradient = step.gradient.slice();
  const draw = random(seed, 72);
  const results: { tensor: string; difference: number; silent: boolean }[] = [];
  const tensors = model.layout.tensors.filter(({ role }) => role === 'trainable');
  const slopes = tensors.slice(0, TENSORS_MAX).map(({ name, offset, size }): Slope => {
    const own = losses.modelOf(name);
    return {
      name,
      values: initial.subarray(offset, offset + size),
      expected: gradient.subarray(offset, offset + size),
      lossAt(values) {
        if (!own) return 0;
        const moved = initial.slice();
        moved.set(values, offset);
        own.load(moved);
        return lossOf(own);
      },
    };
  });
  slopes.push(...(await slopesOfTables(model, step.rows ?? [], rows, initial, lossOf)));
  if (slopes.length === 0) {
    const next = 'set trainable to true where the model is to learn';
    return finding('gradient', 'problem', 'No tensor of the model is trained.', next);
  }
  for (const { name, values, expected, lossAt } of slopes) {
    const size = values.length;
    const slope = norm(expected);
    const scale = Math.max(norm(values), 0.05 * Math.sqrt(size));
    const random_ = Float64Array.from({ length: size }, () => draw.normal());
    const near = Float64Array.from(expected, (g) => Math.sign(g) * draw.uniform());
    const directions = slope > 0 ? [Float64Array.from(expected), near] : [random_];
    let worst = 0;
    for (const direction of directions) {
      const length = norm(direction);
      const predicted = direction.reduce((sum, d, i) => sum + d * expected[i]!, 0) / length;
      let best = Infinity;
      for (const share of STEPS) {
        const step = share * scale;
        const move = (by: number) =>
          lossAt(values.map((value, i) => value + (by * direction[i]!) / length));
        const [up, down] = [await move(step), await move(-step)];
        const seen = up - down;
        const wanted = 2 * step * predicted;
        const noise = ROUNDING * Math.max(1e-3, Math.abs(up), Math.abs(down));
        const size_ = Math.max(Math.abs(seen), Math.abs(wanted));
        best = Math.min(
          best,
          Math.max(0, Math.abs(seen - wanted) - noise) / Math.max(size_, noise),
        );
      }
      worst = Math.max(worst, best);
    }
    results.push({ tensor: name, difference: worst, silent: slope === 0 });
  }
  model.load(initial);
  model.rows?.load(null);
  const wrong = results.filter(({ difference }) => !(difference <= GRADIENT_BAD));
  const doubtful = results.filter(({ difference }) => difference > GRADIENT_OK);
  const worst = results.reduce((a, b) => (b.difference > a.difference ? b : a));
  const numbers = { tensors: results };
  if (wrong.length > 0) {
    const what = wrong
      .map((r) => `${r.tensor} (${r.silent ? 'gradient 0' : percent(r.difference)})`)
      .join(', ');
    return finding(
      'gradient',
      'problem',
      `The gradient is not the slope of the loss for ${what}.`,
      'look for stopped or custom gradients in the model and the loss (tf.customGrad, values read back into JavaScript), and for randomness that no seed governs',
      numbers,
    );
  }
  return finding(
    'gradient',
    doubtful.length > 0 ? 'advice' : 'ok',
    `Gradients of ${results.length} tensors agree with finite differences to ${percent(worst.difference)}${worst.difference > 0 ? ` (${worst.tensor})` : ''}.`,
    'kinks (ReLU, max-pooling) explain a few per cent; else look at that layer',
    numbers,
  );
}

/** The loss as a function of the rows that a minibatch has of each table. @param gradients of these rows. */
async function slopesOfTables(
  model: Model,
  gradients: readonly TableRows[],
  source: RowSource | null,
  initial: Float32Array,
  lossOf: (model: Model) => Promise<number>,
): Promise<Slope[]> {
  const tables = model.rows;
  if (!tables || !source) return [];
  const rows = await source(gradients.map(({ keys }) => keys));
  return tables.shapes.map(({ name }, t) => ({
    name: `table ${name}`,
    values: rows[t]!.values,
    expected: gradients[t]!.values.slice(),
    lossAt(values) {
      model.load(initial);
      tables.load(rows.map((own, i) => (i === t ? { ...own, values } : own)));
      return lossOf(model);
    },
  }));
}

/** ln K for K classes: a network that knows nothing yet should say so. */
async function checkInitialLoss(
  { loss }: Experiment,
  prepared: PreparedData,
  model: Model,
): Promise<Finding> {
  const sample = sampleOf(prepared, 'train', LOSS_EXAMPLES);
  const measured = await model.measure(sample);
  return judgeInitialLoss({
    ...{ loss, measured, classCount: prepared.classCount },
    ...guessesOf(priorsOf(prepared, loss), model.classWeights.targets),
    constant: constantLoss(loss, sample),
  });
}

export interface InitialLoss {
  readonly loss: Experiment['loss'];
  readonly measured: { readonly loss: number; readonly error: number };
  readonly classCount: number | null;
  /** What a guess that knows how frequent each class is costs; null: no classes. */
  readonly priors: number | null;
  /** What an example counts on average, where classes have weights. */
  readonly weight?: number;
  /** What the best constant answer costs; null: not known of this loss. */
  readonly constant: number | null;
}

export function judgeInitialLoss(given: InitialLoss): Finding {
  const { loss, measured, classCount, priors, constant, weight = 1 } = given;
  const isYesNo = loss === 'sigmoidCrossEntropy';
  // Nobody knows what guessing costs by a loss of the experiment's own.
  const isCross = loss === 'softmaxCrossEntropy' || loss === 'negativeLogLikelihood';
  const expected = isYesNo
    ? weight * Math.LN2
    : isCross && classCount !== null
      ? weight * Math.log(classCount)
      : null;
  const numbers = { loss: measured.loss, error: measured.error, expected, priors, constant };
  const guesses = isYesNo ? 'a guess between two classes' : `${classCount} equally likely classes`;
  const text = `The loss with initial parameters is ${short(measured.loss)}${expected === null ? '' : `; for ${guesses} it is ${short(expected)}`}.`;
  if (!Number.isFinite(measured.loss)) {
    const next = 'look at the scale of the inputs, the initial values, and logarithms in the loss';
    return finding('initial-loss', 'problem', text, next, numbers);
  }
  if (measured.loss < 0) {
    const isDensity = classCount === null && typeof loss !== 'string';
    return isDensity
      ? finding(
          'initial-loss',
          'advice',
          `${text} It is below zero.`,
          'this is correct for the likelihood of a density; else check the sign of the loss: training makes the loss as low as possible',
          numbers,
        )
      : finding(
          'initial-loss',
          'problem',
          `${text} This loss cannot be below zero.`,
          'check the sign of the loss: training makes the loss as low as possible',
          numbers,
        );
  }
  if (expected !== null) {
    const high = measured.loss / expected;
    // A last bias that begins at the frequencies of the classes knows them, and nothing else.
    const low = measured.loss / Math.min(expected, priors ?? expected);
    if (high > 1.5) {
      const next = 'make the last layer start smaller (initial values, scale of its inputs)';
      return finding('initial-loss', high > 3 ? 'problem' : 'advice', text, next, numbers);
    }
    if (low < 0.7) {
      const next =
        'an untrained model cannot do better than guessing: do the inputs contain the target?';
      return finding('initial-loss', low < 0.3 ? 'problem' : 'advice', text, next, numbers);
    }
    return finding('initial-loss', 'ok', text, null, numbers);
  }
  if (constant === null) return finding('initial-loss', 'ok', text, null, numbers);
  if (constant === 0) {
    const same = `${text} The targets looked at are all the same, so there is no constant answer to compare it with.`;
    return finding('initial-loss', 'ok', same, null, numbers);
  }
  const more = `${text} The loss of the best constant answer is ${short(constant)}.`;
  return finding(
    'initial-loss',
    measured.loss > 100 * constant ? 'advice' : 'ok',
    more,
    'standardise the targets, or initialise the bias of the last layer with their mean',
    numbers,
  );
}

/**
 * The entropy of the classes' frequencies, nats. With weights, frequencies are those of the weighed examples, and all counts
 * as much as an example does on average.
 * @param shares of each class.
 */
export function guessesOf(
  shares: readonly number[] | null,
  weights: readonly number[] | undefined,
): Pick<InitialLoss, 'priors' | 'weight'> {
  if (!shares) return { priors: null };
  const weighed = shares.map((share, c) => share * (weights?.[c] ?? 1));
  const weight = weighed.reduce((a, b) => a + b, 0);
  const priors = weighed.reduce((sum, w) => (w > 0 ? sum - w * Math.log(w / weight) : sum), 0);
  return { priors, weight };
}

/** The share of each class in the training part; null: there are no classes. */
function priorsOf(prepared: PreparedData, loss: Experiment['loss']): number[] | null {
  const shares: number[] = [];
  if (loss === 'sigmoidCrossEntropy') {
    const { values } = prepared.train.targets;
    let yes = 0;
    for (let i = 0; i < values.length; i++) yes += values[i]! / values.length;
    shares.push(1 - yes, yes);
  } else {
    const classes = exampleClasses(prepared);
    if (!classes) return null;
    shares.push(...new Array<number>(prepared.classCount!).fill(0));
    for (const c of classes) shares[c]! += 1 / classes.length;
  }
  return shares;
}

/** What answering the mean (median) of the targets costs; null for other losses. */
export function constantLoss(loss: Experiment['loss'], { targets, targetShape }: Minibatch) {
  if (loss !== 'meanSquaredError' && loss !== 'meanAbsoluteError') return null;
  const size = Math.max(
    1,
    targetShape.reduce((a, b) => a * b, 1),
  );
  let sum = 0;
  for (let f = 0; f < size; f++) {
    const column = Array.from(targets.filter((_, i) => i % size === f)).sort((a, b) => a - b);
    const middle =
      loss === 'meanAbsoluteError'
        ? column[column.length >> 1]!
        : column.reduce((a, b) => a + b, 0) / column.length;
    for (const y of column) {
      sum += loss === 'meanAbsoluteError' ? Math.abs(y - middle) : (y - middle) ** 2;
    }
  }
  return sum / targets.length;
}

const SIGMOIDS: readonly string[] = ['sigmoid', 'hardSigmoid'];
/** So many values that lie between 0 and 1 by chance are rare enough. */
const VALUES_MIN = 32;

/**
 * Losses take logits: what has been through a softmax or sigmoid already learns slowly or not at all.
 * @param last activation of the last layer; null: none, undefined: not known.
 */
export function checkOutput(
  { loss }: Pick<Experiment, 'loss'>,
  { classCount }: Pick<PreparedData, 'classCount'>,
  { values, shape }: Output,
  last?: string | null,
): Finding {
  const width = shape.at(-1) ?? 1;
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const sums: number[] = [];
  if (width > 1) {
    for (let i = 0; i < values.length; i += width) {
      sums.push(values.subarray(i, i + width).reduce((a, b) => a + b, 0));
    }
  }
  const isSoftmax = low >= 0 && sums.length > 0 && sums.every((sum) => Math.abs(sum - 1) < 1e-3);
  const isBetween = low >= 0 && high <= 1 && high > low && values.length >= VALUES_MIN;
  // Logits can lie there too, of a layer that is known to be linear.
  const isSigmoid =
    !isSoftmax && (last == null ? last === undefined && isBetween : SIGMOIDS.includes(last));
  const numbers = { low, high, isSoftmax };
  const text = `Predictions are from ${short(low)} to ${short(high)}`;
  const next = "end the model in logits: leave out the last layer's activation";
  if (loss === 'softmaxCrossEntropy' && isSoftmax) {
    const why = `${text} and add up to 1: the model ends in a softmax, and the loss has another inside (Deep Learning §6.2.2.3).`;
    return finding('output', 'problem', why, next, numbers);
  }
  if (loss === 'sigmoidCrossEntropy' && (isSigmoid || isSoftmax)) {
    const why = `${text}: the model ends in a sigmoid, and the loss has another inside (Deep Learning §6.2.2.2).`;
    return finding('output', 'problem', why, next, numbers);
  }
  const isDistance = loss === 'meanSquaredError' || loss === 'meanAbsoluteError';
  if (isDistance && (isSoftmax || (classCount !== null && isSigmoid))) {
    const why = `${text}${isSoftmax ? ' and add up to 1' : ''}, with loss ${loss}: if such an output is confident and wrong, the gradient is nearly 0 (Deep Learning §6.2.2).`;
    const better = "end the model in logits and use loss 'softmaxCrossEntropy'";
    return finding('output', 'advice', why, better, numbers);
  }
  return finding('output', 'ok', `${text}.`, null, numbers);
}

/** Asked together and alone. */
const NEIGHBOURS = 8;

/** In an evaluation the answer to an example must not depend on its neighbours in the minibatch. */
async function checkIndependence(prepared: PreparedData, model: Model): Promise<Finding> {
  const count = Math.min(NEIGHBOURS, prepared.train.count);
  if (count < 2) {
    return tooFew(
      'independence',
      'whether a prediction depends on the other examples of the minibatch',
      count,
      2,
    );
  }
  const together = sampleOf(prepared, 'train', count);
  const all = await model.predict(together);
  const outputSize = all.values.length / count;
  const scale = Math.max(1e-6, norm(all.values) / Math.sqrt(all.values.length));
  let worst = 0;
  for (let i = 0; i < count; i++) {
    const { values } = await model.predict(sliceMinibatch(together, i, i + 1));
    for (let j = 0; j < outputSize; j++) {
      const difference = Math.abs(values[j]! - all.values[i * outputSize + j]!) / scale;
      if (!(difference <= worst)) worst = difference;
    }
  }
  const numbers = { difference: worst, examples: count };
  const text = `Predictions for one example alone and among ${count} differ by ${percent(worst)}.`;
  if (worst < 0.01) return finding('independence', 'ok', text, null, numbers);
  return finding(
    'independence',
    'problem',
    `${text} With training mode off they must be the same.`,
    "batch normalisation must use its moving averages in evaluations (Deep Learning §8.7.1): heed predict's `training`",
    numbers,
  );
}

/** A unit's share of the examples that counts as saturated: its slope there is below a fiftieth. */
const SATURATED: Readonly<Record<string, (value: number) => boolean>> = {
  tanh: (a) => Math.abs(a) > 0.99,
  sigmoid: (a) => a < 0.01 || a > 0.99,
  hardSigmoid: (a) => a <= 0 || a >= 1,
};
const RECTIFIERS = ['relu', 'relu6'];

export interface LayerState {
  readonly layer: string;
  readonly activation: string | null;
  /** Share of the units that are the same, or 0, for every example. */
  readonly dead: number;
  /** Share of all values; null: the activation has no flat ends. */
  readonly saturated: number | null;
  /** Over the examples, mean over the units. */
  readonly deviation: number;
}

/** Deep Learning §8.4: the range of activations over a minibatch tells whether the initial scale is right. */
export async function checkActivations(
  prepared: PreparedData,
  model: Model,
  check: 'activations' | 'activations-trained',
): Promise<Finding[]> {
  const { count } = prepared.train;
  if (count < ACTIVATIONS_MIN) {
    return [tooFew(check, 'dead units from rarely active ones', count, ACTIVATIONS_MIN)];
  }
  const examples = Math.min(ACTIVATION_EXAMPLES, count);
  const outputs = await model.activations(sampleOf(prepared, 'train', ACTIVATION_EXAMPLES));
  const layers = outputs.filter(({ kind }) => !PASSIVE.includes(kind)).map(layerState);
  if (layers.length === 0) return [];
  const when = check === 'activations' ? 'At initialisation' : 'After the trial';
  const numbers = { layers };
  const dead = layers.filter((l) => l.dead > 0.5);
  const flat = layers.filter((l) => (l.saturated ?? 0) > 0.5);
  const some = layers.filter((l) => l.dead > 0.2 || (l.saturated ?? 0) > 0.2);
  const spread = layers.map(({ deviation }) => deviation).filter((d) => d > 0);
  const wide = spread.length > 1 && Math.max(...spread) > 1000 * Math.min(...spread);
  const list = (of: readonly LayerState[], what: (l: LayerState) => string) =>
    of.map((l) => `${l.layer} (${what(l)})`).join(', ');
  const table = layers.map((l) => `${l.layer} ${short(l.deviation)}`).join(', ');
  if (dead.length > 0) {
    const text = `${when} most units are dead (the same output for all ${examples} examples) in ${list(dead, (l) => percent(l.dead))}.`;
    const next =
      'look at the biases and the scale of initial values and inputs (heNormal for ReLU, biases near 0); use a lower learning rate if they die in training; leaky ReLU does not die';
    return [finding(check, 'problem', text, next, numbers)];
  }
  if (flat.length > 0) {
    const text = `${when} most values are at the flat ends of the activation in ${list(flat, (l) => percent(l.saturated!))}: their gradients vanish.`;
    const next = 'smaller initial values (glorotUniform), inputs near 1, or ReLU';
    return [finding(check, 'problem', text, next, numbers)];
  }
  if (some.length > 0 || wide) {
    const text = `${when}: ${some.length > 0 ? `dead or saturated ${list(some, (l) => percent(Math.max(l.dead, l.saturated ?? 0)))}; ` : ''}standard deviation over examples ${table}.`;
    const next =
      'choose the initial scale so that activations neither fade nor grow from layer to layer (Deep Learning §8.4); if a deep network is hard to optimise, use batch normalisation (§11.2)';
    return [finding(check, 'advice', text, next, numbers)];
  }
  const text = `${when} no layer is dead or saturated; standard deviation over examples ${table}.`;
  return [finding(check, 'ok', text, null, numbers)];
}

/** They show what the layer before them has. */
export const PASSIVE = [
  'Flatten',
  'Dropout',
  'Reshape',
  'Permute',
  'MaxPooling2D',
  'AveragePooling2D',
];

/** What the values that a layer gives say of its state. */
export function layerState({ layer, activation, values, shape }: LayerOutput): LayerState {
  const units = shape.at(-1) ?? 1;
  const rows = values.length / units;
  let [dead, deviations] = [0, 0];
  const isRectifier = activation !== null && RECTIFIERS.includes(activation);
  for (let u = 0; u < units; u++) {
    let [sum, squares, low, high] = [0, 0, Infinity, -Infinity];
    for (let i = u; i < values.length; i += units) {
      const a = values[i]!;
      sum += a;
      squares += a * a;
      if (a < low) low = a;
      if (a > high) high = a;
    }
    if (high === low || (isRectifier && high === 0)) dead++;
    deviations += Math.sqrt(Math.max(0, squares / rows - (sum / rows) ** 2));
  }
  const isFlat = activation === null ? undefined : SATURATED[activation];
  const saturated = isFlat ? values.filter(isFlat).length / values.length : null;
  return { layer, activation, dead: dead / units, saturated, deviation: deviations / units };
}
