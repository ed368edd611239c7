import { randomUUID } from 'node:crypto';
import {
  copyFile,
  constants as fsConstants,
  link,
  open,
  readdir,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import type { Static } from 'typebox';
import {
  diskError,
  errnoOf,
  makeFolder,
  syncFolder,
  TEMPORARY,
  writeAll,
} from '../../files/atomic-file.ts';
import { checkOf, HolderSchema, readRecordFile } from '../../files/records.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { isGone, thisProcess } from './alive.ts';

// One folder, one server. Each owner has a file of its own, named by its token; the highest token
// owns. Taking over is creating the file after the highest, which the file system lets one process
// do. The highest is never removed, so a token never comes twice and "was I overtaken?" is a look
// at the names. (One lock file that is broken and made anew would need compare-and-swap: two that
// find it stale at once can both win.)
//
// A dead owner shows at once on its own machine (process gone, or its number used by another one),
// elsewhere, as between containers that share a volume, by a file that is no longer touched.

/** The content of an owner's file. */
export type LockHolder = Readonly<Static<typeof HolderSchema>>;

export type Claimant = Pick<LockHolder, 'owner' | 'ttlMs' | 'since'>;

/** Where owners of a state folder are entered. */
export const OWNER_FOLDER = '.owner';
const OWNER_FILE = /^(\d{6,16})\.json$/;
const ATTEMPTS_MAX = 50;
const checkHolder = checkOf<LockHolder>(HolderSchema);

/**
 * Takes the folder and returns the token of its new owner, higher than all before.
 *
 * @param by.watchMs how long an owner that looks dead by its file's time is watched before it counts as
 *   dead; half of its lease unless given.
 *
 * Throws DP_STATE_LOCKED that names the holder, DP_DISK.
 */
export async function takeFolder(
  folder: string,
  { watchMs, ...by }: Claimant & { readonly watchMs?: number },
): Promise<number> {
  await makeFolder(folder);
  const me = { ...by, ...(await thisProcess()), released: false };
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const token = await tryTake(folder, me, watchMs);
    if (token !== null) return token;
  }
  throw new DownpourError(
    'DP_STATE_LOCKED',
    `${folder}: ${ATTEMPTS_MAX} attempts to own it were each overtaken by another server; start one at a time`,
  );
}

/**
 * Enters an owner whose token Redis has given, so that one that Redis cannot tell learns of it where
 * they share the folder. Call after `refuseHeld`.
 * @returns false: a newer one is there.
 *
 * Throws DP_DISK.
 */
export async function enterFolder(
  folder: string,
  by: {
    readonly token: number;
    readonly owner: string;
    readonly ttlMs: number;
    readonly since: string;
    readonly redis: string;
    readonly follows: readonly number[];
  },
): Promise<boolean> {
  await makeFolder(folder);
  if ((await newestToken(folder)) >= by.token) return false;
  const me = { ...by, follows: [...by.follows], ...(await thisProcess()), released: false };
  if (!(await claim(folder, await writeCandidate(folder, me), by.token))) return false;
  if (!(await ownsFolder(folder, by.token))) {
    await rm(fileOf(folder, by.token), { force: true });
    return false;
  }
  await clearBehind(folder, by.token);
  return true;
}

/**
 * Who holds a folder for an owner that Redis will choose: `token` is the newest ever given, `dead` says
 * that its owner's process has ended.
 * @param redis which Redis: a live owner of the same is Redis's to replace, and nobody else's.
 *
 * Throws DP_STATE_LOCKED when a live server holds it that does not ask this Redis, DP_DISK.
 */
export async function refuseHeld(
  folder: string,
  { redis, ttlMs }: { readonly redis: string; readonly ttlMs: number },
): Promise<{
  readonly token: number;
  readonly dead: boolean;
  readonly follows: readonly number[];
}> {
  await makeFolder(folder);
  const token = await newestToken(folder);
  if (token === 0) return { token, dead: false, follows: [] };
  const holder = await readHolder(folder, token);
  const { follows = [] } = holder ?? {};
  if (holder?.redis === redis) {
    return { token, dead: !holder.released && (await isGone(holder)), follows };
  }
  const candidate = join(folder, `${randomUUID()}${TEMPORARY}`);
  try {
    await writeFile(candidate, '');
    await refuseIfAlive(folder, token, candidate, ttlMs);
  } finally {
    await rm(candidate, { force: true });
  }
  return { token, dead: false, follows };
}

/** Whether `token` is the newest owner's. Throws DP_DISK. */
export async function ownsFolder(folder: string, token: number): Promise<boolean> {
  return (await newestToken(folder)) === token;
}

/** The highest token ever given; 0 if none was. Throws DP_DISK. */
export async function newestToken(folder: string): Promise<number> {
  try {
    const names = await readdir(folder);
    return Math.max(0, ...names.map((name) => Number(OWNER_FILE.exec(name)?.[1] ?? 0)));
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return 0;
    throw diskError(error, folder, 'list');
  }
}

/** The newest owner's file; null when there is none, or it cannot be read. */
export async function readHolder(folder: string, token: number): Promise<LockHolder | null> {
  try {
    const path = fileOf(folder, token);
    const bytes = await readRecordFile(path, LIMITS.recordBytesMax);
    return bytes === null ? null : checkHolder(path, JSON.parse(bytes.toString()));
  } catch {
    return null;
  }
}

