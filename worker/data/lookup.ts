import {
  type CompressionKernels,
  createCompressionKernels,
} from '../../shared/compression-kernels.ts';
import { Memory, regionBytes } from '../../shared/memory.ts';

/**
 * Numbers for bytes by a table, for minibatches of pixels: the lookups run in WebAssembly, on some thousand bytes at
 * a time, since JavaScript takes each number through a double (7 times as long).
 */

/** Looked up at once. */
const CHUNK_BYTES = 64 * 1024;
const TABLE_LENGTH = 256;

interface LookupMemory {
  readonly kernels: CompressionKernels;
  readonly table: Float32Array;
  readonly tableAt: number;
  readonly bytes: Uint8Array;
  readonly bytesAt: number;
  readonly numbers: Float32Array;
  readonly numbersAt: number;
}

let room: LookupMemory | null = null;

function openRoom(): LookupMemory {
  const memory = new Memory(
    regionBytes(4 * TABLE_LENGTH) + regionBytes(CHUNK_BYTES) + regionBytes(4 * CHUNK_BYTES),
  );
  const tableAt = memory.take(4 * TABLE_LENGTH);
  const bytesAt = memory.take(CHUNK_BYTES);
  const numbersAt = memory.take(4 * CHUNK_BYTES);
  return {
    ...{ kernels: createCompressionKernels(memory.memory), tableAt, bytesAt, numbersAt },
    table: memory.floats(tableAt, TABLE_LENGTH),
    bytes: memory.bytes(bytesAt, CHUNK_BYTES),
    numbers: memory.floats(numbersAt, CHUNK_BYTES),
  };
}

export interface Lookup {
  /** `target[at + j]` ← `table[source[start + j]]` for j below `size`, with the next `flush` at the latest. */
  add(source: Uint8Array, start: number, size: number, at: number): void;
  flush(): void;
}

/** @param table 256 numbers. Only one lookup at a time may be under way. */
export function lookUpInto(target: Float32Array, table: Float32Array): Lookup {
  room ??= openRoom();
  const { kernels, bytes, bytesAt, numbers, numbersAt, tableAt } = room;
  room.table.set(table);
  let from = 0;
  let count = 0;
  const flush = () => {
    if (count === 0) return;
    kernels.lookup(bytesAt, count, tableAt, numbersAt);
    target.set(numbers.subarray(0, count), from);
    count = 0;
  };
  return {
    add(source, start, size, at) {
      for (let taken = 0; taken < size; ) {
        if (count === CHUNK_BYTES || (count > 0 && at + taken !== from + count)) flush();
        if (count === 0) from = at + taken;
        const piece = Math.min(size - taken, CHUNK_BYTES - count);
        bytes.set(source.subarray(start + taken, start + taken + piece), count);
        count += piece;
        taken += piece;
      }
    },
    flush,
  };
}
