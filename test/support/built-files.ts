import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { inject } from 'vitest';
import type { ownModule } from '../../shared/own-files.ts';

// What system tests have in the place of `shared/own-files.ts`: this process runs the sources, and the threads and processes
// that it starts run the package that build-package.ts has built. A thread takes 0.1 s of a processor to start then, instead of
// 1.4 s. newcomer.test.ts has threads and processes of sources.

export { IS_BUILT, ownModule, ROOT } from '../../shared/own-files.ts';

const program = inject('program');

export const ownEntry: typeof ownModule = (name) =>
  pathToFileURL(join(dirname(dirname(program)), 'dist', `${name}.js`));

export const OWN_COMMAND = pathToFileURL(program);
