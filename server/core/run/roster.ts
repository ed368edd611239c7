import { LIMITS } from '../../../shared/limits.ts';
import type { Lease, Push } from '../../../shared/protocol.ts';
import { sumOf } from '../curves.ts';

/** The workers of a run: who is there, what each was sent, and what it has done. */

export type Tally = { applied: number; damped: number; duplicate: number; rejected: number };
export const emptyTally = (): Tally => ({ applied: 0, damped: 0, duplicate: 0, rejected: 0 });

/** What a worker has done for the run. Absent in checkpoints of older releases. */
const newDeeds = () => ({
  pushes: emptyTally(),
  /** Over its applied pushes. */
  stalenessSum: 0,
  /** Compute times of a minibatch. */
  computeMsSum: 0,
  /** Exponentially smoothed; null: none yet. */
  computeMsRecent: null as number | null,
  examples: 0,
});
type Deeds = ReturnType<typeof newDeeds>;

export const newWorker = () => ({
  /** The last of its pushes that was applied. */
  lastSequence: 0,
  // The rest a checkpoint leaves out, but for its deeds.
  attached: false,
  /** It had a minibatch that was taken back while it was connected, and has not asked for work since. */
  overdue: false,
  /** The generation of the whole vector that it was sent, -1: none. */
  generation: -1,
  /** The newest parameters that it was sent for a minibatch: a push names these or older ones. */
  sentGeneration: -1,
  sentStep: -1,
  /** What a minibatch takes it with local steps, smoothed, ms; null: not measured in this life of the server. */
  minibatchMs: null as number | null,
  /** α that it was told with its lease; null: none. */
  movingRate: null as number | null,
  /** Fragment that its push is to hold; null: it pushes all parameters. */
  fragment: null as number | null,
  /** Samples that its leases have asked it for, and that have not come. */
  samplesDue: 0,
  ...newDeeds(),
});
export type RosterWorker = ReturnType<typeof newWorker>;

/** Last sequence of each, and its deeds. */
export type RosterState = readonly (readonly [key: string, lastSequence: number, deeds?: Deeds])[];
export type RosterReplica = readonly (readonly [key: string, worker: RosterWorker])[];

/** Weight of the past in what a gradient takes a worker of late: about its last 20 count. */
const RECENT = 0.95;
/** The same of leases with local steps, which are fewer. */
const RECENT_LEASES = 0.5;

export class Roster {
  readonly #workers = new Map<string, RosterWorker>();
  /** Row step of the newest rows that each was sent. A replica sends nothing, so this is no part of its state. */
  readonly #rowsSent = new Map<string, number>();

  keys(): Iterable<string> {
    return this.#workers.keys();
  }

  /** It may be new here. */
  of(key: string): RosterWorker {
    let worker = this.#workers.get(key);
    if (!worker) {
      worker = newWorker();
      this.#workers.set(key, worker);
      this.#forgetOld(key);
    }
    return worker;
  }

  values(): Iterable<RosterWorker> {
    return this.#workers.values();
  }

  find(key: string): RosterWorker | undefined {
    return this.#workers.get(key);
  }

  /** That are connected. */
  get attached(): number {
    let count = 0;
    for (const { attached } of this.#workers.values()) if (attached) count++;
    return count;
  }

  /** Its connection is lost, or it goes. */
  detach(key: string): void {
    const worker = this.#workers.get(key);
    if (worker) worker.attached = false;
  }

  /** The latest of the workers that have gone are remembered, so that months of coming and going cost nothing. */
  #forgetOld(newest: string): void {
    for (const [key, { attached }] of this.#workers) {
      if (this.#workers.size <= LIMITS.workerCountMax) return;
      if (attached || key === newest) continue;
      this.#workers.delete(key);
      this.#rowsSent.delete(key);
    }
  }

  /** A worker is sent rows. */
  sendsRows(key: string, rowStep: number): void {
    if (this.#workers.has(key)) this.#rowsSent.set(key, rowStep);
  }

  /** Row step of the newest rows that it was sent; 0: none, and row step 0 claims nothing. */
  rowStepSent(key: string): number {
    return this.#rowsSent.get(key) ?? 0;
  }

  /** What one worker did for this run. */
  deedsOf(key: string) {
    // Looking must not change anything: a replica is not looked at.
    const { pushes, stalenessSum, computeMsSum, computeMsRecent, examples } =
      this.#workers.get(key) ?? newWorker();
    const applied = pushes.applied + pushes.damped;
    return {
      pushes: { ...pushes },
      stalenessMean: applied === 0 ? null : stalenessSum / applied,
      computeMsMean: applied === 0 ? null : computeMsSum / applied,
      computeMsRecent,
      examples,
    };
  }

  state(): RosterState {
    return [...this.#workers].map(([key, worker]) => {
      const deeds = newDeeds();
      for (const deed of Object.keys(deeds))
        Object.assign(deeds, { [deed]: worker[deed as keyof Deeds] });
      return [key, worker.lastSequence, structuredClone(deeds)];
    });
  }

  restore(state: RosterState): void {
    for (const [key, lastSequence, deeds] of state) {
      Object.assign(this.of(key), { lastSequence }, deeds && structuredClone(deeds));
    }
  }

  replica(): RosterReplica {
    return [...this.#workers];
  }

  replicate(replica: RosterReplica): void {
    for (const [key, worker] of replica) this.#workers.set(key, { ...worker });
  }
}

/** A push of it was applied. @param minibatches of its lease. */
export function credit(
  worker: RosterWorker,
  push: Push,
  staleness: number,
  { lease, minibatches }: { readonly lease: Lease; readonly minibatches: number },
): void {
  worker.lastSequence = push.sequence;
  worker.stalenessSum += staleness;
  const each = push.computeMs / minibatches;
  worker.computeMsSum = sumOf(worker.computeMsSum, each);
  worker.computeMsRecent = RECENT * (worker.computeMsRecent ?? each) + (1 - RECENT) * each;
  worker.examples += lease.count;
  if (push.kind === undefined || push.kind === 'gradient') return;
  worker.minibatchMs = RECENT_LEASES * (worker.minibatchMs ?? each) + (1 - RECENT_LEASES) * each;
}

/**
 * Its leases may ask it for samples: those whose number says so; of one that had been another worker's before, again.
 * @param leases that it holds. @param from the first new one.
 */
export function askForSamples(
  worker: RosterWorker,
  leases: readonly Lease[],
  from: number,
  everySteps: number | null,
): void {
  if (everySteps === null) return;
  const asked = leases.filter(({ id }) => (id - 1) % everySteps === 0);
  const isNew = asked.some(({ id }) => id >= from);
  // A worker may put a sample off, and takes it once then, however many leases have asked for it.
  if (isNew || (asked.length > 0 && worker.samplesDue === 0)) worker.samplesDue = 1;
}
