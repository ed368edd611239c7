import { corrupt } from '../files.ts';

/**
 * Cells of delimited text (RFC 4180): cells in quotes may hold delimiters, line ends and, written twice,
 * quotes. Line ends may be \n, \r\n or \r, also mixed. Empty lines are passed over.
 */

export interface Dialect {
  readonly delimiter: string;
  /** Null: a quote is a character as any other. */
  readonly quote: string | null;
  /** Lines that begin so are passed over. */
  readonly comment: string | null;
}

/** The most characters of a cell in quotes; a quote that is never closed would take in the rest of the file. */
const QUOTED_CHARACTERS_MAX = 2 ** 20;

const LF = 10;
const CR = 13;
const SPACE = 32;

export class Tokens {
  readonly #name: string;
  readonly #dialect: Dialect;
  readonly #quote: number;
  readonly #delimiter: number;
  #text = '';
  /** Characters given before `#text`. */
  #passed = 0;
  #at = 0;
  #final = false;
  /** Line ends passed. */
  #lines = 0;
  /** The last character passed was a carriage return; a line feed may belong to it. */
  #afterReturn = false;

  /** @param name of the file, for errors */
  constructor(name: string, dialect: Dialect) {
    this.#name = name;
    this.#dialect = dialect;
    this.#quote = dialect.quote === null ? -1 : dialect.quote.charCodeAt(0);
    this.#delimiter = dialect.delimiter.charCodeAt(0);
  }

  /** Line, counted from 1, of the record that `next` gave last. */
  line = 0;

  /** Characters of all text before that record. */
  begin = 0;

  /** Line ends in all text that was given so far. */
  lineEnds(): number {
    let count = this.#lines;
    const { length } = this.#text;
    for (let i = this.#at; i < length; i++) {
      const c = this.#text.charCodeAt(i);
      const follows = i > this.#at ? this.#text.charCodeAt(i - 1) === CR : this.#afterReturn;
      if (c === LF && follows) continue;
      if (c === LF || c === CR) count++;
    }
    return count;
  }

  /** @param final nothing comes after it */
  push(text: string, final: boolean): void {
    this.#text = this.#text.slice(this.#at) + text;
    this.#passed += this.#at;
    this.#at = 0;
    this.#final = final;
  }

  /**
   * The cells of the next line, or null when its end has not been given yet.
   * @throws DownpourError DP_DATA_CORRUPT for a quote out of place
   */
  next(): string[] | null {
    for (;;) {
      this.#skipFeed();
      if (this.#at >= this.#text.length) return null;
      const { comment } = this.#dialect;
      if (comment !== null && this.#text.startsWith(comment, this.#at)) {
        const end = this.#endOfLine(this.#at);
        if (end === this.#text.length && !this.#final) return null;
        this.#at = end;
        this.#passLineEnd();
        continue;
      }
      const begin = this.#at;
      const lines = this.#lines;
      this.line = lines + 1;
      this.begin = this.#passed + begin;
      const cells = this.#record();
      if (cells === null) {
        this.#at = begin;
        this.#lines = lines;
        return null;
      }
      const isEmpty = cells.length === 1 && cells[0]!.trim() === '';
      if (isEmpty && this.#text.charCodeAt(begin) !== this.#quote) continue;
      return cells;
    }
  }

  #skipFeed(): void {
    if (!this.#afterReturn || this.#at >= this.#text.length) return;
    this.#afterReturn = false;
    if (this.#text.charCodeAt(this.#at) === LF) this.#at++;
  }

  #passLineEnd(): void {
    if (this.#at >= this.#text.length) return;
    this.#afterReturn = this.#text.charCodeAt(this.#at) === CR;
    this.#at++;
    this.#lines++;
  }

  #endOfLine(from: number): number {
    for (let i = from; i < this.#text.length; i++) {
      const c = this.#text.charCodeAt(i);
      if (c === LF || c === CR) return i;
    }
    return this.#text.length;
  }

  /** Null: it goes on after the text. */
  #record(): string[] | null {
    const cells: string[] = [];
    for (;;) {
      const open = this.#openingQuote();
      const cell = open < 0 ? this.#plainCell(cells.length) : this.#quotedCell(open, cells.length);
      if (cell === null) return null;
      cells.push(cell);
      if (this.#isDelimiter(this.#at)) {
        this.#at += this.#dialect.delimiter.length;
        continue;
      }
      if (this.#at >= this.#text.length && !this.#final) return null;
      this.#passLineEnd();
      return cells;
    }
  }

  #isDelimiter(at: number): boolean {
    const { delimiter } = this.#dialect;
    if (this.#text.charCodeAt(at) !== this.#delimiter) return false;
    return delimiter.length === 1 || this.#text.startsWith(delimiter, at);
  }

  /** Where the quote is that a cell begins with, after spaces perhaps; -1: there is none. */
  #openingQuote(): number {
    if (this.#quote < 0) return -1;
    let i = this.#at;
    while (this.#text.charCodeAt(i) === SPACE && !this.#isDelimiter(i)) i++;
    return this.#text.charCodeAt(i) === this.#quote ? i : -1;
  }

  #plainCell(cell: number): string {
    const text = this.#text;
    const begin = this.#at;
    let i = begin;
    for (; i < text.length; i++) {
      const c = text.charCodeAt(i);
      if (c === LF || c === CR || (c === this.#delimiter && this.#isDelimiter(i))) break;
      if (c === this.#quote) throw this.#strayQuote(this.#lines, cell, text.slice(begin, i + 1));
    }
    this.#at = i;
    return text.slice(begin, i);
  }

  #quotedCell(open: number, cell: number): string | null {
    const text = this.#text;
    const quote = this.#dialect.quote!;
    const lines = this.#lines;
    let from = open + 1;
    let doubled = false;
    for (;;) {
      const close = text.indexOf(quote, from);
      if (close < 0 || (close === text.length - 1 && !this.#final)) {
        if (this.#final || text.length - open > QUOTED_CHARACTERS_MAX) {
          throw corrupt(
            this.#name,
            `line ${lines + 1}: the quote that begins cell ${cell + 1} is ${this.#final ? 'never closed' : `not closed within ${QUOTED_CHARACTERS_MAX} characters`}; close it, or set \`quote: null\` if quotes are ordinary characters`,
          );
        }
        return null;
      }
      if (text[close + 1] === quote) {
        doubled = true;
        from = close + 2;
        continue;
      }
      const raw = text.slice(open + 1, close);
      this.#lines += lineEndsIn(raw);
      let i = close + 1;
      while (text.charCodeAt(i) === SPACE && !this.#isDelimiter(i)) i++;
      const c = text.charCodeAt(i);
      if (i < text.length && c !== LF && c !== CR && !this.#isDelimiter(i)) {
        throw this.#strayQuote(this.#lines, cell, text.slice(close, i + 1));
      }
      this.#at = i;
      return doubled ? raw.replaceAll(quote + quote, quote) : raw;
    }
  }

  #strayQuote(lines: number, cell: number, seen: string) {
    const shown = seen.length > 30 ? `…${seen.slice(-30)}` : seen;
    return corrupt(
      this.#name,
      `line ${lines + 1}, cell ${cell + 1}: a misplaced quote (${shown}); a cell that has quotes must itself be in quotes, and each quote in it is written twice. If quotes are ordinary characters, set \`quote: null\``,
    );
  }
}

function lineEndsIn(text: string): number {
  let count = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === CR || (c === LF && text.charCodeAt(i - 1) !== CR)) count++;
  }
  return count;
}
