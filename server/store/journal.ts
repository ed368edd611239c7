import { createHash } from 'node:crypto';
import { type FileHandle, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import {
  diskError,
  losslessJson,
  makeFolder,
  syncFolder,
  writeAll,
  writeFileAtomic,
} from '../../files/atomic-file.ts';
import { type BestRecord, checkOf, damaged, OperationSchema } from '../../files/records.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
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
import {
  type CheckpointSummary,
  checkName,
  fenced,
  type OwnerLease,
  type RunRecord,
  refuseNotFinite,
  type StateStore,
  summaryOf,
} from './state-store.ts';

// While Redis is away its records wait in the state folder, and are written when it is back, in the
// order in which they were made. Who may write then is Redis's to say: docs/decisions/0010-redis-away.md.
//
// Of a record that is written again while it waits only the newest is kept, at its new place; a checkpoint
// that is forgotten before Redis heard of it is not told. So what waits is bounded by the number of runs
// and of checkpoints kept, however long Redis stays away.

/** What is to be written; each can be repeated without harm. */
type Operation =
  | { readonly op: 'run'; readonly run: string; readonly record: RunRecord }
  | {
      readonly op: 'publish';
      readonly run: string;
      readonly manifest: CheckpointSummary;
      readonly rollback: boolean;
    }
  | { readonly op: 'forget'; readonly run: string; readonly files: readonly string[] }
  | { readonly op: 'best'; readonly run: string; readonly best: BestRecord }
  | { readonly op: 'resetBest'; readonly run: string }
  | { readonly op: 'earlyStopping'; readonly run: string; readonly record: unknown };

const JOURNAL = /^journal\.(\d{6,16})\.jsonl$/;
const RETRY_MS = 500;
/** A file that has grown to so much beyond twice of what waits is written anew. */
const SLACK_BYTES = 2 ** 18;
const FOLLOWS_MAX = 8;

/**
 * A store that is never away: what it cannot take now waits in `folder`. Takes the folder as well, so that
 * two servers with one folder learn of each other though neither can reach Redis.
 *
 * Writes throw DP_STATE_FENCED, DP_DISK, and DP_LIMIT when too much waits; never DP_REDIS_UNAVAILABLE.
 */
export function journaled(
  store: StateStore,
  options: {
    readonly folder: string;
    /** Names the store, so that a folder is not shared by servers that ask different ones. */
    readonly id: string;
    readonly log: Log;
    readonly retryMs?: number;
    readonly bytesMax?: number;
  },
): StateStore {
  const { folder, log, retryMs = RETRY_MS, bytesMax = LIMITS.journalBytesMax } = options;
  const ownerFolder = join(folder, OWNER_FOLDER);
  const queue = new Queue(folder, bytesMax);
  let lease: OwnerLease | null = null;
  let awaySince: number | null = null;
  let timer: NodeJS.Timeout | undefined;
  let replaying: Promise<void> | null = null;
  let closed = false;

  /** Now, or behind all that waits. @returns what `now` did; null: it waits. */
  async function write<T>(
    token: number,
    operation: Operation,
    now: () => Promise<T>,
  ): Promise<T | null> {
    if (queue.size === 0) {
      try {
        queue.heard(operation);
        const done = await now();
        back(0);
        return done;
      } catch (error) {
        if (errorCode(error) !== 'DP_REDIS_UNAVAILABLE') throw error;
        if (awaySince === null) {
          log(`${errorText(error)}; training goes on, records wait in ${folder}`, {
            ...{ level: 'warn', code: errorCode(error) },
          });
        }
        awaySince ??= performance.now();
      }
    }
    if (token !== lease?.token) throw fenced(token, lease?.token ?? 0);
    lease.lost.throwIfAborted();
    await queue.add(token, operation);
    replaySoon();
    return null;
  }

  function back(written: number): void {
    if (awaySince === null || queue.size > 0) return;
    const seconds = ((performance.now() - awaySince) / 1000).toFixed(1);
    log(`Redis is back after ${seconds} s: ${written} records that waited are written`);
    awaySince = null;
  }

  function replaySoon(): void {
    if (closed || replaying || timer) return;
    timer = setTimeout(() => {
      timer = undefined;
      replay().catch(() => {});
    }, retryMs).unref();
  }

  /** Writes what waits, until nothing does or Redis is away again. */
  function replay(): Promise<void> {
    clearTimeout(timer);
    timer = undefined;
    replaying ??= replayAll().finally(() => {
      replaying = null;
      if (queue.size > 0 && lease?.lost.aborted === false) replaySoon();
    });
    return replaying;
  }

  async function replayAll(): Promise<void> {
    let written = 0;
    try {
      for (let next = queue.first; next && lease; next = queue.first) {
        lease.lost.throwIfAborted();
        queue.heard(next.operation);
        try {
          await perform(store, lease.token, next.operation);
          written++;
        } catch (error) {
          // What is in its place is not ours to remove, and the others must not wait for it.
          if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
          const { op, run } = next.operation;
          log(
            `run ${run}: its record (${op}) that waited for Redis is not written: ${errorText(error)}`,
            {
              ...{ level: 'error', run, code: errorCode(error) },
            },
          );
        }
        await queue.remove(next);
      }
    } finally {
      back(written);
    }
  }

  return {
    kind: store.kind,
    get away() {
      if (awaySince === null) return null;
      return { sinceMs: performance.now() - awaySince, records: queue.size };
    },

    newestToken: () => store.newestToken(),
    async mayWrite(token) {
      if (!(await ownsFolder(ownerFolder, token))) throw fenced(token, token + 1);
    },

    async acquire(owner, acquire) {
      const { ttlMs } = acquire;
      const held = await refuseHeld(ownerFolder, { redis: options.id, ttlMs });
      const inner = await store.acquire(owner, {
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
      const claim = { token, owner, ttlMs, since, redis: options.id, follows };
      if (!(await enterFolder(ownerFolder, claim))) {
        await inner.release().catch(() => {});
        throw fenced(token, token + 1);
      }
      const taken = await queue.take(token, follows, log);
      if (taken > 0) log(`${taken} records wait for Redis since this server's last life`);
      lease = watched(inner, {
        ownerFolder,
        ttlMs,
        async release() {
          // Else the next owner could not know that what waits is still true.
          if (queue.size > 0) await replay().catch(() => {});
          if (queue.size > 0) return;
          await inner.release();
          await leaveFolder(ownerFolder, token);
        },
      });
      if (queue.size > 0) await replay().catch(() => {});
      return lease;
    },

    async putRun(token, record) {
      checkName(record.id);
      losslessJson(record);
      await write(token, { op: 'run', run: record.id, record }, () => store.putRun(token, record));
    },
    getRun: (id) => store.getRun(id),
    listRuns: () => store.listRuns(),

    async publishCheckpoint(token, run, given, { rollback = false } = {}) {
      const manifest = summaryOf(given);
      const operation: Operation = { op: 'publish', run: checkName(run), manifest, rollback };
      const now = () => store.publishCheckpoint(token, run, manifest, { rollback });
      return (await write(token, operation, now)) ?? { moved: null };
    },
    checkpoints: (run) => store.checkpoints(run),
    lastCheckpoint: (run) => store.lastCheckpoint(run),
    async forgetCheckpoints(token, run, files) {
      const operation: Operation = { op: 'forget', run: checkName(run), files };
      await write(token, operation, () => store.forgetCheckpoints(token, run, files));
    },

    async recordBest(token, run, best) {
      refuseNotFinite(best);
      const operation: Operation = { op: 'best', run: checkName(run), best };
      const now = () => store.recordBest(token, run, best);
      return (await write(token, operation, now)) ?? { kept: null, best };
    },
    getBest: (run) => store.getBest(run),
    async resetBest(token, run) {
      const operation: Operation = { op: 'resetBest', run: checkName(run) };
      await write(token, operation, () => store.resetBest(token, run));
    },

    async putEarlyStopping(token, run, record) {
      losslessJson(record);
      const operation: Operation = { op: 'earlyStopping', run: checkName(run), record };
      await write(token, operation, () => store.putEarlyStopping(token, run, record));
    },
    getEarlyStopping: (run) => store.getEarlyStopping(run),

    announceShard: (id, record, ttlMs) => store.announceShard(id, record, ttlMs),
    listShards: () => store.listShards(),

    async close() {
      closed = true;
      clearTimeout(timer);
      await lease?.release().catch(() => {});
      await replaying?.catch(() => {});
      await queue.close();
      await store.close();
    },
  };
}

async function perform(store: StateStore, token: number, operation: Operation): Promise<void> {
  const { op, run } = operation;
  if (op === 'run') await store.putRun(token, operation.record);
  else if (op === 'publish') {
    const { rollback } = operation;
    await store.publishCheckpoint(token, run, operation.manifest, { rollback });
  } else if (op === 'forget') await store.forgetCheckpoints(token, run, operation.files);
  else if (op === 'best') await store.recordBest(token, run, operation.best);
  else if (op === 'resetBest') await store.resetBest(token, run);
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

interface Waiting {
  readonly key: string;
  readonly operation: Operation;
  readonly bytes: number;
}

/** What waits, in memory and on disk: a file of lines, each with its checksum. */
class Queue {
  readonly #folder: string;
  readonly #bytesMax: number;
  /** By what an operation replaces, in the order in which they are to be written. */
  readonly #waiting = new Map<string, Waiting>();
  /** Checkpoints that Redis may have: one that has not answered may have heard all the same. */
  readonly #heard = new Set<string>();
  #bytes = 0;
  #path = '';
  #file: FileHandle | null = null;
  #fileBytes = 0;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(folder: string, bytesMax: number) {
    this.#folder = folder;
    this.#bytesMax = bytesMax;
  }

  get size(): number {
    return this.#waiting.size;
  }

  get first(): Waiting | null {
    return this.#waiting.values().next().value ?? null;
  }

  /** Redis is about to be told. */
  heard(operation: Operation): void {
    if (operation.op === 'publish') this.#heard.add(keyOf(operation, operation.manifest.file));
  }

  /** On disk when the promise resolves. Throws DP_DISK, DP_LIMIT. */
  add(token: number, operation: Operation): Promise<void> {
    return this.#inTurn(async () => {
      const line = lineOf(operation);
      if (this.#bytes + line.length > this.#bytesMax) {
        throw new DownpourError(
          'DP_LIMIT',
          `${this.#bytes} bytes of records wait for Redis, ${line.length} more are too many; at most ${this.#bytesMax} may: bring Redis back`,
        );
      }
      await this.#append(token, line);
      this.#put(operation, line.length);
      if (this.#fileBytes > 2 * this.#bytes + SLACK_BYTES) await this.#rewrite(token);
    });
  }

  /** It has been written. */
  remove(waiting: Waiting): Promise<void> {
    return this.#inTurn(async () => {
      // A newer one may have taken its place meanwhile.
      if (this.#waiting.get(waiting.key) === waiting) this.#drop(waiting.key);
      if (this.size === 0) await this.#removeFile();
    });
  }

  /**
   * Takes over what waited in earlier lives of this folder, under the tokens that ours follows. What
   * another owner has overtaken is put aside and told.
   * @returns how many wait now.
   */
  take(token: number, follows: readonly number[], log: Log): Promise<number> {
    return this.#inTurn(async () => {
      const left: string[] = [];
      for (const old of await this.#journals()) {
        const path = this.#pathOf(old);
        const { operations, cut, problems } = await readJournal(path);
        if (cut) log(`${path} ends in the middle of a line, as it does after a crash`);
        for (const error of problems)
          log(`${error.message}; passed over`, { ...LOUD, code: error.code });
        if (follows.includes(old)) {
          for (const [operation, bytes] of operations) {
            this.heard(operation);
            this.#put(operation, bytes);
          }
          if (problems.length === 0) left.push(path);
          else await putAside(path, 'damaged');
          continue;
        }
        await putAside(path, 'superseded');
        log(
          `${operations.length} records that waited under token ${old} are not written: another server has owned the state since (${path}.superseded keeps them)`,
        );
      }
      if (this.size > 0) await this.#rewrite(token);
      for (const path of left) await rm(path, { force: true });
      return this.size;
    });
  }

  /** Tokens under which something waits, oldest first. Throws DP_DISK. */
  async #journals(): Promise<number[]> {
    const tokens = (await readdir(this.#folder)).map((name) => Number(JOURNAL.exec(name)?.[1]));
    return tokens.filter((token) => token > 0).sort((a, b) => a - b);
  }

  async close(): Promise<void> {
    await this.#turn;
    await this.#file?.close();
    this.#file = null;
  }

  /** One change after the other. */
  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(action, action);
    this.#turn = mine.catch(() => {});
    return mine;
  }

  #put(operation: Operation, bytes: number): void {
    const { op, run } = operation;
    if (op === 'forget') {
      // One by one, since a name that comes again must stay behind its forgetting.
      for (const file of operation.files) {
        const publish = keyOf({ op: 'publish', run }, file);
        if (this.#drop(publish) && !this.#heard.has(publish)) continue;
        this.#heard.delete(publish);
        this.#set(keyOf(operation, file), { op, run, files: [file] });
      }
      return;
    }
    if (op === 'best') {
      const before = this.#waiting.get(keyOf(operation))?.operation;
      // The store keeps the first of equal ones, and never a worse one.
      if (before?.op === 'best' && before.best.value <= operation.best.value) return;
    }
    if (op === 'resetBest') this.#drop(keyOf({ op: 'best', run }));
    this.#set(keyOf(operation, op === 'publish' ? operation.manifest.file : ''), operation, bytes);
  }

  #set(key: string, operation: Operation, bytes = lineOf(operation).length): void {
    this.#drop(key);
    this.#waiting.set(key, { key, operation, bytes });
    this.#bytes += bytes;
  }

  #drop(key: string): boolean {
    this.#bytes -= this.#waiting.get(key)?.bytes ?? 0;
    return this.#waiting.delete(key);
  }

  #pathOf(token: number): string {
    return join(this.#folder, `journal.${String(token).padStart(6, '0')}.jsonl`);
  }

  async #append(token: number, line: Buffer): Promise<void> {
    try {
      if (!this.#file) {
        await makeFolder(this.#folder);
        this.#path = this.#pathOf(token);
        this.#file = await open(this.#path, 'a');
        this.#fileBytes = (await this.#file.stat()).size;
        await syncFolder(this.#folder);
      }
      await writeAll(this.#file, line);
      await this.#file.datasync();
      this.#fileBytes += line.length;
    } catch (error) {
      // What was written of the line must not spoil the next one.
      await this.#file?.truncate(this.#fileBytes).catch(() => {});
      throw diskError(error, this.#path, 'write');
    }
  }

  /** Only what still waits. */
  async #rewrite(token: number): Promise<void> {
    await this.#file?.close();
    this.#file = null;
    this.#path = this.#pathOf(token);
    const lines = [...this.#waiting.values()].map(({ operation }) => lineOf(operation));
    await writeFileAtomic(this.#path, async (handle) => {
      for (const line of lines) await writeAll(handle, line);
    });
  }

  async #removeFile(): Promise<void> {
    await this.#file?.close();
    this.#file = null;
    this.#fileBytes = 0;
    if (this.#path !== '') await rm(this.#path, { force: true });
  }
}

/** What a later operation of the same kind replaces. */
function keyOf({ op, run }: Pick<Operation, 'op' | 'run'>, file = ''): string {
  return `${op} ${run} ${file}`;
}

const SUM_CHARACTERS = 16;

function lineOf(operation: Operation): Buffer {
  const text = losslessJson(operation);
  return Buffer.from(`${sumOf(text)} ${text}\n`);
}

function sumOf(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, SUM_CHARACTERS);
}

