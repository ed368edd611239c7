import { describe, expect, test } from 'vitest';
import { normBounds, project } from '../../server/core/max-norm.ts';
import { Parameters } from '../../server/core/parameters.ts';
import { bytesOf } from '../../shared/codec.ts';
import { resolveConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { partition, rangeLayout } from '../../shared/partition.ts';
import { random } from '../../shared/random.ts';

const layout = createLayout([
  { name: 'dense/kernel', shape: [3, 4], role: 'trainable' },
  { name: 'dense/bias', shape: [4], role: 'trainable' },
  { name: 'conv/kernel', shape: [2, 2, 3, 2], role: 'trainable' },
  { name: 'norm/mean', shape: [2, 2], role: 'statistics', momentum: 0.9 },
]);

/** Norms of the columns of one tensor. */
function norms(vector: Float32Array, name: string): number[] {
  const { offset, size, shape } = layout.tensors.find((tensor) => tensor.name === name)!;
  const units = shape.at(-1)!;
  return Array.from({ length: units }, (_, unit) => {
    const column = vector.slice(offset, offset + size).filter((_, i) => i % units === unit);
    return Math.hypot(...column);
  });
}
const normals = (n: number, seed: number) => {
  const draw = random(seed, 1);
  return Float32Array.from({ length: n }, () => draw.normal());
};

describe('maxNorm', () => {
  test('bounds weights, not biases or statistics; the first rule that matches wins', () => {
    const of = (maxNorm: object) => normBounds(resolveConfig({ maxNorm }).maxNorm, layout.tensors);
    expect(of({})).toEqual([]);
    expect(of({ value: 3 })).toEqual([
      { start: 0, rows: 3, units: 4, value: 3 },
      { start: 16, rows: 12, units: 2, value: 3 },
    ]);
    const rules = [
      { pattern: 'conv/*', value: null },
      { pattern: '*', value: 1 },
    ];
    expect(of({ value: 3, rules }).map(({ start, value }) => [start, value])).toEqual([
      [0, 1],
      [12, 1],
    ]);
  });

  test('scales columns that are too long, keeps their direction, and leaves others as they are', () => {
    const vector = Float32Array.of(3, 0.1, 4, 0.2);
    project(vector, [{ start: 0, rows: 2, units: 2, value: 1 }]);
    expect(vector[0]).toBeCloseTo(0.6, 6);
    expect(vector[2]).toBeCloseTo(0.8, 6);
    expect([vector[1], vector[3]]).toEqual([Math.fround(0.1), Math.fround(0.2)]);
  });

  test.each(['sgd', 'momentum', 'adam'])(
    'holds after each update by %s, and in the average',
    (kind) => {
      const config = resolveConfig({
        ...{ optimizer: { kind }, maxNorm: { value: 0.5 } },
        averaging: { kind: 'ema', decay: 0.5 },
      });
      const parameters = new Parameters(layout, config);
      parameters.initialise(normals(layout.size, 1));
      for (let step = 1; step <= 20; step++) {
        const push = bytesOf(normals(layout.exchangedSize, 1 + step));
        const staged = parameters.stage(push, 'f32');
        const clip = { limit: Infinity, factor: 1 };
        expect(parameters.update(staged, clip, { step, learningRate: 0.3 })).toBe(true);
        for (const vector of [parameters.exchanged(), parameters.evaluated()]) {
          for (const name of ['dense/kernel', 'conv/kernel']) {
            // Rounded to float32.
            for (const norm of norms(vector, name)) expect(norm).toBeLessThan(0.5 + 1e-6);
          }
        }
      }
      // The bound is reached, and biases know none.
      expect(Math.max(...norms(parameters.exchanged(), 'dense/kernel'))).toBeGreaterThan(0.49);
    },
  );

  test('is refused where shards split a tensor that it bounds, with what to do', () => {
    const large = createLayout([{ name: 'large/kernel', shape: [400, 100], role: 'trainable' }]);
    const [range] = partition(large, 2);
    const { tensors } = rangeLayout(large, range!);
    const { maxNorm } = resolveConfig({ maxNorm: { value: 3 } });
    expect(() => normBounds(maxNorm, tensors)).toThrow(/'large\/kernel'.*--shards/);
    const rules = [{ pattern: 'large/*', value: null }];
    expect(normBounds({ ...maxNorm, rules }, tensors)).toEqual([]);
  });
});
