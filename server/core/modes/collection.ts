import type { Lease } from '../../../shared/protocol.ts';

/** The pushes of the step that is being made: whose they are, and what is told of the update that they become. */

/** A push that waits for its update. */
export interface CollectedPush {
  readonly worker: string;
  readonly lease: Lease;
  readonly loss: number;
  readonly staleness: number;
  /** L2 norm of its gradient. */
  readonly norm: number;
  /** Its examples, in minibatches. */
  readonly share: number;
  /** Time that its worker needed for a minibatch; absent in checkpoints of older releases. */
  readonly computeMs?: number;
}

export class Collection {
  #pushes: CollectedPush[] = [];

  get count(): number {
    return this.#pushes.length;
  }

  add(push: CollectedPush): void {
    this.#pushes.push(push);
  }

  /** The sum of the shares of all pushes. */
  get shares(): number {
    return this.#pushes.reduce((sum, { share }) => sum + share, 0);
  }

  get examples(): number {
    return this.#pushes.reduce((sum, { lease }) => sum + lease.count, 0);
  }

  /** Over their examples. */
  get loss(): number {
    return this.#pushes.reduce((sum, { loss, share }) => sum + loss * share, 0) / this.shares;
  }

  /** The mean, rounded: updates are counted by it. */
  get staleness(): number {
    const sum = this.#pushes.reduce((total, { staleness }) => total + staleness, 0);
    return Math.round(sum / Math.max(1, this.count));
  }

  /** The mean of their norms: no less than that of their mean. */
  get norm(): number {
    return this.#pushes.reduce((sum, { norm, share }) => sum + norm * share, 0) / this.shares;
  }

  /** The mean of the squares of their norms. */
  get squares(): number {
    return this.#pushes.reduce((sum, { norm, share }) => sum + norm ** 2 * share, 0) / this.shares;
  }

  /**
   * The time of one of them, by turns in the order of arrival: times of many updates are spread like those of single pushes,
   * which the mean or the last one would not be.
   */
  computeMs(step: number): number | undefined {
    return this.#pushes[step % Math.max(1, this.count)]?.computeMs;
  }

  /** The worker of the last one. */
  get last(): string | null {
    return this.#pushes.at(-1)?.worker ?? null;
  }

  /** None is left. @returns those that were there. */
  take(): readonly CollectedPush[] {
    const pushes = this.#pushes;
    this.#pushes = [];
    return pushes;
  }

  state(): readonly CollectedPush[] {
    return [...this.#pushes];
  }

  restore(pushes: readonly CollectedPush[]): void {
    this.#pushes = [...pushes];
  }
}
