import { totalmem } from 'node:os';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Snapshot } from '../core/snapshot.ts';

/**
 * The memory that connections take beside the runs' own: payloads outside of a run's rooms, headers that are not whole
 * yet, what a `hello` lists, copies of parameters that workers have not taken. One budget for all of a process. What
 * can wait asks before it takes; what has come already is counted, and when that is too much the largest consumer is
 * closed.
 */

/** Whose connections share what there is: those of one token, or of a server without tokens each for itself. */
export interface MemoryHolder {
  /** Rooms of runs that pushes of its connections are in now. */
  rooms: number;
}

/** What one connection takes. */
export interface Account {
  readonly holder: MemoryHolder;
  bytes: number;
  /** It is being closed: what it takes comes back soon. */
  closing: boolean;
  /** Bytes that wait to be sent to it: other connections may share them. */
  readonly unsent: () => number;
  /** Tells it why, and closes it. */
  readonly close: (error: DownpourError) => void;
}

/** Memory of one message. */
export interface Borrowed {
  readonly bytes: Uint8Array;
  /** Call once. */
  readonly release: () => void;
}

/** Memory for pushes that nobody needs is kept for so long. */
const SPARE_MS = 10_000;
/** A spare may be larger by this than what it is used for, or twice as large. */
const FEW_BYTES = 2 ** 16;

export class MemoryBudget {
  readonly bytesMax: number;
  readonly what: string;
  #bytes = 0;
  #closed = 0;
  #closedAt: number | null = null;
  readonly #now: () => number;
  readonly #accounts = new Set<Account>();
  /** Copies of parameters that are under way, and to how many workers. */
  readonly #copies = new Map<Snapshot, number>();
  /** For pushes and rows, used before and free now, the latest last. */
  readonly #spare: Uint8Array[] = [];
  #spareBytes = 0;
  /** When some was needed last. */
  #borrowedAt = 0;
  #relieving = false;
  /** Set: called when there is more again. */
  freed: (() => void) | null = null;

  /** @param what takes it, for messages. */
  constructor(now: () => number, bytesMax: number = defaultBytesMax(), what = 'connections take') {
    this.bytesMax = bytesMax;
    this.what = what;
    this.#now = now;
  }

  /** In use, with what is kept for the next push. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Connections that were closed for what they took, or held. */
  get closed(): number {
    return this.#closed;
  }

  /** Since the last of them; null: there was none. */
  get closedSecondsAgo(): number | null {
    return this.#closedAt === null ? null : (this.#now() - this.#closedAt) / 1000;
  }

  open(holder: MemoryHolder, of: Pick<Account, 'unsent' | 'close'>): Account {
    const account = { holder, bytes: 0, closing: false, ...of };
    this.#accounts.add(account);
    return account;
  }

  /** The connection is gone. What it has taken is given back by those who took it, perhaps later. */
  end(account: Account): void {
    this.#accounts.delete(account);
  }

  /** `take` would say so. */
  has(bytes: number): boolean {
    const used = this.#bytes - this.#spareBytes;
    return used === 0 || used + bytes <= this.bytesMax;
  }

  /** @returns whether so much may be taken; then it is counted. One message of a run is always allowed, alone. */
  take(account: Account, bytes: number): boolean {
    if (this.#bytes + bytes > this.bytesMax) this.#dropSpare();
    if (this.#bytes + bytes > this.bytesMax && this.#bytes > 0) return false;
    this.#bytes += bytes;
    account.bytes += bytes;
    return true;
  }

  /** Counts what is there already, or is given back. @param account null: nobody's alone. */
  change(account: Account | null, bytes: number): void {
    if (bytes === 0) return;
    this.#bytes += bytes;
    if (account) account.bytes += bytes;
    if (bytes < 0) this.freed?.();
    else if (this.#bytes > this.bytesMax && !this.#relieving) {
      this.#relieving = true;
      // Not within the message that has brought it.
      queueMicrotask(() => this.#relieve());
    }
  }

  // Memory for pushes, and for rows that are sent.

  /** Memory of exactly so many bytes, with anything in it; null: there is not so much left. */
  borrow(account: Account, bytes: number): Borrowed | null {
    const spare = this.#takeSpare(bytes, 2 * bytes + FEW_BYTES);
    if (spare && this.take(account, spare.length)) return this.#lent(account, spare, bytes);
    // The new one takes the place of one that is a little too small.
    this.#takeSpare(bytes / 2, bytes);
    if (!this.take(account, bytes)) return null;
    return this.#lent(account, new Uint8Array(bytes), bytes);
  }

  /** The same, however little is left: of too much the largest consumer is closed. */
  mustBorrow(account: Account, bytes: number): Borrowed {
    const borrowed = this.borrow(account, bytes);
    if (borrowed) return borrowed;
    this.change(account, bytes);
    return this.#lent(account, new Uint8Array(bytes), bytes);
  }

  #lent(account: Account, memory: Uint8Array, bytes: number): Borrowed {
    this.#borrowedAt = this.#now();
    const release = () => this.#giveBack(account, memory);
    return { bytes: memory.subarray(0, bytes), release };
  }

  /** Sizes differ from push to push where rows of tables are in them, so what is not much too large is taken too. */
  #takeSpare(least: number, most: number): Uint8Array | null {
    const free = this.#spare;
    for (let i = free.length - 1; i >= 0; i--) {
      const { length } = free[i]!;
      if (length < least || length > most) continue;
      this.#spareBytes -= length;
      this.#bytes -= length;
      return free.splice(i, 1)[0]!;
    }
    return null;
  }

  #giveBack(account: Account, memory: Uint8Array): void {
    const { length } = memory;
    account.bytes -= length;
    this.#spare.push(memory);
    this.#spareBytes += length;
    if (this.#bytes > this.bytesMax) this.#dropSpare();
    this.freed?.();
  }

  #dropSpare(): void {
    this.#bytes -= this.#spareBytes;
    this.#spareBytes = 0;
    this.#spare.length = 0;
  }

