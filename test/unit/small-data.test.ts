import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DownpourError } from '../../shared/errors.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';

const LOSSES = [
  ...['softmaxCrossEntropy', 'negativeLogLikelihood', 'sigmoidCrossEntropy'],
  ...['meanSquaredError', 'meanAbsoluteError', null],
];

/** Row i has the input i, so that rows can be told apart, and a label. */
const dataWith = (labels: readonly number[], classCount?: number) =>
  dataOf({
    train: { inputs: { values: labels.map((_, i) => [i]) }, targets: { values: labels } },
    ...(classCount === undefined ? {} : { classCount }),
  });
const base = { seed: 1, validationFraction: 0.2, standardise: 'none' as const };
const told = (f: () => unknown) => {
  try {
    f();
  } catch (error) {
    return error as DownpourError;
  }
  return null;
};

describe('data of 1 to 10 rows', () => {
  test('are divided into parts with examples, each row once, or refused with a reason', () => {
    const cases = fc.record({
      labels: fc.array(fc.nat(3), { minLength: 1, maxLength: 10 }),
      classCount: fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined }),
      loss: fc.constantFrom(...LOSSES),
      validationFraction: fc.constantFrom(0, 0.01, 0.2, 0.5, 0.99),
      folds: fc.option(fc.integer({ min: 2, max: 12 })),
      fold: fc.nat(11),
      apart: fc.option(fc.nat(11)),
      stratified: fc.boolean(),
      trainFraction: fc.constantFrom(0.01, 0.5, 1),
      bootstrap: fc.boolean(),
      standardise: fc.constantFrom('none' as const, 'global' as const, 'feature' as const),
      seed: fc.nat(99),
    });
    let read = 0;
    fc.assert(
      fc.property(cases, ({ labels, classCount, folds, fold, apart, stratified, ...rest }) => {
        const validation = {
          ...{ folds, stratified, fold: folds === null ? 0 : fold % folds },
          apart: folds === null || apart === null ? null : apart % folds,
        };
        const prepare = () => prepareData(dataWith(labels, classCount), { ...rest, validation });
        const error = told(prepare);
        if (error !== null) {
          expect(error, String(error)).toBeInstanceOf(DownpourError);
          expect(error.message).toMatch(/\d|class/);
          return;
        }
        read++;
        const prepared = prepare();
        const rows = (part: 'train' | 'validation') =>
          Array.from(prepared[part].inputs.values, Number);
        const [train, validates] = [rows('train'), rows('validation')];
        expect(train.length).toBeGreaterThan(0);
        if (folds !== null || rest.validationFraction > 0) {
          expect(validates.length).toBeGreaterThan(0);
        }
        expect(train.filter((row) => validates.includes(row))).toEqual([]);
        expect(new Set(validates).size).toBe(validates.length);
        if (!rest.bootstrap) expect(new Set(train).size).toBe(train.length);
        const batch = gather(prepared, 'train', [train.length - 1]);
        expect(Array.from(batch.inputs).every(Number.isFinite)).toBe(true);
      }),
      { numRuns: 1500 },
    );
    expect(read).toBeGreaterThan(100);
  });

  test.each([
    [1, {}, 'DP_EXPERIMENT_INVALID', '1 training example cannot be split into 2 parts'],
    [
      5,
      { validation: { folds: 10, fold: 0, stratified: false } },
      'DP_EXPERIMENT_INVALID',
      '5 training examples cannot be split into 10 parts',
    ],
    [
      4,
      { validation: { folds: 2, fold: 0, apart: 1, stratified: false } },
      'DP_CONFIG_INVALID',
      'one of 2 folds validates and one is held out, so none is left to train on',
    ],
  ])('%i rows, %o: %s', (rows, more, code, message) => {
    const error = told(() =>
      prepareData(dataWith(Array.from({ length: rows }, (_, i) => i)), { ...base, ...more }),
    );
    expect(error).toMatchObject({ code });
    expect(error!.message).toContain(message);
  });

  test('of a class with one row, stratified, have it in one fold alone', () => {
    const labels = [0, 0, 0, 1, 1, 1, 2];
    const folds = [0, 1, 2].map((fold) => {
      const validation = { folds: 3, fold, stratified: true };
      return prepareData(dataWith(labels, 3), { ...base, validation }).validation.targets.values;
    });
    expect(folds.map((values) => values.filter((c) => c === 2).length).sort()).toEqual([0, 0, 1]);
  });

  test('fewer than classes are read: classes that never occur are a finding of check', () => {
    const { train } = prepareData(dataWith([0, 1, 2], 10), {
      ...base,
      loss: 'softmaxCrossEntropy',
    });
    expect(train.count).toBe(2);
  });
});
