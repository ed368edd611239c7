import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';

/** What the readers of the formats of word vectors have in common: bytes in pieces go in, vectors of wanted words come out. */

/** Some words of a file, in its order. */
export interface VectorBatch {
  readonly words: string[];
  /** Place of each word among all words of the file, the most frequent one first: from 0. */
  readonly ranks: number[];
  /** Shape [words, width]. */
  readonly values: Float32Array;
}

export interface VectorParser {
  /** Numbers of a vector; 0: not known yet. */
  readonly width: number;
  /** Words so far, wanted or not. */
  readonly count: number;
  /** @throws DownpourError DP_DATA_CORRUPT with the place. */
  feed(piece: Buffer): VectorBatch;
  /** The file has ended. @returns the last words. @throws DownpourError DP_DATA_CORRUPT: it ends too early. */
  end(): VectorBatch;
}

export interface ParserOptions {
  readonly path: string;
  /** Words whose vectors are needed; the numbers of other words are not looked at. Default: all. */
  readonly wants?: ((word: string) => boolean) | undefined;
  /** Only this many of the most frequent words are needed. Default: all. */
  readonly ranksMax?: number | undefined;
}

/** The end of a piece that is no whole word with its vector: it is read with the next piece. */
export class UnreadRest {
  bytes: Buffer = Buffer.alloc(0);

  /** @returns the rest and the piece behind it; the piece itself if there is no rest. */
  followedBy(piece: Buffer): Buffer {
    return this.bytes.length > 0 ? Buffer.concat([this.bytes, piece]) : piece;
  }

  /** @returns the rest, which is then empty. */
  take(): Buffer {
    const { bytes } = this;
    this.bytes = Buffer.alloc(0);
    return bytes;
  }
}

/** Collects the vectors of one piece. */
export class BatchBuilder {
  readonly #width: number;
  #words: string[] = [];
  #ranks: number[] = [];
  #values = new Float32Array(0);

  constructor(width: number) {
    this.#width = width;
  }

  /** @returns the numbers of the word, to be written to at once; zeros. */
  add(word: string, rank: number): Float32Array {
    const at = this.#words.length * this.#width;
    if (at + this.#width > this.#values.length) {
      const larger = new Float32Array(Math.max(64 * this.#width, 2 * this.#values.length));
      larger.set(this.#values);
      this.#values = larger;
    }
    this.#words.push(word);
    this.#ranks.push(rank);
    return this.#values.subarray(at, at + this.#width);
  }

  take(): VectorBatch {
    const values = this.#values.subarray(0, this.#words.length * this.#width);
    const batch = { words: this.#words, ranks: this.#ranks, values };
    this.#words = [];
    this.#ranks = [];
    this.#values = new Float32Array(0);
    return batch;
  }
}

export const NO_VECTORS: VectorBatch = { words: [], ranks: [], values: new Float32Array(0) };

/** @throws DownpourError DP_DATA_CORRUPT: a table has no such rows. */
export function mustBeWidth(path: string, width: number): void {
  if (Number.isInteger(width) && width >= 1 && width <= LIMITS.rowWidthMax) return;
  throw damaged(
    path,
    `its vectors have ${width} numbers; allowed: 1 to ${LIMITS.rowWidthMax}. Is it a file of word vectors?`,
  );
}

/** @throws DownpourError DP_DATA_CORRUPT: the word has a number that is none. @param at where it is, in words. */
export function mustBeNumbers(path: string, word: string, at: string, vector: Float32Array): void {
  let sum = 0;
  for (const x of vector) sum += x - x;
  if (sum === 0) return;
  const i = vector.findIndex((x) => !Number.isFinite(x));
  throw damaged(
    path,
    `${at}: number ${i + 1} of the word '${word.slice(0, 40)}' is ${vector[i]}; allowed: finite numbers`,
  );
}

export const damaged = (path: string, what: string) =>
  new DownpourError('DP_DATA_CORRUPT', `the file of word vectors ${path} cannot be read: ${what}`);

/** @throws DownpourError DP_DATA_CORRUPT: nothing of this length is a word with its vector. */
export function mustEndSoon(path: string, at: string, bytes: number): void {
  if (bytes <= LIMITS.wordVectorBytesMax) return;
  throw damaged(
    path,
    `${at}: a word with its vector takes more than the ${LIMITS.wordVectorBytesMax} bytes allowed. Is it a file of word vectors?`,
  );
}
