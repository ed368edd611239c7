import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { LongestFirst } from './test/longest-first.ts';

// Two kinds of projects: `unit` is pure and quick, and runs before each commit; `system` starts real
// processes, sockets and a real Redis, and runs in `npm test` and in CI.

/** A page or a process that is looked at again and again: on a busy machine a second is short. */
const poll = { timeout: 20_000, interval: 50 };

/** The package's own names mean its sources, as they do in tsconfig.json. */
const { paths } = JSON.parse(readFileSync(new URL('tsconfig.json', import.meta.url), 'utf8'))
  .compilerOptions as { readonly paths: Record<string, [string]> };
const resolve = {
  alias: Object.entries(paths).map(([name, [path]]) => ({
    find: new RegExp(`^${name.replace('*', '(.*)')}$`),
    replacement: fileURLToPath(new URL(path.replace('*', '$1'), import.meta.url)),
  })),
};

/**
 * A package of hundreds of small files is made one: nearly every test file loads it, and 0.3 to 0.5 s of a processor are saved
 * each time. No program shares an object of it with us.
 */
const deps = {
  optimizer: { ssr: { enabled: true, include: ['typebox', 'typebox/compile', 'typebox/value'] } },
};

/** Threads and processes of system tests start from the build: see the file that takes the place of another one. */
const BUILT_FILES = fileURLToPath(new URL('test/support/built-files.ts', import.meta.url));
const builtFiles = {
  name: 'built-files',
  enforce: 'pre' as const,
  resolveId: (source: string, importer?: string) =>
    /\/own-files\.ts$/.test(source) && importer !== BUILT_FILES ? BUILT_FILES : null,
};

const UNIT = ['test/*.test.ts', 'test/unit/**/*.test.ts'];
/** Files that mock modules: other files must not see these. */
const MOCKING = readdirSync(new URL('test/unit', import.meta.url))
  .map((name) => `test/unit/${name}`)
  .filter((path) =>
    /\bvi\.(do)?mock\(/i.test(readFileSync(new URL(path, import.meta.url), 'utf8')),
  );

/** By itself Vitest leaves a processor to its main thread, which does little: of two, one would be idle. */
const maxWorkers = Math.max(2, availableParallelism() - 1);

export default defineConfig({
  test: {
    sequence: { sequencer: LongestFirst },
    projects: [
      // Two processes for hundreds of files, instead of one each: 0.4 s of a processor less a file.
      ...[
        { name: 'unit', isolate: false, include: UNIT, exclude: MOCKING },
        { name: 'unit-mocks', isolate: true, include: MOCKING },
      ].map((unit) => ({
        resolve,
        test: {
          ...unit,
          deps,
          sequence: { groupOrder: 1 },
          testTimeout: 30_000,
          maxWorkers,
          expect: { poll },
        },
      })),
      {
        resolve,
        plugins: [builtFiles],
        test: {
          name: 'system',
          deps,
          globalSetup: 'test/build-package.ts',
          sequence: { groupOrder: 2 },
          include: [
            'test/system/**/*.test.ts',
            'test/conformance/**/*.test.ts',
            'test/book/**/*.test.ts',
          ],
          testTimeout: 180_000,
          expect: { poll },
          hookTimeout: 120_000,
          // On 2 cores a third fills the time in which the others wait: for leases, evaluations, processes that start. A
          // test of standbys takes 35 s of a processor in 90 s.
          maxWorkers: Math.max(3, maxWorkers),
        },
      },
      // `npm run containers`, which brings the engine.
      ...(process.env.DOWNPOUR_CONTAINERS
        ? [{ test: { name: 'containers', include: ['test/containers/*.test.ts'] } }]
        : []),
      // `npm run kubernetes`, which brings the namespaces.
      ...(process.env.DOWNPOUR_KUBERNETES
        ? [{ test: { name: 'kubernetes', include: ['test/kubernetes/*.test.ts'] } }]
        : []),
    ],
  },
});
