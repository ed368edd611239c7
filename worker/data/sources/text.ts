import { LIMITS } from '../../../shared/limits.ts';
import type { TextReading, TokensReading } from '../../../shared/reading.ts';
import { invalid } from '../described.ts';
import { corrupt } from '../files.ts';
import { checkOptions, isText, isTexts, LOG, oneOf, optional } from '../reader-options.ts';
import type { ExampleSource } from '../source.ts';
import { heldOutRows } from '../split.ts';
import { type Corpus, type CorpusPlace, isTokenizer, readCorpus } from '../texts/corpus.ts';
import { type TokenArray, tokenArray } from '../texts/token-list.ts';
import type { TextUnit } from '../texts/units.ts';
import {
  chosenEntries,
  type Tokenizer,
  VOCABULARY_FIELDS,
  Vocabulary,
  type VocabularyOptions,
} from '../texts/vocabulary.ts';
import type { SourceData } from './parts.ts';

/** A text as windows of tokens: the inputs are some tokens in a row, the targets are the tokens that follow each of them. */

export interface TextWindowsOptions
  extends CorpusPlace,
    Pick<VocabularyOptions, 'lowerCase' | 'minCount' | 'size'> {
  /** What a token is: a Unicode character, a byte, a word, what stands between spaces, or what a tokenizer makes. Default: characters. */
  readonly tokens?: TextUnit | 'bytes' | Tokenizer;
  /** Tokens of an example. */
  readonly window: number;
  /** Tokens between the beginnings of two windows. Default: `window`, so that they do not overlap. */
  readonly stride?: number;
  /** Whether a window may go on into the next document. Default: joined. */
  readonly documents?: 'joined' | 'separate';
  /**
   * Share of the text, at its end, that is the validation part; and of what is before that, the test part. With several
   * documents: share of the documents, the same ones in every run. Default: 0.
   */
  readonly validationFraction?: number;
  readonly testFraction?: number;
  /** Receives lines about progress. */
  readonly log?: (line: string) => void;
}

export interface TextWindows extends SourceData {
  /** The text of each token; null: of bytes and of a tokenizer, which know it themselves. */
  readonly vocabulary: readonly string[] | null;
  readonly classCount: number;
}

/** Tokens are int32. */
const TOKEN_KINDS_MAX = 2 ** 31 - 1;

const isShare = (value: unknown) => typeof value === 'number' && value >= 0 && value < 1;
const isWindow = (value: unknown) =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= LIMITS.textLengthMax;
const window = {
  allowed: `a whole number of tokens from 1 to ${LIMITS.textLengthMax}`,
  test: isWindow,
};
const share = optional({ allowed: 'a number from 0 to below 1', test: isShare });
const isGivenTokenizer = (value: unknown): value is Tokenizer =>
  typeof (value as Tokenizer | null)?.encode === 'function' &&
  Number.isInteger((value as Tokenizer).size) &&
  (value as Tokenizer).size > 0 &&
  (value as Tokenizer).size <= TOKEN_KINDS_MAX;
const named = oneOf('characters', 'bytes', 'words', 'spaces');
const FIELDS = {
  file: optional({
    allowed: 'the path of a file or folder, or a list of paths',
    test: (value) => isText(value) || (isTexts(value) && value.length > 0 && value.every(isText)),
  }),
  texts: optional({
    allowed: 'a list of texts',
    test: (value) => isTexts(value) && value.length > 0,
  }),
  separator: optional({ allowed: 'a text that is not empty', test: isText }),
  tokens: optional({
    allowed: `${named.allowed}, or a tokenizer { encode(text), size } with a size from 1 to ${TOKEN_KINDS_MAX}`,
    test: (value) => named.test(value) || isGivenTokenizer(value),
  }),
  documents: optional(oneOf('joined', 'separate')),
  ...VOCABULARY_FIELDS,
  ...{ window, stride: optional(window), validationFraction: share, testFraction: share, log: LOG },
};

/**
 * Examples for a language model: `inputs` int32 [window], and `targets` int32 [window], the token after each of them. No
 * window has tokens of two parts, and the vocabulary is that of the training part. Characters are in the order of their code
 * points, after 0 for any other character. Words and texts between spaces are in the order of their frequency, after 0 for
 * padding and 1 for any other word.
 *
 *     data: () => textWindows({ file: 'book.txt', window: 64, validationFraction: 0.1 })
 *
 * Tokens are kept in memory, in as few bytes as their numbers need; windows are cut out of them when they are read.
 *
 * @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT for a file that is empty, not UTF-8, or too short for one window
 * in each part; DP_EXPERIMENT_INVALID for a wrong option, and a tokenizer that gives something else than its tokens
 */
