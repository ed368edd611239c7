import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, makeFolder, TEMPORARY, unseal, writeSealed } from './atomic-file.ts';

// What a server leaves behind, so that its next life knows what was lost with it: a count of its lives, and
// of each run how far it has come, a second old at most. Checkpoints hold what is restored; this, what is not.

const LIVES = 'lives.json';
const PROGRESS = 'progress.json';

/** Up to where a run was seen. */
export interface Seen {
  readonly step: number;
  readonly generation: number;
}

/**
 * Counts a new life of a state folder, on disk before anything of it is seen by others.
 * @param atLeast the count is above this, whatever the file says.
 *
 * Throws DP_DISK.
 */
export async function nextLife(root: string, atLeast: number): Promise<number> {
  let before = 0;
  try {
    before = (unseal(await readFile(join(root, LIVES))) as { lives: number }).lives;
  } catch {
    // The first life, or a damaged file: the checkpoints know a lower bound.
  }
  const lives = Math.max(before, atLeast) + 1;
  await makeFolder(root);
  await writeSealed(root, LIVES, { lives });
  return lives;
}

/**
 * Notes how far a run has come. Survives the death of the process, but not for certain that of the machine:
 * nothing is forced to the disk, so it costs training nothing.
 */
export async function noteProgress(root: string, run: string, seen: Seen): Promise<void> {
  const path = join(root, run, PROGRESS);
  const text = JSON.stringify({ step: seen.step, generation: seen.generation });
  const write = () => writeFile(`${path}${TEMPORARY}`, text);
  try {
    await write();
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    await makeFolder(join(root, run));
    await write();
  }
  await rename(`${path}${TEMPORARY}`, path);
}

/** What was noted last; null: nothing that can be read. */
export async function readProgress(root: string, run: string): Promise<Seen | null> {
  try {
    const value: unknown = JSON.parse(await readFile(join(root, run, PROGRESS), 'utf8'));
    const { step, generation } = value as Seen;
    return Number.isSafeInteger(step) && Number.isSafeInteger(generation)
      ? { step, generation }
      : null;
  } catch {
    return null;
  }
}
