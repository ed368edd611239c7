import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Answers } from '../../shared/answers.ts';
import { random } from '../../shared/random.ts';
import type { Observations } from '../../shared/rest.ts';
import { lookReport } from '../../study/look.ts';
import { joinReports, lookLossesReport } from '../../study/look-losses.ts';
import { observationsReport, type SampledRun } from '../../study/observations.ts';

// What `look` says, and where it must not say it: docs/advice.md.

/** Answers of classes: what is true, what is said, and with how large a logit. */
function answersOf(
  list: readonly { truth: number; answer: number; logit?: number; loss?: number }[],
  width = 3,
): Answers {
  const outputs = new Float32Array(list.length * width);
  list.forEach(({ answer, logit = 5 }, i) => {
    outputs[i * width + answer] = logit;
  });
  const losses = Float64Array.from(
    list,
    ({ truth, answer, loss }) => loss ?? (truth === answer ? 0.02 : 4),
  );
  return {
    ...{ kind: 'classes', count: list.length, width, outputs, losses, perExample: 1 },
    truths: Int32Array.from(list, ({ truth }) => truth),
  };
}

const look = (answers: Answers, classes: readonly string[] | null = null) =>
  lookReport(
    { name: 'r', part: 'validation', worst: 5, random: 5, seed: 1 },
    {
      answers,
      rows: Int32Array.from({ length: answers.count / answers.perExample }, (_, i) => i),
      show: () => ({ kind: 'text', text: 'x' }),
      classes,
    },
  );

const right = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ truth: i % 3, answer: i % 3 }));
const wrong = (count: number, logit: number) =>
  Array.from({ length: count }, () => ({ truth: 0, answer: 1, logit }));

