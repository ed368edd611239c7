import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Keeper } from '../../server/checkpoints/keeper.ts';
import type { Run } from '../../server/core/run.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import type { WorkerSession } from '../../server/fleet/session.ts';
import { resolveConfig } from '../../shared/config.ts';
import type { Examples, ExperimentData } from '../../worker/data/examples.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { createRun } from '../support/regression.ts';

// What studies ask of a run's configuration: which fold validates, how much is trained on, how many
// workers take part.

/** Example i has input i and a class with shares of 1/2, 1/3 and 1/6. */
function numbered(count: number): Examples {
  const classes = Int32Array.from({ length: count }, (_, i) => [0, 0, 0, 1, 1, 2][i % 6]!);
  return {
    count,
    inputs: { values: Float32Array.from({ length: count }, (_, i) => i), shape: [count, 1] },
    targets: { values: classes, shape: [count] },
  };
}
const data = (count: number): ExperimentData => ({
  train: numbered(count),
  classCount: 3,
  source: 'numbers',
});
const base = { seed: 4, validationFraction: 0.2, standardise: 'none' as const };
const ids = (examples: Examples) => Array.from(examples.inputs.values);
const foldsOf = (count: number, folds: number, stratified: boolean, given = data(count)) =>
  Array.from({ length: folds }, (_, fold) =>
    prepareData(given, { ...base, validation: { folds, fold, stratified } }),
  );

describe('k-fold', () => {
  test('each example validates in exactly one fold and trains in all others', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 12 }),
        fc.integer({ min: 12, max: 200 }),
        fc.boolean(),
        (folds, count, stratified) => {
          const seen = Array<number>(count).fill(0);
          for (const { train, validation } of foldsOf(count, folds, stratified)) {
            for (const id of ids(validation)) seen[id]!++;
            expect([...ids(train), ...ids(validation)].sort((a, b) => a - b)).toEqual(
              Array.from({ length: count }, (_, i) => i),
            );
            expect(Math.abs(validation.count - count / folds)).toBeLessThan(1);
          }
          expect(seen.every((times) => times === 1)).toBe(true);
        },
      ),
      { numRuns: 40 },
    );
  });

  test('stratified: the folds have as many of each class as each other, to one example', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 10 }),
        fc.integer({ min: 12, max: 300 }),
        (folds, n) => {
          const counts = foldsOf(n, folds, true).map(({ validation }) =>
            [0, 1, 2].map((c) => validation.targets.values.filter((v) => v === c).length),
          );
          for (const c of [0, 1, 2]) {
            const ofClass = counts.map((row) => row[c]!);
            expect(Math.max(...ofClass) - Math.min(...ofClass)).toBeLessThanOrEqual(1);
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  test('stratified takes shares of classes too, by the largest', () => {
    const { train } = data(60);
    const shares = new Float32Array(180);
    train.targets.values.forEach((label, i) => {
      shares[i * 3 + label] = 1;
    });
    const oneHot = {
      ...data(60),
      train: { ...train, targets: { values: shares, shape: [60, 3] } },
    };
    expect(foldsOf(60, 5, true, oneHot).map(({ validation }) => ids(validation))).toEqual(
      foldsOf(60, 5, true).map(({ validation }) => ids(validation)),
    );
  });

  test('is refused where it cannot be meant', () => {
    const numbers = { train: numbered(20), source: '' };
    expect(() => foldsOf(20, 4, true, numbers)).toThrow('needs one class for each example');
    const own = { ...data(20), validation: numbered(5) };
    expect(() => foldsOf(20, 4, false, own)).toThrow('its own validation part');
    expect(() => foldsOf(3, 4, false)).toThrow('3 training examples cannot be split into 4 parts');
    for (const validation of [{ folds: 5, fold: 5 }, { fold: 1 }, { stratified: true }]) {
      expect(() => resolveConfig({ validation })).toThrow(/folds/);
    }
  });

  test('standardises by the numbers of its own training folds', () => {
    const means = Array.from({ length: 4 }, (_, fold) => {
      const validation = { folds: 4, fold, stratified: false };
      return prepareData(data(40), { ...base, standardise: 'global', validation }).transform
        .mean[0];
    });
    expect(new Set(means).size).toBe(4);
  });
});

describe('runs that are measured together', () => {
  test('of one splitSeed validate on the same examples, whatever their seeds', () => {
    const at = (seed: number, splitSeed: number | null) =>
      prepareData(data(60), { ...base, seed, splitSeed });
    const first = at(4, null);
    expect(ids(at(9, 4).validation)).toEqual(ids(first.validation));
    expect(ids(at(9, 4).train)).toEqual(ids(first.train));
    expect(ids(at(9, null).validation)).not.toEqual(ids(first.validation));
  });

  test('a fold that stands apart trains and validates in none of them', () => {
    for (const stratified of [false, true]) {
      const held = foldsOf(60, 4, stratified)[3]!.validation;
      const seen = [0, 1, 2].map((fold) =>
        prepareData(data(60), { ...base, validation: { folds: 4, fold, stratified, apart: 3 } }),
      );
      for (const { train, validation } of seen) {
        const parts = [...ids(train), ...ids(validation), ...ids(held)];
        expect(parts.sort((a, b) => a - b)).toEqual(Array.from({ length: 60 }, (_, i) => i));
      }
    }
  });

  test('apart is refused without a fold to stand there', () => {
    for (const validation of [
      { apart: 0 },
      { folds: 4, fold: 1, apart: 1 },
      { folds: 4, apart: 4 },
      { folds: 2, fold: 0, apart: 1 },
    ]) {
      expect(() => resolveConfig({ validation })).toThrow(/validation\.apart/);
    }
    expect(resolveConfig({ validation: { folds: 3, apart: 2 } }).validation.apart).toBe(2);
  });
});

