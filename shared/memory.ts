import { DownpourError } from './errors.ts';

/**
 * Memory for numbers that kernels work on: one WebAssembly memory, made at
 * once as large as it will ever be. It never grows, so that no view of it is ever detached; pages
 * that nobody touches cost nothing.
 */
export class Memory {
  readonly memory: WebAssembly.Memory;
  #next = ALIGNMENT_BYTES;

  /** @param bytes of all regions that will be taken, each rounded up by `regionBytes`. */
  constructor(bytes: number) {
    const pages = Math.ceil((ALIGNMENT_BYTES + bytes) / PAGE_BYTES);
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  }

  /** The address of fresh zeros, a multiple of 64. */
  take(bytes: number): number {
    const address = this.#next;
    this.#next += regionBytes(bytes);
    if (this.#next > this.memory.buffer.byteLength)
      throw new Error('the memory was planned too small');
    return address;
  }

  floats(address: number, length: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.memory.buffer, address, length);
  }

  bytes(address: number, length: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.memory.buffer, address, length);
  }
}

const PAGE_BYTES = 2 ** 16;
/** A cache line; a vector of the kernels is 16. */
const ALIGNMENT_BYTES = 64;
/** All that a 32-bit address reaches but the last page. */
export const MEMORY_BYTES_MAX = 2 ** 32 - 2 * PAGE_BYTES;

/** What a region takes: whole lines, and one more, since kernels read and write whole vectors. */
export function regionBytes(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT_BYTES + 1) * ALIGNMENT_BYTES;
}

/** @throws DownpourError DP_LAYOUT_INVALID: more than one memory holds. */
export function checkMemoryBytes(bytes: number): void {
  if (bytes <= MEMORY_BYTES_MAX) return;
  const gib = (x: number) => `${(x / 2 ** 30).toFixed(1)} GiB`;
  throw new DownpourError(
    'DP_LAYOUT_INVALID',
    `parameters, optimizer state and room for pushes take ${gib(bytes)}; one shard holds ${gib(MEMORY_BYTES_MAX)}: use an optimizer with less state, or more shards`,
  );
}
