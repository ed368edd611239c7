import {
  type Answers,
  classCountOf,
  type Decisions,
  decide,
  probabilitiesOf,
} from '../shared/answers.ts';
import type { Examined, Features, Member } from './examined.ts';
import { type Gater, gaterCost, picksOf, trainGater } from './gater.ts';
import { answersOfExamples, fitTemperature, logLoss } from './refuse.ts';
import { meanOf } from './statistics.ts';

/**
 * Ways to make one answer of several models' (Deep Learning §7.11, §12.1.5). Whatever a way has to fit or
 * choose it takes from one set of examples; what it is worth is measured on another. Pure.
 */

export const COMBINATIONS = ['mean', 'vote', 'calibrated', 'controller', 'cascade'] as const;
export type Combination = (typeof COMBINATIONS)[number];

export interface CombineSettings {
  readonly combinations: readonly Combination[];
  /** What accuracy may be lost for a lower cost, as a share of the answers. */
  readonly tolerance: number;
  /** The accuracy of a cascade; null: what `tolerance` leaves of the second one's. */
  readonly accuracy: number | null;
  /** The recall that a cascade of yes and no must reach. */
  readonly recall: number;
  readonly seed: number;
}

/** What was fitted or chosen: enough to use each combination. Plain JSON. */
export interface FittedCombinations {
  /** The temperature of each member; empty where answers are numbers. */
  readonly temperatures: readonly number[];
  /** The temperature of the mean of their probabilities after those, which alone is not sure enough (Rahaman and Thiery 2021). */
  readonly pooled: number;
  /** Index of the member with the lowest log loss, or squared error. */
  readonly best: number;
  readonly gater: Gater | null;
  readonly cascades: readonly Cascade[];
}

/** First `first`; where it is not sure enough, `second`. */
export interface Cascade {
  readonly first: number;
  /** A member, or null: the calibrated mean of all. */
  readonly second: number | null;
  /**
   * Classes: confidence from which the first one's answer stands. Yes and no: probability of yes below
   * which it says no. Null: it never answers.
   */
  readonly threshold: number | null;
  /** Yes and no: probability from which the second one says yes; of classes null. */
  readonly acceptance: number | null;
}

/** The answers that a way gives. */
export interface CombinedAnswers {
  readonly name: string;
  readonly way: 'member' | 'average' | 'best' | Combination;
  /** Probabilities, shape [answers, classes], or values, shape [answers, width]; null: only decisions. */
  readonly outputs: Float64Array | null;
  /** Null for numbers. */
  readonly decisions: Decisions | null;
  /** Mean over the answers, in answers of the cheapest member. */
  readonly cost: number;
  /** Share of the answers that the first of a cascade gave, or of the most frequent pick. */
  readonly share: number | null;
  /** Index of the outcome that it is to be held against, besides the best single one's. */
  readonly raw?: number | undefined;
}

/** @param examples indices of some. */
export function examinedAt(all: Examined, examples: Int32Array): Examined {
  const take = (member: Member) => ({
    ...member,
    answers: answersOfExamples(member.answers, examples),
  });
  const { members, averages, features } = all;
  return {
    members: members.map(take),
    averages: averages.map(take),
    features: features && {
      width: features.width,
      values: Float32Array.from(
        Array.from(examples).flatMap((row) => [
          ...features.values.subarray(row * features.width, (row + 1) * features.width),
        ]),
      ),
    },
  };
}

/** Fits and chooses whatever the wanted combinations need. */
export function fitCombinations(examined: Examined, settings: CombineSettings): FittedCombinations {
  const { members } = examined;
  const isNumbers = members[0]!.answers.kind === 'numbers';
  const losses = members.map(({ answers }) =>
    isNumbers ? meanOf([...squaredErrors(valuesOf(answers), answers)]) : logLoss(answers, 1),
  );
  const best = losses.indexOf(Math.min(...losses));
  if (isNumbers) return { temperatures: [], pooled: 1, best, gater: null, cascades: [] };
  const temperatures = members.map(({ answers }) => fitTemperature(answers));
  const wants = (way: Combination) => settings.combinations.includes(way);
  const shares = members.map(({ answers }, i) => probabilitiesOf(answers, temperatures[i]!));
  const mean = asAnswers(meanArray(shares), members[0]!.answers);
  const pooled = fitTemperature(mean);
  const all = probabilitiesOf(mean, pooled);
  return {
    ...{ temperatures, pooled, best },
    gater:
      wants('controller') && examined.features
        ? trainGater({ members, shares, features: examined.features, best }, settings)
        : null,
    cascades: wants('cascade') ? fitCascades({ members, shares, all }, best, settings) : [],
  };
}

