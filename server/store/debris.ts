import { readdir, rm, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../../files/atomic-file.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { eachOf } from '../../shared/each-of.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { isGone } from './alive.ts';
import { newestToken, OWNER_FOLDER, readHolder } from './folder-lock.ts';

// What servers that were killed leave in a state folder, and what a person can free when its disk is full.

const NAME = new RegExp(NAME_PATTERN);
/** Temporary files of `writeFileAtomic`, and of the notes of how far runs have come. */
const TEMPORARY = /\.[0-9a-f]{8}\.tmp$|^progress\.json(\.now)?\.tmp$/;

/**
 * Removes temporary files of earlier owners. Only who owns the folder may call it: nobody else writes there, but for
 * shards, whose folder is left alone.
 * @returns the bytes that were freed.
 */
export async function clearDebris(state: string, log: Log): Promise<number> {
  let [files, bytes] = [0, 0];
  const clear = async (folder: string, names: readonly string[]) => {
    for (const name of names) {
      if (!TEMPORARY.test(name)) continue;
      const path = join(folder, name);
      const size = await stat(path).then(
        (found) => found.size,
        () => 0,
      );
      const gone = await rm(path).then(
        () => true,
        () => false,
      );
      if (gone) [files, bytes] = [files + 1, bytes + size];
    }
  };
  const names = await namesIn(state);
  await clear(state, names);
  const runs = names.filter((name) => NAME.test(name));
  await eachOf(runs, async (run) => {
    const inside = await namesIn(join(state, run));
    await clear(join(state, run), inside);
    const checkpoints = join(state, run, 'checkpoints');
    if (inside.includes('checkpoints')) await clear(checkpoints, await namesIn(checkpoints));
  });
  if (files > 0) {
    log(
      `${files} temporary files (${bytes} bytes) of a server that was killed are removed from ${state}`,
    );
  }
  return bytes;
}

/** The same before anybody owns it, when the last owner's process is known to have ended. @returns whether it helped. */
export async function clearDebrisOfDead(state: string, log: Log): Promise<boolean> {
  const owners = join(state, OWNER_FOLDER);
  const holder = await readHolder(owners, await newestToken(owners));
  if (!holder || !(holder.released || (await isGone(holder)))) return false;
  return (await clearDebris(state, log)) > 0;
}

/** No room is left: not a folder that is missing or forbidden. */
export function isFull(error: unknown): boolean {
  const errno = error instanceof DownpourError ? errnoOf(error.cause) : null;
  return errno === 'ENOSPC' || errno === 'EDQUOT';
}

/** An owner's file, the count of lives, and a record. */
const START_BYTES = 65_536;
const LARGEST = 3;

/** Says of a start for which the disk has no room how much there is, how much it needs, and what takes the most. */
export async function whatToFree(state: string, error: unknown): Promise<unknown> {
  if (!isFull(error)) return error;
  const { bavail, bsize, ffree } = await statfs(state);
  const left = `${state} has ${bavail * bsize} bytes and ${ffree} files left, a start takes up to ${START_BYTES} bytes and 4 files`;
  const sizes: [name: string, bytes: number][] = [];
  for (const name of await namesIn(state)) {
    const bytes = await bytesIn(join(state, name));
    if (bytes > 0) sizes.push([name, bytes]);
  }
  sizes.sort(([, a], [, b]) => b - a);
  const largest = sizes.slice(0, LARGEST).map(([name, bytes]) => `${name} (${bytes} bytes)`);
  const told = largest.length === 0 ? '' : `; the largest there: ${largest.join(', ')}`;
  return new DownpourError(
    'DP_DISK',
    `${(error as Error).message}; ${left}${told}: free room for it on that disk, for example by moving runs that are over to another one, then start again; nothing is lost, checkpoints stand as they are`,
    { cause: error },
  );
}

async function bytesIn(path: string): Promise<number> {
  const entries = await readdir(path, { withFileTypes: true, recursive: true }).catch(() => []);
  let bytes = 0;
  for (const entry of entries) {
    if (!entry.isFile()) continue;
    const found = await stat(join(entry.parentPath, entry.name)).catch(() => null);
    bytes += found?.size ?? 0;
  }
  return bytes;
}

const namesIn = (folder: string) => readdir(folder).catch(() => [] as string[]);