describe('bootstrap', () => {
  test('draws as many examples of the training part, with replacement, by the seed', () => {
    const count = 3000;
    const at = (seed: number, more = {}) =>
      prepareData(data(count), { ...base, seed, splitSeed: 4, bootstrap: true, ...more });
    const whole = prepareData(data(count), base);
    const first = at(1);
    expect(first.train.count).toBe(whole.train.count);
    expect(ids(first.validation)).toEqual(ids(whole.validation));
    const inTraining = new Set(ids(whole.train));
    expect(ids(first.train).every((id) => inTraining.has(id))).toBe(true);
    // 1 − 1/e of them at least once (Deep Learning §7.11: "about 2/3"); four standard deviations are 0.03.
    expect(new Set(ids(first.train)).size / inTraining.size).toBeCloseTo(1 - 1 / Math.E, 1);
    expect(ids(at(1).train)).toEqual(ids(first.train));
    expect(ids(at(2).train)).not.toEqual(ids(first.train));
    expect(at(1, { trainFraction: 0.5 }).train.count).toBe(count * 0.4);
    // Each input has its own target still.
    const { inputs, targets } = first.train;
    const classes = Array.from(inputs.values, (id) => [0, 0, 0, 1, 1, 2][id % 6]);
    expect(Array.from(targets.values)).toEqual(classes);
  });

  test('resamples all of the data where the validation part is its own', () => {
    const own = { ...data(60), validation: numbered(7) };
    const { train } = prepareData(own, { ...base, bootstrap: true });
    expect(train.count).toBe(60);
    expect(new Set(ids(train)).size).toBeLessThan(60);
  });
});

describe('trainFraction', () => {
  test('keeps a share of the training part, smaller ones within larger ones, all else as it was', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 5, max: 200 }),
        fc.tuple(
          fc.double({ min: 0.01, max: 1, noNaN: true }),
          fc.double({ min: 0.01, max: 1, noNaN: true }),
        ),
        fc.constantFrom(null, 3),
        (count, [a, b], folds) => {
          const validation = { folds, fold: 0, stratified: false };
          const at = (trainFraction: number) =>
            prepareData(data(count), { ...base, validation, trainFraction });
          const small = at(Math.min(a, b));
          const large = at(Math.max(a, b));
          const whole = at(1);
          expect(ids(large.train)).toEqual(expect.arrayContaining(ids(small.train)));
          expect(ids(whole.train)).toEqual(expect.arrayContaining(ids(large.train)));
          expect(ids(small.validation)).toEqual(ids(whole.validation));
          const expected = Math.max(1, Math.round(whole.train.count * Math.max(a, b)));
          expect(large.train.count).toBe(expected);
        },
      ),
      { numRuns: 50 },
    );
  });

  test('counts where the data has a validation part of its own, too', () => {
    const own = { ...data(60), validation: numbered(7) };
    const { train, validation } = prepareData(own, { ...base, trainFraction: 0.25 });
    expect([train.count, validation.count]).toEqual([15, 7]);
    expect(new Set(ids(train)).size).toBe(15);
  });
});

test('a run with workersMax is given no more workers, another takes the rest', () => {
  const keeper = { tick() {}, onStep() {}, register: async () => {} } as unknown as Keeper;
  const coordinator = new Coordinator({ keeper, now: () => 0, log: () => {} });
  coordinator.adopt(createRun({ workersMax: 2 }, 'narrow'));
  const assigned = Array.from({ length: 4 }, () => {
    const session = {
      run: null as Run | null,
      idled: false,
      hello: { run: null },
      canServe: () => true,
      able: { bundles: null, localSteps: true, fragments: true, residualDecay: true },
      assignTo(run: Run) {
        this.run = run;
      },
      idle() {
        this.idled = true;
      },
    };
    coordinator.workers.opened(session as unknown as WorkerSession);
    coordinator.workers.employ(session as unknown as WorkerSession);
    return session;
  });
  expect(assigned.map(({ run }) => run?.id ?? null)).toEqual(['narrow', 'narrow', null, null]);
  expect(assigned[3]!.idled).toBe(true);
  coordinator.adopt(createRun({}, 'wide'));
  for (const session of assigned.slice(2))
    coordinator.workers.employ(session as unknown as WorkerSession);
  expect(assigned.map(({ run }) => run?.id)).toEqual(['narrow', 'narrow', 'wide', 'wide']);
});
