import { expect, test, vi } from 'vitest';
import { decodePicture } from '../../worker/data/pictures/pictures.ts';
import { jpg, png } from '../support/pictures.ts';

/** sharp is optional: without it, a picture is read as with it, or refused. */

vi.mock('sharp', () => {
  throw new Error("Cannot find package 'sharp'");
});

const read = (bytes: Buffer) => decodePicture(bytes, 'picture.jpg');

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
        `picture\\.jpg is a picture in ${format}, which the package sharp reads. It is not installed here.*Run npm install sharp.*, or convert`,
      ),
    ),
  });
});