const checkOperation = checkOf<Operation>(OperationSchema);
const LOUD = { level: 'warn' } as const;
/** That a file's damage is told in. */
const PROBLEMS_MAX = 5;

interface ReadJournal {
  readonly operations: readonly (readonly [Operation, number])[];
  /** Its last line was being written when its server died. */
  readonly cut: boolean;
  /** Of what was passed over: DP_STATE_CORRUPT. */
  readonly problems: readonly DownpourError[];
}

/** All whole lines with the right checksum that say what is to be written. */
async function readJournal(path: string): Promise<ReadJournal> {
  const operations: [Operation, number][] = [];
  const problems: DownpourError[] = [];
  const passOver = (error: DownpourError) => {
    if (problems.length < PROBLEMS_MAX) problems.push(error);
  };
  const found = await stat(path).catch((error: unknown) => {
    throw diskError(error, path, 'read');
  });
  // More than ever waits, and the slack before it is written anew.
  const most = 3 * LIMITS.journalBytesMax;
  if (!found.isFile() || found.size > most) {
    passOver(
      damaged(
        path,
        found.isFile() ? `it has ${found.size} bytes; at most ${most} are read` : 'it is no file',
      ),
    );
    return { operations, cut: false, problems };
  }
  const bytes = await readFile(path).catch((error: unknown) => {
    throw diskError(error, path, 'read');
  });
  let start = 0;
  for (let number = 1; start < bytes.length; number++) {
    const end = bytes.indexOf(10, start);
    if (end < 0) return { operations, cut: true, problems };
    const line = bytes.toString('utf8', start, end);
    const text = line.slice(SUM_CHARACTERS + 1);
    const place = `in line ${number} of ${path}`;
    try {
      if (line.slice(0, SUM_CHARACTERS) !== sumOf(text))
        throw damaged(place, 'its checksum is wrong');
      operations.push([checkOperation(place, JSON.parse(text)), end + 1 - start]);
    } catch (error) {
      passOver(error instanceof DownpourError ? error : damaged(place, errorText(error)));
    }
    start = end + 1;
  }
  return { operations, cut: false, problems };
}

/** Kept for people; never read again. */
async function putAside(path: string, why: 'superseded' | 'damaged'): Promise<void> {
  await rename(path, `${path}.${why}`).catch((error: unknown) => {
    throw diskError(error, path, 'rename');
  });
}
