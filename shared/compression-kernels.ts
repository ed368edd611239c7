import { bytesOfBase64 } from './base64.ts';
import { BINARY } from './kernels/binary.ts';

/**
 * The WASM SIMD twins of `compression.ts`, and what else turns bytes into numbers. Addresses are those of the
 * memory given, multiples of 16; what lies behind an array, up to the next multiple of 64, may be read and written.
 */
export interface CompressionKernels {
  encode_bf16(values: number, n: number, out: number): void;
  decode_bf16(bytes: number, n: number, out: number): void;
  /** @param residual 0: none. */
  encode_int8(values: number, residual: number, n: number, out: number): void;
  /** u ← α u + g, v ← v + u. @param u 0: v ← v + g. */
  accumulate(g: number, u: number, v: number, n: number, alpha: number): void;
  /** 1 or 0. */
  all_finite(values: number, n: number): number;
  /**
   * Sets what it sends to 0 in `values` and u.
   * @param counts room for 65,536 u32. @param u 0: none.
   */
  encode_topk(values: number, u: number, n: number, k: number, counts: number, out: number): void;
  /** out[i] ← table[bytes[i]]. @param table 256 f32. */
  lookup(bytes: number, n: number, table: number, out: number): void;
}

let compiled: WebAssembly.Module | null = null;

export function createCompressionKernels(memory: WebAssembly.Memory): CompressionKernels {
  compiled ??= new WebAssembly.Module(bytesOfBase64(BINARY));
  const { exports } = new WebAssembly.Instance(compiled, { env: { memory } });
  return exports as unknown as CompressionKernels;
}