describe('a look at answers', () => {
  test('calls classes by their names, in table, cards, matrix and advice', () => {
    const classes = ['setosa', 'versicolor', 'virginica'];
    const report = look(answersOf([...right(200), ...wrong(4, 6)]), classes);
    expect(report.rows[0]!.slice(1, 3)).toEqual(['setosa', 'versicolor']);
    expect(report.advice).toContain('setosa answered as versicolor (4)');
    expect(JSON.stringify(report.plots['worst.svg'])).toContain('is setosa, said versicolor');
    expect(report.plots['confusion.svg']).toMatchObject({ names: classes });
    expect(report.facts).toMatchObject({ classes });
    // Names that are not one for each class are somebody else's.
    expect(look(answersOf(right(9)), ['a', 'b']).plots['confusion.svg']).toMatchObject({
      names: ['0', '1', '2'],
    });
  });

  test('has a picture of a minibatch as the model sees it, with targets that may be mixed', () => {
    const classes = ['cat', 'dog', 'owl'];
    const shown = { kind: 'text', text: 'changed' } as const;
    const settings = { name: 'r', part: 'validation', worst: 5, random: 5, seed: 1 } as const;
    const looked = {
      answers: answersOf(right(9)),
      rows: Int32Array.from({ length: 9 }, (_, i) => i),
      show: () => ({ kind: 'text', text: 'x' }) as const,
      classes,
      minibatch: [
        { shown, row: 7, target: [2] },
        { shown, row: null, target: [0.25, 0, 0.75] },
        { shown, row: 3, target: [0, 1, 0] },
        { shown, row: 4, target: [0.5, 2] },
      ],
    };
    const { plots } = lookReport(settings, looked);
    expect(plots['minibatch.svg']).toMatchObject({
      cards: [
        { shown, caption: ['owl', 'train 7'] },
        { shown, caption: ['owl 75 %, cat 25 %'] },
        { shown, caption: ['dog', 'train 3'] },
        { shown, caption: ['0.5 2', 'train 4'] },
      ],
    });
    expect(look(answersOf(right(9))).plots).not.toHaveProperty('minibatch.svg');
  });

  test('counts in the matrix by class, also where two have one name', () => {
    const report = look(answersOf([...right(30), ...wrong(2, 6)]), ['a', 'a', 'b']);
    expect(report.facts.confusion).toEqual([
      [10, 2, 0],
      [0, 10, 0],
      [0, 0, 10],
    ]);
  });

  test('says of answers that are all right nothing but that', () => {
    const { advice } = look(answersOf(right(300)));
    expect(advice).toContain('All 300 answers are right.');
    expect(advice).not.toMatch(/refuse|confident|most frequent errors|Look at/);
    expect(look(answersOf(right(300).map((a) => ({ ...a, loss: 0 })))).advice).toContain(
      'The loss is 0 on all of them.',
    );
  });

  test('says where one answer to all would be as good, and nothing of it elsewhere', () => {
    const rare = (found: number) =>
      Array.from({ length: 100 }, (_, i) => ({
        truth: i < 5 ? 1 : 0,
        answer: i < found ? 1 : 0,
        logit: 1,
      }));
    expect(look(answersOf(rare(0)), ['no', 'yes', 'other']).advice).toContain(
      'The answer no to all of them would be wrong as often',
    );
    expect(look(answersOf(rare(1))).advice).not.toContain('to all of them');
    const worse = rare(0).map((each, i) => (i > 90 ? { ...each, answer: 2 } : each));
    expect(look(answersOf(worse)).advice).toContain('would be wrong less often (5.00 %)');
    const single = Array.from({ length: 20 }, () => ({ truth: 0, answer: 1, logit: 1 }));
    expect(look(answersOf(single)).advice).not.toContain('to all of them');
  });

  test('advises refusing only where confidence tells errors from right answers', () => {
    const unsure = look(answersOf([...right(200), ...wrong(9, 0.2)])).advice;
    expect(unsure).toContain('`downpour refuse`');
    const sure = look(answersOf([...right(200), ...wrong(9, 5)])).advice;
    expect(sure).toContain('Look at the confident errors first');
    expect(sure).toContain('refusing the least confident ones brings little');
    expect(sure).not.toContain('`downpour refuse`');
  });

  test('names no single examples where more than half are wrong, and no pairs of one error each', () => {
    const bad = look(answersOf([...right(30), ...wrong(60, 5)])).advice;
    expect(bad).toContain('first improve the model');
    expect(bad).not.toMatch(/wrong labels|refus/);
    const single = look(answersOf([...right(99), ...wrong(1, 5)])).advice;
    expect(single).not.toContain('most frequent errors');
  });

  test('speaks of the worst hundredth only of a hundred examples and more', () => {
    expect(look(answersOf([...right(50), ...wrong(2, 5)])).advice).not.toContain('worst 1 %');
    expect(look(answersOf([...right(500), ...wrong(4, 5)])).advice).toContain(
      'Look at these first',
    );
    const even = right(500).map((answer) => ({ ...answer, loss: 1 }));
    expect(look(answersOf(even)).advice).toContain('it is not concentrated in a few of them');
    // Below 0 there are no shares.
    const negative = right(500).map((answer, i) => ({ ...answer, loss: i - 499 }));
    expect(look(answersOf(negative)).advice).not.toContain('worst 1 %');
  });

  test('says that all are of one class', () => {
    const one = Array.from({ length: 120 }, () => ({ truth: 2, answer: 2 }));
    expect(look(answersOf(one), ['a', 'b', 'c']).advice).toContain('All of them are of class c');
  });

  test('says nothing that is no number, whatever it looks at', () => {
    const answer = fc.record({
      truth: fc.nat({ max: 2 }),
      answer: fc.nat({ max: 2 }),
      logit: fc.double({ min: 0.1, max: 40, noNaN: true }),
      loss: fc.oneof(fc.double({ min: 0, max: 9, noNaN: true }), fc.constant(Number.NaN)),
    });
    fc.assert(
      fc.property(fc.array(answer, { minLength: 1, maxLength: 150 }), (list) => {
        const report = look(answersOf(list));
        expect(report.advice).not.toMatch(/NaN|Infinity|undefined|–/);
        const known = list.filter(({ loss }) => Number.isFinite(loss)).length;
        expect(report.advice.includes('The loss is known for')).toBe(known < list.length);
      }),
      { numRuns: 60 },
    );
  });
});

