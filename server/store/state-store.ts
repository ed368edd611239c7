import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { diskError, errnoOf, makeFolder, writeSealed } from '../../files/atomic-file.ts';
import type { CheckpointManifest } from '../../files/checkpoint.ts';
import {
  type BestRecord,
  BestRecordSchema,
  checkOf,
  damaged,
  type OnDamagedRecord,
  RegistrySchema,
  RunRecordSchema,
  readSealed,
  type ShardRecord,
  ShardRecordSchema,
  toldOnce,
} from '../../files/records.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  leaveFolder,
  newestToken,
  OWNER_FOLDER,
  readHolder,
  takeFolder,
  touchFolder,
} from './folder-lock.ts';

// What must outlive a server, and what several servers must agree on. Two implementations: files
// (below) for one server, Redis (`redis.ts`) for several. Every write carries the token of its
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
export type CheckpointSummary = Omit<CheckpointManifest, 'state'>;

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
  getRun(id: string): Promise<RunRecord | null>;
  /** In order of creation. Damaged records are passed over, and told to `onDamaged`. */
  listRuns(): Promise<readonly RunRecord[]>;

  /**
   * Enters a checkpoint in the registry and, in the same instant, makes it the one to resume from,
   * unless it is of kind `best` or of an older step than the one that this token published before.
   * `rollback` says that the step went back on purpose. `moved` is null while that is not known.
   */
  publishCheckpoint(
    token: number,
    run: string,
    manifest: CheckpointSummary,
    options?: { readonly rollback?: boolean },
  ): Promise<{ readonly moved: boolean | null }>;
  /** Oldest first. */
  checkpoints(run: string): Promise<readonly CheckpointSummary[]>;
  /** The checkpoint to resume from. */
  lastCheckpoint(run: string): Promise<CheckpointSummary | null>;
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
  getBest(run: string): Promise<BestRecord | null>;
  /** For the start of a new phase, whose values do not compare with the old ones. */
  resetBest(token: number, run: string): Promise<void>;

  putEarlyStopping(token: number, run: string, record: unknown): Promise<void>;
  getEarlyStopping(run: string): Promise<unknown>;

  /** A shard says that it is there, for `ttlMs`; null: that it goes. Needs no lease. */
  announceShard(id: string, record: ShardRecord | null, ttlMs: number): Promise<void>;
  /** Shards that are there, by id. */
  listShards(): Promise<readonly ShardRecord[]>;

  /** Releases the lease, ends timers and connections. */
  close(): Promise<void>;
}

const SHARDS_FOLDER = '.shards';
const READS_MAX = 20;

type RecordName = 'run' | 'registry' | 'best' | 'early-stopping';

const checkRun = checkOf<RunRecord>(RunRecordSchema);
const checkRegistry = checkOf<Registry>(RegistrySchema);
const checkBest = checkOf<BestRecord>(BestRecordSchema);
const checkShard = checkOf<ShardRecord>(ShardRecordSchema);

/** What a record's file holds may be null: it was taken back. @throws DownpourError DP_STATE_CORRUPT */
const CHECKS: Record<RecordName, (place: string, value: unknown) => unknown> = {
  run: checkRun,
  registry: checkRegistry,
  best: checkBest,
  // Nobody reads it but people and tools.
  'early-stopping': (_, value) => value,
};

interface Registry {
  readonly last: { readonly token: number; readonly step: number; readonly file: string } | null;
  readonly checkpoints: readonly CheckpointSummary[];
}

/**
 * The store of one server, in a folder: `<folder>/<run>/<record>.<token>.json`, beside the run's
 * checkpoints. The token in the name is the fence: a writer that was overtaken between its check
 * and its rename makes a file that nobody reads, for readers take the highest token.
 */
