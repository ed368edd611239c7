import { deflateSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DownpourError } from '../../shared/errors.ts';
import { interpolate } from '../../worker/data/pictures/jpeg-colours.ts';
import { decodePicture, type Picture } from '../../worker/data/pictures/pictures.ts';
import {
  crc32,
  exifOf,
  jpg,
  png,
  type Rgb,
  rgbaOf,
  withChunk,
  withoutSegments,
  withSegment,
} from '../support/pictures.ts';

/** A file of a picture becomes what a viewer shows. The right values are Pillow's and a browser's, if no other reason stands there. */

const read = (bytes: Uint8Array, name = 'picture'): Promise<Picture> =>
  decodePicture(Buffer.from(bytes), name);

/** Red, green, blue, how opaque. */
const at = ({ rgba, width }: Picture, x: number, y: number): number[] => [
  ...rgba.subarray(4 * (y * width + x), 4 * (y * width + x) + 4),
];

function mustBeNear(seen: readonly number[], right: readonly number[], tolerance: number): void {
  for (const [c, value] of right.entries()) {
    expect(Math.abs(seen[c]! - value), `${seen} instead of ${right}`).toBeLessThanOrEqual(
      tolerance,
    );
  }
}

/** JPEG rounds each step; flat pictures come back within this at quality 100. */
const JPEG_TOLERANCE = 3;
const RED: Rgb = [200, 40, 40];

async function importSharp() {
  const found = await import('sharp').catch(() => null);
  if (!found && process.env.CI) throw new Error('sharp is missing: npm ci installs it');
  return found?.default ?? null;
}
const sharp = await importSharp();

