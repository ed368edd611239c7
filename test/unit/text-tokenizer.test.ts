import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { tokenizerLike } from '../../worker/data/texts/tokenizer-file.ts';
import { textWindows, tokenizerFile } from '../../worker/text.ts';
import { readFrom } from '../support/source-reading.ts';

const PACKAGE: string = '@huggingface/tokenizers';
const isThere = await import(PACKAGE).then(
  () => true,
  () => false,
);
/** Without the optional package the tests are skipped on the machine of a developer. */
const skip = !isThere && !process.env.CI;

/** What `Tokenizer.save` of the Python package writes for words between spaces. */
const words = (names: readonly string[]) => ({
  version: '1.0',
  ...{ truncation: null, padding: null, post_processor: null, decoder: null },
  added_tokens: [],
  normalizer: { type: 'Lowercase' },
  pre_tokenizer: { type: 'WhitespaceSplit' },
  model: {
    type: 'WordLevel',
    vocab: Object.fromEntries(names.map((name, i) => [name, i])),
    unk_token: '[UNK]',
  },
});

/** Byte pairs: `lo` and `low` are merged. */
const PAIRS = {
  version: '1.0',
  ...{ truncation: null, padding: null, post_processor: null, normalizer: null },
  added_tokens: [],
  pre_tokenizer: {
    type: 'ByteLevel',
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: true,
  },
  decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    ...{ type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null },
    ...{ end_of_word_suffix: null, fuse_unk: false, byte_fallback: false },
    vocab: { e: 0, l: 1, o: 2, r: 3, w: 4, Ġ: 5, lo: 6, low: 7, Ġlow: 8 },
    merges: ['l o', 'lo w', 'Ġ low'],
  },
};

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-tokenizer-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const file = async (name: string, value: unknown): Promise<string> => {
  const path = join(folder, name);
  await writeFile(path, typeof value === 'string' ? value : JSON.stringify(value));
  return path;
};

describe.skipIf(skip)('the file of a tokenizer', () => {
  it('divides texts, and makes texts of tokens', async () => {
    const tokenizer = await tokenizerFile(
      await file('words.json', words(['[PAD]', '[UNK]', 'the', 'cat'])),
    );
    expect(tokenizer.size).toBe(4);
    expect(tokenizer.encode('The cat sat')).toEqual(Int32Array.of(2, 3, 1));
    expect(tokenizer.decode([2, 3])).toBe('the cat');
  });

  it('has a token 0 for padding, also where the file has none', async () => {
    const tokenizer = await tokenizerFile(await file('pairs.json', PAIRS));
    expect(tokenizer.size).toBe(10);
    expect(tokenizer.encode('low lower')).toEqual(Int32Array.of(8, 9, 1, 4));
    expect(tokenizer.decode([8, 9, 1, 4, 0])).toBe('low lower');
  });

  it('says so where it has no token for a part of a text', async () => {
    const { model, ...others } = words(['[PAD]', 'a']);
    const { unk_token: _, ...known } = model;
    const tokenizer = await tokenizerFile(await file('some.json', { ...others, model: known }));
    expect(tokenizer.encode('a a')).toEqual(Int32Array.of(1, 1));
    expect(() => tokenizer.encode('a b')).toThrow(/has no token for a part of the text 'a b'/);
  });

  it('is used by windows, and its hash is kept', async () => {
    const path = await file('kept.json', words(['[PAD]', '[UNK]', 'a', 'b']));
    const tokens = await tokenizerFile(path);
    const { train, classCount } = await textWindows({ texts: ['a b a c'], tokens, window: 3 });
    expect(classCount).toBe(4);
    expect((await readFrom(train, [0])).targets).toEqual(Int32Array.of(3, 2, 1));
    expect(train.fields.inputs!.reading).toEqual({
      ...{ kind: 'text', tokens: 'tokenizer', size: 4, length: 3, as: 'next' },
      tokenizer: { file: path, sha256: expect.stringMatching(/^[0-9a-f]{64}$/) },
    });
    expect((await tokenizerLike(tokens.kept)).size).toBe(4);
    await writeFile(path, JSON.stringify(words(['[PAD]', '[UNK]', 'b', 'a'])));
    const changed = await tokenizerLike(tokens.kept).catch((error: unknown) => error);
    expect(errorCode(changed)).toBe('DP_DATA_MISMATCH');
    expect(errorText(changed)).toMatch(/has the SHA-256 .*was trained with the tokenizer/);
  });

  it('has another hash with another tokenizer_config.json', async () => {
    const own = join(folder, 'with-config');
    await mkdir(own);
    const path = join(own, 'tokenizer.json');
    await writeFile(path, JSON.stringify(words(['[PAD]', '[UNK]', 'a'])));
    const before = await tokenizerFile(path);
    await writeFile(join(own, 'tokenizer_config.json'), '{"clean_up_tokenization_spaces":false}');
    const after = await tokenizerFile(path);
    expect(after.kept.tokenizer!.sha256).not.toBe(before.kept.tokenizer!.sha256);
  });

  it.each([
    ['none', null, 'DP_DATA_MISSING', /does not exist/],
    ['text', 'hello', 'DP_DATA_CORRUPT', /it is no JSON object, as the file of a tokenizer is/],
    [
      'other',
      { model: { type: 'Other' } },
      'DP_DATA_CORRUPT',
      /it is no tokenizer that can be read/,
    ],
  ])('is refused: %s', async (name, value, code, message) => {
    const path = value === null ? join(folder, 'none.json') : await file(`${name}.json`, value);
    const error = await tokenizerFile(path).catch((e: unknown) => e);
    expect(errorText(error)).toMatch(message);
    expect(errorCode(error)).toBe(code);
  });
});
