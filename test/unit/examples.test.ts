import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type {
  Examples,
  ExperimentData,
  Minibatch,
  PrepareOptions,
} from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { checkLabels } from '../../worker/data/targets.ts';

/** Example i has inputs [i, 2i, 7] and label i mod 3. */
function numbered(count: number, start = 0): Examples {
  const inputs = new Float32Array(count * 3);
  const targets = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    inputs.set([start + i, 2 * (start + i), 7], i * 3);
    targets[i] = (start + i) % 3;
  }
  return {
    count,
    inputs: { values: inputs, shape: [count, 3] },
    targets: { values: targets, shape: [count] },
  };
}

const options: PrepareOptions = { seed: 7, validationFraction: 0.2, standardise: 'none' };
const data = (count = 50): ExperimentData => ({
  train: numbered(count),
  classCount: 3,
  source: 'numbers',
});
const ids = (examples: Examples) =>
  Array.from({ length: examples.count }, (_, i) => examples.inputs.values[i * 3]!);
const code = (f: () => unknown) => {
  try {
    f();
  } catch (error) {
    return (error as { code?: string }).code;
  }
  return 'nothing thrown';
};

describe('the split', () => {
  it('uses every example exactly once, in training or in validation', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 300 }),
        fc.integer({ min: 0, max: 2 ** 53 - 1 }),
        fc.double({ min: 0.001, max: 0.99, noNaN: true }),
        (count, seed, validationFraction) => {
          const { train, validation } = prepareData(data(count), {
            ...options,
            seed,
            validationFraction,
          });
          expect(validation.count).toBeGreaterThan(0);
          expect(train.count).toBeGreaterThan(0);
          const all = [...ids(train), ...ids(validation)].sort((a, b) => a - b);
          expect(all).toEqual(Array.from({ length: count }, (_, i) => i));
          for (const part of [train, validation]) {
            ids(part).forEach((id, i) => {
              expect(part.targets.values[i]).toBe(id % 3);
            });
          }
        },
      ),
      { numRuns: 50 },
    );
  });

  it('sets a fifth apart, the same for the same seed on every machine, another for another', () => {
    const a = prepareData(data(), options);
    expect([a.train.count, a.validation.count]).toEqual([40, 10]);
    expect(ids(prepareData(data(), options).validation)).toEqual(ids(a.validation));
    expect(ids(prepareData(data(), { ...options, seed: 8 }).validation)).not.toEqual(
      ids(a.validation),
    );
    // Written down: a change of the arithmetic would mix training and validation between versions.
    expect(ids(a.validation)).toEqual([6, 7, 15, 16, 18, 21, 29, 35, 39, 46]);
  });

  it("keeps the data's own validation part as it is", () => {
    const prepared = prepareData({ ...data(), validation: numbered(5, 100) }, options);
    expect(prepared.train.count).toBe(50);
    expect(ids(prepared.validation)).toEqual([100, 101, 102, 103, 104]);
  });

  it('refuses to split one example', () => {
    expect(code(() => prepareData(data(1), options))).toBe('DP_EXPERIMENT_INVALID');
  });
});

