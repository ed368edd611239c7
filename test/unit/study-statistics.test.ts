import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { linearTicks, logTicks } from '../../shared/plot.ts';
import { quantileOf } from '../../shared/quantile.ts';
import { random } from '../../shared/random.ts';
import { importance } from '../../study/importance.ts';
import { chart, plotSvg } from '../../study/plot.ts';
import { estimate, studentCdf, studentQuantile } from '../../study/statistics.ts';

describe("Student's t", () => {
  // The values of the printed tables.
  test.each([
    [0.975, 1, 12.706],
    [0.975, 4, 2.776],
    [0.975, 9, 2.262],
    [0.95, 10, 1.812],
    [0.995, 30, 2.75],
    [0.975, 1000, 1.962],
  ])('a share %f with %i degrees of freedom lies below %f', (share, freedom, t) => {
    expect(studentQuantile(share, freedom)).toBeCloseTo(t, 2);
    expect(studentQuantile(1 - share, freedom)).toBeCloseTo(-t, 2);
  });

  test('the quantile is the inverse of the distribution', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.001, max: 0.999, noNaN: true }),
        fc.integer({ min: 1, max: 200 }),
        (share, freedom) => {
          expect(studentCdf(studentQuantile(share, freedom), freedom)).toBeCloseTo(share, 8);
        },
      ),
    );
  });
});

describe('an estimate', () => {
  test('of five values, by hand', () => {
    const { mean, standardError, low, high } = estimate([1, 2, 3, 4, 5]);
    expect(mean).toBe(3);
    expect(standardError).toBeCloseTo(Math.sqrt(2.5 / 5), 12);
    expect(high - 3).toBeCloseTo(2.776 * Math.sqrt(0.5), 3);
    expect(3 - low).toBeCloseTo(high - 3, 12);
  });

  test('holds the true mean in about 95 of 100 samples', () => {
    const draw = random(1, 1);
    let held = 0;
    for (let i = 0; i < 2000; i++) {
      const { low, high } = estimate(Array.from({ length: 5 }, () => draw.normal()));
      if (low <= 0 && high >= 0) held++;
    }
    expect(held / 2000).toBeGreaterThan(0.93);
    expect(held / 2000).toBeLessThan(0.97);
  });

  test('of one value has no error', () => {
    expect(estimate([7])).toMatchObject({ mean: 7, standardError: Number.NaN });
  });

  test('quantiles take infinity for a value', () => {
    expect(quantileOf([1, 2, Infinity], 0.5)).toBe(2);
    expect(quantileOf([1, Infinity, Infinity], 0.5)).toBe(Infinity);
  });
});

describe('importance', () => {
  const draw = random(3, 3);
  const places = Array.from({ length: 60 }, () => Array.from({ length: 5 }, () => draw.uniform()));

  test('finds the two of five dimensions that matter, and says how much', () => {
    // Var(4u) = 16/12 and Var(2v) = 4/12: shares of 0.8 and 0.2.
    const shares = importance(
      places,
      places.map((u) => 4 * u[0]! + 2 * u[3]!),
    );
    expect(shares[0]).toBeGreaterThan(0.5);
    expect(shares[3]).toBeGreaterThan(0.05);
    for (const d of [1, 2, 4]) expect(shares[d]).toBeLessThan(shares[3]!);
    expect(shares.reduce((a, b) => a + b)).toBeLessThanOrEqual(1 + 1e-9);
  });

  test('leaves what two dimensions do together to neither', () => {
    const shares = importance(
      places,
      places.map((u) => (u[0]! < 0.5 === u[1]! < 0.5 ? 1 : 0)),
    );
    expect(shares.reduce((a, b) => a + b)).toBeLessThan(0.6);
  });

  test('is nothing where all trials are alike', () => {
    expect(
      importance(
        places,
        places.map(() => 3),
      ),
    ).toEqual([0, 0, 0, 0, 0]);
  });
});

describe('a plot', () => {
  test('is SVG with its words escaped, and survives what cannot be drawn', () => {
    const figure = chart({
      title: 'a < b & "c"',
      x: { label: 'n', log: true },
      y: { label: 'error', log: true },
      series: [
        {
          name: 'training',
          points: [
            { x: 10, y: 0.5, low: 0.4, high: 0.6 },
            { x: 100, y: 0.1 },
          ],
        },
        {
          name: 'broken',
          points: [
            { x: 0, y: 1 },
            { x: 10, y: Number.NaN },
            { x: 5, y: Infinity },
          ],
        },
        { name: 'band', style: 'band', points: [{ x: 10, y: 1, low: 0, high: 2 }] },
      ],
    });
    const picture = plotSvg(figure);
    expect(picture).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    expect(picture).toContain('a &lt; b &amp; &quot;c&quot;');
    expect(picture).not.toMatch(/NaN|Infinity|undefined/);
    expect(picture.match(/<circle/g)).toHaveLength(2);
  });

  test('of nothing is an empty frame', () => {
    const empty = plotSvg(chart({ title: 't', x: { label: 'x' }, y: { label: 'y' }, series: [] }));
    expect(empty).not.toMatch(/NaN|Infinity|undefined/);
  });

  test('ticks are round and lie within the range', () => {
    expect(linearTicks(0, 1)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
    expect(logTicks(1e-4, 1)).toEqual([1e-4, 1e-3, 0.01, 0.1, 1]);
    expect(logTicks(100, 10_000)).toEqual([100, 200, 500, 1000, 2000, 5000, 10000]);
    fc.assert(
      fc.property(
        fc.double({ min: -1e6, max: 1e6, noNaN: true }),
        fc.double({ min: 1e-3, max: 1e6, noNaN: true }),
        (low, span) => {
          const ticks = linearTicks(low, low + span);
          // A step of 5 is two and a half times the sixth of a range that just misses a step of 2.
          expect(ticks.length).toBeGreaterThanOrEqual(2);
          expect(ticks.length).toBeLessThan(12);
          for (const tick of ticks) {
            expect(tick).toBeGreaterThanOrEqual(low - span * 1e-3);
            expect(tick).toBeLessThanOrEqual(low + span * 1.001);
          }
        },
      ),
    );
  });

  test('of parallel coordinates draws the best trial last and thickest', () => {
    const axis = (label: string) => ({ label, ticks: [{ place: 0, text: '0' }] });
    const picture = plotSvg({
      ...{ kind: 'parallel', title: 'trials', axes: [axis('a'), axis('b')] },
      lines: [
        { label: 'trial 0', places: [0, 1], rank: 0 },
        { label: 'trial 1', places: [1, null], rank: 1 },
      ],
    });
    const lines = picture.match(/<polyline[^>]*>/g)!;
    expect(lines).toHaveLength(2);
    expect(lines[1]).toContain('stroke-width="3"');
  });
});
