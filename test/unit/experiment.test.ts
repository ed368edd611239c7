import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  experimentName,
  findExperiments,
  hashExperiment,
  loadExperiment,
  mustBeExperiment,
} from '../../worker/experiment.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-experiment-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function write(name: string, text: string, within = folder): Promise<string> {
  const path = join(within, name);
  await mkdir(join(path, '..'), { recursive: true });
  await writeFile(path, text);
  return path;
}

const valid = () => ({ data: () => ({}), model: () => ({}), loss: 'meanSquaredError' });

describe('an experiment', () => {
  test.each<[string, unknown, RegExp]>([
    ['no default export', undefined, /no experiment as its default export/],
    ['a missing loss', { ...valid(), loss: undefined }, /loss is undefined; allowed: a function/],
    [
      'a missing model',
      { data: () => ({}), loss: 'meanSquaredError' },
      /model is missing; allowed/,
    ],
    ['an unknown loss', { ...valid(), loss: 'mse' }, /loss is "mse"; allowed: .*meanSquaredError/],
    [
      'a mistyped field',
      { ...valid(), metric: {} },
      /metric is not a field; did you mean 'metrics'/,
    ],
    ['a name', { ...valid(), name: 'x' }, /named by its file/],
    ['metrics that are no functions', { ...valid(), metrics: { a: 1 } }, /metrics is .*allowed/],
    ['a standardisation that is not known', { ...valid(), standardise: 'pixel' }, /standardise is/],
    [
      'an error that is not known',
      { ...valid(), error: 'accuracy' },
      /error is "accuracy"; allowed/,
    ],
  ])('is refused for %s, naming it', (_, value, message) => {
    expect(() => mustBeExperiment(value, 'x.ts')).toThrow(message);
  });

  test('is taken when each field is right', () => {
    const experiment = {
      ...valid(),
      error: 'loss',
      standardise: 'global',
      metrics: {},
      config: {},
    };
    expect(mustBeExperiment(experiment, 'x.ts')).toBe(experiment);
  });

  test('is loaded from a plain object in any folder', async () => {
    const path = await write(
      'plain.mjs',
      "export default { data() {}, model() {}, loss: 'meanSquaredError' };",
    );
    expect((await loadExperiment(path)).loss).toBe('meanSquaredError');
  });

  test('is loaded anew from a mounted folder that has changed by a moved link', async () => {
    for (const version of [1, 2]) {
      const share = `export const share = ${version / 10};`;
      await write(`v${version}/share.mjs`, share);
      const text = "import { share } from './share.mjs';\nexport default { data() {}, model() {}, ";
      await write(
        `v${version}/mine.mjs`,
        `${text}loss: 'meanSquaredError', labelSmoothing: share };`,
      );
    }
    const seen: unknown[] = [];
    for (const version of ['v1', 'v2']) {
      await symlink(version, join(folder, 'next'));
      await rename(join(folder, 'next'), join(folder, 'mounted'));
      seen.push((await loadExperiment(join(folder, 'mounted/mine.mjs'))).labelSmoothing);
    }
    expect(seen).toEqual([0.1, 0.2]);
  });

  test('that throws, or is not there, is told with its file', async () => {
    const path = await write('broken.mjs', "throw new Error('no luck');");
    await expect(loadExperiment(path)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringContaining('no luck'),
    });
    await expect(loadExperiment(join(folder, 'none.ts'))).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_UNKNOWN',
    });
  });

  test('is named by its file, when that can be a name', () => {
    expect(experimentName('/a/b/mnist-mlp.ts')).toBe('mnist-mlp');
    expect(() => experimentName('/a/My Model.ts')).toThrow(/rename it/);
  });
});

const SOURCE = "import { a } from './lib/a.ts';\nexport default a;\n";

describe('the hash of an experiment', () => {
  test('is the same in another folder and with other line ends', async () => {
    const one = await write('e.ts', SOURCE);
    await write('lib/a.ts', 'export const a = 1;\n');
    const other = join(folder, 'elsewhere');
    const two = await write('e.ts', SOURCE.replaceAll('\n', '\r\n'), other);
    await write('lib/a.ts', 'export const a = 1;\r\n', other);
    expect(await hashExperiment(two)).toBe(await hashExperiment(one));
  });

  test('changes with the file, with what it imports, and with what that imports', async () => {
    const path = await write('e.ts', SOURCE);
    await write('lib/a.ts', "export * from '../b';\n");
    await write('b.ts', "export const a = await import('./c.js');\n");
    await write('c.ts', 'export const c = 1;\n');
    const hashes = [await hashExperiment(path)];
    await write('c.ts', 'export const c = 2;\n');
    hashes.push(await hashExperiment(path));
    await write('b.ts', "export const a = (await import('./c.js')).c;\n");
    hashes.push(await hashExperiment(path));
    await write('e.ts', `${SOURCE}// more\n`);
    hashes.push(await hashExperiment(path));
    expect(new Set(hashes).size).toBe(4);
  });

  test('does not depend on files that are not imported, on packages, or on what lies outside', async () => {
    const experiments = join(folder, 'experiments');
    const path = await write(
      'e.ts',
      "import 'downpour';\nimport '../outside.ts';\nimport './node_modules/p/i.js';\nexport default 1;\n",
      experiments,
    );
    const before = await hashExperiment(path);
    await write('outside.ts', 'export {};');
    await write('node_modules/p/i.js', '1', experiments);
    await write('other.ts', '2', experiments);
    expect(await hashExperiment(path)).toBe(before);
  });

  test('ends when files import each other', async () => {
    const path = await write('e.ts', "import './f.ts';\nexport default 1;\n");
    await write('f.ts', "import './e.ts';\n");
    expect(await hashExperiment(path)).toMatch(/^[0-9a-f]{64}$/);
  });
});

describe('looking for experiments', () => {
  test('finds those of every folder by name, the first folder first', async () => {
    const second = join(folder, 'second');
    const mine = await write('mine.ts', 'export default 1;');
    await write('both.ts', 'export default 1;');
    await write('both.ts', 'export default 2;', second);
    await write('theirs.mjs', 'export default 3;', second);
    const found = await findExperiments([folder, second, join(folder, 'missing')]);
    expect([...found.keys()].sort()).toEqual(['both', 'mine', 'theirs']);
    expect(found.get('mine')!.path).toBe(mine);
    expect(found.get('both')!.path).toBe(join(folder, 'both.ts'));
  });

  test('leaves out what cannot be one', async () => {
    await write('helpers.ts', 'export const x = 1;');
    await write('Capital.ts', 'export default 1;');
    await write('types.d.ts', 'export default 1;');
    await write('data.csv', 'export default');
    expect((await findExperiments([folder])).size).toBe(0);
  });
});