describe('standardisation', () => {
  it('brings the training part to mean 0 and deviation 1, a constant feature to 0', () => {
    const prepared = prepareData(data(), { ...options, standardise: 'feature' });
    const all = Array.from({ length: prepared.train.count }, (_, i) => i);
    const { inputs } = gather(prepared, 'train', all);
    for (const feature of [0, 1]) {
      const column = all.map((i) => inputs[i * 3 + feature]!);
      const mean = column.reduce((a, b) => a + b) / all.length;
      const variance = column.reduce((a, b) => a + (b - mean) ** 2, 0) / all.length;
      expect(mean).toBeCloseTo(0, 6);
      expect(variance).toBeCloseTo(1, 6);
    }
    for (const i of all) expect(inputs[i * 3 + 2]).toBe(0);
    expect(prepared.transform.deviation[2]).toBe(1);
  });

  it('is measured on the training part alone: validation and test may hold anything', () => {
    const own = (scale: number): ExperimentData => {
      const other = numbered(10, 1000 * scale);
      return { ...data(), validation: other, test: other };
    };
    const a = prepareData(own(1), { ...options, standardise: 'global' });
    const b = prepareData(own(1000), { ...options, standardise: 'global' });
    expect(b.transform).toEqual(a.transform);
    // And the same numbers are applied to the other parts.
    const x = gather(a, 'test', [0]).inputs[0]!;
    expect(x).toBeCloseTo((1000 - a.transform.mean[0]!) / a.transform.deviation[0]!, 3);
  });

  it('leaves a constant feature alone even where its mean is not exact in float64', () => {
    const values = new Float32Array(1001).fill(0.1);
    const column = { values, shape: [1001, 1] };
    const train = { count: 1001, inputs: column, targets: column };
    const { transform } = prepareData(
      { train, source: '' },
      { ...options, standardise: 'feature' },
    );
    expect(transform.deviation).toEqual([1]);
  });

  it('scales bytes to 0 … 1 first, and is the same after a way through JSON', () => {
    const values = Uint8Array.from({ length: 200 }, (_, i) => (i * 37) % 256);
    const targets = { values: new Int32Array(100), shape: [100] };
    const train = { count: 100, inputs: { values, shape: [100, 2] }, targets };
    for (const standardise of ['none', 'global', 'feature'] as const) {
      const prepared = prepareData({ train, source: '' }, { ...options, standardise });
      const { kind, scale, mean, deviation } = prepared.transform;
      expect([kind, scale]).toEqual([standardise, 1 / 255]);
      const batch = gather(prepared, 'train', [3, 0]);
      [3, 0].forEach((row, i) => {
        for (const j of [0, 1]) {
          const raw = prepared.train.inputs.values[row * 2 + j]! / 255;
          const f = kind === 'feature' ? j : 0;
          const expected = kind === 'none' ? raw : (raw - mean[f]!) / deviation[f]!;
          expect(batch.inputs[i * 2 + j]).toBeCloseTo(expected, 5);
        }
      });
      const again = { ...prepared, transform: JSON.parse(JSON.stringify(prepared.transform)) };
      expect(gather(again, 'train', [3, 0]).inputs).toEqual(batch.inputs);
    }
  });
});

describe('gather', () => {
  const prepared = prepareData({ ...data(), test: numbered(4, 200) }, options);

  it('takes rows in the order asked, with the shape of one example', () => {
    const batch = gather(prepared, 'test', [3, 0, 3]);
    expect(Array.from(batch.inputs)).toEqual([203, 406, 7, 200, 400, 7, 203, 406, 7]);
    expect(batch.targets).toEqual(Int32Array.of(203 % 3, 200 % 3, 203 % 3));
    expect([batch.inputShape, batch.targetShape]).toEqual([[3], []]);
  });

  it('addresses validation after training when refitting', () => {
    const all = Int32Array.from({ length: 50 }, (_, i) => i);
    const batch = gather(prepared, 'trainAndValidation', all);
    const seen = Array.from(all, (i) => batch.inputs[i * 3]!);
    expect(seen).toEqual([...ids(prepared.train), ...ids(prepared.validation)]);
  });

  it('writes into the arrays of an earlier result, and into views of them for a shorter rest', () => {
    const first = gather(prepared, 'train', [0, 1, 2]);
    const second = gather(prepared, 'train', [5, 6, 7], first);
    expect(second).toBe(first);
    expect(second.inputs).toEqual(gather(prepared, 'train', [5, 6, 7]).inputs);
    const rest: Minibatch = gather(prepared, 'train', [9], first);
    expect(rest.inputs.buffer).toBe(first.inputs.buffer);
    expect(rest.inputs.length).toBe(3);
    expect(gather(prepared, 'train', [0, 1, 2, 3], first).inputs.length).toBe(12);
  });

  it('refuses an index that the part lacks', () => {
    for (const index of [-1, 40, 0.5, Number.NaN]) {
      expect(code(() => gather(prepared, 'train', [index]))).toBe('DP_DATA_MISMATCH');
    }
    expect(code(() => gather(prepared, 'trainAndValidation', [50]))).toBe('DP_DATA_MISMATCH');
    expect(code(() => gather(prepareData(data(), options), 'test', [0]))).toBe('DP_DATA_MISMATCH');
  });
});

