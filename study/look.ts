import { type Answers, classCountOf, decide, probabilitiesOf } from '../shared/answers.ts';
import { permutation } from '../shared/random.ts';
import { percent } from '../shared/text.ts';
import { type Card, contactSheet, matrixFigure, type Shown } from './figures.ts';
import { chart } from './plot.ts';
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
export interface Looked {
  readonly answers: Answers;
  /** Examples of the part that were asked about. */
  readonly rows: Int32Array;
  /** An example by its index in the part. */
  readonly show: (row: number) => Shown;
}

interface Line {
  readonly index: number;
  readonly row: number;
  readonly truth: string;
  readonly answer: string;
  readonly confidence: number | null;
  readonly loss: number;
  readonly wrong: boolean;
}

/** More classes than this make a matrix that nobody can read. */
const CLASSES_MAX = 40;

export function lookReport(settings: LookSettings, looked: Looked): Report {
  const { answers, rows, show } = looked;
  const { name, part } = settings;
  const lines = linesOf(answers, rows);
  const known = lines.filter(({ loss }) => Number.isFinite(loss));
  const worst = [...known].sort((a, b) => b.loss - a.loss).slice(0, settings.worst);
  const order = permutation(settings.seed, 0, lines.length);
  const random = Array.from(order.subarray(0, settings.random), (i) => lines[i]!);
  const confusion = confusionOf(answers, lines);
  const card = (line: Line): Card => ({
    shown: show(line.row),
    caption: [
      `is ${line.truth}, said ${line.answer}`,
      `${line.confidence === null ? '' : `${Math.round(line.confidence * 100)} % sure, `}loss ${numberText(line.loss)}`,
      `${part} ${line.row}`,
    ],
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
    advice: adviceOf(answers, lines, losses, total, confusion),
    plots: {
      'worst.svg': contactSheet('Highest losses', worst.map(card)),
      'random.svg': contactSheet('A random sample', random.map(card)),
      ...(confusion && confusion.length <= CLASSES_MAX
        ? { 'confusion.svg': matrixFigure('True class against answer', confusion) }
        : {}),
      'losses.svg': chart({
        title: 'Share of the total loss that the worst examples have',
        x: { label: 'share of the examples, worst first', log: true },
        y: { label: 'share of the loss' },
        series: [{ name: 'loss', style: 'curve', points: concentration(losses, total) }],
      }),
    },
    facts: { name, part, worst, random, confusion, examples: rows.length, answers: answers.count },
  };
}

function linesOf(answers: Answers, rows: Int32Array): Line[] {
  const { count, kind, width, outputs, truths, losses, perExample } = answers;
  const row = (i: number) => rows[Math.floor(i / perExample)]!;
  if (kind === 'numbers') {
    const list = (values: ArrayLike<number>, i: number, size: number) =>
      Array.from({ length: Math.min(size, 3) }, (_, j) => numberText(values[i * size + j])).join(
        ', ',
      );
    const size = Math.max(1, Math.round(truths.length / count));
    return Array.from({ length: count }, (_, i) => ({
      ...{ index: i, row: row(i), loss: losses[i]!, confidence: null, wrong: false },
      ...{ truth: list(truths, i, size), answer: list(outputs, i, width) },
    }));
  }
  const { classes, confidence } = decide(probabilitiesOf(answers), classCountOf(answers));
  return Array.from({ length: count }, (_, i) => ({
    ...{ index: i, row: row(i), loss: losses[i]!, confidence: confidence[i]! },
    ...{ truth: String(truths[i]), answer: String(classes[i]), wrong: classes[i] !== truths[i] },
  }));
}

/** Counts by true class and answer; null for numbers. */
function confusionOf(answers: Answers, lines: readonly Line[]): number[][] | null {
  if (answers.kind === 'numbers') return null;
  const size = classCountOf(answers);
  const counts = Array.from({ length: size }, () => new Array<number>(size).fill(0));
  for (const { truth, answer } of lines) counts[Number(truth)]![Number(answer)]!++;
  return counts;
}

/** Of losses in falling order: what share the first ones have. */
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

function adviceOf(
  answers: Answers,
  lines: readonly Line[],
  losses: readonly number[],
  total: number,
  confusion: readonly (readonly number[])[] | null,
): string {
  const parts: string[] = [];
  const first = losses.slice(0, Math.max(1, Math.round(losses.length / 100)));
  const share = first.reduce((a, b) => a + b, 0) / total;
  parts.push(`The worst 1 % of the examples have ${percent(share)} of the loss.`);
  if (!confusion) {
    parts.push(
      `The mean loss is ${numberText(meanOf(losses))}. Look at the worst examples first: are they measured and labelled rightly?`,
    );
    return parts.join(' ');
  }
  const wrong = lines.filter((line) => line.wrong);
  const sure = wrong.filter(({ confidence }) => (confidence ?? 0) > 0.9);
  parts.push(
    `${wrong.length} of ${answers.count} answers are wrong (${percent(wrong.length / answers.count)}), ${sure.length} of these with more than 90 % confidence.`,
  );
  const pairs = confusion
    .flatMap((row, i) => row.map((count, j) => ({ i, j, count })))
    .filter(({ i, j, count }) => i !== j && count > 0)
    .sort((a, b) => b.count - a.count)
    .slice(0, 3);
  if (pairs.length > 0) {
    const told = pairs.map(({ i, j, count }) => `${i} for ${j} (${count})`).join(', ');
    parts.push(`Most often it takes ${told}, the first being the true class.`);
  }
  parts.push(
    sure.length > 0
      ? 'Look at the confident errors first: wrong labels, bad preprocessing and cut-off or rotated examples show themselves there (Deep Learning §11.5); then whether `downpour refuse` may leave the unsure ones to somebody else.'
      : 'No error is a confident one: refusing the least sure answers pays here (`downpour refuse`).',
  );
  return parts.join(' ');
}
