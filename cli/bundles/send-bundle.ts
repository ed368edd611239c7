import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, extname, join, relative, resolve, sep } from 'node:path';
import { bundleHead, FROM_DOWNPOUR } from '../../shared/bundle.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  experimentName,
  hashExperiment,
  loadExperiment,
  sourcesOf,
} from '../../worker/experiment.ts';
import {
  bundleModule,
  type Metafile,
  OWN_IMPORT,
  type Plugin,
  ROOT,
  transform,
} from './bundler.ts';

/**
 * Makes the bundle of an experiment for `train --send`: its own files and the packages that it imports, as one ES module
 * that loads in any folder. Downpour and TensorFlow.js stay outside, so that the engine is the worker's. What would mean
 * something else there than here is refused by name.
 */

export interface ExperimentBundle {
  readonly experiment: string;
  /** The hash of its files: workers that have them agree with those that are sent the bundle. */
  readonly experimentHash: string;
  readonly sha256: string;
  readonly content: Buffer;
  /** Paths, relative to its folder. */
  readonly files: readonly string[];
  /** Its own files that its hash does not cover, since they lie outside its folder. */
  readonly outside: readonly string[];
  /** Names of packages in it. */
  readonly packages: readonly string[];
}

/** What stands for an expression whose value would be another one in a bundle. */
const MARK = '__downpour_refused__';
const MARKED = ['import.meta', '__dirname', '__filename', 'require.resolve'] as const;
const DEFINE = Object.fromEntries(MARKED.map((expression) => [expression, MARK]));
/** What esbuild calls an import whose name is computed when it runs. */
const COMPUTED = ['unsupported-dynamic-import', 'unsupported-require-call'];
/** CommonJS packages ask for modules of Node by `require`. */
const REQUIRE = `import { createRequire as __createRequire } from 'node:module';
const require = __createRequire(import.meta.url);`;
const ADVICE =
  'change that, or copy the files of the experiment and its packages to the workers, as without --send';
const MODULES = `${sep}node_modules${sep}`;

/**
 * @throws DownpourError DP_EXPERIMENT_INVALID: it cannot be sent, and why; DP_EXPERIMENT_MISMATCH: it is being edited;
 *   DP_FRAME_TOO_LARGE.
 */
export async function bundleExperiment(file: string): Promise<ExperimentBundle> {
  const experiment = experimentName(file);
  const experimentHash = await hashExperiment(file);
  const root = await realpath(resolve(file));
  const folder = dirname(root);
  const inside = new BundleScope(folder);
  const entry = `export { default } from ${JSON.stringify(`./${basename(root)}`)};`;
  const { outputFiles, metafile, warnings } = await bundleModule(
    { name: experiment, contents: entry, folder },
    `the experiment ${file} cannot be sent`,
    {
      plugins: [inside.plugin],
      ...{ platform: 'node', target: 'node20', keepNames: true, absWorkingDir: folder },
      ...{ define: DEFINE, banner: { js: bundleHead({ experiment, experimentHash }) + REQUIRE } },
      logOverride: Object.fromEntries(COMPUTED.map((id) => [id, 'warning'] as const)),
    },
  );
  const content = Buffer.from(outputFiles![0]!.contents);
  const inputs = new BundleInputs(folder, metafile!.inputs);
  const problems = [...inside.refused];
  for (const { id, location } of warnings) {
    if (!COMPUTED.includes(id) || !location) continue;
    problems.push({
      file: resolve(folder, location.file),
      text: `line ${location.line} imports a module whose name it computes at run time, as packages with native code do: a bundle cannot contain such a module`,
    });
  }
  if (content.includes(MARK)) problems.push(...(await inputs.findPlaceDependence()));
  problems.push(...inputs.ofDownpour());
  if (problems.length > 0) {
    // One line for each package is enough.
    const lines = new Map<string, string>();
    for (const { file: where, text } of problems.toReversed()) lines.set(inputs.chain(where), text);
    const text = [...lines].map(([chain, why]) => `  ${chain}: ${why}`).join('\n');
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the experiment ${file} cannot be sent:\n${text}\n${ADVICE}`,
    );
  }
  if (content.length > LIMITS.bundleBytesMax) {
    throw new DownpourError(
      'DP_FRAME_TOO_LARGE',
      `the bundle of ${file} has ${content.length} bytes; at most ${LIMITS.bundleBytesMax} are sent: read large tables from a file in data()`,
    );
  }
  const sha256 = createHash('sha256').update(content).digest('hex');
  await mustLoad(file, `${sha256}.mjs`, content);
  if ((await hashExperiment(file)) !== experimentHash) {
    throw new DownpourError('DP_EXPERIMENT_MISMATCH', `${file} has changed meanwhile: try again`);
  }
  const covered = new Set((await sourcesOf(file)).keys());
  const own = inputs.own();
  const outside = own.filter((path) => !covered.has(path)).map((path) => inputs.nameOf(path));
  return {
    ...{ experiment, experimentHash, sha256, content, outside },
    files: own.map((path) => inputs.nameOf(path)),
    packages: inputs.packages(),
  };
}

/** As a worker does that has nothing else. @throws DownpourError DP_EXPERIMENT_INVALID. */
async function mustLoad(file: string, name: string, content: Uint8Array): Promise<void> {
  const alone = await mkdtemp(join(tmpdir(), 'downpour-send-'));
  try {
    await writeFile(join(alone, name), content);
    const { pretrained } = await loadExperiment(join(alone, name));
    if (pretrained?.from.startsWith(alone)) {
      throw new Error(
        `the file ${basename(pretrained.from)} of pretrained is not sent with it: give from an absolute path, and put the file there on each worker's machine`,
      );
    }
  } catch (cause) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the experiment ${file} cannot be sent: as one file in another folder it does not load: ${errorText(cause)}\n${ADVICE}`,
      { cause },
    );
  } finally {
    await rm(alone, { recursive: true, force: true });
  }
}

interface BundleProblem {
  /** Absolute. */
  readonly file: string;
  readonly text: string;
}

/** Says what stays outside of the bundle, and what cannot be in it. */
class BundleScope {
  readonly refused: BundleProblem[] = [];
  readonly #shipped: ReadonlySet<string>;
  readonly plugin: Plugin;

  constructor(folder: string) {
    const { dependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
      dependencies: Record<string, string>;
    };
    this.#shipped = new Set(Object.keys(dependencies).filter((name) => isTensorFlow(name)));
    this.plugin = {
      name: 'inside',
      setup: ({ onResolve }) => {
        onResolve({ filter: OWN_IMPORT }, ({ path }) => ({ path, external: true }));
        onResolve({ filter: /^(downpour|@tensorflow)\// }, ({ path, importer, resolveDir }) => {
          const isThere = path.startsWith('downpour/') || this.#shipped.has(packageOf(path));
          if (!isThere) {
            this.refused.push({
              file: importer || join(resolveDir || folder, 'entry'),
              text: `it imports ${path}, which workers need not have: use the \`tf\` that model() is given`,
            });
          }
          return { path: FROM_DOWNPOUR + path, external: true };
        });
        onResolve({ filter: /\.node$/ }, ({ path, importer }) => {
          this.refused.push({
            file: importer,
            text: `it needs ${basename(path)}, native code that runs on machines like this one alone`,
          });
          return { path, external: true };
        });
      },
    };
  }
}

