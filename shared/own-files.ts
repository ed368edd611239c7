/**
 * Where Downpour's own files lie. In a checkout its modules are TypeScript; in an installed package `scripts/build.ts` has
 * made them into few files of JavaScript, all directly in `dist/`, so a module's own address says little about others.
 */

/** Whether this is the built package. */
export const IS_BUILT = !new URL(import.meta.url).pathname.endsWith('.ts');

/** The folder of Downpour, with a slash at its end. Both `shared/` and `dist/` lie in it. */
export const ROOT = new URL('../', import.meta.url);

/**
 * A module that is loaded by its address: by a thread, by a process, by an experiment.
 * @param name of its file in `dist/`, without the ending. @param source where it lies in a checkout.
 */
export const ownModule = (name: string, source: URL): URL =>
  IS_BUILT ? new URL(`dist/${name}.js`, ROOT) : source;
