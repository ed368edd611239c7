import type { Lease, LeasePart } from '../../shared/protocol.ts';

/**
 * Minibatches leased to workers. The examples of a part are put in a seeded random order anew each
 * epoch, and a lease is a range of that order; workers compute the order themselves, so only the
 * range travels. A lease that is not pushed in time, or whose worker goes, is given to another; so
 * every example is used exactly once an epoch, whatever joins or leaves (invariant 8).
 *
 * There is no barrier between epochs: the next one begins while the last minibatches of this one
 * are still out.
 */

export interface LeasesOptions {
  readonly part: LeasePart;
  /** Examples in the part. */
  readonly exampleCount: number;
  readonly minibatchSize: number;
  /** The first epoch, so that a refit draws other orders than training did. */
  readonly epochStart: number;
  /** Epochs to lease, null: no end. */
  readonly epochs: number | null;
  /** How long a lease lasts for each of its minibatches, ms. */
  readonly leaseMs: number;
  /** First id, above all that were ever given. */
  readonly idStart: number;
}

interface HeldLease {
  readonly lease: Lease;
  readonly worker: string;
  deadline: number;
}

export interface LeasesState {
  readonly options: LeasesOptions;
  readonly epoch: number;
  readonly position: number;
  readonly nextId: number;
  readonly completed: number;
  /** Not given to anybody now, first to go out. With whoever had it before. */
  readonly returned: readonly Returned[];
}

interface Returned {
  readonly lease: Lease;
  /** Who had it last. */
  readonly worker: string;
  /** It was too slow with it: another one gets it, if there is any that asks. */
  readonly tooSlow?: true;
}

/** With what is out, and until when. */
export interface LeasesReplica extends LeasesState {
  readonly held: readonly Readonly<HeldLease>[];
}

export class Leases {
  readonly options: LeasesOptions;
  #epoch: number;
  #position = 0;
  #nextId: number;
  #completed = 0;
  /** In the order they are given out again: by id, so oldest first. */
  #returned: Returned[] = [];
  readonly #held = new Map<number, HeldLease>();
  /** The same by who holds them, so that a push costs the same however many workers there are. */
  readonly #byWorker = new Map<string, HeldLease[]>();

  constructor(options: LeasesOptions) {
    this.options = options;
    this.#epoch = options.epochStart;
    this.#nextId = options.idStart;
  }

  /** The epoch that new leases come from. */
  get epoch(): number {
    return this.#epoch;
  }

  /** Minibatches pushed and applied; a lease of several counts as several. */
  get completed(): number {
    return this.#completed;
  }

  get nextId(): number {
    return this.#nextId;
  }

  /** Minibatches of one epoch. */
  get perEpoch(): number {
    return Math.ceil(this.options.exampleCount / this.options.minibatchSize);
  }

  /** Nothing is left to give and nothing is out. */
  get exhausted(): boolean {
    return this.#ended && this.#returned.length === 0 && this.#held.size === 0;
  }

