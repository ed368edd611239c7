import { Crowd } from './crowd.ts';
import type { Mode, ModeReplica, ModeState } from './mode.ts';

/**
 * Steps in rounds: each worker pushes one gradient at the parameters of the round, and waits for the next round. A round
 * ends with the push of the last worker (bulk synchronous), or with the first so many (backup workers, Chen et al. 2016,
 * arXiv:1604.00981; m-synchronous, arXiv:2602.03802): then it waits `graceMs` for more, and those that come later are computed
 * again. Who has left, is out of time, evaluates or gets no minibatch is not waited for.
 */

export interface RoundsOptions {
  /** Pushes that end a round; null: those of all workers but `spares`. */
  readonly quorum: number | null;
  readonly spares: number;
  readonly graceMs: number;
}

export class Rounds implements Mode {
  readonly collects = true;
  readonly #options: RoundsOptions;
  readonly #crowd = new Crowd();
  #capacity = Infinity;
  /** The clock that workers have before their push of this round. */
  #round = 0;
  /** A worker waits for the next round. */
  #held = false;
  #opened = false;
  /** When a round that has its quorum ends; null: it has not. */
  #completeAt: number | null = null;

  constructor(options: RoundsOptions) {
    this.#options = options;
  }

  place(capacity: number): void {
    this.#capacity = capacity;
  }

  get deadline(): number | null {
    return this.#completeAt;
  }

  arrived(worker: string): void {
    this.#crowd.arrived(worker);
  }

  departed(worker: string, now: number): void {
    this.#crowd.departed(worker, now);
  }

  left(worker: string): void {
    this.#crowd.left(worker);
  }

  late(worker: string): void {
    // Who has pushed waits for the others, and holds nobody up.
    if (!this.#hasPushed(worker)) this.#crowd.late(worker);
  }

  tick(now: number): void {
    this.#crowd.tick(now);
  }

  postpone(ms: number): void {
    this.#crowd.postpone(ms);
    if (this.#completeAt !== null) this.#completeAt += ms;
  }

  #hasPushed(worker: string): boolean {
    return this.#crowd.clockOf(worker) > this.#round;
  }

  mayPull(worker: string): boolean {
    if (!this.#hasPushed(worker)) return true;
    this.#held = true;
    return false;
  }

  given(worker: string): void {
    this.#crowd.given(worker);
  }

  idle(worker: string): void {
    this.#crowd.idle(worker);
  }

  takeOpened(): boolean {
    const opened = this.#opened;
    this.#opened = false;
    return opened;
  }

  refuse(
    worker: string,
    { staleness, serverStep }: { readonly staleness: number; readonly serverStep: number },
  ): string | null {
    if (staleness > 0) {
      return `step ${serverStep} was made without this push, which is of step ${serverStep - staleness}: pull, and compute on`;
    }
    if (!this.#hasPushed(worker)) return null;
    return `this worker's push for step ${serverStep + 1} is there already: wait for the others`;
  }

  pushed(worker: string, collected: number, now: number): void {
    this.#crowd.advance(worker, this.#round + 1);
    this.#look(collected, now);
  }

  isComplete(collected: number, now: number): boolean {
    if (collected === 0) return false;
    // A worker that has left may have been one of the quorum's.
    this.#look(collected, now);
    if (this.#crowd.floor > this.#round || collected >= this.#capacity) return true;
    return this.#completeAt !== null && now >= this.#completeAt;
  }

  #look(collected: number, now: number): void {
    const { quorum, spares, graceMs } = this.#options;
    if (this.#completeAt !== null || (quorum === null && spares === 0)) return;
    if (collected >= this.wanted) this.#completeAt = now + graceMs;
  }

  get wanted(): number {
    const { quorum, spares } = this.#options;
    // Those that have pushed are among the ready ones.
    return quorum ?? Math.max(1, this.#crowd.ready - spares);
  }

  stepped(): void {
    this.#round++;
    this.#completeAt = null;
    this.#opened ||= this.#held;
    this.#held = false;
  }

  state(): ModeState {
    return { ...this.#crowd.state(), round: this.#round };
  }

  restore(state: ModeState): void {
    this.#crowd.restore(state);
    this.#round = state.round ?? 0;
  }

  replica(): ModeReplica {
    const waits = { held: this.#held ? 1 : null, opened: this.#opened };
    return { ...this.state(), ...waits, completeAt: this.#completeAt };
  }

  replicate(replica: ModeReplica): void {
    this.#crowd.replicate(replica);
    this.#round = replica.round ?? 0;
    this.#held = replica.held != null;
    this.#opened = replica.opened ?? false;
    this.#completeAt = replica.completeAt ?? null;
  }
}
