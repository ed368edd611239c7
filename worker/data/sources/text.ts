import { DownpourError } from '../../../shared/errors.ts';
import { describe } from '../described.ts';
import { corrupt } from '../files.ts';
import { PositionedFile } from '../positioned-file.ts';
import { checkOptions, isText, LOG, oneOf, optional } from '../reader-options.ts';
import type { ExampleSource } from '../source.ts';
import type { SourceData } from './parts.ts';
import { ReadProgress } from './read-progress.ts';

/** A text as windows of tokens: the inputs are some tokens in a row, the targets are the tokens that follow each of them. */

/** Turns text into numbers: `encode` of a tokenizer, whose vocabulary has `size` entries. */
export interface Tokenizer {
  encode(text: string): readonly number[] | Int32Array;
  readonly size: number;
}

export interface TextWindowsOptions {
  /** A file of text in UTF-8. */
  readonly file: string;
  /** What a token is: a Unicode character, a byte, or what a tokenizer makes. Default: characters. */
  readonly tokens?: 'characters' | 'bytes' | Tokenizer;
  /** Tokens of an example. */
  readonly window: number;
  /** Tokens between the beginnings of two windows. Default: `window`, so that they do not overlap. */
  readonly stride?: number;
  /** Share of the text, at its end, that is the validation part; and of what is before that, the test part. Default: 0. */
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

/** The most tokens of a text: they are kept in memory, in 1, 2 or 4 bytes each. */
const TOKENS_MAX = 2 ** 29;
/** Tokens are int32. */
const TOKEN_KINDS_MAX = 2 ** 31 - 1;
const WINDOW_MAX = 2 ** 20;
const PIECE_BYTES = 2 ** 22;
/** The token of a character that the training part does not have. */
const UNKNOWN = 0;

const isShare = (value: unknown) => typeof value === 'number' && value >= 0 && value < 1;
const isWindow = (value: unknown) =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= WINDOW_MAX;
const window = { allowed: `a whole number of tokens from 1 to ${WINDOW_MAX}`, test: isWindow };
const share = optional({ allowed: 'a number from 0 to below 1', test: isShare });
const isTokenizer = (value: unknown): value is Tokenizer =>
  typeof (value as Tokenizer | null)?.encode === 'function' &&
  Number.isInteger((value as Tokenizer).size) &&
  (value as Tokenizer).size > 0 &&
  (value as Tokenizer).size <= TOKEN_KINDS_MAX;
const named = oneOf('characters', 'bytes');
const FIELDS = {
  file: { allowed: 'the path of a file', test: isText },
  tokens: optional({
    allowed: `${named.allowed}, or a tokenizer { encode(text), size } with a size from 1 to ${TOKEN_KINDS_MAX}`,
    test: (value) => named.test(value) || isTokenizer(value),
  }),
  ...{ window, stride: optional(window), validationFraction: share, testFraction: share, log: LOG },
};

/**
 * Examples for a language model: `inputs` int32 [window], and `targets` int32 [window], the token after each of them. The
 * validation and the test part are the end of the text, so no window of them overlaps one of training. The vocabulary of
 * characters is that of the training part, in the order of their code points; 0 is any other character.
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
  const { file: path, tokens = 'characters', validationFraction = 0, testFraction = 0 } = options;
  const file = await PositionedFile.open(path);
  if (file.size === 0) throw corrupt(path, 'it is empty: it has 0 bytes');
  if (tokens === 'characters' && file.size > 4 * TOKENS_MAX) throw tooLong(path, file.size);
  const all = await tokensOf(file, options);
  const { length } = all.values;
  const validates = Math.round(length * validationFraction);
  const tests = Math.round((length - validates) * testFraction);
  const trains = length - validates - tests;
  const {
    values,
    vocabulary,
    count: classCount,
  } = tokens === 'characters' ? numbered(all.values, trains) : { ...all, vocabulary: null };
  const part = (name: string, from: number, to: number): ExampleSource =>
    windowsOf(file, values.subarray(from, to), { name, vocabulary, classCount, ...options });
  return {
    train: part('train', 0, trains),
    ...(validates > 0 ? { validation: part('validation', length - validates, length) } : {}),
    ...(tests > 0 ? { test: part('test', trains, trains + tests) } : {}),
    ...{ classCount, vocabulary },
    source: `${length} tokens (${classCount} kinds) in windows of ${options.window} from ${path}`,
  };
}

type TokenArray = Uint8Array | Uint16Array | Int32Array;

interface FoundTokens {
  readonly values: TokenArray;
  /** Kinds of tokens that there may be. */
  readonly count: number;
}

