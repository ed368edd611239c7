import type { DownpourError } from '../../../shared/errors.ts';
import { corrupt } from '../files.ts';

/** Bytes to text, in pieces of whole lines: what is not text in the encoding is an error with its line. */

/** The most bytes of one line, or of a file without line ends. */
const LINE_BYTES_MAX = 64 * 2 ** 20;
/** Enough to know the encoding by. */
const HEAD_BYTES = 4096;

/** The characters of the bytes 80 … 9f, which Node's decoder takes for Latin-1. Spaces: none. */
const WINDOWS_1252 = '€ ‚ƒ„…†‡ˆ‰Š‹Œ Ž  ‘’“”•–—˜™š›œ žŸ';

const MARKS: readonly (readonly [encoding: string, bytes: readonly number[]])[] = [
  ['utf-8', [0xef, 0xbb, 0xbf]],
  ['utf-16le', [0xff, 0xfe]],
  ['utf-16be', [0xfe, 0xff]],
];

/** True for a label that TextDecoder knows. */
export function isEncoding(label: unknown): label is string {
  try {
    return typeof label === 'string' && new TextDecoder(label, { fatal: true }) !== null;
  } catch {
    return false;
  }
}

export class StrictText {
  readonly #name: string;
  /** The encoding as TextDecoder spells it; undefined until the first bytes are there. */
  #encoding: string | undefined;
  #carry: Buffer = Buffer.alloc(0);
  /** Where `#carry` begins in the file. */
  #at = 0;
  readonly #given: string | undefined;
  /** Bytes of the text that was given out last. */
  given = 0;

  /** @param name of the file, for errors. @param encoding a label that `isEncoding` knows; default: by the byte order mark, else UTF-8 */
  constructor(name: string, encoding?: string) {
    this.#name = name;
    this.#given = encoding;
  }

  /** As TextDecoder spells it. */
  get encoding(): string {
    return this.#encoding ?? 'utf-8';
  }

  /** Bytes of the file up to the end of all text that was given out. */
  get position(): number {
    return this.#at;
  }

  /**
   * @param linesBefore line ends in all text that was given out before. Asked for an error alone.
   * @returns text up to the last line end that is there; all that is left when `final`
   * @throws DownpourError DP_DATA_CORRUPT
   */
  push(bytes: Uint8Array, final: boolean, linesBefore: () => number): string {
    let all = this.#carry.length === 0 ? toBuffer(bytes) : Buffer.concat([this.#carry, bytes]);
    if (this.#encoding === undefined) {
      if (all.length < HEAD_BYTES && !final) {
        this.#carry = all;
        this.given = 0;
        return '';
      }
      const markBytes = this.#begin(all);
      all = all.subarray(markBytes);
      this.#at = markBytes;
    }
    const end = final ? all.length : this.#afterLastLine(all);
    if (all.length - end > LINE_BYTES_MAX) {
      throw corrupt(
        this.#name,
        `line ${linesBefore() + 1} is longer than ${LINE_BYTES_MAX} bytes; is it a table?`,
      );
    }
    this.#carry = all.subarray(end);
    const text = this.#decode(all.subarray(0, end), linesBefore);
    this.#at += end;
    this.given = end;
    return text;
  }

  /** Finds the encoding. @returns the length of the byte order mark */
  #begin(head: Buffer): number {
    const begins = (bytes: readonly number[]) => bytes.every((byte, i) => head[i] === byte);
    const given = this.#given === undefined ? undefined : new TextDecoder(this.#given).encoding;
    if (begins([0xff, 0xfe, 0, 0]) || begins([0, 0, 0xfe, 0xff])) {
      throw corrupt(this.#name, 'it is UTF-32; save it as UTF-8');
    }
    const mark = MARKS.find(([, bytes]) => begins(bytes));
    if (mark) {
      const [encoding, { length }] = mark;
      // The label utf-16 leaves the order to the mark.
      const fits = given === undefined || given === encoding || /^utf-16$/i.test(this.#given!);
      if (!fits) {
        throw corrupt(
          this.#name,
          `it begins with the byte order mark of ${encoding}, and \`encoding\` is '${this.#given}'; remove the option \`encoding\``,
        );
      }
      this.#encoding = encoding;
      return length;
    }
    const wide = given === undefined ? wideEncoding(head) : null;
    if (wide) {
      throw corrupt(
        this.#name,
        `it is ${wide} without a byte order mark; set \`encoding: '${wide}'\`, or save it as UTF-8`,
      );
    }
    this.#encoding = given ?? 'utf-8';
    return 0;
  }

  /** In no encoding that has line ends of one byte is such a byte part of another character. */
  #afterLastLine(bytes: Buffer): number {
    const wide = this.#encoding!.startsWith('utf-16');
    if (!wide) return Math.max(bytes.lastIndexOf(0x0a), bytes.lastIndexOf(0x0d)) + 1;
    const low = this.#encoding === 'utf-16le' ? 0 : 1;
    for (let at = (bytes.length & ~1) - 2; at >= 0; at -= 2) {
      const unit = bytes[at + low]!;
      if ((unit === 0x0a || unit === 0x0d) && bytes[at + 1 - low] === 0) return at + 2;
    }
    return 0;
  }

