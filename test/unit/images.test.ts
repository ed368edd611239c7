import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import jpeg from 'jpeg-js';
import { PNG } from 'pngjs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DownpourError } from '../../shared/errors.ts';
import { loadImageFolder } from '../../worker/data/images.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-images-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function put(name: string, bytes: Uint8Array): Promise<void> {
  await mkdir(dirname(join(folder, name)), { recursive: true });
  await writeFile(join(folder, name), bytes);
}

type Rgb = readonly [number, number, number];

function rgba(width: number, height: number, pixel: (x: number, y: number) => Rgb): Buffer {
  const data = Buffer.alloc(width * height * 4, 255);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) data.set(pixel(x, y), (y * width + x) * 4);
  }
  return data;
}

function png(width: number, height: number, pixel: (x: number, y: number) => Rgb): Buffer {
  const image = new PNG({ width, height });
  image.data = rgba(width, height, pixel);
  return PNG.sync.write(image);
}

function jpg(width: number, height: number, pixel: (x: number, y: number) => Rgb): Buffer {
  return jpeg.encode({ width, height, data: rgba(width, height, pixel) }, 100).data;
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
      message: expect.stringMatching(/odd\.jpg: the picture is 8×4, the first one 4×4/),
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
    await expect(loadImageFolder(folder)).rejects.toThrow(/0 folders; 2 to 256 are needed/);
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
});