  /** Now and then: what nobody has used since is let go. */
  tick(): void {
    if (this.#now() - this.#borrowedAt > SPARE_MS) this.#dropSpare();
  }

  // Copies of parameters.

  /** On its way to one more worker, until `sent`. What lies in the run's memory is the run's. */
  send(payload: Snapshot): void {
    if (payload.lent) return;
    const holders = this.#copies.get(payload) ?? 0;
    this.#copies.set(payload, holders + 1);
    if (holders === 0) this.change(null, payload.bytes.length);
  }

  sent(payload: Snapshot): void {
    const holders = this.#copies.get(payload);
    if (holders === undefined) return;
    if (holders > 1) this.#copies.set(payload, holders - 1);
    else {
      this.#copies.delete(payload);
      this.change(null, -payload.bytes.length);
    }
  }

  // Too much.

  #relieve(): void {
    this.#relieving = false;
    if (this.#bytes > this.bytesMax) this.#dropSpare();
    let expected = this.#bytes;
    for (const account of this.#accounts) if (account.closing) expected -= usedBy(account);
    while (expected > this.bytesMax) {
      const largest = this.largest();
      if (!largest) break;
      expected -= usedBy(largest);
      this.close(largest);
    }
  }

  /** The connection that takes the most, of the holder whose connections take the most; null: none takes anything. */
  largest(): Account | null {
    const sums = this.#sums();
    let most: Account | null = null;
    for (const account of this.#accounts) {
      if (account.closing || usedBy(account) === 0) continue;
      const more = most && sums.get(account.holder)! - sums.get(most.holder)!;
      if (!most || more! > 0 || (more === 0 && usedBy(account) > usedBy(most))) most = account;
    }
    return most;
  }

  /** The same, if its holder takes more than an equal share and another one waits. */
  greedy(waiting: Account): Account | null {
    const largest = this.largest();
    if (!largest || largest.holder === waiting.holder) return null;
    const sums = this.#sums();
    sums.set(waiting.holder, sums.get(waiting.holder) ?? 0);
    return sums.get(largest.holder)! > this.bytesMax / sums.size ? largest : null;
  }

  #sums(): Map<MemoryHolder, number> {
    const sums = new Map<MemoryHolder, number>();
    for (const account of this.#accounts) {
      const bytes = usedBy(account);
      if (bytes === 0 || account.closing) continue;
      sums.set(account.holder, (sums.get(account.holder) ?? 0) + bytes);
    }
    return sums;
  }

  /** @param error why; default: it takes the most. */
  close(account: Account, error: DownpourError = this.#tooMuch(account)): void {
    account.closing = true;
    this.#closed++;
    this.#closedAt = this.#now();
    account.close(error);
  }

  #tooMuch(account: Account): DownpourError {
    return new DownpourError(
      'DP_LIMIT',
      `${this.what} ${this.#bytes} bytes of this server beside the memory of its runs; at most ${this.bytesMax} are allowed, and this one takes the most, ${usedBy(account)}: read answers as they come, send what a message needs and no more, and connect again`,
    );
  }
}

const usedBy = (account: Account): number => account.bytes + account.unsent();

/** A share of the memory that this process may use, within bounds. */
export function defaultBytesMax(): number {
  const { connectionMemoryShare: share, connectionBytesMin, connectionBytesMax } = LIMITS;
  // The limit of a container; 0 or more than the machine has: there is no such limit.
  const constrained = process.constrainedMemory();
  const bytes = constrained > 0 ? Math.min(constrained, totalmem()) : totalmem();
  return Math.min(connectionBytesMax, Math.max(connectionBytesMin, Math.floor(share * bytes)));
}