describe('orientation', () => {
  type Grid = readonly (readonly number[])[];
  const flip = (grid: Grid): Grid => grid.map((row) => [...row].reverse());
  const transpose = (grid: Grid): Grid => grid[0]!.map((_, x) => grid.map((row) => row[x]!));
  const clockwise = (grid: Grid): Grid => flip(transpose(grid));
  const half = (grid: Grid): Grid => clockwise(clockwise(grid));
  /** How what is to be seen was stored, by Exif's table of where its first row and column lie. */
  const stored: Readonly<Record<number, (seen: Grid) => Grid>> = {
    1: (seen) => seen,
    2: flip,
    3: half,
    4: (seen) => flip(half(seen)),
    5: transpose,
    // To be turned clockwise, so it was turned the other way; and so on.
    6: (seen) => half(clockwise(seen)),
    7: (seen) => half(transpose(seen)),
    8: clockwise,
  };
  const grids = fc
    .tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 6 }))
    .chain(([width, height]) => {
      const row = fc.array(fc.nat(255), { minLength: width, maxLength: width });
      return fc.array(row, { minLength: height, maxLength: height });
    });

  test('of all eight, one picture comes out', async () => {
    await fc.assert(
      fc.asyncProperty(
        grids,
        fc.constantFrom('II' as const, 'MM' as const),
        async (seen, order) => {
          for (const [orientation, storedAs] of Object.entries(stored)) {
            const grid = storedAs(seen);
            const file = png(grid[0]!.length, grid.length, (x, y) => [grid[y]![x]!, 7, 9]);
            const exif = exifOf(Number(orientation), order);
            const picture = await read(withChunk(file, 'eXIf', exif));
            const rows = seen.map((_, y) => seen[0]!.map((_, x) => at(picture, x, y)[0]!));
            expect(rows).toEqual(seen);
            expect(at(picture, 0, 0).slice(1)).toEqual([7, 9, 255]);
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  test('of a JPEG is that of its Exif block', async () => {
    // Stored: dark on the left. Turned clockwise (6): dark above.
    const file = jpg(16, 8, (x) => (x < 8 ? [20, 20, 20] : [220, 220, 220]));
    const turned = await read(
      withSegment(file, 0xe1, Buffer.concat([Buffer.from('Exif\0\0'), exifOf(6, 'II')])),
    );
    expect([turned.width, turned.height]).toEqual([8, 16]);
    mustBeNear(at(turned, 0, 0), [20, 20, 20], JPEG_TOLERANCE);
    mustBeNear(at(turned, 7, 15), [220, 220, 220], JPEG_TOLERANCE);
    // Another kind of block at the same marker says nothing.
    const other = await read(
      withSegment(file, 0xe1, Buffer.from('http://ns.adobe.com/xap/1.0/\0')),
    );
    expect([other.width, other.height]).toEqual([16, 8]);
  });

  test('that is damaged or out of range turns nothing, and never fails', async () => {
    const file = png(3, 2, (x, y) => [x, y, 0]);
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          fc.uint8Array({ maxLength: 40 }),
          fc.constantFrom(0, 9, 65_535).map((value) => exifOf(value)),
          fc.nat(25).map((length) => exifOf(6).subarray(0, length)),
        ),
        async (block) => {
          const { width, height } = await read(withChunk(file, 'eXIf', Buffer.from(block)));
          expect([width, height].sort()).toEqual([2, 3]);
        },
      ),
      { numRuns: 100 },
    );
    expect((await read(withChunk(file, 'eXIf', exifOf(9)))).width).toBe(3);
  });
});

describe('JPEG by its markers', () => {
  const flat = jpg(8, 8, () => RED);
  // Y, Cb and Cr of that red by ITU-R BT.601: what the three components hold.
  const components = [88, 101, 208];
  const bare = withoutSegments(flat, 0xe0);
  const adobe = (transform: number) =>
    Buffer.concat([Buffer.from('Adobe'), Buffer.from([0, 100, 0, 0, 0, 0, transform])]);
  const named = (file: Buffer, ids: string): Buffer => {
    const copy = Buffer.from(file);
    for (const marker of [0xc0, 0xda]) {
      const start = copy.indexOf(Buffer.from([0xff, marker]));
      const [first, step] = marker === 0xc0 ? [start + 10, 3] : [start + 5, 2];
      for (let c = 0; c < 3; c++) copy[first + step * c] = ids.charCodeAt(c);
    }
    return copy;
  };

  test.each([
    ['JFIF', flat, RED],
    ['no marker', bare, RED],
    ["Adobe's for YCbCr", withSegment(bare, 0xee, adobe(1)), RED],
    ["Adobe's for RGB", withSegment(bare, 0xee, adobe(0)), components],
    ['the names R, G, B', named(bare, 'RGB'), components],
    // As libjpeg decides it, and so every viewer.
    ["JFIF, whatever Adobe's says", withSegment(flat, 0xee, adobe(0)), RED],
    ["Adobe's for YCbCr, whatever the names", withSegment(named(bare, 'RGB'), 0xee, adobe(1)), RED],
  ])('three components with %s', async (_, file, right) => {
    mustBeNear(at(await read(file), 4, 4), [...right, 255], JPEG_TOLERANCE);
  });

  // 16×8 by Pillow: left (200, 40, 40), right (30, 60, 180), as CMYK.
  const cmyk = Buffer.from(
    '/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJCAYHCQcGBggLCAkKCgoKCgYICwwLCgwJCgoK/8AAFAgACAAQBEMRAE0RAFkRAEsRAP/EABcAAQEBAQAAAAAAAAAAAAAAAAkKAAf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oADgRDAE0AWQBLAAA/AEgE+J8/iVd1BRgz/9k=',
    'base64',
  );
  const ycck = Buffer.from(cmyk);
  ycck[ycck.indexOf('Adobe') + 11] = 2;

  test.each([
    ["Adobe's for CMYK", cmyk, RED, [30, 60, 180]],
    // The same numbers as Y, Cb, Cr of what is left out of the ink: 255 − (200 + 1.402 · (40 − 128)), …
    ["Adobe's for YCCK", ycck, [178, 0, 211], [152, 239, 255]],
    ['no marker', withoutSegments(cmyk, 0xee), RED, [30, 60, 180]],
  ])('four components with %s', async (_, file, left, right) => {
    const picture = await read(file);
    mustBeNear(at(picture, 0, 0), left, JPEG_TOLERANCE);
    mustBeNear(at(picture, 15, 7), right, JPEG_TOLERANCE);
  });

  const changed = (change: (file: Buffer, frame: number) => void): Buffer => {
    const copy = Buffer.from(flat);
    change(copy, copy.indexOf(Buffer.from([0xff, 0xc0])));
    return copy;
  };

  test.each([
    [
      '12 bits a sample',
      changed((file, frame) => file.writeUInt8(12, frame + 4)),
      /12 bits a sample; 8 are read/,
    ],
    ['lossless', changed((file, frame) => file.writeUInt8(0xc3, frame + 1)), /a lossless JPEG/],
    [
      'arithmetic coding',
      changed((file, frame) => file.writeUInt8(0xc9, frame + 1)),
      /arithmetic coding/,
    ],
    [
      'two components',
      changed((file, frame) => file.writeUInt8(2, frame + 9)),
      /of 2 components; 1, 3 and 4 are read/,
    ],
  ])('refuses %s by name', async (_, file, why) => {
    await expect(read(file, 'odd.jpg')).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringMatching(why),
    });
    await expect(read(file, 'odd.jpg')).rejects.toThrow(/odd\.jpg: .*convert it to PNG/);
  });
});

