import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type BuildOptions, build, type Metafile, type Plugin } from 'esbuild';
import { PAGE_MODULES, twins } from '../cli/bundles/join-bundle.ts';
import { BUILT_MODEL_SCRIPT, bundleModelScript } from '../cli/bundles/model-script.ts';
import { CODE_FILE, codeHash } from '../server/fleet/code-version.ts';
import { bundleDashboard, FILES } from '../server/http/dashboard.ts';
import { ROOT } from '../shared/own-files.ts';
import { declare } from './declarations.ts';

/**
 * `npm run build [-- --without-types] [-- --to <folder>]`: makes `dist/`, which the package consists of. JavaScript in few
 * files, since Node takes longer for many; each lies directly in `dist/`, as `shared/own-files.ts` says. Declarations lie in
 * `dist/types/`, in the folders of their sources.
 */

const root = fileURLToPath(ROOT);
const { to, 'without-types': withoutTypes } = parseArgs({
  options: {
    /** Another folder of the package, which `dist/` is made in. */
    to: { type: 'string', default: root },
    'without-types': { type: 'boolean', default: false },
  },
}).values;
const DIST = join(to, 'dist');

/** By the name of the file in `dist/`. The first ones are what the package exports. */
const ENTRIES: Readonly<Record<string, string>> = {
  index: 'library/index.ts',
  client: 'shared/rest-client.ts',
  images: 'worker/images.ts',
  layers: 'worker/layers.ts',
  server: 'library/server.ts',
  text: 'worker/text.ts',
  worker: 'library/worker.ts',
  // Loaded by the command, by a thread, by a process.
  cli: 'cli/main.ts',
  engine: 'worker/engine.ts',
  fitted: 'worker/fitted.ts',
  'shard-thread': 'server/shards/thread.js',
  'checkpoint-thread': 'server/checkpoints/thread.js',
  'picture-thread': 'worker/data/pictures/thread.js',
  'read-thread': 'worker/data/reads/thread.js',
  'join-program': 'cli/bundles/join-program.js',
};

/**
 * Packages of hundreds of small files, of which a command needs most: in one file they load in a tenth of the time. No
 * program shares an object of theirs with us.
 */
const INSIDE = ['typebox'];

/** An entry of a thread or a process registers TypeScript by itself in a checkout; here there is none to read. */
const noTypeScript: Plugin = {
  name: 'no-typescript',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^tsx\/esm\/api$/ }, ({ kind }) =>
      kind === 'import-statement' ? { path: 'tsx', namespace: 'none' } : { external: true },
    );
    onLoad({ filter: /.*/, namespace: 'none' }, () => ({
      contents: 'export const register = () => {};',
    }));
  },
};

const external: Plugin = {
  name: 'external',
  setup({ onResolve }) {
    onResolve({ filter: /^[^./]/ }, ({ path, kind }) =>
      kind === 'entry-point' || INSIDE.includes(path.split('/')[0]!) ? null : { external: true },
    );
  },
};

const SHARED: BuildOptions = {
  absWorkingDir: root,
  bundle: true,
  splitting: true,
  format: 'esm',
  metafile: true,
  logLevel: 'warning',
};

await rm(DIST, { recursive: true, force: true });
await mkdir(join(DIST, 'web'), { recursive: true });
const studies = (await readdir(join(root, 'study')))
  .filter((file) => file.endsWith('.ts'))
  .map((file) => file.slice(0, -3));
const { metafile } = await build({
  ...SHARED,
  entryPoints: {
    ...ENTRIES,
    ...Object.fromEntries(studies.map((name) => [`study-${name}`, `study/${name}.ts`])),
  },
  plugins: [noTypeScript, external],
  ...{ outdir: DIST, platform: 'node', target: 'node20.11', minifySyntax: true },
  chunkNames: 'part-[hash]',
  // `node --enable-source-maps` names our files and lines. Their text would be 4 MB, half of the package.
  ...{ sourcemap: 'linked', sourcesContent: false },
});
await build({
  ...SHARED,
  entryPoints: PAGE_MODULES,
  plugins: [twins],
  ...{ outdir: join(DIST, 'page'), platform: 'browser', target: 'es2022', packages: 'external' },
});
await writeFile(join(to, BUILT_MODEL_SCRIPT), await bundleModelScript());
for (const [i, contents] of (await bundleDashboard()).entries()) {
  await writeFile(join(DIST, 'web', FILES[i]!), contents);
}
await writeFile(join(to, CODE_FILE), `${codeHash(ROOT)}\n`);
await writeFile(join(DIST, 'licences.txt'), await licencesOf(metafile!));
if (!withoutTypes) {
  const exported = ['index', 'client', 'images', 'layers', 'server', 'text', 'worker'].map(
    (name) => ENTRIES[name]!,
  );
  const sources = [...exported, ...studies.map((name) => `study/${name}.ts`)];
  const entries = sources.map((source) => source.replace(/\.ts$/, '.d.ts'));
  await declare(root, join(DIST, 'types'), entries);
}

/** The licences of the packages that are part of our files. */
async function licencesOf({ inputs }: Metafile): Promise<string> {
  const names = new Set<string>();
  for (const path of Object.keys(inputs)) {
    const [, name] = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path) ?? [];
    if (name !== undefined) names.add(name);
  }
  const texts: string[] = [];
  for (const name of [...names].sort()) {
    const folder = join(root, 'node_modules', name);
    const file = (await readdir(folder)).find((each) => /^licen[cs]e/i.test(each));
    if (file === undefined) throw new Error(`${name} has no licence that could be passed on`);
    texts.push(`${name}\n\n${await readFile(join(folder, file), 'utf8')}`);
  }
  return texts.join(`\n${'-'.repeat(80)}\n\n`);
}
