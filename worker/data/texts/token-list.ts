import { corrupt } from '../files.ts';

/** Tokens in as few bytes as their numbers need. */

export type TokenArray = Uint8Array | Uint16Array | Int32Array;

/** The most tokens of a text: they are kept in memory, in 1, 2 or 4 bytes each. */
export const TOKENS_MAX = 2 ** 29;

/** Room for tokens below `kinds`. */
export function tokenArray(length: number, kinds: number): TokenArray {
  if (kinds <= 2 ** 8) return new Uint8Array(length);
  return kinds <= 2 ** 16 ? new Uint16Array(length) : new Int32Array(length);
}

/** Tokens that come in pieces. */
export class TokenList {
  readonly #name: string;
  #values: TokenArray;
  #length = 0;

  /** @param name of the text, for errors @param kinds of tokens that there may be */
  constructor(name: string, kinds: number) {
    this.#name = name;
    this.#values = tokenArray(1024, kinds);
  }

  get length(): number {
    return this.#length;
  }

  /** @throws DownpourError DP_DATA_CORRUPT: they are too many. */
  add(tokens: ArrayLike<number>): void {
    const length = this.#length + tokens.length;
    if (length > TOKENS_MAX) throw tooLong(this.#name, length);
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

export const tooLong = (name: string, length: number) =>
  corrupt(
    name,
    `it has ${length} tokens or more; allowed: ${TOKENS_MAX}. Split it into several runs, or use a tokenizer, whose tokens are longer`,
  );
