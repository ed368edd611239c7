import type { PositionedFile } from './positioned-file.ts';

/** Bytes that are read at once. */
export const WINDOW_BYTES = 2 ** 18;

/** Some bytes of a file that were read at once: for short pieces that follow each other, such as headers. */
export class ByteWindow {
  readonly #file: PositionedFile;
  #start = 0;
  #bytes: Buffer = Buffer.alloc(0);

  constructor(file: PositionedFile) {
    this.#file = file;
  }

  /** A view that is overwritten by nobody. @param length up to the end of the file */
  async at(start: number, length: number): Promise<Buffer> {
    const end = this.#start + this.#bytes.length;
    if (start < this.#start || start + length > end) {
      const wanted = Math.min(Math.max(length, WINDOW_BYTES), this.#file.size - start);
      this.#bytes = await this.#file.read({ start, length: Math.max(length, wanted) });
      this.#start = start;
    }
    const from = start - this.#start;
    return this.#bytes.subarray(from, from + length);
  }
}