describe('chrominance that several pixels share', () => {
  /** The first row of a component that was stored once for two pixels across and `down` rows. */
  const rowsOf = (samples: readonly (readonly number[])[], width: number, down: number) => {
    const rgba = rgbaOf(width, samples.length * down, (x, y) => [
      0,
      samples[Math.floor(y / down)]![x >> 1]!,
      0,
    ]);
    interpolate(rgba, width, samples.length * down, 1, [2, down]);
    return samples.flatMap((_, y) =>
      Array.from({ length: down }, (_, d) =>
        Array.from({ length: width }, (_, x) => rgba[4 * ((y * down + d) * width + x) + 1]!),
      ),
    );
  };

  test('is interpolated as libjpeg does it, three parts of the near sample and one of the far one', () => {
    // (3 · 0 + 40 + 2) / 4, (3 · 40 + 0 + 1) / 4, …; at the borders the sample itself.
    expect(rowsOf([[0, 40, 80]], 6, 1)).toEqual([[0, 10, 30, 50, 70, 80]]);
    expect(rowsOf([[0, 40, 80]], 5, 1)).toEqual([[0, 10, 30, 50, 70]]);
    // Two columns are repeated.
    expect(rowsOf([[0, 40]], 4, 1)).toEqual([[0, 0, 40, 40]]);
    const square = rowsOf(
      [
        [0, 0, 0],
        [160, 160, 160],
      ],
      6,
      2,
    );
    expect(square.map((row) => row[2])).toEqual([0, 40, 120, 160]);
  });

  test.skipIf(sharp === null)('gives what libjpeg gives of any picture', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 40 }),
        fc.constantFrom('4:2:0', '4:4:4'),
        fc.boolean(),
        fc.uint8Array({ minLength: 48, maxLength: 48 }),
        async (width, height, chromaSubsampling, progressive, noise) => {
          const small = sharp!(noise, { raw: { width: 4, height: 4, channels: 3 } });
          const file = await small
            .resize(width, height, { fit: 'fill' })
            .jpeg({ quality: 90, chromaSubsampling, progressive })
            .toBuffer();
          const right = await sharp!(file).ensureAlpha().raw().toBuffer();
          const { rgba } = await read(file);
          let sum = 0;
          for (let i = 0; i < right.length; i++) {
            const off = Math.abs(rgba[i]! - right[i]!);
            // Two ways to round a cosine transform, then 1.772 of one of them.
            expect(off).toBeLessThanOrEqual(4);
            sum += off;
          }
          // The mean over a few pixels can be anything up to that.
          if (width * height >= 64) expect(sum / right.length).toBeLessThan(0.5);
        },
      ),
      { numRuns: 40 },
    );
  });
});

