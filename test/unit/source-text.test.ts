import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { dataOf } from '../../worker/data/given.ts';
import { type TextWindowsOptions, textWindows } from '../../worker/data/sources/text.ts';
import { readFrom as read } from '../support/source-reading.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-text-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(name: string, bytes: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

describe('a text as windows of tokens', () => {
  it('has each window and the token after each of its tokens', async () => {
    const data = await textWindows({ file: await file('abc.txt', 'abcdefg'), window: 3 });
    expect([data.train.count, data.classCount]).toEqual([2, 8]);
    expect(data.vocabulary).toEqual(['', ...'abcdefg']);
    expect(await read(data.train, [1, 0])).toEqual({
      inputs: Int32Array.of(4, 5, 6, 1, 2, 3),
      targets: Int32Array.of(5, 6, 7, 2, 3, 4),
    });
    const whole = await textWindows({ file: join(folder, 'abc.txt'), window: 6 });
    expect(whole.train.count).toBe(1);
    expect(dataOf(data).train.count).toBe(2);
  });

  it('has windows that overlap, where the stride is shorter', async () => {
    const { train } = await textWindows({
      ...{ file: await file('over.txt', 'abcde'), tokens: 'bytes', window: 2, stride: 1 },
    });
    expect(train.count).toBe(3);
    expect((await read(train, [2])).targets).toEqual(Int32Array.of(100, 101));
  });

  it('learns its vocabulary from the training part alone, and no window crosses parts', async () => {
    const text = `${'ab'.repeat(40)}${'ay'.repeat(5)}${'az'.repeat(5)}`;
    const path = await file('parts.txt', text);
    const data = await textWindows({
      ...{ file: path, window: 4, validationFraction: 0.1, testFraction: 1 / 9 },
    });
    expect(data.vocabulary).toEqual(['', 'a', 'b']);
    expect([data.train.count, data.test!.count, data.validation!.count]).toEqual([19, 2, 2]);
    expect((await read(data.test!, [0])).inputs).toEqual(Int32Array.of(1, 0, 1, 0));
    expect((await read(data.train, [18])).targets).toEqual(Int32Array.of(2, 1, 2, 1));
  });

  it('counts Unicode characters, over pieces of the file', async () => {
    const text = 'é😀x'.repeat(2 ** 20);
    const { train, classCount } = await textWindows({
      file: await file('long.txt', text),
      window: 3,
    });
    expect(classCount).toBe(4);
    expect(train.count).toBe(2 ** 20 - 1);
    expect((await read(train, [2 ** 20 - 2])).inputs).toEqual(Int32Array.of(2, 3, 1));
  });

  it('refuses a tokenizer with holes in its list, and too many kinds of tokens', async () => {
    const file = join(folder, 'tokens.txt');
    await writeFile(file, 'abc'.repeat(20));
    const of = (size: number, ids: number[]) =>
      textWindows({ file, window: 2, tokens: { encode: () => ids, size } });
    // biome-ignore lint/suspicious/noSparseArray: it is what is tested
    await expect(of(3, [1, , 2, 0] as number[])).rejects.toThrow(
      /the tokenizer gave nothing; allowed/,
    );
    await expect(of(2 ** 31, [1, 2, 3])).rejects.toThrow(/with a size from 1 to 2147483647/);
    expect((await of(2 ** 31 - 1, [1, 2, 2 ** 31 - 2])).train.count).toBe(1);
  });

  it('takes a tokenizer', async () => {
    const tokenizer = {
      size: 300,
      encode: (text: string) => text.split(' ').map((word) => word.length),
    };
    const path = await file('words.txt', 'a bb ccc dddd');
    const { train, classCount, vocabulary } = await textWindows({
      ...{ file: path, tokens: tokenizer, window: 3 },
    });
    expect([classCount, vocabulary]).toEqual([300, null]);
    expect(await read(train, [0])).toEqual({
      ...{ inputs: Int32Array.of(1, 2, 3), targets: Int32Array.of(2, 3, 4) },
    });
  });

  const good = 'abcdefghij';
  const table: [string, string | Uint8Array | null, Partial<TextWindowsOptions>, string, RegExp][] =
    [
      ['missing', null, {}, 'DP_DATA_MISSING', /does not exist/],
      ['empty', '', {}, 'DP_DATA_CORRUPT', /it is empty/],
      ['latin', Buffer.from([0x61, 0xe9, 0x62, 0x63]), {}, 'DP_DATA_CORRUPT', /not UTF-8.*'bytes'/],
      ['cut', Buffer.from('abcé').subarray(0, 4), {}, 'DP_DATA_CORRUPT', /not UTF-8/],
      ['short', 'abc', { window: 3 }, 'DP_DATA_CORRUPT', /train part has 3 tokens.*needs 4/],
      [
        'part',
        good,
        { validationFraction: 0.1 },
        'DP_DATA_CORRUPT',
        /validation part has 1 tokens/,
      ],
      ['window', good, { window: 0 }, 'DP_EXPERIMENT_INVALID', /window/],
      ['stride', good, { stride: 1.5 }, 'DP_EXPERIMENT_INVALID', /stride/],
      [
        'tokens',
        good,
        { tokens: 'words' as never },
        'DP_EXPERIMENT_INVALID',
        /'characters', 'bytes'/,
      ],
      [
        'ids',
        good,
        { tokens: { size: 5, encode: () => [1, 5] } },
        'DP_EXPERIMENT_INVALID',
        /tokenizer gave 5.*from 0 to 4/,
      ],
    ];
  it.each(table)('is refused: %s', async (name, bytes, options, code, message) => {
    const path = join(folder, `bad-${name}.txt`);
    if (bytes !== null) await writeFile(path, bytes);
    const error = await textWindows({ file: path, window: 2, ...options }).catch((e: unknown) => e);
    expect(errorText(error)).toMatch(message);
    expect(errorCode(error)).toBe(code);
  });
});
