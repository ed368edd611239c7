import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { losslessJson } from '../../files/atomic-file.ts';
import type { BestRecord, ShardRecord } from '../../files/records.ts';
import { errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import {
  enterFolder,
  leaveFolder,
  OWNER_FOLDER,
  ownsFolder,
  refuseHeld,
  touchFolder,
} from './folder-lock.ts';
import { JournalQueue, type StoreOperation } from './journal-queue.ts';
import {
  type AcquireOptions,
  type CheckpointRecord,
  checkName,
  fenced,
  type OwnerLease,
  type RunRecord,
  recordOfManifest,
  refuseNotFinite,
  type StateStore,
} from './state-store.ts';

// While Redis is away its records wait in the state folder, and are written when it is back, in the
// order in which they were made. Who may write then is Redis's to say: docs/decisions/0010-redis-away.md.

const RETRY_MS = 500;
const FOLLOWS_MAX = 8;

interface JournalOptions {
  readonly folder: string;
  /** Names the store, so that a folder is not shared by servers that ask different ones. */
  readonly id: string;
  readonly log: Log;
  readonly retryMs?: number;
  readonly bytesMax?: number;
}

/**
 * A store that is never away: what it cannot take now waits in `folder`. Takes the folder as well, so that
 * two servers with one folder learn of each other though neither can reach Redis.
 *
 * Writes throw DP_STATE_FENCED, DP_DISK, and DP_LIMIT when too much waits; never DP_REDIS_UNAVAILABLE.
 */
export function journaled(store: StateStore, options: JournalOptions): StateStore {
  return new JournaledStore(store, options);
}

class JournaledStore implements StateStore {
  readonly #store: StateStore;
  readonly #options: JournalOptions;
  readonly #ownerFolder: string;
  readonly #queue: JournalQueue;
  #lease: OwnerLease | null = null;
  #awaySince: number | null = null;
  #timer: NodeJS.Timeout | undefined;
  #replaying: Promise<void> | null = null;
  #closed = false;

  constructor(store: StateStore, options: JournalOptions) {
    const { folder, bytesMax = LIMITS.journalBytesMax } = options;
    this.#store = store;
    this.#options = options;
    this.#ownerFolder = join(folder, OWNER_FOLDER);
    this.#queue = new JournalQueue(folder, bytesMax);
  }

  get kind(): StateStore['kind'] {
    return this.#store.kind;
  }

  get away(): StateStore['away'] {
    if (this.#awaySince === null) return null;
    return { sinceMs: performance.now() - this.#awaySince, records: this.#queue.size };
  }

  // Writing now or later.

  /** Now, or behind all that waits. @returns what `now` did; null: it waits. */
  async #write<T>(
    token: number,
    operation: StoreOperation,
    now: () => Promise<T>,
  ): Promise<T | null> {
    if (this.#queue.size === 0) {
      try {
        this.#queue.heard(operation);
        const done = await now();
        this.#back(0);
        return done;
      } catch (error) {
        if (errorCode(error) !== 'DP_REDIS_UNAVAILABLE') throw error;
        this.#sayAway(error);
      }
    }
    if (token !== this.#lease?.token) throw fenced(token, this.#lease?.token ?? 0);
    this.#lease.lost.throwIfAborted();
    await this.#queue.add(token, operation);
    this.#replaySoon();
    return null;
  }

  #sayAway(error: unknown): void {
    if (this.#awaySince !== null) return;
    const { log, folder } = this.#options;
    log(`${errorText(error)}; training continues, and records wait in ${folder}`, {
      ...{ level: 'warn', code: errorCode(error) },
    });
    this.#awaySince = performance.now();
  }

  /** @param written records that had waited. */
  #back(written: number): void {
    if (this.#awaySince === null || this.#queue.size > 0) return;
    const seconds = ((performance.now() - this.#awaySince) / 1000).toFixed(1);
    const { log } = this.#options;
    log(`Redis is back after ${seconds} s: ${written} records that waited are written`);
    this.#awaySince = null;
  }

  #replaySoon(): void {
    if (this.#closed || this.#replaying || this.#timer) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#replay().catch(() => {});
    }, this.#options.retryMs ?? RETRY_MS).unref();
  }

  /** Writes what waits, until nothing does or Redis is away again. */
  #replay(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#replaying ??= this.#replayAll().finally(() => {
      this.#replaying = null;
      if (this.#queue.size > 0 && this.#lease?.lost.aborted === false) this.#replaySoon();
    });
    return this.#replaying;
  }

  async #replayAll(): Promise<void> {
    let written = 0;
    try {
      for (let next = this.#queue.first; next && this.#lease; next = this.#queue.first) {
        const { token, lost } = this.#lease;
        lost.throwIfAborted();
        this.#queue.heard(next.operation);
        try {
          await perform(this.#store, token, next.operation);
          written++;
        } catch (error) {
          // What is in its place is not ours to remove, and the others must not wait for it.
          if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
          const { op, run } = next.operation;
          this.#options.log(
            `run ${run}: its record (${op}) that waited for Redis is not written: ${errorText(error)}`,
            { ...{ level: 'error', run, code: errorCode(error) } },
          );
        }
        await this.#queue.remove(next);
      }
    } finally {
      this.#back(written);
    }
  }

  // The owner.

  newestToken(): Promise<number> {
    return this.#store.newestToken();
  }

  async mayWrite(token: number): Promise<void> {
    if (!(await ownsFolder(this.#ownerFolder, token))) throw fenced(token, token + 1);
  }

  async acquire(owner: string, acquire: AcquireOptions): Promise<OwnerLease> {
    const { ttlMs } = acquire;
    const { id, log } = this.#options;
    const held = await refuseHeld(this.#ownerFolder, { redis: id, ttlMs });
    const inner = await this.#store.acquire(owner, {
      ...acquire,
      tokenMin: Math.max(acquire.tokenMin ?? 0, held.token + 1),
      ...(held.dead ? { dead: held.token } : {}),
    });
    const { token, previous } = inner;
    // What waited under a token that nobody has followed is still true; of what Redis has forgotten
    // the folder tells. An owner that died before it could take that over is no obstacle.
    const last = Math.max(previous, held.token);
    const follows = [last, ...(last === held.token ? held.follows : [])].slice(0, FOLLOWS_MAX);
    const since = new Date().toISOString();
    const claim = { token, owner, ttlMs, since, redis: id, follows };
    if (!(await enterFolder(this.#ownerFolder, claim))) {
      await inner.release().catch(() => {});
      throw fenced(token, token + 1);
    }
    const taken = await this.#queue.take(token, follows, log);
    if (taken > 0) log(`${taken} records wait for Redis since this server's last life`);
    const lease = watched(inner, {
      ownerFolder: this.#ownerFolder,
      ttlMs,
      release: () => this.#release(inner),
    });
    this.#lease = lease;
    if (this.#queue.size > 0) await this.#replay().catch(() => {});
    return lease;
  }

  /** Not while something waits: else the next owner could not know that what waits is still true. */
  async #release(inner: OwnerLease): Promise<void> {
    if (this.#queue.size > 0) await this.#replay().catch(() => {});
    if (this.#queue.size > 0) return;
    await inner.release();
    await leaveFolder(this.#ownerFolder, inner.token);
  }

  // Records.

  async putRun(token: number, record: RunRecord): Promise<void> {
    checkName(record.id);
    losslessJson(record);
    const operation: StoreOperation = { op: 'run', run: record.id, record };
    await this.#write(token, operation, () => this.#store.putRun(token, record));
  }

  /** What waits is of runs that there are: so it is written first. Throws DP_REDIS_UNAVAILABLE, unlike other writes. */
  async removeRun(token: number, id: string): Promise<void> {
    if (this.#queue.size > 0) await this.#replay();
    await this.#store.removeRun(token, id);
  }

  listRuns(): Promise<readonly RunRecord[]> {
    return this.#store.listRuns();
  }

  async publishCheckpoint(
    token: number,
    run: string,
    given: CheckpointRecord,
  ): Promise<{ readonly moved: boolean | null }> {
    const manifest = recordOfManifest(given);
    const operation: StoreOperation = { op: 'publish', run: checkName(run), manifest };
    const now = () => this.#store.publishCheckpoint(token, run, manifest);
    return (await this.#write(token, operation, now)) ?? { moved: null };
  }

  lastCheckpoint(run: string): Promise<CheckpointRecord | null> {
    return this.#store.lastCheckpoint(run);
  }

  async forgetCheckpoints(token: number, run: string, files: readonly string[]): Promise<void> {
    const operation: StoreOperation = { op: 'forget', run: checkName(run), files };
    await this.#write(token, operation, () => this.#store.forgetCheckpoints(token, run, files));
  }

  async recordBest(
    token: number,
    run: string,
    best: BestRecord,
  ): Promise<{ readonly kept: boolean | null; readonly best: BestRecord }> {
    refuseNotFinite(best);
    const operation: StoreOperation = { op: 'best', run: checkName(run), best };
    const now = () => this.#store.recordBest(token, run, best);
    return (await this.#write(token, operation, now)) ?? { kept: null, best };
  }

  async putEarlyStopping(token: number, run: string, record: unknown): Promise<void> {
    losslessJson(record);
    const operation: StoreOperation = { op: 'earlyStopping', run: checkName(run), record };
    await this.#write(token, operation, () => this.#store.putEarlyStopping(token, run, record));
  }

  announceShard(id: string, record: ShardRecord | null, ttlMs: number): Promise<void> {
    return this.#store.announceShard(id, record, ttlMs);
  }

  listShards(): Promise<readonly ShardRecord[]> {
    return this.#store.listShards();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#lease?.release().catch(() => {});
    await this.#replaying?.catch(() => {});
    await this.#queue.close();
    await this.#store.close();
  }
}

async function perform(store: StateStore, token: number, operation: StoreOperation): Promise<void> {
  const { op, run } = operation;
  if (op === 'run') await store.putRun(token, operation.record);
  else if (op === 'publish') await store.publishCheckpoint(token, run, operation.manifest);
  else if (op === 'forget') await store.forgetCheckpoints(token, run, operation.files);
  else if (op === 'best') await store.recordBest(token, run, operation.best);
  else await store.putEarlyStopping(token, run, operation.record);
}

/** The lease, which is lost as well when the folder has a newer owner. */
function watched(
  inner: OwnerLease,
  options: { readonly ownerFolder: string; readonly ttlMs: number; release(): Promise<void> },
): OwnerLease {
  const { ownerFolder, ttlMs } = options;
  const { token } = inner;
  const controller = new AbortController();
  let released: Promise<void> | null = null;
  const lose = (reason: unknown) => {
    clearInterval(timer);
    if (!released) controller.abort(reason);
  };
  const timer = setInterval(() => {
    touchFolder(ownerFolder, token).then(
      (mine) => {
        if (!mine) lose(fenced(token, token + 1));
      },
      // A disk that is full is no other owner.
      () => {},
    );
  }, ttlMs / 3).unref();
  inner.lost.addEventListener('abort', () => lose(inner.lost.reason), { once: true });
  return {
    token,
    previous: inner.previous,
    lost: controller.signal,
    async renew() {
      controller.signal.throwIfAborted();
      await inner.renew();
    },
    release() {
      clearInterval(timer);
      released ??= controller.signal.aborted ? Promise.resolve() : options.release();
      return released;
    },
  };
}
