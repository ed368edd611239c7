import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import { afterAll } from 'vitest';

/**
 * One file of JavaScript of a program in TypeScript, with all its packages: a process that runs it starts with a tenth of the
 * computing that reading the sources takes. The file is there until the tests of the file that asks have ended.
 */
export async function bundled(program: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-program-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const outfile = join(folder, 'program.mjs');
  await build({
    ...{ entryPoints: [program], outfile, bundle: true, platform: 'node', format: 'esm' },
    // Some of the packages are CommonJS. By a name that no module of the program has.
    banner: {
      js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);",
    },
    logLevel: 'error',
  });
  return outfile;
}
