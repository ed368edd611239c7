import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { matchesPattern } from '../../shared/name-pattern.ts';

/**
 * A bound on the norm of each unit's incoming weights (Srebro and Shraibman 2005; Deep Learning §7.2): after an
 * update, a column that has become longer is scaled back to the bound.
 *
 * Here and not in the workers' forward pass: an update belongs to the server alone, so only after it is
 * there a vector to project, and every pull, evaluation, checkpoint and export then keeps to the bound with
 * no code of ours in the model; a worker that projected what it pulled would leave the server's own to grow.
 * Averages of parameters keep to it as well, since the ball is convex.
 */

/** A matrix [rows, units] within the vector: the norm of each of its columns is at most `value`. */
export interface NormBound {
  readonly start: number;
  readonly rows: number;
  readonly units: number;
  readonly value: number;
}

/**
 * Which tensors are bound: the first matching rule, else the common value on those of rank 2 or more. The
 * last axis is that of the units, as in all kernels of tfjs-layers; all axes before it are incoming weights.
 * @throws DownpourError DP_LAYOUT_INVALID: only a part of a tensor is here (shards).
 */
export function normBounds(
  config: RunConfig['maxNorm'],
  tensors: readonly {
    readonly name: string;
    readonly role: string;
    readonly shape: readonly number[];
    readonly offset: number;
    readonly size: number;
  }[],
): NormBound[] {
  return tensors.flatMap(({ name, role, shape, offset, size }) => {
    if (role !== 'trainable') return [];
    const rule = config.rules.find(({ pattern }) => matchesPattern(name, pattern));
    const value = rule ? rule.value : shape.length >= 2 ? config.value : null;
    if (value === null) return [];
    if (size !== shape.reduce((product, d) => product * d, 1)) {
      throw new DownpourError(
        'DP_LAYOUT_INVALID',
        `maxNorm needs all of tensor '${name}' in one place, and shards split it: start the server with fewer --shards, or exempt it by a rule of value null`,
      );
    }
    const units = shape.at(-1) ?? 1;
    return [{ start: offset, rows: size / units, units, value }];
  });
}

/** Scales columns that are too long, in place. */
export function project(vector: Float32Array, bounds: readonly NormBound[]): void {
  for (const { start, rows, units, value } of bounds) {
    const factors = new Float64Array(units);
    for (let row = 0, i = start; row < rows; row++) {
      for (let unit = 0; unit < units; unit++, i++) factors[unit]! += vector[i]! * vector[i]!;
    }
    let long = false;
    for (let unit = 0; unit < units; unit++) {
      const norm = Math.sqrt(factors[unit]!);
      factors[unit] = norm > value ? value / norm : 1;
      long ||= norm > value;
    }
    if (!long) continue;
    for (let row = 0, i = start; row < rows; row++) {
      for (let unit = 0; unit < units; unit++, i++) vector[i] = vector[i]! * factors[unit]!;
    }
  }
}
