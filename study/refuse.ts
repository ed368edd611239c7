import {
  type Answers,
  classCountOf,
  type Decisions,
  decide,
  probabilitiesOf,
  takeAnswers,
} from '../shared/answers.ts';
import { permutation } from '../shared/random.ts';
import { percent } from '../shared/text.ts';
import { chart } from './plot.ts';
import { numberText, type Report } from './report.ts';
import { shareInterval } from './statistics.ts';

/**
 * Refusing to answer (Deep Learning §11.1): a model that leaves the examples it is unsure of to somebody
 * else answers the others better. Coverage is the share that it answers. How sure it is, is the probability
 * of its answer, after one temperature has been fitted to it (Guo et al. 2017, arXiv:1706.04599).
 *
 * Whatever is fitted or chosen on one half of the examples is measured on the other, and the other way round.
 */

export interface RefuseSettings {
  readonly name: string;
  readonly part: string;
  /** The accuracies wanted of the answers that are given, from 0 to 1. */
  readonly accuracies: readonly number[];
  /** Shares of the examples that are answered. */
  readonly coverages: readonly number[];
  /** The seed that divides the examples into halves. */
  readonly seed: number;
}

/** −log p of the truth, mean over the answers. */
export function logLoss(answers: Answers, temperature: number): number {
  const losses = logLosses(probabilitiesOf(answers, temperature), answers.truths);
  return losses.reduce((a, b) => a + b, 0) / answers.count;
}

/** −log p of the truth of each answer. @param shares shape [truths.length, classes]. */
export function logLosses(shares: Float64Array, truths: ArrayLike<number>): Float64Array {
  const classes = shares.length / truths.length;
  return Float64Array.from(truths, (truth, i) => {
    return -Math.log(Math.max(shares[i * classes + truth]!, 1e-300));
  });
}

/**
 * The temperature of the lowest log loss, by golden sections of its logarithm, from 1/20 to 20. A few answers that are all right
 * say that the model cannot be sure enough. So its logarithm has a normal prior of deviation 1, which weighs as much as one or two
 * answers: of 15 flowers of iris, all right, the temperature was 1/20, and the log loss on 15 others rose from 0.11 to 1.63.
 */
export function fitTemperature(answers: Answers): number {
  const golden = (Math.sqrt(5) - 1) / 2;
  let [low, high] = [Math.log(1 / 20), Math.log(20)];
  const at = (x: number) => logLoss(answers, Math.exp(x)) + x ** 2 / (2 * answers.count);
  let [a, b] = [high - golden * (high - low), low + golden * (high - low)];
  let [lossA, lossB] = [at(a), at(b)];
  while (high - low > 1e-3) {
    if (lossA < lossB) {
      [high, b, lossB] = [b, a, lossA];
      a = high - golden * (high - low);
      lossA = at(a);
    } else {
      [low, a, lossA] = [a, b, lossB];
      b = low + golden * (high - low);
      lossB = at(b);
    }
  }
  return Math.exp((low + high) / 2);
}

/** Answers in the order of how sure the model is. */
export interface Ranked {
  /** Falling. */
  readonly confidence: Float64Array;
  readonly right: Uint8Array;
}

export function rank({ classes, confidence }: Decisions, truths: ArrayLike<number>): Ranked {
  const order = Array.from(confidence.keys()).sort((a, b) => confidence[b]! - confidence[a]!);
  return {
    confidence: Float64Array.from(order, (i) => confidence[i]!),
    right: Uint8Array.from(order, (i) => (classes[i] === truths[i] ? 1 : 0)),
  };
}

export interface CalibrationBin {
  readonly confidence: number;
  readonly accuracy: number;
  readonly count: number;
}

/**
 * Expected calibration error: how far the accuracy is from the confidence, mean over 15 bins of equal width.
 * 0: of answers given with 80 % confidence 80 % are right.
 */
export function calibration({ confidence, right }: Ranked, bins = 15) {
  const sums = Array.from({ length: bins }, () => ({ confidence: 0, right: 0, count: 0 }));
  confidence.forEach((value, i) => {
    const bin = sums[Math.min(bins - 1, Math.floor(value * bins))]!;
    bin.confidence += value;
    bin.right += right[i]!;
    bin.count++;
  });
  const filled = sums
    .filter(({ count }) => count > 0)
    .map(
      ({ count, ...bin }): CalibrationBin => ({
        ...{ count, confidence: bin.confidence / count, accuracy: bin.right / count },
      }),
    );
  const error = filled.reduce(
    (sum, bin) => sum + (bin.count / confidence.length) * Math.abs(bin.accuracy - bin.confidence),
    0,
  );
  return { error, bins: filled };
}

/**
 * The lowest threshold at which the answers given are as accurate as wanted: the most coverage. Ties go
 * together. Infinity: not even the surest are.
 */
export function thresholdFor({ confidence, right }: Ranked, accuracy: number): number {
  let [found, good] = [Infinity, 0];
  for (let i = 0; i < confidence.length; i++) {
    good += right[i]!;
    if (confidence[i + 1] === confidence[i]) continue;
    if (good / (i + 1) >= accuracy) found = confidence[i]!;
  }
  return found;
}

