import type { RunConfig } from '../../shared/config.ts';

/**
 * An average of the parameters over steps: what is evaluated and kept instead of the last ones.
 * Deep Learning §8.7.3.
 */
export interface Average {
  /** Takes the parameters after an update in. @param phaseStep of that update, from 1. */
  update(parameters: Float32Array, phaseStep: number): void;
  /** The average, shape [n]; live. Meaningless while `count` is 0. */
  readonly values: Float32Array;
  /** Updates that were taken in. */
  readonly count: number;
  reset(): void;
  state(): { readonly count: number };
  /** @param values shape [n], copied. */
  restore(state: unknown, values: Float32Array): void;
}

/**
 * `ema`: a ← d a + (1 − d) θ with d = min(decay, (1 + t) / (10 + t)), so that an early average follows
 * the parameters instead of their initial values. `polyak`: the plain mean of all since startStep
 * (Polyak and Juditsky 1992). Null: none.
 */
export function createAverage(config: RunConfig['averaging'], n: number): Average | null {
  if (config.kind === 'none') return null;
  const values = new Float32Array(n);
  let count = 0;
  const keep = (): number => {
    if (count === 0) return 0;
    return config.kind === 'polyak'
      ? count / (count + 1)
      : Math.min(config.decay, (1 + count) / (10 + count));
  };
  return {
    values,
    get count() {
      return count;
    },
    update(parameters, phaseStep) {
      if (config.kind === 'polyak' && phaseStep <= config.startStep) return;
      const d = keep();
      for (let i = 0; i < n; i++) values[i] = d * values[i]! + (1 - d) * parameters[i]!;
      count++;
    },
    reset() {
      values.fill(0);
      count = 0;
    },
    state: () => ({ count }),
    restore(state, saved) {
      count = (state as { count: number }).count;
      values.set(saved);
    },
  };
}
