import { readFileSync } from 'node:fs';
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isGone, type ProcessIdentity, thisProcess } from '../server/store/alive.ts';

/** Folders of commands for what they need while they run. One that was killed leaves its own: the next one removes it. */

const OWNER = '.owner.json';
const OURS = /^downpour-(join|check|trained)-/;

export interface Scratch {
  readonly folder: string;
  remove(): Promise<void>;
}

/** @param temporary instead of the system's folder. */
export async function openScratch(
  kind: 'join' | 'check' | 'trained',
  temporary = tmpdir(),
): Promise<Scratch> {
  await sweep(temporary);
  const folder = await mkdtemp(join(temporary, `downpour-${kind}-`));
  const { pid, place, processStart } = await thisProcess();
  await writeFile(join(folder, OWNER), JSON.stringify({ pid, place, processStart }));
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) };
}

/** Removes folders of this user whose process is known to have ended. What cannot be told stays. */
async function sweep(temporary: string): Promise<void> {
  for (const name of await readdir(temporary).catch(() => [])) {
    if (!OURS.test(name)) continue;
    const folder = join(temporary, name);
    const found = await stat(folder).catch(() => null);
    if (!found?.isDirectory() || found.uid !== process.getuid?.()) continue;
    const owner = ownerOf(folder);
    if (owner && (await isGone(owner))) await rm(folder, { recursive: true, force: true });
  }
}

function ownerOf(folder: string): ProcessIdentity | null {
  try {
    const value: unknown = JSON.parse(readFileSync(join(folder, OWNER), 'utf8'));
    const { pid, place, processStart } = Object(value) as Record<string, unknown>;
    const known = Number.isSafeInteger(pid) && Number(pid) > 0;
    if (!known || typeof place !== 'string' || typeof processStart !== 'string') return null;
    return { pid: Number(pid), place, processStart };
  } catch {
    return null;
  }
}
