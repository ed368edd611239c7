import { fileURLToPath } from 'node:url';
import { type BuildOptions, build, type Plugin } from 'esbuild';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { ROOT as OWN_FILES } from '../../shared/own-files.ts';

/** How experiments become files for other machines: for browsers (`join-bundle.ts`) and for workers (`send-bundle.ts`). */

export { type Metafile, type Plugin, transform } from 'esbuild';

/** The folder of Downpour. */
export const ROOT = fileURLToPath(OWN_FILES).replace(/[/\\]$/, '');

/** What experiments import as `downpour`, `downpour/images`, `downpour/layers` and `downpour/text`. */
export const OWN_IMPORT = /^downpour(\/(images|layers|text))?$/;

const ENTRY = 'downpour:entry';

/**
 * Bundles a module that is made here, with all that it imports, as ES modules.
 * @param entry its source, TypeScript, as if it lay in `folder`.
 * @param what the result is to be, for the message.
 * @throws DownpourError DP_EXPERIMENT_INVALID: what it imports is not there, or not JavaScript.
 */
export async function bundleModule(
  entry: { readonly name: string; readonly contents: string; readonly folder: string },
  what: string,
  { plugins = [], ...options }: BuildOptions,
) {
  const own: Plugin = {
    name: 'entry',
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^downpour:entry$/ }, ({ path }) => ({ path, namespace: 'entry' }));
      onLoad({ filter: /.*/, namespace: 'entry' }, () => ({
        ...{ contents: entry.contents, loader: 'ts', resolveDir: entry.folder },
      }));
    },
  };
  return build({
    ...options,
    entryPoints: { [entry.name]: ENTRY },
    plugins: [own, ...plugins],
    ...{ bundle: true, write: false, metafile: true, outdir: '/', format: 'esm' },
    logLevel: 'silent',
  }).catch((error: unknown) => {
    throw new DownpourError('DP_EXPERIMENT_INVALID', `${what}: ${errorText(error)}`);
  });
}
