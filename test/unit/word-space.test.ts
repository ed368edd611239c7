import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parseAnalogies, parsePairs, WordSpace } from '../../study/word-vectors.ts';
import { outputOf } from '../support/command.ts';

/** Two directions: royal or not, and sex. */
const VECTORS: readonly [string, number, number, number][] = [
  ['king', 3, 1, 0],
  ['queen', 3, -1, 0.1],
  ['man', 0.2, 1, 0],
  ['woman', 0.2, -1, 0],
  ['apple', 0, 0, 4],
  ['nothing', 0, 0, 0],
];
const words = VECTORS.map(([word]) => word);
const space = new WordSpace(words, Float32Array.from(VECTORS.flatMap(([, ...v]) => v)), 3);

describe('word vectors', () => {
  test('have neighbours by the cosine, whatever their length', () => {
    const near = space.near('king', 2)!;
    expect(near.map(({ word }) => word)).toEqual(['queen', 'man']);
    expect(near[0]!.cosine).toBeCloseTo(8 / Math.sqrt(10 * 10.01), 5);
    expect(space.near('emperor', 2)).toBeNull();
    expect(space.cosine('king', 'nothing')).toBe(0);
    expect(space.cosine('king', 'emperor')).toBeNull();
  });

  test('answer analogies by another word than those of the question', () => {
    const text =
      ': royal\nMan Woman King Queen\nwoman man queen king\n\n: fruit\nman woman apple king\nman woman king emperor\n';
    const questions = parseAnalogies(text) as Exclude<
      ReturnType<typeof parseAnalogies>,
      { readonly line: number }
    >;
    expect(space.analogies(questions)).toEqual({
      sections: [
        { section: 'royal', asked: 2, correct: 2 },
        { section: 'fruit', asked: 1, correct: 0 },
      ],
      ...{ asked: 3, correct: 2, unknown: 1 },
    });
  });

  test('are compared with what people see, by ranks: equal ones share theirs', () => {
    const pairs = [
      ['king', 'queen', 10],
      ['king', 'man', 5],
      ['apple', 'man', 1],
      ['apple', 'woman', 1],
      ['king', 'emperor', 9],
    ] as const;
    const given = pairs.map(([a, b, score]) => ({ words: [a, b] as const, score }));
    expect(space.similarity(given)).toEqual({
      spearman: expect.closeTo(1, 6),
      pairs: 4,
      unknown: 1,
    });
    const turned = given.map(({ words, score }) => ({ words, score: -score }));
    expect(space.similarity(turned).spearman).toBeCloseTo(-1, 6);
    expect(space.similarity(given.slice(0, 2)).spearman).toBeNaN();
  });

  test('lists of questions name the line that is none', () => {
    expect(parseAnalogies(': a\na b c d\na b c\n')).toEqual({ line: 3 });
    expect(parsePairs('# a comment\nLove\tsex\t6.77\n')).toEqual([
      { words: ['love', 'sex'], score: 6.77 },
    ]);
    for (const line of ['love sex 6.77', 'love\tsex', 'love\tsex\tmuch']) {
      expect(parsePairs(`a\tb\t1\n${line}\n`)).toEqual({ line: 2 });
    }
  });
});

describe('data vectors', () => {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-space-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const written = (name: string, text: string) => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };

  test('prints neighbours, analogies and similarities of the most frequent words', async () => {
    const file = written('v.txt', VECTORS.map((line) => line.join(' ')).join('\n'));
    const analogies = written('q.txt', ': royal\nman woman king queen\nman woman king apple\n');
    const similarity = written('s.tsv', 'king\tqueen\t9\nking\tman\t5\nking\twoman\t2\n');
    const options = ['--near', 'king', '--neighbours', '1', '--similarity', similarity];
    const told = await outputOf('data', 'vectors', file, ...options, '--analogies', analogies);
    expect(told).toContain('6 words with 3 numbers each; the 6 most frequent are used');
    expect(told).toContain("near 'king': queen 0.80");
    expect(told).toContain('analogies: 50.0 % of 2 are right; 0 have a word without a vector');
    expect(told).toContain('similarity: rank correlation 1.000 over 3 pairs');
    const json = JSON.parse(
      await outputOf('data', 'vectors', file, '--top', '4', '--analogies', analogies, '--json'),
    );
    expect(json).toMatchObject({
      words: 6,
      taken: 4,
      analogies: { asked: 1, correct: 1, unknown: 1 },
    });
    await expect(outputOf('data', 'vectors', file, '--near', 'emperor')).rejects.toThrow(/emperor/);
  });
});
