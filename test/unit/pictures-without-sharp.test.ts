import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { readPicture } from '../../worker/data/pictures.ts';
import { jpg, png } from '../support/pictures.ts';

/** sharp is optional: without it, a picture is read as with it, or refused. */

vi.mock('sharp', () => {
  throw new Error("Cannot find package 'sharp'");
});

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-pictures-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function read(bytes: Uint8Array) {
  const path = join(folder, 'picture.jpg');
  await writeFile(path, bytes);
  return readPicture(path);
}

test('PNG and JPEG never need it', async () => {
  const picture = await read(png(2, 1, (x) => [x, 2, 3]));
  expect(Array.from(picture.rgba)).toEqual([0, 2, 3, 255, 1, 2, 3, 255]);
  expect((await read(jpg(8, 8, () => [9, 9, 9]))).rgba.slice(0, 4)).toEqual(
    new Uint8Array([9, 9, 9, 255]),
  );
});

test.each([
  ['GIF', 'GIF89a\x01\0\x01\0'],
  ['WebP', 'RIFF\x1a\0\0\0WEBPVP8L'],
  ['TIFF', 'II*\0\x08\0\0\0'],
  ['AVIF', '\0\0\0\x18ftypavif\0\0\0\0mif1miaf'],
])('%s is refused by name, with what is missing', async (format, beginning) => {
  await expect(read(Buffer.from(beginning, 'latin1'))).rejects.toMatchObject({
    code: 'DP_DATA_MISSING',
    message: expect.stringMatching(
      new RegExp(
        `picture\\.jpg is a picture in ${format}, which the package sharp reads; it is not installed here.*Run npm install sharp.*, or convert`,
      ),
    ),
  });
});
