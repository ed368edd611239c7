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

  test('with one wrong digit is damaged, wherever the digit is', async () => {
    const { path, save } = await open();
    await save([12_345, 0.5]);
    const text = await readFile(path, 'utf8');
    for (const [from, to] of [
      ['12345', '12346'],
      ['0.5', '0.7'],
      ['[12345', '[null,12345'],
      [/"sha256":"./.exec(text)![0], '"sha256":"-'],
    ] as const) {
      const wrong = text.replace(from, to);
      expect(wrong).not.toBe(text);
      await writeFile(path, wrong);
      if (from.startsWith('"sha256')) expect((await open()).trials).toEqual([12_345, 0.5]);
      else await expect(open()).rejects.toThrow(/is damaged \(.*checksum.*take it away/);
    }
  });

  test('of an older release has no checksum, and is gone on with', async () => {
    const { path, save } = await open();
    await save([1]);
    const text = await readFile(path, 'utf8');
    await writeFile(path, text.replace(/,"sha256":"[0-9a-f]{64}"/, ''));
    const record = await open();
    expect(record.trials).toEqual([1]);
    await record.save([1, 2]);
    expect(await readFile(path, 'utf8')).toContain('"sha256"');
  });

  test('of another version is not called damaged: it must not be taken away', async () => {
    const { path } = await open();
    const content = { version: 2, study: 'search', signature: 'a', trials: [] };
    await (await open()).save([]);
    await writeFile(path, JSON.stringify(content));
    await expect(open()).rejects.toThrow(
      /is of version 2, and this release reads version 1: go on with/,
    );
    for (const no of [null, [], { trials: [] }, { version: 1, trials: {} }]) {
      await writeFile(path, JSON.stringify(no));
      await expect(open()).rejects.toThrow(/is damaged \(it is no record\)/);
    }
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
