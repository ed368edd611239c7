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
 * word2vec's binary format: a line with the number of words and of numbers, then for each word the word, a blank and its
 * numbers in f32, little-endian. The original program writes the end of a line behind each word, others do not.
 */

const LINE_END = 10;
const BLANK = 32;
const HEADER_BYTES_MAX = 64;

export class BinaryVectors implements VectorParser {
  width = 0;
  count = 0;
  readonly #options: ParserOptions;
  readonly #rest = new UnreadRest();
  /** Words that the first line says. */
  #told = 0;
  #batch = new BatchBuilder(0);

  constructor(options: ParserOptions) {
    this.#options = options;
  }

  feed(piece: Buffer): VectorBatch {
    const bytes = this.#rest.followedBy(piece);
    let at = this.width === 0 ? this.#header(bytes) : 0;
    if (this.width === 0) {
      this.#rest.bytes = bytes;
      return NO_VECTORS;
    }
    while (this.count < this.#told) {
      const next = this.#entry(bytes, at);
      if (next < 0) break;
      at = next;
    }
    this.#rest.bytes = bytes.subarray(at);
    return this.#batch.take();
  }

  end(): VectorBatch {
    const { path } = this.#options;
    if (this.width === 0) throw damaged(path, 'it has no first line with two whole numbers');
    if (this.count < this.#told) {
      throw damaged(
        path,
        `its first line says ${this.#told} words, and it ends after ${this.count}: it is truncated; fetch it again`,
      );
    }
    const rest = this.#rest.take();
    const more = rest.findIndex((byte) => byte !== LINE_END);
    if (more >= 0) {
      throw damaged(
        path,
        `${rest.length - more} bytes follow its ${this.#told} words: its first line or the kind of the file is wrong`,
      );
    }
    return this.#batch.take();
  }

  /** @returns where the words begin; 0: the line is not whole yet. */
  #header(bytes: Buffer): number {
    const { path } = this.#options;
    const end = bytes.indexOf(LINE_END);
    if (end < 0 && bytes.length <= HEADER_BYTES_MAX) return 0;
    const line = bytes.toString(
      'latin1',
      0,
      Math.min(end < 0 ? bytes.length : end, HEADER_BYTES_MAX),
    );
    const header = /^(\d+) (\d+)\s*$/.exec(line);
    if (!header) {
      throw damaged(
        path,
        `a binary file of word2vec begins with a line with the number of words and of numbers, such as 3000000 300; this one begins with ${JSON.stringify(line.slice(0, 40))}`,
      );
    }
    mustBeWidth(path, Number(header[2]));
    this.#told = Number(header[1]);
    this.width = Number(header[2]);
    this.#batch = new BatchBuilder(this.width);
    return end + 1;
  }

  /** @returns where it ends; −1: it is not whole yet. */
  #entry(bytes: Buffer, start: number): number {
    const { path, wants, ranksMax = Number.POSITIVE_INFINITY } = this.#options;
    let from = start;
    while (bytes[from] === LINE_END) from++;
    const wordEnd = bytes.indexOf(BLANK, from);
    mustEndSoon(path, `word ${this.count + 1}`, (wordEnd < 0 ? bytes.length : wordEnd) - from);
    const end = wordEnd + 1 + 4 * this.width;
    if (wordEnd < 0 || end > bytes.length) return -1;
    const rank = this.count++;
    const word = bytes.toString('utf8', from, wordEnd);
    if (rank >= ranksMax || (wants && !wants(word))) return end;
    const vector = this.#batch.add(word, rank);
    for (let i = 0; i < this.width; i++) vector[i] = bytes.readFloatLE(wordEnd + 1 + 4 * i);
    mustBeNumbers(path, word, `word ${rank + 1}`, vector);
    return end;
  }
}
