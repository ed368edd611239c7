import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openRecord } from '../../study/record.ts';

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-record-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const open = (signature = 'a') => openRecord<number>(join(folder, 'out'), 'search', signature);

describe('the record of a study', () => {
  test('is what was saved last, alone in its folder, which is made', async () => {
    const record = await open();
    expect(record.trials).toEqual([]);
    await record.save([1]);
    await record.save([1, 2]);
    expect((await open()).trials).toEqual([1, 2]);
    expect(await readdir(join(folder, 'out'))).toEqual(['study.json']);
  });

  test('is not gone on with by a study of other settings', async () => {
    await (await open()).save([1]);
    await expect(open('b')).rejects.toMatchObject({
      code: 'DP_USAGE',
      message: expect.stringContaining('a study with other settings'),
    });
  });

  test('that is damaged is named, and left as it is', async () => {
    const { path, save } = await open();
    await save([1]);
    const half = (await readFile(path, 'utf8')).slice(0, 20);
    await writeFile(path, half);
    await expect(open()).rejects.toMatchObject({
      code: 'DP_USAGE',
      message: expect.stringContaining(path),
    });
    expect(await readFile(path, 'utf8')).toBe(half);
  });

  test('that cannot be written says why, and which option names another place', async () => {
    const { save } = await open();
    await writeFile(join(folder, 'out'), 'a file where the folder should be');
    await expect(save([1])).rejects.toMatchObject({
      code: 'DP_DISK',
      message: expect.stringMatching(/out.*E(EXIST|NOTDIR).*--out/s),
    });
    expect(await readdir(folder)).toEqual(['out']);
  });
});
