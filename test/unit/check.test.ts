import { describe, expect, test } from 'vitest';
import { judgeTiny } from '../../cli/study/check-tiny.ts';
import { type RunConfig, resolveConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import type { Trial } from '../../study/study.ts';
import { type TinySettings, tinyPlan, tinyResults } from '../../study/tiny.ts';
import { checkData } from '../../worker/check/data.ts';
import { judgeThroughput } from '../../worker/check/throughput.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { loadCsv } from '../../worker/data/tables/csv.ts';

// What needs no engine; the planted defects are in test/book/check.test.ts.

const CARS = new URL('../../examples/data/auto-mpg.csv', import.meta.url).pathname;
const cars = (target = 'mpg') =>
  loadCsv(CARS, {
    targets: [target],
    ignore: ['name'],
    ...(target === 'mpg' ? { categorical: ['origin'] } : {}),
  });
const options = { seed: 1, validationFraction: 0.2, standardise: 'feature' } as const;

function findingsOf(data: ExperimentData, standardise: 'none' | 'feature' = 'feature') {
  const findings = checkData(prepareData(data, { ...options, standardise }));
  return Object.fromEntries(findings.map((found) => [found.check, found]));
}

describe('the data of a table', () => {
  test('as it comes has features of very different sizes, which is said; standardised it is fine', async () => {
    const data = await cars();
    expect(findingsOf(data, 'none').scale).toMatchObject({ verdict: 'problem' });
    expect(findingsOf(data, 'none').scale!.next).toContain("standardise: 'feature'");
    expect(findingsOf(data).scale!.verdict).toBe('ok');
  });

  test('below 100,000 examples k-fold is advised, with the count', async () => {
    const { count, classes } = findingsOf(await cars());
    expect(count).toMatchObject({ verdict: 'advice', numbers: { train: 314, perClass: null } });
    expect(count!.next).toContain('downpour folds');
    expect(classes).toBeUndefined();
  });

  test('with rows twice, whose copies end up on both sides of the split', async () => {
    const data = await cars();
    const twice = (column: typeof data.train.inputs) => ({
      values: Float32Array.from([...column.values, ...column.values]),
      shape: [2 * column.shape[0]!, ...column.shape.slice(1)],
    });
    const { inputs, targets, count } = data.train;
    const train = { count: 2 * count, inputs: twice(inputs), targets: twice(targets) };
    expect(findingsOf({ ...data, train }).duplicates).toMatchObject({ verdict: 'problem' });
  });
});

describe('classes', () => {
  const labelled = (labels: number[]): ExperimentData => ({
    train: {
      count: labels.length,
      // Two features that follow the label, a little off each time.
      inputs: {
        values: Float32Array.from(
          labels.flatMap((c, i) => [c + 0.1 * Math.sin(i), -c + 0.1 * Math.cos(3 * i)]),
        ),
        shape: [labels.length, 2],
      },
      targets: { values: Int32Array.from(labels), shape: [labels.length] },
    },
    classCount: 3,
    source: 'made',
  });

  test('of very different counts, or without examples, are told', () => {
    const rare = labelled(Array.from({ length: 900 }, (_, i) => (i % 100 === 0 ? 2 : i % 2)));
    expect(findingsOf(rare).classes).toMatchObject({ verdict: 'advice' });
    expect(findingsOf(rare).classes!.text).toContain('look at each class');
    const nextOf = (data: ExperimentData, isWeighed: boolean | null) => {
      const found = checkData(prepareData(data, options), null, undefined, isWeighed);
      return found.find(({ check }) => check === 'classes')!.next;
    };
    expect(nextOf(rare, false)).toContain("set classWeights: 'balanced'");
    // They have weights, or the loss cannot have any.
    expect(nextOf(rare, true)).not.toContain('classWeights');
    expect(nextOf(rare, null)).not.toContain('classWeights');
    const even = labelled(Array.from({ length: 300 }, (_, i) => i % 3));
    expect(nextOf(even, false)).toBeNull();
    const missing = labelled(Array.from({ length: 300 }, (_, i) => i % 2));
    expect(findingsOf(missing).classes!.text).toContain('1 class has no training example');
    expect(
      findingsOf(labelled(Array.from({ length: 300 }, (_, i) => i % 3))).classes!.verdict,
    ).toBe('ok');
  });

  test('that follow the inputs are told from those that do not', () => {
    const labels = Array.from({ length: 600 }, (_, i) => i % 3);
    expect(findingsOf(labelled(labels)).labels!.verdict).toBe('ok');
    const shuffled = labelled(labels);
    const draw = random(5, 5);
    shuffled.train.targets.values.set(labels.map(() => draw.below(3)));
    expect(findingsOf(shuffled).labels!.verdict).toBe('problem');
  });
});

describe('the size of minibatches', () => {
  const timing = (size: number, examplesPerSecond: number) => ({
    size,
    examplesPerSecond,
    stepMs: 1,
  });
  const timings = [
    timing(16, 900),
    timing(32, 1000),
    timing(64, 1700),
    timing(128, 2000),
    timing(256, 2100),
    timing(512, 5000),
  ];

  test('chosen is the smallest of 32 to 256 that is nearly as fast as the fastest of them', () => {
    const found = judgeThroughput(timings, 64, 'memory would run short');
    expect(found).toMatchObject({ verdict: 'ok', numbers: { chosen: 64, largest: 512 } });
    expect(found.text).toContain('memory would run short');
    expect(judgeThroughput(timings, 4, 'x')).toMatchObject({
      verdict: 'advice',
      next: 'try minibatchSize 64',
    });
  });

  test('one that failed is a problem where the configuration asks for it', () => {
    expect(judgeThroughput(timings, 1024, '1024 failed: out of memory')).toMatchObject({
      verdict: 'problem',
    });
    expect(judgeThroughput([], 64, 'x').text).toContain('none');
  });
});

describe('the tiny set', () => {
  const settings: TinySettings = {
    ...{ examples: 32, minibatchSize: 8, steps: 300, workers: [1, 3], available: 1000 },
    ...{
      ownValidation: false,
      target: 0,
      metric: 'trainingError',
      base: [{ weightDecay: { rate: 0.1 } }],
    },
  };
  const trial = (workers: number, errors: number[], end: Trial['end'] = null) =>
    ({
      ...{ index: 0, point: { workers }, end, step: 50 * errors.length },
      evaluations: errors.map((trainingError, i) => ({
        step: 50 * (i + 1),
        metrics: { trainingError },
      })),
    }) as unknown as Trial;

  test('is what is left when nearly all examples are set aside, without regularisers', () => {
    const { start } = tinyPlan(settings).decide([], 5);
    const parts = (config: RunConfig) => {
      const held = Math.round(1000 * config.validationFraction);
      return [held, Math.round((1000 - held) * config.trainFraction)];
    };
    expect(start.map(({ config }) => parts(config))).toEqual([
      [64, 32],
      [64, 32],
    ]);
    expect(start.map(({ config }) => config.workersMin)).toEqual([1, 3]);
    expect(start[0]!.config.weightDecay.rate).toBe(0);
    expect(start[0]!.config).toEqual(resolveConfig(start[0]!.config));
  });

  test('ends a trial as soon as it has learnt all by heart', () => {
    const plan = tinyPlan(settings);
    expect(plan.decide([trial(1, [0.5, 0.1])], 0).change).toEqual([]);
    expect(plan.decide([trial(1, [0.5, 0])], 0).change).toMatchObject([{ index: 0, to: 'kill' }]);
  });

  test.each([
    [[0.2, 0], [0], 'ok', 'error 0 %'],
    [[0.2, 0], [0.3, 0.2], 'advice', 'staleness, not the model'],
    [[0.5], [0.5], 'problem', 'a defect'],
    [[], [], 'problem', 'error none'],
  ])('one worker %j, three %j: %s', (alone, together, verdict, words) => {
    const over = { kind: 'finished', reason: '' } as const;
    const late = {
      ...trial(3, together, over),
      curve: { staleness: [0, 2, 1] },
    } as unknown as Trial;
    const results = tinyResults([trial(1, alone, over), late], settings);
    const found = judgeTiny(results, settings);
    expect(found.verdict).toBe(verdict);
    expect(found.text).toContain(words);
  });
});