/** A PNG of any kind from its rows, without filters. */
function rawPng(
  [width, height]: readonly [number, number],
  [depth, colourType, interlace = 0]: readonly number[],
  rows: readonly (readonly number[])[],
  chunks: readonly (readonly [string, readonly number[]])[] = [],
): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([depth!, colourType!, 0, 0, interlace], 8);
  const all: [string, Buffer][] = [
    ['IHDR', header],
    ...chunks.map(([kind, content]): [string, Buffer] => [kind, Buffer.from(content)]),
    ['IDAT', deflateSync(Buffer.from(rows.flatMap((row) => [0, ...row])))],
    ['IEND', Buffer.alloc(0)],
  ];
  const parts = all.map(([kind, content]) => {
    const body = Buffer.concat([Buffer.from(kind), content]);
    const part = Buffer.alloc(body.length + 8);
    part.writeUInt32BE(content.length, 0);
    body.copy(part, 4);
    part.writeUInt32BE(crc32(body), body.length + 4);
    return part;
  });
  return Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), ...parts]);
}

describe('PNG of every kind', () => {
  const [GREY, RGB, PALETTE, GREY_ALPHA, RGBA] = [0, 2, 3, 4, 6];
  const colours = ['PLTE', [10, 20, 30, 40, 50, 60, 70, 80, 90]] as const;

  test.each([
    ['1 bit grey', rawPng([2, 1], [1, GREY], [[0b01000000]]), [0, 0, 0, 255], [255, 255, 255, 255]],
    [
      '2 bits grey',
      rawPng([2, 1], [2, GREY], [[0b01100000]]),
      [85, 85, 85, 255],
      [170, 170, 170, 255],
    ],
    ['4 bits grey', rawPng([2, 1], [4, GREY], [[0x1f]]), [17, 17, 17, 255], [255, 255, 255, 255]],
    ['8 bits grey', rawPng([2, 1], [8, GREY], [[3, 250]]), [3, 3, 3, 255], [250, 250, 250, 255]],
    [
      '16 bits grey',
      rawPng([2, 1], [16, GREY], [[0x12, 0x12, 0xff, 0xff]]),
      [18, 18, 18, 255],
      [255, 255, 255, 255],
    ],
    [
      '16 bits colour',
      rawPng([2, 1], [16, RGB], [[1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]]),
      [1, 2, 3, 255],
      [4, 5, 6, 255],
    ],
    [
      'grey and opacity',
      rawPng([2, 1], [8, GREY_ALPHA], [[9, 128, 200, 0]]),
      [9, 9, 9, 128],
      [200, 200, 200, 0],
    ],
    [
      '16 bits and opacity',
      rawPng(
        [1, 2],
        [16, RGBA],
        [
          [1, 1, 2, 2, 3, 3, 128, 128],
          [9, 9, 9, 9, 9, 9, 0, 0],
        ],
      ),
      [1, 2, 3, 128],
      [9, 9, 9, 0],
    ],
    [
      'a palette',
      rawPng([2, 1], [8, PALETTE], [[2, 0]], [colours]),
      [70, 80, 90, 255],
      [10, 20, 30, 255],
    ],
    [
      'a palette of 2 bits',
      rawPng([2, 1], [2, PALETTE], [[0b10010000]], [colours]),
      [70, 80, 90, 255],
      [40, 50, 60, 255],
    ],
    [
      'a palette with opacities',
      rawPng([2, 1], [8, PALETTE], [[1, 2]], [colours, ['tRNS', [255, 64]]]),
      [40, 50, 60, 64],
      [70, 80, 90, 255],
    ],
    // The colour named there is transparent; only then does its value not matter.
    [
      'a transparent grey',
      rawPng([2, 1], [8, GREY], [[3, 4]], [['tRNS', [0, 3]]]),
      [0, 0, 0, 0],
      [4, 4, 4, 255],
    ],
    [
      'gamma, which is not applied',
      rawPng([2, 1], [8, GREY], [[100, 200]], [['gAMA', [0, 1, 0x86, 0xa0]]]),
      [100, 100, 100, 255],
      [200, 200, 200, 255],
    ],
  ])('%s', async (_, file, first, last) => {
    const picture = await read(file);
    expect(at(picture, 0, 0)).toEqual(first);
    expect(at(picture, picture.width - 1, picture.height - 1)).toEqual(last);
  });

  test('interlaced, in seven passes of which three have pixels here', async () => {
    // 2×2: pass 1 has (0, 0), pass 6 (1, 0), pass 7 the second row.
    const file = rawPng([2, 2], [8, GREY, 1], [[1], [2], [3, 4]]);
    const picture = await read(file);
    expect([0, 1, 2, 3].map((i) => picture.rgba[4 * i])).toEqual([1, 2, 3, 4]);
  });

  test('an animated one is its first picture, and says how many frames there are', async () => {
    const file = withChunk(
      png(1, 1, () => [5, 6, 7]),
      'acTL',
      Buffer.from([0, 0, 0, 3, 0, 0, 0, 0]),
    );
    const picture = await read(file);
    expect(at(picture, 0, 0)).toEqual([5, 6, 7, 255]);
    expect(picture.frames).toBe(3);
  });

  test('an interlaced one that unpacks to more than its size is refused before it has the memory', async () => {
    const rows = Array.from({ length: 4 }, () => new Array(1_000).fill(0));
    const file = rawPng([2, 2], [8, GREY, 1], rows);
    await expect(read(file)).rejects.toMatchObject({ code: 'DP_DATA_CORRUPT' });
  });
});

