import { type Answers, classCountOf, decide, probabilitiesOf } from './answers.ts';
import { cut } from './example-view.ts';

/** Answers of a model in words: names of classes and of targets where the data have them. */

export interface AnswerLine {
  readonly index: number;
  /** Index of the example in its part. */
  readonly row: number;
  readonly truth: string;
  readonly answer: string;
  /** Null: the answer is a number. */
  readonly confidence: number | null;
  readonly loss: number;
  readonly wrong: boolean;
}

export interface AnswerNames {
  /** The name of class 0, 1, …; null: they have none. */
  readonly classes?: readonly string[] | null;
  /** One for each number of a target; null: no names. */
  readonly targetNames?: readonly string[] | null;
}

/** A name of any length fits neither a card nor a matrix. */
const NAME_CHARACTERS = 40;
/** Numbers of one answer that are told. */
const NUMBERS_SHOWN = 3;

export const className = (index: number, classes: readonly string[] | null) =>
  cut(classes?.[index] ?? String(index), NAME_CHARACTERS);

/** Names of the classes that answers choose among; null: there are none, or they are of something else. */
export function answerClasses(
  answers: Answers,
  { classes }: AnswerNames,
): readonly string[] | null {
  // With several questions an example, each yes or no, classes are the questions.
  const isOne = answers.kind !== 'binary' || answers.perExample === 1;
  return isOne && classes && classes.length === classCountOf(answers) ? classes : null;
}

/** The names of the several answers that an example has; null: there is one, or they have none. */
export function questionsOf(
  { kind, perExample }: Pick<Answers, 'kind' | 'perExample'>,
  { classes, targetNames }: AnswerNames,
): readonly string[] | null {
  if (perExample === 1 || kind === 'numbers') return null;
  const lists = [targetNames, kind === 'binary' ? classes : null];
  return lists.find((list) => list?.length === perExample) ?? null;
}

/** @param rows examples of the part that were asked about. @param number how a number is told. */
export function answerLines(
  answers: Answers,
  rows: Int32Array,
  names: AnswerNames,
  number: (value: number | undefined) => string,
): AnswerLine[] {
  const { count, kind, width, outputs, truths, losses, perExample } = answers;
  const row = (i: number) => rows[Math.floor(i / perExample)]!;
  if (kind === 'numbers') {
    const list = (values: ArrayLike<number>, i: number, size: number) =>
      Array.from({ length: Math.min(size, NUMBERS_SHOWN) }, (_, j) => {
        const name = names.targetNames?.length === size ? names.targetNames[j] : undefined;
        const value = number(values[i * size + j]);
        return name === undefined ? value : `${cut(name, NAME_CHARACTERS)} ${value}`;
      }).join(', ');
    const size = Math.max(1, Math.round(truths.length / count));
    return Array.from({ length: count }, (_, i) => ({
      ...{ index: i, row: row(i), loss: losses[i]!, confidence: null, wrong: false },
      ...{ truth: list(truths, i, size), answer: list(outputs, i, width) },
    }));
  }
  const classes = answerClasses(answers, names);
  const questions = questionsOf(answers, names);
  const told = (of: number, i: number) => {
    const name = className(of, classes);
    return questions ? `${cut(questions[i % perExample]!, NAME_CHARACTERS)} ${name}` : name;
  };
  const { classes: chosen, confidence } = decide(probabilitiesOf(answers), classCountOf(answers));
  return Array.from({ length: count }, (_, i) => ({
    ...{ index: i, row: row(i), loss: losses[i]!, confidence: confidence[i]! },
    truth: told(truths[i]!, i),
    answer: told(chosen[i]!, i),
    wrong: chosen[i] !== truths[i],
  }));
}

/** What stands below an example. @param of the example, in words; empty: nothing. */
export function captionOf(
  { truth, answer, confidence, loss }: AnswerLine,
  number: (value: number | undefined) => string,
  of = '',
): string[] {
  const sure = confidence === null ? '' : `${Math.round(confidence * 100)} % sure, `;
  return [`is ${truth}, said ${answer}`, `${sure}loss ${number(loss)}`, ...(of === '' ? [] : [of])];
}
