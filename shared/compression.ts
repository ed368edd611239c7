import { DownpourError } from './errors.ts';

/**
 * How a gradient is written on the wire, and how it is read again. Everything is little-endian. This
 * is the reference that the WASM kernels are compared with.
 *
 * | encoding | bytes of n elements |
 * |---|---|
 * | `f32` | 4 n |
 * | `bf16` | 2 n: the upper half of the f32, rounded to nearest even |
 * | `int8` | a f32 scale for each block of 256, then n signed bytes: value = byte · scale |
 * | `topk` | u32 k, k rising u32 indices, k f32 values; all other elements are 0 |
 *
 * Each is padded with zeros to a multiple of 4, so that what follows it is aligned.
 */
export const ENCODINGS = ['f32', 'bf16', 'int8', 'topk'] as const;
export type Encoding = (typeof ENCODINGS)[number];

/** What a header that nobody has checked says; null: nothing that is known. */
export const encodingOf = ({ encoding }: Readonly<Record<string, unknown>>): Encoding | null =>
  ENCODINGS.find((known) => known === encoding) ?? null;

/** Elements that share one scale in `int8`. */
export const BLOCK = 256;

const align = (bytes: number): number => Math.ceil(bytes / 4) * 4;

/** Bytes of n elements. @param k elements that `topk` sends. */
export function encodedBytes(encoding: Encoding, n: number, k = 0): number {
  switch (encoding) {
    case 'f32':
      return 4 * n;
    case 'bf16':
      return align(2 * n);
    case 'int8':
      return 4 * Math.ceil(n / BLOCK) + align(n);
    case 'topk':
      return 4 + 8 * k;
  }
}

/**
 * The length of the gradient at the start of a push's payload.
 * @throws DownpourError DP_TENSOR_SIZE: the payload is not that of n elements and `rest` bytes.
 */
export function gradientBytes(
  encoding: Encoding,
  payload: Uint8Array,
  n: number,
  rest: number,
): number {
  let k = 0;
  if (encoding === 'topk') {
    if (payload.length < 4) throw wrongSize(encoding, payload.length, 4 + rest, n);
    k = view(payload).getUint32(0, true);
    if (k > n) {
      throw new DownpourError(
        'DP_TENSOR_SIZE',
        `a topk gradient of ${k} elements; this run's layout has ${n}`,
      );
    }
  }
  const bytes = encodedBytes(encoding, n, k);
  if (payload.length !== bytes + rest) throw wrongSize(encoding, payload.length, bytes + rest, n);
  return bytes;
}

const wrongSize = (encoding: Encoding, seen: number, allowed: number, n: number) =>
  new DownpourError(
    'DP_TENSOR_SIZE',
    `the gradient has ${seen} bytes; ${encoding} of this run's layout of ${n} elements needs ${allowed}`,
  );

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A bf16 number's bits. Round to nearest, ties to even; NaN stays NaN. */
function bf16Bits(f32Bits: number): number {
  if ((f32Bits & 0x7fff_ffff) > 0x7f80_0000) return (f32Bits >>> 16) | 0x40;
  return (f32Bits + 0x7fff + ((f32Bits >>> 16) & 1)) >>> 16;
}

/** @param values shape [n]. @param out at least `encodedBytes` long. */
export function encodeBf16(values: Float32Array, out: Uint8Array): void {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const target = view(out);
  for (let i = 0; i < bits.length; i++) target.setUint16(2 * i, bf16Bits(bits[i]!), true);
  out.fill(0, 2 * bits.length, encodedBytes('bf16', bits.length));
}

/** @param out shape [n]. */
function decodeBf16(bytes: Uint8Array, out: Float32Array): void {
  const source = view(bytes);
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < bits.length; i++) bits[i] = source.getUint16(2 * i, true) << 16;
}

/**
 * One scale for each block of 256, the largest size over 127 (Seide et al. 2014, Interspeech, for the
 * residual). The largest element of a block is exact, the others are off by at most half a scale.
 * A block with an element that is not finite gets the scale NaN, so that the receiver sees it; its
 * residual stays.
 * @param values shape [n]. @param residual shape [n]: what earlier pushes left behind is added, and
 *   what this one leaves is put there; null: what does not fit is lost.
 * @param out at least `encodedBytes` long.
 */