const histogram = { low: -1, high: 1, counts: [1, 1] };
interface Tensor {
  readonly name?: string;
  readonly ratio: (share: number) => number | null;
  readonly norm?: (share: number) => number;
  readonly never?: number;
  readonly rare?: number;
}

/** So many samples, one every 10 steps; shares of the way as arguments. */
function sampled(
  count: number,
  tensors: readonly Tensor[],
  layers: Observations['samples'][number]['layers'] = [],
): Observations {
  return {
    everySteps: 10,
    samples: Array.from({ length: count }, (_, i) => ({
      ...{ step: 10 * i, seconds: i, updateSteps: 1, samples: i + 1 },
      tensors: tensors.map(
        ({ name = 'dense_1/kernel', ratio, norm = () => 1, never = 0, rare = 0 }) => ({
          ...{ name, weights: histogram, gradients: histogram, updates: null },
          ...{ gradientNorm: norm(i / count), updateRatio: ratio(i / count) },
          ...{ elements: 100, never, rare },
        }),
      ),
      layers,
    })),
    cost: { samples: count, ms: 3, share: 0.01 },
  };
}
const advice = (observed: Observations, run?: SampledRun) =>
  observationsReport(observed, run).advice;
/** The learning rate over the same steps. */
const rates = (count: number, rate: (share: number) => number) =>
  Array.from({ length: count }, (_, i) => ({ step: 10 * i, learningRate: rate(i / count) }));

describe('what was sampled', () => {
  const small = () => 1e-5;

  test('that hardly moves at any learning rate asks for a higher one', () => {
    expect(advice(sampled(30, [{ ratio: small }]))).toContain('It hardly moves; try a higher');
  });

  test.each<[string, Observations, SampledRun]>([
    [
      'moved while its schedule gave it a rate',
      sampled(60, [{ ratio: (share) => (share < 0.3 ? 0.004 : 4e-6) }]),
      { rates: rates(60, (share) => (share < 0.3 ? 0.1 : 1e-4)) },
    ],
    [
      'moved at first, and has arrived',
      sampled(60, [{ ratio: (s) => (s < 0.3 ? 0.004 : 1e-6), norm: (s) => (s < 0.3 ? 1 : 1e-4) }]),
      {},
    ],
    ['answers everything rightly', sampled(30, [{ ratio: small }]), { error: 0 }],
    ['is an embedding with rare rows', sampled(60, [{ ratio: small, rare: 60 }]), {}],
    ['has rows that never occur', sampled(60, [{ ratio: small, never: 30 }]), {}],
    ['has just begun', sampled(3, [{ ratio: small }]), {}],
    ['was never compared', sampled(30, [{ ratio: () => null }]), {}],
    ['gets no gradient', sampled(30, [{ ratio: small, norm: () => 0 }]), {}],
  ])('is not told to move more where it %s', (_, observed, run) => {
    expect(advice(observed, run)).not.toContain('higher learningRate');
  });

  test('is told to move less only where it moves too much to the end', () => {
    const large = { ratio: () => 0.4 };
    expect(advice(sampled(30, [large]))).toContain('lower learningRate');
    // A bias begins at 0.
    const bias = { name: 'dense_1/bias', ratio: (share: number) => (share < 0.6 ? 0.8 : 0.02) };
    expect(advice(sampled(30, [bias]))).not.toContain('lower learningRate');
    expect(advice(sampled(4, [large]))).not.toContain('lower learningRate');
  });

  test('without any gradient is said to be so, and not to hardly move', () => {
    expect(advice(sampled(30, [{ ratio: () => 0, norm: () => 0 }]))).toContain(
      'no gradient reaches it',
    );
  });

  test('compares thirds of the samples, not two noisy ones', () => {
    const noisy = random(3, 1);
    const flat = sampled(60, [{ ratio: () => 0.005, norm: () => 1 + 0.5 * noisy.uniform() }]);
    expect(advice(flat)).toContain('no critical point is near');
    const gone = sampled(60, [{ ratio: () => 0.005, norm: (share) => 10 ** (-4 * share) }]);
    expect(advice(gone)).toContain('below 1 % of what it was in 1');
    expect(advice(sampled(5, [{ ratio: () => 0.005 }]))).not.toContain('gradient norm');
  });

  test('recommends optimizers for rare features to those that have none such', () => {
    const rare = sampled(60, [{ ratio: () => 0.005, rare: 40 }]);
    expect(advice(rare, { optimizer: 'sgd' })).toContain('Adagrad or Adam');
    expect(advice(rare, { optimizer: 'adam' })).not.toContain('Adagrad or Adam');
    // In 20 samples nothing can be in fewer than one of them.
    const young = sampled(20, [{ ratio: () => 0.005, rare: 40 }]);
    expect(advice(young, { optimizer: 'sgd' })).not.toContain('Adagrad');
    const never = sampled(60, [{ ratio: () => 0.005, never: 40 }]);
    expect(advice(never, { optimizer: 'sgd' })).not.toContain('Adagrad');
  });

  test('does not call an output unhealthy that is sure of itself', () => {
    const layer = (name: string, saturated: number | null, dead = 0) => ({
      ...{ layer: name, activation: 'sigmoid', values: histogram, saturated, dead },
    });
    const observed = (...layers: ReturnType<typeof layer>[]) =>
      sampled(30, [{ ratio: () => 0.005 }], layers);
    expect(advice(observed(layer('hidden', 0.1), layer('out', 0.9)))).not.toContain('At the end');
    const bad = advice(observed(layer('hidden', 0.9), layer('out', 0.9)));
    expect(bad).toContain('At the end: hidden (0.00 % dead, 90.00 % saturated); look at');
    const solved = advice(observed(layer('hidden', null, 0.4), layer('out', null)));
    expect(solved).toContain('hidden (40.00 % dead)');
    expect(
      observationsReport(observed(layer('hidden', null, 0.4), layer('out', null)), { error: 0 })
        .advice,
    ).not.toContain('look at initial values');
  });
});