export function openFileStore(options: {
  readonly folder: string;
  readonly onDamaged?: OnDamagedRecord;
}): StateStore {
  const { folder } = options;
  const onDamaged = toldOnce(options.onDamaged);
  const ownerFolder = join(folder, OWNER_FOLDER);
  const leases = new Set<OwnerLease>();
  let turn: Promise<unknown> = Promise.resolve();

  async function refuseStale(token: number): Promise<void> {
    const newest = await newestToken(ownerFolder);
    if (newest !== token) {
      throw fenced(token, newest, (await readHolder(ownerFolder, newest))?.owner);
    }
  }

  /** Reads, changes and writes a record while no other change of this store happens. */
  function change<R>(
    token: number,
    run: string,
    name: RecordName,
    next: () => Promise<{ readonly write?: unknown; readonly result: R }>,
  ): Promise<R> {
    const action = async () => {
      await refuseStale(token);
      const { write, result } = await next();
      if (write !== undefined) {
        const runFolder = join(folder, checkName(run));
        await makeFolder(runFolder);
        await writeSealed(runFolder, recordFile(name, token), write);
        // Overtaken while writing: what was written may already be what nobody reads.
        await refuseStale(token);
        await removeOlder(runFolder, name, token);
      }
      return result;
    };
    const mine = turn.then(action, action);
    turn = mine.catch(() => {});
    return mine;
  }

  const put = (token: number, run: string, name: RecordName, value: unknown) =>
    change(token, run, name, async () => ({ write: { value }, result: undefined }));

  const read = <T>(run: string, name: RecordName): Promise<T | null> =>
    readRecord<T>(folder, run, name);

  const registryOf = async (run: string): Promise<Registry> =>
    (await read<Registry>(run, 'registry')) ?? { last: null, checkpoints: [] };

  return {
    kind: 'files',
    away: null,
    newestToken: () => newestToken(ownerFolder),
    mayWrite: refuseStale,

    async acquire(owner, { ttlMs, waitMs = 0, signal }) {
      const since = new Date().toISOString();
      const token = await untilFree(() => takeFolder(ownerFolder, { owner, ttlMs, since }), {
        waitMs,
        signal,
      });
      const lease = keepLease(
        { token, previous: token - 1, ttlMs },
        {
          renew: () => touchFolder(ownerFolder, token),
          release: () => leaveFolder(ownerFolder, token),
        },
      );
      leases.add(lease);
      return lease;
    },

    putRun: (token, record) => put(token, record.id, 'run', record),
    getRun: (id) => read<RunRecord>(id, 'run'),
    async listRuns() {
      const runs: RunRecord[] = [];
      for (const id of await namesIn(folder)) {
        if (!new RegExp(NAME_PATTERN).test(id)) continue;
        try {
          const record = await read<RunRecord>(id, 'run');
          if (record !== null) runs.push(record);
        } catch (error) {
          // Also of a folder that cannot be read: the others can.
          if (!(error instanceof DownpourError)) throw error;
          onDamaged(error);
        }
      }
      return inOrderOfCreation(runs);
    },

    publishCheckpoint: (token, run, manifest, { rollback = false } = {}) =>
      change(token, run, 'registry', async () => {
        const { last, checkpoints } = await registryOf(run);
        const summary = summaryOf(manifest);
        const { file, step, kind } = summary;
        const goesBack = last !== null && last.token === token && step < last.step;
        const moved = kind !== 'best' && (rollback || !goesBack);
        const value: Registry = {
          last: moved ? { token, step, file } : last,
          checkpoints: [...checkpoints.filter((c) => c.file !== file), summary],
        };
        return { write: { value }, result: { moved } };
      }),
    checkpoints: async (run) => bySequence((await registryOf(run)).checkpoints),
    async lastCheckpoint(run) {
      const { last, checkpoints } = await registryOf(run);
      return checkpoints.find((c) => c.file === last?.file) ?? null;
    },
    forgetCheckpoints: (token, run, files) =>
      change(token, run, 'registry', async () => {
        const { last, checkpoints } = await registryOf(run);
        const left = checkpoints.filter((c) => !files.includes(c.file));
        const heir = bySequence(left).findLast((c) => c.kind !== 'best');
        const stays = last !== null && !files.includes(last.file);
        const moved = heir === undefined ? null : { token, step: heir.step, file: heir.file };
        const value: Registry = { last: stays ? last : moved, checkpoints: left };
        return { write: { value }, result: undefined };
      }),

    recordBest: (token, run, best) =>
      change(token, run, 'best', async () => {
        refuseNotFinite(best);
        const old = await read<BestRecord>(run, 'best');
        if (old === null || best.value < old.value) {
          return { write: { value: best }, result: { kept: true, best } };
        }
        return { result: { kept: isSame(old, best), best: old } };
      }),
    getBest: (run) => read<BestRecord>(run, 'best'),
    resetBest: (token, run) => put(token, run, 'best', null),

    putEarlyStopping: (token, run, record) => put(token, run, 'early-stopping', record),
    getEarlyStopping: (run) => read<unknown>(run, 'early-stopping'),

    async announceShard(id, record, ttlMs) {
      const shards = join(folder, SHARDS_FOLDER);
      if (record === null) await rm(join(shards, `${checkName(id)}.json`), { force: true });
      else {
        await makeFolder(shards);
        await writeSealed(shards, `${checkName(id)}.json`, { record, until: Date.now() + ttlMs });
      }
    },
    // By the clock of whoever looks: after it was set, a shard is missed, or one that died is seen, for the
    // few seconds until it is announced again or does not answer.
    async listShards() {
      const shards: ShardRecord[] = [];
      for (const name of await namesIn(join(folder, SHARDS_FOLDER))) {
        if (!name.endsWith('.json')) continue;
        const path = join(folder, SHARDS_FOLDER, name);
        try {
          const shard = await readSealed(path, LIMITS.recordBytesMax);
          if (shard === undefined) continue;
          const { record, until } = Object(shard) as { record: unknown; until: unknown };
          const known = checkShard(path, record);
          if (`${known.id}.json` !== name) throw damaged(path, `it is of shard ${known.id}`);
          if (typeof until === 'number' && until > Date.now()) shards.push(known);
        } catch (error) {
          if (!(error instanceof DownpourError)) throw error;
          onDamaged(error);
        }
      }
      return byId(shards);
    },

    async close() {
      await turn;
      for (const lease of leases) await lease.release();
      leases.clear();
    },
  };
}

