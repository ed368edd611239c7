import { drawNoise, type NoiseSource } from './noise.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * Random numbers for `batch` and `objective`: tensors that depend on the run's seed and the lease alone, so they are the
 * same on every worker and every engine, and when the lease is computed again.
 */
export interface Draws {
  /** Uniform numbers from `low` (default 0), below `high` (default 1); float32. */
  uniform(shape: readonly number[], low?: number, high?: number): Tensor;
  /** Normal numbers; float32. Default: mean 0, deviation 1. */
  normal(shape: readonly number[], mean?: number, deviation?: number): Tensor;
  /** Whole numbers from 0, below `bound`; int32. `bound` is 1 to 2³¹. */
  integers(shape: readonly number[], bound: number): Tensor;
  /** 0 … n − 1 in random order, shape [n]; int32. */
  permutation(n: number): Tensor;
  /** One number from 0, below 1, for JavaScript: for choices that are the same for the whole minibatch. */
  number(): number;
}

/** @param source of the tensors: a recorded step is fed them. @param onNumber is called when a number is drawn for JavaScript. */
export function drawsOf(source: NoiseSource = drawNoise, onNumber = () => {}): Draws {
  return {
    uniform(shape, low = 0, high = 1) {
      const numbers = source({ kind: 'uniform', shape: checked(shape, 'uniform') });
      return low === 0 && high === 1 ? numbers : tf.add(tf.mul(numbers, high - low), low);
    },
    normal(shape, mean = 0, deviation = 1) {
      const numbers = source({ kind: 'normal', shape: checked(shape, 'normal') });
      return mean === 0 && deviation === 1 ? numbers : tf.add(tf.mul(numbers, deviation), mean);
    },
    integers(shape, bound) {
      if (!(Number.isInteger(bound) && bound >= 1 && bound <= 2 ** 31)) {
        throw new Error(
          `random.integers was asked for numbers below ${bound}; allowed: 1 to 2147483648`,
        );
      }
      return source({ kind: 'integers', shape: checked(shape, 'integers'), bound });
    },
    permutation(n) {
      return source({ kind: 'permutation', shape: checked([n], 'permutation') });
    },
    number() {
      onNumber();
      return Math.random();
    },
  };
}

function checked(shape: readonly number[], name: string): readonly number[] {
  const isShape =
    Array.isArray(shape) && shape.every((size) => Number.isInteger(size) && size >= 0);
  if (isShape) return shape;
  throw new Error(
    `random.${name} was given ${JSON.stringify(shape) ?? 'nothing'} as the shape; allowed: an array of whole numbers, such as [32, 10]`,
  );
}