/** The threshold above which a share of the answers lies. */
export function thresholdCovering({ confidence }: Ranked, coverage: number): number {
  const count = Math.min(confidence.length, Math.ceil(coverage * confidence.length));
  return count === 0 ? Infinity : confidence[count - 1]!;
}

/** What a threshold gives on some answers. */
export function answered({ confidence, right }: Ranked, threshold: number) {
  let [given, good] = [0, 0];
  for (let i = 0; i < confidence.length && confidence[i]! >= threshold; i++) {
    given++;
    good += right[i]!;
  }
  return { given, right: good, of: confidence.length };
}

/** Points of accuracy over coverage, about 200, with the confidence that answers start from. */
function coverageCurve({ confidence, right }: Ranked) {
  const points: { threshold: number; coverage: number; accuracy: number }[] = [];
  const every = Math.max(1, Math.floor(right.length / 200));
  let good = 0;
  for (let i = 0; i < right.length; i++) {
    good += right[i]!;
    const isLast = i === right.length - 1;
    if (((i + 1) % every === 0 && i >= 4) || isLast) {
      const coverage = (i + 1) / right.length;
      points.push({ threshold: confidence[i]!, coverage, accuracy: good / (i + 1) });
    }
  }
  return points;
}

/** The examples of two halves, by a seed. */
export function halfRows(examples: number, seed: number): [Int32Array, Int32Array] {
  const order = permutation(seed, 1, examples);
  const middle = Math.floor(order.length / 2);
  return [order.subarray(0, middle), order.subarray(middle)];
}

/** The answers of some examples: those of one example stay together. */
export function answersOfExamples(answers: Answers, examples: Int32Array): Answers {
  const { perExample } = answers;
  const rows = Array.from(examples).flatMap((row) =>
    Array.from({ length: perExample }, (_, j) => row * perExample + j),
  );
  return { ...takeAnswers(answers, rows), perExample };
}

/** Two halves. */
export function halves(answers: Answers, seed: number): [Answers, Answers] {
  const [first, second] = halfRows(Math.round(answers.count / answers.perExample), seed);
  return [answersOfExamples(answers, first), answersOfExamples(answers, second)];
}

function ranked(answers: Answers, temperature: number): Ranked {
  const decisions = decide(probabilitiesOf(answers, temperature), classCountOf(answers));
  return rank(decisions, answers.truths);
}

/** The answers of two halves in one order. */
function merged(parts: readonly Ranked[]): Ranked {
  const all = parts.flatMap(({ confidence, right }) =>
    Array.from(confidence, (value, i) => ({ value, right: right[i]! })),
  );
  all.sort((a, b) => b.value - a.value);
  return {
    confidence: Float64Array.from(all, ({ value }) => value),
    right: Uint8Array.from(all, (answer) => answer.right),
  };
}

interface Choice {
  readonly wanted: string;
  /** Chosen on all of the examples: the one to use. */
  readonly threshold: number;
  /** Measured on examples that it was not chosen on. */
  readonly coverage: number;
  readonly accuracy: number | null;
  readonly low: number;
  readonly high: number;
}

/** What each half chooses, with what it gives on the other half. */
function crossed([first, second]: readonly [Answers, Answers], fit: (half: Answers) => number) {
  const [one, two] = [fit(first), fit(second)];
  return {
    pairs: [
      { own: ranked(first, one), other: ranked(second, one) },
      { own: ranked(second, two), other: ranked(first, two) },
    ],
    /** The log loss of all answers, each by the other half's temperature. */
    logLoss:
      (logLoss(second, one) * second.count + logLoss(first, two) * first.count) /
      (first.count + second.count),
  };
}

