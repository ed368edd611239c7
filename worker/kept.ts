import { createHash, randomBytes } from 'node:crypto';
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { LIMITS } from '../shared/limits.ts';
import { isPrivate } from '../wire/local-socket.ts';

/**
 * Results that take long to find and depend on a key alone: JSON files that no other user can read or write. They are in
 * `$XDG_CACHE_HOME/downpour/sources`, else `~/.cache/downpour/sources`.
 */

const folderOf = (env: NodeJS.ProcessEnv) =>
  join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'downpour', 'sources');

const nameOf = (key: string) => `${createHash('sha256').update(key).digest('hex')}.json`;

/** @returns what was kept under the key; null: nothing, or nothing that can be read. */
export function recallResult(key: string): unknown {
  try {
    const folder = folderOf(process.env);
    if (process.getuid !== undefined && !isPrivate(folder)) return null;
    const kept = JSON.parse(readFileSync(join(folder, nameOf(key)), 'utf8'));
    return kept.key === key ? kept.value : null;
  } catch {
    return null;
  }
}

/** Keeps a value of JSON under the key, and drops the oldest of too many. @throws what the disk says. */
export function keepResult(key: string, value: unknown): void {
  const folder = folderOf(process.env);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (process.getuid !== undefined && !isPrivate(folder)) {
    throw new Error(`${folder} is open to other users: chmod 700 it`);
  }
  const path = join(folder, nameOf(key));
  const part = `${path}.${randomBytes(4).toString('hex')}.tmp`;
  writeFileSync(part, JSON.stringify({ key, value }), { mode: 0o600 });
  renameSync(part, path);
  const files = readdirSync(folder).map((name) => join(folder, name));
  if (files.length <= LIMITS.keptSourcesMax) return;
  const timeOf = (file: string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const oldest = files.sort((a, b) => timeOf(a) - timeOf(b));
  for (const file of oldest.slice(0, files.length - LIMITS.keptSourcesMax)) {
    rmSync(file, { force: true });
  }
}
