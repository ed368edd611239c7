import { decimals } from './decimals.ts';
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
 * Word vectors as text: a line for each word, the word and then its numbers with blanks between. word2vec and fastText
 * (`.vec`) have a first line with the number of words and of numbers; GloVe has none. Words of GloVe may have blanks.
 */

const LINE_END = 10;
const BLANK = 32;
const HEADER = /^(\d+)[ \t]+(\d+)[ \t\r]*$/;

export class TextVectors implements VectorParser {
  width = 0;
  count = 0;
  readonly #options: ParserOptions;
  readonly #rest = new UnreadRest();
  /** Words that the first line says; null: there is no such line, or it was not read yet. */
  #told: number | null = null;
  #lines = 0;
  #batch = new BatchBuilder(0);

  constructor(options: ParserOptions) {
    this.#options = options;
  }

  feed(piece: Buffer): VectorBatch {
    const bytes = this.#rest.followedBy(piece);
    let at = 0;
    for (;;) {
      const end = bytes.indexOf(LINE_END, at);
      if (end < 0) break;
      this.#line(bytes, at, end);
      at = end + 1;
    }
    this.#rest.bytes = bytes.subarray(at);
    mustEndSoon(this.#options.path, `line ${this.#lines + 1}`, this.#rest.bytes.length);
    return this.#batch.take();
  }

  end(): VectorBatch {
    const { path } = this.#options;
    const rest = this.#rest.take();
    if (rest.length > 0) this.#line(rest, 0, rest.length);
    if (this.#told !== null && this.#told !== this.count) {
      throw damaged(
        path,
        `its first line says ${this.#told} words, and it has ${this.count}: it is truncated or was changed; fetch it again`,
      );
    }
    return this.width === 0 ? NO_VECTORS : this.#batch.take();
  }

  #line(bytes: Buffer, from: number, lineEnd: number): void {
    this.#lines++;
    const { path, wants, ranksMax = Number.POSITIVE_INFINITY } = this.#options;
    mustEndSoon(path, `line ${this.#lines}`, lineEnd - from);
    let end = lineEnd;
    while (end > from && (bytes[end - 1] === BLANK || bytes[end - 1] === 13)) end--;
    if (this.width === 0) {
      if (this.#isHeader(bytes.toString('latin1', from, end))) return;
    } else if (end === from) return;
    let wordEnd = bytes.indexOf(BLANK, from);
    // A word that begins with a blank, which a tokenizer has left there.
    if (wordEnd === from) wordEnd = bytes.indexOf(BLANK, from + 1);
    if (wordEnd < 0 || wordEnd >= end) {
      throw damaged(path, `line ${this.#lines} has a word and no numbers`);
    }
    if (this.width > 0 && !this.#beginsNumber(bytes, wordEnd + 1)) {
      // A word with blanks in it.
      wordEnd = this.#beforeNumbers(bytes, from, end);
    }
    const rank = this.count++;
    const word = bytes.toString('utf8', from, wordEnd);
    if (rank >= ranksMax || (wants && !wants(word))) return;
    const vector = this.#batch.add(word, rank);
    const numbers = decimals(bytes, wordEnd + 1, end, BLANK, vector);
    if (numbers !== this.width) {
      throw damaged(
        path,
        `line ${this.#lines}, the word '${word.slice(0, 40)}', has ${numbers} numbers; the lines before have ${this.width}`,
      );
    }
    mustBeNumbers(path, word, `line ${this.#lines}`, vector);
  }

  #isHeader(line: string): boolean {
    const header = HEADER.exec(line);
    const { path } = this.#options;
    if (header) {
      this.#told = Number(header[1]);
      this.width = Number(header[2]);
    } else this.width = line.split(' ').length - 1;
    mustBeWidth(path, this.width);
    this.#batch = new BatchBuilder(this.width);
    return header !== null;
  }

  /** Whether a number stands at a place: digits, a sign and a point are enough to tell it from a word. */
  #beginsNumber(bytes: Buffer, at: number): boolean {
    const first = bytes[at]!;
    const second = first === 45 || first === 43 || first === 46 ? bytes[at + 1]! : first;
    return (second >= 48 && second <= 57) || (first !== 46 && second === 46);
  }

  /** The last blank before as many numbers as a vector has. */
  #beforeNumbers(bytes: Buffer, from: number, end: number): number {
    let at = end;
    for (let i = 0; i < this.width; i++) {
      at = bytes.lastIndexOf(BLANK, at - 1);
      if (at > from) continue;
      throw damaged(
        this.#options.path,
        `line ${this.#lines} has ${i} numbers; the lines before have ${this.width}`,
      );
    }
    return at;
  }
}
