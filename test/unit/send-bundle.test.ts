import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bundleExperiment } from '../../cli/bundles/send-bundle.ts';
import { readBundleHead } from '../../shared/bundle.ts';
import { hashExperiment, loadExperiment } from '../../worker/experiment.ts';

/** What `train --send` makes of an experiment, and what it does not send. That it trains: test/system/sent.test.ts. */

let folder: string;
beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), 'downpour-')));
  await write('data.json', '{"slope": 3}');
  await write('helpers/slope.ts', "import { slope } from '../data.json';\nexport { slope };");
  await pack('adds', "exports.add = (a, b) => require('node:util').types.isDate(a) || a + b;");
  await pack('beside', 'exports.at = __dirname;');
  await pack('native', "exports.run = require('./build/addon.node');");
  await write('node_modules/native/build/addon.node', 'not JavaScript');
  await pack('guesses', "const name = 'o' + 's'; exports.os = () => require(name);");
  await pack('wraps', "exports.guessed = require('guesses').os;");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function write(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, text);
  return path;
}
async function pack(name: string, code: string): Promise<void> {
  await write(`node_modules/${name}/package.json`, JSON.stringify({ name, version: '1.0.0' }));
  await write(`node_modules/${name}/index.js`, code);
}
/** What it exports is looked at in `metrics`. */
const experiment = (imports: string, value = '0') => `${imports}
export default {
  data: () => { throw new Error('not asked'); },
  model: () => { throw new Error('not asked'); },
  loss: 'meanSquaredError' as const,
  metrics: { value: () => (${value}) as never },
};`;

/** As a worker loads it, where nothing else is. @returns what its metric gives. */
async function loaded(content: Buffer, sha256: string): Promise<unknown> {
  const alone = await mkdtemp(join(tmpdir(), 'downpour-'));
  try {
    const path = join(alone, `${sha256}.mjs`);
    await writeFile(path, content);
    const { metrics } = await loadExperiment(path);
    return (metrics!.value as () => unknown)();
  } finally {
    await rm(alone, { recursive: true, force: true });
  }
}

describe('the bundle of an experiment', () => {
  test('holds its own files, what they read as JSON, and packages; and loads where none of them is', async () => {
    const file = await write(
      'whole.ts',
      experiment(
        "import { slope } from './helpers/slope.ts';\nimport { add } from 'adds';\nimport { basename } from 'node:path';",
        "[add(slope, 1), basename('a/b')]",
      ),
    );
    const bundle = await bundleExperiment(file);
    expect(bundle).toMatchObject({
      experiment: 'whole',
      experimentHash: await hashExperiment(file),
      files: ['data.json', 'helpers/slope.ts', 'whole.ts'],
      packages: ['adds'],
      outside: [],
    });
    expect(await loaded(bundle.content, bundle.sha256)).toEqual([4, 'b']);
    expect(readBundleHead(bundle.content.toString())).toEqual({
      experiment: 'whole',
      experimentHash: bundle.experimentHash,
    });
  });

  test('is the same again, and says nothing of where it was made', async () => {
    const file = await write('again.ts', experiment("import { add } from 'adds';", 'add(1, 2)'));
    const [one, two] = [await bundleExperiment(file), await bundleExperiment(file)];
    expect(one.sha256).toBe(two.sha256);
    expect(one.content.toString()).not.toContain(folder);
  });

  test('is made of CommonJS too', async () => {
    const file = await write(
      'common.js',
      "const { add } = require('adds');\nmodule.exports = { data() {}, model() {}, loss: 'meanSquaredError', metrics: { value: () => add(1, 1) } };",
    );
    const bundle = await bundleExperiment(file);
    expect(await loaded(bundle.content, bundle.sha256)).toBe(2);
  });

  test('names files of other folders, which the hash does not cover', async () => {
    await write('shared/outer.ts', 'export const outer = 7;');
    const file = await write(
      'inner/far.ts',
      experiment("import { outer } from '../shared/outer.ts';", 'outer'),
    );
    const bundle = await bundleExperiment(file);
    expect(bundle.outside).toEqual(['../shared/outer.ts']);
    expect(await loaded(bundle.content, bundle.sha256)).toBe(7);
  });

  test('of words alone says nothing of where its file lies', async () => {
    const text = '// import.meta.url, __dirname and require.resolve are not for bundles\n';
    const file = await write('words.ts', experiment(text, "'import.meta.url __dirname'"));
    const bundle = await bundleExperiment(file);
    expect(await loaded(bundle.content, bundle.sha256)).toBe('import.meta.url __dirname');
  });
});

