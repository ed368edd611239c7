import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { checkSpace, type Dimension, pointConfig, type Space } from '../../shared/space.ts';
import { SOBOL_DIMENSIONS_MAX, sobolPoint } from '../../study/sobol.ts';
import {
  defaultSpace,
  gridPoints,
  parseDimension,
  placesFor,
  pointAt,
  regionAround,
  unitPlace,
  unitPoint,
  valueAt,
} from '../../study/space.ts';

const dimensions: Record<string, Dimension> = {
  uniform: { kind: 'uniform', low: -2, high: 3 },
  log: { kind: 'log', low: 1e-4, high: 1 },
  integer: { kind: 'integer', low: 3, high: 9 },
  logInteger: { kind: 'logInteger', low: 16, high: 512 },
  choice: { kind: 'choice', values: ['sgd', 'adam', 'momentum'] },
};
const space: Space = {
  learningRate: { kind: 'log', low: 0.001, high: 1 },
  'optimizer.kind': { kind: 'choice', values: ['sgd', 'momentum'] },
  'optimizer.momentum': {
    kind: 'uniform',
    low: 0,
    high: 0.99,
    when: { 'optimizer.kind': 'momentum' },
  },
};

test('without a space, the learning rate is searched, and what the configuration names', () => {
  const config = resolveConfig({
    learningRate: 0.005,
    hyperparameters: {
      units: 64,
      dropout: 0.2,
      scale: 2.5,
      batchNorm: true,
      kind: 'relu',
      off: -1,
    },
  });
  expect(defaultSpace(config)).toEqual({
    learningRate: { kind: 'log', low: 0.00017, high: 0.05 },
    'hyperparameters.units': { kind: 'logInteger', low: 16, high: 256 },
    'hyperparameters.dropout': { kind: 'uniform', low: 0, high: 0.8 },
    'hyperparameters.scale': { kind: 'log', low: 0.63, high: 10 },
    'hyperparameters.batchNorm': { kind: 'choice', values: [false, true] },
  });
  const decayed = defaultSpace(resolveConfig({ weightDecay: { rate: 0.001 } }));
  expect(decayed['weightDecay.rate']).toEqual({ kind: 'log', low: 1e-5, high: 0.1 });
  expect(() => checkSpace(defaultSpace(config))).not.toThrow();
});

describe('a dimension', () => {
  test.each(Object.entries(dimensions))(
    '%s keeps to its range, and place and value agree',
    (_, d) => {
      fc.assert(
        fc.property(fc.double({ min: 0, max: 1, noNaN: true }), (u) => {
          const value = valueAt(d, u);
          if (d.kind === 'choice') expect(d.values).toContain(value);
          else {
            expect(value).toBeGreaterThanOrEqual(d.low);
            expect(value).toBeLessThanOrEqual(d.high);
            if (d.kind.endsWith('nteger')) expect(Number.isInteger(value)).toBe(true);
          }
          const again = valueAt(d, unitPlace(d, value));
          if (typeof value === 'number') expect(again).toBeCloseTo(value, 9);
          else expect(again).toBe(value);
        }),
      );
    },
  );

  test('integers are all as likely, and their logarithms where asked', () => {
    const draws = Array.from({ length: 7000 }, (_, i) =>
      Number(valueAt(dimensions.integer!, (i + 0.5) / 7000)),
    );
    for (let n = 3; n <= 9; n++) expect(draws.filter((d) => d === n)).toHaveLength(1000);
    const logs = Array.from({ length: 5000 }, (_, i) =>
      Number(valueAt(dimensions.logInteger!, (i + 0.5) / 5000)),
    );
    // 16 … 512 are five doublings: each gets a fifth.
    const shares = [16, 32, 64, 128, 256].map(
      (low) => logs.filter((d) => d >= low && d < 2 * low).length / 5000,
    );
    for (const share of shares) expect(share).toBeCloseTo(0.2, 2);
  });
});

describe('a space', () => {
  test('has values only where the condition holds', () => {
    expect(pointAt(space, [0.5, 0.2, 0.5])).toEqual({
      learningRate: expect.closeTo(0.0316, 3),
      'optimizer.kind': 'sgd',
    });
    expect(pointAt(space, [0.5, 0.8, 0.5])).toMatchObject({ 'optimizer.momentum': 0.495 });
  });

  test('becomes a configuration', () => {
    const config = pointConfig({
      learningRate: 0.1,
      'optimizer.kind': 'momentum',
      'optimizer.momentum': 0.5,
    });
    expect(config).toEqual({ learningRate: 0.1, optimizer: { kind: 'momentum', momentum: 0.5 } });
  });

  test.each([
    [{ learningRate: { kind: 'log', low: 0, high: 1 } }, 'must be above 0'],
    [{ learningRate: { kind: 'uniform', low: 1, high: 1 } }, 'low must be below high'],
    [{ units: { kind: 'integer', low: 1.5, high: 3 } }, 'whole numbers'],
    [{ learningRate: { kind: 'lgo', low: 1, high: 2 } }, 'allowed: uniform, log,'],
    [{ a: { kind: 'choice', values: [] } }, 'needs values'],
    [{ a: { kind: 'uniform', low: 0, high: 1, when: { b: 1 } } }, "depends on 'b'"],
    [{}, 'no dimension'],
    [3, 'no object'],
  ])('is refused with the reason: %j', (wrong, reason) => {
    expect(() => checkSpace(wrong)).toThrow(reason);
  });

  test('is written on the command line', () => {
    expect(parseDimension('learningRate=log:1e-3..1')).toEqual({
      path: 'learningRate',
      dimension: { kind: 'log', low: 0.001, high: 1 },
    });
    expect(parseDimension('optimizer.kind=choice:sgd,momentum').dimension).toEqual({
      kind: 'choice',
      values: ['sgd', 'momentum'],
    });
    expect(
      parseDimension('optimizer.momentum=uniform:0..0.99 when optimizer.kind=momentum,nesterov')
        .dimension,
    ).toEqual({
      kind: 'uniform',
      low: 0,
      high: 0.99,
      when: { 'optimizer.kind': ['momentum', 'nesterov'] },
    });
    for (const wrong of ['learningRate', 'x=log:1', 'x=log:a..b']) {
      expect(() => parseDimension(wrong)).toThrow('write it like');
    }
  });
});