describe('labels', () => {
  it('names the row, the value and what is allowed', () => {
    const column = { values: Uint8Array.of(0, 2, 10, 1), shape: [4] };
    expect(() => checkLabels(column, 10)).toThrow(/row 2: label 10; allowed: .*0 … 9/);
    expect(() => checkLabels(column, 11)).not.toThrow();
    const negative = { values: Int32Array.of(-1), shape: [1] };
    expect(code(() => checkLabels(negative, 10))).toBe('DP_DATA_LABEL');
    const broken = { values: Float32Array.of(1, 0.5, Number.NaN), shape: [3] };
    expect(() => checkLabels(broken, 2)).toThrow(/row 1: label 0.5/);
  });

  it('takes shares of each class that add up to 1', () => {
    const shares = (...values: number[]) => ({ values: Float32Array.from(values), shape: [2, 2] });
    expect(() => checkLabels(shares(0, 1, 0.25, 0.75), 2)).not.toThrow();
    expect(() => checkLabels(shares(0, 1, 0.5, 0.75), 2)).toThrow(
      /row 1: probabilities with the sum/,
    );
    expect(() => checkLabels(shares(0, 1, 2, -1), 2)).toThrow(/row 1, column 0: probability 2/);
  });

  it('are checked in every part', () => {
    for (const part of ['train', 'validation', 'test'] as const) {
      const bad = numbered(5);
      bad.targets.values[4] = 3;
      expect(code(() => prepareData({ ...data(), [part]: bad }, options))).toBe('DP_DATA_LABEL');
    }
  });
});

describe('bad data', () => {
  it('refuses parts that do not fit together, and numbers that are not finite', () => {
    const otherShape = { ...numbered(5), inputs: { values: new Float32Array(10), shape: [5, 2] } };
    const otherKind = { ...numbered(5), inputs: { values: new Uint8Array(15), shape: [5, 3] } };
    for (const test of [otherShape, otherKind]) {
      expect(code(() => prepareData({ ...data(), test }, options))).toBe('DP_DATA_MISMATCH');
    }
    const notFinite = numbered(5);
    notFinite.inputs.values[7] = Number.NaN;
    expect(() => prepareData({ ...data(), test: notFinite }, options)).toThrow(
      /test part, row 2.*NaN/,
    );
  });
});

describe('the fingerprint', () => {
  it('is the same for the same data, and differs by a value, a target, a split, a transform', () => {
    const change = (f: (examples: Examples) => void) => {
      const train = numbered(50);
      f(train);
      return { ...data(), train };
    };
    const prints = [
      prepareData(data(), options),
      prepareData(data(51), options),
      prepareData(
        change((e) => e.inputs.values.set([0.5], 60)),
        options,
      ),
      prepareData(
        change((e) => e.targets.values.set([0], 49)),
        options,
      ),
      prepareData(data(), { ...options, seed: 8 }),
      prepareData(data(), { ...options, standardise: 'global' }),
      prepareData({ ...data(), test: numbered(3) }, options),
    ].map((prepared) => prepared.fingerprint);
    expect(new Set(prints).size).toBe(prints.length);
    for (const print of prints) expect(print).toMatch(/^2:[0-9a-f]{32}$/);
    expect(prepareData(data(), options).fingerprint).toBe(prints[0]);
  });
});
