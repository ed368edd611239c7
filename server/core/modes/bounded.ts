import { Crowd } from './crowd.ts';
import type { Mode, ModeReplica, ModeState } from './mode.ts';

/**
 * Stale synchronous parallel (Ho et al. 2013): each push is applied at once, and a worker begins a minibatch only while
 * it is at most `aheadMax` minibatches ahead of the slowest worker. Clocks of workers count their pushes.
 */
export class Bounded implements Mode {
  readonly collects = false;
  readonly deadline = null;
  readonly wanted = null;
  readonly #aheadMax: number;
  /** Pushes that a worker may have under way when it pulls. */
  readonly #more: number;
  readonly #crowd = new Crowd();
  /** The gate opens for the first of those that wait when the slowest worker is here; Infinity: nobody waits. */
  #held = Infinity;

  /** @param depth pushes that a worker may have under way, `aheadMax + 1` at most. */
  constructor(aheadMax: number, depth: number) {
    this.#aheadMax = aheadMax;
    this.#more = depth - 1;
  }

  place(): void {}

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
    this.#crowd.late(worker);
  }

  tick(now: number): void {
    this.#crowd.tick(now);
  }

  postpone(ms: number): void {
    this.#crowd.postpone(ms);
  }

  mayPull(worker: string): boolean {
    const needed = this.#crowd.clockOf(worker) + this.#more - this.#aheadMax;
    if (this.#crowd.floor >= needed) return true;
    this.#held = Math.min(this.#held, needed);
    return false;
  }

  given(worker: string): void {
    this.#crowd.given(worker);
  }

  idle(worker: string): void {
    this.#crowd.idle(worker);
  }

  takeOpened(): boolean {
    // Those for whom it is still closed ask again, and are held again.
    if (this.#held === Infinity || this.#crowd.floor < this.#held) return false;
    this.#held = Infinity;
    return true;
  }

  /** One that has not waited. The clock of the slowest worker never falls, so an honest one is never refused. */
  refuse(worker: string): string | null {
    const { floor } = this.#crowd;
    const clock = this.#crowd.clockOf(worker);
    if (clock - this.#aheadMax <= floor) return null;
    return `this worker is ${clock - floor} minibatches ahead of the slowest one; aheadMax is ${this.#aheadMax}: wait for work`;
  }

  pushed(worker: string): void {
    this.#crowd.advance(worker);
  }

  isComplete(): boolean {
    return false;
  }

  stepped(): void {}

  state(): ModeState {
    return this.#crowd.state();
  }

  restore(state: ModeState): void {
    this.#crowd.restore(state);
  }

  replica(): ModeReplica {
    const held = this.#held === Infinity ? {} : { held: this.#held };
    return { ...this.state(), ...held };
  }

  replicate(replica: ModeReplica): void {
    this.#crowd.replicate(replica);
    this.#held = replica.held ?? Infinity;
  }
}