describe('BMP', () => {
  /** Version 3 of Windows, or with masks version 4. */
  function bmp(
    [width, height]: readonly [number, number],
    bits: number,
    rows: readonly (readonly number[])[],
    { palette = [], masks }: { palette?: readonly number[]; masks?: readonly number[] } = {},
  ): Buffer {
    const size = masks ? 108 : 40;
    const header = Buffer.alloc(14 + size);
    header.write('BM', 'latin1');
    header.writeUInt32LE(header.length + palette.length, 10);
    header.writeUInt32LE(size, 14);
    header.writeInt32LE(width, 18);
    header.writeInt32LE(height, 22);
    header.writeUInt16LE(1, 26);
    header.writeUInt16LE(bits, 28);
    header.writeUInt32LE(masks ? 3 : 0, 30);
    header.writeUInt32LE(palette.length / 4, 46);
    for (const [i, mask] of (masks ?? []).entries()) header.writeUInt32LE(mask, 54 + 4 * i);
    return Buffer.concat([header, Buffer.from(palette), ...rows.map((row) => Buffer.from(row))]);
  }
  const palette = [30, 20, 10, 0, 60, 50, 40, 0];

  test.each([
    [
      '24 bits, the last row first',
      bmp([1, 2], 24, [
        [9, 8, 7, 0],
        [3, 2, 1, 0],
      ]),
      [1, 2, 3, 255],
      [7, 8, 9, 255],
    ],
    [
      '24 bits, the first row first',
      bmp([1, -2], 24, [
        [9, 8, 7, 0],
        [3, 2, 1, 0],
      ]),
      [7, 8, 9, 255],
      [1, 2, 3, 255],
    ],
    ['8 bits', bmp([2, 1], 8, [[1, 0, 0, 0]], { palette }), [40, 50, 60, 255], [10, 20, 30, 255]],
    [
      '4 bits',
      bmp([2, 1], 4, [[0x10, 0, 0, 0]], { palette }),
      [40, 50, 60, 255],
      [10, 20, 30, 255],
    ],
    [
      '1 bit',
      bmp([2, 1], 1, [[0b01000000, 0, 0, 0]], { palette }),
      [10, 20, 30, 255],
      [40, 50, 60, 255],
    ],
    ['16 bits', bmp([2, 1], 16, [[0x00, 0x7c, 0x1f, 0x00]]), [255, 0, 0, 255], [0, 0, 255, 255]],
    [
      '32 bits, the fourth byte unused',
      bmp([1, 1], 32, [[3, 2, 1, 77]]),
      [1, 2, 3, 255],
      [1, 2, 3, 255],
    ],
    [
      'masks with opacity',
      bmp([2, 1], 32, [[1, 2, 3, 0, 1, 2, 3, 99]], { masks: [0xff, 0xff00, 0xff0000, 0xff000000] }),
      [1, 2, 3, 0],
      [1, 2, 3, 99],
    ],
    [
      'masks of an opacity that is 0 throughout',
      bmp([2, 1], 32, [[1, 2, 3, 0, 4, 5, 6, 0]], { masks: [0xff, 0xff00, 0xff0000, 0xff000000] }),
      [1, 2, 3, 255],
      [4, 5, 6, 255],
    ],
  ])('%s', async (_, file, first, last) => {
    const picture = await read(file);
    expect(at(picture, 0, 0)).toEqual(first);
    expect(at(picture, picture.width - 1, picture.height - 1)).toEqual(last);
  });

  test('refuses run lengths, a colour beyond the palette and a file that is cut', async () => {
    const packed = bmp([2, 1], 8, [[1, 0, 0, 0]], { palette });
    packed.writeUInt32LE(1, 30);
    await expect(read(packed)).rejects.toThrow(/run-length compression/);
    await expect(read(bmp([1, 1], 8, [[2, 0, 0, 0]], { palette }))).rejects.toThrow(
      /colour 2 of a palette of 2/,
    );
    const whole = bmp([4, 4], 24, [[...new Array(48).fill(1)]]);
    await expect(read(whole.subarray(0, -1))).rejects.toThrow(/more than 101 bytes can hold/);
  });
});