describe('an experiment is not sent', () => {
  const refused: Record<string, [code: string, why: RegExp]> = {
    'that asks where its file lies': [
      experiment('const here = import.meta.url;', 'here'),
      /^ {2}x\d+\.ts: import\.meta \(line 1\) uses the folder of its file.*`folder` that data\(\) is given$/m,
    ],
    'that asks so by other words': [
      experiment('const { dirname } = import.meta;', 'dirname'),
      /x\d+\.ts: import\.meta \(line 1\)/,
    ],
    'that finds a module by resolving it': [
      experiment(
        "import { createRequire } from 'node:module';\ndeclare const require: never;\n",
        "require.resolve('adds')",
      ),
      /require\.resolve \(line/,
    ],
    'with a package that asks where its file lies': [
      experiment("import { at } from 'beside';", 'at'),
      /x\d+\.ts → beside: __dirname \(line 1\)/,
    ],
    'with native code': [
      experiment("import { run } from 'native';", 'run'),
      /x\d+\.ts → native: it needs addon\.node, native code/,
    ],
    'with a package that computes what it imports, and names the way to it': [
      experiment("import { guessed } from 'wraps';", 'guessed'),
      /x\d+\.ts → wraps → guesses: line 1 imports a module whose name it computes/,
    ],
    'that computes what it imports': [
      experiment("const name = './o' + 'ther.ts';", 'import(name)'),
      /x\d+\.ts: line \d+ imports a module whose name it computes/,
    ],
    'with another TensorFlow.js': [
      experiment("import * as tf from '@tensorflow/tfjs-node';", 'tf'),
      /x\d+\.ts: it imports @tensorflow\/tfjs-node, .*use the `tf` that model\(\) is given/,
    ],
    'that imports what is not there': [
      experiment("import x from 'not-there';", 'x'),
      /Could not resolve "not-there"/,
    ],
    'that does not load in another folder': [
      experiment("import { readFileSync } from 'node:fs';\nreadFileSync('./not-here.csv');"),
      /as one file in another folder it does not load: .*not-here\.csv/,
    ],
  };
  let count = 0;
  test.each(Object.entries(refused))('%s', async (_, [code, why]) => {
    const file = await write(`x${count++}.ts`, code);
    await expect(bundleExperiment(file)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringMatching(why),
    });
  });

  test('that takes files of Downpour by their path', async () => {
    const own = join(import.meta.dirname, '../../worker/experiment.ts');
    const file = await write(
      'inside.ts',
      experiment(`import { loadCsv } from '${own}';`, 'loadCsv'),
    );
    await expect(bundleExperiment(file)).rejects.toMatchObject({
      message: expect.stringMatching(/a file of Downpour itself.*import 'downpour'/),
    });
  });

  test('that begins with a file beside it', async () => {
    const code = (from: string) =>
      `export default { data: () => 0, model: () => 0, loss: 'meanSquaredError', pretrained: { from: '${from}', sha256: '' } };`;
    await expect(bundleExperiment(await write('beside.ts', code('model.json')))).rejects.toThrow(
      'the file model.json of pretrained is not sent with it: give from an absolute path',
    );
    const { files } = await bundleExperiment(await write('away.ts', code('/models/model.json')));
    expect(files).toEqual(['away.ts']);
  });

  test('that is too large', async () => {
    const table = JSON.stringify('x'.repeat(2 ** 24));
    const file = await write('large.ts', experiment(`const table = ${table};`, 'table'));
    await expect(bundleExperiment(file)).rejects.toMatchObject({ code: 'DP_FRAME_TOO_LARGE' });
  });
});
