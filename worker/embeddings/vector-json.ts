import { LIMITS } from '../../shared/limits.ts';
import { decimalAt, decimals } from './decimals.ts';
import {
  BatchBuilder,
  damaged,
  mustBeNumbers,
  mustBeWidth,
  mustEndSoon,
  NO_VECTORS,
  type ParserOptions,
  UnreadRest,
  type VectorBatch,
  type VectorParser,
} from './vector-parser.ts';

/**
 * Word vectors as the npm packages `wink-embeddings-*` have them: one JSON object with `dimensions`, `wordIndex` and `vectors`,
 * an object of arrays by word. An array has the numbers of the vector, and behind them its norm and, at `wordIndex`, the
 * place of the word among all words, the most frequent one first.
 */

const QUOTE = 34;
const COMMA = 44;
const BACKSLASH = 92;
const CLOSE_ARRAY = 93;
const OPEN_OBJECT = 123;
const CLOSE_OBJECT = 125;
/** A key of JSON and no word of a list: a colon follows. */
const VECTORS = /(?<!\\)"vectors"\s*:\s*\{/;
const OVERLAP = 64;

export class JsonVectors implements VectorParser {
  width = 0;
  count = 0;
  readonly #options: ParserOptions;
  readonly #rest = new UnreadRest();
  #state: 'head' | 'vectors' | 'end' = 'head';
  /** Bytes of the file before those of `#rest`. */
  #before = 0;
  /** Where in its array a word has its place; −1: nowhere. */
  #rankAt = -1;
  #batch = new BatchBuilder(0);
  /** Bytes before the vectors that were searched; some of them are searched again. */
  #searched = 0;
  #isObject = false;

  constructor(options: ParserOptions) {
    this.#options = options;
  }

  feed(piece: Buffer): VectorBatch {
    if (this.#state === 'end') return NO_VECTORS;
    const bytes = this.#rest.followedBy(piece);
    let at = 0;
    if (this.#state === 'head') {
      at = this.#head(bytes);
      if (at < 0) {
        this.#rest.bytes = bytes;
        return NO_VECTORS;
      }
      this.#state = 'vectors';
    }
    for (;;) {
      const next = this.#entry(bytes, at);
      if (next < 0) break;
      at = next;
      if (bytes[at - 1] === CLOSE_OBJECT) {
        this.#state = 'end';
        break;
      }
    }
    this.#rest.bytes = bytes.subarray(this.#state === 'end' ? bytes.length : at);
    this.#before += at;
    mustEndSoon(this.#options.path, `byte ${this.#before}`, this.#rest.bytes.length);
    return this.#batch.take();
  }

  end(): VectorBatch {
    if (this.#state === 'end') return NO_VECTORS;
    throw damaged(
      this.#options.path,
      this.#state === 'head'
        ? 'it has no object "vectors" with an array of numbers for each word'
        : `it ends after ${this.count} words in the midst of "vectors": it is truncated; fetch it again`,
    );
  }

  /** @returns where the words begin; −1: not yet. */
  #head(bytes: Buffer): number {
    const { path } = this.#options;
    if (!this.#isObject) {
      const first = bytes.find((byte) => !isSpace(byte));
      if (first !== undefined && first !== OPEN_OBJECT) throw damaged(path, 'it is no JSON object');
      this.#isObject = first !== undefined;
    }
    const from = Math.max(0, this.#searched - OVERLAP);
    const found = VECTORS.exec(bytes.toString('latin1', from));
    this.#searched = bytes.length;
    if (!found) {
      if (bytes.length <= LIMITS.wordVectorHeadBytesMax) return -1;
      throw damaged(
        path,
        `it has no object "vectors" in its first ${LIMITS.wordVectorHeadBytesMax} bytes, which are all that is looked at`,
      );
    }
    const start = from + found.index;
    const head = bytes.toString('latin1', 0, start);
    const numberOf = (key: string) =>
      Number(new RegExp(`(?<!\\\\)"${key}"\\s*:\\s*(\\d+)`).exec(head)?.[1] ?? Number.NaN);
    const width = numberOf('dimensions');
    const rankAt = numberOf('wordIndex');
    if (!Number.isNaN(rankAt)) this.#rankAt = rankAt;
    if (!Number.isNaN(width)) this.#setWidth(width);
    return start + found[0].length;
  }

  #setWidth(width: number): void {
    mustBeWidth(this.#options.path, width);
    this.width = width;
    this.#batch = new BatchBuilder(width);
  }

  /** @returns where it ends; −1: it is not whole yet. */
  #entry(bytes: Buffer, start: number): number {
    let from = start;
    while (from < bytes.length && (isSpace(bytes[from]!) || bytes[from] === COMMA)) from++;
    if (from >= bytes.length) return -1;
    if (bytes[from] === CLOSE_OBJECT) return from + 1;
    const place = `byte ${this.#before + from}`;
    const { path, wants, ranksMax = Number.POSITIVE_INFINITY } = this.#options;
    if (bytes[from] !== QUOTE) throw damaged(path, `${place}: a word in quotes is expected`);
    let wordEnd = from + 1;
    let isPlain = true;
    while (wordEnd < bytes.length && bytes[wordEnd] !== QUOTE) {
      if (bytes[wordEnd] === BACKSLASH) {
        isPlain = false;
        wordEnd++;
      }
      wordEnd++;
    }
    const end = bytes.indexOf(CLOSE_ARRAY, wordEnd);
    if (wordEnd >= bytes.length || end < 0) return -1;
    const open = /^\s*:\s*\[/.exec(bytes.toString('latin1', wordEnd + 1, wordEnd + 1 + OVERLAP));
    if (!open) throw damaged(path, `${place}: an array of numbers is expected behind the word`);
    const numbersAt = wordEnd + 1 + open[0].length;
    const word = isPlain
      ? bytes.toString('utf8', from + 1, wordEnd)
      : wordOf(path, place, bytes.toString('utf8', from, wordEnd + 1));
    const order = this.count++;
    if (wants && !wants(word)) return end + 1;
    const rank = this.#rankAt < 0 ? order : this.#rankOf(bytes, numbersAt, end);
    if (rank >= ranksMax) return end + 1;
    if (this.width === 0) this.#setWidth(1 + commas(bytes, numbersAt, end));
    const vector = this.#batch.add(word, rank);
    const numbers = decimals(bytes, numbersAt, end, COMMA, vector);
    if (numbers < this.width) {
      throw damaged(
        path,
        `${place}: the word '${word.slice(0, 40)}' has ${numbers} numbers, fewer than the ${this.width} of a vector`,
      );
    }
    mustBeNumbers(path, word, place, vector);
    return end + 1;
  }

  /** The place of a word among all words; it is in the array. */
  #rankOf(bytes: Buffer, from: number, end: number): number {
    let at = from;
    for (let i = 0; i < this.#rankAt && at > 0; i++) at = bytes.indexOf(COMMA, at) + 1;
    let next = bytes.indexOf(COMMA, at);
    if (next < 0 || next > end) next = end;
    const rank = at === 0 || at > end ? Number.NaN : decimalAt(bytes, at, next);
    if (Number.isInteger(rank) && rank >= 0) return rank;
    throw damaged(
      this.#options.path,
      `byte ${this.#before + from}: the array has no whole number at ${this.#rankAt}, where "wordIndex" says that the place of the word is`,
    );
  }
}

function commas(bytes: Buffer, from: number, end: number): number {
  let count = 0;
  for (let at = from; at < end; at++) if (bytes[at] === COMMA) count++;
  return count;
}

const isSpace = (byte: number) => byte === 32 || byte === 10 || byte === 13 || byte === 9;

function wordOf(path: string, place: string, quoted: string): string {
  try {
    return JSON.parse(quoted) as string;
  } catch {
    throw damaged(path, `${place}: ${quoted.slice(0, 40)} is no text of JSON`);
  }
}
