import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import { checkTargets } from '../../worker/check/targets.ts';
import type { Column } from '../../worker/data/columns.ts';
import type { Examples, ExperimentData } from '../../worker/data/examples.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';

const split = { seed: 1, validationFraction: 0.2, standardise: 'none' as const };
const findingsOf = (data: Omit<ExperimentData, 'source'>) =>
  checkTargets(prepareData({ ...data, source: '' }, split));

function examples(
  inputs: readonly number[][],
  targets: readonly number[],
  Values: typeof Float32Array | typeof Float64Array = Float64Array,
): Examples {
  const [count, size] = [inputs.length, inputs[0]!.length];
  const column: Column = { values: Values.from(inputs.flat()), shape: [count, size] };
  const names = Array.from({ length: size }, (_, i) => `x${i}`);
  return {
    count,
    inputs: { ...column, names },
    targets: { values: Float64Array.from(targets), shape: [count] },
  };
}
const drawn = (rows: number, columns: number, seed = 1) => {
  const draw = random(seed, 1);
  return Array.from({ length: rows }, () => Array.from({ length: columns }, () => draw.normal()));
};

describe('targets', () => {
  test('that never vary are a problem', () => {
    const [found] = findingsOf({ train: examples(drawn(30, 2), new Array(30).fill(7)) });
    expect(found).toMatchObject({ check: 'targets', verdict: 'problem' });
    expect(found!.text).toContain('All 24 training examples have the same target, 7');
  });

  test('that are among the inputs are a problem, with the column', () => {
    const rows = drawn(40, 3);
    const [found] = findingsOf({
      train: examples(
        rows,
        rows.map((row) => row[2]!),
      ),
    });
    expect(found).toMatchObject({ check: 'targets', verdict: 'problem', numbers: { input: 2 } });
    expect(found!.text).toContain("column 2 ('x2') equals it in all 32 training examples");
  });

  test('of anything else are not complained of', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 60 }),
        fc.integer({ min: 1, max: 4 }),
        fc.boolean(),
        fc.integer({ min: 1, max: 99 }),
        (rows, columns, classes, seed) => {
          const inputs = drawn(rows, columns, seed);
          const targets = inputs.map(([x], row) => (classes ? row % 2 : 2 * x! + 1));
          const data = { train: examples(inputs, targets), ...(classes ? { classCount: 2 } : {}) };
          expect(findingsOf(data)).toEqual([]);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('that an autoencoder has are its inputs', () => {
    const { count, inputs } = examples(drawn(40, 3), new Array(40).fill(0));
    expect(findingsOf({ train: { count, inputs, targets: inputs } })).toEqual([]);
  });
});

describe('the classes of parts', () => {
  const labelled = (labels: readonly number[]) => examples(drawn(labels.length, 2), labels);
  const classes = ['cat', 'dog', 'owl'];
  const mixed = (count: number) => Array.from({ length: count }, (_, i) => i % 3);

  test('that lack one by no chance are advised against, by number and name', () => {
    const [found] = findingsOf({
      train: labelled(mixed(90)),
      validation: labelled(mixed(60).filter((c) => c !== 2)),
      classes,
    });
    expect(found).toMatchObject({ check: 'parts', verdict: 'advice' });
    expect(found!.text).toContain(
      "Class 2 ('owl') has 33.3 % of the training examples but none of the 40 validation examples.",
    );
  });

  test('that have one alone, or one that is not in training', () => {
    const only = findingsOf({
      train: labelled(mixed(90)),
      test: labelled(new Array(30).fill(0)),
      classes,
    });
    expect(only[0]!.text).toMatch(
      /Class 1 \('dog'\) \(and 1 more\) has 3\d(\.\d)? % of the training examples but none of the 30 test examples\./,
    );
    const unknown = findingsOf({
      train: labelled(mixed(90).filter((c) => c !== 2)),
      test: labelled(mixed(30)),
      classes,
    });
    expect(unknown[0]!.text).toContain(
      "Class 2 ('owl') has 10 test examples but no training example.",
    );
  });

  test('may differ by chance: of few examples, or of a rare class', () => {
    for (const data of [
      { train: labelled(mixed(90)), validation: labelled([0, 1, 1, 0]) },
      { train: labelled([...mixed(90), 2]), test: labelled(mixed(60)) },
      {
        train: labelled(Array.from({ length: 300 }, (_, i) => (i % 100 === 0 ? 2 : i % 2))),
        validation: labelled(Array.from({ length: 60 }, (_, i) => i % 2)),
      },
    ]) {
      expect(findingsOf({ ...data, classes })).toEqual([]);
    }
  });
});

describe('float32 columns', () => {
  const times = (offset: number, step: number) =>
    drawn(100, 1).map(([x], row) => [x!, offset + step * row]);
  const y = drawn(100, 1, 5).map(([x]) => x!);

  test('whose differences were rounded are named, with the numbers', () => {
    const [found] = findingsOf({ train: examples(times(1.7e12, 40_000), y, Float32Array) });
    expect(found).toMatchObject({ check: 'rounding', verdict: 'advice' });
    expect(found!.text).toMatch(
      /column 1 \('x1'\): as float32, numbers such as 1\d{12} are 131072 apart/,
    );
  });

  test.each([
    ['small', 0, 1],
    ['large with large differences', 1.7e12, 1e9],
    ['whole up to 2²⁴', 16_000_000, 1],
    ['constant', 1e12, 0],
  ])('%s are not', (_, offset, step) => {
    expect(findingsOf({ train: examples(times(offset, step), y, Float32Array) })).toEqual([]);
  });
});
