import type { RunConfig } from '../../shared/config.ts';
import type { CompensationUse } from './compensation.ts';

/**
 * Whose parameters are kept as they were sent, for gradients that are put right by the way since: which slot is whose, and
 * what is done to a push. Pure; the numbers are in `Sent`.
 */

export interface SentSlotsState {
  readonly owners: readonly (readonly [slot: number, worker: string])[];
  readonly norm: number;
  readonly norms: number;
}

export interface SentSlotsReplica extends SentSlotsState {
  /** Which parameters each owner was sent last. */
  readonly sent: readonly (readonly [worker: string, step: number, generation: number])[];
  readonly isTold: boolean;
}

/** The typical norm is the mean over about so many pushes. */
const NORMS = 100;
/** λ of the papers: 2 as in the official code of DC-ASGD-a, 0.04 in that of DC-ASGD-c. */
const LAMBDA = { adaptive: 2, constant: 0.04 } as const;

export class SentSlots {
  readonly #kind: 'none' | CompensationUse['kind'];
  readonly #lambda: number;
  readonly #decay: number;
  #count = 0;
  readonly #slotOf = new Map<string, number>();
  readonly #ownerOf = new Map<number, string>();
  readonly #sent = new Map<string, { readonly step: number; readonly generation: number }>();
  #norm = 0;
  #norms = 0;
  /** Somebody had no slot, and that it was told. */
  #lacks = false;
  #isTold = false;

  constructor({ correction, compensation }: RunConfig['consistency']) {
    const adaptive = compensation?.adaptive ?? true;
    const compensated = adaptive ? 'adaptive' : 'constant';
    this.#kind = correction === 'gap' ? 'gap' : correction === 'compensated' ? compensated : 'none';
    this.#lambda = compensation?.lambda ?? LAMBDA[compensated];
    this.#decay = compensation?.decay ?? 0.95;
  }

  get isUsed(): boolean {
    return this.#kind !== 'none';
  }

  /** @param count of slots that there is room for. */
  place(count: number): void {
    this.#count = count;
    // Another layout may leave less room.
    for (const [slot, worker] of this.#ownerOf) {
      if (slot <= count) continue;
      this.#ownerOf.delete(slot);
      this.#slotOf.delete(worker);
      this.#sent.delete(worker);
    }
  }

  /**
   * A worker is sent the parameters of this step.
   * @param isHere whether a worker takes part: the slot of one that has gone may be another one's.
   * @returns where they are to be kept; null: there is no room. `fresh`: it was another worker's.
   */
  send(
    worker: string,
    at: { readonly step: number; readonly generation: number },
    isHere: (worker: string) => boolean,
  ): { readonly slot: number; readonly fresh: boolean } | null {
    const own = this.#slotOf.get(worker);
    const slot = own ?? this.#free(isHere);
    if (slot === null) {
      this.#lacks = true;
      return null;
    }
    if (own === undefined) this.#own(slot, worker);
    this.#sent.set(worker, at);
    return { slot, fresh: own === undefined };
  }

  #own(slot: number, worker: string): void {
    const before = this.#ownerOf.get(slot);
    if (before !== undefined) {
      this.#slotOf.delete(before);
      this.#sent.delete(before);
    }
    this.#ownerOf.set(slot, worker);
    this.#slotOf.set(worker, slot);
  }

  #free(isHere: (worker: string) => boolean): number | null {
    for (let slot = 1; slot <= this.#count; slot++) if (!this.#ownerOf.has(slot)) return slot;
    for (const [slot, owner] of this.#ownerOf) if (!isHere(owner)) return slot;
    return null;
  }

  /**
   * What is to be done to the gradient of a push.
   * @param norm of it. @param rate learning rate of its update. @param momentum of the optimizer.
   * @param size elements of the whole gradient. @returns null: nothing.
   */
  use(
    worker: string,
    read: { readonly step: number; readonly generation: number; readonly staleness: number },
    update: {
      readonly norm: number;
      readonly rate: number;
      readonly momentum: number;
      readonly size: number;
    },
  ): CompensationUse | null {
    if (this.#kind === 'none') return null;
    const slot = this.#slotOf.get(worker);
    const sent = this.#sent.get(worker);
    // A push that was sent again over a new connection is of parameters before those that were sent there.
    if (slot === undefined || !sent) return null;
    if (sent.step !== read.step || sent.generation !== read.generation) return null;
    if (this.#kind === 'adaptive') {
      return { slot, kind: 'adaptive', lambda: this.#lambda, decay: this.#decay };
    }
    // At the parameters that it was computed at there is nothing to put right.
    if (read.staleness === 0) return null;
    if (this.#kind === 'constant') return { slot, kind: 'constant', lambda: this.#lambda };
    const norm = this.#norms === 0 ? update.norm : this.#norm;
    const step = (update.rate * norm) / Math.sqrt(update.size) / (1 - update.momentum);
    return { slot, kind: 'gap', typical: step };
  }

  /** A push counts. */
  counted(norm: number): void {
    if (this.#kind !== 'gap') return;
    this.#norms++;
    this.#norm += (norm - this.#norm) / Math.min(this.#norms, NORMS);
  }

  /** A line for the user, once; null: nothing new. */
  takeNews(): string | null {
    if (!this.#lacks || this.#isTold) return null;
    this.#isTold = true;
    return `there is room to keep the parameters of ${this.#count} workers as they were sent: pushes of the others are applied as they are`;
  }

  state(): SentSlotsState {
    return { owners: [...this.#ownerOf], norm: this.#norm, norms: this.#norms };
  }

  /** To one that is new. What was sent before is of no more use: workers pull anew. */
  restore(state: SentSlotsState): void {
    for (const [slot, worker] of state.owners) this.#own(slot, worker);
    this.#norm = state.norm;
    this.#norms = state.norms;
  }

  replica(): SentSlotsReplica {
    const sent = [...this.#sent].map(
      ([worker, { step, generation }]) => [worker, step, generation] as const,
    );
    return { ...this.state(), sent, isTold: this.#isTold };
  }

  replicate(replica: SentSlotsReplica): void {
    this.restore(replica);
    for (const [worker, step, generation] of replica.sent) {
      this.#sent.set(worker, { step, generation });
    }
    this.#isTold = replica.isTold;
  }
}
