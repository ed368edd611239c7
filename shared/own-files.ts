/**
 * Where Downpour's own files lie. In a checkout its modules are TypeScript; in an installed package `scripts/build.ts` has
 * made them into few files of JavaScript, all directly in `dist/`, so a module's own address says little about others.
 */

/** Whether this is the built package. */
export const IS_BUILT = !new URL(import.meta.url).pathname.endsWith('.ts');

/** The folder of Downpour, with a slash at its end. Both `shared/` and `dist/` lie in it. */
export const ROOT = new URL('../', import.meta.url);

/**
 * A module that is loaded by its address, by an experiment as a rule.
 * @param name of its file in `dist/`, without the ending. @param source where it lies in a checkout.
 */
export const ownModule = (name: string, source: URL): URL =>
  IS_BUILT ? new URL(`dist/${name}.js`, ROOT) : source;

/** A module that a thread or a process begins with; in system tests the one of the build, by `test/support/built-files.ts`. */
export const ownEntry: typeof ownModule = ownModule;

/** The command's program; in system tests the one of the build. */
export const OWN_COMMAND = new URL('bin/downpour.js', ROOT);
