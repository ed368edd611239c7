import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
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

/** How far a run has come, and what it knows of steps that are lost. */
export interface Progress extends Seen {
  /** The checkpoint that this life began with; absent, as the rest: noted by an older release. */
  readonly base?: Seen;
  /** Steps after `base` by the life that lost them; all that are lost, in all lives. */
  readonly lost?: readonly (readonly [life: number, steps: number])[];
  readonly total?: number;
}

/**
 * Notes how far a run has come. Survives the death of the process, but not for certain that of the machine:
 * nothing is forced to the disk, so it costs training nothing.
 * @param isNewest false: another note was made while this one was written, and this one is dropped.
 */
export async function noteProgress(
  root: string,
  run: string,
  progress: Progress,
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
export function noteProgressNow(root: string, run: string, progress: Progress): void {
  const path = join(root, run, PROGRESS);
  const temporary = `${path}.now${TEMPORARY}`;
  mkdirSync(join(root, run), { recursive: true });
  writeFileSync(temporary, JSON.stringify(progress));
  renameSync(temporary, path);
}

/** What was noted last; null: nothing that can be read. */
export async function readProgress(root: string, run: string): Promise<Progress | null> {
  try {
    const value: unknown = JSON.parse(await readFile(join(root, run, PROGRESS), 'utf8'));
    const { step, generation, base, lost, total } = value as Progress;
    if (!isCount(step) || !isCount(generation)) return null;
    const known = isCount(base?.step) && isCount(base?.generation) && isCount(total);
    if (!known || !Array.isArray(lost) || !lost.flat().every(isCount)) return { step, generation };
    return { step, generation, base: base!, lost, total: total! };
  } catch {
    return null;
  }
}

const isCount = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
