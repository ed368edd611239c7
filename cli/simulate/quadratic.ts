import { random } from '../../shared/random.ts';
import type { VirtualProblem } from './virtual-cluster.ts';

/**
 * f(x) = ½ Σ λᵢ xᵢ², whose gradients are λᵢ xᵢ and noise: what theorems about asynchronous methods are about, and
 * quick enough for ten thousand workers.
 */

export interface QuadraticOptions {
  /** λ, by coordinate. */
  readonly curvatures: readonly number[];
  /** Standard deviation of each coordinate of a gradient's noise. */
  readonly noise: number;
  /** Each coordinate begins there. */
  readonly start: number;
}

/** From 1 down to `least`, evenly on a logarithmic scale. */
export const curvatures = (dimensions: number, least: number): number[] =>
  Array.from({ length: dimensions }, (_, i) => least ** (i / Math.max(1, dimensions - 1)));

const NOISE_STREAM = 91;

/** Its examples are only counted: one of each part, and as many gradients as a run asks for. */
export function createQuadratic({ curvatures, noise, start }: QuadraticOptions): VirtualProblem {
  const dimensions = curvatures.length;
  const lossAt = (x: Float32Array) => {
    let sum = 0;
    for (let i = 0; i < dimensions; i++) sum += curvatures[i]! * x[i]! ** 2;
    return sum / 2;
  };
  return {
    tensors: [{ name: 'x', shape: [dimensions], role: 'trainable' }],
    data: {
      ...{ trainCount: 1_000_000, validationCount: 1, testCount: 0 },
      ...{ fingerprint: 'quadratic', source: `a quadratic of ${dimensions} dimensions` },
    },
    initialise: () => new Float32Array(dimensions).fill(start),
    gradient(_, x, payload, seed) {
      const draw = noise > 0 ? random(seed, NOISE_STREAM) : null;
      for (let i = 0; i < dimensions; i++) {
        payload[i] = curvatures[i]! * x[i]! + (draw ? noise * draw.normal() : 0);
      }
      return lossAt(x);
    },
    evaluate: (_, x) => ({ loss: lossAt(x), error: lossAt(x) }),
  };
}