describe('a grid', () => {
  test('is refused above 4 dimensions with the reason', () => {
    const five = Object.fromEntries(
      ['a', 'b', 'c', 'd', 'e'].map((name) => [
        name,
        { kind: 'uniform', low: 0, high: 1 } as const,
      ]),
    );
    expect(() => gridPoints(five, 1000)).toThrow(/5 dimensions is refused.*243 trials.*§11\.4\.3/s);
  });

  test('has equal factors on a logarithmic scale, ends among them, and as many points as fit', () => {
    const points = gridPoints({ learningRate: { kind: 'log', low: 0.001, high: 1 } }, 4);
    expect(points.map((p) => p.learningRate)).toEqual(
      [0.001, 0.01, 0.1, 1].map((x) => expect.closeTo(x, 9)),
    );
    const two = { a: dimensions.uniform!, b: dimensions.log! };
    expect(gridPoints(two, 9)).toHaveLength(9);
    expect(gridPoints(two, 15)).toHaveLength(9);
    expect(() => gridPoints(two, 3)).toThrow('has 4 trials, 3 are allowed');
  });

  test('has a conditional value only where it counts', () => {
    const points = gridPoints(space, 6);
    expect(points).toHaveLength(6);
    expect(points.filter((p) => 'optimizer.momentum' in p)).toHaveLength(4);
  });
});

describe("Sobol's points", () => {
  test('of each 2ᵏ, one lies in each 2ᵏth part of each dimension', () => {
    for (const dimension of Array.from({ length: SOBOL_DIMENSIONS_MAX }, (_, d) => d)) {
      for (const n of [16, 128]) {
        const cells = Array.from({ length: n }, (_, i) =>
          Math.floor(n * sobolPoint(i, SOBOL_DIMENSIONS_MAX, 5)[dimension]!),
        );
        expect(new Set(cells).size, `dimension ${dimension}`).toBe(n);
      }
    }
  });

  test('of the first two dimensions fill every box of area 1/64', () => {
    for (const wide of [1, 2, 4, 8, 16, 32, 64]) {
      const boxes = Array.from({ length: 64 }, (_, i) => {
        const [x, y] = sobolPoint(i, 2, 9);
        return `${Math.floor(x! * wide)} ${Math.floor((y! * 64) / wide)}`;
      });
      expect(new Set(boxes).size).toBe(64);
    }
  });

  test('are those of the published direction numbers before the shift', () => {
    // Joe and Kuo's own example: differences of points are free of the shift.
    const xor = (i: number, d: number) =>
      ((sobolPoint(i, 10, 3)[d]! * 2 ** 32) ^ (sobolPoint(0, 10, 3)[d]! * 2 ** 32)) >>> 0;
    expect([1, 2, 3].map((i) => xor(i, 0) / 2 ** 32)).toEqual([0.5, 0.75, 0.25]);
    expect([1, 2, 3].map((i) => xor(i, 1) / 2 ** 32)).toEqual([0.5, 0.25, 0.75]);
    expect([4, 5, 6].map((i) => xor(i, 2) / 2 ** 32)).toEqual([0.625, 0.125, 0.875]);
  });
});

describe('places', () => {
  test('depend on seed and index alone', () => {
    for (const method of ['random', 'sobol'] as const) {
      const at = (seed: number, index: number) => placesFor(method, space, seed, index);
      expect(at(1, 7)).toEqual(at(1, 7));
      expect(at(1, 7)).not.toEqual(at(1, 8));
      expect(at(1, 7)).not.toEqual(at(2, 7));
    }
  });

  test('of a narrowed region lie around the best, never outside of the space', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 3, maxLength: 3 }),
        fc.constantFrom(0.5, 0.25, 0.125),
        fc.nat(1000),
        (places, width, index) => {
          const best = pointAt(space, places);
          const region = regionAround(space, best, width);
          const inside = placesFor('random', space, 1, index, region);
          const centre = unitPoint(space, best);
          Object.values(space).forEach(({ kind }, d) => {
            expect(inside[d]).toBeGreaterThanOrEqual(0);
            expect(inside[d]).toBeLessThanOrEqual(1);
            if (kind === 'choice' || (d === 2 && !('optimizer.momentum' in best))) return;
            expect(region.high[d]! - region.low[d]!).toBeCloseTo(width, 9);
            expect(centre[d]).toBeGreaterThanOrEqual(region.low[d]! - 1e-9);
            expect(centre[d]).toBeLessThanOrEqual(region.high[d]! + 1e-9);
          });
        },
      ),
    );
  });
});
