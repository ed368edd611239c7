import type { RunConfig } from '../../shared/config.ts';

/**
 * Early stopping, Deep Learning §7.8, Algorithm 7.1: the best parameters so far are kept, and
 * training stops when `patience` evaluations in a row did not improve on them by more than
 * `minImprovement`. What follows (`restore`; Algorithm 7.2, `retrain`; Algorithm 7.3, `continue`) is
 * the run's business; here is only the decision.
 */
export interface EarlyStoppingState {
  /** j of the algorithm: evaluations since the best one. */
  readonly sinceBest: number;
  /** v and i*: the lowest validation value, and the step it was measured at. */
  readonly best: { readonly value: number; readonly step: number } | null;
  readonly evaluations: number;
}

export interface StoppingVerdict {
  readonly improved: boolean;
  readonly stop: boolean;
}

export class EarlyStopping {
  readonly #config: RunConfig['earlyStopping'];
  #state: EarlyStoppingState;

  constructor(config: RunConfig['earlyStopping']) {
    this.#config = config;
    this.#state = { sinceBest: 0, best: null, evaluations: 0 };
  }

  restore(state: EarlyStoppingState): void {
    this.#state = state;
  }

  get state(): EarlyStoppingState {
    return this.#state;
  }

  /** Evaluations without improvement that are left before the stop. */
  get patienceLeft(): number {
    return Math.max(0, this.#config.patience - this.#state.sinceBest);
  }

  /**
   * Takes one evaluation in. A value that is not finite never improves.
   * @param value validation loss or error, lower is better; @param step it was measured at.
   */
  observe(value: number, step: number): StoppingVerdict {
    const { best, sinceBest, evaluations } = this.#state;
    const target = best === null ? Infinity : best.value - this.#config.minImprovement;
    const improved = Number.isFinite(value) && value < target;
    this.#state = {
      sinceBest: improved ? 0 : sinceBest + 1,
      best: improved ? { value, step } : best,
      evaluations: evaluations + 1,
    };
    return {
      improved,
      stop: this.#config.enabled && this.#state.sinceBest >= this.#config.patience,
    };
  }
}
