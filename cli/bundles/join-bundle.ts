import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { builtinModules, createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import type { JoinPageFile } from '../../server/http/join.ts';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { JOIN_WORKER } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import { IS_BUILT } from '../../shared/own-files.ts';
import { type DataNeeds, watch } from '../../worker/browser/needs.ts';
import { dataOf as givenData } from '../../worker/data/given.ts';
import { packData } from '../../worker/data/packed.ts';
import { partsOf } from '../../worker/data/parts.ts';
import { examplesBytes, readWhole } from '../../worker/data/pieces.ts';
import {
  type Experiment,
  experimentName,
  findExperiments,
  hashExperiment,
  loadExperiment,
} from '../../worker/experiment.ts';
import { bundleModule, OWN_IMPORT, type Plugin, ROOT } from './bundler.ts';

/**
 * Makes the files that a worker in a page consists of: the worker's own code and the experiments' in one script, their
 * data as arrays, and the engines. Runs the experiments, so it runs in a process of its own: `join.ts`.
 */

export interface BundleOptions {
  /** Absolute paths of experiments, or of folders with experiments. */
  readonly paths: readonly string[];
  /** Where data lie, absolute. */
  readonly dataFolder: string;
  /** Where the files are to be. */
  readonly folder: string;
}

export interface BundleManifest {
  readonly experiments: readonly string[];
  /** The files by name. */
  readonly files: Readonly<Record<string, JoinPageFile>>;
}

interface Chosen {
  readonly name: string;
  readonly path: string;
  readonly hash: string;
  readonly experiment: Experiment;
}

const TYPES: Readonly<Record<string, string>> = {
  js: 'text/javascript; charset=utf-8',
  wasm: 'application/wasm',
  data: 'application/octet-stream',
};

/** @throws DownpourError DP_USAGE: there is none that may be sent; what loading one or its data throws. */
export async function bundle(
  options: BundleOptions,
  log: (line: string) => void,
): Promise<BundleManifest> {
  const chosen = await choose(options.paths, log);
  const files: Record<string, JoinPageFile> = {};
  const put = async (name: string, pieces: Iterable<Uint8Array>) => {
    files[name] = await write(options.folder, name, pieces);
  };
  const entries: string[] = [];
  for (const [i, { name, path, hash, experiment }] of chosen.entries()) {
    const { pieces, needs } = await dataOf(name, experiment, options.dataFolder, log);
    await put(`${name}.data`, pieces);
    const facts = JSON.stringify({ hash, data: `${name}.data`, needs });
    entries.push(
      `import e${i} from ${JSON.stringify(path)};`,
      `experiments[${JSON.stringify(name)}] = { experiment: e${i}.default ?? e${i}, ...${facts} };`,
    );
  }
  for (const [name, bytes] of await scripts(entries)) await put(name, [bytes]);
  for (const name of ['tfjs-backend-wasm.wasm', 'tfjs-backend-wasm-simd.wasm']) {
    const main = createRequire(import.meta.url).resolve('@tensorflow/tfjs-backend-wasm');
    await put(name, [await readFile(join(dirname(main), name))]);
  }
  for (const { name, path, hash } of chosen) {
    if ((await hashExperiment(path)) === hash) continue;
    throw new DownpourError('DP_EXPERIMENT_MISMATCH', `${name} has changed meanwhile: try again`);
  }
  return { experiments: chosen.map(({ name }) => name), files };
}

/** Those that say `browser: true`. One that is named itself must; others of a folder are left out. */
async function choose(paths: readonly string[], log: (line: string) => void): Promise<Chosen[]> {
  const chosen = new Map<string, Chosen>();
  for (const path of paths) {
    const found = await stat(path).catch(() => null);
    if (!found) throw new DownpourError('DP_USAGE', `--join: ${path} does not exist`);
    const candidates = found.isDirectory()
      ? [...(await findExperiments([path])).values()]
      : [{ path, hash: await hashExperiment(path) }];
    for (const candidate of candidates) {
      const name = experimentName(candidate.path);
      let experiment: Experiment;
      try {
        experiment = await loadExperiment(candidate.path);
      } catch (error) {
        if (!found.isDirectory()) throw error;
        log(`${name} is not for browsers, it cannot be loaded: ${errorText(error)}`);
        continue;
      }
      if (experiment.browser !== true) {
        if (found.isDirectory()) continue;
        throw new DownpourError(
          'DP_USAGE',
          `--join: ${path} does not let browsers train it: write browser: true into it`,
        );
      }
      if (!chosen.has(name)) chosen.set(name, { name, experiment, ...candidate });
    }
  }
  if (chosen.size === 0) {
    throw new DownpourError(
      'DP_USAGE',
      `--join: no experiment in ${paths.join(', ')} says browser: true`,
    );
  }
  return [...chosen.values()];
}

/** What `data()` gives here, with the configuration that the experiment has by itself. */
async function dataOf(
  name: string,
  experiment: Experiment,
  folder: string,
  log: (line: string) => void,
): Promise<{ readonly pieces: Uint8Array[]; readonly needs: DataNeeds }> {
  const { seed, hyperparameters } = resolveConfig(experiment.config);
  const { args, needs } = watch({ folder, seed, hyperparameters, log: () => {} });
  const given = givenData(await experiment.data(args));
  const mustFit = (bytes: number) => {
    if (bytes <= LIMITS.joinDataBytesMax) return;
    throw new DownpourError(
      'DP_USAGE',
      `--join: the data of ${name} have ${bytes} bytes; a page takes at most ${LIMITS.joinDataBytesMax}`,
    );
  };
  // A page reads no source: it gets all examples, if they are few enough.
  mustFit(partsOf(given).reduce((sum, [, examples]) => sum + examplesBytes(examples), 0));
  const data = await readWhole(given);
  const pieces = packData(data);
  const bytes = pieces.reduce((sum, { length }) => sum + length, 0);
  mustFit(bytes);
  log(`${name} may be trained by browsers: ${data.source}, ${(bytes / 1e6).toFixed(1)} MB`);
  return { pieces, needs: needs() };
}

/** The worker's script and what it loads when needed, by name. */
async function scripts(entries: readonly string[]): Promise<[string, Uint8Array][]> {
  const contents = [
    `import { begin } from ${JSON.stringify(fileOf('start'))};`,
    'const experiments = {};',
    ...entries,
    'begin(experiments);',
  ].join('\n');
  const { outputFiles = [] } = await bundleModule(
    { name: basename(JOIN_WORKER, '.js'), contents, folder: ROOT },
    'the experiments cannot be made into a page',
    {
      plugins: IS_BUILT ? [pages] : [twins, pages],
      ...{ minify: true, splitting: true, platform: 'browser', target: 'es2022' },
    },
  );
  return outputFiles.map(({ path, contents }) => [basename(path), contents]);
}

/** The parts of Downpour that a page consists of. */
export const PAGE_MODULES = {
  start: 'worker/browser/start.ts',
  /** What experiments import as `downpour`. */
  experiment: 'worker/browser/experiment.ts',
  images: 'worker/images.ts',
  layers: 'worker/layers.ts',
  text: 'worker/browser/text.ts',
} as const;

/** The built package has them in `dist/page/`, without the packages that they import. */
const fileOf = (part: keyof typeof PAGE_MODULES) =>
  IS_BUILT ? join(ROOT, 'dist', 'page', `${part}.js`) : join(ROOT, PAGE_MODULES[part]);

/**
 * How Downpour's own modules are found for a page: in `worker/` and `wire/` a module with a namesake in the folder
 * `browser` beside it is replaced by that one.
 */
export const twins: Plugin = {
  name: 'twins',
  setup({ onResolve }) {
    onResolve({ filter: /^\.{1,2}\// }, ({ path, importer, resolveDir }) => {
      if (!isOurs(importer)) return null;
      const target = resolve(resolveDir, path);
      const twin = join(dirname(target), 'browser', basename(target));
      return isOurs(target) && existsSync(twin) ? { path: twin } : null;
    });
  },
};

/**
 * How the modules of an experiment are found for a page. What it imports of Node is there, and says so when it is called:
 * `data()` may need it, and a page never calls that.
 */
const pages: Plugin = {
  name: 'pages',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: OWN_IMPORT }, ({ path }) => ({
      path: fileOf(
        path === 'downpour'
          ? 'experiment'
          : (path.slice('downpour/'.length) as 'images' | 'layers' | 'text'),
      ),
    }));
    onResolve({ filter: /^[a-z0-9:_/]+$/ }, ({ path, importer }) => {
      const isNode = path.startsWith('node:') || builtinModules.includes(path);
      const isPackage = importer.includes(`${join('/', 'node_modules', '/')}`);
      return isNode && !isOurs(importer) && !isPackage ? { path, namespace: 'node' } : null;
    });
    onLoad({ filter: /.*/, namespace: 'node' }, async ({ path }) => ({
      contents: standIn(path, Object.keys(await import(path))),
    }));
  },
};

const isOurs = (importer: string) =>
  ['worker', 'wire', 'shared'].some((layer) => importer.startsWith(join(ROOT, layer, '/')));

/** A module with these exports, each of which throws when it is called. */
function standIn(module: string, names: readonly string[]): string {
  const text = JSON.stringify(`${module} is not there in a page: use it in data() alone`);
  return [
    `const absent = () => { throw new Error(${text}); };`,
    'export default new Proxy(absent, { get: () => absent });',
    ...names.filter((name) => name !== 'default').map((name) => `export const ${name} = absent;`),
  ].join('\n');
}

/** Compressed once, for all who ask: the digits of MNIST become a fifth. */
async function write(
  folder: string,
  name: string,
  pieces: Iterable<Uint8Array>,
): Promise<JoinPageFile> {
  const path = join(folder, `${name}.gz`);
  await pipeline(Readable.from(pieces), createGzip(), createWriteStream(path));
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Uint8Array);
  const tag = `"${hash.digest('base64url').slice(0, 22)}"`;
  return { type: TYPES[name.split('.').at(-1)!]!, tag };
}
