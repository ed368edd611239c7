import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { dataOf } from '../../worker/data/given.ts';
import { type ImageFolderOptions, loadImageFolder } from '../../worker/data/pictures/images.ts';
import { PicturePool } from '../../worker/data/pictures/picture-pool.ts';
import { imageFolderSource } from '../../worker/data/sources/image-folder.ts';
import { jpg } from '../support/pictures.ts';
import { failureOf as failure, readFrom as read } from '../support/source-reading.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-pictures-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** A folder of pictures that all differ. */
async function pictures(
  name: string,
  count: number,
  sizeOf: (i: number) => readonly [number, number] = () => [8, 6],
) {
  for (let i = 0; i < count; i++) {
    const path = join(folder, name, ['cat', 'dog', 'owl'][i % 3]!, `${i}.jpg`);
    await mkdir(dirname(path), { recursive: true });
    const [width, height] = sizeOf(i);
    await writeFile(
      path,
      jpg(width, height, (x, y) => [(x * 31 + i * 7) % 256, (y * 17) % 256, i]),
    );
  }
  return join(folder, name);
}

async function mustAgree(path: string, options: ImageFolderOptions, keptBytes?: number) {
  const eager = await loadImageFolder(path, options);
  const lazy = await imageFolderSource(path, {
    ...options,
    ...(keptBytes === undefined ? {} : { keptBytes }),
  });
  expect(dataOf(lazy).classes).toEqual(eager.classes);
  for (const part of ['train', 'test'] as const) {
    expect(lazy[part]?.count).toBe(eager[part]?.count);
    if (!eager[part]) continue;
    const { inputs, targets } = eager[part];
    const count = eager[part].count;
    const order = [...Array(count).keys()].reverse();
    const rows = await read(lazy[part]!, [...order, 0]);
    const size = inputs.values.length / count;
    const picked = [...order, 0].flatMap((i) => [
      ...inputs.values.subarray(i * size, (i + 1) * size),
    ]);
    expect(rows.inputs).toEqual(Uint8Array.from(picked));
    expect([...rows.targets!]).toEqual([...order, 0].map((i) => targets.values[i]));
    expect(lazy[part]!.fields.inputs!.reading).toEqual(inputs.reading);
  }
  return lazy;
}

describe('a folder of pictures as a source', () => {
  it('has the pixels of loadImageFolder to the bit, in any order and whatever is kept', async () => {
    const path = await pictures('same', 9);
    await mustAgree(path, {});
    await mustAgree(path, { channels: 1, testFraction: 0.3 }, 0);
    const sizes = await pictures('sizes', 6, (i) => [8 + i, 6 + 2 * i]);
    await mustAgree(sizes, { size: [5, 7], fit: 'pad', background: [1, 2, 3] });
  });

  it('refuses damaged, changed and missing pictures when they are needed, and goes on', async () => {
    const path = await pictures('bad', 6);
    await writeFile(join(path, 'owl', '2.jpg'), jpg(8, 6, () => [1, 2, 3]).subarray(0, 200));
    await writeFile(
      join(path, 'owl', '5.jpg'),
      jpg(4, 4, () => [1, 2, 3]),
    );
    const { train } = await imageFolderSource(path);
    const damaged = await failure(read(train, [4]));
    expect([errorCode(damaged), errorText(damaged)]).toEqual([
      'DP_DATA_CORRUPT',
      expect.stringMatching(/owl.2\.jpg: the picture cannot be decoded/),
    ]);
    expect(errorText(await failure(read(train, [5])))).toMatch(/5\.jpg: the picture is 4×4, but/);
    await writeFile(
      join(path, 'dog', '1.jpg'),
      jpg(8, 6, () => [7, 7, 7]),
    );
    expect(errorText(await failure(read(train, [2])))).toMatch(/1\.jpg: it has changed since/);
    await rm(join(path, 'dog', '4.jpg'));
    expect(errorCode(await failure(read(train, [3])))).toBe('DP_DATA_MISSING');
    expect((await read(train, [1])).targets).toEqual(Uint8Array.of(0));
  });

  it('refuses what loadImageFolder refuses, in its own name', async () => {
    const call = (path: string, options: object) =>
      failure(imageFolderSource(path, options)).then((error) => [
        errorCode(error),
        errorText(error),
      ]);
    expect(await call(join(folder, 'none'), {})).toEqual(['DP_DATA_MISSING', expect.anything()]);
    expect(await call(join(folder, 'same'), { sise: 3 })).toEqual([
      'DP_EXPERIMENT_INVALID',
      expect.stringMatching(/^imageFolderSource: .*sise/),
    ]);
    expect((await call(join(folder, 'same'), { keptBytes: -1 }))[1]).toMatch(/keptBytes is -1/);
  });
});

it('a thread that ends fails its pictures alone, and another takes its place', async () => {
  const path = await pictures('pool', 3);
  const pool = new PicturePool(1);
  const canvas = { height: 6, width: 8, channels: 3 as const, background: [255, 255, 255] };
  const task = { path: join(path, 'cat', '0.jpg'), canvas, like: null };
  const asked = failure(pool.decode(task));
  await pool.close();
  expect(errorCode(await asked)).toBe('DP_INTERNAL');
  expect((await pool.decode(task)).length).toBe(6 * 8 * 3);
  await pool.close();
});
