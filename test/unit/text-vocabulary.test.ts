import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LIMITS } from '../../shared/limits.ts';
import { joinUnits, unitsOf } from '../../worker/data/texts/units.ts';
import { chosenEntries, tokenizerOf } from '../../worker/data/texts/vocabulary.ts';
import { buildVocabulary } from '../../worker/text.ts';

describe('tokens of a text', () => {
  it.each([
    ["Don't stop – it’s 3.5 °C", ["Don't", 'stop', '–', 'it’s', '3', '.', '5', '°', 'C']],
    ["'quoted' rock'n'roll dogs'", ["'", 'quoted', "'", "rock'n'roll", 'dogs', "'"]],
    ['Größe 東京 naïve', ['Größe', '東京', 'naïve']],
    ['nai\u0308ve', ['naïve']],
    ['one\r\n\r\n  two\tthree\n', ['one', '\n', 'two', 'three', '\n']],
    ['a😀b', ['a', '😀', 'b']],
    ['', []],
  ])('are words: %j', (text, words) => {
    expect(unitsOf(text, 'words')).toEqual(words);
  });

  it('are what stands between spaces, or characters, in lower case if that is wanted', () => {
    expect(unitsOf(' The U.S.\n$5 ', 'spaces', true)).toEqual(['the', 'u.s.', '$5']);
    expect(unitsOf('Aé😀', 'characters', true)).toEqual(['a', 'é', '😀']);
  });

  it('become a text again, with spaces where a typist puts them', () => {
    const text = "He said: “so (it) isn't”, and left.\nThen… nothing!";
    expect(joinUnits(unitsOf(text, 'words'), 'words')).toBe(text);
    expect(joinUnits(['a', ',', 'b'], 'spaces')).toBe('a , b');
    expect(joinUnits(['a', ',', 'b'], 'characters')).toBe('a,b');
  });

  it('are the same after they became a text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 60 }), (text) => {
        for (const unit of ['characters', 'spaces'] as const) {
          const units = unitsOf(text, unit);
          expect(unitsOf(joinUnits(units, unit), unit)).toEqual(units);
        }
      }),
      { seed: 1 },
    );
  });
});

describe('a vocabulary', () => {
  const texts = ['the cat saw the dog', 'the dog saw a bird'];

  it('has padding, unknown words, and words by their frequency', () => {
    const vocabulary = buildVocabulary(texts);
    expect(vocabulary.entries).toEqual(['', '', 'the', 'dog', 'saw', 'a', 'bird', 'cat']);
    expect(vocabulary.encode('the bird saw the mouse')).toEqual(Int32Array.of(2, 6, 4, 2, 1));
    expect(vocabulary.decode([2, 3, 1, 0])).toBe('the dog <unknown>');
    expect(buildVocabulary(texts, { minCount: 2 }).size).toBe(5);
    expect(buildVocabulary(texts, { size: 4 }).entries).toEqual(['', '', 'the', 'dog']);
    expect(buildVocabulary(['bab'], { tokens: 'characters' }).entries).toEqual(['', '', 'a', 'b']);
  });

  it('has no entry for an empty text, and words that JavaScript objects have are words', () => {
    const vocabulary = buildVocabulary(['constructor __proto__ toString']);
    expect(vocabulary.encode('constructor')).toEqual(
      Int32Array.of(vocabulary.numberOf('constructor')),
    );
    expect(vocabulary.numberOf('')).toBe(1);
    expect(vocabulary.numberOf('valueOf')).toBe(1);
  });

  it('is the same after a run has kept it', () => {
    for (const tokens of ['characters', 'words', 'spaces'] as const) {
      const own = buildVocabulary(['Ab c, d'], { tokens, lowerCase: true });
      const again = tokenizerOf(JSON.parse(JSON.stringify(own.kept)))!;
      expect([...again.encode('AB c x')]).toEqual([...own.encode('AB c x')]);
      expect(again.decode!(own.encode('ab'))).toBe(own.decode(own.encode('ab')));
    }
    const bytes = tokenizerOf({ tokens: 'bytes', size: 256 })!;
    expect(bytes.decode!(bytes.encode('é'))).toBe('é');
    expect(tokenizerOf({ tokens: 'tokenizer', size: 3 })).toBeNull();
  });

  it('has at most as many entries as a run keeps', () => {
    const { vocabularySizeMax: most } = LIMITS;
    // In the order of their frequency already, so that this is quick.
    const counts = new Map(Array.from({ length: most - 2 }, (_, i) => [`${i}`, most - i]));
    const choose = () => chosenEntries(counts, 'words', { specials: 2 });
    expect(choose().length).toBe(most);
    counts.set('one more', 1);
    expect(choose).toThrow(
      /would have 1048577 entries; allowed: 1048576; leave out rare ones with minCount: 2/,
    );
  });

  it.each([
    [
      { minCount: 3 },
      ['a b a'],
      /minCount is 3 and size Infinity; the most frequent of 2 occurs 2 times/,
    ],
    [{}, [' '], /the vocabulary of words is empty: the training texts have none/],
    [
      { tokens: 'letters' as never },
      ['a'],
      /tokens is "letters"; allowed: 'characters', 'words', 'spaces'/,
    ],
    [{ lowercase: true } as never, ['a'], /lowercase is not an option; did you mean 'lowerCase'/],
    [{}, [5 as never], /buildVocabulary: 5 among the texts; allowed: texts/],
  ])('is refused: %o', (options, given, message) => {
    expect(() => buildVocabulary(given, options)).toThrow(message);
  });
});
