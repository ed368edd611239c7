import type { Lease } from '../shared/protocol.ts';
import { mix, permutation, STREAMS } from '../shared/random.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { gather } from './data/gather.ts';
import { partCount } from './evaluate.ts';

/** The examples of leases, gathered into the same memory again and again. */
export class Minibatches {
  readonly #prepared: PreparedData;
  readonly #examplesOf: (lease: Lease) => Int32Array;
  /** Two, by turns: a tensor may share the memory of the minibatch it was made from. */
  readonly #rooms: (Minibatch | undefined)[] = [undefined, undefined];
  #turn = 0;
  #ready: { readonly lease: Lease; readonly minibatch: Minibatch } | null = null;

  constructor(seed: number, prepared: PreparedData) {
    this.#prepared = prepared;
    this.#examplesOf = createOrders(seed, prepared);
  }

  /** Gathers ahead of time. */
  prepare(lease: Lease): void {
    if (this.#isReady(lease)) return;
    this.#ready = { lease, minibatch: this.#gather(lease) };
  }

  take(lease: Lease): Minibatch {
    const ready = this.#isReady(lease) ? this.#ready : null;
    this.#ready = null;
    return ready?.minibatch ?? this.#gather(lease);
  }

  /** With local steps a lease is of several minibatches. */
  #isReady({ id, start, count }: Lease): boolean {
    const lease = this.#ready?.lease;
    return lease?.id === id && lease.start === start && lease.count === count;
  }

  #gather(lease: Lease): Minibatch {
    this.#turn = 1 - this.#turn;
    const room = this.#rooms[this.#turn];
    const minibatch = gather(this.#prepared, lease.part, this.#examplesOf(lease), room);
    // The last minibatch of an epoch is smaller, a view of the room: the room stays.
    if (!room || room.inputs.length < minibatch.inputs.length) this.#rooms[this.#turn] = minibatch;
    return minibatch;
  }
}

/** Which examples a lease means: the order of an epoch is the same on every worker. */
export function createOrders(seed: number, prepared: PreparedData) {
  const orders = new Map<string, Int32Array>();
  return (lease: Lease): Int32Array => {
    const key = `${lease.part} ${lease.epoch}`;
    let order = orders.get(key);
    if (!order) {
      // Epochs overlap by a few minibatches, so that of the last one is still needed.
      for (const old of [...orders.keys()].slice(0, -1)) orders.delete(old);
      order = permutation(seed, STREAMS.epoch + lease.epoch, partCount(prepared, lease.part));
      orders.set(key, order);
    }
    return order.subarray(lease.start, lease.start + lease.count);
  };
}

/** The seed of the dropout of one minibatch: the same whichever worker computes it, and however often. */
export function minibatchSeed(seed: number, lease: Pick<Lease, 'epoch' | 'start'>): number {
  return mix(seed >>> 0, mix(lease.epoch, lease.start));
}
