import { LIMITS } from '../../../shared/limits.ts';
import type { TokensReading } from '../../../shared/reading.ts';
import { describe, invalid } from '../described.ts';
import { checkOptions, oneOf, optional } from '../reader-options.ts';
import { joinUnits, type TextUnit, unitsOf } from './units.ts';

/** Vocabularies: the tokens that a model knows, by their numbers. It needs nothing of Node, so that it runs in browsers. */

/** Turns text into numbers: `encode` of a tokenizer, whose vocabulary has `size` entries. */
export interface Tokenizer {
  encode(text: string): readonly number[] | Int32Array;
  readonly size: number;
  /** The text of tokens: `downpour sample` needs it. */
  decode?(tokens: ArrayLike<number>): string;
  /** What a run keeps of it, so that texts become tokens and tokens text without the experiment's data. */
  readonly kept?: TokensReading;
}

/** The token that fills up a text that is shorter than others. */
export const PADDING = 0;
/** The token of what a vocabulary does not have, beside a token for padding. */
const UNKNOWN = 1;
const UNKNOWN_TEXT = { characters: '\ufffd', words: '<unknown>', spaces: '<unknown>' } as const;

export interface VocabularyOptions {
  /** Default: words. */
  readonly tokens?: TextUnit;
  /** Texts become lower case first. */
  readonly lowerCase?: boolean;
  /** How often a token must occur. Default: 1. */
  readonly minCount?: number;
  /** Entries at most, with those for padding and unknown tokens: the most frequent tokens. Default: all. */
  readonly size?: number;
}

/** Characters, words or texts between spaces, each with a number. */
export class Vocabulary implements Tokenizer {
  readonly tokens: TextUnit;
  readonly lowerCase: boolean;
  /** The text of token 0, 1, …: '' for padding (0) and for what the vocabulary does not have. */
  readonly entries: readonly string[];
  /** The token of what the vocabulary does not have. Below it is padding. */
  readonly unknown: number;
  readonly #numbers: Map<string, number>;

  constructor(
    tokens: TextUnit,
    entries: readonly string[],
    { lowerCase = false, unknown = UNKNOWN }: { lowerCase?: boolean; unknown?: number } = {},
  ) {
    this.tokens = tokens;
    this.lowerCase = lowerCase;
    this.entries = entries;
    this.unknown = unknown;
    this.#numbers = new Map(entries.map((entry, i) => [entry, i]));
    // The tokens with a meaning of their own have no text.
    this.#numbers.delete('');
  }

  get size(): number {
    return this.entries.length;
  }

  get kept(): TokensReading {
    const { tokens, lowerCase, size, entries, unknown } = this;
    const lower = lowerCase ? { lowerCase } : {};
    return { tokens, ...lower, size, vocabulary: [...entries], unknown };
  }

  /** The number of one token, as `unitsOf` gives it. */
  numberOf(unit: string): number {
    return this.#numbers.get(unit) ?? this.unknown;
  }

  encode(text: string): Int32Array {
    return Int32Array.from(unitsOf(text, this.tokens, this.lowerCase), (unit) =>
      this.numberOf(unit),
    );
  }

  decode(tokens: ArrayLike<number>): string {
    return joinUnits(
      Array.from(tokens, (token) => this.textOf(token)),
      this.tokens,
    );
  }

  /** The text of one token. */
  textOf(token: number): string {
    if (token === this.unknown) return UNKNOWN_TEXT[this.tokens];
    return this.entries[token] ?? '';
  }
}

/** Each byte of UTF-8 is a token. */
const BYTES: Tokenizer = {
  size: 256,
  encode: (text) => Int32Array.from(new TextEncoder().encode(text)),
  decode: (tokens) => new TextDecoder().decode(Uint8Array.from(tokens)),
};

/** What a run kept. @returns null: a file of a tokenizer is needed. */
export function tokenizerOf(kept: TokensReading): Tokenizer | null {
  const { tokens, vocabulary = [], unknown = UNKNOWN, lowerCase = false } = kept;
  if (tokens === 'tokenizer') return null;
  return tokens === 'bytes' ? BYTES : new Vocabulary(tokens, vocabulary, { lowerCase, unknown });
}