/** What each way answers: members, averages, the best one, then the wanted combinations. */
export function combine(
  { members, averages, features }: Examined,
  { temperatures, pooled, best, gater, cascades }: FittedCombinations,
  { combinations }: Pick<CombineSettings, 'combinations'>,
): CombinedAnswers[] {
  const wants = (way: Combination) => combinations.includes(way);
  const all = members.reduce((sum, { cost }) => sum + cost, 0);
  const alone = (
    member: Member,
    way: CombinedAnswers['way'],
    name = member.label,
    temperature = 1,
  ): CombinedAnswers => {
    const outputs = sharesOf(member.answers, temperature);
    return {
      name,
      way,
      outputs,
      ...decided(member.answers, outputs),
      cost: member.cost,
      share: null,
    };
  };
  const { answers } = members[0]!;
  const isNumbers = answers.kind === 'numbers';
  const raw = members.map((member) => sharesOf(member.answers));
  const outcomes = [
    ...members.map((member) => alone(member, 'member')),
    ...averages.map((member) => ({ ...alone(member, 'average'), raw: member.raw })),
    // It gets its own temperature: what the others are held against is as good as it can be made.
    alone(
      members[best]!,
      'best',
      isNumbers ? 'the best single one' : 'the best single one, with a temperature',
      temperatures[best],
    ),
  ];
  const add = (way: Combination, name: string, outputs: Float64Array) =>
    outcomes.push({ name, way, outputs, ...decided(answers, outputs), cost: all, share: null });
  if (wants('mean')) {
    add('mean', isNumbers ? 'mean' : 'mean of the probabilities', meanArray(raw));
  }
  if (isNumbers) return outcomes;
  if (wants('vote')) outcomes.push({ ...vote(raw, classCountOf(answers)), cost: all });
  const shares = members.map((member, i) => probabilitiesOf(member.answers, temperatures[i]!));
  const whole = probabilitiesOf(asAnswers(meanArray(shares), answers), pooled);
  if (wants('calibrated')) add('calibrated', 'calibrated mean', whole);
  if (gater && features) outcomes.push(controlled(members, shares, gater, features));
  for (const cascade of cascades) outcomes.push(cascaded({ members, shares, all: whole }, cascade));
  return outcomes;
}

/** Two outcomes of one way, on different examples, as one. */
export function concatenated(a: CombinedAnswers, b: CombinedAnswers): CombinedAnswers {
  const concat = (x: Float64Array, y: Float64Array) => {
    const all = new Float64Array(x.length + y.length);
    all.set(x);
    all.set(y, x.length);
    return all;
  };
  const counts = [a, b].map(({ decisions, outputs }) => (decisions?.classes ?? outputs!).length);
  const mean = (x: number, y: number) =>
    (x * counts[0]! + y * counts[1]!) / (counts[0]! + counts[1]!);
  return {
    ...a,
    outputs: a.outputs && b.outputs && concat(a.outputs, b.outputs),
    decisions: a.decisions &&
      b.decisions && {
        classes: Int32Array.from([...a.decisions.classes, ...b.decisions.classes]),
        confidence: concat(a.decisions.confidence, b.decisions.confidence),
      },
    cost: mean(a.cost, b.cost),
    share: a.share === null || b.share === null ? null : mean(a.share, b.share),
  };
}

const valuesOf = ({ outputs }: Answers) => Float64Array.from(outputs);
const sharesOf = (answers: Answers, temperature = 1) =>
  answers.kind === 'numbers' ? valuesOf(answers) : probabilitiesOf(answers, temperature);

/** Probabilities as if one model had given them. @param shares shape [answers, classes]. */
function asAnswers(shares: Float64Array, answers: Answers): Answers {
  const outputs = Float32Array.from(shares, (share) => Math.log(Math.max(share, 1e-30)));
  return { ...answers, kind: 'classes', width: shares.length / answers.count, outputs };
}

function decided(answers: Answers, outputs: Float64Array): { decisions: Decisions | null } {
  return { decisions: answers.kind === 'numbers' ? null : decide(outputs, classCountOf(answers)) };
}

/** Mean squared error of each answer. @param outputs shape [answers, width]. */
export function squaredErrors(outputs: Float64Array, { truths, count }: Answers): Float64Array {
  const width = outputs.length / count;
  const errors = new Float64Array(count);
  for (let i = 0; i < outputs.length; i++) {
    errors[Math.floor(i / width)]! += (outputs[i]! - truths[i]!) ** 2 / width;
  }
  return errors;
}

