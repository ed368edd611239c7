import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { diskError, errnoOf, makeFolder, writeSealed } from '../../files/atomic-file.ts';
import {
  type BestRecord,
  BestRecordSchema,
  type Check,
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
import { eachOf } from '../../shared/each-of.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  leaveFolder,
  newestToken,
  OWNER_FOLDER,
  readHolder,
  takeFolder,
  touchFolder,
} from './folder-lock.ts';
import { keepLease, untilFree } from './lease.ts';
import {
  type AcquireOptions,
  byId,
  bySequence,
  type CheckpointRecord,
  checkName,
  fenced,
  inOrderOfCreation,
  isSameBest,
  type OwnerLease,
  type RunRecord,
  recordOfManifest,
  refuseNotFinite,
  type StateStore,
} from './state-store.ts';

const SHARDS_FOLDER = '.shards';
const READS_MAX = 20;

/** What the records of a run hold, by their names. */
interface Records {
  readonly run: RunRecord;
  readonly registry: Registry;
  readonly best: BestRecord;
  readonly 'early-stopping': unknown;
}
type RecordName = keyof Records;

const checkRun = checkOf<RunRecord>(RunRecordSchema);
const checkRegistry = checkOf<Registry>(RegistrySchema);
const checkBest = checkOf<BestRecord>(BestRecordSchema);
const checkShard = checkOf<ShardRecord>(ShardRecordSchema);

/** What a record's file holds may be null: it was taken back. @throws DownpourError DP_STATE_CORRUPT */
const CHECKS: { readonly [N in RecordName]: Check<Records[N]> } = {
  run: checkRun,
  registry: checkRegistry,
  best: checkBest,
  // Nobody reads it but people and tools.
  'early-stopping': (_, value) => value,
};

interface Registry {
  readonly last: { readonly token: number; readonly step: number; readonly file: string } | null;
  readonly checkpoints: readonly CheckpointRecord[];
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
  return new FileStore(options.folder, toldOnce(options.onDamaged));
}

