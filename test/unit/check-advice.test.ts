import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { contradictions, judgeTiny } from '../../cli/study/check-tiny.ts';
import { createUpdater } from '../../cli/study/updater.ts';
import { resolveConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import type { TinyResult, TinySettings } from '../../study/tiny.ts';
import { checkExperiment } from '../../worker/check/check.ts';
import { checkData } from '../../worker/check/data.ts';
import type { Finding } from '../../worker/check/finding.ts';
import {
  checkOutput,
  guessesOf,
  type InitialLoss,
  judgeInitialLoss,
} from '../../worker/check/model.ts';
import { judgeThroughput } from '../../worker/check/throughput.ts';
import {
  checkDirection,
  checkProgress,
  checkRatios,
  type ShortTraining,
} from '../../worker/check/training.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import type { Experiment } from '../../worker/experiment.ts';

// Sentences of `downpour check`, most of all where they must not be said (docs/advice.md).

const split = { seed: 1, validationFraction: 0.2, standardise: 'none' } as const;
const bySelf = (findings: readonly Finding[]) =>
  Object.fromEntries(findings.map((found) => [found.check, found]));
const clean = ({ text, next }: Finding) =>
  expect(`${text} ${next}`).not.toMatch(/NaN|undefined|Infinity|null\b.*null/);

function dataOf(
  rows: number,
  width: number,
  input: (row: number, feature: number) => number,
  target: (row: number) => number,
  classCount?: number,
): ExperimentData {
  const inputs = Float32Array.from({ length: rows * width }, (_, i) =>
    input(Math.floor(i / width), i % width),
  );
  const values = Array.from({ length: rows }, (_, row) => target(row));
  const targets = classCount === undefined ? Float32Array.from(values) : Int32Array.from(values);
  return {
    train: {
      count: rows,
      inputs: { values: inputs, shape: [rows, width] },
      targets: { values: targets, shape: classCount === undefined ? [rows, 1] : [rows] },
    },
    ...(classCount === undefined ? {} : { classCount }),
    source: 'made',
  };
}
const wave = (row: number, feature: number) => Math.sin(1 + 7 * row + 3 * feature);
const findingsOf = (data: ExperimentData, embedding: number | null = null, more = {}) =>
  bySelf(checkData(prepareData(data, { ...split, ...more }), embedding));

test('a sample of the examples is not taken for all of them', () => {
  const prepared = prepareData(
    dataOf(100, 2, wave, (row) => row % 2, 2),
    split,
  );
  const counts = { train: 400_000, validation: 100_000, test: 0 };
  const [all, sample] = [checkData(prepared, null, counts), checkData(prepared)].map(bySelf);
  expect(all!.count).toMatchObject({
    verdict: 'ok',
    numbers: { ...counts, perClass: 200_000 },
  });
  expect(all!.count!.text).toContain('400000 training');
  expect(sample!.count).toMatchObject({ verdict: 'advice', numbers: { perClass: 40 } });
});

describe('inputs that are ids', () => {
  const tokens = dataOf(
    200,
    6,
    (row, j) => 1 + ((31 * row + 17 * j + ((row * j) % 5)) % 40),
    (row) => row % 2,
    2,
  );

  test('are not called badly scaled where the model looks them up', () => {
    const { scale, labels } = findingsOf(tokens, 41);
    expect(scale!.verdict).toBe('ok');
    expect(scale!.text).toContain('ids for an embedding of 41 rows');
    expect(`${scale!.next}`).not.toContain('standardise');
    expect(labels!.verdict).toBe('ok');
  });

  test('may be what whole numbers are for a model without an embedding: advice for both', () => {
    const { inputs } = tokens.train;
    const whole = { ...inputs, values: Int32Array.from(inputs.values) };
    const { scale } = findingsOf({ ...tokens, train: { ...tokens.train, inputs: whole } });
    expect(scale!.verdict).toBe('advice');
    expect(scale!.next).toMatch(/for ids, keep 'none'/);
  });
});

describe('scale', () => {
  test('is not advised against where it is standardised already', () => {
    const wide = dataOf(
      100,
      2,
      (row, f) => (f === 0 ? 1000 : 1) * wave(row, f),
      (row) => row,
    );
    expect(findingsOf(wide).scale!.verdict).toBe('problem');
    expect(findingsOf(wide, null, { standardise: 'feature' }).scale!.verdict).toBe('ok');
  });

  test('of inputs that never vary is no matter of standardising', () => {
    const { scale } = findingsOf(
      dataOf(
        50,
        3,
        () => 0,
        (row) => row,
      ),
    );
    expect(scale).toMatchObject({ verdict: 'problem' });
    expect(scale!.text).toContain('No feature ever varies');
    expect(scale!.next).not.toContain('standardise');
  });
});

describe('classes and labels', () => {
  test('one class only is a problem of its own, not of labels that do not follow', () => {
    const { classes, labels } = findingsOf(dataOf(200, 2, wave, () => 1, 2));
    expect(classes!.text).toContain('are of class 1 (classes are 0 to 1)');
    expect(labels).toMatchObject({ verdict: 'ok' });
    expect(labels!.text).toContain('not possible to say');
  });

  test.each([5, 9, 12])('%i random rows do not prove labels wrong', (rows) => {
    const { labels } = findingsOf(dataOf(rows, 2, wave, (row) => row % 2, 2));
    expect(labels!.verdict).toBe('ok');
    expect(labels!.text).toMatch(/Not enough examples|not possible to say/);
  });

  test('of a rare class nothing could be beyond chance, and nothing is claimed', () => {
    const { labels } = findingsOf(dataOf(200, 2, wave, (row) => (row % 67 === 0 ? 1 : 0), 2));
    expect(labels!.verdict).toBe('ok');
  });
});

describe('duplicates', () => {
  test.each([
    [1, 'advice'],
    [3, 'problem'],
  ] as const)(
    '%i of 30 validation examples that stand in the training part: %s',
    (equal, verdict) => {
      const own = (first: number) =>
        dataOf(
          30,
          2,
          (row, f) => wave(first + row, f),
          (row) => row % 2,
          2,
        ).train;
      const validation = own(0);
      const train = own(1000);
      const values = train.inputs.values.slice();
      values.set(validation.inputs.values.subarray(0, 2 * equal));
      const inputs = { ...train.inputs, values };
      const { duplicates } = findingsOf({
        ...{ train: { ...train, inputs }, validation, classCount: 2, source: 'few equal rows' },
      });
      expect(duplicates!.verdict).toBe(verdict);
    },
  );

  test('of few possible inputs are no leak', () => {
    const xor = dataOf(
      200,
      2,
      (row, f) => (row >> f) & 1,
      (row) => (row ^ (row >> 1)) & 1,
      2,
    );
    const { duplicates } = findingsOf(xor);
    expect(duplicates!.verdict).toBe('advice');
    expect(duplicates!.text).toContain('only 4 distinct inputs');
  });
});

describe('the loss before training', () => {
  const given = (more: Partial<InitialLoss>, loss: number): InitialLoss => ({
    ...{ loss: 'softmaxCrossEntropy', classCount: 2, priors: Math.LN2, constant: null },
    ...more,
    measured: { loss, error: 0.5 },
  });
  const own = () => null as never;

  test('of a bias that begins at the frequencies of the classes is no leak', () => {
    // 99 to 1: a guess that knows as much costs 0.056.
    const priors = -(0.99 * Math.log(0.99) + 0.01 * Math.log(0.01));
    expect(judgeInitialLoss(given({ priors }, 0.057)).verdict).toBe('ok');
    // Balanced weights make these frequencies equal, and other weights make all losses as much larger.
    const weighed = guessesOf([0.99, 0.01], [1 / 1.98, 50]);
    expect(weighed.priors).toBeCloseTo(Math.LN2, 10);
    expect(judgeInitialLoss(given(weighed, 0.057)).verdict).toBe('problem');
    expect(judgeInitialLoss(given(guessesOf([0.5, 0.5], [10, 10]), 6.93)).verdict).toBe('ok');
    expect(judgeInitialLoss(given(guessesOf([0.5, 0.5], undefined), 6.93)).verdict).toBe('problem');
    expect(judgeInitialLoss(given({}, 0.057)).verdict).toBe('problem');
    expect(judgeInitialLoss(given({ priors }, 0.001)).verdict).toBe('problem');
  });

  test('of a loss of its own is not held against ln K', () => {
    const found = judgeInitialLoss(given({ loss: own }, 0.1));
    expect(found.verdict).toBe('ok');
    expect(found.text).not.toContain('equally likely');
  });

  test('below zero is right for densities, wrong for classes', () => {
    const numbers = { loss: own, classCount: null, priors: null };
    expect(judgeInitialLoss(given(numbers, -0.4)).verdict).toBe('advice');
    expect(judgeInitialLoss(given({ loss: own }, -0.4)).verdict).toBe('problem');
  });

  test('targets that are all the same are no matter of standardising', () => {
    const numbers = { loss: 'meanSquaredError', classCount: null, priors: null } as const;
    const found = judgeInitialLoss(given({ ...numbers, constant: 0 }, 4));
    expect(found.text).toContain('The targets looked at are all the same');
    expect(found.next).toBeNull();
    expect(judgeInitialLoss(given({ ...numbers, constant: 0.01 }, 4)).next).toContain(
      'standardise',
    );
  });
});

describe('the output', () => {
  const yesNo = { loss: 'sigmoidCrossEntropy' } as const;
  const between = {
    values: Float32Array.from({ length: 64 }, (_, i) => i / 64),
    shape: [64, 1],
  };

  test('of a linear layer is no sigmoid, though its values lie between 0 and 1', () => {
    expect(checkOutput(yesNo, { classCount: null }, between, null).verdict).toBe('ok');
    expect(checkOutput(yesNo, { classCount: null }, between, 'sigmoid').verdict).toBe('problem');
    // Nobody knows more of a function of variables than its values.
    expect(checkOutput(yesNo, { classCount: null }, between).verdict).toBe('problem');
    const few = { values: between.values.subarray(0, 4), shape: [4, 1] };
    expect(checkOutput(yesNo, { classCount: null }, few).verdict).toBe('ok');
  });
});

describe('the short trial', () => {
  const measured = (loss: number, error: number) => ({ loss, error, metrics: {} });
  const trained = (more: Partial<ShortTraining>): ShortTraining => ({
    ...{ steps: 100, losses: [1], diverged: null, modes: { training: 1, evaluation: 1 } },
    ...{ before: measured(1, 0.5), after: measured(0.5, 0.2) },
    ...{ validationBefore: measured(1, 0.5), validation: measured(0.5, 0.2) },
    ratios: [{ tensor: 'k', ratio: 0.005, largest: 0.01, moved: true, gradientNorm: [1, 1] }],
    ...{ examples: { training: 400, validation: 100 }, rowsLargest: null },
    ...more,
  });

  test('that was not finite from the start does not blame the learning rate', () => {
    const broken = {
      before: measured(Number.NaN, 0.5),
      diverged: 'the loss was not finite at update 1',
    };
    const found = checkProgress(trained(broken), 0.1);
    expect(found.verdict).toBe('problem');
    expect(`${found.text} ${found.next}`).not.toMatch(/too high|lower learningRate/);
    const later = {
      after: measured(Number.NaN, 0.5),
      diverged: 'the loss was not finite at update 9',
    };
    expect(checkProgress(trained(later), 0.1).next).toContain('lower learningRate');
  });

  test('of few updates in which the loss falls a little does not say that nothing is learnt', () => {
    const slow = { after: measured(0.98, 0.5) };
    expect(checkProgress(trained({ ...slow, steps: 20 }), 0.1).verdict).toBe('advice');
    expect(checkProgress(trained(slow), 0.1).verdict).toBe('problem');
  });

  describe('without a tensor of rank 2', () => {
    const still = { after: measured(0.999, 0.5), ratios: [] };
    const text = (rowsLargest: number | null) =>
      checkProgress(trained({ ...still, rowsLargest }), 0.1).text;

    test('looks at the updates of rows', () => {
      expect(text(1e-6)).toContain('It hardly moves: the largest update is 0.000001 of its rows.');
      expect(text(0.01)).toContain('although the updates have the usual size');
      expect(text(0.5)).toContain('the learning rate is too high');
    });

    test('says nothing of updates that were not measured', () => {
      expect(text(null)).toMatch(/ It does not learn\.$/);
      expect(text(null)).not.toContain('hardly moves');
    });
  });

  test('with rows that move does not say that it hardly moves, and with small ones not that it moves too far', () => {
    const ratios = trained({}).ratios.map((ratio) => ({ ...ratio, largest: 1e-6 }));
    const still = { after: measured(0.999, 0.5), ratios };
    const { text } = checkProgress(trained({ ...still, rowsLargest: 0.9 }), 0.1);
    expect(text).toContain('although the updates have the usual size');
    expect(checkProgress(trained({ ...still, rowsLargest: 1e-6 }), 0.1).text).toContain(
      'the largest update is 0.000001 of its tensor',
    );
  });

  test('with nothing to learn says so', () => {
    const done = { before: measured(0, 0), after: measured(0, 0) };
    expect(checkProgress(trained(done), 0.1).text).toContain('nothing to learn');
  });

  test('answers are not called worse where a rare class is not found yet, or a few validate by chance', () => {
    const rare = { before: measured(0.69, 0.1), after: measured(0.3, 0.1) };
    expect(checkDirection(trained(rare), 'misclassification', 0.9).verdict).toBe('advice');
    const few = {
      ...{ validationBefore: measured(1, 0.25), validation: measured(1.1, 0.5) },
      examples: { training: 32, validation: 8 },
    };
    expect(checkDirection(trained(few), 'misclassification', 0.5).verdict).toBe('ok');
    const wrong = { after: measured(0.5, 0.9) };
    expect(checkDirection(trained(wrong), 'misclassification', 0.5).verdict).toBe('problem');
    // With classes of one size a loss cannot fall so far while all stays as it was.
    const stuck = { before: measured(-2.4, 0.91), after: measured(-2e9, 0.92) };
    expect(checkDirection(trained(stuck), 'misclassification', 0.12).verdict).toBe('problem');
  });

  test('a tensor of zeros that has begun to move has not moved too far', () => {
    const { ratios } = trained({});
    const zero = { ...ratios[0]!, tensor: 'zero', ratio: 0, largest: 0 };
    expect(checkRatios(trained({ ratios: [...ratios, zero] })).verdict).toBe('ok');
    const still = checkRatios(trained({ ratios: [...ratios, { ...zero, moved: false }] }));
    expect(still.text).toContain('zero never moved');
  });
});

test('no size of a minibatch is advised that there are no examples for', () => {
  expect(judgeThroughput([], 4, 'x', 9)).toMatchObject({
    verdict: 'ok',
    numbers: { count: 9, needed: 16 },
  });
  const timings = [{ size: 16, stepMs: 1, examplesPerSecond: 16_000 }];
  expect(judgeThroughput(timings, 4, 'there are 20 training examples', 20).verdict).toBe('ok');
});

test('a size that is four times as fast is advised, where an epoch still has ten updates', () => {
  const timings = [16, 32, 64, 128, 256].map((size) => ({
    ...{ size, stepMs: 8, examplesPerSecond: 125 * size },
  }));
  const found = judgeThroughput(timings, 32, 'x', 10_000);
  expect(found).toMatchObject({ verdict: 'advice', numbers: { faster: 128 } });
  expect(found.text).toContain('minibatchSize is 32; 128 has 4 times the examples a second');
  expect(found.next).toContain('try minibatchSize 128');
  // 128 would leave fewer than ten updates of an epoch, and nothing is four times as fast as 128.
  expect(judgeThroughput(timings, 32, 'x', 1_279).verdict).toBe('ok');
  expect(judgeThroughput(timings, 32, 'x', 1_280).verdict).toBe('advice');
  expect(judgeThroughput(timings, 128, 'x', 10_000).verdict).toBe('ok');
  const slower = timings.map((each) => ({ ...each, examplesPerSecond: 1_000 + each.size }));
  expect(judgeThroughput(slower, 32, 'x', 10_000).verdict).toBe('ok');
});

describe('a tiny set', () => {
  const settings: TinySettings = {
    ...{ examples: 32, minibatchSize: 8, steps: 300, workers: [1, 2], available: 100, base: [] },
    ...{ ownValidation: false, target: 0, metric: 'trainingError' },
  };
  const result = (workers: number, more: Partial<TinyResult> = {}): TinyResult => ({
    ...{ workers, value: 0.1, learnt: false, step: 300, staleness: 1 },
    ...{ falling: false, failed: false, refused: false, reason: '', ...more },
  });
  const learnt = result(1, { value: 0, learnt: true });

  test('whose training failed is told with the reason, not as a defect of the model', () => {
    const reason = 'no worker can do it: DP_DATA_LABEL row 3: label 7';
    const refused = result(1, { value: null, failed: true, refused: true, reason, step: 0 });
    const found = judgeTiny([refused], settings);
    expect(found.text).toContain('label 7');
    expect(found.text).not.toContain('a defect');
    expect(found.next).not.toContain('learningRate');
  });

  test('blames staleness where there was some, and with the number', () => {
    expect(judgeTiny([learnt, result(2)], settings).text).toContain('1 updates stale on average');
    const fresh = judgeTiny([learnt, result(2, { staleness: 0.1 })], settings);
    expect(fresh.text).toContain('staleness is not the reason');
  });

  test('that is still being learnt is no defect', () => {
    const slow = judgeTiny([result(1, { falling: true })], settings);
    expect(slow.verdict).toBe('advice');
    expect(slow.text).not.toContain('defect');
  });

  test('is no proof of a defect where nobody knows how low the loss can get', () => {
    const own = { ...settings, metric: 'trainingLoss' as const, target: 0.1, certain: false };
    expect(judgeTiny([result(1)], own).verdict).toBe('advice');
    expect(judgeTiny([result(1)], { ...own, certain: true }).verdict).toBe('problem');
  });

  test('counts twins with other targets, which nothing can learn', () => {
    const { train } = dataOf(
      12,
      2,
      (row) => row % 3,
      (row) => (row < 8 ? 0 : 1),
      2,
    );
    // Inputs 0, 1 and 2 four times each, one or two of them with the other label.
    expect(contradictions(train, 2)).toBe(4);
    const found = judgeTiny([result(1)], { ...settings, unlearnable: 4, target: 4 / 32 });
    expect(found.text).toContain('so no model can learn them');
  });
});

describe('few rows', () => {
  beforeAll(() => openEngine({ engine: 'wasm' }));

  const experiment = (loss: Experiment['loss'], data: ExperimentData): Experiment => ({
    data: () => data,
    loss,
    model: ({ tf, inputShape, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.dense({ units: 4, activation: 'relu', inputShape }),
          tf.layers.dense({ units: classCount || 1 }),
        ],
      }),
  });

  test('of any number: every check is made or says what it needs, and nothing throws', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 2, max: 10 }),
        fc.constantFrom('meanSquaredError', 'softmaxCrossEntropy', 'sigmoidCrossEntropy'),
        fc.constantFrom('ordinary', 'one class', 'constant'),
        fc.integer({ min: 1, max: 99 }),
        async (rows, loss, shape, seed) => {
          const draw = random(seed, 1);
          const label = (row: number) => (shape === 'one class' ? 0 : (row * seed) % 2);
          const data = dataOf(
            rows,
            2,
            () => (shape === 'constant' ? 1 : draw.normal()),
            label,
            loss === 'softmaxCrossEntropy' ? 2 : undefined,
          );
          const own = experiment(loss as Experiment['loss'], data);
          const config = resolveConfig({ seed });
          const prepared = prepareData(data, split);
          const findings = await checkExperiment({
            ...{ experiment: own, config, prepared, steps: 5 },
            updater: (layout, initial) => createUpdater(layout, config, initial),
          });
          for (const found of findings) clean(found);
          const names = findings.map(({ check }) => check);
          for (const name of [
            'scale',
            'count',
            'duplicates',
            'gradient',
            'activations',
            'progress',
          ])
            expect(names).toContain(name);
        },
      ),
      { numRuns: 12 },
    );
  }, 60_000);
});
