import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Average, createAverage } from '../../server/core/averaging.ts';
import type { RunConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';

const ema = (decay: number, n: number) =>
  createAverage({ kind: 'ema', decay, startStep: 0 }, n) as Average;
const polyak = (startStep: number, n: number) =>
  createAverage({ kind: 'polyak', decay: 0, startStep }, n) as Average;
const take = (average: Average, values: Float32Array, step: number) => {
  if (average.begin(step)) average.take(values, 0, values.length);
};
const feed = (average: Average, values: readonly number[], from = 1) =>
  values.map((value, i) => {
    take(average, Float32Array.of(value), from + i);
    return average.values[0];
  });

test('none is null', () => {
  expect(createAverage({ kind: 'none', decay: 0.9, startStep: 0 }, 4)).toBeNull();
});

describe('exponential average', () => {
  test('by hand: d = 0, then 2/11, then 3/12', () => {
    // 2/11·11 + 9/11·22 = 20; 1/4·20 + 3/4·4 = 8.
    expect(feed(ema(0.999, 1), [11, 22, 4])).toEqual([11, 20, 8]);
  });

  test('by hand with decay 0.125, which is the smaller one from the second step on', () => {
    expect(feed(ema(0.125, 1), [8, 16, 0])).toEqual([8, 15, 1.875]);
  });

  test('an early average has left the first parameters behind', () => {
    // From −1 the parameters go to 1 at once; the plain form would be at −0.63 after 200 steps.
    const average = ema(0.999, 1);
    feed(average, [-1, ...new Array<number>(199).fill(1)]);
    expect(average.values[0]).toBeGreaterThan(0.999);
  });

  test('in the long run it is the plain exponential average', () => {
    const average = ema(0.9, 1);
    const draw = random(3, 0);
    let plain = 0;
    for (let step = 1; step <= 1000; step++) {
      const value = Math.fround(draw.normal());
      take(average, Float32Array.of(value), step);
      plain = 0.9 * plain + 0.1 * value;
    }
    expect(average.values[0]).toBeCloseTo(plain, 5);
  });
});

describe('Polyak average', () => {
  test('by hand: the mean of all', () => {
    expect(feed(polyak(0, 1), [1, 3, 8, -4])).toEqual([1, 2, 4, 2]);
  });

  test('counts from startStep, that one included', () => {
    const average = polyak(3, 1);
    feed(average, [100, 100]);
    expect(average.count).toBe(0);
    expect(feed(average, [1, 3], 3)).toEqual([1, 2]);
    expect(average.count).toBe(2);
  });

  test('is still right after a million steps of slowly drifting parameters', () => {
    // In float32 alone it would be 2e-2 off: additions become too small to change it.
    const average = polyak(0, 8);
    const draw = random(4, 0);
    const theta = new Float32Array(8);
    const sums = new Float64Array(8);
    const steps = 1_000_000;
    for (let step = 1; step <= steps; step++) {
      for (let i = 0; i < 8; i++) {
        theta[i] = 1 + 0.1 * i + (0.05 * step) / steps + 0.02 * (draw.uniform() - 0.5);
        sums[i]! += theta[i]!;
      }
      take(average, theta, step);
    }
    average.values.forEach((value, i) => {
      expect(Math.abs(value / (sums[i]! / steps) - 1)).toBeLessThan(1e-7);
    });
  });
});

describe.each<[string, RunConfig['averaging']]>([
  ['ema', { kind: 'ema', decay: 0.99, startStep: 0 }],
  ['polyak', { kind: 'polyak', decay: 0, startStep: 2 }],
])('every average: %s', (_, config) => {
  const vectors = fc.integer({ min: 0, max: 9 }).chain((n) =>
    fc.array(fc.float32Array({ minLength: n, maxLength: n, noNaN: true, min: -1e6, max: 1e6 }), {
      minLength: 1,
      maxLength: 12,
    }),
  );

  test('lies between the smallest and the largest parameter it has seen', () => {
    fc.assert(
      fc.property(vectors, (thetas) => {
        const n = thetas[0]!.length;
        const average = createAverage(config, n)!;
        const counted = thetas.filter((theta, i) => {
          take(average, theta, i + 1);
          return config.kind === 'ema' || i + 1 >= config.startStep;
        });
        expect(average.count).toBe(counted.length);
        if (counted.length === 0) return;
        for (let i = 0; i < n; i++) {
          const column = counted.map((theta) => theta[i]!);
          const slack = 1e-6 * Math.max(...column.map(Math.abs));
          expect(average.values[i]).toBeGreaterThanOrEqual(Math.min(...column) - slack);
          expect(average.values[i]).toBeLessThanOrEqual(Math.max(...column) + slack);
        }
      }),
    );
  });

  test('continues bit for bit from saved slots and state; reset makes it like new', () => {
    fc.assert(
      fc.property(vectors, fc.nat(12), (thetas, cut) => {
        const n = thetas[0]!.length;
        const [whole, first, second] = [0, 1, 2].map(() => createAverage(config, n)!);
        thetas.forEach((theta, i) => {
          take(whole!, theta, i + 1);
          if (i < cut) take(first!, theta, i + 1);
        });
        for (const [symbol, slot] of Object.entries(second!.slots)) {
          slot.set(structuredClone(first!.slots[symbol]!));
        }
        second!.restore(JSON.parse(JSON.stringify(first!.state())));
        thetas.slice(cut).forEach((theta, i) => {
          take(second!, theta, cut + i + 1);
        });
        expect(second!.slots).toEqual(whole!.slots);
        expect(second!.count).toBe(whole!.count);
        expect(Object.values(whole!.slots)).toContain(whole!.values);

        whole!.reset();
        thetas.forEach((theta, i) => {
          take(whole!, theta, i + 1);
        });
        expect(whole!.slots).toEqual(second!.slots);
      }),
    );
  });
});
