import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { PNG } from 'pngjs';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { inspectData } from '../../cli/data/inspect.ts';

import { DownpourError } from '../../shared/errors.ts';
import type { ExampleView } from '../../shared/example-view.ts';
import { pngOf } from '../../study/figures.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { loadImageFolder } from '../../worker/data/pictures/images.ts';
import { viewerOf } from '../../worker/data/views.ts';
import { jpg, png, type Rgb, rgbaOf, withChunk } from '../support/pictures.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-images-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function put(name: string, bytes: Uint8Array): Promise<void> {
  await mkdir(dirname(join(folder, name)), { recursive: true });
  await writeFile(join(folder, name), bytes);
}

const gradient = (x: number, y: number): Rgb => [10 * x, 20 * y, 128];

describe('folders of pictures', () => {
  it('takes one class a folder, in sorted order, with rows of red, green, blue', async () => {
    await put('b/2.png', png(3, 2, gradient));
    await put(
      'b/1.jpg',
      jpg(3, 2, () => [200, 200, 200]),
    );
    await put(
      'a/x.PNG',
      png(3, 2, () => [1, 2, 3]),
    );
    await put('a/notes.txt', Buffer.from('no picture'));
    await put('a/.hidden.png', Buffer.from('no picture'));
    await put('README.md', Buffer.from('no class'));
    const data = await loadImageFolder(folder);
    expect(data.classes).toEqual(['a', 'b']);
    expect(data.classCount).toBe(2);
    const { inputs, targets } = data.train;
    expect(inputs.shape).toEqual([3, 2, 3, 3]);
    expect(Array.from(targets.values)).toEqual([0, 1, 1]);
    expect(Array.from(inputs.values.subarray(0, 6))).toEqual([1, 2, 3, 1, 2, 3]);
    for (const value of inputs.values.subarray(18, 36))
      expect(Math.abs(value - 200)).toBeLessThan(3);
    const expected = [0, 1].flatMap((y) => [0, 1, 2].flatMap((x) => gradient(x, y)));
    expect(Array.from(inputs.values.subarray(36))).toEqual(expected);
    expect(data.source).toMatch(/^3 pictures of 3×2 in 2 classes from/);
  });

  it('makes grey by luma, and keeps what is grey exactly', async () => {
    await put(
      'a/1.png',
      png(256, 1, (x) => [x, x, x]),
    );
    await put(
      'b/1.png',
      png(256, 1, () => [255, 0, 0]),
    );
    const { inputs } = (await loadImageFolder(folder, { channels: 1 })).train;
    expect(inputs.shape).toEqual([2, 1, 256, 1]);
    expect(Array.from(inputs.values.subarray(0, 256))).toEqual(
      Array.from({ length: 256 }, (_, x) => x),
    );
    expect(inputs.values[256]).toBe(Math.round(0.299 * 255));
  });

  it('names the picture of another size', async () => {
    await put('a/1.png', png(4, 4, gradient));
    await put('b/odd.jpg', jpg(8, 4, gradient));
    await expect(loadImageFolder(folder)).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringMatching(
        /odd\.jpg: the picture is 8×4, but .*1\.png is 4×4; all must have the same size: set the option `size`/,
      ),
    });
  });

  it('refuses more bytes than allowed before taking memory', async () => {
    await put('a/1.png', png(4, 4, gradient));
    await put('b/1.png', png(4, 4, gradient));
    await expect(loadImageFolder(folder, { bytesMax: 95 })).rejects.toThrow(/allowed: 95/);
    await loadImageFolder(folder, { bytesMax: 96 });
  });

  it('refuses a header that claims more than the file can hold', async () => {
    const small = png(4, 4, gradient);
    small.writeUInt32BE(7000, 16);
    small.writeUInt32BE(7000, 20);
    await put('a/huge.png', small);
    await put('b/1.png', png(4, 4, gradient));
    await expect(loadImageFolder(folder)).rejects.toThrow(/huge\.png: its header says 7000×7000/);
    small.writeUInt32BE(2 ** 31 - 1, 16);
    await put('a/huge.png', small);
    await expect(loadImageFolder(folder)).rejects.toThrow(/allowed: 1 to 50000000 pixels/);
  });

  it('says what is missing: folder, classes, pictures', async () => {
    const missing = { code: 'DP_DATA_MISSING' };
    await expect(loadImageFolder(join(folder, 'nowhere'))).rejects.toMatchObject(missing);
    await expect(loadImageFolder(folder)).rejects.toThrow(
      /it has no folder and no picture; at least 2 folders/,
    );
    await put('a/1.png', png(4, 4, gradient));
    await put('b/1.txt', Buffer.from('x'));
    await expect(loadImageFolder(folder)).rejects.toMatchObject(missing);
  });

  it('never does anything but read or refuse a file that was changed or cut', async () => {
    await put('b/1.png', png(5, 4, gradient));
    const good = [png(5, 4, gradient), jpg(5, 4, gradient)];
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...good),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.array(fc.tuple(fc.double({ min: 0, max: 0.999, noNaN: true }), fc.nat(255)), {
          maxLength: 4,
        }),
        fc.boolean(),
        async (source, length, changes, whole) => {
          const bytes = Buffer.from(source);
          for (const [at, value] of changes) bytes[Math.floor(at * bytes.length)] = value;
          await put('a/1.png', whole ? bytes : bytes.subarray(0, length * bytes.length));
          try {
            await loadImageFolder(folder);
          } catch (error) {
            if (!(error instanceof DownpourError)) throw error;
            expect(error.code).toBe('DP_DATA_CORRUPT');
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it('refuses a picture that was cut off rather than fill it with grey', async () => {
    await put('b/1.png', png(16, 16, gradient));
    for (const bytes of [png(16, 16, gradient), jpg(16, 16, gradient)]) {
      await put('a/1.png', bytes.subarray(0, bytes.length - 40));
      await expect(loadImageFolder(folder)).rejects.toMatchObject({ code: 'DP_DATA_CORRUPT' });
    }
  });

  it('lays what is transparent on white, or on the ground that is given', async () => {
    // A black drawing on a transparent ground, the pixels of which are black as well.
    await put(
      'a/1.png',
      png(4, 1, (x) => [0, 0, 0, [0, 85, 170, 255][x]!]),
    );
    await put(
      'b/1.png',
      png(4, 1, () => [1, 2, 3]),
    );
    const data = await loadImageFolder(folder, { channels: 1 });
    expect(Array.from(data.train.inputs.values.subarray(0, 4))).toEqual([255, 170, 85, 0]);
    expect(data.notes).toEqual(['1 with transparency, shown on white']);
    const background = [200, 100, 0] as const;
    const other = await loadImageFolder(folder, { background });
    expect(Array.from(other.train.inputs.values.subarray(0, 6))).toEqual([200, 100, 0, 133, 67, 0]);
    expect(other.notes).toEqual(['1 with transparency, shown on [200, 100, 0]']);
  });

  it('says of a drawing that its ground hides it, and of no other', async () => {
    await put(
      'a/white.png',
      png(2, 1, (x) => [255, 255, 255, x * 255]),
    );
    await put(
      'b/1.png',
      png(2, 1, () => [7, 7, 7, 0]),
    );
    const { notes } = await loadImageFolder(folder);
    expect(notes).toEqual([
      '2 with transparency, shown on white',
      expect.stringMatching(
        /^1 of them has only one colour on that background.*white\.png\): set `background`$/,
      ),
    ]);
    const dark = await loadImageFolder(folder, { background: [0, 0, 0] });
    expect(dark.notes).toEqual(['2 with transparency, shown on [0, 0, 0]']);
  });

  it('says how many have several frames', async () => {
    const still = png(1, 1, () => [1, 1, 1]);
    await put('a/1.png', withChunk(still, 'acTL', Buffer.from([0, 0, 0, 2, 0, 0, 0, 0])));
    await put('b/1.png', still);
    expect((await loadImageFolder(folder)).notes).toEqual([
      '1 with several frames or pages (only the first is read)',
    ]);
  });

  it('names all that are refused at once', async () => {
    await put('a/1.png', png(1, 1, gradient));
    await put('a/2.png', Buffer.alloc(0));
    await put('b/1.png', png(2, 2, gradient));
    await put('b/2.jpg', Buffer.from('<!doctype html>'));
    await expect(loadImageFolder(folder)).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringMatching(
        /2\.png: the file is empty: it has 0 bytes\. Also refused: 2 other pictures \(.*1\.png, .*2\.jpg\)/,
      ),
    });
  });

  it.each([
    [{ chanels: 1 }, /loadImageFolder: chanels is not an option; did you mean 'channels'\?/],
    [{ channels: 4 }, /channels is 4; allowed: 1, 3/],
    [{ background: [0, 0, 256] }, /background is \[0,0,256\]; allowed: red, green and blue/],
    [
      { classes: ['a', 'a'] },
      /classes is \["a","a"\]; allowed: at least two names, without repetition/,
    ],
  ])('refuses the options %j', async (options, why) => {
    await expect(loadImageFolder(folder, options as object)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringMatching(why),
    });
  });

  it.each([
    [undefined, /the path is undefined/],
    [{ test: 'x' }, /train is missing; allowed: the path of a folder/],
    [{ train: 'x', valid: 'y' }, /valid is not an option; did you mean 'validation'/],
  ])('refuses %j as a folder', async (given, why) => {
    await expect(loadImageFolder(given as never)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringMatching(why),
    });
  });

  it('says how far it is once reading takes longer than two seconds, and else nothing', async () => {
    for (let i = 0; i < 20; i++) await put(`${i % 2}/${i}.png`, png(1, 1, gradient));
    const lines: string[] = [];
    let now = 0;
    let step = 100;
    const clock = vi.spyOn(performance, 'now').mockImplementation(() => {
      now += step;
      return now;
    });
    try {
      await loadImageFolder(folder, { log: (line) => lines.push(line) });
      expect(lines).toEqual([]);
      step = 2_500;
      await loadImageFolder(folder, { log: (line) => lines.push(line) });
      expect(lines).toEqual(['9 of 20 pictures read', '20 of 20 pictures read']);
    } finally {
      clock.mockRestore();
    }
  });

  it('is shown by look as it was read, and by inspect with the names of its classes', async () => {
    await put('2/1.png', png(5, 4, gradient));
    await put(
      '10/1.png',
      png(5, 4, () => [1, 2, 3]),
    );
    await put('10/notes.txt', Buffer.from('x'));
    const { train } = await loadImageFolder(folder);
    const shown = viewerOf({ train } as PreparedData, 'train')(0);
    const drawn = PNG.sync.read(pngOf(shown as Extract<ExampleView, { kind: 'image' }>));
    expect(drawn.data).toEqual(rgbaOf(5, 4, gradient));
    const { source, columns } = await inspectData(folder);
    expect(source).toMatch(/in 2 classes from .*; skipped: 1 file that is not a picture/);
    expect(columns.at(-1)).toMatchObject({ classes: { '0 = 2': 1, '1 = 10': 1 } });
  });
});
