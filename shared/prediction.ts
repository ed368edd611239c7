import { answerClasses, questionsOf } from './answer-lines.ts';
import { type Answers, classCountOf, decide, probabilitiesOf } from './answers.ts';

/** What a trained model says to one example, as `predict`, `serve-model` and exported models tell it. */

export interface Prediction {
  /**
   * The name of a class; or a number; or, of several numbers or questions, each by its name. Of a sequence a list. A model with
   * several outputs tells each by its name.
   */
  readonly prediction: Told<ToldAnswer>;
  /** The probability of the class. Absent: it is no class. */
  readonly confidence?: Told<number>;
  /** The probability of each class, by its name. */
  readonly probabilities?: Told<Shares>;
}
type OneOrMany<T> = T | readonly T[];
/** What one output says, or several by their names. */
type Told<T> = OneOrMany<T> | Readonly<Record<string, OneOrMany<T>>>;
type ToldAnswer = string | number | Shares;
type Shares = Readonly<Record<string, number>>;

export interface PredictionNames {
  /** The names of class 0, 1, …; null: their numbers are told. */
  readonly classes: readonly string[] | null;
  readonly targetNames: readonly string[] | null;
}

/**
 * What the outputs mean, by the loss that the model was trained with: logits of classes, of yes and no, or numbers. A model
 * that learns one-hot rows by a squared error gives no logits: its outputs are numbers.
 * @param loss its name; null: of the user's own, whose outputs are told as they are. @param width of their last axis.
 */
export function answerKind(
  loss: string | null,
  classCount: number | null,
  width: number,
): Answers['kind'] {
  if (loss === null || DISTANCES.includes(loss)) return 'numbers';
  if (loss === 'sigmoidCrossEntropy') return 'binary';
  return classCount !== null && classCount > 1 && width === classCount ? 'classes' : 'numbers';
}

const DISTANCES: readonly string[] = ['meanSquaredError', 'meanAbsoluteError'];

/** @param answers of `examples` examples in order. */
export function predictionsOf(
  answers: Pick<Answers, 'kind' | 'count' | 'width' | 'outputs'>,
  examples: number,
  { classes, targetNames }: PredictionNames,
): Prediction[] {
  const { kind, outputs, count: answerCount } = answers;
  if (kind === 'numbers') {
    const each = outputs.length / examples;
    // A target of class numbers has one name, but as many outputs as there are classes.
    const names = [targetNames, classes].find((list) => list?.length === each);
    const nameOf = (k: number) => names?.[k] ?? String(k);
    return Array.from({ length: examples }, (_, i) => {
      const values = Array.from(outputs.subarray(i * each, (i + 1) * each), shortest);
      if (each === 1) return { prediction: values[0]! };
      return { prediction: Object.fromEntries(values.map((value, k) => [nameOf(k), value])) };
    });
  }
  const perExample = answerCount / examples;
  const whole: Answers = {
    ...{ ...answers, perExample },
    ...{ truths: new Int32Array(answerCount), losses: new Float64Array(answerCount) },
  };
  const shares = probabilitiesOf(whole);
  const count = classCountOf(whole);
  const decided = decide(shares, count);
  const own = answerClasses(whole, { classes });
  const nameOf = (c: number) => own?.[c] ?? String(c);
  const questions = questionsOf(whole, { classes, targetNames });
  const tell = (at: number) => {
    const each = Array.from(shares.subarray(at * count, (at + 1) * count), shortest);
    return {
      prediction: nameOf(decided.classes[at]!),
      confidence: shortest(decided.confidence[at]!),
      probabilities: Object.fromEntries(each.map((share, c) => [nameOf(c), share])),
    };
  };
  return Array.from({ length: examples }, (_, i) => {
    if (perExample === 1) return tell(i);
    const each = Array.from({ length: perExample }, (_, k) => tell(i * perExample + k));
    if (questions) {
      return joinedParts(
        questions.map((name, k) => [name, each[k]!] as const),
        true,
      );
    }
    return {
      prediction: each.map(({ prediction }) => prediction),
      confidence: each.map(({ confidence }) => confidence),
      probabilities: each.map(({ probabilities }) => probabilities),
    };
  });
}

/** Seven digits say all there is in a float32. */
const shortest = (value: number) => Number(value.toPrecision(7));

/** What several outputs told of the same examples, as one prediction of each. */
export function joinPredictions(
  outputs: Readonly<Record<string, readonly Prediction[]>>,
): Prediction[] {
  const all = Object.entries(outputs);
  const hasClasses = all.some(([, [first]]) => first?.confidence !== undefined);
  return Array.from({ length: all[0]![1].length }, (_, i) =>
    joinedParts(
      all.map(([name, told]) => [name, told[i]!] as const),
      hasClasses,
    ),
  );
}

/** Several answers to one example as one. @param hasClasses some of them are classes */
function joinedParts(
  parts: readonly (readonly [string, Prediction])[],
  hasClasses: boolean,
): Prediction {
  const byName = (part: keyof Prediction) =>
    Object.fromEntries(
      parts.flatMap(([name, told]) => (told[part] === undefined ? [] : [[name, told[part]]])),
    ) as Told<never>;
  return {
    prediction: byName('prediction'),
    ...(hasClasses && {
      confidence: byName('confidence'),
      probabilities: byName('probabilities'),
    }),
  };
}

/** The part of a prediction that is of one output. */
export function predictionOf({ prediction, confidence, probabilities }: Prediction, name: string) {
  const own = (part: unknown) => (part as Record<string, unknown> | undefined)?.[name];
  return {
    ...{ prediction: own(prediction), confidence: own(confidence) },
    probabilities: own(probabilities),
  } as Prediction;
}
