import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  Newcomer,
  newcomerFollowsThePage,
  newcomerTrains,
  OTHER_NODES,
} from '../support/newcomer.ts';

// What somebody has who installs the package in an empty folder: nothing of this folder but the file that npm makes of it.
// In CI npm installs it from the registry, and each line of Node.js that is supported runs it. Elsewhere the packages that it
// needs are those of this folder, so that nothing is downloaded.

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const run = promisify(execFile);
const TIMEOUT = { timeout: 600_000 };
/** Programs of Node.js, one for each line. */
const NODES = [process.execPath, ...OTHER_NODES];

/** Compilers: ours, and the oldest one that is supported. */
const TYPESCRIPTS = [
  join(ROOT, 'node_modules/typescript/bin/tsc'),
  process.env.DOWNPOUR_OLD_TYPESCRIPT ?? '',
].filter((program) => program !== '');

/** @returns what it has to say against the programs of a folder. */
async function check(tsc: string, folder: string, more = {}): Promise<string> {
  const compilerOptions = {
    ...{ strict: true, module: 'nodenext', target: 'es2022', lib: ['es2023'], noEmit: true },
    ...{ types: ['node'], skipLibCheck: false, exactOptionalPropertyTypes: true },
    ...{ noUncheckedIndexedAccess: true, ...more },
  };
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions }));
  const { stdout } = await run(process.execPath, [tsc, '-p', folder], options(folder)).catch(
    (error: { stdout: string }) => error,
  );
  return stdout;
}

let home: string;
let tarball: string;
let packed: { size: number; unpackedSize: number; files: { path: string; size: number }[] };
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'downpour-package-'));
  const { stdout } = await npm(['pack', '--json', '--silent', '--pack-destination', home], ROOT);
  // What the build prints comes first.
  const [told] = JSON.parse(stdout.slice(stdout.lastIndexOf('\n[\n') + 1));
  tarball = join(home, told.filename);
  packed = told;
  await install(tarball, home);
}, TIMEOUT.timeout);
afterAll(() => rm(home, { recursive: true, force: true }));

const npm = (args: readonly string[], cwd: string) =>
  run(
    process.env.npm_execpath?.endsWith('.js') ? process.execPath : 'npm',
    [...(process.env.npm_execpath?.endsWith('.js') ? [process.env.npm_execpath] : []), ...args],
    { cwd, maxBuffer: 1e8, timeout: 300_000 },
  );

async function install(file: string, folder: string): Promise<void> {
  await writeFile(join(folder, 'package.json'), '{ "private": true, "type": "module" }\n');
  if (process.env.CI) {
    await npm(['install', '--prefer-offline', '--no-audit', '--no-fund', file], folder);
    return;
  }
  const modules = join(folder, 'node_modules');
  await mkdir(join(modules, 'downpour'), { recursive: true });
  await run('tar', ['xzf', file, '--strip-components=1', '-C', join(modules, 'downpour')]);
  const lock = JSON.parse(await readFile(join(ROOT, 'package-lock.json'), 'utf8'));
  for (const [path, { dev }] of Object.entries<{ dev?: boolean }>(lock.packages)) {
    const name = /^node_modules\/((?:@[^/]+\/)?[^/]+)$/.exec(path)?.[1];
    if (name === undefined || dev || !existsSync(join(ROOT, path))) continue;
    await mkdir(dirname(join(modules, name)), { recursive: true });
    await symlink(join(ROOT, path), join(modules, name));
  }
}

/** The programs of docs/programs.md, by their files. */
async function programs(): Promise<Map<string, string>> {
  const page = await readFile(join(ROOT, 'docs/programs.md'), 'utf8');
  const blocks = page.matchAll(/```js\n\/\/ (\S+\.mjs)\n([\s\S]*?)```/g);
  return new Map([...blocks].map(([, file, source]) => [file!, source!]));
}

const WITHOUT_OURS = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !name.startsWith('DOWNPOUR_')),
);
const options = (cwd: string) => ({
  ...{ cwd, timeout: 400_000, maxBuffer: 1e7 },
  // The engines that are installed are part of the machine, like Node itself.
  env: { ...WITHOUT_OURS, NO_COLOR: '1', DOWNPOUR_ENGINE_DIR: process.env.DOWNPOUR_ENGINE_DIR },
});

