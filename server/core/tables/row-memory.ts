import {
  type CompressionKernels,
  createCompressionKernels,
} from '../../../shared/compression-kernels.ts';
import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { MEMORY_BYTES_MAX, Memory, regionBytes } from '../../../shared/memory.ts';
import type { RowShare } from '../../../shared/row-shards.ts';
import { createKernels, type Kernels } from '../kernels.ts';

/**
 * The memory of one table: rows in their slots, the state of their optimizer, and rooms through which pushes and answers
 * pass in pieces. A piece stays in the cache of the processor between the kernels that work on it.
 */

/** Numbers and rows of a piece, at most. */
const PIECE_ELEMENTS = 2 ** 16;
const PIECE_ROWS = 4_096;
/** What a kernel is given for each row of an update: its decay, its rate, and two numbers of the rule. */
export const NUMBERS_OF_ROW = 4;

/** Addresses for the kernels. */
interface Addresses {
  readonly theta: number;
  readonly state: number;
  readonly slots: number;
  readonly numbers: number;
  readonly gradients: number;
  readonly rows: number;
  readonly encoded: number;
}

interface RowMemorySizes {
  /** Rows that there is room for. */
  readonly capacity: number;
  readonly width: number;
  /** Numbers of state that a row has. */
  readonly stateSize: number;
  readonly decays: boolean;
}

export class RowMemory {
  readonly width: number;
  readonly stateSize: number;
  readonly kernels: Kernels;
  readonly compression: CompressionKernels;
  readonly at: Addresses;
  /** Shape [capacity, width]. */
  readonly theta: Float32Array;
  /** Shape [capacity, stateSize]. */
  readonly state: Float32Array;
  /** The row step of the last change of each slot; 0: its row has its initial values, and takes no memory. */
  readonly changed: Float64Array;
  /** Up to which sum of decays each row has decayed; empty: the table does not decay. */
  readonly decays: Float64Array;

  // Rooms.

  /** Rows of a piece, at most. */
  readonly pieceRows: number;
  /** Slots of the rows of a piece; below 0: kernels leave the row out. */
  readonly slots: Int32Array;
  /** Shape [pieceRows, NUMBERS_OF_ROW]. */
  readonly numbers: Float64Array;
  /** Shape [pieceRows, width]. */
  readonly gradients: Float32Array;
  /** Rows as they were before an update, each with its state; or rows of an answer. Shape [pieceRows, width + stateSize]. */
  readonly rows: Float32Array;
  readonly rowsAsBytes: Uint8Array;
  readonly gradientsAsBytes: Uint8Array;
  /** Values of a piece in `bf16` or `int8`. */
  readonly encoded: Uint8Array;
  /** All of the memory. */
  readonly floats: Float32Array;

  /**
   * @param table its name and @param share its rows that are here, for the error.
   * @throws DownpourError DP_LAYOUT_INVALID: it is too large for one memory.
   */
  constructor(
    table: string,
    share: RowShare,
    { capacity, width, stateSize, decays }: RowMemorySizes,
  ) {
    this.width = width;
    this.stateSize = stateSize;
    const pieceRows = Math.max(1, Math.min(PIECE_ROWS, Math.floor(PIECE_ELEMENTS / width)));
    this.pieceRows = pieceRows;
    const decaying = decays ? capacity : 0;
    const sizes = {
      theta: 4 * capacity * width,
      state: 4 * capacity * stateSize,
      changed: 8 * capacity,
      decays: 8 * decaying,
      slots: 4 * pieceRows,
      numbers: 8 * NUMBERS_OF_ROW * pieceRows,
      gradients: 4 * pieceRows * width,
      rows: 4 * pieceRows * (width + stateSize),
      encoded: 4 * pieceRows + 2 * pieceRows * width,
    };
    const bytes = Object.values(sizes).reduce((sum, size) => sum + regionBytes(size), 0);
    if (bytes > MEMORY_BYTES_MAX) throw tooLarge(table, bytes, share);
    const memory = new Memory(bytes);
    const take = (region: keyof typeof sizes) => memory.take(sizes[region]);
    const { buffer } = memory.memory;
    const changed = take('changed');
    const sums = take('decays');
    this.at = {
      theta: take('theta'),
      state: take('state'),
      slots: take('slots'),
      numbers: take('numbers'),
      gradients: take('gradients'),
      rows: take('rows'),
      encoded: take('encoded'),
    };
    this.changed = new Float64Array(buffer, changed, capacity);
    this.decays = new Float64Array(buffer, sums, decaying);
    this.theta = memory.floats(this.at.theta, capacity * width);
    this.state = memory.floats(this.at.state, capacity * stateSize);
    this.slots = new Int32Array(buffer, this.at.slots, pieceRows);
    this.numbers = new Float64Array(buffer, this.at.numbers, NUMBERS_OF_ROW * pieceRows);
    this.gradients = memory.floats(this.at.gradients, pieceRows * width);
    this.gradientsAsBytes = memory.bytes(this.at.gradients, sizes.gradients);
    this.rows = memory.floats(this.at.rows, pieceRows * (width + stateSize));
    this.rowsAsBytes = memory.bytes(this.at.rows, sizes.rows);
    this.encoded = memory.bytes(this.at.encoded, sizes.encoded);
    this.floats = new Float32Array(buffer);
    this.kernels = createKernels(memory.memory);
    this.compression = createCompressionKernels(memory.memory);
  }
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function tooLarge(name: string, bytes: number, { count }: RowShare): DownpourError {
  const needed = Math.ceil((bytes * count) / (0.95 * MEMORY_BYTES_MAX));
  const more = needed <= LIMITS.shardCountMax ? `start the server with --shards ${needed}, ` : '';
  return new DownpourError(
    'DP_LAYOUT_INVALID',
    `table '${name}' with the state of its optimizer takes ${gib(bytes)}${count > 1 ? ` on each of ${count} shards` : ''}; one server or shard holds ${gib(MEMORY_BYTES_MAX)} of a table: ${more}use fewer or narrower rows, or the optimizer adagrad or sgd`,
  );
}
