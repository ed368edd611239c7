import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { dataDigest } from '../../shared/digest.ts';
import type { Column } from '../../worker/data/columns.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';

const options = { seed: 7, validationFraction: 0.25, standardise: 'none' as const };
const printsOf = (data: ExperimentData, more = {}) => {
  const { fingerprint, rawFingerprint } = prepareData(data, { ...options, ...more });
  return { fingerprint, rawFingerprint };
};

const KINDS = [Float32Array, Float64Array, Int32Array, Uint8Array] as const;

function column(Kind: (typeof KINDS)[number], count: number, size: number, salt: number): Column {
  const values = new Kind(count * size).map((_: number, i: number) => (i * 37 + salt) % 101);
  return { values, shape: size === 1 ? [count] : [count, size] };
}

describe('the fingerprint', () => {
  const sets = fc.record({
    inputs: fc.constantFrom(...KINDS),
    targets: fc.constantFrom(...KINDS),
    size: fc.integer({ min: 1, max: 5 }),
    counts: fc.tuple(
      fc.integer({ min: 2, max: 40 }),
      fc.option(fc.integer({ min: 1, max: 9 }), { nil: 0 }),
      fc.option(fc.integer({ min: 1, max: 9 }), { nil: 0 }),
    ),
  });
  const PARTS = ['train', 'validation', 'test'] as const;
  type Set = typeof sets extends fc.Arbitrary<infer T> ? T : never;

  function build({ inputs, targets, size, counts }: Set): ExperimentData {
    const parts = PARTS.flatMap((part, i) => {
      const count = counts[i]!;
      const examples = {
        count,
        inputs: column(inputs, count, size, i),
        targets: column(targets, count, 1, 2 * i),
      };
      return count === 0 ? [] : [[part, examples] as const];
    });
    return { source: '', ...(Object.fromEntries(parts) as Pick<ExperimentData, 'train'>) };
  }

  test('is another when any element of any part is', () => {
    fc.assert(
      fc.property(sets, fc.nat(), fc.nat(), (set, where, step) => {
        const data = build(set);
        const columns = PARTS.flatMap((part) =>
          data[part] ? [data[part].inputs, data[part].targets] : [],
        );
        const length = columns.reduce((sum, { values }) => sum + values.length, 0);
        const before = printsOf(data);
        expect(printsOf(build(set))).toEqual(before);
        let at = where % length;
        const { values } = columns.find((each) => {
          if (at < each.values.length) return true;
          at -= each.values.length;
          return false;
        })!;
        values[at]! += 1 + (step % 100);
        const after = printsOf(data);
        expect(after.rawFingerprint).not.toBe(before.rawFingerprint);
        expect(after.fingerprint).not.toBe(before.fingerprint);
      }),
      { numRuns: 300 },
    );
  });

  test('looks at each of many: 10 rows of 4,000, and one number of 3 million', () => {
    const large = (change: (values: Float32Array) => void) => {
      const values = Float32Array.from({ length: 750 * 4000 }, (_, i) => i % 1013);
      change(values);
      const count = 4000;
      const targets = { values: new Float32Array(count), shape: [count] };
      return printsOf({
        train: { count, inputs: { values, shape: [count, 750] }, targets },
        source: '',
      }).fingerprint;
    };
    const all = [
      large(() => {}),
      ...[0, 1, 17_777, 2_999_998, 2_999_999].map((at) =>
        large((values) => {
          values[at]! += 1;
        }),
      ),
      large((values) => {
        for (let row = 1; row < 4000; row += 401) values[row * 750 + 3]! *= 1000;
      }),
    ];
    expect(new Set(all).size).toBe(all.length);
  });

  const base: ExperimentData = {
    train: {
      count: 8,
      inputs: column(Float32Array, 8, 2, 0),
      targets: column(Int32Array, 8, 1, 0),
    },
    source: '',
  };
  const train = (more: Partial<Column>, targets: Partial<Column> = {}): ExperimentData => ({
    ...base,
    train: {
      count: 8,
      inputs: { ...base.train.inputs, ...more },
      targets: { ...base.train.targets, ...targets },
    },
  });

  test('is another for another type, shape, name, class, count of classes and part', () => {
    const { train: examples } = base;
    const labels = { ...examples.targets, values: new Int32Array(8).map((_, i) => i % 2) };
    const classes = (...names: string[]) => ({ ...train({}, { ...labels, classes: names }) });
    const prints = [
      base,
      train({ values: Float64Array.from(examples.inputs.values) }),
      train({ shape: [8, 1, 2] }),
      train({ names: ['a', 'b'] }),
      train({ names: ['b', 'a'] }),
      train({}, labels),
      { ...train({}, labels), classCount: 2 },
      classes('a', 'b'),
      classes('b', 'a'),
      { ...base, validation: examples },
      { ...base, test: examples },
    ].map((data) => printsOf(data));
    for (const each of ['fingerprint', 'rawFingerprint'] as const) {
      expect(new Set(prints.map((print) => print[each])).size).toBe(prints.length);
    }
  });

  test('is another for another split or transform, while the one of the raw data is not', () => {
    const prints = [
      {},
      { seed: 8 },
      { splitSeed: 9 },
      { validationFraction: 0.5 },
      { validationFraction: 0 },
      { trainFraction: 0.5 },
      { bootstrap: true },
      { standardise: 'feature' },
      { standardise: 'global' },
      { validation: { folds: 4, fold: 0, stratified: false } },
      { validation: { folds: 4, fold: 1, stratified: false } },
    ].map((more) => printsOf(base, more));
    expect(new Set(prints.map((print) => print.fingerprint)).size).toBe(prints.length);
    expect(new Set(prints.map((print) => print.rawFingerprint)).size).toBe(1);
  });

  test('is the same on every machine and in every release that says 2', () => {
    expect(printsOf(base)).toEqual({
      fingerprint: '2:38efceec58611be3b2db301439a99828',
      rawFingerprint: '2:ef05c3b8ec195c850c3b983a0a4fc33a',
    });
  });
});

