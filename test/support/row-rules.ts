import type { TableOptimizer } from '../../shared/tables.ts';

/** The rules of rows in TypeScript, one row at a time and in f64: what the kernels of server/kernels/assembly/rows.ts do. */

/** What an update of one row is made with. */
export interface PlainRowStep {
  /** Learning rate with all its factors. */
  readonly rate: number;
  /** Updates of the table since the optimizer began, this one included: from 1. */
  readonly step: number;
  /** Updates of the table since this row was last in one: 1 if it was in the one before. 0: its state is as new. */
  readonly age: number;
}

/** The gradient of a row: elements [at, at + width). */
export interface RowGradient {
  readonly values: Float32Array;
  readonly at: number;
  readonly width: number;
}

export interface PlainRowRule {
  /** Numbers of state a row of this width has. */
  stateSize(width: number): number;
  /** What the state begins with. */
  readonly initial: number;
  /**
   * Updates elements [at, at + width) of θ with their gradient, and elements [stateAt, …) of the state. All of `state` is
   * set before where it is as new.
   */
  update(
    theta: Float32Array,
    at: number,
    gradient: RowGradient,
    state: Float32Array,
    stateAt: number,
    step: PlainRowStep,
  ): void;
}

export function createPlainRowRule(config: TableOptimizer): PlainRowRule {
  switch (config.kind) {
    case 'sgd':
      return SGD;
    case 'adagrad':
      return adagrad(config);
    case 'adam':
      return adam(config);
  }
}

/** θ ← θ − ε g. */
const SGD: PlainRowRule = {
  stateSize: () => 0,
  initial: 0,
  update(theta, at, { values: g, at: from, width }, _, __, { rate }) {
    for (let i = 0; i < width; i++) theta[at + i] = theta[at + i]! - rate * g[from + i]!;
  },
};

/**
 * r ← r + mean(g²), θ ← θ − ε g / (√r + δ): one number of state for a row, as FBGEMM's rowwise Adagrad. *Deep Learning*,
 * Algorithm 8.4, has one for each element.
 */
function adagrad({
  initialAccumulator: initial,
  epsilon: delta,
}: {
  readonly initialAccumulator: number;
  readonly epsilon: number;
}): PlainRowRule {
  return {
    stateSize: () => 1,
    initial,
    update(theta, at, { values: g, at: from, width }, state, stateAt, { rate }) {
      let squares = 0;
      for (let i = from; i < from + width; i++) squares += g[i]! * g[i]!;
      const r = Math.fround(state[stateAt]! + squares / width);
      state[stateAt] = r;
      const step = rate / (Math.sqrt(r) + delta);
      for (let i = 0; i < width; i++) theta[at + i] = theta[at + i]! - step * g[from + i]!;
    },
  };
}

/**
 * m ← β₁ᵏ m + (1 − β₁) g, v ← β₂ᵏ v + (1 − β₂) g² with the age k of the row, both corrected for their start at 0,
 * θ ← θ − ε m̂ / (√v̂ + δ). The moments are those of an Adam that sees a gradient of 0 for each update that the row was not
 * in. But the row does not move in these updates.
 */
function adam({
  beta1,
  beta2,
  epsilon: delta,
}: {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
}): PlainRowRule {
  return {
    stateSize: (width) => 2 * width,
    initial: 0,
    update(theta, at, { values, at: from, width }, state, stateAt, { rate, step, age }) {
      const scale = rate / (1 - beta1 ** step);
      const correction = 1 / (1 - beta2 ** step);
      const keep1 = beta1 ** age;
      const keep2 = beta2 ** age;
      for (let i = 0; i < width; i++) {
        const g = values[from + i]!;
        const m = keep1 * state[stateAt + i]! + (1 - beta1) * g;
        const v = keep2 * state[stateAt + width + i]! + (1 - beta2) * g * g;
        state[stateAt + i] = m;
        state[stateAt + width + i] = v;
        theta[at + i] = theta[at + i]! - (scale * m) / (Math.sqrt(v * correction) + delta);
      }
    },
  };
}
