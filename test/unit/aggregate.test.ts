import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { aggregate, krum } from '../../server/core/aggregate.ts';

const vectors = (count: number, n = 5) =>
  fc.array(
    fc.array(fc.float({ noNaN: true, noDefaultInfinity: true, min: -100, max: 100 }), {
      ...{ minLength: n, maxLength: n },
    }),
    { minLength: count, maxLength: count },
  );
const asFloats = (rows: readonly (readonly number[])[]) =>
  rows.map((row) => Float32Array.from(row));
const columns = (rows: readonly Float32Array[]) =>
  Array.from(rows[0]!, (_, i) => rows.map((row) => row[i]!).sort((a, b) => a - b));

function made(
  kind: Parameters<typeof aggregate>[0],
  rows: readonly Float32Array[],
  faulty: number,
) {
  const out = new Float32Array(rows[0]!.length);
  aggregate(kind, rows, faulty, out);
  return out;
}

describe('the median of each element', () => {
  test('is the middle one, or the mean of the two in the middle', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }).chain((count) => vectors(count)),
        (rows) => {
          const floats = asFloats(rows);
          const wanted = columns(floats).map((sorted) => {
            const middle = (sorted.length - 1) / 2;
            return Math.fround((sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2);
          });
          // Which of 0 and −0 is in the middle nobody can say.
          const plain = (values: Iterable<number>) => Array.from(values, (value) => value + 0);
          expect(plain(made('median', floats, 1))).toEqual(plain(wanted));
        },
      ),
    );
  });

  test('may be written over one of them', () => {
    const rows = asFloats([
      [1, 9],
      [2, 8],
      [3, 7],
    ]);
    aggregate('median', rows, 1, rows[0]!);
    expect([...rows[0]!]).toEqual([2, 8]);
  });
});

describe('the trimmed mean', () => {
  test('leaves out the largest and smallest values of each element', () => {
    const rows = asFloats([[1], [2], [6], [1e30], [-1e30]]);
    expect(made('trimmedMean', rows, 1)[0]).toBe(3);
    expect(made('trimmedMean', rows, 2)[0]).toBe(2);
  });

  test('of fewer pushes than it would leave out is the median', () => {
    const rows = asFloats([[1], [5], [3]]);
    expect(made('trimmedMean', rows, 4)[0]).toBe(3);
    expect(made('trimmedMean', rows.slice(0, 2), 4)[0]).toBe(3);
  });

  test('stays within what honest pushes say, whatever the faulty ones are', () => {
    fc.assert(
      fc.property(vectors(5), vectors(2), (honest, faulty) => {
        const rows = asFloats([...honest, ...faulty]);
        const out = made('trimmedMean', rows, 2);
        for (const [i, sorted] of columns(asFloats(honest)).entries()) {
          expect(out[i]).toBeGreaterThanOrEqual(sorted[0]! - 1e-4);
          expect(out[i]).toBeLessThanOrEqual(sorted.at(-1)! + 1e-4);
        }
      }),
    );
  });
});

describe('Krum', () => {
  test('takes one of those that agree, whatever the others are', () => {
    const honest = [
      [1, 1],
      [1.1, 0.9],
      [0.9, 1.1],
      [1, 1.05],
      [1.05, 1],
    ];
    fc.assert(
      fc.property(vectors(2, 2), fc.integer({ min: 0, max: 5 }), (faulty, at) => {
        const far = faulty.map((row) => row.map((x) => x + 1000));
        const rows = asFloats([...honest.slice(0, at), ...far, ...honest.slice(at)]);
        const chosen = rows[krum(rows, 2)]!;
        expect(honest.map((row) => [...Float32Array.from(row)])).toContainEqual([...chosen]);
      }),
    );
  });

  test('of one, two or three pushes takes one of them', () => {
    for (const count of [1, 2, 3]) {
      const rows = asFloats(Array.from({ length: count }, (_, i) => [i]));
      expect(krum(rows, 1)).toBeLessThan(count);
    }
  });
});
