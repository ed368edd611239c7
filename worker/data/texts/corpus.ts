import { describe, invalid } from '../described.ts';
import { corrupt } from '../files.ts';
import { PositionedFile } from '../positioned-file.ts';
import { ReadProgress } from '../sources/read-progress.ts';
import { type TableKind, tableFiles } from '../tables/table-files.ts';
import { TOKENS_MAX, type TokenArray, TokenList, tooLong } from './token-list.ts';
import { type TextUnit, unitsOf } from './units.ts';
import type { Tokenizer } from './vocabulary.ts';

/** The tokens of one or more texts, one after the other, and where each document begins. */

export const TEXT_FILES: TableKind = {
  fits: /\.(txt|text|md)$/i,
  endings: '.txt, .text or .md',
  what: 'text',
};

/** Where the texts are. */
export interface CorpusPlace {
  /** A file in UTF-8, a list, a folder (its .txt, .text and .md files), or a pattern such as `books/*.txt`. Each file is a document. */
  readonly file?: string | readonly string[];
  /** Instead of files: texts that the experiment has. Each is a document. */
  readonly texts?: readonly string[];
  /** What stands between two documents of a file, such as `<|endoftext|>`. Default: a file is one document. */
  readonly separator?: string;
}

export interface Corpus {
  /** What messages call it. */
  readonly name: string;
  /** Changes when a file changes; null: the texts are not from files. */
  readonly version: string | null;
  /** Tokens of all documents. Of characters they are code points, of words and texts between spaces numbers of `names`. */
  readonly values: TokenArray;
  /** Kinds of tokens that there may be. */
  readonly kinds: number;
  /** Where each document begins, and at last where all end. */
  readonly starts: readonly number[];
  /** The text of a token. Null: of bytes and of a tokenizer. */
  readonly textOf: ((token: number) => string) | null;
}

const PIECE_BYTES = 2 ** 22;
/** A text without spaces is cut when so much of it waits for one. */
const WAITING_MAX = 2 ** 22;
/** Characters of a document, where a separator ends it. */
const DOCUMENT_MAX = 2 ** 26;
export const isTokenizer = (tokens: unknown): tokens is Tokenizer => typeof tokens === 'object';

interface CorpusOptions extends CorpusPlace {
  readonly tokens: TextUnit | 'bytes' | Tokenizer;
  readonly lowerCase?: boolean;
  readonly log?: (line: string) => void;
}

/**
 * @param reader its name, for messages
 * @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT for a file that is empty, not UTF-8, or too long;
 * DP_EXPERIMENT_INVALID: a tokenizer gives something else than its tokens
 */
export async function readCorpus(reader: string, options: CorpusOptions): Promise<Corpus> {
  const { tokens, texts } = options;
  const taker = takerOf(reader, tokens, options.lowerCase === true);
  const name = texts ? `the ${texts.length} texts` : [options.file!].flat().join(', ');
  const list = new TokenList(name, taker.kindsMax);
  const starts = [0];
  const end = () => {
    if (list.length > starts.at(-1)!) starts.push(list.length);
  };
  const versions: string[] = [];
  for (const text of texts ?? []) {
    list.add(taker.take(tokens === 'bytes' ? new TextEncoder().encode(text) : text));
    end();
  }
  for (const path of await filesOf(options)) {
    const file = await PositionedFile.open(path);
    versions.push(`${path} ${file.version}`);
    if (file.size === 0) throw corrupt(path, 'it is empty: it has 0 bytes');
    if (tokens === 'characters' && file.size > 4 * TOKENS_MAX) throw tooLong(path, file.size / 4);
    for await (const { piece, isEnd } of piecesOf(file, options)) {
      list.add(taker.take(piece));
      if (isEnd) end();
    }
  }
  const values = list.end();
  const version = texts ? null : versions.join('; ');
  return { name, version, values, starts, kinds: taker.kinds(), textOf: taker.textOf };
}

async function filesOf({ file }: CorpusPlace): Promise<string[]> {
  const files: string[] = [];
  for (const each of file === undefined ? [] : [file].flat()) {
    files.push(...(await tableFiles(each, TEXT_FILES)));
  }
  return files;
}

interface Taker {
  /** The most kinds that `kinds` may become. */
  readonly kindsMax: number;
  take(piece: string | Uint8Array): ArrayLike<number>;
  kinds(): number;
  readonly textOf: Corpus['textOf'];
}

/** Turns pieces into tokens. */
function takerOf(reader: string, tokens: CorpusOptions['tokens'], lowerCase: boolean): Taker {
  if (tokens === 'bytes') {
    const take = (piece: string | Uint8Array) => piece as Uint8Array;
    return { kindsMax: 256, take, kinds: () => 256, textOf: null };
  }
  if (isTokenizer(tokens)) {
    const { size } = tokens;
    const take = (piece: string | Uint8Array) => encoded(reader, tokens, piece as string);
    return { kindsMax: size, take, kinds: () => size, textOf: null };
  }
  if (tokens === 'characters') {
    return {
      kindsMax: CODE_POINTS,
      take: (piece) =>
        unitsOf(piece as string, tokens, lowerCase).map((unit) => unit.codePointAt(0)!),
      kinds: () => CODE_POINTS,
      textOf: (token) => String.fromCodePoint(token),
    };
  }
  const numbers = new Map<string, number>();
  const names: string[] = [];
  return {
    kindsMax: Number.POSITIVE_INFINITY,
    take: (piece) =>
      unitsOf(piece as string, tokens, lowerCase).map((unit) => {
        const known = numbers.get(unit);
        if (known !== undefined) return known;
        // A part of a long text would keep all of it in memory.
        const own = Buffer.from(unit).toString();
        numbers.set(own, names.length);
        return names.push(own) - 1;
      }),
    kinds: () => names.length,
    textOf: (token) => names[token]!,
  };
}
const CODE_POINTS = 0x110000;

