import type { Lease } from '../shared/protocol.ts';
import { mix, permutation, STREAMS } from '../shared/random.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { gather } from './data/gather.ts';
import { collect } from './data/stored.ts';
import { partCount } from './evaluate.ts';

/** Leases whose examples are read from a source before they are needed, at most. */
const READ_AHEAD = 2;

interface LeaseReading {
  readonly lease: Lease;
  readonly minibatch: Promise<Minibatch>;
  readonly stopping: AbortController;
  /** What the minibatch was put into, once it has come. */
  room?: Minibatch | undefined;
}

/** The examples of leases. Those of arrays are gathered into the same memory again and again. */
export class Minibatches {
  readonly #prepared: PreparedData;
  readonly #signal: AbortSignal | undefined;
  readonly #examplesOf: (lease: Lease) => Int32Array;
  /** Two, by turns: a tensor may share the memory of the minibatch it was made from. */
  readonly #rooms: (Minibatch | undefined)[] = [undefined, undefined];
  #turn = 0;
  #ready: { readonly lease: Lease; readonly minibatch: Minibatch } | null = null;
  /** Reads of a source that are under way, oldest first. */
  #readings: LeaseReading[] = [];
  /** The last two that were taken: their memory may still be a tensor's. */
  readonly #taken: LeaseReading[] = [];
  /** Memory of minibatches of a source that nobody needs any more. */
  readonly #free: Minibatch[] = [];

  /** @param signal aborted: nothing is read any more. */
  constructor(seed: number, prepared: PreparedData, signal?: AbortSignal) {
    this.#prepared = prepared;
    this.#signal = signal;
    this.#examplesOf = createOrders(seed, prepared);
  }

  /** Whether examples are read from a source, which takes its time. */
  get areRead(): boolean {
    return this.#prepared.train.stored !== undefined;
  }

  /** Gathers ahead of time, or begins to read. */
  prepare(lease: Lease): void {
    if (this.areRead) this.#readAhead(lease);
    else if (!this.#isReady(lease)) this.#ready = { lease, minibatch: this.#gather(lease) };
  }

  /**
   * A promise only if examples are read from a source.
   * @throws what `readSourceRows` throws; the reason of the signal.
   */
  take(lease: Lease): Minibatch | Promise<Minibatch> {
    if (this.areRead) {
      this.#readAhead(lease);
      const at = this.#readings.findIndex((each) => isSame(each.lease, lease));
      const [reading] = this.#readings.splice(at, 1) as [LeaseReading];
      this.#taken.push(reading);
      if (this.#taken.length > 2) this.#release(this.#taken.shift()!);
      return reading.minibatch;
    }
    const ready = this.#isReady(lease) ? this.#ready : null;
    this.#ready = null;
    return ready?.minibatch ?? this.#gather(lease);
  }

  /** What is being read is not needed any more. */
  close(): void {
    const reason = new Error('the examples are not needed any more');
    for (const { stopping } of this.#readings) stopping.abort(reason);
    this.#readings = [];
  }

  #readAhead(lease: Lease): void {
    if (this.#readings.some((each) => isSame(each.lease, lease))) return;
    const stopping = new AbortController();
    const signal = this.#signal
      ? AbortSignal.any([this.#signal, stopping.signal])
      : stopping.signal;
    const rows = this.#examplesOf(lease);
    let used: Minibatch | undefined;
    const into = () => (used = this.#free.pop());
    const collected = collect(this.#prepared, lease.part, rows, { signal, into });
    const minibatch = Promise.resolve(collected);
    const reading: LeaseReading = { lease, minibatch, stopping };
    minibatch.then(
      (each) => {
        // The last minibatch of an epoch is a view of a larger room, which stays.
        reading.room = used && used.inputs.length > each.inputs.length ? used : each;
        if (stopping.signal.aborted) this.#release(reading);
      },
      // Who takes it is told; nobody may.
      () => {},
    );
    this.#readings.push(reading);
    // The oldest leases that nobody has taken are another worker's by now.
    while (this.#readings.length > READ_AHEAD) {
      const old = this.#readings.shift()!;
      old.stopping.abort(new Error('the lease was given to another worker'));
      this.#release(old);
    }
  }

  #release(reading: LeaseReading): void {
    const { room } = reading;
    reading.room = undefined;
    if (room && !room.fields) this.#free.push(room);
  }

  #isReady(lease: Lease): boolean {
    return this.#ready !== null && isSame(this.#ready.lease, lease);
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

/** With local steps a lease is of several minibatches. */
const isSame = (a: Lease, b: Lease) => a.id === b.id && a.start === b.start && a.count === b.count;

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
