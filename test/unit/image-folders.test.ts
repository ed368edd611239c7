import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, test } from 'vitest';
import { DownpourError } from '../../shared/errors.ts';
import { loadImageFolder } from '../../worker/data/pictures/images.ts';
import { dot, jpg } from '../support/pictures.ts';

/** Which files of a folder are pictures, which folders are classes and which are parts. */

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-folders-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function put(name: string, bytes: Uint8Array = dot()): Promise<void> {
  await mkdir(dirname(join(folder, name)), { recursive: true });
  await writeFile(join(folder, name), bytes);
}

const at = (name: string) => join(folder, name);
const labels = (values: ArrayLike<number>) => Array.from(values);

async function refusal(given: Parameters<typeof loadImageFolder>, code: string): Promise<string> {
  const error = await loadImageFolder(...given).then(
    () => null,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(DownpourError);
  expect((error as DownpourError).code).toBe(code);
  return (error as DownpourError).message;
}

describe('files', () => {
  it('are read by what is in them, whatever the ending of a picture is, or none', async () => {
    await put('a/1.JPG');
    await put('a/2.jfif');
    await put(
      'a/3.png',
      jpg(1, 1, () => [9, 9, 9]),
    );
    await put('a/no-ending');
    await put('b/1.jpe');
    const { train, notes } = await loadImageFolder(folder);
    expect(train.count).toBe(5);
    expect(notes).toEqual([]);
  });

  it('that are passed over are counted and named, in source and in the log', async () => {
    await put('a/1.png');
    await put('b/1.png');
    for (const name of [
      '.DS_Store',
      '__MACOSX/a/._1.png',
      'a/Thumbs.db',
      'a/.hidden.png',
      'b/desktop.ini',
    ]) {
      await put(name, Buffer.from('x'));
    }
    for (const name of ['labels.csv', 'a/notes.txt', 'a/empty', 'b/line\nbreak.txt']) {
      await put(name, Buffer.from(name === 'a/empty' ? '' : 'x'));
    }
    await put('beside.png');
    await put('a/1.png.bak');
    const lines: string[] = [];
    const { train, source, notes } = await loadImageFolder(folder, {
      log: (line) => lines.push(line),
    });
    expect(train.count).toBe(2);
    expect(notes).toEqual([
      'skipped: 5 hidden or system files (.DS_Store, __MACOSX, a/.hidden.png, a/Thumbs.db, b/desktop.ini), ' +
        '1 picture without the file extension of a picture; rename it if it is to be read (a/1.png.bak), ' +
        '4 files that are not pictures (a/empty, a/notes.txt, "b/line\\nbreak.txt", labels.csv), ' +
        '1 picture outside the class folders (beside.png)',
    ]);
    expect(source).toBe(`2 pictures of 1×1 in 2 classes from ${folder}; ${notes[0]}`);
    expect(lines).toEqual([`${folder}: ${notes[0]}`]);
  });

  it('of folders within a class are of that class, and counted', async () => {
    await put('a/1.png');
    await put('a/more/deep/2.png');
    await put('b/only/here.png');
    const { train, notes } = await loadImageFolder(folder);
    expect(labels(train.targets.values)).toEqual([0, 0, 1]);
    expect(notes).toEqual(['2 in folders inside class folders']);
  });

  it('that are pictures of a kind that is not read are refused, all by name', async () => {
    await put('a/1.png');
    await put('a/IMG_1.HEIC');
    await put('b/1.png');
    await put('b/drawing.svg');
    const message = await refusal([folder], 'DP_DATA_CORRUPT');
    expect(message).toMatch(
      /2 pictures are in a format that is not read: a\/IMG_1\.HEIC, b\/drawing\.svg\. These are read: png, .*convert.* or move them elsewhere/,
    );
  });

  it('behind links are read; links that lead back are passed over, broken ones refused', async () => {
    await put('a/1.png');
    await put('b/1.png');
    await put('apart/2.png');
    await mkdir(at('data'));
    await symlink(at('a'), at('data/a'));
    await symlink(at('b'), at('data/b'));
    await symlink(at('apart/2.png'), at('a/2.png'));
    // A circle of two folders, each of which leads to the other.
    await symlink(at('b'), at('a/to-b'));
    await symlink(at('a'), at('b/to-a'));
    const { train, notes } = await loadImageFolder(at('data'));
    expect(labels(train.targets.values)).toEqual([0, 0, 0, 1, 1, 1]);
    expect(notes).toEqual([
      '3 in folders inside class folders',
      'skipped: 2 links to a folder that contains them (a/to-b/to-a, b/to-a/to-b)',
    ]);
    await symlink(at('nowhere'), at('b/broken.png'));
    expect(await refusal([at('data')], 'DP_DATA_MISSING')).toMatch(
      /broken\.png, a link, does not exist/,
    );
  });

  it('that are none, as a pipe, are passed over instead of waited for', async () => {
    await put('a/1.png');
    await put('b/1.png');
    execFileSync('mkfifo', [at('b/pipe.png')]);
    expect((await loadImageFolder(folder)).notes).toEqual([
      'skipped: 1 device or socket (b/pipe.png)',
    ]);
  });
});

describe('classes', () => {
  it('that are numbers stand by number, others by code unit', async () => {
    for (const name of ['1', '2', '10', '9']) await put(`numbers/${name}/x.png`, dot(Number(name)));
    const numbers = await loadImageFolder(at('numbers'));
    expect(numbers.classes).toEqual(['1', '2', '9', '10']);
    expect(labels(numbers.train.targets.values)).toEqual([0, 1, 2, 3]);
    expect(Array.from({ length: 4 }, (_, i) => numbers.train.inputs.values[3 * i])).toEqual([
      1, 2, 9, 10,
    ]);
    for (const name of ['b', 'a', 'B', '10']) await put(`mixed/${name}/x.png`);
    expect((await loadImageFolder(at('mixed'))).classes).toEqual(['10', 'B', 'a', 'b']);
  });

  it('may be more than a byte can number', async () => {
    for (let i = 0; i < 300; i++) await put(`${i}/x.png`);
    const { train, classCount } = await loadImageFolder(folder);
    expect(classCount).toBe(300);
    expect(train.targets.values).toBeInstanceOf(Int32Array);
    expect(labels(train.targets.values)).toEqual(Array.from({ length: 300 }, (_, i) => i));
  });

  it('given as a list have its order, and may have no folder', async () => {
    await put('cat/1.png');
    await put('dog/1.png');
    const { train, classes, notes } = await loadImageFolder(folder, {
      classes: ['dog', 'cow', 'cat'],
    });
    expect(classes).toEqual(['dog', 'cow', 'cat']);
    expect(labels(train.targets.values)).toEqual([2, 0]);
    expect(notes).toEqual(['the train part has no picture of the class cow']);
    const message = await refusal([folder, { classes: ['cats', 'dog'] }], 'DP_DATA_MISMATCH');
    expect(message).toMatch(/\/cat: the list of classes has no 'cat'; did you mean 'cats'\?/);
  });

  it('whose folders differ only in how an accent is written are one class', async () => {
    await put('train/caf\u00e9/1.png');
    await put('train/bar/1.png');
    await put('test/cafe\u0301/1.png');
    const { classes, test: part } = await loadImageFolder(folder);
    expect(classes).toEqual(['bar', 'caf\u00e9']);
    expect(labels(part!.targets.values)).toEqual([1]);
  });

  test.each([
    [['train/1/x.png', 'train/2/x.png', 'test/01/x.png'], /are the same number; rename one/],
    [
      ['train/cat/x.png', 'train/dog/x.png', 'test/Cat/x.png'],
      /differ only in case or spaces; rename one/,
    ],
    [
      ['train/cat/x.png', 'train/dog/x.png', 'test/dog /x.png'],
      /differ only in case or spaces; rename one/,
    ],
  ])('of %j are refused: two names of one class', async (files, why) => {
    for (const file of files) await put(file);
    const message = await refusal([folder], 'DP_DATA_MISMATCH');
    expect(message).toMatch(why);
    const list = JSON.parse(/\{ classes: (.*) \}/.exec(message)![1]!) as string[];
    expect((await loadImageFolder(folder, { classes: list })).classes).toEqual(list);
  });

  it('that stand side by side may differ in capitals alone', async () => {
    for (const file of ['train/a/x.png', 'train/A/x.png', 'test/a/x.png']) await put(file);
    expect((await loadImageFolder(folder)).classes).toEqual(['A', 'a']);
  });

  test.each([
    [
      ['x.png', 'y.png'],
      /it has 2 pictures and no folder; put the pictures of each class into a folder of its own/,
    ],
    [['a/x.png'], /it has one folder, 'a': with one class there is nothing to learn/],
    [
      ['data/a/x.png', 'data/b/x.png'],
      /it has one folder, 'data', which has 2 folders; did you mean .*\/data\?/,
    ],
    [
      ['a/x.png', 'b/notes.txt'],
      /\/b cannot be read: the class has no picture; add some, or remove/,
    ],
  ])('of %j are refused with the real reason', async (files, why) => {
    for (const file of files) await put(file, file.endsWith('.txt') ? Buffer.from('x') : dot());
    expect(await refusal([folder], 'DP_DATA_MISSING')).toMatch(why);
  });

  it('are not looked for in a file', async () => {
    await put('x.png');
    expect(await refusal([at('x.png')], 'DP_DATA_MISSING')).toMatch(/it is a file; a folder/);
  });
});

describe('parts', () => {
  const name = fc
    .oneof(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 12 }), fc.nat(2000).map(String))
    .map((text) => text.normalize())
    .filter((text) => text === text.trim().toLowerCase())
    .filter(
      (text) =>
        !/[/\0]|^\.|^(icon\r|thumbs|ehthumbs|desktop|__macosx|@eadir|lost)|^0\d|train/i.test(text),
    );

  it('have one mapping of names to numbers, whatever classes each of them has', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(name, { minLength: 2, maxLength: 6 }),
        fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 6, maxLength: 6 }),
        async (names, where) => {
          const root = await mkdtemp(join(folder, 'parts-'));
          const parts: Record<string, string> = {};
          for (const [i, own] of names.entries()) {
            for (const [bit, part] of ['train', 'validation', 'test'].entries()) {
              // The first class is in the training part, so that there is one.
              if ((((where[i]! | (i === 0 ? 1 : 0)) >> bit) & 1) === 0) continue;
              parts[part] = join(root, part);
              await mkdir(join(root, part, own), { recursive: true });
              await writeFile(join(root, part, own, 'x.png'), dot(i));
            }
          }
          const data = await loadImageFolder(parts as { train: string });
          expect([...data.classes].sort()).toEqual([...names].sort());
          for (const examples of [data.train, data.validation, data.test]) {
            if (!examples) continue;
            expect(examples.targets.classes).toEqual(data.classes);
            for (let row = 0; row < examples.count; row++) {
              const label = examples.targets.values[row]!;
              expect(data.classes[label]).toBe(names[examples.inputs.values[3 * row]!]);
            }
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  test.each([
    ['train', 'val', 'test'],
    ['Training', 'validation', 'testing'],
    ['TRAIN', 'valid', 'Test'],
  ])('are %s, %s and %s by the names of the folders', async (train, validation, test) => {
    await put(`${train}/cat/1.png`, dot(1));
    await put(`${train}/dog/1.png`, dot(2));
    await put(`${validation}/dog/1.png`, dot(3));
    await put(`${test}/cat/1.png`, dot(4));
    await put('notes.txt', Buffer.from('x'));
    const data = await loadImageFolder(folder);
    expect(data.classes).toEqual(['cat', 'dog']);
    expect(
      [data.train, data.validation!, data.test!].map((part) => labels(part.targets.values)),
    ).toEqual([[0, 1], [1], [0]]);
    expect(data.test!.inputs.values[0]).toBe(4);
    expect(data.source).toMatch(
      /^4 pictures of 1×1 \(2 train, 1 validation, 1 test\) in 2 classes/,
    );
    expect(data.notes[0]).toBe('the validation part has no picture of the class cat');
  });

  test.each([
    // Names that only contain the word, one folder too deep.
    [
      [
        'training_set/training_set/a/1.png',
        'training_set/training_set/b/1.png',
        'test_set/test_set/a/1.png',
      ],
      /'test_set', 'training_set' have the names of parts, not of classes.*loadImageFolder\(\{ test: ".*test_set\/test_set", train: ".*training_set\/training_set" \}\)/,
    ],
    // Pictures without classes in one of them, as competitions have it.
    [
      ['train/a/1.png', 'train/b/1.png', 'test/1.png'],
      /'test' has pictures of its own, but a folder for each class is needed.*loadImageFolder\(\{ train: ".*\/train" \}\)/,
    ],
    [
      ['train/a/1.png', 'train/b/1.png', 'test/a/1.png', 'extra/1.png'],
      /beside them there is 'extra'/,
    ],
    [
      ['train/1.png', 'test/1.png'],
      /If they are classes, list them: \{ classes: \["test", "train"\] \}/,
    ],
    // The part within the class, or the class within the person.
    [
      ['cat/train/1.png', 'cat/test/1.png', 'dog/train/1.png', 'dog/test/1.png'],
      /'cat', 'dog' have folders with the same names \(test, train\), so either level can be the classes/,
    ],
  ])('that are not clear are refused, with the right call: %j', async (files, why) => {
    for (const file of files) await put(file);
    expect(await refusal([folder], 'DP_DATA_CORRUPT')).toMatch(why);
  });

  it('are classes where the list of classes says so', async () => {
    for (const file of ['cat/in/1.png', 'cat/out/1.png', 'dog/in/1.png', 'dog/out/1.png'])
      await put(file);
    const { train } = await loadImageFolder(folder, { classes: ['cat', 'dog'] });
    expect(labels(train.targets.values)).toEqual([0, 0, 1, 1]);
  });

  it('cannot be one folder twice', async () => {
    await put('a/1.png');
    await put('b/1.png');
    await symlink(folder, at('again'));
    expect(await refusal([{ train: folder, test: at('again') }], 'DP_EXPERIMENT_INVALID')).toMatch(
      /train and test are the same folder/,
    );
  });

  it('must have one size', async () => {
    await put('train/a/1.png');
    await put('train/b/1.png');
    await put(
      'test/a/1.png',
      jpg(8, 8, () => [0, 0, 0]),
    );
    expect(await refusal([folder], 'DP_DATA_CORRUPT')).toMatch(
      /test\/a\/1\.png: the picture is 8×8, but .*train\/a\/1\.png is 1×1/,
    );
  });
});
