import { LIMITS } from '../../shared/limits.ts';
import type { TableRows } from '../../shared/rows.ts';

/** Rows that are never changed: no gradient of them is pushed, and they are asked for once. */
export interface FrozenRows {
  has(key: number): boolean;
}

/** Memory that the kept rows of all tables share. */
export class KeptRoom {
  #bytes: number;

  constructor(bytes: number = LIMITS.frozenRowBytesMax) {
    this.#bytes = bytes;
  }

  /** @returns false: there is not so much left. */
  take(bytes: number): boolean {
    if (bytes > this.#bytes) return false;
    this.#bytes -= bytes;
    return true;
  }

  give(bytes: number): void {
    this.#bytes += bytes;
  }
}

/** Rows that get memory at a time. */
const PIECE_ROWS = 256;
/** A key with its place, bytes: what V8 needs for an entry of a map of whole numbers, at most. */
const KEY_BYTES = 64;

/**
 * The frozen rows of one table that have come, as long as there is room: those that come first are kept, which are the ones
 * that appear most often.
 */
export class KeptRows {
  readonly #width: number;
  readonly #frozen: FrozenRows;
  readonly #room: KeptRoom;
  readonly #places = new Map<number, number>();
  readonly #pieces: Float32Array[] = [];

  constructor(width: number, frozen: FrozenRows, room: KeptRoom) {
    this.#width = width;
    this.#frozen = frozen;
    this.#room = room;
  }

  get #pieceBytes(): number {
    return PIECE_ROWS * (4 * this.#width + KEY_BYTES);
  }

  clear(): void {
    this.#room.give(this.#pieces.length * this.#pieceBytes);
    this.#pieces.length = 0;
    this.#places.clear();
  }

  /** Keeps a copy of those that are frozen. */
  keep({ keys, values }: TableRows): void {
    const width = this.#width;
    for (const [i, key] of keys.entries()) {
      if (this.#places.has(key) || !this.#frozen.has(key)) continue;
      const place = this.#places.size;
      if (place === PIECE_ROWS * this.#pieces.length) {
        if (!this.#room.take(this.#pieceBytes)) return;
        this.#pieces.push(new Float32Array(PIECE_ROWS * width));
      }
      this.#places.set(key, place);
      const at = (place % PIECE_ROWS) * width;
      const piece = this.#pieces[Math.floor(place / PIECE_ROWS)]!;
      piece.set(values.subarray(i * width, (i + 1) * width), at);
    }
  }

  /** @returns the keys whose rows are not kept. */
  unknown(keys: Uint32Array): Uint32Array {
    return keys.filter((key) => !this.#places.has(key));
  }

  /** Rows of some keys, kept ones and others. @returns null: one is neither kept nor among the others. */
  together(keys: Uint32Array, others: TableRows): TableRows | null {
    const width = this.#width;
    const values = new Float32Array(keys.length * width);
    let next = 0;
    for (const [i, key] of keys.entries()) {
      const place = this.#places.get(key);
      let from = others.values;
      let at = 0;
      if (place === undefined) {
        while (next < others.keys.length && others.keys[next]! < key) next++;
        if (others.keys[next] !== key) return null;
        at = next * width;
      } else {
        from = this.#pieces[Math.floor(place / PIECE_ROWS)]!;
        at = (place % PIECE_ROWS) * width;
      }
      // By elements: two views cost more than the copy of a row.
      for (let k = 0; k < width; k++) values[i * width + k] = from[at + k]!;
    }
    return { keys, values };
  }
}