describe('the digest of data', () => {
  const bytes = fc.uint8Array({ maxLength: 70 });

  test('is of the bytes, wherever they begin in memory', () => {
    fc.assert(
      fc.property(bytes, fc.nat(9), (values, offset) => {
        const moved = new Uint8Array(offset + values.length);
        moved.set(values, offset);
        const view = moved.subarray(offset);
        expect(dataDigest().update(view).hex()).toBe(dataDigest().update(values).hex());
      }),
    );
  });

  test('is another where pieces are divided otherwise, or have a zero more', () => {
    fc.assert(
      fc.property(bytes, bytes, (a, b) => {
        const print = (...pieces: Uint8Array[]) =>
          pieces.reduce((sum, piece) => sum.update(piece), dataDigest()).hex();
        const longer = new Uint8Array(a.length + 1);
        longer.set(a);
        expect(print(longer)).not.toBe(print(a));
        expect(print(a, new Uint8Array())).not.toBe(print(a));
        if (b.length > 0) expect(print(new Uint8Array([...a, ...b]))).not.toBe(print(a, b));
        if (String(a) !== String(b)) expect(print(a, b)).not.toBe(print(b, a));
      }),
    );
  });

  test('changes by half of its bits for any bit', () => {
    const bitsOf = (values: Uint8Array) => BigInt(`0x${dataDigest().update(values).hex()}`);
    const values = Uint8Array.from({ length: 100 }, (_, i) => i);
    const before = bitsOf(values);
    let sum = 0;
    for (let bit = 0; bit < 800; bit++) {
      values[bit >> 3]! ^= 1 << (bit & 7);
      const changed = (before ^ bitsOf(values)).toString(2).replaceAll('0', '').length;
      values[bit >> 3]! ^= 1 << (bit & 7);
      expect(changed).toBeGreaterThan(32);
      sum += changed;
    }
    // The mean of 800 draws of 128 coins: 64 ± 0.2.
    expect(Math.abs(sum / 800 - 64)).toBeLessThan(1);
  });
});