describe('the package', () => {
  test('has no tests, no benchmarks, no sources and no secrets in it', async () => {
    const folder = join(home, 'node_modules/downpour');
    const entries = (await readdir(folder)).sort();
    expect(entries).toEqual([
      ...['CHANGELOG.md', 'README.md', 'SECURITY.md', 'bin', 'dist', 'docs', 'examples'],
      'package.json',
    ]);
    const { stdout } = await run('tar', ['tzf', tarball]);
    const files = stdout.trim().split('\n');
    expect(files.filter((file) => /(test|bench)\//.test(file))).toEqual([]);
    expect(
      files.filter((file) => /(?<!\.d)\.ts$/.test(file) && !/\/examples\//.test(file)),
    ).toEqual([]);
  });

  test('has the size that docs/getting-started.md says', async () => {
    const page = await readFile(join(ROOT, 'docs/getting-started.md'), 'utf8');
    const bytesOf = (isOf: (path: string) => boolean) =>
      packed.files.reduce((sum, { path, size }) => sum + (isOf(path) ? size : 0), 0);
    const sizes = {
      'MB to download': packed.size,
      'MB on disk': packed.unpackedSize,
      'MB of JavaScript': bytesOf((path) => /^dist\/.*\.js$/.test(path)),
      'MB of source maps': bytesOf((path) => path.endsWith('.map')),
      'MB of declarations': bytesOf((path) => path.endsWith('.d.ts')),
      "MB is a copy of TensorFlow.js's": bytesOf((path) => path.startsWith('dist/types/tfjs-')),
      'MB of documentation': bytesOf((path) => /^(docs|examples)\//.test(path)),
    };
    const words = page.replaceAll('\n', ' ');
    for (const [what, bytes] of Object.entries(sizes)) {
      const megabytes = Number(
        words
          .slice(0, words.indexOf(` ${what}`))
          .split(/[ (]/)
          .at(-1),
      );
      expect(bytes / 1e6 / megabytes, `${what}: ${bytes}`).toBeGreaterThan(0.85);
      expect(bytes / 1e6 / megabytes, `${what}: ${bytes}`).toBeLessThan(1.15);
    }
  });

  test('is what publint and arethetypeswrong have nothing to say against', async () => {
    const bin = (name: string) => join(ROOT, 'node_modules/.bin', name);
    const lint = await run(bin('publint'), [tarball, '--strict'], options(home));
    expect(lint.stdout).toContain('All good');
    // CommonJS gets it by import(), and older resolutions know no exports.
    await run(bin('attw'), [tarball, '--profile', 'esm-only'], options(home));
  });

  test.each(TYPESCRIPTS)(
    'type-checks strictly, libraries too, without the DOM, with %s',
    {
      ...TIMEOUT,
    },
    async (tsc) => {
      const folder = join(home, `typed-${TYPESCRIPTS.indexOf(tsc)}`);
      await mkdir(folder);
      const names = Object.keys(
        JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')).exports,
      )
        .filter((name) => !name.endsWith('.json'))
        .map((name) => name.replace('.', 'downpour'));
      const studies = await readdir(join(ROOT, 'study'));
      const imports = names.flatMap((name) =>
        name.endsWith('*')
          ? studies.map((file) => name.replace('*', file.replace(/\.ts$/, '')))
          : [name],
      );
      expect(imports.length).toBeGreaterThan(20);
      const all = imports.map((name, i) => `export * as all${i} from '${name}';\n`);
      await writeFile(join(folder, 'all.ts'), all.join(''));
      for (const [file, source] of await programs()) {
        if (file !== 'fit.mjs') await writeFile(join(folder, file.replace('.mjs', '.ts')), source);
      }
      // As docs/programs.md says: the newest declarations of Node need a newer compiler.
      if (tsc !== TYPESCRIPTS[0] && process.env.CI) {
        await npm(['install', '--prefer-offline', '--no-save', '@types/node@20'], home);
      }
      expect(await check(tsc, folder)).toBe('');
    },
  );

  test("type-checks strictly beside TensorFlow.js's own declarations, which have errors", async () => {
    const folder = join(home, 'typed-fit');
    await mkdir(folder);
    await writeFile(join(folder, 'fit.ts'), (await programs()).get('fit.mjs')!);
    expect(await check(TYPESCRIPTS[0]!, folder, { skipLibCheck: true })).toBe('');
  });

  test('is checked by the oldest TypeScript that it says to support, in CI', async () => {
    const versions = await Promise.all(
      TYPESCRIPTS.map(async (tsc) => (await run(process.execPath, [tsc, '--version'])).stdout),
    );
    expect(versions[0]).toMatch(/^Version 7\./);
    if (process.env.CI) expect(versions.join()).toContain('Version 5.4.');
  });

  test('is tried on every line of Node.js that it says to support, in CI', async () => {
    const versions = await Promise.all(
      NODES.map(async (node) => (await run(node, ['-p', 'process.versions.node'])).stdout),
    );
    const lines = new Set(versions.map((version) => version.split('.')[0]));
    if (process.env.CI) expect([...lines]).toEqual(expect.arrayContaining(['20', '22', '24']));
    else expect(lines.size).toBeGreaterThan(0);
  });
});

describe.each(NODES)('installed, with %s', (node) => {
  let folder: string;
  beforeAll(async () => {
    folder = join(home, `project-${NODES.indexOf(node)}`);
    await mkdir(folder);
    for (const [file, source] of await programs()) await writeFile(join(folder, file), source);
  });
  const command = join('node_modules', 'downpour', 'bin', 'downpour.js');
  const downpour = (...args: string[]) =>
    run(node, [join(home, command), ...args], options(folder));

  test('a newcomer writes an experiment, trains it and exports the model', TIMEOUT, async () => {
    const cars = join(home, 'node_modules/downpour/examples/data/auto-mpg.csv');
    await downpour('init', 'cars.ts', '--data', cars, '--target', 'mpg', '--yes');
    const args = ['--epochs', '3', '--workers', '2', '--port', '0'];
    const trained = await downpour('train', 'cars.ts', ...args);
    expect(trained.stdout).toMatch(/finished: reached epochsMax 3/);
    const [, id] = /npx downpour export (\S+)/.exec(trained.stdout)!;
    const where = ['--state', '.downpour', '--to', 'exported', '--format', 'tfjs'];
    await downpour('export', id!, ...where);
    const model = JSON.parse(await readFile(join(folder, 'exported/model.json'), 'utf8'));
    expect(model.format).toBe('layers-model');
  });

  // With the Node.js that runs this, newcomer.test.ts does so in a checkout.
  if (node !== process.execPath) {
    describe('a newcomer', () => {
      let newcomer: Newcomer;
      beforeAll(async () => {
        newcomer = new Newcomer({ folder, node, program: join(home, command) });
        await downpour('init', 'digits.ts', '--data', 'mnist', '--yes');
      });
      afterAll(() => newcomer?.kill());
      newcomerTrains(() => ({ newcomer, experiment: 'digits.ts' }));
      // Once, since it takes twelve commands.
      if (node === OTHER_NODES.at(-1)) newcomerFollowsThePage(() => newcomer);
    });
  }

  test('the server has the dashboard and what browsers train with', TIMEOUT, async () => {
    const source = `
      import { spawn } from 'node:child_process';
      const args = ['serve', '--port', '0', '--json', '--join', 'joins.mjs'];
      const server = spawn(process.execPath, [${JSON.stringify(join(home, command))}, ...args]);
      server.stderr.pipe(process.stderr);
      for await (const line of server.stdout) {
        const { url } = JSON.parse(String(line));
        const sizes = [];
        for (const path of ['/', '/dashboard.js', '/dashboard.css', '/join', '/join.js', '/join/files/worker.js']) {
          const answer = await fetch(url + path);
          sizes.push([path, answer.status, (await answer.text()).length > 100]);
        }
        console.log(JSON.stringify(sizes));
        server.kill();
      }`;
    const line = await readFile(join(folder, 'line.mjs'), 'utf8');
    await writeFile(
      join(folder, 'joins.mjs'),
      line.replace("loss: '", "browser: true,\n  loss: '"),
    );
    await writeFile(join(folder, 'pages.mjs'), source);
    const { stdout } = await run(node, ['pages.mjs'], options(folder));
    const sizes: unknown[] = JSON.parse(stdout);
    expect(sizes).toHaveLength(6);
    for (const [path, ...rest] of sizes as [string, number, boolean][]) {
      expect(rest, path).toEqual([200, true]);
    }
  });

  test.each([
    ['train.mjs', /best loss \S+, ended: .*[\s\S]*kernel \[ 1, 1 \][\s\S]*Total params: 2/],
    ['fit.mjs', /validation error 0(\.[01]\d*)?\n/],
    ['cluster.mjs', /line-\w+ finished, \d+ evaluations/],
    ['app.mjs', /line-\w+ finished/],
  ])('%s of docs/programs.md runs', TIMEOUT, async (file, says) => {
    const { stdout } = await run(node, [file], options(folder));
    expect(stdout).toMatch(says);
  });
});
