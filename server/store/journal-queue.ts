import { createHash } from 'node:crypto';
import { type FileHandle, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  diskError,
  losslessJson,
  makeFolder,
  syncFolder,
  writeAll,
  writeFileAtomic,
} from '../../files/atomic-file.ts';
import { type BestRecord, checkOf, damaged, OperationSchema } from '../../files/records.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { CheckpointRecord, RunRecord } from './state-store.ts';

// A record that is written again while it waits is kept once, the newest, at its new place; a checkpoint
// that is forgotten before Redis heard of it is not told. So what waits is bounded by the number of runs
// and of checkpoints kept, however long Redis stays away.

/** What is to be written; each can be repeated without harm. */
export type StoreOperation =
  | { readonly op: 'run'; readonly run: string; readonly record: RunRecord }
  | { readonly op: 'publish'; readonly run: string; readonly manifest: CheckpointRecord }
  | { readonly op: 'forget'; readonly run: string; readonly files: readonly string[] }
  | { readonly op: 'best'; readonly run: string; readonly best: BestRecord }
  | { readonly op: 'earlyStopping'; readonly run: string; readonly record: unknown };

const JOURNAL = /^journal\.(\d{6,16})\.jsonl$/;
/** A file that has grown to so much beyond twice of what waits is written anew. */
const SLACK_BYTES = 2 ** 18;

interface WaitingWrite {
  readonly key: string;
  readonly operation: StoreOperation;
  readonly bytes: number;
}

/** What waits, in memory and on disk: a file of lines, each with its checksum. */
export class JournalQueue {
  readonly #folder: string;
  readonly #bytesMax: number;
  /** By what an operation replaces, in the order in which they are to be written. */
  readonly #waiting = new Map<string, WaitingWrite>();
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

  get first(): WaitingWrite | null {
    return this.#waiting.values().next().value ?? null;
  }

  /** Redis is about to be told. */
  heard(operation: StoreOperation): void {
    if (operation.op === 'publish') this.#heard.add(keyOf(operation, operation.manifest.file));
  }

  /** On disk when the promise resolves. Throws DP_DISK, DP_LIMIT. */
  add(token: number, operation: StoreOperation): Promise<void> {
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
  remove(waiting: WaitingWrite): Promise<void> {
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

  #put(operation: StoreOperation, bytes: number): void {
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
    this.#set(keyOf(operation, op === 'publish' ? operation.manifest.file : ''), operation, bytes);
  }

  #set(key: string, operation: StoreOperation, bytes = lineOf(operation).length): void {
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
function keyOf({ op, run }: Pick<StoreOperation, 'op' | 'run'>, file = ''): string {
  return `${op} ${run} ${file}`;
}

const SUM_CHARACTERS = 16;

function lineOf(operation: StoreOperation): Buffer {
  const text = losslessJson(operation);
  return Buffer.from(`${sumOf(text)} ${text}\n`);
}

function sumOf(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, SUM_CHARACTERS);
}

const checkOperation = checkOf<StoreOperation>(OperationSchema);
const LOUD = { level: 'warn' } as const;
/** That a file's damage is told in. */
const PROBLEMS_MAX = 5;

interface ReadJournal {
  readonly operations: readonly (readonly [StoreOperation, number])[];
  /** Its last line was being written when its server died. */
  readonly cut: boolean;
  /** Why records were passed over: DP_STATE_CORRUPT. */
  readonly problems: readonly DownpourError[];
}

/** All whole lines with the right checksum that say what is to be written. */
async function readJournal(path: string): Promise<ReadJournal> {
  const operations: [StoreOperation, number][] = [];
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