describe('looking at an objective', () => {
  const examples = Array.from({ length: 150 }, (_, row) => ({
    ...{ row: 2 * row, loss: row === 70 ? 900 : 1, error: row },
  }));
  const show = (row: number) => ({ kind: 'text', text: `in ${row}` }) as const;
  const settings = { name: 'r', part: 'validation', worst: 2, random: 3, seed: 1 } as const;

  test('shows the worst losses, and beside each example what the model makes of it', () => {
    const showOutput = (row: number) => ({ kind: 'text', text: `out ${row}` }) as const;
    const report = lookLossesReport(settings, { examples, count: 300, show, showOutput });
    expect(report.headings).toEqual(['example', 'loss', 'error']);
    expect(report.rows[0]).toEqual(['140', '900', '70']);
    expect(report.advice).toMatch(/^The mean loss is 6\.99\d*\. The worst 1 % .*150 of the 300/);
    const { cards } = report.plots['worst.svg'] as unknown as {
      cards: { shown: { text: string } }[];
    };
    expect(cards.map(({ shown }) => shown.text).slice(0, 2)).toEqual(['in 140', 'out 140']);
    expect(cards.length).toBe(4);
  });

  test('has one column of numbers where the error is the loss, and says what is not finite', () => {
    const same = [
      { row: 0, loss: Number.NaN, error: Number.NaN },
      { row: 1, loss: 2, error: 2 },
    ];
    const report = lookLossesReport(settings, { examples: same.slice(1), count: 1, show });
    expect(report.headings).toEqual(['example', 'loss']);
    expect(report.advice).toBe('The mean loss is 2.');
    expect(lookLossesReport(settings, { examples: same, count: 2, show }).advice).toContain(
      'The loss is finite for 1 of the 2 examples.',
    );
  });
});

test('reports of several outputs are one, with the name of the output', () => {
  const of = (text: string) => ({ ...look(answersOf(right(9))), advice: text });
  const report = joinReports({ price: of('Well.'), kind: of('Bad.') });
  expect(report.advice).toBe('Output price: Well. Output kind: Bad.');
  expect(report.rows[5]![0]).toBe('kind');
  expect(Object.keys(report.plots)).toContain('kind-worst.svg');
  expect(report.plots['price-worst.svg']!.title).toBe('price: Highest losses');
  const one = of('One.');
  expect(joinReports({ '': one })).toBe(one);
});
