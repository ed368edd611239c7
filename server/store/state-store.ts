import type { CheckpointManifest } from '../../files/manifest.ts';
import type { BestRecord, ShardRecord } from '../../files/records.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';

// What must outlive a server, and what several servers must agree on. Two implementations: files
// (`file-store.ts`) for one server, Redis (`redis.ts`) for several. Every write carries the token of its
// owner's lease and is refused once a newer one was given: a server that was cut off, and came back
// after another took over, cannot spoil what that one wrote (a fencing token).

/** The right to write. At most one is good at any time. */
export interface OwnerLease {
  /** Higher than every one before. */
  readonly token: number;
  /** The newest one before it that the store knew of; 0: of none. */
  readonly previous: number;
  /** Aborted with a DP_STATE_FENCED as soon as the lease is lost: stop, or acquire again. */
  readonly lost: AbortSignal;
  /** Renews now; a timer does so anyway. Throws DP_STATE_FENCED, DP_DISK, DP_REDIS_UNAVAILABLE. */
  renew(): Promise<void>;
  /** Ends the lease: its token is refused from now on. May be called twice. */
  release(): Promise<void>;
}

export interface AcquireOptions {
  /** A lease that was not renewed for so long may go to another owner. */
  readonly ttlMs: number;
  /** How long to wait for another owner, or for Redis, to go or to come; 0: not at all. */
  readonly waitMs?: number;
  /** Redis: the token is to be no lower, whatever Redis has forgotten. */
  readonly tokenMin?: number;
  /** Redis: the token of an owner that is known to be dead: its hold ends at once. */
  readonly dead?: number;
  readonly signal?: AbortSignal;
}

/** A run as the registry has it. Anything else that is JSON may be added. */
export interface RunRecord {
  readonly id: string;
  readonly experiment: string;
  /** ISO 8601. */
  readonly createdAt: string;
  readonly phase: string;
  readonly config: unknown;
  readonly [more: string]: unknown;
}

/** A manifest without the state, which only the checkpoint's own file holds. */
export type CheckpointRecord = Omit<CheckpointManifest, 'state'>;

/**
 * All methods throw DP_REDIS_UNAVAILABLE or DP_DISK when the store cannot be reached, writes also
 * DP_STATE_FENCED, reads DP_STATE_CORRUPT. Reading needs no lease.
 */
export interface StateStore {
  readonly kind: 'files' | 'redis';
  /** Throws DP_STATE_LOCKED that names the holder when another owner has the lease. */
  acquire(owner: string, options: AcquireOptions): Promise<OwnerLease>;
  /** The newest that was given to any owner; 0: none, or the store has forgotten. */
  newestToken(): Promise<number>;
  /**
   * Before and after anything is written beside the store, as checkpoints are: throws DP_STATE_FENCED
   * when the state folder has a newer owner.
   */
  mayWrite(token: number): Promise<void>;
  /** Set: the store cannot be reached, and so many records wait for it. */
  readonly away: { readonly sinceMs: number; readonly records: number } | null;

  putRun(token: number, record: RunRecord): Promise<void>;
  /** In order of creation. Damaged records are passed over, and told to `onDamaged`. */
  listRuns(): Promise<readonly RunRecord[]>;

  /** Forgets all records of a run, whose folder is not where it was any more. May be repeated. */
  removeRun(token: number, id: string): Promise<void>;

  /**
   * Enters a checkpoint in the registry and, in the same instant, makes it the one to resume from,
   * unless it is of kind `best` or of an older step than the one that this token published before.
   * `moved` is null while that is not known.
   */
  publishCheckpoint(
    token: number,
    run: string,
    manifest: CheckpointRecord,
  ): Promise<{ readonly moved: boolean | null }>;
  /** The checkpoint to resume from. */
  lastCheckpoint(run: string): Promise<CheckpointRecord | null>;
  /** Takes pruned checkpoints out of the registry, by tensor file. */
  forgetCheckpoints(token: number, run: string, files: readonly string[]): Promise<void>;

  /**
   * Keeps the lower of the two values, whoever writes in whatever order; of equal ones the first.
   * `kept` is null while that is not known. Throws DP_DIVERGED for a value that is not finite.
   */
  recordBest(
    token: number,
    run: string,
    best: BestRecord,
  ): Promise<{ readonly kept: boolean | null; readonly best: BestRecord }>;

  /** For people and tools: the server goes on from the checkpoint. */
  putEarlyStopping(token: number, run: string, record: unknown): Promise<void>;

  /** A shard says that it is there, for `ttlMs`; null: that it goes. Needs no lease. */
  announceShard(id: string, record: ShardRecord | null, ttlMs: number): Promise<void>;
  /** Shards that are there, by id. */
  listShards(): Promise<readonly ShardRecord[]>;

  /** Releases the lease, ends timers and connections. */
  close(): Promise<void>;
}

// What both implementations share.

/** A run's name, which becomes a folder and a key. Throws DP_CONFIG_INVALID. */
export function checkName(run: string): string {
  if (new RegExp(NAME_PATTERN).test(run)) return run;
  const shown = JSON.stringify(run.slice(0, 80));
  throw new DownpourError('DP_CONFIG_INVALID', `run ${shown} must be named like ${NAME_PATTERN}`);
}

export function recordOfManifest(manifest: CheckpointRecord): CheckpointRecord {
  const { state: _, ...summary } = manifest as CheckpointManifest;
  return summary;
}

export function bySequence(checkpoints: readonly CheckpointRecord[]): CheckpointRecord[] {
  return [...checkpoints].sort((a, b) => a.sequence - b.sequence);
}

export function inOrderOfCreation(runs: readonly RunRecord[]): RunRecord[] {
  const key = (run: RunRecord) => `${run.createdAt} ${run.id}`;
  return [...runs].sort((a, b) => (key(a) < key(b) ? -1 : 1));
}

export function byId(shards: readonly ShardRecord[]): ShardRecord[] {
  return [...shards].sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** The same record again, as after a lost reply: it is the one that is kept. */
export function isSameBest(a: BestRecord, b: BestRecord): boolean {
  return a.value === b.value && a.step === b.step && a.checkpoint === b.checkpoint;
}

export function refuseNotFinite(best: BestRecord): void {
  if (Number.isFinite(best.value)) return;
  throw new DownpourError(
    'DP_DIVERGED',
    `the validation value at step ${best.step} is ${best.value}: it cannot be the best; lower the learning rate`,
  );
}

export function fenced(token: number, newest: number, owner?: string): DownpourError {
  const by = owner === undefined ? '' : ` (${owner})`;
  return new DownpourError(
    'DP_STATE_FENCED',
    `token ${token} may no longer write; the newest is ${newest}${by}: this server lost its lease; stop it, or let it acquire again and resume from the last checkpoint`,
  );
}