describe.skipIf(sharp === null)('formats that sharp reads', () => {
  const gradient = (x: number, y: number): Rgb => [20 * x, 30 * y, 128];
  const pixels = rgbaOf(6, 4, (x, y) => [...gradient(x, y), x === 0 ? 0 : 255]);
  const source = () => sharp!(pixels, { raw: { width: 6, height: 4, channels: 4 } });

  test.each([
    ['WebP', () => source().webp({ lossless: true, exact: true })],
    ['GIF', () => source().gif({ dither: 0 })],
    ['TIFF', () => source().tiff({ compression: 'lzw' })],
    ['AVIF', () => source().avif({ lossless: true, chromaSubsampling: '4:4:4' })],
  ] as const)('%s has its colours and what is transparent', async (_, encode) => {
    const picture = await read(await encode().toBuffer());
    expect([picture.width, picture.height]).toEqual([6, 4]);
    expect(at(picture, 0, 1)[3]).toBe(0);
    // AVIF rounds when it leaves YCbCr.
    mustBeNear(at(picture, 3, 2), [...gradient(3, 2), 255], 2);
    mustBeNear(at(picture, 5, 3), [...gradient(5, 3), 255], 2);
  });

  test.each(['webp', 'tiff', 'avif'] as const)('%s is turned upright', async (format) => {
    const file = await source()
      .withMetadata({ orientation: 6 })
      [format](format === 'tiff' ? { compression: 'lzw' } : ({ lossless: true } as object))
      .toBuffer();
    const picture = await read(file);
    expect([picture.width, picture.height]).toEqual([4, 6]);
    // What lies at the lower left of the stored one is seen at the upper left.
    expect(at(picture, 0, 0)[3]).toBe(0);
    mustBeNear(at(picture, 0, 5), gradient(5, 3), 8);
  });

  test('a TIFF of 16 bits, and of shades of grey', async () => {
    const grey = await sharp!(Buffer.from([10, 200]), { raw: { width: 2, height: 1, channels: 1 } })
      .tiff({ compression: 'lzw' })
      .toBuffer();
    expect(at(await read(grey), 1, 0)).toEqual([200, 200, 200, 255]);
    const deep = await sharp!(new Uint16Array([257 * 9, 257 * 90]), {
      raw: { width: 2, height: 1, channels: 1 },
    })
      .toColourspace('grey16')
      .tiff({ compression: 'lzw' })
      .toBuffer();
    expect(at(await read(deep), 1, 0)).toEqual([90, 90, 90, 255]);
  });

  // One pixel: its size, 32 bits, uncompressed, black is 0, where it lies, 1 sample, 1 row, 4 bytes, of fractions.
  const fields = [
    256, 1, 257, 1, 258, 32, 259, 1, 262, 1, 273, 134, 277, 1, 278, 1, 279, 4, 339, 3,
  ];
  const fractions = Buffer.alloc(138);
  fractions.set([0x49, 0x49, 42, 0, 8, 0, 0, 0, fields.length / 2]);
  for (let i = 0; i < fields.length; i += 2) {
    const field = 10 + 6 * i;
    fractions.writeUInt16LE(fields[i]!, field);
    fractions.writeUInt16LE(3, field + 2);
    fractions.writeUInt32LE(1, field + 4);
    fractions.writeUInt32LE(fields[i + 1]!, field + 8);
  }

  test('a TIFF of fractions or in CMYK is refused by name', async () => {
    await expect(read(fractions, 'f.tif')).rejects.toThrow(
      /f\.tif: it is a TIFF with numbers of the kind 'float'/,
    );
    const ink = await source()
      .removeAlpha()
      .toColourspace('cmyk')
      .tiff({ compression: 'lzw' })
      .toBuffer();
    await expect(read(ink, 'k.tif')).rejects.toThrow(
      /k\.tif: it is a TIFF in the colour space 'cmyk'/,
    );
  });

  test('never anything but read or refused when it was changed or cut', async () => {
    const files = await Promise.all(
      [source().webp(), source().gif(), source().tiff(), source().avif()].map((each) =>
        each.toBuffer(),
      ),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...files),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.double({ min: 0, max: 0.999, noNaN: true }),
        fc.nat(255),
        async (file, length, place, value) => {
          const bytes = Buffer.from(file.subarray(0, length * file.length));
          if (bytes.length > 0) bytes[Math.floor(place * bytes.length)] = value;
          try {
            await read(bytes);
          } catch (error) {
            if (!(error instanceof DownpourError)) throw error;
            expect(error.code).toBe('DP_DATA_CORRUPT');
          }
        },
      ),
      { numRuns: 100 },
    );
  });

  test.each(['webp', 'gif', 'tiff', 'avif'] as const)(
    '%s that was cut off is refused',
    async (format) => {
      const file = await source()[format]().toBuffer();
      await expect(read(file.subarray(0, file.length - 30))).rejects.toMatchObject({
        code: 'DP_DATA_CORRUPT',
      });
    },
  );
});

