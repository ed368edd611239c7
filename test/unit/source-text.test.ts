import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
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

  it('has words, numbered by how often the training part has them', async () => {
    const path = await file('words.txt', "It isn't so, it's so: SO!\n\nzebra zebra zebra");
    const data = await textWindows({
      ...{ file: path, tokens: 'words', lowerCase: true, minCount: 2, window: 2 },
      validationFraction: 0.26,
    });
    // The zebras are in the validation part, and all else but `so` is there once.
    expect(data.vocabulary).toEqual(['', '', 'so']);
    expect((await read(data.train, [1])).inputs).toEqual(Int32Array.of(2, 1));
    const all = await textWindows({ file: path, tokens: 'words', size: 4, window: 2 });
    expect(all.vocabulary).toEqual(['', '', 'zebra', 'so']);
    const apart = await textWindows({ file: path, tokens: 'spaces', window: 2 });
    expect(apart.vocabulary).toEqual(['', '', 'zebra', 'It', 'SO!', "isn't", "it's", 'so,', 'so:']);
  });

  it('cuts no word where a piece of the file ends', async () => {
    const [one, two] = ['a'.repeat(999), 'b'.repeat(998)];
    const path = await file('pieces.txt', `${one} ${two} `.repeat(2_200));
    const data = await textWindows({ file: path, tokens: 'words', window: 2 });
    expect(data.vocabulary).toEqual(['', '', one, two]);
    expect(data.train.count).toBe(2_199);
    const seen = new Set<string>();
    const tokens = {
      size: 1,
      encode(piece: string) {
        for (const word of piece.match(/\S+/g) ?? []) seen.add(word);
        return [0, 0, 0];
      },
    };
    await textWindows({ file: path, tokens, window: 2 });
    expect([...seen]).toEqual([one, two]);
  });

  it('splits several documents as wholes, and lets no window reach into the next one if that is wanted', async () => {
    const texts = Array.from({ length: 10 }, (_, i) => String.fromCharCode(97 + i).repeat(7));
    const options = { texts, window: 3, validationFraction: 0.2, testFraction: 0.25 };
    const joined = await textWindows(options);
    const counts = ({ train, validation, test }: typeof joined) =>
      [train, test!, validation!].map(({ count }) => count);
    expect(joined.classCount).toBe(7);
    expect(counts(joined)).toEqual([13, 4, 4]);
    const again = await textWindows(options);
    expect(again.vocabulary).toEqual(joined.vocabulary);
    const separate = await textWindows({ ...options, documents: 'separate' });
    expect(counts(separate)).toEqual([12, 4, 4]);
    expect(separate.source).toBe(
      '70 tokens (7 kinds) of 10 documents in windows of 3 from the 10 texts',
    );
    const { inputs, targets } = await read(
      separate.train,
      Array.from({ length: 12 }, (_, i) => i),
    );
    for (let i = 0; i < 12; i++) {
      const own = [...inputs!.slice(3 * i, 3 * i + 3), ...targets!.slice(3 * i, 3 * i + 3)];
      expect(new Set(own).size).toBe(1);
      expect(own[0]).toBeGreaterThan(0);
    }
    const across = await read(joined.train, [2]);
    expect(new Set([...across.inputs!, ...across.targets!]).size).toBe(2);
    // Unknown in the vocabulary of the training part.
    expect((await read(joined.validation!, [0])).inputs).toEqual(Int32Array.of(0, 0, 0));
    const longer = await textWindows({ ...options, documents: 'separate', window: 5 });
    expect(longer.source).toMatch(/; 10 tokens at the ends of documents are in no window$/);
    await expect(textWindows({ ...options, documents: 'separate', window: 7 })).rejects.toThrow(
      /the longest document of the train part has 7 tokens, and a window of 7 .* needs 8/,
    );
  });

  it('reads folders, lists and patterns of files, and documents between separators', async () => {
    const books = join(folder, 'books');
    await mkdir(books);
    await Promise.all(
      ['one', 'two', 'six'].map((name) => writeFile(join(books, `${name}.txt`), name)),
    );
    await writeFile(join(books, 'cover.png'), '');
    const read = async (options: Partial<TextWindowsOptions>) =>
      (await textWindows({ ...options, window: 2 })).source.split(' in windows')[0];
    expect(await read({ file: books })).toBe('9 tokens (9 kinds) of 3 documents');
    expect(await read({ file: join(books, '*o*.txt') })).toBe('6 tokens (6 kinds) of 2 documents');
    const list = [join(books, 'six.txt'), join(books, 'one.txt')];
    expect(await read({ file: list })).toBe('6 tokens (7 kinds) of 2 documents');
    const parted = await file('parted.txt', 'abc<end>def<end>');
    expect(await read({ file: parted, separator: '<end>' })).toBe(
      '6 tokens (7 kinds) of 2 documents',
    );
    const empty = join(folder, 'empty');
    await mkdir(empty);
    await expect(read({ file: empty })).rejects.toThrow(
      /has no text: none of its files ends in .txt/,
    );
  });

  it('keeps how texts become tokens', async () => {
    const { train } = await textWindows({
      ...{ texts: ['a b a a'], tokens: 'words', lowerCase: true, window: 2 },
    });
    expect(train.fields.inputs!.reading).toEqual({
      ...{ kind: 'text', tokens: 'words', lowerCase: true, size: 4, unknown: 1 },
      ...{ vocabulary: ['', '', 'a', 'b'], length: 2, as: 'next' },
    });
    const bytes = await textWindows({ texts: ['abc'], tokens: 'bytes', window: 2 });
    expect(bytes.train.fields.inputs!.reading).toMatchObject({ tokens: 'bytes', size: 256 });
  });

  it.each<[Partial<TextWindowsOptions>, RegExp]>([
    [{}, /neither file nor texts is given; give one of them/],
    [{ file: 'a', texts: ['a'] }, /file and texts are both given/],
    [{ texts: [] }, /texts is \[\]; allowed: a list of texts/],
    [{ texts: ['a'], separator: '-' }, /separator is not for texts, each of which is a document/],
    [{ file: 'a', separator: '-', tokens: 'bytes' }, /separator is not for bytes/],
    [{ texts: ['a'], tokens: 'bytes', minCount: 2 }, /minCount is for a vocabulary/],
    [{ texts: ['a'], size: 2 }, /size is 2; allowed: a whole number from 3 to 1048576/],
    [{ texts: ['a'], size: 2 ** 20 + 1 }, /allowed: a whole number from 3 to 1048576/],
    [{ texts: ['a'], minCount: 0 }, /minCount is 0; allowed: a whole number from 1/],
    [
      { texts: ['a b', 'c'], tokens: 'words', minCount: 2 },
      /vocabulary of words is empty: minCount is 2/,
    ],
    [{ texts: ['abc', 'abc'], validationFraction: 0.5, testFraction: 0.5 }, /too few documents/],
    [{ texts: ['abc'], window: 2 ** 20 + 1 }, /window is 1048577; allowed: .* from 1 to 1048576/],
  ])('refuses options that do not go together: %o', async (options, message) => {
    const error = await textWindows({ window: 2, ...options }).catch((e: unknown) => e);
    expect(errorText(error)).toMatch(message);
    expect(errorCode(error)).toBe('DP_EXPERIMENT_INVALID');
  });

  const good = 'abcdefghij';
  const table: [string, string | Uint8Array | null, Partial<TextWindowsOptions>, string, RegExp][] =
    [
      ['missing', null, {}, 'DP_DATA_MISSING', /does not exist/],
      ['empty', '', {}, 'DP_DATA_CORRUPT', /it is empty/],
      [
        'latin',
        Buffer.from([0x61, 0xe9, 0x62, 0x63]),
        {},
        'DP_DATA_CORRUPT',
        /byte 1 \(0xe9\) is not UTF-8.*'bytes'/,
      ],
      ['cut', Buffer.from('abcé').subarray(0, 4), {}, 'DP_DATA_CORRUPT', /byte 3 \(0xc3\)/],
      [
        'late',
        Buffer.concat([Buffer.from('é'.repeat(2 ** 21 + 9)), Buffer.from([0x61, 0xff, 0x61])]),
        {},
        'DP_DATA_CORRUPT',
        /byte 4194323 \(0xff\) is not UTF-8/,
      ],
      [
        'odd',
        Buffer.concat([Buffer.from(`a${'é'.repeat(2 ** 21)}`), Buffer.from([0xff])]),
        {},
        'DP_DATA_CORRUPT',
        /byte 4194305 \(0xff\) is not UTF-8/,
      ],
      [
        'marked',
        Buffer.concat([Buffer.from('\ufeffab'), Buffer.from([0x80])]),
        {},
        'DP_DATA_CORRUPT',
        /byte 5 \(0x80\) is not UTF-8/,
      ],
      [
        'wide',
        Buffer.from('\ufeffabcdef', 'utf16le'),
        {},
        'DP_DATA_CORRUPT',
        /it is UTF-16; save it as UTF-8/,
      ],
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
        { tokens: 'letters' as never },
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
