/** What a model answers to examples, and what its numbers are worth as probabilities. Pure. */

export interface Answers {
  /** `classes`: one of `width`; `binary`: yes or no, `width` is 1; `numbers`: values, not probabilities. */
  readonly kind: 'classes' | 'binary' | 'numbers';
  readonly count: number;
  readonly width: number;
  /** Logits (logarithms of probabilities are such) or values, shape [count, width]. */
  readonly outputs: Float32Array;
  /** Classes, or 0 and 1, shape [count]; of numbers the values, shape [count, width]. */
  readonly truths: Int32Array | Float32Array;
  /** The loss of each answer; NaN where it was not computed. */
  readonly losses: Float64Array;
  /** Answers that one example has: more than 1 for sequences. Answer i is of example ⌊i / perExample⌋. */
  readonly perExample: number;
}

/** Shape [count, classes]; of yes and no two columns. `temperature` divides the logits (Guo et al. 2017). */
export function probabilitiesOf(answers: Answers, temperature = 1): Float64Array {
  const { count, width, outputs, kind } = answers;
  if (kind === 'binary') {
    const shares = new Float64Array(2 * count);
    for (let i = 0; i < count; i++) {
      const yes = 1 / (1 + Math.exp(-outputs[i]! / temperature));
      shares[2 * i] = 1 - yes;
      shares[2 * i + 1] = yes;
    }
    return shares;
  }
  const shares = new Float64Array(count * width);
  for (let i = 0; i < count; i++) {
    const at = i * width;
    let most = -Infinity;
    for (let c = 0; c < width; c++) most = Math.max(most, outputs[at + c]!);
    let sum = 0;
    for (let c = 0; c < width; c++) {
      shares[at + c] = Math.exp((outputs[at + c]! - most) / temperature);
      sum += shares[at + c]!;
    }
    for (let c = 0; c < width; c++) shares[at + c]! /= sum;
  }
  return shares;
}

/** The likeliest class of each row, and how likely. */
export interface Decisions {
  readonly classes: Int32Array;
  readonly confidence: Float64Array;
}

/** @param shares shape [count, classCount]. */
export function decide(shares: Float64Array, classCount: number): Decisions {
  const count = shares.length / classCount;
  const classes = new Int32Array(count);
  const confidence = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    let best = 0;
    for (let c = 1; c < classCount; c++) {
      if (shares[i * classCount + c]! > shares[i * classCount + best]!) best = c;
    }
    classes[i] = best;
    confidence[i] = shares[i * classCount + best]!;
  }
  return { classes, confidence };
}

export const classCountOf = ({ kind, width }: Answers) => (kind === 'binary' ? 2 : width);

/** Some of the answers. @param rows indices of answers. */
export function takeAnswers(answers: Answers, rows: readonly number[]): Answers {
  const { width, outputs, truths, losses, kind } = answers;
  const size = kind === 'numbers' ? width : 1;
  const some = truths instanceof Int32Array ? new Int32Array(rows.length) : null;
  const values = some ?? new Float32Array(rows.length * size);
  const taken = new Float32Array(rows.length * width);
  rows.forEach((row, i) => {
    taken.set(outputs.subarray(row * width, (row + 1) * width), i * width);
    values.set(truths.subarray(row * size, (row + 1) * size), i * size);
  });
  return {
    ...answers,
    count: rows.length,
    perExample: 1,
    outputs: taken,
    truths: values,
    losses: Float64Array.from(rows, (row) => losses[row]!),
  };
}
