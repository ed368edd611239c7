import type { CrowdState } from './crowd.ts';

/**
 * A consistency mode: a gate for pulls, a rule for when the pushes that were collected become an update, and a
 * deadline. Pure: who came and went, what was given and pushed, and the time as an argument. The run asks, in the order
 * in which things happen, and does the rest: it keeps the pushes, applies them and wakes workers when the gate opens.
 * Asynchronous runs have none: there each push is applied the moment it is admitted (Dean et al. 2012).
 */
export interface Mode {
  /** Several pushes make an update. */
  readonly collects: boolean;
  /** There is room for so many of them at once. */
  place(capacity: number): void;

  // Who is there.

  arrived(worker: string): void;
  /** Its connection is lost; it may come back. */
  departed(worker: string, now: number): void;
  /** It has gone for good. */
  left(worker: string): void;
  /** A minibatch that it held has run out of time, or was taken back since nobody needs it any more. */
  late(worker: string): void;
  tick(now: number): void;
  /** The server stood still for so long. */
  postpone(ms: number): void;

  // The gate.

  /** Whether a worker may have a minibatch now; if not, it waits until the gate opens. */
  mayPull(worker: string): boolean;
  /** It has been given one. */
  given(worker: string): void;
  /** There is none for it, or it evaluates. */
  idle(worker: string): void;
  /** The gate has opened for some that wait. Once each time. */
  takeOpened(): boolean;

  // Pushes.

  /** Why a push of this staleness does not count, for its worker; null: it does. */
  refuse(
    worker: string,
    push: { readonly staleness: number; readonly serverStep: number },
  ): string | null;
  /** Its push counts. @param collected pushes that wait for their update, this one among them. */
  pushed(worker: string, collected: number, now: number): void;
  /** Pushes that the next update is to have, with the workers of this moment; null: each push is an update. */
  readonly wanted: number | null;
  /** Those that were collected become an update now. */
  isComplete(collected: number, now: number): boolean;
  /** They have, or were thrown away. */
  stepped(): void;
  /** When to ask again though nothing has happened, monotonic ms; null: never. */
  readonly deadline: number | null;

  /** What a checkpoint keeps. */
  state(): ModeState;
  /** To one that is new. Whoever was there may come back. */
  restore(state: ModeState): void;
  /** With what a standby needs besides. */
  replica(): ModeReplica;
  replicate(replica: ModeReplica): void;
}

export interface ModeState extends CrowdState {
  readonly round?: number;
}

export interface ModeReplica extends ModeState {
  /** Somebody waits at the gate; for a floor of so much, where it opens by clocks. */
  readonly held?: number | null;
  readonly opened?: boolean;
  readonly completeAt?: number | null;
}
