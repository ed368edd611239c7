import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { LIMITS } from '../../shared/limits.ts';
import { decimalAt } from '../../worker/embeddings/decimals.ts';
import { BinaryVectors } from '../../worker/embeddings/vector-binary.ts';
import { JsonVectors } from '../../worker/embeddings/vector-json.ts';
import type { VectorBatch, VectorParser } from '../../worker/embeddings/vector-parser.ts';
import { TextVectors } from '../../worker/embeddings/vector-text.ts';
import { readWordVectors } from '../../worker/embeddings/word-vectors.ts';

const folder = mkdtempSync(join(tmpdir(), 'downpour-word-vectors-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const written = (name: string, bytes: string | Uint8Array) => {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
};

/** Vectors of 2 numbers. */
const VECTORS: readonly [word: string, vector: readonly [number, number]][] = [
  ['the', [0.5, -1.25]],
  ['naïve', [1e-3, 2]],
  ['日本', [-0.0625, 1024.5]],
  ['"quoted"', [0, -3]],
];
const listed = (separator: string) =>
  VECTORS.map(([word, v]) => [word, ...v].join(separator)).join('\n');
const binary = (isEnded: boolean) =>
  Buffer.concat([
    Buffer.from(`${VECTORS.length} 2\n`),
    ...VECTORS.flatMap(([word, v]) => [
      Buffer.from(`${word} `),
      Buffer.from(Float32Array.from(v).buffer),
      Buffer.from(isEnded ? '\n' : ''),
    ]),
  ]);
/** As wink has them: norm and place behind the numbers, the object in another order than the places. */
const wink = JSON.stringify({
  ...{ precision: 8, l2NormIndex: 2, wordIndex: 3, dimensions: 2 },
  words: [...VECTORS.map(([word]) => word), 'vectors'],
  vectors: Object.fromEntries(
    VECTORS.map(([word, v], i) => [word, [...v, Math.hypot(...v), i]] as const).reverse(),
  ),
  unkVector: [0, 0],
});

const FILES: [string, string | Uint8Array][] = [
  ['glove.txt', `${listed(' ')}\n`],
  ['no-last-line-end.txt', listed(' ')],
  ['windows.txt', listed(' ').replaceAll('\n', '\r\n')],
  ['word2vec.txt', `${VECTORS.length} 2\n${listed(' ')}\n`],
  ['fasttext.vec', `${VECTORS.length} 2\n${listed(' ').replaceAll('\n', ' \n')} \n`],
  ['packed.vec.gz', gzipSync(`${VECTORS.length} 2\n${listed(' ')}\n`)],
  ['gensim.bin', binary(false)],
  ['original.bin', binary(true)],
  ['wink.json', wink],
  ['pretty.json', JSON.stringify(JSON.parse(wink), null, 2)],
];

const all = (batches: readonly VectorBatch[]) =>
  batches.flatMap(({ words, ranks, values }) =>
    words.map((word, i) => ({
      word,
      rank: ranks[i]!,
      vector: [...values.slice(2 * i, 2 * i + 2)],
    })),
  );
const expected = VECTORS.map(([word, v], rank) => ({
  ...{ word, rank, vector: [...Float32Array.from(v)] },
}));

describe('a file of word vectors', () => {
  test.each(FILES)(
    '%s: words, places and numbers, with the hash of the file',
    async (name, bytes) => {
      const path = written(name, bytes);
      const batches: VectorBatch[] = [];
      const facts = await readWordVectors(path, (batch) => void batches.push(batch));
      expect(all(batches).sort((a, b) => a.rank - b.rank)).toEqual(expected);
      const sha256 = createHash('sha256').update(bytes).digest('hex');
      expect(facts).toEqual({ width: 2, words: VECTORS.length, sha256 });
      await readWordVectors(path, () => {}, { sha256 });
    },
  );

  test.each(FILES.filter(([name]) => !name.endsWith('.gz')))(
    '%s is the same in pieces of any length',
    (name, bytes) => {
      const buffer = Buffer.from(bytes);
      const parserOf = (): VectorParser =>
        name.endsWith('.bin')
          ? new BinaryVectors({ path: name })
          : name.endsWith('.json')
            ? new JsonVectors({ path: name })
            : new TextVectors({ path: name });
      for (const length of [1, 2, 3, 7, 64]) {
        const parser = parserOf();
        const batches: VectorBatch[] = [];
        for (let at = 0; at < buffer.length; at += length) {
          batches.push(parser.feed(buffer.subarray(at, at + length)));
        }
        batches.push(parser.end());
        expect(all(batches).sort((a, b) => a.rank - b.rank)).toEqual(expected);
      }
    },
  );

  test.each(FILES)(
    '%s gives the wanted words alone, and the most frequent ones',
    async (name, bytes) => {
      const path = written(name, bytes);
      const of = async (options: object) => {
        const words: string[] = [];
        await readWordVectors(path, (batch) => void words.push(...batch.words), options);
        return words.sort();
      };
      expect(await of({ wants: (word: string) => word === '日本' })).toEqual(['日本']);
      expect(await of({ ranksMax: 2 })).toEqual(['naïve', 'the']);
    },
  );

  test('words of GloVe may have blanks', async () => {
    const path = written('blanks.txt', 'a 1 2\n. . 3 4\nb@x com -5 .5\n');
    const batches: VectorBatch[] = [];
    await readWordVectors(path, (batch) => void batches.push(batch));
    expect(all(batches)).toEqual([
      { word: 'a', rank: 0, vector: [1, 2] },
      { word: '. .', rank: 1, vector: [3, 4] },
      { word: 'b@x com', rank: 2, vector: [-5, 0.5] },
    ]);
  });

  const long = 'x'.repeat(LIMITS.wordVectorBytesMax - 6);
  test('a word with its vector takes at most the limit', async () => {
    await readWordVectors(written('just.txt', `a 1 2\n${long} 1 2\n`), () => {});
    await expect(
      readWordVectors(written('long.txt', `a 1 2\n${long}xxxx 1 2\n`), () => {}),
    ).rejects.toThrow(`${LIMITS.wordVectorBytesMax} bytes allowed`);
  });

  test.each<[string, string | Uint8Array, string]>([
    ['cut.vec', '3 2\na 1 2\nb 3 4\n', 'says 3 words, and it has 2'],
    ['short.txt', 'a 1 2\nb 3\n', 'line 2'],
    ['wide.txt', 'a 1 2\nb 3 4 5\n', "'b', has 3 numbers"],
    ['none.txt', 'a 1 2\nb\n', 'line 2 has a word and no numbers'],
    ['nan.txt', 'a 1 2\nb 3 NaN\n', "line 2: number 2 of the word 'b' is NaN"],
    ['hex.txt', 'a 1 2\nb 3 0x1\n', 'line 2: number 2'],
    ['infinite.txt', 'a 1 1e40\n', 'is Infinity'],
    ['empty.txt', '', 'no words'],
    ['cut.bin', binary(false).subarray(0, 60), 'ends after'],
    ['more.bin', Buffer.concat([binary(false), Buffer.from('more')]), '4 bytes follow'],
    ['text.bin', 'the 0.5 -1.25\n', 'begins with'],
    ['list.json', '[1, 2]', 'no JSON object'],
    ['no-vectors.json', '{"a": "vectors", "words": ["vectors"]}', 'no object "vectors"'],
    ['cut.json', wink.slice(0, wink.length - 60), 'in the midst of "vectors"'],
    ['odd.json', '{"dimensions":2,"vectors":{"a":[1,2],"b":"c","d":[1,2]}}', 'array of numbers'],
    ['few.json', '{"dimensions":2,"vectors":{"a":[1]}}', 'fewer than the 2'],
    ['text.json', '{"dimensions":2,"vectors":{"a":[1,"x"]}}', "number 2 of the word 'a'"],
    ['no-place.json', '{"dimensions":2,"wordIndex":2,"vectors":{"a":[1,2]}}', 'wordIndex'],
    ['wide.json', '{"dimensions":5000,"vectors":{"a":[1]}}', 'have 5000 numbers'],
  ])('%s is refused with the place', async (name, bytes, said) => {
    const reading = readWordVectors(written(name, bytes), () => {});
    await expect(reading).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringContaining(said),
    });
  });

  test('another hash, another ending and a missing file are refused', async () => {
    const path = written('hash.txt', 'a 1 2\n');
    const seen = createHash('sha256').update('a 1 2\n').digest('hex');
    const read = (file: string, sha256: string | null) =>
      readWordVectors(file, () => {}, { sha256 });
    await expect(read(path, '')).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringContaining(`write sha256: '${seen}'`),
    });
    await expect(read(path, 'a'.repeat(64))).rejects.toMatchObject({ code: 'DP_DATA_MISMATCH' });
    await expect(read(written('x.csv', 'a'), null)).rejects.toMatchObject({ code: 'DP_USAGE' });
    await expect(read(join(folder, 'absent.txt'), null)).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
    });
  });
});

test('decimals are read as Number reads them', () => {
  const number = fc.oneof(
    fc.double({ noNaN: true, noDefaultInfinity: true }).map(String),
    fc.tuple(fc.integer(), fc.nat({ max: 8 })).map(([n, digits]) => (n / 1e4).toFixed(digits)),
    fc.constantFrom(
      '.5',
      '-.25',
      '5.',
      '-0',
      '+1',
      '1e-3',
      '00012',
      '0.000000',
      '123456789012345678',
    ),
  );
  fc.assert(
    fc.property(number, (text) => {
      const bytes = Buffer.from(`x${text}x`);
      expect(Math.fround(decimalAt(bytes, 1, 1 + text.length))).toBe(Math.fround(Number(text)));
    }),
    { numRuns: 2_000, seed: 1 },
  );
  for (const text of ['', '-', '.', '-.', 'x', '1x', '0x1', '1 2', 'Infinity', '1.2.3', '--1']) {
    expect(decimalAt(Buffer.from(text), 0, text.length), text).toBeNaN();
  }
});