  #decode(bytes: Buffer, linesBefore: () => number): string {
    const encoding = this.#encoding!;
    const text = decoded(bytes, encoding);
    if (text === null) throw this.#badByte(bytes, linesBefore);
    const zero = text.indexOf('\0');
    if (zero >= 0) {
      throw corrupt(
        this.#name,
        `line ${linesBefore() + countLineEnds(text.slice(0, zero)) + 1}: a zero byte, which does not occur in text; the file is damaged, or it is not ${encoding}: set \`encoding\``,
      );
    }
    return text;
  }

  /** The first byte of what cannot be decoded. */
  #badByte(bytes: Buffer, linesBefore: () => number): DownpourError {
    const encoding = this.#encoding!;
    // A prefix can be decoded when nothing but its last character is wanting.
    let good = 0;
    let bad = bytes.length + 1;
    while (bad - good > 1) {
      const middle = (good + bad) >> 1;
      if (decoded(bytes.subarray(0, middle), encoding, true) === null) bad = middle;
      else good = middle;
    }
    while (good > 0 && decoded(bytes.subarray(0, good), encoding) === null) good--;
    const before = decoded(bytes.subarray(0, good), encoding)!;
    const line = linesBefore() + countLineEnds(before) + 1;
    const seen = `0x${bytes[good]!.toString(16).padStart(2, '0')}`;
    return corrupt(
      this.#name,
      `line ${line} is not ${encoding}: byte ${this.#at + good} of the file is ${seen}. Save it as UTF-8, or set \`encoding\`: 'windows-1252' for most of Western Europe, 'shift_jis', 'gbk', …`,
    );
  }
}

/** Null: it is not in this encoding. @param stream true: the last character may be cut off. */
export function decoded(bytes: Buffer, encoding: string, stream = false): string | null {
  if (encoding === 'windows-1252') {
    const text = bytes
      .toString('latin1')
      .replace(/[\x80-\x9f]/g, (c) => WINDOWS_1252[c.charCodeAt(0) - 0x80]!);
    const undefinedBytes = [0x81, 0x8d, 0x8f, 0x90, 0x9d];
    return undefinedBytes.some((byte) => bytes.includes(byte)) ? null : text;
  }
  try {
    return new TextDecoder(encoding, { fatal: true, ignoreBOM: true }).decode(bytes, { stream });
  } catch (error) {
    if (error instanceof TypeError) return null;
    throw error;
  }
}

/** Text of mostly Latin letters has a zero in every other byte as UTF-16. */
function wideEncoding(head: Buffer): 'utf-16le' | 'utf-16be' | null {
  const pairs = Math.min(head.length, HEAD_BYTES) >> 1;
  const zeros = [0, 0];
  for (let i = 0; i < 2 * pairs; i++) if (head[i] === 0) zeros[i & 1]!++;
  if (pairs < 2) return null;
  if (zeros[1]! > pairs / 2 && zeros[0] === 0) return 'utf-16le';
  return zeros[0]! > pairs / 2 && zeros[1] === 0 ? 'utf-16be' : null;
}

/** Line ends of any kind; a carriage return with a line feed is one. */
function countLineEnds(text: string): number {
  return text.match(/\r\n|\r|\n/g)?.length ?? 0;
}

function toBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
