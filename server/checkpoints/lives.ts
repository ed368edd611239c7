import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, makeFolder, TEMPORARY, writeSealed } from '../../files/atomic-file.ts';
import {
  checkOf,
  damaged,
  LivesSchema,
  type OnDamagedRecord,
  ProgressSchema,
  readRecordFile,
  readSealed,
} from '../../files/records.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { LostNote, Seen } from '../core/run/calls.ts';

// What a server leaves behind, so that its next life knows what was lost with it: a count of its lives, and
// of each run how far it has come, a second old at most. Checkpoints hold what is restored; this, what is not.

const LIVES = 'lives.json';
const PROGRESS = 'progress.json';

/**
 * Counts a new life of a state folder, on disk before anything of it is seen by others.
 * @param atLeast the count is above this, whatever the file says.
 * @param onMissing the file is not there (null) or damaged: what the checkpoints know of lives.
 *
 * Throws DP_DISK.
 */
export async function nextLife(
  root: string,
  atLeast: number,
  onMissing: (error: DownpourError | null) => number | Promise<number> = () => 0,
): Promise<number> {
  let damage: DownpourError | null = null;
  const note = (error: DownpourError) => {
    damage = error;
  };
  const known = await unlessDamaged(note, async () => {
    const path = join(root, LIVES);
    const value = await readSealed(path, LIMITS.recordBytesMax);
    return value === undefined ? null : checkLives(path, value);
  });
  const before = known?.lives ?? (await onMissing(damage));
  const lives = Math.max(before, atLeast) + 1;
  await makeFolder(root);
  await writeSealed(root, LIVES, { lives });
  return lives;
}

/** How far a run has come, and what it knows of steps that are lost. Of an older release: how far it has come alone. */
export type RunProgress = Seen & Partial<LostNote>;

/**
 * Notes how far a run has come. Survives the death of the process, but not for certain that of the machine:
 * nothing is forced to the disk, so it costs training nothing.
 * @param isNewest false: another note was made while this one was written, and this one is dropped.
 */
export async function noteProgress(
  root: string,
  run: string,
  progress: RunProgress,
  isNewest: () => boolean = () => true,
): Promise<void> {
  const path = join(root, run, PROGRESS);
  const temporary = `${path}${TEMPORARY}`;
  const write = () => writeFile(temporary, JSON.stringify(progress));
  try {
    await write();
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    await makeFolder(join(root, run));
    await write();
  }
  // In one turn with the question.
  if (isNewest()) renameSync(temporary, path);
}

/** The same at once: of what nobody else knows, before anything is answered. */
export function noteProgressNow(root: string, run: string, progress: RunProgress): void {
  const path = join(root, run, PROGRESS);
  const temporary = `${path}.now${TEMPORARY}`;
  mkdirSync(join(root, run), { recursive: true });
  writeFileSync(temporary, JSON.stringify(progress));
  renameSync(temporary, path);
}

/** What was noted last; null: nothing that can be read. */
export function readProgress(
  root: string,
  run: string,
  onDamaged: OnDamagedRecord = () => {},
): Promise<RunProgress | null> {
  return unlessDamaged(onDamaged, async () => {
    const path = join(root, run, PROGRESS);
    const bytes = await readRecordFile(path, LIMITS.recordBytesMax);
    if (bytes === null) return null;
    let value: unknown;
    try {
      value = JSON.parse(bytes.toString());
    } catch (error) {
      throw damaged(path, errorText(error));
    }
    return checkProgress(path, value);
  });
}

const checkLives = checkOf<{ readonly lives: number }>(LivesSchema);
const checkProgress = checkOf<RunProgress>(ProgressSchema);

/** Null: it is damaged or cannot be read, which is told. Training goes on without it. */
async function unlessDamaged<T>(
  onDamaged: OnDamagedRecord,
  read: () => Promise<T | null>,
): Promise<T | null> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    onDamaged(error);
    return null;
  }
}
