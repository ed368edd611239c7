import fc from 'fast-check';
import { expect, test } from 'vitest';
import { pickPoints } from '../../shared/downsample.ts';

const value = fc.oneof(
  { weight: 9, arbitrary: fc.double({ noNaN: true, min: -1e6, max: 1e6 }) },
  { weight: 1, arbitrary: fc.constantFrom(null, Number.NaN, Infinity) },
);

test('what is chosen is as many as asked for, in order, with both ends', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(value, value), { minLength: 1, maxLength: 300 }),
      fc.integer({ min: 2, max: 100 }),
      (rows, count) => {
        const x = rows.map((_, i) => i * i);
        const series = [rows.map(([a]) => a), rows.map(([, b]) => b)];
        const chosen = pickPoints(x, series, count);
        expect(chosen.length).toBe(Math.min(count, rows.length));
        expect(chosen[0]).toBe(0);
        expect(chosen.at(-1)).toBe(rows.length - 1);
        for (const [i, index] of chosen.entries()) {
          if (i > 0) expect(index).toBeGreaterThan(chosen[i - 1]!);
        }
      },
    ),
  );
});

test('single peaks of each curve stay, which every n-th point would lose', () => {
  const n = 100_000;
  const x = Array.from({ length: n }, (_, i) => i);
  const spiked = (at: number) => x.map((i) => (i === at ? 50 : Math.sin(i / 5000)));
  const chosen = pickPoints(x, [spiked(33_333), spiked(70_001)], 500);
  expect(chosen).toContain(33_333);
  expect(chosen).toContain(70_001);
});

test('a curve in large units does not hide one in small ones', () => {
  const x = Array.from({ length: 5000 }, (_, i) => i);
  const large = x.map((i) => 1e9 * Math.cos(i));
  const small = x.map((i) => (i === 1234 ? 1e-3 : 0));
  expect(pickPoints(x, [large, small, x.map(() => null)], 100)).toContain(1234);
});