/** A sign of life. False when another owner came, or the folder was removed. Throws DP_DISK. */
export async function touchFolder(folder: string, token: number): Promise<boolean> {
  if (!(await ownsFolder(folder, token))) return false;
  const path = fileOf(folder, token);
  try {
    const handle = await open(path, 'r+');
    try {
      // A write sets the time by the file system's clock, which all who share it agree on;
      // utimes would set this machine's.
      const { size } = await handle.stat();
      await handle.write('\n', Math.max(0, size - 1));
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw diskError(error, path, 'touch');
  }
  return true;
}

/** Gives the folder up: from now on `token` is not the newest. Throws DP_DISK. */
export async function leaveFolder(folder: string, token: number): Promise<void> {
  const holder = await readHolder(folder, token);
  if (holder === null) return;
  const path = await writeCandidate(folder, { ...holder, token: token + 1, released: true });
  await claim(folder, path, token + 1);
}

async function tryTake(
  folder: string,
  me: Omit<LockHolder, 'token'>,
  watchMs: number | undefined,
): Promise<number | null> {
  const newest = await newestToken(folder);
  const token = newest + 1;
  const candidate = await writeCandidate(folder, { ...me, token });
  try {
    if (newest > 0) await refuseIfAlive(folder, newest, candidate, me.ttlMs, watchMs);
  } catch (error) {
    await rm(candidate, { force: true });
    throw error;
  }
  if (!(await claim(folder, candidate, token))) return null;
  // Others may have come and gone since the names were read, and cleared this number.
  if (!(await ownsFolder(folder, token))) {
    await rm(fileOf(folder, token), { force: true });
    return null;
  }
  await clearBehind(folder, token);
  return token;
}

/** Removes what earlier owners and interrupted attempts left. */
async function clearBehind(folder: string, token: number): Promise<void> {
  try {
    for (const name of await readdir(folder)) {
      const older = Number(OWNER_FILE.exec(name)?.[1] ?? token) < token;
      // One that still tries loses its candidate and tries again.
      if (older || name.endsWith(TEMPORARY)) await rm(join(folder, name), { force: true });
    }
  } catch (error) {
    throw diskError(error, folder, 'clear');
  }
}

async function refuseIfAlive(
  folder: string,
  token: number,
  candidate: string,
  ttlMs: number,
  watchMs?: number,
): Promise<void> {
  const holder = await readHolder(folder, token);
  if (holder?.released) return;
  if (holder !== null && (await isGone(holder))) return;
  const path = fileOf(folder, token);
  let touched: number;
  let ageMs: number;
  try {
    // Both times are the file system's.
    touched = (await stat(path)).mtimeMs;
    ageMs = (await stat(candidate)).mtimeMs - touched;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return;
    throw diskError(error, folder, 'read');
  }
  const leaseMs = holder?.ttlMs ?? ttlMs;
  // A clock that was set looks the same as a long silence: a live owner touches its file while we look.
  const suspect = ageMs > leaseMs || ageMs < -SKEW_MS;
  if (suspect && (await isUntouched(path, touched, watchMs ?? leaseMs / 2))) return;
  const who =
    holder === null
      ? 'an owner whose file cannot be read'
      : `${holder.owner}, process ${holder.pid} on ${holder.host}, since ${holder.since}`;
  throw new DownpourError(
    'DP_STATE_LOCKED',
    `${folder} belongs to ${who}, last seen ${Math.max(0, Math.round(ageMs))} ms ago: ` +
      'stop that server, choose another folder, or give several servers a Redis; ' +
      `if it is dead, its lease expires after ${leaseMs} ms`,
  );
}

/** A file system's clock may be behind by so much between two looks at it. */
const SKEW_MS = 1_000;
const LOOK_MS = 100;

/** Whether the time of a file stays the same for so long by this process's own clock. */
async function isUntouched(path: string, mtimeMs: number, forMs: number): Promise<boolean> {
  const start = performance.now();
  while (performance.now() - start < forMs) {
    await delay(Math.min(LOOK_MS, forMs));
    const now = await stat(path).catch(() => null);
    if (now !== null && now.mtimeMs !== mtimeMs) return false;
  }
  return true;
}

async function writeCandidate(folder: string, holder: LockHolder): Promise<string> {
  const path = join(folder, `${randomUUID()}${TEMPORARY}`);
  try {
    const handle = await open(path, 'wx');
    try {
      await writeAll(handle, Buffer.from(`${JSON.stringify(holder)}\n`));
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    await rm(path, { force: true }).catch(() => {});
    throw diskError(error, path, 'write');
  }
  return path;
}

/** Gives the candidate its number, unless that is taken. */
async function claim(folder: string, candidate: string, token: number): Promise<boolean> {
  const path = fileOf(folder, token);
  try {
    try {
      await link(candidate, path);
    } catch (error) {
      // File systems without hard links: the copy's content comes a moment after its name, and
      // who reads in between sees a file that cannot be read, which counts as held.
      if (!['EPERM', 'ENOTSUP', 'ENOSYS', 'EOPNOTSUPP'].includes(errnoOf(error) ?? '')) throw error;
      await copyFile(candidate, path, fsConstants.COPYFILE_EXCL);
    }
    await syncFolder(folder);
    return true;
  } catch (error) {
    // ENOENT: whoever won cleared our candidate.
    if (['EEXIST', 'ENOENT'].includes(errnoOf(error) ?? '')) return false;
    throw diskError(error, path, 'write');
  } finally {
    await rm(candidate, { force: true });
  }
}

function fileOf(folder: string, token: number): string {
  return join(folder, `${String(token).padStart(6, '0')}.json`);
}
