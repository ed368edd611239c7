import { cpSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const ROOT = dirname(import.meta.dirname);
/** Where deploy/Dockerfile begins to build an engine. */
const ENTRY = 'scripts/engine-install.js';

/**
 * Files of the project that a program is made of: the first one, and all that it imports, at once or
 * later, by a name that is written down. Packages are not looked into.
 * @param entry its path from the project's folder; so are the paths that come back, in order
 */
export async function sourceOf(entry: string): Promise<string[]> {
  const { metafile } = await build({
    absWorkingDir: ROOT,
    entryPoints: [entry],
    bundle: true,
    splitting: true,
    write: false,
    metafile: true,
    outdir: 'unwritten',
    platform: 'node',
    format: 'esm',
    packages: 'external',
    // A checkout runs its sources, whatever `npm run build` has left.
    external: ['../dist/*'],
    // A file that is missing ends it; what is said of code is no matter here.
    logLevel: 'error',
  });
  return Object.keys(metafile.inputs).sort();
}

/** `tsx scripts/engine-source.ts <folder>`: copies what the build of an engine needs, and no more. */
if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [folder] = process.argv.slice(2);
  if (folder === undefined) throw new Error('name the folder to copy to');
  for (const file of await sourceOf(ENTRY)) cpSync(join(ROOT, file), join(folder, file));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }\n');
}