const isCount = (value: unknown) => Number.isInteger(value) && (value as number) >= 1;
/** The least size: padding, unknown tokens, and one token. */
const SIZE_MIN = 3;
const isSize = (value: unknown) =>
  Number.isInteger(value) &&
  (value as number) >= SIZE_MIN &&
  (value as number) <= LIMITS.vocabularySizeMax;

/** What the options of a vocabulary must be, beside `tokens`. */
export const VOCABULARY_FIELDS = {
  lowerCase: optional(oneOf(true, false)),
  minCount: optional({ allowed: 'a whole number from 1', test: isCount }),
  size: optional({
    allowed: `a whole number from ${SIZE_MIN} to ${LIMITS.vocabularySizeMax}`,
    test: isSize,
  }),
};

/**
 * The vocabulary of some texts. Give the texts of the training part alone, so that nothing of others is known.
 *
 *     const words = buildVocabulary(texts, { lowerCase: true, minCount: 5 });
 *     words.encode('the cat');
 *
 * Token 0 is padding and token 1 what the vocabulary does not have. Words follow by their frequency, characters by their
 * code points.
 * @throws DownpourError DP_EXPERIMENT_INVALID: an option is wrong, or there is nothing in it.
 */
export function buildVocabulary(
  texts: Iterable<string>,
  options: VocabularyOptions = {},
): Vocabulary {
  checkOptions('buildVocabulary', options, {
    ...VOCABULARY_FIELDS,
    tokens: optional(oneOf('characters', 'words', 'spaces')),
  });
  const { tokens = 'words', lowerCase = false } = options;
  const counts = new Map<string, number>();
  for (const text of texts) {
    if (typeof text !== 'string') {
      throw invalid(`buildVocabulary: ${describe(text)} among the texts; allowed: texts`);
    }
    for (const unit of unitsOf(text, tokens, lowerCase)) {
      counts.set(unit, (counts.get(unit) ?? 0) + 1);
    }
  }
  const entries = chosenEntries(counts, tokens, { ...options, specials: 2 });
  return new Vocabulary(tokens, entries, { lowerCase });
}

/**
 * The entries of a vocabulary: `specials` without a text, then the tokens that it has.
 * @throws DownpourError DP_EXPERIMENT_INVALID: no token is left.
 */
export function chosenEntries(
  counts: ReadonlyMap<string, number>,
  tokens: TextUnit,
  {
    minCount = 1,
    size = Number.POSITIVE_INFINITY,
    specials,
  }: Pick<VocabularyOptions, 'minCount' | 'size'> & { readonly specials: number },
): string[] {
  const often = [...counts].filter(([, count]) => count >= minCount);
  const wanted = Math.min(size, often.length + specials);
  if (wanted > LIMITS.vocabularySizeMax) {
    throw invalid(
      `the vocabulary of ${tokens} would have ${wanted} entries; allowed: ${LIMITS.vocabularySizeMax}; leave out rare ones with minCount: 2 or more, or set size`,
    );
  }
  // The same on every machine: by code units where two are as frequent.
  const byCount = often.sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  const kept = byCount.slice(0, Math.max(0, size - specials)).map(([unit]) => unit);
  if (kept.length === 0) {
    const most = Math.max(0, ...counts.values());
    throw invalid(
      counts.size === 0
        ? `the vocabulary of ${tokens} is empty: the training texts have none; are they empty, or in another column or folder?`
        : `the vocabulary of ${tokens} is empty: minCount is ${minCount} and size ${size}; the most frequent of ${counts.size} occurs ${most} times, and ${specials} of the size are for padding and unknown tokens`,
    );
  }
  if (tokens === 'characters') kept.sort((a, b) => a.codePointAt(0)! - b.codePointAt(0)!);
  return [...new Array<string>(specials).fill(''), ...kept];
}
