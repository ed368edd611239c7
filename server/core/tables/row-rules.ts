import type { TableOptimizer } from '../../../shared/tables.ts';
import { NUMBERS_OF_ROW, type RowMemory } from './row-memory.ts';

/**
 * How rows are updated, by the kernels. Rows that were in no push for a while are brought up to date first, by their age.
 * The same rules in TypeScript are in test/support/row-rules.ts.
 */

/** What an update of one row is made with. */
export interface RowStep {
  /** Learning rate with all its factors. */
  rate: number;
  /** Updates of the table since this row was last in one: 1 if it was in the one before. 0: its state is as new. */
  age: number;
}

export interface RowRule {
  /** Numbers of state a row of this width has. */
  stateSize(width: number): number;
  /** Said before the rows of an update. @param step updates of the table since the optimizer began, this one included: from 1. */
  begin(step: number): void;
  /** Writes the numbers of row i of a piece, behind its decay. */
  note(numbers: Float64Array, i: number, row: RowStep): void;
  /**
   * Updates the rows of a piece in their slots; the room `rows` has them as they were then.
   * @param maxNorm of a row; null: any. @returns false: a row is no longer finite.
   */
  update(memory: RowMemory, count: number, maxNorm: number | null): boolean;
}

export function createRowRule(config: TableOptimizer): RowRule {
  switch (config.kind) {
    case 'sgd':
      return SGD;
    case 'adagrad':
      return adagrad(config);
    case 'adam':
      return new Adam(config);
  }
}

/** The third number of a row whose state is as new. */
const AS_NEW = -1;

/** Numbers of a rule that a kernel takes. */
interface Constants {
  readonly initial: number;
  readonly delta: number;
  readonly p1: number;
  readonly q1: number;
  readonly correction: number;
}
const NONE: Constants = { initial: 0, delta: 0, p1: 0, q1: 0, correction: 1 };

function updated(
  kind: TableOptimizer['kind'],
  { kernels, width, at }: RowMemory,
  count: number,
  maxNorm: number | null,
  { initial, delta, p1, q1, correction }: Constants,
): boolean {
  // biome-ignore format: as the kernel takes them
  const spoilt = kernels[`rows_${kind}`](count, width, at.slots, at.gradients, at.theta, at.state, at.rows, at.numbers,
    maxNorm ?? 0, initial, delta, p1, q1, correction);
  return spoilt === 0;
}

/** θ ← θ − ε g. */
const SGD: RowRule = {
  stateSize: () => 0,
  begin() {},
  note(numbers, i, { rate }) {
    numbers[NUMBERS_OF_ROW * i + 1] = rate;
  },
  update: (memory, count, maxNorm) => updated('sgd', memory, count, maxNorm, NONE),
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
}): RowRule {
  const constants = { ...NONE, initial, delta };
  return {
    stateSize: () => 1,
    begin() {},
    note(numbers, i, { rate, age }) {
      const at = NUMBERS_OF_ROW * i;
      numbers[at + 1] = rate;
      numbers[at + 2] = age === 0 ? AS_NEW : 1;
    },
    update: (memory, count, maxNorm) => updated('adagrad', memory, count, maxNorm, constants),
  };
}

/**
 * m ← β₁ᵏ m + (1 − β₁) g, v ← β₂ᵏ v + (1 − β₂) g² with the age k of the row, both corrected for their start at 0,
 * θ ← θ − ε m̂ / (√v̂ + δ). The moments are those of an Adam that sees a gradient of 0 for each update that the row was not
 * in. But the row does not move in these updates.
 */
class Adam implements RowRule {
  readonly #beta1: number;
  readonly #beta2: number;
  readonly #constants: Constants & { correction: number };
  #scale = 1;

  constructor({
    beta1,
    beta2,
    epsilon,
  }: {
    readonly beta1: number;
    readonly beta2: number;
    readonly epsilon: number;
  }) {
    this.#beta1 = beta1;
    this.#beta2 = beta2;
    this.#constants = { ...NONE, delta: epsilon, p1: 1 - beta1, q1: 1 - beta2 };
  }

  stateSize(width: number): number {
    return 2 * width;
  }

  begin(step: number): void {
    this.#scale = 1 / (1 - this.#beta1 ** step);
    this.#constants.correction = 1 / (1 - this.#beta2 ** step);
  }

  note(numbers: Float64Array, i: number, { rate, age }: RowStep): void {
    const at = NUMBERS_OF_ROW * i;
    numbers[at + 1] = rate * this.#scale;
    numbers[at + 2] = age === 0 ? AS_NEW : this.#beta1 ** age;
    numbers[at + 3] = this.#beta2 ** age;
  }

  update(memory: RowMemory, count: number, maxNorm: number | null): boolean {
    return updated('adam', memory, count, maxNorm, this.#constants);
  }
}