  get #ended(): boolean {
    const { epochs, epochStart } = this.options;
    return epochs !== null && this.#epoch >= epochStart + epochs;
  }

  /** What a worker holds now, oldest first. */
  heldBy(worker: string): Lease[] {
    return this.#byWorker.get(worker)?.map(({ lease }) => lease) ?? [];
  }

  /**
   * Gives leases to a worker until it holds `count`, as far as there are any.
   * @param minibatches in a new one, unless the epoch ends before; those given out again stay as they are.
   */
  grant(worker: string, count: number, now: number, minibatches = 1): Lease[] {
    const leases = this.heldBy(worker);
    while (leases.length < count) {
      const again = this.#returned.length > 0 ? this.#again(worker) : null;
      const lease = again ?? this.#draw(minibatches) ?? this.#returned.shift()?.lease;
      if (!lease) break;
      this.#hold({ lease, worker, deadline: now + this.#lastsMs(lease) });
      leases.push(lease);
    }
    return leases;
  }

  /** The first lease that was given back and that this worker was not too slow with. */
  #again(worker: string): Lease | null {
    const at = this.#returned.findIndex((one) => one.tooSlow !== true || one.worker !== worker);
    return at < 0 ? null : this.#returned.splice(at, 1)[0]!.lease;
  }

  #hold(held: HeldLease): void {
    const { lease, worker } = held;
    this.#held.set(lease.id, held);
    const own = this.#byWorker.get(worker);
    if (own) own.push(held);
    else this.#byWorker.set(worker, [held]);
  }

  #letGo(held: HeldLease): void {
    const { lease, worker } = held;
    this.#held.delete(lease.id);
    const own = this.#byWorker.get(worker)!;
    if (own.length === 1) this.#byWorker.delete(worker);
    else own.splice(own.indexOf(held), 1);
  }

  #lastsMs(lease: Lease): number {
    return this.#minibatchesOf(lease) * this.options.leaseMs;
  }

  #minibatchesOf({ count }: Lease): number {
    return Math.ceil(count / this.options.minibatchSize);
  }

  #draw(minibatches: number): Lease | null {
    if (this.#ended) return null;
    const { exampleCount, minibatchSize, part } = this.options;
    const start = this.#position;
    const count = Math.min(minibatches * minibatchSize, exampleCount - start);
    const lease = { id: this.#nextId++, epoch: this.#epoch, start, count, part };
    this.#position += count;
    if (this.#position >= exampleCount) {
      this.#position = 0;
      this.#epoch++;
    }
    return lease;
  }

  /**
   * The lease, when this worker may still push it: it holds it, or had it last and nobody has been
   * given it since. Null: lost.
   */
  find(id: number, worker: string): Lease | null {
    const held = this.#held.get(id);
    if (held) return held.worker === worker ? held.lease : null;
    const returned = this.#returned.find((r) => r.lease.id === id);
    return returned?.worker === worker ? returned.lease : null;
  }

  /** The minibatch of this lease has been applied. Call only after `find` found it. */
  complete(lease: Lease): void {
    const held = this.#held.get(lease.id);
    if (held) this.#letGo(held);
    else this.#returned = this.#returned.filter((r) => r.lease.id !== lease.id);
    this.#completed += this.#minibatchesOf(lease);
  }

  /** A push of this lease was refused but may be tried again: its time begins anew. */
  retry(id: number, now: number): void {
    const held = this.#held.get(id);
    if (held) held.deadline = now + this.#lastsMs(held.lease);
  }

  /** A push of this lease came too late for its step: another worker computes the minibatch again. */
  giveBack(id: number): void {
    const held = this.#held.get(id);
    if (held) this.#takeBack([held], true);
  }

  /** A minibatch that was completed is to be used after all. */
  undo(lease: Lease): void {
    this.#completed -= this.#minibatchesOf(lease);
    this.#returned.push({ lease, worker: '' });
    this.#returned.sort((a, b) => a.lease.id - b.lease.id);
  }

  /** Takes back all that a worker holds. @returns how many. */
  release(worker: string): number {
    return this.#takeBack([...(this.#byWorker.get(worker) ?? [])]);
  }

  /** Takes back what is out of time. @param late is told whose it was. @returns how many. */
  expire(now: number, late: (worker: string) => void = () => {}): number {
    const expired = [...this.#held.values()].filter((held) => held.deadline <= now);
    for (const { worker } of expired) late(worker);
    return this.#takeBack(expired);
  }

  /** Brings the deadlines of a worker forward: it is away, and has until then to come back. */
  hasten(worker: string, deadline: number): void {
    for (const held of this.#byWorker.get(worker) ?? []) {
      held.deadline = Math.min(held.deadline, deadline);
    }
  }

  /** The worker is back: its leases last their full time again. */
  extend(worker: string, now: number): void {
    for (const held of this.#byWorker.get(worker) ?? []) {
      held.deadline = now + this.#lastsMs(held.lease);
    }
  }

  /** Everybody has so much longer. */
  postpone(ms: number): void {
    for (const held of this.#held.values()) held.deadline += ms;
  }

  #takeBack(lost: readonly HeldLease[], tooSlow = false): number {
    for (const held of lost) {
      this.#letGo(held);
      const { lease, worker } = held;
      this.#returned.push({ lease, worker, ...(tooSlow && { tooSlow }) });
    }
    if (lost.length > 0) this.#returned.sort((a, b) => a.lease.id - b.lease.id);
    return lost.length;
  }

  /** What a checkpoint keeps: everything that is out counts as returned. */
  state(): LeasesState {
    const out = [...this.#held.values()].map(({ lease, worker }) => ({ lease, worker }));
    return {
      options: this.options,
      epoch: this.#epoch,
      position: this.#position,
      nextId: this.#nextId,
      completed: this.#completed,
      returned: [...this.#returned, ...out].sort((a, b) => a.lease.id - b.lease.id),
    };
  }

  /** The leases of this moment: `returned` is what nobody holds. */
  replica(): LeasesReplica {
    const held = [...this.#held.values()].map((each) => ({ ...each }));
    return { ...this.state(), returned: [...this.#returned], held };
  }

  /** Equal to those that `replica` was taken of. */
  static replicate({ held, ...state }: LeasesReplica): Leases {
    const leases = Leases.restore(state, 0);
    for (const each of held) leases.#hold({ ...each });
    return leases;
  }

  /**
   * Continues from a checkpoint. Ids go on well above all that may have been given after it, so
   * that a lease of the lost time is never taken for a new one.
   * @param lives of the server since then, this one counted.
   */
  static restore(state: LeasesState, lives = 1): Leases {
    const leases = new Leases(state.options);
    leases.#epoch = state.epoch;
    leases.#position = state.position;
    leases.#nextId = state.nextId + lives * LOST_IDS;
    leases.#completed = state.completed;
    leases.#returned = [...state.returned];
    return leases;
  }
}

/** More leases than are ever given between two checkpoints. */
const LOST_IDS = 2 ** 24;