/** Element by element. */
export function meanArray(arrays: readonly Float64Array[]): Float64Array {
  const mean = new Float64Array(arrays[0]!.length);
  for (const array of arrays) {
    for (let i = 0; i < mean.length; i++) mean[i]! += array[i]! / arrays.length;
  }
  return mean;
}

/** The class that most members say; among equals the one that they find likelier on average. */
function vote(shares: readonly Float64Array[], classCount: number): Omit<CombinedAnswers, 'cost'> {
  const mean = meanArray(shares);
  const votes = new Float64Array(mean.length);
  for (const own of shares) {
    decide(own, classCount).classes.forEach((chosen, i) => {
      votes[i * classCount + chosen]! += 1 / shares.length;
    });
  }
  const order = votes.map((share, i) => share + 1e-6 * mean[i]!);
  const { classes } = decide(order, classCount);
  const confidence = Float64Array.from(classes, (chosen, i) => votes[i * classCount + chosen]!);
  return {
    name: 'vote',
    way: 'vote',
    outputs: null,
    decisions: { classes, confidence },
    share: null,
  };
}

function controlled(
  members: readonly Member[],
  shares: readonly Float64Array[],
  gater: Gater,
  features: Features,
): CombinedAnswers {
  const { answers } = members[0]!;
  const classCount = classCountOf(answers);
  const picks = picksOf(gater, members, features);
  const outputs = new Float64Array(shares[0]!.length);
  let cost = gaterCost(gater, members);
  const counts = members.map(() => 0);
  picks.forEach((pick, i) => {
    counts[pick]!++;
    cost += members[pick]!.cost / picks.length;
    const row = shares[pick]!.subarray(i * classCount, (i + 1) * classCount);
    outputs.set(row, i * classCount);
  });
  return {
    ...{ name: 'controller picks one', way: 'controller', outputs, ...decided(answers, outputs) },
    ...{ cost, share: Math.max(...counts) / picks.length },
  };
}

/** Members with their probabilities after temperatures, each one's and those of their mean. */
interface Calibrated {
  readonly members: readonly Member[];
  readonly shares: readonly Float64Array[];
  readonly all: Float64Array;
}

/** The cheapest one first, before the best single one (where that is another), and before all of them. */
function fitCascades(
  { members, shares, all }: Calibrated,
  best: number,
  settings: CombineSettings,
): Cascade[] {
  const cheapest = Math.min(...members.map(({ cost }) => cost));
  const first =
    members[best]!.cost === cheapest ? best : members.findIndex((m) => m.cost === cheapest);
  const seconds = first === best ? [null] : [best, null];
  const { answers } = members[0]!;
  return seconds.map((second) => {
    const after = second === null ? all : shares[second]!;
    const pair = { first: shares[first]!, second: after };
    const found =
      answers.kind === 'binary'
        ? detectorOf(pair, answers.truths, settings.recall)
        : { threshold: confidenceOf(pair, answers, settings), acceptance: null };
    return { first, second, ...found };
  });
}

/** Probabilities of both stages, shape [answers, classes]. */
interface Stages {
  readonly first: Float64Array;
  readonly second: Float64Array;
}

/**
 * The lowest confidence of the first stage from which its answers may stand: those, and the second stage's to
 * the rest, are as accurate as wanted. @returns null: not even the second stage alone is.
 */
export function confidenceOf(
  { first, second }: Stages,
  answers: Answers,
  { tolerance, accuracy }: Pick<CombineSettings, 'tolerance' | 'accuracy'>,
): number | null {
  const classCount = classCountOf(answers);
  const { truths } = answers;
  const [a, b] = [decide(first, classCount), decide(second, classCount)];
  const isRight = ({ classes }: Decisions, i: number) => (classes[i] === truths[i] ? 1 : 0);
  const order = Array.from(a.classes.keys()).sort((i, j) => a.confidence[j]! - a.confidence[i]!);
  let right = order.reduce((sum, i) => sum + isRight(b, i), 0);
  const wanted = (accuracy ?? right / order.length - tolerance) * order.length - 1e-9;
  let threshold: number | null = null;
  order.forEach((i, place) => {
    right += isRight(a, i) - isRight(b, i);
    const next = order[place + 1];
    const isTie = next !== undefined && a.confidence[next] === a.confidence[i];
    if (!isTie && right >= wanted) threshold = a.confidence[i]!;
  });
  return threshold;
}

/**
 * Two detectors, one behind the other (Viola and Jones 2001; Deep Learning §12.1.5). Of the positives that may be
 * missed, the first may reject half; the second says yes as seldom as the recall allows.
 */