/** What the record with the highest token holds; null when there is none. Throws DP_STATE_CORRUPT, DP_DISK. */
async function readRecord<T>(folder: string, run: string, name: RecordName): Promise<T | null> {
  const runFolder = join(folder, checkName(run));
  for (let attempt = 0; ; attempt++) {
    const newest = Math.max(0, ...(await tokensOf(runFolder, name)));
    if (newest === 0) return null;
    const path = join(runFolder, recordFile(name, newest));
    const most =
      name === 'run' || name === 'best' ? LIMITS.recordBytesMax : LIMITS.registryBytesMax;
    const content = await readSealed(path, most);
    // A newer owner wrote, and removed this, since the names were read.
    if (content === undefined && attempt < READS_MAX) continue;
    if (typeof content !== 'object' || content === null || !('value' in content)) {
      throw damaged(path, 'it holds no value');
    }
    const { value } = content;
    if (value === null) return null;
    const record = CHECKS[name](path, value) as T;
    if (name === 'run' && (record as RunRecord).id !== run) {
      throw damaged(path, `it is of run '${(record as RunRecord).id}'`);
    }
    return record;
  }
}

function recordFile(name: RecordName, token: number): string {
  return `${name}.${String(token).padStart(6, '0')}.json`;
}

async function removeOlder(runFolder: string, name: RecordName, token: number): Promise<void> {
  for (const old of await tokensOf(runFolder, name)) {
    if (old >= token) continue;
    await rm(join(runFolder, recordFile(name, old)), { force: true });
  }
}

async function tokensOf(runFolder: string, name: RecordName): Promise<number[]> {
  const tokens: number[] = [];
  for (const file of await namesIn(runFolder)) {
    const [record, token, end, ...more] = file.split('.');
    if (record === name && end === 'json' && more.length === 0) tokens.push(Number(token));
  }
  return tokens.filter((token) => Number.isSafeInteger(token) && token > 0);
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    // A file of somebody else's is no run.
    if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return [];
    throw diskError(error, folder, 'list');
  }
}

