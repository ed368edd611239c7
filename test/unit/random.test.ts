import fc from 'fast-check';
import { expect, test } from 'vitest';
import { permutation, random, STREAMS } from '../../shared/random.ts';

test('a permutation holds every index once, whatever seed, stream and length', () => {
  fc.assert(
    fc.property(fc.integer(), fc.nat(), fc.integer({ min: 0, max: 500 }), (seed, stream, n) => {
      const order = Array.from(permutation(seed, stream, n)).sort((a, b) => a - b);
      expect(order).toEqual(Array.from({ length: n }, (_, i) => i));
    }),
  );
});

test('the same seed and stream give the same order on every machine', () => {
  // Pinned: a change here breaks resuming runs and mixed clusters.
  expect(Array.from(permutation(42, STREAMS.epoch + 3, 10))).toEqual([
    3, 2, 7, 1, 0, 6, 5, 9, 4, 8,
  ]);
  expect(permutation(42, 1, 100)).not.toEqual(permutation(42, 2, 100));
  expect(permutation(42, 1, 100)).not.toEqual(permutation(43, 1, 100));
});

test('uniform draws fill [0, 1) evenly and normal draws have mean 0 and variance 1', () => {
  const draw = random(7, 0);
  const bins = new Array<number>(10).fill(0);
  const n = 20_000;
  let sum = 0;
  let squares = 0;
  for (let i = 0; i < n; i++) {
    bins[Math.floor(draw.uniform() * 10)]!++;
    const z = draw.normal();
    sum += z;
    squares += z * z;
  }
  // χ² with 9 degrees of freedom exceeds 27.9 once in a thousand seeds; this seed is fixed.
  const chi = bins.reduce((total, count) => total + (count - n / 10) ** 2 / (n / 10), 0);
  expect(chi).toBeLessThan(27.9);
  expect(Math.abs(sum / n)).toBeLessThan(0.03);
  expect(Math.abs(squares / n - 1)).toBeLessThan(0.05);
});

test('every first position is equally likely', () => {
  const counts = new Array<number>(5).fill(0);
  for (let seed = 0; seed < 5000; seed++) counts[permutation(seed, 9, 5)[0]!]!++;
  for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(120);
});
