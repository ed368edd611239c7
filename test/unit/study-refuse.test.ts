import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Answers, decide, probabilitiesOf, takeAnswers } from '../../shared/answers.ts';
import { random } from '../../shared/random.ts';
import {
  answered,
  calibration,
  fitTemperature,
  halves,
  logLoss,
  type Ranked,
  rank,
  refuseReport,
  thresholdCovering,
  thresholdFor,
} from '../../study/refuse.ts';
import { shareInterval } from '../../study/statistics.ts';

/** Truths that are drawn from the very probabilities, whose logits are then multiplied. */
function honest(count: number, overconfidence: number, kind: 'classes' | 'binary'): Answers {
  const draw = random(5, 9);
  const width = kind === 'binary' ? 1 : 4;
  const outputs = Float32Array.from({ length: count * width }, () => 2 * draw.normal());
  const answers = { kind, count, width, outputs, losses: new Float64Array(count), perExample: 1 };
  const shares = probabilitiesOf({ ...answers, truths: new Int32Array(count) });
  const classes = shares.length / count;
  const truths = Int32Array.from({ length: count }, (_, i) => {
    let left = draw.uniform();
    for (let c = 0; c < classes - 1; c++) {
      left -= shares[i * classes + c]!;
      if (left < 0) return c;
    }
    return classes - 1;
  });
  return { ...answers, truths, outputs: outputs.map((logit) => logit * overconfidence) };
}

for (const kind of ['classes', 'binary'] as const) {
  test(`the temperature that was put into ${kind} is found again, and calibrates`, () => {
    const answers = honest(8000, 3, kind);
    const temperature = fitTemperature(answers);
    expect(temperature).toBeGreaterThan(2.7);
    expect(temperature).toBeLessThan(3.3);
    const error = (t: number) =>
      calibration(
        rank(decide(probabilitiesOf(answers, t), kind === 'binary' ? 2 : 4), answers.truths),
      ).error;
    expect(error(1)).toBeGreaterThan(0.05);
    expect(error(temperature)).toBeLessThan(0.02);
    expect(logLoss(answers, temperature)).toBeLessThan(logLoss(answers, 1));
  });
}

test('a few answers that are all right do not make the model sure of everything', () => {
  const width = 3;
  const of = (wrong: number): Answers => {
    const count = 15;
    // A logit of 3 for the answer, 0 for the others.
    const outputs = Float32Array.from({ length: count * width }, (_, i) => (i % width ? 0 : 3));
    const truths = Int32Array.from({ length: count }, (_, i) => (i < wrong ? 1 : 0));
    return {
      ...{ kind: 'classes', count, width, outputs, truths, perExample: 1 },
      losses: new Float64Array(count),
    };
  };
  const temperature = fitTemperature(of(0));
  expect(temperature).toBeGreaterThan(0.3);
  expect(temperature).toBeLessThan(1);
  expect(logLoss(of(1), temperature)).toBeLessThan(2 * logLoss(of(1), 1));
});

test('a threshold answers as many as it can at the accuracy wanted, whatever the ties', () => {
  const answer = fc.record({ confidence: fc.integer({ min: 0, max: 20 }), right: fc.boolean() });
  fc.assert(
    fc.property(
      fc.array(answer, { minLength: 1, maxLength: 60 }),
      fc.double({ min: 0.1, max: 1, noNaN: true }),
      (list, wanted) => {
        const sorted = list.toSorted((a, b) => b.confidence - a.confidence);
        const ranked: Ranked = {
          confidence: Float64Array.from(sorted, ({ confidence }) => confidence / 20),
          right: Uint8Array.from(sorted, ({ right }) => (right ? 1 : 0)),
        };
        const given = (threshold: number) => answered(ranked, threshold);
        const good = [...new Set(ranked.confidence)].filter((threshold) => {
          const { given: count, right } = given(threshold);
          return right / count >= wanted;
        });
        expect(thresholdFor(ranked, wanted)).toBe(Math.min(Infinity, ...good));
        expect(given(thresholdCovering(ranked, wanted)).given).toBeGreaterThanOrEqual(
          Math.floor(wanted * list.length),
        );
      },
    ),
  );
});

test('answers of one example are never in both halves', () => {
  const answers = { ...honest(60, 1, 'classes'), perExample: 3 };
  answers.truths.forEach((_, i) => {
    (answers.truths as Int32Array)[i] = Math.floor(i / 3);
  });
  const [first, second] = halves(answers, 1);
  const examples = (of: Answers) => new Set(of.truths);
  expect(first.count + second.count).toBe(60);
  for (const example of examples(first)) expect(examples(second).has(example)).toBe(false);
});

test("the interval of a share is Wilson's", () => {
  // Wilson 1927: 8 of 10.
  const { low, high } = shareInterval(8, 10);
  expect(low).toBeCloseTo(0.4902, 3);
  expect(high).toBeCloseTo(0.9433, 3);
  expect(shareInterval(0, 0).low).toBeNaN();
});

const report = (answers: Answers) =>
  refuseReport(
    { ...{ name: 'r', part: 'validation', seed: 1 }, accuracies: [0.9, 1], coverages: [0.8] },
    answers,
  );

test('a temperature that does not help is not used, and not advised', () => {
  // As sure as it may be: what is fitted to one half is noise to the other, more often than not.
  const verdicts = Array.from({ length: 8 }, (_, i) => {
    const all = honest(400, 1, 'classes');
    const rows = Array.from({ length: 60 }, (_, j) => i * 50 + j).filter((row) => row < 400);
    const { advice, facts } = report(takeAnswers(all, rows));
    const helps = advice.includes('with the logits divided');
    expect(facts.temperature === 1).toBe(!helps);
    expect(advice).not.toContain('leave it at 1');
    expect(advice.includes('used as it is')).toBe(!helps);
    const errors = facts.calibrationError as { before: number; after: number };
    if (helps) expect(errors.after).toBeLessThan(errors.before);
    return helps;
  });
  expect(verdicts).toContain(false);
  expect(report(honest(4000, 3, 'classes')).advice).toContain('the model is too confident');
});

test('thresholds of the table are of the confidence that the advice speaks of', () => {
  const answers = honest(600, 1, 'binary');
  const { facts } = report(answers);
  const [, , covering] = facts.choices as { threshold: number; coverage: number }[];
  const { confidence } = decide(probabilitiesOf(answers, facts.temperature as number), 2);
  const given = confidence.filter((value) => value >= covering!.threshold).length;
  expect(given / 600).toBeGreaterThanOrEqual(0.8);
  expect(given / 600).toBeLessThan(0.82);
});

test('where all answers are right there is nothing to refuse', () => {
  const answers = honest(300, 2, 'classes');
  const { classes } = decide(probabilitiesOf(answers), 4);
  const { advice } = report({ ...answers, truths: classes });
  expect(advice).toContain('All 300 answers are right');
  expect(advice).not.toMatch(/answer from a confidence|If an error costs/);
});

test('of few examples it says that they are few, and nothing that is no number', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 2, max: 40 }),
      fc.double({ min: 0.2, max: 5, noNaN: true }),
      (count, sure) => {
        const { advice, rows } = report(honest(count, sure, 'classes'));
        expect(`${advice} ${rows.flat().join(' ')}`).not.toMatch(/NaN|Infinity|undefined/);
        expect(advice).toMatch(/answers are few|answers are right/);
      },
    ),
    { numRuns: 30 },
  );
});