export function detectorOf(
  { first, second }: Stages,
  truths: ArrayLike<number>,
  recall: number,
): { readonly threshold: number | null; readonly acceptance: number | null } {
  const positives: number[] = [];
  for (let i = 0; i < truths.length; i++) if (truths[i] === 1) positives.push(i);
  const yes = (shares: Float64Array, i: number) => shares[2 * i + 1]!;
  const reached = (values: readonly number[], count: number) =>
    values.toSorted((a, b) => b - a)[Math.max(0, count - 1)];
  const keep = Math.ceil(((1 + recall) / 2) * positives.length - 1e-9);
  const threshold = reached(
    positives.map((i) => yes(first, i)),
    keep,
  );
  if (threshold === undefined) return { threshold: 0, acceptance: 0.5 };
  const passed = positives.filter((i) => yes(first, i) >= threshold);
  const acceptance = reached(
    passed.map((i) => yes(second, i)),
    Math.ceil(recall * positives.length - 1e-9),
  );
  return { threshold, acceptance: acceptance ?? 0.5 };
}

function cascaded(
  { members, shares, all }: Calibrated,
  { first, second, threshold, acceptance }: Cascade,
): CombinedAnswers {
  const { answers } = members[0]!;
  const classCount = classCountOf(answers);
  const own = decide(shares[first]!, classCount);
  const after = second === null ? all : shares[second]!;
  const outputs = after.slice();
  const { classes, confidence } = decide(after, classCount);
  let stands = 0;
  for (let i = 0; i < answers.count; i++) {
    const yes = shares[first]![2 * i + 1]!;
    const isLast =
      acceptance === null ? own.confidence[i]! >= (threshold ?? Infinity) : yes < (threshold ?? 0);
    if (isLast) {
      stands++;
      outputs.set(shares[first]!.subarray(i * classCount, (i + 1) * classCount), i * classCount);
    }
    if (acceptance !== null) classes[i] = !isLast && after[2 * i + 1]! >= acceptance ? 1 : 0;
    else if (isLast) classes[i] = own.classes[i]!;
    confidence[i] = outputs[i * classCount + classes[i]!]!;
  }
  const whole = members.reduce((sum, { cost }) => sum + cost, 0);
  const rest = second === null ? whole - members[first]!.cost : members[second]!.cost;
  return {
    name: `cascade: ${members[first]!.label}, then ${second === null ? 'all' : members[second]!.label}`,
    ...{ way: 'cascade', outputs, decisions: { classes, confidence } },
    cost: members[first]!.cost + (1 - stands / answers.count) * rest,
    share: stands / answers.count,
  };
}

/** Mean product and square of the errors of members (Deep Learning §7.11, eq. 7.51). */
export interface Moments {
  readonly count: number;
  /** v: mean squared error of a member. */
  readonly variance: number;
  /** c: mean product of the errors of two members. */
  readonly covariance: number;
}

/**
 * Errors are those of the numbers answered, or of the probabilities. The squared error of the mean of k members
 * is then v/k + (k − 1)/k · c; the formula holds for the very members exactly, and for others like them in
 * expectation.
 */
export function momentsOf(members: readonly Member[]): Moments {
  const errors = members.map(({ answers }) => errorsOf(answers));
  const count = members.length;
  const n = errors[0]!.length;
  let [variance, whole] = [0, 0];
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (const own of errors) {
      sum += own[i]!;
      variance += own[i]! ** 2 / (count * n);
    }
    whole += sum ** 2 / n;
  }
  const covariance = (whole - count * variance) / (count * (count - 1));
  return { count, variance, covariance };
}

/** v/k + (k − 1)/k · c. */
export function expectedSquaredError({ variance, covariance }: Omit<Moments, 'count'>, k: number) {
  return variance / k + ((k - 1) / k) * covariance;
}

/** Measured squared error of the mean of the first k members, k from 1. */
export function squaredErrorsOfMeans(members: readonly Member[]): number[] {
  const errors = members.map(({ answers }) => errorsOf(answers));
  const sum = new Float64Array(errors[0]!.length);
  return errors.map((own, k) => {
    own.forEach((error, i) => {
      sum[i]! += error;
    });
    return sum.reduce((total, error) => total + (error / (k + 1)) ** 2, 0) / sum.length;
  });
}

/** What is answered less what is true, for each output; for each probability where answers are classes. */
function errorsOf(answers: Answers): Float64Array {
  const errors = sharesOf(answers);
  const { truths, count } = answers;
  if (answers.kind === 'numbers') return errors.map((value, i) => value - truths[i]!);
  const classCount = classCountOf(answers);
  for (let i = 0; i < count; i++) errors[i * classCount + truths[i]!]! -= 1;
  return errors;
}
