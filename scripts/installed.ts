import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/**
 * Builds the package into a folder as npm would install it, without declarations. The packages that it needs are those of
 * this checkout.
 * @param folder where `downpour/` is made. @returns the command's program.
 */
export function installed(folder: string): string {
  const home = join(folder, 'downpour');
  mkdirSync(home);
  const build = ['--import', 'tsx', 'scripts/build.ts', '--without-types', '--to', home];
  const { status } = spawnSync(process.execPath, build, { cwd: ROOT, stdio: 'inherit' });
  if (status !== 0) throw new Error('the package could not be built');
  for (const name of ['bin', 'package.json']) {
    cpSync(join(ROOT, name), join(home, name), { recursive: true });
  }
  symlinkSync(join(ROOT, 'node_modules'), join(home, 'node_modules'));
  return join(home, 'bin', 'downpour.js');
}