class FileStore implements StateStore {
  readonly kind = 'files';
  readonly away = null;
  readonly #folder: string;
  readonly #ownerFolder: string;
  readonly #onDamaged: OnDamagedRecord;
  readonly #leases = new Set<OwnerLease>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(folder: string, onDamaged: OnDamagedRecord) {
    this.#folder = folder;
    this.#ownerFolder = join(folder, OWNER_FOLDER);
    this.#onDamaged = onDamaged;
  }

  // The owner.

  async newestToken(): Promise<number> {
    return newestToken(this.#ownerFolder);
  }

  async mayWrite(token: number): Promise<void> {
    const newest = await newestToken(this.#ownerFolder);
    if (newest === token) return;
    throw fenced(token, newest, (await readHolder(this.#ownerFolder, newest))?.owner);
  }

  async acquire(owner: string, { ttlMs, waitMs = 0, signal }: AcquireOptions): Promise<OwnerLease> {
    const folder = this.#ownerFolder;
    const since = new Date().toISOString();
    const token = await untilFree(() => takeFolder(folder, { owner, ttlMs, since }), {
      waitMs,
      signal,
    });
    const lease = keepLease(
      { token, previous: token - 1, ttlMs },
      { renew: () => touchFolder(folder, token), release: () => leaveFolder(folder, token) },
    );
    this.#leases.add(lease);
    return lease;
  }

  /** Reads, changes and writes a record while no other change of this store happens. */
  #change<R>(
    token: number,
    run: string,
    name: RecordName,
    next: () => Promise<{ readonly write?: unknown; readonly result: R }>,
  ): Promise<R> {
    const action = async () => {
      await this.mayWrite(token);
      const { write, result } = await next();
      if (write !== undefined) {
        const runFolder = join(this.#folder, checkName(run));
        await makeFolder(runFolder);
        await writeSealed(runFolder, recordFile(name, token), write);
        // Overtaken while writing: what was written may already be what nobody reads.
        await this.mayWrite(token);
        await removeOlder(runFolder, name, token);
      }
      return result;
    };
    const mine = this.#turn.then(action, action);
    this.#turn = mine.catch(() => {});
    return mine;
  }

  #put(token: number, run: string, name: RecordName, value: unknown): Promise<void> {
    return this.#change(token, run, name, async () => ({ write: { value }, result: undefined }));
  }

  #read<N extends RecordName>(run: string, name: N): Promise<Records[N] | null> {
    return readRecord(this.#folder, run, name);
  }

  // Runs.

  putRun(token: number, record: RunRecord): Promise<void> {
    return this.#put(token, record.id, 'run', record);
  }

  /** Its records are in its folder, and have gone with it. */
  removeRun(token: number, id: string): Promise<void> {
    checkName(id);
    return this.mayWrite(token);
  }

  async listRuns(): Promise<readonly RunRecord[]> {
    const runs: RunRecord[] = [];
    const isName = new RegExp(NAME_PATTERN);
    const ids = (await namesIn(this.#folder)).filter((name) => isName.test(name));
    await eachOf(ids, async (id) => {
      try {
        const record = await this.#read(id, 'run');
        if (record !== null) runs.push(record);
      } catch (error) {
        // Also of a folder that cannot be read: the others can.
        if (!(error instanceof DownpourError)) throw error;
        this.#onDamaged(error);
      }
    });
    return inOrderOfCreation(runs);
  }

  // Checkpoints.

  publishCheckpoint(
    token: number,
    run: string,
    manifest: CheckpointRecord,
  ): Promise<{ readonly moved: boolean }> {
    return this.#change(token, run, 'registry', async () => {
      const { last, checkpoints } = await this.#registry(run);
      const summary = recordOfManifest(manifest);
      const { file, step, kind } = summary;
      const goesBack = last !== null && last.token === token && step < last.step;
      const moved = kind !== 'best' && !goesBack;
      const value: Registry = {
        last: moved ? { token, step, file } : last,
        checkpoints: [...checkpoints.filter((c) => c.file !== file), summary],
      };
      return { write: { value }, result: { moved } };
    });
  }

  async lastCheckpoint(run: string): Promise<CheckpointRecord | null> {
    const { last, checkpoints } = await this.#registry(run);
    return checkpoints.find((c) => c.file === last?.file) ?? null;
  }

  forgetCheckpoints(token: number, run: string, files: readonly string[]): Promise<void> {
    return this.#change(token, run, 'registry', async () => {
      const { last, checkpoints } = await this.#registry(run);
      const left = checkpoints.filter((c) => !files.includes(c.file));
      const heir = bySequence(left).findLast((c) => c.kind !== 'best');
      const stays = last !== null && !files.includes(last.file);
      const moved = heir === undefined ? null : { token, step: heir.step, file: heir.file };
      const value: Registry = { last: stays ? last : moved, checkpoints: left };
      return { write: { value }, result: undefined };
    });
  }

  async #registry(run: string): Promise<Registry> {
    return (await this.#read(run, 'registry')) ?? { last: null, checkpoints: [] };
  }

  // The best evaluation, and early stopping.

  recordBest(
    token: number,
    run: string,
    best: BestRecord,
  ): Promise<{ readonly kept: boolean; readonly best: BestRecord }> {
    return this.#change(token, run, 'best', async () => {
      refuseNotFinite(best);
      const old = await this.#read(run, 'best');
      if (old === null || best.value < old.value) {
        return { write: { value: best }, result: { kept: true, best } };
      }
      return { result: { kept: isSameBest(old, best), best: old } };
    });
  }

  putEarlyStopping(token: number, run: string, record: unknown): Promise<void> {
    return this.#put(token, run, 'early-stopping', record);
  }

  // Shards.

  async announceShard(id: string, record: ShardRecord | null, ttlMs: number): Promise<void> {
    const shards = join(this.#folder, SHARDS_FOLDER);
    if (record === null) await rm(join(shards, `${checkName(id)}.json`), { force: true });
    else {
      await makeFolder(shards);
      await writeSealed(shards, `${checkName(id)}.json`, { record, until: Date.now() + ttlMs });
    }
  }

  // By the clock of whoever looks: after it was set, a shard is missed, or one that died is seen, for the
  // few seconds until it is announced again or does not answer.
  async listShards(): Promise<readonly ShardRecord[]> {
    const shards: ShardRecord[] = [];
    for (const name of await namesIn(join(this.#folder, SHARDS_FOLDER))) {
      if (!name.endsWith('.json')) continue;
      const path = join(this.#folder, SHARDS_FOLDER, name);
      try {
        const shard = await readSealed(path, LIMITS.recordBytesMax);
        if (shard === undefined) continue;
        const { record, until } = Object(shard) as { record: unknown; until: unknown };
        const known = checkShard(path, record);
        if (`${known.id}.json` !== name) throw damaged(path, `it is of shard ${known.id}`);
        if (typeof until === 'number' && until > Date.now()) shards.push(known);
      } catch (error) {
        if (!(error instanceof DownpourError)) throw error;
        this.#onDamaged(error);
      }
    }
    return byId(shards);
  }

  async close(): Promise<void> {
    await this.#turn;
    for (const lease of this.#leases) await lease.release();
    this.#leases.clear();
  }
}

/** What the record with the highest token holds; null when there is none. Throws DP_STATE_CORRUPT, DP_DISK. */
export async function readRecord<N extends RecordName>(
  folder: string,
  run: string,
  name: N,
): Promise<Records[N] | null> {
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
    const record = CHECKS[name](path, value) as Records[N];
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
