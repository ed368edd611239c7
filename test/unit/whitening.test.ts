import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LIMITS } from '../../shared/limits.ts';
import { factsOf } from '../../worker/data/facts.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { fitTransform } from '../../worker/data/transform.ts';
import { symmetricEigen } from '../../worker/data/whitening/symmetric-eigen.ts';
import { mustBeExperiment } from '../../worker/experiment.ts';
import { inputsOf } from '../../worker/serving/exported-model.ts';
import { askPython, pythonTest } from '../support/python.ts';

/** Rows of numbers that are mixtures of each other, and one that never varies. */
function mixtures(count: number, size: number): Float64Array {
  const sources = (row: number, k: number) => Math.sin(1.7 * row * (k + 1) + k * k);
  return Float64Array.from({ length: count * size }, (_, i) => {
    const [row, f] = [Math.floor(i / size), i % size];
    if (f === size - 1) return 3;
    let sum = f;
    for (let k = 0; k <= f; k++) sum += sources(row, k) / (1 + (f - k) ** 2);
    return sum;
  });
}

const pixels = (count: number, size: number): Uint8Array =>
  Uint8Array.from(mixtures(count, size), (value) => Math.max(0, Math.min(255, 25 * value)));

const partOf = (values: Float64Array | Uint8Array, size: number) => {
  const count = values.length / size;
  const targets = { values: Float64Array.from({ length: count }, (_, i) => i % 5), shape: [count] };
  return { inputs: { values, shape: [count, size] }, targets };
};

const OPTIONS = { seed: 3, validationFraction: 0, loss: 'meanSquaredError' } as const;
const whitenedBy = (values: Float64Array | Uint8Array, size: number, epsilon?: number) =>
  prepareData(dataOf({ train: partOf(values, size) }), {
    ...OPTIONS,
    standardise: epsilon === undefined ? 'zca' : { kind: 'zca', epsilon },
  });
const allOf = (prepared: ReturnType<typeof prepareData>) =>
  gather(
    prepared,
    'train',
    Int32Array.from({ length: prepared.train.count }, (_, i) => i),
  ).inputs;

test('eigenvalues and eigenvectors of a symmetric matrix', () => {
  const symmetric = fc.integer({ min: 1, max: 9 }).chain((n) =>
    fc
      .array(fc.double({ min: -10, max: 10, noNaN: true }), { minLength: n * n, maxLength: n * n })
      .map((numbers) => ({
        n,
        matrix: Float64Array.from(numbers, (_, at) => {
          const [i, j] = [Math.floor(at / n), at % n];
          return numbers[Math.min(i, j) * n + Math.max(i, j)]!;
        }),
      })),
  );
  fc.assert(
    fc.property(symmetric, ({ n, matrix }) => {
      const { values, vectors } = symmetricEigen(matrix.slice(), n);
      const dot = (a: (k: number) => number, b: (k: number) => number) => {
        let sum = 0;
        for (let k = 0; k < n; k++) sum += a(k) * b(k);
        return sum;
      };
      for (let q = 0; q < n; q++) {
        const own = (k: number) => vectors[q * n + k]!;
        for (let i = 0; i < n; i++) {
          expect(dot((k) => matrix[i * n + k]!, own)).toBeCloseTo(values[q]! * own(i), 10);
          expect(dot(own, (k) => vectors[i * n + k]!)).toBeCloseTo(q === i ? 1 : 0, 12);
        }
      }
    }),
  );
});

