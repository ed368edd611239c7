import {
  type AnswerLine,
  type AnswerNames,
  answerClasses,
  answerLines,
  captionOf,
  className,
} from '../shared/answer-lines.ts';
import { type Answers, classCountOf, decide, probabilitiesOf } from '../shared/answers.ts';
import type { ExampleView, SeenExample } from '../shared/example-view.ts';
import { permutation } from '../shared/random.ts';
import { percent } from '../shared/text.ts';
import { contactSheet, matrixFigure, type SheetCard } from './figures.ts';
import { chart, type Plot } from './plot.ts';
import { numberText, type Report } from './report.ts';
import { meanOf } from './statistics.ts';

/**
 * Looking at a trained model (Deep Learning §11.5): its answers beside the examples, the worst errors
 * first, a random sample that hides nothing, and which classes it takes for which.
 */

export interface LookSettings {
  readonly name: string;
  readonly part: 'train' | 'validation';
  /** Examples of the highest loss. */
  readonly worst: number;
  readonly random: number;
  readonly seed: number;
}

/** Answers with what they are of. */
export interface Looked extends AnswerNames {
  readonly answers: Answers;
  /** Examples of the part that were asked about. */
  readonly rows: Int32Array;
  /** An example by its index in the part. */
  readonly show: (row: number) => ExampleView;
  /** A training minibatch as the model sees it, where `batch` of the experiment changes it. */
  readonly minibatch?: readonly SeenExample[];
}

/** More classes than this make a matrix that nobody can read. */
const CLASSES_MAX = 40;

export function lookReport(settings: LookSettings, looked: Looked): Report {
  const { answers, rows, show, minibatch = [] } = looked;
  const classes = answerClasses(answers, looked);
  const classCount = answers.kind === 'numbers' ? 0 : classCountOf(answers);
  const { name, part } = settings;
  const lines = answerLines(answers, rows, looked, numberText);
  const known = lines.filter(({ loss }) => Number.isFinite(loss));
  const worst = [...known].sort((a, b) => b.loss - a.loss).slice(0, settings.worst);
  const order = permutation(settings.seed, 0, lines.length);
  const random = Array.from(order.subarray(0, settings.random), (i) => lines[i]!);
  const confusion = confusionOf(answers);
  const card = (line: AnswerLine): SheetCard => ({
    shown: show(line.row),
    caption: captionOf(line, numberText, `${part} ${line.row}`),
    wrong: line.wrong,
  });
  const losses = known.map(({ loss }) => loss).sort((a, b) => b - a);
  const total = losses.reduce((a, b) => a + b, 0);
  return {
    title: `Looking at ${name} on the ${part} part`,
    headings: ['example', 'true', 'answer', 'confidence', 'loss'],
    rows: worst.map((line) => [
      String(line.row),
      line.truth,
      line.answer,
      line.confidence === null ? '–' : percent(line.confidence),
      numberText(line.loss),
    ]),
    advice: adviceOf({ answers, lines, losses, total, confusion, classes }),
    plots: {
      'worst.svg': contactSheet('Highest losses', worst.map(card)),
      'random.svg': contactSheet('A random sample', random.map(card)),
      ...(minibatch.length > 0
        ? {
            'minibatch.svg': contactSheet(
              'A training minibatch as the model sees it',
              minibatch.map((example) => seenCard(example, classCount, classes)),
            ),
          }
        : {}),
      ...(confusion && confusion.length <= CLASSES_MAX
        ? {
            'confusion.svg': matrixFigure(
              'True class against answer',
              confusion,
              confusion.map((_, i) => className(i, classes)),
            ),
          }
        : {}),
      'losses.svg': lossesChart(losses, total),
    },
    facts: {
      ...{ name, part, worst, random, classes, confusion },
      ...{ examples: rows.length, answers: answers.count },
    },
  };
}

function seenCard(
  { shown, row, target }: SeenExample,
  classCount: number,
  classes: readonly string[] | null,
): SheetCard {
  const own = targetText(target, classCount, classes);
  return { shown, caption: [own, ...(row === null ? [] : [`train ${row}`])], wrong: false };
}

/** A class, the two most probable classes, or the first numbers. @param classCount 0: targets are numbers. */
function targetText(
  target: readonly number[],
  classCount: number,
  classes: readonly string[] | null,
): string {
  if (classCount > 0 && target.length === 1) return className(target[0]!, classes);
  if (classCount === 0 || target.length !== classCount) {
    return target.slice(0, 3).map(numberText).join(' ');
  }
  const most = target
    .map((share, i) => ({ share: Math.round(100 * share), name: className(i, classes) }))
    .filter(({ share }) => share > 0)
    .sort((x, y) => y.share - x.share)
    .slice(0, 2);
  if (most.length === 1) return most[0]!.name;
  return most.map(({ share, name }) => `${name} ${share} %`).join(', ');
}

/** Counts by true class and answer; null for numbers. */
function confusionOf(answers: Answers): number[][] | null {
  if (answers.kind === 'numbers') return null;
  const size = classCountOf(answers);
  const counts = Array.from({ length: size }, () => new Array<number>(size).fill(0));
  const { classes } = decide(probabilitiesOf(answers), size);
  classes.forEach((answer, i) => {
    counts[answers.truths[i]!]![answer]!++;
  });
  return counts;
}

/** @param losses falling. */
export function lossesChart(losses: readonly number[], total: number): Plot {
  return chart({
    title: 'Share of the total loss that the worst examples have',
    x: { label: 'share of the examples, worst first', log: true },
    y: { label: 'share of the loss' },
    series: [{ name: 'loss', style: 'curve', points: concentration(losses, total) }],
  });
}