export async function textWindows(options: TextWindowsOptions): Promise<TextWindows> {
  checkOptions('textWindows', options, FIELDS);
  mustFitTogether(options);
  const { tokens = 'characters' } = options;
  const corpus = await readCorpus('textWindows', { ...options, tokens });
  const ranges = partsOf(corpus, options);
  const found = numbered(corpus, ranges.train, { ...options, tokens });
  const parts = Object.entries(ranges).flatMap(([name, own]) =>
    own.length === 0 ? [] : [[name, windowsOf(corpus, found, own, { name, ...options })] as const],
  );
  const unused = parts.reduce((sum, [, part]) => sum + part.unused, 0);
  const documents = corpus.starts.length - 1;
  return {
    ...(Object.fromEntries(parts.map(([name, { source }]) => [name, source])) as Pick<
      SourceData,
      'train'
    >),
    ...{ classCount: found.kinds, vocabulary: found.vocabulary },
    source: [
      `${corpus.values.length} tokens (${found.kinds} kinds)`,
      documents > 1 ? ` of ${documents} documents` : '',
      ` in windows of ${options.window} from ${corpus.name}`,
      unused > 0 ? `; ${unused} tokens at the ends of documents are in no window` : '',
    ].join(''),
  };
}

function mustFitTogether(options: TextWindowsOptions): void {
  const { file, texts, separator, tokens = 'characters' } = options;
  if ((file === undefined) === (texts === undefined)) {
    throw invalid(
      `textWindows: ${file === undefined ? 'neither file nor texts is given' : 'file and texts are both given'}; give one of them`,
    );
  }
  if (separator !== undefined && (texts !== undefined || tokens === 'bytes')) {
    throw invalid(
      `textWindows: separator is not for ${texts === undefined ? 'bytes' : 'texts, each of which is a document already'}; leave it out`,
    );
  }
  const lost = (['lowerCase', 'minCount', 'size'] as const).find(
    (option) => options[option] !== undefined,
  );
  if (lost !== undefined && (tokens === 'bytes' || isTokenizer(tokens))) {
    throw invalid(
      `textWindows: ${lost} is for a vocabulary of characters, words or spaces, which ${tokens === 'bytes' ? 'bytes do' : 'a tokenizer does'} not need; leave it out`,
    );
  }
}

/** Tokens from one place to another. */
type TokenRange = readonly [from: number, to: number];
type PartRanges = Readonly<Record<'train' | 'validation' | 'test', readonly TokenRange[]>>;

/** Which tokens each part has: the end of a single document, or whole documents. */
function partsOf(
  { values: { length }, starts }: Corpus,
  { validationFraction = 0, testFraction = 0 }: TextWindowsOptions,
): PartRanges {
  const documents = starts.length - 1;
  if (documents > 1) {
    const rangeOf = (document: number): TokenRange => [starts[document]!, starts[document + 1]!];
    const order = Int32Array.from({ length: documents }, (_, i) => i);
    const [rest, validation] = apart(order, validationFraction);
    const [train, test] = apart(rest, testFraction);
    return {
      train: Array.from(train, rangeOf),
      validation: Array.from(validation, rangeOf),
      test: Array.from(test, rangeOf),
    };
  }
  const validates = Math.round(length * validationFraction);
  const tests = Math.round((length - validates) * testFraction);
  const trains = length - validates - tests;
  return {
    train: [[0, trains]],
    validation: validates > 0 ? [[length - validates, length]] : [],
    test: tests > 0 ? [[trains, trains + tests]] : [],
  };
}

/** Some documents, the same in every run. @returns those that stay, and those that are held out */
function apart(documents: Int32Array, fraction: number): [Int32Array, Int32Array] {
  if (documents.length < 2 && fraction > 0) {
    throw invalid(
      'textWindows: too few documents for a training, a validation and a test part; give more, or leave testFraction out',
    );
  }
  const rows = heldOutRows(documents.length, fraction);
  if (rows === null) return [documents, new Int32Array()];
  return [rows.train.map((i) => documents[i]!), rows.test.map((i) => documents[i]!)];
}

interface Numbered {
  readonly values: TokenArray;
  readonly kinds: number;
  readonly vocabulary: readonly string[] | null;
  /** Null: a tokenizer of the experiment's own, of which a run keeps nothing. */
  readonly kept: TokensReading | null;
}

