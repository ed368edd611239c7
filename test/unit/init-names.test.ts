import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { initCommand } from '../../cli/init/init.ts';
import { code, comment } from '../../cli/init/source.ts';
import { nameOf } from '../../worker/data/tables/cells.ts';
import { loadWritten, printedBy } from '../support/written-experiments.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-names-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const NASTY = [
  'sales#1',
  '100%',
  '50%20off',
  '50%2',
  'what?',
  'back\\slash',
  "it's",
  '"quoted"',
  `\`tick\` \${x}`,
  '*/ end',
  '// no',
  'a\nb',
  'a\u2028b',
  'cafe\u0301',
  'café',
  '中文 😀',
  '\u202eright to left',
  '__proto__',
  'constructor',
  '.hidden',
  '-dash',
  ' spaces ',
  "from './x.js'",
  'null',
  '</script>',
  '$(id)',
  'a;b',
  "'; process.exit(7); '",
  '\ufeffmark',
  '\u00a0',
  '\\',
  "\\'",
];
const anyText = fc.oneof(
  fc.constantFrom(...NASTY),
  fc.string({ unit: 'grapheme', minLength: 1, maxLength: 24 }),
  fc.string({ unit: 'binary', minLength: 1, maxLength: 12 }),
);
const fileName = anyText.filter(
  (text) => !/[/\0]/.test(text) && Buffer.byteLength(text) < 200 && text !== '.' && text !== '..',
);
/** Each once, as the reader has them. */
const header = fc.uniqueArray(
  anyText.filter((text) => nameOf(text) !== '' && !text.includes('\0')),
  { minLength: 3, maxLength: 5, selector: nameOf },
);

const cell = (text: string) => `"${text.replaceAll('"', '""')}"`;

describe('names in what init writes', () => {
  test('survive, of files, folders and columns, whatever they are: the file compiles and reads the same columns', async () => {
    const cases = fc.sample(fc.record({ inner: fileName, file: fileName, header }), {
      numRuns: 60,
      seed: 7,
    });
    cases.push(
      ...NASTY.map((name, i) => ({
        inner: name.replaceAll('/', '|'),
        file: name.replaceAll('/', '|'),
        header: [name, `b${i}`, NASTY[(i + 7) % NASTY.length]!].map((text, j) =>
          nameOf(text) === '' ? `x${j}` : text,
        ),
      })),
    );
    const written: string[] = [];
    for (const [i, { inner: any, file, header: names }] of cases.entries()) {
      // Node loads no module from a folder with a backslash.
      const inner = any.replaceAll('\\', '|');
      const home = join(folder, String(i), inner);
      await mkdir(home, { recursive: true });
      // The last but one is a category, the last is predicted.
      const rows = Array.from({ length: 12 }, (_, row) => [
        ...names.slice(2).map((_, j) => (row * (3 + j)) % 7),
        row % 3 ? 'u' : 'v',
        (row * 5) % 11,
      ]);
      const data = join(home, file);
      await writeFile(
        data,
        `${[names, ...rows.map((row) => row.map(String))].map((line) => line.map(cell).join(',')).join('\n')}\n`,
      );
      await printedBy(() =>
        initCommand(join(home, 'x.ts'), {
          data,
          target: names.at(-1)!,
          task: 'regression',
          yes: true,
          json: true,
        }),
      );
      written.push(join(home, 'x.ts'));
    }
    expect(loadWritten(written)).toEqual(
      cases.map(({ header: names }) => ({
        inputs: [
          ...names.slice(0, -2).map(nameOf),
          ...['u', 'v'].map((kind) => `${nameOf(names.at(-2)!)}=${kind}`),
        ],
        targets: names.slice(-1).map(nameOf),
        parameters: 0,
      })),
    );
  }, 60_000);

  test('of a folder that Node loads no module from are refused', async () => {
    const home = join(folder, 'back\\slash');
    await mkdir(home);
    await expect(initCommand(join(home, 'x.ts'), { data: 'mnist', yes: true })).rejects.toThrow(
      /has a backslash in its name/,
    );
  });

  test('lead to the data when the folder is reached by a link, from anywhere', async () => {
    const real = join(folder, 'real/deep');
    await mkdir(real, { recursive: true });
    await symlink(real, join(folder, 'link'));
    const data = join(folder, 'up.csv');
    await writeFile(data, 'a,b\n1,2\n5,3\n2,9\n');
    await printedBy(() => initCommand(join(folder, 'link/x.ts'), { data, yes: true, json: true }));
    expect(loadWritten([join(folder, 'link/x.ts')])).toMatchObject([
      { inputs: ['a'], targets: ['b'] },
    ]);
  });

  test('mean the same as a literal, and end no comment', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary-ascii' }).chain((a) => anyText.map((b) => a + b)),
        (text) => {
          // biome-ignore lint/security/noGlobalEval: the literal is what is tested
          expect(eval(code(text))).toBe(text);
          expect(comment(text)).not.toMatch(/\*\/|[\n\r\u2028\u2029]/);
        },
      ),
    );
    expect(code("a'b")).toBe(`"a'b"`);
    expect(code('a"b')).toBe(`'a"b'`);
  });
});
