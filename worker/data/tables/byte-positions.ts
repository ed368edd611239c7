import { corrupt } from '../files.ts';

/** Where characters of a text lie in its file, in bytes: asked for in rising order while the text comes in. */

interface TextPiece {
  /** Characters of all text before it. */
  readonly from: number;
  /** Where it begins in the file. */
  readonly byte: number;
  readonly text: string;
  /** Bytes of each character; null: it varies. */
  readonly unit: number | null;
}

export class BytePositions {
  readonly #name: string;
  #pieces: TextPiece[] = [];
  #characters = 0;
  /** The last character that was asked for, and its byte, in the first piece. */
  #last: { character: number; byte: number } | null = null;

  /** @param name of the file, for errors */
  constructor(name: string) {
    this.#name = name;
  }

  /**
   * The text that comes next. @param byte where it begins in the file @param bytes that it has there
   * @throws DownpourError DP_DATA_CORRUPT: characters of this encoding cannot be told apart by counting bytes.
   */
  add(text: string, byte: number, bytes: number, encoding: string): void {
    if (text === '') return;
    // Where each character is one byte, as in ASCII and Latin-1, as many as there are characters.
    const unit = bytes === text.length ? 1 : encoding.startsWith('utf-16') ? 2 : null;
    if (unit === null && encoding !== 'utf-8') {
      throw corrupt(
        this.#name,
        `rows of a file in ${encoding} cannot be found by position; save it as UTF-8: iconv -f ${encoding} -t utf-8`,
      );
    }
    this.#pieces.push({ from: this.#characters, byte, text, unit });
    this.#characters += text.length;
  }

  /** @param character at or behind the last one asked for, among the text that has been added */
  at(character: number): number {
    for (;;) {
      const [piece, next] = this.#pieces;
      if (next === undefined || character < next.from) return this.#within(piece!, character);
      this.#pieces.shift();
      this.#last = null;
    }
  }

  #within({ from, byte, text, unit }: TextPiece, character: number): number {
    if (unit !== null) return byte + unit * (character - from);
    const last = this.#last ?? { character: from, byte };
    const between = text.slice(last.character - from, character - from);
    const found = last.byte + Buffer.byteLength(between);
    this.#last = { character, byte: found };
    return found;
  }
}