describe('standardise: zca', () => {
  test('leaves inputs without correlation, of variance 1, in the training part', () => {
    const size = 6;
    const inputs = allOf(whitenedBy(mixtures(400, size), size, 1e-9));
    for (let a = 0; a < size; a++) {
      for (let b = 0; b < size; b++) {
        let sum = 0;
        for (let row = 0; row < 400; row++)
          sum += inputs[row * size + a]! * inputs[row * size + b]!;
        // The last input never varies: it is 0.
        const wanted = a === b && a < size - 1 ? 1 : 0;
        expect(sum / 400).toBeCloseTo(wanted, 4);
      }
    }
  });

  test('measures the training part alone', () => {
    const train = mixtures(50, 4);
    const other = train.map((value) => 100 - 3 * value);
    const of = (validation: Float64Array) =>
      prepareData(dataOf({ train: partOf(train, 4), validation: partOf(validation, 4) }), {
        ...OPTIONS,
        standardise: 'zca',
      });
    expect(of(other).transform).toEqual(of(train).transform);
    expect(of(other).transform).toEqual(whitenedBy(train, 4).transform);
    const again = prepareData(dataOf({ train: partOf(other, 4) }), {
      ...{ ...OPTIONS, standardise: 'zca' },
      facts: factsOf(of(train)),
    });
    expect(again.transform).toEqual(of(train).transform);
  });

  pythonTest(['numpy'])('agrees with numpy to 1e-5, for bytes and floats', async () => {
    for (const [values, epsilon] of [
      [mixtures(60, 7), 0.01],
      [mixtures(60, 7), 1e-6],
      [pixels(90, 16), 0.1],
    ] as const) {
      const size = values instanceof Uint8Array ? 16 : 7;
      const expected = await askPython<number[]>(
        `
import json, sys
import numpy as np
values, size, epsilon, scale = json.loads(sys.argv[1])
x = np.array(values, dtype=np.float64).reshape(-1, size) * scale
centred = x - x.mean(axis=0)
u, s, _ = np.linalg.svd(centred.T @ centred / len(x))
print(json.dumps((centred @ (u @ np.diag(1 / np.sqrt(s + epsilon)) @ u.T)).ravel().tolist()))`,
        [JSON.stringify([[...values], size, epsilon, values instanceof Uint8Array ? 1 / 255 : 1])],
      );
      const inputs = allOf(whitenedBy(values, size, epsilon));
      expect(expected).toHaveLength(inputs.length);
      inputs.forEach((value, i) => {
        expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-5);
      });
    }
  });

  test('is in the fingerprint, and in what an export computes', () => {
    const values = pixels(40, 9);
    const prepared = whitenedBy(values, 9, 0.05);
    expect(prepared.fingerprint).not.toBe(whitenedBy(values, 9, 0.06).fingerprint);
    expect(whitenedBy(values, 9).transform.epsilon).toBe(0.01);
    const about = {
      ...{ run: 'r', loss: 'meanSquaredError', classCount: null, classes: null },
      ...{ targetNames: null, inputShape: [9] },
      inputTransform: JSON.parse(JSON.stringify(prepared.transform)),
    };
    const examples = Array.from({ length: 40 }, (_, i) => [...values.subarray(9 * i, 9 * i + 9)]);
    expect(inputsOf(about, examples).inputs!.values).toEqual(allOf(prepared));
  });

  test('is refused for too many inputs, missing numbers and a wrong epsilon', () => {
    const wide = (size: number) => ({ values: new Uint8Array(2 * size), shape: [2, size] });
    const most = LIMITS.whitenedInputsMax;
    expect(() => fitTransform(wide(most + 1), 'zca')).toThrow(
      /1025 inputs, but standardise: 'zca' whitens at most 1024/,
    );
    const gaps = { values: Float64Array.of(1, Number.NaN, 3, 4), shape: [2, 2], missing: 'mean' };
    expect(() => fitTransform(gaps as never, 'zca')).toThrow(/that needs standardise: 'feature'/);
    for (const epsilon of [0, -1, Number.NaN, 1e7, '1']) {
      const standardise = { kind: 'zca', epsilon };
      const experiment = { data: () => ({}), model: () => null, loss: 'meanSquaredError' };
      expect(() => mustBeExperiment({ ...experiment, standardise }, 'x.ts')).toThrow(
        /standardise.*epsilon above 0 and up to 1000000/,
      );
    }
  });

  test('takes as many inputs as are allowed', () => {
    const size = LIMITS.whitenedInputsMax;
    // Two pictures that differ in one pixel: all others never vary.
    const values = new Uint8Array(2 * size);
    values[size] = 255;
    const { matrix } = fitTransform({ values, shape: [2, size] }, { kind: 'zca', epsilon: 0.75 });
    expect(Buffer.from(matrix!, 'base64').readDoubleLE(0)).toBeCloseTo(1, 12);
    expect(Buffer.from(matrix!, 'base64').readDoubleLE(8 * size)).toBeCloseTo(
      1 / Math.sqrt(0.75),
      12,
    );
  });
});
