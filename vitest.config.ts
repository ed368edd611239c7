import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

// Two projects: `unit` is pure and quick, and runs before each commit; `system` starts real
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

export default defineConfig({
  test: {
    projects: [
      {
        resolve,
        test: {
          name: 'unit',
          sequence: { groupOrder: 1 },
          include: ['test/*.test.ts', 'test/unit/**/*.test.ts'],
          testTimeout: 30_000,
          expect: { poll },
        },
      },
      {
        resolve,
        test: {
          name: 'system',
          sequence: { groupOrder: 2 },
          include: [
            'test/system/**/*.test.ts',
            'test/conformance/**/*.test.ts',
            'test/book/**/*.test.ts',
          ],
          testTimeout: 180_000,
          expect: { poll },
          hookTimeout: 120_000,
          maxWorkers: 2,
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
