import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { kneserNey, perplexityOf } from '../../bench/kneser-ney.ts';

const KINDS = 5;
const texts = fc.array(fc.nat(KINDS - 1), { minLength: 3, maxLength: 40 });

describe('Kneser-Ney smoothing', () => {
  test('gives probabilities that add up to 1, of each order and after any tokens', () => {
    fc.assert(
      fc.property(texts, texts, fc.constantFrom(1, 2, 3), (tokens, before, order) => {
        const next = kneserNey(tokens, KINDS, order as 1 | 2 | 3);
        const all = Array.from({ length: KINDS }, (_, token) =>
          next([...before, token], before.length),
        );
        expect(all.reduce((sum, p) => sum + p, 0)).toBeCloseTo(1, 10);
        for (const p of all) expect(p).toBeGreaterThanOrEqual(0);
      }),
    );
  });

  test('agrees with a bigram that was computed by hand', () => {
    const next = kneserNey([0, 1, 0, 2, 1, 0], 3, 2);
    // Pairs of 0 1 0 2 1 0: 01, 10 twice, 02, 21. Before 1 come 0 and 2, before 0 comes 1, before 2 comes 0.
    const discount = 3 / (3 + 2);
    // The counts below are 2, 1 and 1: two come once, one comes twice.
    const lower = 2 / (2 + 2);
    const one = (2 - lower) / 4 + ((lower * 3) / 4) * (1 / 3);
    expect(next([0, 1], 1)).toBeCloseTo((1 - discount) / 2 + ((discount * 2) / 2) * one, 12);
  });

  test('has a perplexity of the number of kinds where each is as likely', () => {
    const tokens = Array.from({ length: 40 }, (_, i) => i % 4);
    expect(perplexityOf(kneserNey(tokens, 4, 1), tokens)).toBeCloseTo(4, 10);
    // A trigram knows what follows: 1 but for what it keeps for others.
    expect(perplexityOf(kneserNey(tokens, 4, 3), tokens)).toBeLessThan(1.2);
  });
});
