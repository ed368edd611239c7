import { describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import {
  continueText,
  drawToken,
  type LanguageModel,
} from '../../worker/data/texts/continue-text.ts';
import { tokenizerOf } from '../../worker/data/texts/vocabulary.ts';
import { buildVocabulary } from '../../worker/text.ts';

/** A model of pairs: what followed each token in a text, and how often. */
function pairs(text: string, tokens: 'words' | 'characters', length: number) {
  const vocabulary = buildVocabulary([text], { tokens });
  const ids = vocabulary.encode(text);
  const windows: number[][] = [];
  const model: LanguageModel = {
    tokenizer: vocabulary,
    reading: { kind: 'text', ...vocabulary.kept, length, as: 'next' },
    async next(given) {
      windows.push([...given]);
      const counts = new Float32Array(vocabulary.size);
      ids.forEach((id, i) => {
        if (i > 0 && ids[i - 1] === given.at(-1)) counts[id]!++;
      });
      return counts.map((count) => Math.log(count + 1e-9));
    },
  };
  return { model, windows, vocabulary };
}

const { signal } = new AbortController();
const how = { prompt: '', length: 6, temperature: 1, top: null, seed: 1, signal };

async function written(model: LanguageModel, options: Partial<typeof how> = {}): Promise<string[]> {
  const pieces: string[] = [];
  for await (const piece of continueText(model, { ...how, ...options })) pieces.push(piece);
  return pieces;
}

describe('a text that is continued', () => {
  const text = 'the cat saw the dog, and the dog saw the cat.\n'.repeat(3);

  test('is made of pieces, with spaces where they belong', async () => {
    const { model, windows } = pairs(text, 'words', 3);
    const pieces = await written(model, { prompt: 'the cat saw', length: 5, temperature: 0 });
    expect(pieces[0]).toBe(' the');
    expect(pieces).toHaveLength(5);
    // As many tokens as a window has, the last ones.
    expect(windows.map((window) => window.length)).toEqual([3, 3, 3, 3, 3]);
    const { model: characters } = pairs('abcabc', 'characters', 4);
    expect(await written(characters, { prompt: 'ab', temperature: 0, length: 4 })).toEqual([
      ...'cabc',
    ]);
  });

  test('is the same with the same seed, and begins with a line without a prompt', async () => {
    const { model, windows, vocabulary } = pairs(text, 'words', 4);
    const one = await written(model, { seed: 7, length: 20 });
    expect(await written(model, { seed: 7, length: 20 })).toEqual(one);
    expect(await written(model, { seed: 8, length: 20 })).not.toEqual(one);
    expect(windows[0]).toEqual([vocabulary.numberOf('\n')]);
    expect(one[0]).toBe('the');
  });

  test('never has padding or unknown words', async () => {
    const { model } = pairs(text, 'words', 4);
    const next = async () => {
      const logits = new Float32Array(model.reading.size);
      logits.set([50, 50]);
      return logits;
    };
    const pieces = await written({ ...model, next }, { length: 50 });
    expect(pieces.join('')).not.toContain('unknown');
    expect(pieces).toHaveLength(50);
  });

  test('waits for the bytes of a character', async () => {
    const tokenizer = tokenizerOf({ tokens: 'bytes', size: 256 })!;
    const bytes = new TextEncoder().encode('é€!');
    let at = 0;
    const model: LanguageModel = {
      tokenizer,
      reading: { kind: 'text', tokens: 'bytes', size: 256, length: 8, as: 'next' },
      next: async () => Float32Array.from({ length: 256 }, (_, i) => Number(i === bytes[at])),
    };
    const counting = {
      ...model,
      next: async (tokens: Int32Array) => model.next(tokens).finally(() => at++),
    };
    expect(await written(counting, { prompt: 'a', length: 6, temperature: 0 })).toEqual([...'é€!']);
  });

  test('ends when it is interrupted', async () => {
    const { model } = pairs(text, 'words', 4);
    const stopping = new AbortController();
    const pieces: string[] = [];
    for await (const piece of continueText(model, {
      ...how,
      length: 100,
      signal: stopping.signal,
    })) {
      pieces.push(piece);
      if (pieces.length === 3) stopping.abort();
    }
    expect(pieces).toHaveLength(3);
  });

  test('leaves others their turn: Ctrl-C is heard while a model answers without waiting', async () => {
    const { model } = pairs(text, 'words', 4);
    const stopping = new AbortController();
    setImmediate(() => stopping.abort());
    const pieces = await written(model, { length: 100, signal: stopping.signal });
    expect(pieces.length).toBeLessThan(3);
  });
});

describe('a token that is drawn', () => {
  const logits = Float32Array.of(9, Math.log(1), Math.log(2), Math.log(5));
  const shares = (temperature: number, top: number | null) => {
    const draw = random(3, 1);
    const counts = [0, 0, 0, 0];
    for (let i = 0; i < 4000; i++)
      counts[drawToken(logits, { temperature, top, banned: 1 }, draw)]!++;
    return counts.map((count) => count / 4000);
  };

  test('has the probability that the softmax gives it', () => {
    // Three standard deviations of a share of 0.5 in 4,000 draws are 0.024.
    for (const [i, share] of [0, 1 / 8, 2 / 8, 5 / 8].entries()) {
      expect(Math.abs(shares(1, null)[i]! - share)).toBeLessThan(0.025);
      // Divided by a half, the logits are those of the squares.
      const squared = [0, 1 / 30, 4 / 30, 25 / 30][i]!;
      expect(Math.abs(shares(0.5, null)[i]! - squared)).toBeLessThan(0.025);
    }
  });

  test('is one of the most likely, or the most likely one', () => {
    const [, least, middle, most] = shares(1, 2);
    expect(least).toBe(0);
    expect(Math.abs(middle! - 2 / 7)).toBeLessThan(0.025);
    expect(middle! + most!).toBe(1);
    expect(shares(0, null)).toEqual([0, 0, 0, 1]);
    expect(shares(1, 1)).toEqual([0, 0, 0, 1]);
  });
});