test('a picture that ends too early is said to be truncated, and what stands behind its end does not matter', async () => {
  for (const file of [png(9, 9, () => RED), jpg(9, 9, () => RED)]) {
    await expect(read(file.subarray(0, -4))).rejects.toThrow(
      /it ends too early: the file is truncated/,
    );
    expect((await read(Buffer.concat([file, Buffer.alloc(99, 7)]))).width).toBe(9);
  }
});

describe('what is no picture that is read', () => {
  const brand = (name: string) => Buffer.from(`\0\0\0\x18ftyp${name}\0\0\0\0mif1${name}`, 'latin1');
  test.each([
    ['', /picture: the file is empty: it has 0 bytes/],
    [
      'hello, world',
      /it is not a picture, or its header is damaged: it begins with "hello, world"/,
    ],
    [brand('heic'), /a picture in HEIC, which is not read; convert it to PNG/],
    ['\0\0\0\x0cJXL \r\n', /in JPEG XL, which is not read/],
    ['8BPS\0', /in Photoshop, which/],
    ['<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', /in SVG, which/],
    ['P5\n2 2\n255\n....', /in PNM, which/],
  ])('%j is refused with its reason', async (content, why) => {
    const bytes = typeof content === 'string' ? Buffer.from(content, 'latin1') : content;
    await expect(read(bytes)).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringMatching(why),
    });
  });
});
