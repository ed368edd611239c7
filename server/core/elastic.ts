import { DownpourError } from '../../shared/errors.ts';
import type { Memory } from '../../shared/memory.ts';
import { normAndFinite } from '../../shared/optimizer.ts';
import type { Decoding } from './kernels.ts';
import { GradientScan, gradientAt, type StagedPush } from './landing-rooms.ts';

/** Pushes that hold the parameters x of a worker instead of a gradient (EASGD, Zhang et al. 2015, arXiv:1412.6651). */

/**
 * Makes a gradient of such a push: θ − x, where x was.
 * @param theta shape [≥ n]. @param n trainable elements. @throws DownpourError DP_TENSOR_SIZE: they are not in f32.
 */
export function elasticGradient(
  memory: Memory,
  push: StagedPush,
  theta: Float32Array,
  n: number,
): StagedPush {
  const { decoding, address } = push.scan.gradient;
  mustBeWhole(decoding);
  const x = memory.floats(address, n);
  for (let i = 0; i < n; i++) x[i] = theta[i]! - x[i]!;
  return { ...push, scan: new GradientScan(gradientAt('f32', address, n)) };
}

/** Σ (θ − x)² of such a push, which stays as it is; NaN: not all of it is finite. Arguments are those of `elasticGradient`. */
export function elasticSquares(
  memory: Memory,
  { scan, statistics }: StagedPush,
  theta: Float32Array,
  n: number,
): number {
  const { decoding, address } = scan.gradient;
  mustBeWhole(decoding);
  const x = memory.floats(address, n);
  let sum = normAndFinite(statistics) * 0;
  for (let i = 0; i < x.length; i++) sum += (theta[i]! - x[i]!) ** 2;
  return sum;
}

function mustBeWhole(decoding: Decoding): void {
  if (decoding === 'f32') return;
  throw new DownpourError(
    'DP_TENSOR_SIZE',
    `an elastic push holds parameters, which are sent in f32; this one is in ${decoding}`,
  );
}