/** All tokens of a file; characters as code points. */
async function tokensOf(file: PositionedFile, options: TextWindowsOptions): Promise<FoundTokens> {
  const { path, size } = file;
  const { tokens = 'characters', log } = options;
  const progress = new ReadProgress(log, path, 'bytes', size);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const count = tokens === 'bytes' ? 256 : tokens === 'characters' ? 0x110000 : tokens.size;
  const found = new TokenList(path, count);
  for (let at = 0; at < size; at += PIECE_BYTES) {
    const bytes = await file.read({ start: at, length: Math.min(PIECE_BYTES, size - at) });
    progress.tell(at);
    if (tokens === 'bytes') {
      found.add(bytes);
      continue;
    }
    let text: string;
    try {
      text = decoder.decode(bytes, { stream: at + PIECE_BYTES < size });
    } catch (cause) {
      throw corrupt(
        path,
        `bytes ${at} to ${at + bytes.length} are not UTF-8; save it as UTF-8, or use tokens: 'bytes'`,
        cause,
      );
    }
    if (tokens === 'characters') found.add(Array.from(text, (c) => c.codePointAt(0)!));
    else found.add(encoded(tokens, text));
  }
  return { values: found.end(), count };
}

function encoded(tokenizer: Tokenizer, text: string): readonly number[] | Int32Array {
  const ids = tokenizer.encode(text);
  const isList = Array.isArray(ids) || ids instanceof Int32Array;
  const isToken = (id: unknown) =>
    Number.isInteger(id) && (id as number) >= 0 && (id as number) < tokenizer.size;
  // A hole of a list is found too.
  const at = isList ? (ids as number[]).findIndex((id) => !isToken(id)) : 0;
  if (at < 0) return ids;
  const bad = isList ? ids[at] : ids;
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    `textWindows: the tokenizer gave ${describe(bad)}; allowed: a list of whole numbers from 0 to ${tokenizer.size - 1}, its size less 1`,
  );
}

/** Tokens that come in pieces, in as few bytes as the largest one needs. */
class TokenList {
  readonly #path: string;
  #values: TokenArray;
  #length = 0;

  constructor(path: string, count: number) {
    this.#path = path;
    this.#values =
      count <= 2 ** 8
        ? new Uint8Array(1024)
        : count <= 2 ** 16
          ? new Uint16Array(1024)
          : new Int32Array(1024);
  }

  add(tokens: ArrayLike<number>): void {
    const length = this.#length + tokens.length;
    if (length > TOKENS_MAX) throw tooLong(this.#path, length);
    if (length > this.#values.length) {
      const Values = this.#values.constructor as new (length: number) => TokenArray;
      const larger = new Values(Math.max(length, Math.ceil(1.5 * this.#values.length)));
      larger.set(this.#values);
      this.#values = larger;
    }
    this.#values.set(tokens, this.#length);
    this.#length = length;
  }

  end(): TokenArray {
    return this.#values.slice(0, this.#length);
  }
}

const tooLong = (path: string, length: number) =>
  corrupt(
    path,
    `it has ${length} tokens or more; allowed: ${TOKENS_MAX}. Split it into several runs, or use a tokenizer, whose tokens are longer`,
  );

/** Code points as tokens 1, 2, … of those that the training part has; 0: it does not have this one. */
function numbered(points: TokenArray, trains: number) {
  const known = new Uint8Array(0x110000);
  for (let i = 0; i < trains; i++) known[points[i]!] = 1;
  const tokens = new Int32Array(0x110000);
  const vocabulary = [''];
  for (let point = 0; point < known.length; point++) {
    if (known[point] === 0) continue;
    tokens[point] = vocabulary.length;
    vocabulary.push(String.fromCodePoint(point));
  }
  const count = vocabulary.length;
  const values: TokenArray =
    count <= 2 ** 8
      ? new Uint8Array(points.length)
      : count <= 2 ** 16
        ? new Uint16Array(points.length)
        : new Int32Array(points.length);
  for (let i = 0; i < points.length; i++) values[i] = tokens[points[i]!] ?? UNKNOWN;
  return { values, vocabulary, count };
}

interface WindowOptions extends TextWindowsOptions {
  readonly name: string;
  readonly vocabulary: readonly string[] | null;
  readonly classCount: number;
}

function windowsOf(
  file: PositionedFile,
  values: TokenArray,
  options: WindowOptions,
): ExampleSource {
  const { name, window: size, stride = size, classCount } = options;
  const count = Math.floor((values.length - size - 1) / stride) + 1;
  if (values.length < size + 1) {
    throw corrupt(
      file.path,
      `the ${name} part has ${values.length} tokens, and a window of ${size} with the token after it needs ${size + 1}; make \`window\` smaller, or the part larger`,
    );
  }
  const { vocabulary, tokens = 'characters' } = options;
  const kind = isTokenizer(tokens) ? `tokenizer of ${tokens.size}` : tokens;
  return {
    count,
    name: `${file.path} (${name})`,
    key: JSON.stringify([
      file.path,
      file.version,
      kind,
      vocabulary?.join(''),
      name,
      values.length,
      size,
      stride,
    ]),
    fields: {
      inputs: { shape: [size], type: 'int32' },
      targets: { shape: [size], type: 'int32', classCount },
    },
    read(indices) {
      const inputs = new Int32Array(indices.length * size);
      const targets = new Int32Array(indices.length * size);
      indices.forEach((index, i) => {
        const at = index * stride;
        inputs.set(values.subarray(at, at + size), i * size);
        targets.set(values.subarray(at + 1, at + size + 1), i * size);
      });
      return { inputs, targets };
    },
  };
}