/** @param answers of classes, or of yes and no, to at least two examples. */
export function refuseReport(settings: RefuseSettings, answers: Answers): Report {
  const { name, part, accuracies, coverages, seed } = settings;
  const both = halves(answers, seed);
  const plain = crossed(both, () => 1);
  const fitted = crossed(both, fitTemperature);
  const before = ranked(answers, 1);
  // What is fitted to one half must be worth something on the other; else all that follows is of the plain confidence.
  const offBy = (of: typeof plain) => calibration(merged(of.pairs.map((p) => p.other))).error;
  const helps = fitted.logLoss < plain.logLoss && offBy(fitted) < offBy(plain);
  const temperature = helps ? fitTemperature(answers) : 1;
  const { pairs } = helps ? fitted : plain;
  const after = merged(pairs.map(({ other }) => other));
  const all = ranked(answers, temperature);
  const choose = (wanted: string, threshold: (of: Ranked) => number): Choice => {
    const measured = pairs.map(({ own, other }) => answered(other, threshold(own)));
    const given = measured.reduce((sum, m) => sum + m.given, 0);
    const right = measured.reduce((sum, m) => sum + m.right, 0);
    const interval = shareInterval(right, given);
    return {
      ...{ wanted, threshold: threshold(all), coverage: given / answers.count },
      ...{ accuracy: given === 0 ? null : right / given, ...interval },
    };
  };
  const choices = [
    ...accuracies.map((wanted) =>
      choose(`accuracy ${percent(wanted)}`, (of) => thresholdFor(of, wanted)),
    ),
    ...coverages.map((wanted) =>
      choose(`coverage ${percent(wanted)}`, (of) => thresholdCovering(of, wanted)),
    ),
  ];
  const errors = { before: calibration(before), after: calibration(after) };
  const whole = choose('answer all', () => 0);
  return {
    title: `Refusing to answer: ${name} on the ${part} part`,
    headings: ['wanted', 'answer from confidence', 'coverage', 'accuracy', '95 % interval'],
    rows: [whole, ...choices].map((c) => [
      c.wanted,
      Number.isFinite(c.threshold) ? c.threshold.toFixed(4) : 'cannot be reached',
      percent(c.coverage),
      percent(c.accuracy),
      c.accuracy === null ? '–' : `${percent(c.low)} … ${percent(c.high)}`,
    ]),
    advice: adviceOf(whole, choices, { temperature, helps, count: answers.count }, errors),
    plots: {
      'coverage.svg': {
        kind: 'thresholds',
        title: 'Accuracy of the answers given over the share that is answered',
        points: coverageCurve(after),
        choices: {
          name: 'thresholds of the table',
          style: 'scatter',
          points: choices.flatMap((c) =>
            c.accuracy === null
              ? []
              : [{ x: c.coverage, y: c.accuracy, low: c.low, high: c.high, label: c.wanted }],
          ),
        },
      },
      'calibration.svg': chart({
        title: 'Accuracy over confidence',
        x: { label: 'confidence' },
        y: { label: 'accuracy' },
        series: [
          {
            name: `before: ${percent(errors.before.error)} off`,
            points: errors.before.bins.map((bin) => ({ x: bin.confidence, y: bin.accuracy })),
          },
          {
            name: `after: ${percent(errors.after.error)} off`,
            points: errors.after.bins.map((bin) => ({ x: bin.confidence, y: bin.accuracy })),
          },
          {
            name: 'perfect',
            style: 'dashed',
            points: [
              { x: 0, y: 0 },
              { x: 1, y: 1 },
            ],
          },
        ],
      }),
    },
    facts: {
      ...{ name, part, answers: answers.count, temperature },
      calibrationError: { before: errors.before.error, after: errors.after.error },
      logLoss: { before: logLoss(answers, 1), after: logLoss(answers, temperature) },
      all: whole,
      choices: choices.map((c) => ({
        ...c,
        threshold: Number.isFinite(c.threshold) ? c.threshold : null,
      })),
      curve: coverageCurve(after),
    },
  };
}

/** With fewer answers the intervals are too wide to act on. */
const ANSWERS_MIN = 200;

/** What is said, and when it is not: docs/advice.md. */
function adviceOf(
  whole: Choice,
  choices: readonly Choice[],
  { temperature, helps, count }: { temperature: number; helps: boolean; count: number },
  errors: { readonly before: { error: number }; readonly after: { error: number } },
): string {
  const { before, after } = errors;
  const off = `The confidence is off by ${percent(before.error)} on average (expected calibration error)`;
  const parts = [
    helps
      ? `${off}; with the logits divided by the temperature ${numberText(temperature)} by ${percent(after.error)}, on examples that it was not fitted to: ${sureness(temperature)}. All numbers below use this corrected confidence.`
      : `${off}; a temperature fitted to one half of the examples does not help on the other half, so the confidence is used as it is.`,
  ];
  if (whole.accuracy === 1) {
    parts.push(
      `All ${count} answers are right: there is nothing to refuse, and no threshold can be found from them.`,
    );
    return parts.join(' ');
  }
  for (const { wanted, threshold, coverage, accuracy } of choices) {
    if (!Number.isFinite(threshold)) {
      parts.push(
        `For ${wanted} there is no threshold: even the most confident answers are not good enough; this needs a better model.`,
      );
    } else if (accuracy === null) {
      parts.push(
        `For ${wanted}: the threshold from one half of the examples answers none of the other half; more examples are needed.`,
      );
    } else {
      parts.push(
        `For ${wanted}: answer from a confidence of ${threshold.toFixed(3)}; that answers ${percent(coverage)} with an accuracy of ${percent(accuracy)}.`,
      );
    }
  }
  if (count < ANSWERS_MIN) {
    parts.push(
      `${count} answers are few: look at the intervals of the table before you rely on a threshold.`,
    );
  }
  parts.push(
    `If the model answers all, its accuracy is ${percent(whole.accuracy)}. If an error costs more than an answer by a person, let the model refuse; report coverage and accuracy together (Deep Learning §11.1). Thresholds hold for inputs like these: run this again when they change.`,
  );
  return parts.join(' ');
}

function sureness(temperature: number): string {
  if (temperature > 1.05) return 'the model is too confident';
  return temperature < 0.95 ? 'the model is not confident enough' : 'the confidence is about right';
}