/** Tokens by the vocabulary of the training part. */
function numbered(
  { values, kinds, textOf }: Corpus,
  trains: readonly TokenRange[],
  options: TextWindowsOptions & { readonly tokens: NonNullable<TextWindowsOptions['tokens']> },
): Numbered {
  const { tokens, lowerCase = false, minCount, size } = options;
  if (tokens === 'bytes') {
    return { values, kinds, vocabulary: null, kept: { tokens, size: kinds } };
  }
  if (isTokenizer(tokens)) {
    const vocabulary = tokens instanceof Vocabulary ? tokens.entries : null;
    return { values, kinds, vocabulary, kept: tokens.kept ?? null };
  }
  const counts = new Float64Array(kinds);
  for (const [from, to] of trains) for (let i = from; i < to; i++) counts[values[i]!]!++;
  const byText = new Map<string, number>();
  for (let token = 0; token < kinds; token++) {
    if (counts[token]! > 0) byText.set(textOf!(token), counts[token]!);
  }
  // Windows need no padding, so a language model of characters has no token for it.
  const specials = tokens === 'characters' ? 1 : 2;
  const entries = chosenEntries(byText, tokens, {
    specials,
    ...(minCount === undefined ? {} : { minCount }),
    ...(size === undefined ? {} : { size }),
  });
  const vocabulary = new Vocabulary(tokens, entries, { lowerCase, unknown: specials - 1 });
  const numbers = new Int32Array(kinds).fill(vocabulary.unknown);
  for (let token = 0; token < kinds; token++) {
    if (counts[token]! > 0) numbers[token] = vocabulary.numberOf(textOf!(token));
  }
  const own = tokenArray(values.length, entries.length);
  for (let i = 0; i < values.length; i++) own[i] = numbers[values[i]!]!;
  return { values: own, kinds: entries.length, vocabulary: entries, kept: vocabulary.kept };
}

interface WindowOptions extends TextWindowsOptions {
  readonly name: string;
}

/** The windows of a part. */
function windowsOf(
  corpus: Corpus,
  found: Numbered,
  ranges: readonly TokenRange[],
  options: WindowOptions,
): { readonly source: ExampleSource; readonly unused: number } {
  const {
    name,
    window: size,
    stride = size,
    documents = 'joined',
    tokens = 'characters',
  } = options;
  const isJoined = documents === 'joined' || ranges.length === 1;
  const values = isJoined ? joined(found.values, ranges) : found.values;
  const within: readonly TokenRange[] = isJoined ? [[0, values.length]] : ranges;
  const begins: number[] | null = isJoined ? null : [];
  let [count, unused, longest] = [0, 0, 0];
  for (const [from, to] of within) {
    const own = Math.max(0, Math.floor((to - from - size - 1) / stride) + 1);
    for (let i = 0; begins && i < own; i++) begins.push(from + i * stride);
    count += own;
    longest = Math.max(longest, to - from);
    // The last target of a window is not an input of it.
    if (begins) unused += to - from - (own === 0 ? 0 : (own - 1) * stride + size + 1);
  }
  if (count === 0) {
    const what = isJoined ? `the ${name} part has` : `the longest document of the ${name} part has`;
    throw corrupt(
      corpus.name,
      `${what} ${longest} tokens, and a window of ${size} with the token after it needs ${size + 1}; make \`window\` smaller, or the part larger`,
    );
  }
  const { kept, kinds, vocabulary } = found;
  const reading: TextReading | null = kept && { kind: 'text', ...kept, length: size, as: 'next' };
  const kind = isTokenizer(tokens) ? (tokens.kept ?? `tokenizer of ${tokens.size}`) : tokens;
  const key = [corpus.version, kind, vocabulary?.join('\0'), name, within, size, stride, documents];
  return {
    unused,
    source: {
      count,
      name: `${corpus.name} (${name})`,
      ...(corpus.version === null ? {} : { key: JSON.stringify(key) }),
      fields: {
        inputs: { shape: [size], type: 'int32', ...(reading && { reading }) },
        targets: { shape: [size], type: 'int32', classCount: kinds },
      },
      read(indices) {
        const inputs = new Int32Array(indices.length * size);
        const targets = new Int32Array(indices.length * size);
        indices.forEach((index, i) => {
          const at = begins ? begins[index]! : index * stride;
          inputs.set(values.subarray(at, at + size), i * size);
          targets.set(values.subarray(at + 1, at + size + 1), i * size);
        });
        return { inputs, targets };
      },
    },
  };
}

/** The tokens of some documents, one after the other. */
function joined(values: TokenArray, ranges: readonly TokenRange[]): TokenArray {
  if (ranges.length === 1) return values.subarray(...ranges[0]!);
  const own = values.slice(
    0,
    ranges.reduce((sum, [from, to]) => sum + to - from, 0),
  );
  let at = 0;
  for (const [from, to] of ranges) {
    own.set(values.subarray(from, to), at);
    at += to - from;
  }
  return own;
}