// What both implementations share.

/** A run's name, which becomes a folder and a key. Throws DP_CONFIG_INVALID. */
export function checkName(run: string): string {
  if (new RegExp(NAME_PATTERN).test(run)) return run;
  const shown = JSON.stringify(run.slice(0, 80));
  throw new DownpourError('DP_CONFIG_INVALID', `run ${shown} must be named like ${NAME_PATTERN}`);
}

export function summaryOf(manifest: CheckpointSummary): CheckpointSummary {
  const { state: _, ...summary } = manifest as CheckpointManifest;
  return summary;
}

export function bySequence(checkpoints: readonly CheckpointSummary[]): CheckpointSummary[] {
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
export function isSame(a: BestRecord, b: BestRecord): boolean {
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
    `token ${token} may not write any more, the newest is ${newest}${by}: this server lost its lease; stop it, or let it acquire again and resume from the last checkpoint`,
  );
}

const POLL_MS = 200;

/** Tries until it succeeds, `waitMs` are over, or it fails for another reason than being early. */
export async function untilFree<T>(
  attempt: () => Promise<T>,
  options: { readonly waitMs: number; readonly signal: AbortSignal | undefined },
): Promise<T> {
  const { waitMs, signal } = options;
  const start = performance.now();
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      const early = ['DP_STATE_LOCKED', 'DP_REDIS_UNAVAILABLE'].includes(errorCode(error));
      const leftMs = waitMs - (performance.now() - start);
      if (!early || leftMs <= 0) throw error;
      await delay(Math.min(POLL_MS, leftMs), undefined, signal === undefined ? {} : { signal });
    }
  }
}

/**
 * Keeps a lease alive: renews it three times in `ttlMs`, and declares it lost when the store says
 * so or `ttlMs` have passed since the last renewal was asked for, whatever others think by then.
 *
 * @param door.held what a renewal that fails with this error says of the lease: true, it is still held
 *   for as long as the store does not say otherwise.
 */
export function keepLease(
  { token, previous, ttlMs }: { token: number; previous: number; ttlMs: number },
  door: {
    renew(): Promise<boolean>;
    release(): Promise<void>;
    held?(error: unknown): boolean;
  },
): OwnerLease {
  const controller = new AbortController();
  const lost = controller.signal;
  let released = false;
  let failure: unknown;
  let next: NodeJS.Timeout | undefined;
  let deadline: NodeJS.Timeout | undefined;

  function end(): void {
    clearTimeout(next);
    clearTimeout(deadline);
  }
  function lose(why: string): void {
    end();
    controller.abort(
      new DownpourError(
        'DP_STATE_FENCED',
        `the owner's lease (token ${token}) is lost: ${why}; stop this server, or let it acquire again and resume from the last checkpoint`,
      ),
    );
  }
  function expireIn(ms: number): void {
    clearTimeout(deadline);
    deadline = setTimeout(() => {
      // The process may have been held up and have asked nobody: it asks once before it gives up.
      renew().catch((error) => {
        if (released || lost.aborted || door.held?.(error)) return;
        lose(`it could not be renewed within ${ttlMs} ms (${errorText(failure ?? error)})`);
      });
    }, ms).unref();
  }
  async function renew(): Promise<void> {
    lost.throwIfAborted();
    const asked = performance.now();
    const held = await door.renew();
    lost.throwIfAborted();
    if (released) return;
    if (!held) lose('another owner took over');
    lost.throwIfAborted();
    failure = undefined;
    expireIn(ttlMs - (performance.now() - asked));
  }
  function renewSoon(): void {
    next = setTimeout(() => {
      renew()
        .catch((error) => {
          failure = error;
        })
        .finally(() => {
          if (!released && !lost.aborted) renewSoon();
        });
    }, ttlMs / 3).unref();
  }

  expireIn(ttlMs);
  renewSoon();
  return {
    token,
    previous,
    lost,
    renew,
    async release() {
      if (released) return;
      released = true;
      end();
      if (!lost.aborted) await door.release();
    },
  };
}