/** What share the first of losses in falling order have. */
function concentration(losses: readonly number[], total: number) {
  const points: { x: number; y: number }[] = [];
  let sum = 0;
  const every = Math.max(1, Math.floor(losses.length / 200));
  losses.forEach((loss, i) => {
    sum += loss;
    const atStart = i < 20;
    if (atStart || i % every === 0) points.push({ x: (i + 1) / losses.length, y: sum / total });
  });
  return points;
}

/** Fewer have no worst hundredth. */
const HUNDREDTH_MIN = 100;
/** A share of the loss; the worst 1 % would have 1 % if all were alike. */
const CONCENTRATED = 0.05;

interface LookFindings {
  readonly answers: Answers;
  readonly lines: readonly AnswerLine[];
  /** Finite ones, falling. */
  readonly losses: readonly number[];
  readonly total: number;
  readonly confusion: readonly (readonly number[])[] | null;
  readonly classes: readonly string[] | null;
}

/** What is said, and when it is not: docs/advice.md. */
function adviceOf(findings: LookFindings): string {
  const { confusion, answers } = findings;
  const parts = concentrationAdvice(findings);
  if (confusion) parts.push(...classAdvice(findings, confusion));
  else if (findings.losses.length > 0) {
    parts.unshift(`The mean loss is ${numberText(meanOf(findings.losses))}.`);
  }
  if (findings.losses.length < answers.count) {
    const { length } = findings.losses;
    parts.push(`The loss is known for ${length} of the ${answers.count} answers.`);
  }
  return parts.join(' ');
}

export function concentrationAdvice({
  losses,
  total,
}: Pick<LookFindings, 'losses' | 'total'>): string[] {
  const least = losses.at(-1);
  if (least === undefined) return [];
  if (losses[0] === 0 && least === 0) return ['The loss is 0 on all of them.'];
  // A loss below 0 has no shares.
  if (least < 0 || !(total > 0) || losses.length < HUNDREDTH_MIN) return [];
  const first = losses.slice(0, Math.round(losses.length / 100));
  const share = first.reduce((a, b) => a + b, 0) / total;
  const told = `The worst 1 % of the examples have ${percent(share)} of the loss`;
  if (share < CONCENTRATED) return [`${told}: it is not concentrated in a few of them.`];
  return [`${told}. Look at these first: are they measured and labelled correctly?`];
}

function classAdvice(
  { answers, lines, classes }: LookFindings,
  confusion: readonly (readonly number[])[],
): string[] {
  const parts: string[] = [];
  const present = confusion.flatMap((row, i) => (row.some((count) => count > 0) ? [i] : []));
  if (present.length === 1 && confusion.length > 1) {
    parts.push(
      `All of them are of class ${className(present[0]!, classes)}, so they say nothing about the other classes.`,
    );
  }
  const wrong = lines.filter((line) => line.wrong);
  if (wrong.length === 0) return [...parts, `All ${answers.count} answers are right.`];
  const share = wrong.length / answers.count;
  const sure = wrong.filter(({ confidence }) => (confidence ?? 0) > 0.9);
  // Frequencies of the classes in these very answers: a guess that knows them.
  const sizes = confusion.map((row) => row.reduce((a, b) => a + b, 0));
  const most = sizes.indexOf(Math.max(...sizes));
  const guessed = answers.count - sizes[most]!;
  parts.push(
    `${wrong.length} of ${answers.count} answers are wrong (${percent(share)}), ${sure.length} of these with more than 90 % confidence.`,
  );
  if (present.length > 1 && wrong.length >= guessed) {
    parts.push(
      `The answer ${className(most, classes)} to all of them would be wrong ${wrong.length === guessed ? 'as often' : `less often (${percent(guessed / answers.count)})`}: by its error the model is no better than that. Its probabilities may still be of use: compare the log loss, or the metric 'auc', with that of a guess.`,
    );
  }
  const pairs = confusion
    .flatMap((row, i) => row.map((count, j) => ({ i, j, count })))
    .filter(({ i, j, count }) => i !== j && count > 1)
    .sort((a, b) => b.count - a.count)
    .slice(0, 3);
  if (pairs.length > 0) {
    const told = pairs.map(
      ({ i, j, count }) =>
        `${className(i, classes)} answered as ${className(j, classes)} (${count})`,
    );
    parts.push(`The most frequent errors are ${told.join(', ')}.`);
  }
  if (share > 0.5) {
    parts.push(
      'More than half of the answers are wrong: first improve the model (`downpour check`), then look at single examples.',
    );
    return parts;
  }
  if (sure.length > 0) {
    parts.push(
      'Look at the confident errors first: they reveal wrong labels, bad preprocessing and cropped or rotated examples (Deep Learning §11.5).',
    );
  }
  const confidenceOf = (list: readonly AnswerLine[]) =>
    meanOf(list.map(({ confidence }) => confidence ?? Number.NaN));
  const [ofWrong, ofRight] = [confidenceOf(wrong), confidenceOf(lines.filter((l) => !l.wrong))];
  parts.push(
    ofWrong < ofRight - 0.05
      ? `The model is less confident when it is wrong (${percent(ofWrong)} on average, ${percent(ofRight)} when it is right): \`downpour refuse\` shows what refusing the least confident answers brings.`
      : `The confidence of the model does not tell wrong answers from right ones (${percent(ofWrong)} and ${percent(ofRight)} on average): refusing the least confident ones brings little.`,
  );
  return parts;
}
