import fc from 'fast-check';
import { beforeAll, expect, test } from 'vitest';
import { openEngine } from '../../worker/engine.ts';
import { dropoutMask, seededDraws, withSeed } from '../../worker/noise.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const valuesOf = (f: () => Tensor) => {
  const tensor = tf.tidy(f);
  const values = tensor.dataSync().slice();
  tensor.dispose();
  return values;
};

test('a mask is to the bit what tf.dropout multiplies with, whatever the seed', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      fc.double({ min: 0.01, max: 0.99, noNaN: true }),
      fc.constantFrom<number[]>([7], [64, 5], [2, 3, 4]),
      (seed, rate, shape) => {
        const ours = withSeed(seed, () => dropoutMask({ shape, rate, seed: undefined }));
        const theirs = withSeed(seed, () => valuesOf(() => tf.dropout(tf.ones(shape), rate)));
        expect(ours).toEqual(theirs);
      },
    ),
  );
});

test('a layer with a seed of its own has the mask of that seed, and draws nothing', () => {
  const before = seededDraws();
  const ours = withSeed(1, () => dropoutMask({ shape: [50], rate: 0.4, seed: 12.5 }));
  expect(seededDraws()).toBe(before);
  expect(ours).toEqual(valuesOf(() => tf.dropout(tf.ones([50]), 0.4, undefined, 12.5)));
});