export function encodeInt8(
  values: Float32Array,
  residual: Float32Array | null,
  out: Uint8Array,
): void {
  const n = values.length;
  const blocks = Math.ceil(n / BLOCK);
  const target = view(out);
  const bytes = new Int8Array(out.buffer, out.byteOffset + 4 * blocks, align(n));
  bytes.fill(0, n);
  const f = Math.fround;
  for (let block = 0; block < blocks; block++) {
    const start = block * BLOCK;
    const end = Math.min(n, start + BLOCK);
    let largest = 0;
    let sum = 0;
    for (let i = start; i < end; i++) {
      const x = f(values[i]! + (residual ? residual[i]! : 0));
      largest = Math.max(largest, Math.abs(x));
      sum += x - x;
    }
    const scale = Number.isNaN(sum) ? Number.NaN : f(largest / 127);
    target.setFloat32(4 * block, scale, true);
    const inverse = scale > 0 ? f(1 / scale) : 0;
    for (let i = start; i < end; i++) {
      const x = f(values[i]! + (residual ? residual[i]! : 0));
      // A scale too small for its inverse to be finite: the block is as good as 0.
      const q = Number.isFinite(inverse) ? roundEven(f(x * inverse)) : 0;
      const byte = Math.max(-127, Math.min(127, q)) || 0;
      bytes[i] = byte;
      if (residual && !Number.isNaN(scale)) residual[i] = f(x - f(byte * scale));
    }
  }
}

/** To the nearest whole number, ties to even, as the vector instruction does. */
function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** @param out shape [n]. */
function decodeInt8(bytes: Uint8Array, out: Float32Array): void {
  const n = out.length;
  const blocks = Math.ceil(n / BLOCK);
  const source = view(bytes);
  const values = new Int8Array(bytes.buffer, bytes.byteOffset + 4 * blocks, n);
  for (let i = 0; i < n; i++) {
    out[i] = values[i]! * source.getFloat32(4 * Math.floor(i / BLOCK), true);
  }
}

/**
 * The k elements of the largest size; of equal ones those that come first.
 * @param values shape [n], none NaN. @param k from 1 to n. @param out at least `encodedBytes` long,
 *   at a multiple of 4.
 */
export function encodeTopk(values: Float32Array, k: number, out: Uint8Array): void {
  const { threshold, ties } = topkThreshold(values, k);
  const sizes = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const header = new Uint32Array(out.buffer, out.byteOffset, 1 + k);
  const sent = new Float32Array(out.buffer, out.byteOffset + 4 * (1 + k), k);
  header[0] = k;
  let at = 0;
  let left = ties;
  for (let i = 0; i < values.length; i++) {
    const size = sizes[i]! & 0x7fff_ffff;
    if (size < threshold || (size === threshold && left-- <= 0)) continue;
    header[1 + at] = i;
    sent[at++] = values[i]!;
  }
}

/**
 * The bits of |x| of the k-th largest element, and how many that equal it belong to the k. Bits of
 * positive floats are in the order of the floats, so counting their upper and then their lower half
 * finds it in two passes, without sorting.
 */
function topkThreshold(values: Float32Array, k: number): { threshold: number; ties: number } {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const counts = new Uint32Array(2 ** 16);
  for (let i = 0; i < bits.length; i++) counts[(bits[i]! & 0x7fff_ffff) >>> 16]!++;
  let upper = 0x7fff;
  let wanted = k;
  while (counts[upper]! < wanted) wanted -= counts[upper--]!;
  counts.fill(0);
  for (let i = 0; i < bits.length; i++) {
    const size = bits[i]! & 0x7fff_ffff;
    if (size >>> 16 === upper) counts[size & 0xffff]!++;
  }
  let lower = 0xffff;
  while (counts[lower]! < wanted) wanted -= counts[lower--]!;
  return { threshold: (upper << 16) | lower, ties: wanted };
}

/**
 * @param out shape [n]; all else is set to 0.
 * @throws DownpourError DP_TENSOR_SIZE: an index is not above the one before it, or not below n.
 */
export function decodeTopk(bytes: Uint8Array, out: Float32Array): void {
  const source = view(bytes);
  const k = source.getUint32(0, true);
  checkTopk(bytes, out.length);
  out.fill(0);
  for (let j = 0; j < k; j++) {
    out[source.getUint32(4 + 4 * j, true)] = source.getFloat32(4 + 4 * (k + j), true);
  }
}

/** @throws DownpourError DP_TENSOR_SIZE: an index is not above the one before it, or not below n. */
export function checkTopk(bytes: Uint8Array, n: number): void {
  const source = view(bytes);
  const k = source.getUint32(0, true);
  let last = -1;
  for (let j = 0; j < k; j++) {
    const index = source.getUint32(4 + 4 * j, true);
    if (index <= last || index >= n) {
      throw new DownpourError(
        'DP_TENSOR_SIZE',
        `index ${index} of a topk gradient follows ${last}; allowed: rising, below ${n}`,
      );
    }
    last = index;
  }
}

/** @param bytes exactly those of the gradient. @param out shape [n]. */
export function decodeGradient(encoding: Encoding, bytes: Uint8Array, out: Float32Array): void {
  if (encoding === 'f32') new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(bytes);
  else if (encoding === 'bf16') decodeBf16(bytes, out);
  else if (encoding === 'int8') decodeInt8(bytes, out);
  else decodeTopk(bytes, out);
}
