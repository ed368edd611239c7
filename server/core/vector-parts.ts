import { DownpourError } from '../../shared/errors.ts';
import { fragmentOf } from '../../shared/fragments.ts';
import type { Range } from '../../shared/partition.ts';

/** The parts of a run's trainable elements that a push may hold: all, or one of the fragments. */
export class VectorParts {
  readonly all: Range;
  readonly #fragments: readonly Range[];

  /** @param count of fragments; 1: pushes hold all elements. */
  constructor(trainableSize: number, count: number) {
    this.all = { start: 0, end: trainableSize };
    this.#fragments = Array.from({ length: count }, (_, index) =>
      fragmentOf(trainableSize, { index, count }),
    );
  }

  /** Pushes may hold fragments. */
  get areSeveral(): boolean {
    return this.#fragments.length > 1;
  }

  /** @param fragment absent: all. @throws DownpourError DP_TENSOR_SIZE: there is no such fragment. */
  of(fragment: number | undefined): Range {
    if (fragment === undefined) return this.all;
    const part = this.#fragments[fragment];
    if (part) return part;
    throw new DownpourError(
      'DP_TENSOR_SIZE',
      `a push holds fragment ${fragment}; this run's parameters have the fragments 0 to ${this.#fragments.length - 1}`,
    );
  }
}