const isTensorFlow = (name: string) => name.startsWith('@tensorflow/');

/** `@scope/name` or `name` of what is imported. */
function packageOf(specifier: string): string {
  const words = specifier.split(/[/\\]/);
  return words.slice(0, specifier.startsWith('@') ? 2 : 1).join('/');
}

/** The files that a bundle was made of. */
class BundleInputs {
  readonly #folder: string;
  readonly #inputs: Metafile['inputs'];
  readonly #paths: readonly string[];

  constructor(folder: string, inputs: Metafile['inputs']) {
    this.#folder = folder;
    this.#inputs = inputs;
    this.#paths = Object.keys(inputs)
      .filter((path) => !path.startsWith('entry:'))
      .map((path) => resolve(folder, path));
  }

  /** Those that belong to no package, absolute. */
  own(): string[] {
    return this.#paths.filter((path) => !path.includes(MODULES)).sort();
  }

  packages(): string[] {
    const paths = this.#paths.filter((path) => path.includes(MODULES));
    return [...new Set(paths.map((path) => this.nameOf(path)))].sort();
  }

  /** A package's name, else the path from the experiment's folder. */
  nameOf(path: string): string {
    const at = path.lastIndexOf(MODULES);
    if (at >= 0) return packageOf(path.slice(at + MODULES.length));
    return relative(this.#folder, path).split(sep).join('/');
  }

  /** From the experiment's file to this one, by what imports it: `my.ts → sharp`. */
  chain(file: string): string {
    const importers = new Map<string, string>();
    const [root] = Object.keys(this.#inputs).filter((path) => path.startsWith('entry:'));
    const waiting = [root!];
    for (let path = waiting.shift(); path !== undefined; path = waiting.shift()) {
      for (const { path: target, external } of this.#inputs[path]?.imports ?? []) {
        const at = resolve(this.#folder, target);
        if (external || importers.has(at)) continue;
        importers.set(at, path === root ? '' : resolve(this.#folder, path));
        waiting.push(target);
      }
    }
    const names: string[] = [];
    for (let at: string | undefined = file; at; at = importers.get(at)) {
      const name = this.nameOf(at);
      if (names[0] !== name) names.unshift(name);
    }
    return names.join(' → ');
  }

  /** Where expressions are whose value depends on where their file lies. */
  async findPlaceDependence(): Promise<BundleProblem[]> {
    const problems: BundleProblem[] = [];
    for (const file of this.#paths) {
      const source = await readFile(file, 'utf8');
      for (const expression of MARKED) {
        if (!source.includes(expression)) continue;
        const loader = /\.[cm]?ts$/.test(file) ? 'ts' : extname(file) === '.tsx' ? 'tsx' : 'jsx';
        const options = { loader, define: { [expression]: MARK } } as const;
        const { code } = await transform(source, options).catch(() => ({ code: '' }));
        if (!code.includes(MARK)) continue;
        const line = source.slice(0, source.indexOf(expression)).split('\n').length;
        problems.push({
          file,
          text: `${expression} (line ${line}) uses the folder of its file, and a sent experiment is a single file in another folder: read data from the \`folder\` that data() is given`,
        });
      }
    }
    return problems;
  }

  /** Downpour's own files would come twice, with another TensorFlow.js. */
  ofDownpour(): BundleProblem[] {
    const layers = [
      'dist',
      'worker',
      'shared',
      'wire',
      'files',
      'server',
      'study',
      'cli',
      'library',
    ];
    return this.#paths
      .filter((path) => layers.some((layer) => path.startsWith(join(ROOT, layer, sep))))
      .map((file) => ({
        file,
        text: `it is a file of Downpour itself, and a worker uses its own copy: import 'downpour' or 'downpour/layers'`,
      }));
  }
}