/** @throws DownpourError DP_EXPERIMENT_INVALID: the tokenizer gives something else than its tokens. */
function encoded(
  reader: string,
  tokenizer: Tokenizer,
  text: string,
): readonly number[] | Int32Array {
  const ids = tokenizer.encode(text);
  const isList = Array.isArray(ids) || ids instanceof Int32Array;
  const isToken = (id: unknown) =>
    Number.isInteger(id) && (id as number) >= 0 && (id as number) < tokenizer.size;
  // A hole of a list is found too.
  const at = isList ? (ids as number[]).findIndex((id) => !isToken(id)) : 0;
  if (at < 0) return ids;
  const bad = isList ? ids[at] : ids;
  throw invalid(
    `${reader}: the tokenizer gave ${describe(bad)}; allowed: a list of whole numbers from 0 to ${tokenizer.size - 1}, its size less 1`,
  );
}

interface Piece {
  readonly piece: string | Uint8Array;
  /** A document ends with it. */
  readonly isEnd: boolean;
}

/** A file in pieces. No token is cut: a piece ends before spaces, or with its document. */
async function* piecesOf(
  file: PositionedFile,
  { tokens, separator, log }: CorpusOptions,
): AsyncGenerator<Piece, void> {
  const { path, size } = file;
  const progress = new ReadProgress(log, path, 'bytes', size);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let waiting = '';
  for (let at = 0; at < size; at += PIECE_BYTES) {
    const bytes = await file.read({ start: at, length: Math.min(PIECE_BYTES, size - at) });
    const isLast = at + PIECE_BYTES >= size;
    progress.tell(at);
    if (tokens === 'bytes') {
      yield { piece: bytes, isEnd: isLast };
      continue;
    }
    try {
      waiting += decoder.decode(bytes, { stream: !isLast });
    } catch (cause) {
      throw notUtf8(path, bytes, at, cause);
    }
    if (separator !== undefined) {
      const documents = waiting.split(separator);
      waiting = documents.pop()!;
      if (waiting.length > DOCUMENT_MAX) throw tooLongDocument(path, waiting.length, separator);
      for (const piece of documents) yield { piece, isEnd: true };
    } else if (!isLast) {
      const end = tokens === 'characters' ? waiting.length : lastSpaces(waiting);
      if (end > 0) yield { piece: waiting.slice(0, end), isEnd: false };
      waiting = waiting.slice(end);
    }
  }
  if (tokens !== 'bytes') yield { piece: waiting, isEnd: true };
}

/** @param at where the bytes begin in the file */
function notUtf8(path: string, bytes: Uint8Array, at: number, cause: unknown) {
  const [first, second] = bytes;
  const isWide =
    at === 0 && ((first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff));
  if (isWide) return corrupt(path, 'it is UTF-16; save it as UTF-8', cause);
  // Bytes at the beginning may be the rest of a character of the last piece.
  let from = 0;
  while (at > 0 && from < CHARACTER_REST && (bytes[from]! & 0xc0) === 0x80) from++;
  const decoded = (end: number) => {
    try {
      const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
      return decoder.decode(bytes.subarray(from, end), { stream: true });
    } catch {
      return null;
    }
  };
  // The longest beginning that is UTF-8; its last character may lack bytes.
  let good = from;
  let bad = bytes.length;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    if (decoded(middle) === null) bad = middle;
    else good = middle;
  }
  const place = from + Buffer.byteLength(decoded(good)!);
  const value = bytes[place]!.toString(16).padStart(2, '0');
  return corrupt(
    path,
    `byte ${at + place} (0x${value}) is not UTF-8; save it as UTF-8, or use tokens: 'bytes'`,
    cause,
  );
}
/** Bytes of a character after its first one. */
const CHARACTER_REST = 3;

const tooLongDocument = (path: string, length: number, separator: string) =>
  corrupt(
    path,
    `a document has ${length} characters or more; allowed: ${DOCUMENT_MAX}. Is ${describe(separator)} what stands between documents?`,
  );

/** Where the last row of spaces begins; 0: there is none, and not yet too much without one. */
function lastSpaces(text: string): number {
  let at = text.length - 1;
  while (at >= 0 && !SPACE.test(text[at]!)) at--;
  while (at > 0 && SPACE.test(text[at - 1]!)) at--;
  if (at > 0) return at;
  return text.length > WAITING_MAX ? text.length : 0;
}
const SPACE = /\s/;
