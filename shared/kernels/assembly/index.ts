// Encodings of shared/compression.ts in AssemblyScript, compiled to WASM SIMD by `npm run kernels`. All
// arrays begin at multiples of 16 bytes, and may be read and written up to the next.

const BLOCK: usize = 256;

@inline
function rounded(x: v128): v128 {
  const odd = v128.and(i32x4.shr_u(x, 16), i32x4.splat(1));
  const upper = i32x4.shr_u(i32x4.add(i32x4.add(x, i32x4.splat(0x7fff)), odd), 16);
  const nan = v128.or(i32x4.shr_u(x, 16), i32x4.splat(0x40));
  return v128.bitselect(nan, upper, f32x4.ne(x, x));
}

/** As `rounded`, of what is a number; sign-extended, as `narrow_i32x4_s` wants it. */
@inline
function roundedNumber(x: v128): v128 {
  const odd = v128.and(i32x4.shr_u(x, 16), i32x4.splat(1));
  return i32x4.shr_s(i32x4.add(x, i32x4.add(odd, i32x4.splat(0x7fff))), 16);
}

/** Writes up to 14 bytes beyond 2 n. */
export function encode_bf16(values: usize, n: usize, out: usize): void {
  // NaN as soon as an element is, or for other reasons.
  let sum = f32x4.splat(0);
  const whole = n & ~15;
  for (let i: usize = 0; i < whole; i += 16) {
    const from = values + (i << 2);
    const x0 = v128.load(from);
    const x1 = v128.load(from, 16);
    const x2 = v128.load(from, 32);
    const x3 = v128.load(from, 48);
    sum = f32x4.add(sum, f32x4.add(f32x4.add(x0, x1), f32x4.add(x2, x3)));
    const to = out + (i << 1);
    v128.store(to, i16x8.narrow_i32x4_s(roundedNumber(x0), roundedNumber(x1)));
    v128.store(to, i16x8.narrow_i32x4_s(roundedNumber(x2), roundedNumber(x3)), 16);
  }
  for (let i = v128.any_true(f32x4.ne(sum, sum)) ? <usize>0 : whole; i < n; i += 8) {
    const low = rounded(v128.load(values + (i << 2)));
    const high = rounded(v128.load(values + (i << 2), 16));
    v128.store(out + (i << 1), i16x8.narrow_i32x4_u(low, high));
  }
}

/** Writes up to 28 bytes beyond 4 n. */
export function decode_bf16(bytes: usize, n: usize, out: usize): void {
  const zero = i32x4.splat(0);
  for (let i: usize = 0; i < n; i += 8) {
    const halves = v128.load(bytes + (i << 1));
    const to = out + (i << 2);
    v128.store(to, v128.shuffle<i16>(zero, halves, 0, 8, 1, 9, 2, 10, 3, 11));
    v128.store(to, v128.shuffle<i16>(zero, halves, 4, 12, 5, 13, 6, 14, 7, 15), 16);
  }
}

@inline
function lanes(i: usize, end: usize): v128 {
  return i32x4.lt_s(
    i32x4.add(i32x4.splat(<i32>i), i32x4(0, 1, 2, 3)),
    i32x4.splat(<i32>end),
  );
}

@inline
function summed(values: usize, residual: usize, i: usize, n: usize): v128 {
  let x = v128.load(values + (i << 2));
  if (residual) x = f32x4.add(x, v128.load(residual + (i << 2)));
  return i + 4 <= n ? x : v128.and(x, lanes(i, n));
}

/** @param residual 0: none. */
export function encode_int8(values: usize, residual: usize, n: usize, out: usize): void {
  const blocks = (n + BLOCK - 1) / BLOCK;
  const bytes = out + (blocks << 2);
  const limit = f32x4.splat(127);
  for (let block: usize = 0; block < blocks; block++) {
    const start = block * BLOCK;
    const end = min(n, start + BLOCK);
    let largest = f32x4.splat(0);
    let finite = f32x4.splat(0);
    for (let i = start; i < end; i += 4) {
      const x = summed(values, residual, i, n);
      largest = f32x4.pmax(f32x4.abs(x), largest);
      finite = f32x4.add(finite, f32x4.sub(x, x));
    }
    const a = max(f32x4.extract_lane(largest, 0), f32x4.extract_lane(largest, 1));
    const b = max(f32x4.extract_lane(largest, 2), f32x4.extract_lane(largest, 3));
    const bad = v128.any_true(f32x4.ne(finite, f32x4.splat(0)));
    const scale: f32 = bad ? f32.NaN : max(a, b) / 127;
    store<f32>(out + (block << 2), scale);
    let inverse: f32 = scale > 0 ? 1 / scale : 0;
    // A scale too small for its inverse to be finite: the block is as good as 0.
    if (inverse == f32.POSITIVE_INFINITY) inverse = 0;
    if (bad) {
      memory.fill(bytes + start, 0, (end - start + 3) & ~3);
      continue;
    }
    const vInverse = f32x4.splat(inverse);
    const vScale = f32x4.splat(scale);
    for (let i = start; i < end; i += 4) {
      const x = summed(values, residual, i, n);
      const product = f32x4.mul(x, vInverse);
      const cut = f32x4.pmin(f32x4.pmax(product, f32x4.neg(limit)), limit);
      // Beside 1.5 · 2²³ there are whole numbers only: the sum is rounded, ties to even.
      const q = i32x4.sub(f32x4.add(cut, f32x4.splat(12582912)), i32x4.splat(0x4b400000));
      const words = i16x8.narrow_i32x4_s(q, q);
      const packed = i8x16.narrow_i16x8_s(words, words);
      v128.store32_lane(bytes + i, packed, 0);
      if (residual) {
        const sent = f32x4.mul(f32x4.convert_i32x4_s(q), vScale);
        v128.store(residual + (i << 2), f32x4.sub(x, sent));
      }
    }
  }
}

/** u ← α u + g, v ← v + u. @param u 0: v ← v + g. */
export function accumulate(g: usize, u: usize, v: usize, n: usize, alpha: f32): void {
  const vAlpha = f32x4.splat(alpha);
  const bytes = n << 2;
  for (let at: usize = 0; at < bytes; at += 16) {
    let x = v128.load(g + at);
    if (u) {
      x = f32x4.add(f32x4.mul(vAlpha, v128.load(u + at)), x);
      v128.store(u + at, x);
    }
    v128.store(v + at, f32x4.add(v128.load(v + at), x));
  }
}

/** Whether all of n elements are finite. */
export function all_finite(values: usize, n: usize): bool {
  let finite = f32x4.splat(0);
  for (let i: usize = 0; i < n; i += 4) {
    const x = summed(values, 0, i, n);
    finite = f32x4.add(finite, f32x4.sub(x, x));
  }
  return !v128.any_true(f32x4.ne(finite, f32x4.splat(0)));
}

/**
 * Writes the k elements of the largest size as `topk`, and sets them to 0 in `values` and in u.
 * @param counts room for 65,536 u32. @param u 0: none.
 */
export function encode_topk(
  values: usize,
  u: usize,
  n: usize,
  k: usize,
  counts: usize,
  out: usize,
): void {
  memory.fill(counts, 0, 65536 << 2);
  for (let i: usize = 0; i < n; i++) {
    const at = counts + (((load<u32>(values + (i << 2)) & 0x7fffffff) >>> 16) << 2);
    store<u32>(at, load<u32>(at) + 1);
  }
  let upper: u32 = 0x7fff;
  let wanted = <u32>k;
  while (load<u32>(counts + (upper << 2)) < wanted) wanted -= load<u32>(counts + (upper-- << 2));
  memory.fill(counts, 0, 65536 << 2);
  for (let i: usize = 0; i < n; i++) {
    const size = load<u32>(values + (i << 2)) & 0x7fffffff;
    if (size >>> 16 == upper) {
      const at = counts + ((size & 0xffff) << 2);
      store<u32>(at, load<u32>(at) + 1);
    }
  }
  let lower: u32 = 0xffff;
  while (load<u32>(counts + (lower << 2)) < wanted) wanted -= load<u32>(counts + (lower-- << 2));
  const threshold = (upper << 16) | lower;
  let ties = <i32>wanted;
  store<u32>(out, <u32>k);
  let index = out + 4;
  let sent = out + 4 + (k << 2);
  for (let i: usize = 0; i < n; i++) {
    const bits = load<u32>(values + (i << 2));
    const size = bits & 0x7fffffff;
    if (size < threshold || (size == threshold && ties-- <= 0)) continue;
    store<u32>(index, <u32>i);
    store<u32>(sent, bits);
    index += 4;
    sent += 4;
    store<u32>(values + (i << 2), 0);
    if (u) store<u32>(u + (i << 2), 0);
  }
}

/** out[i] ← table[bytes[i]] for f32 entries; four at a time, up to 3 beyond n. */
export function lookup(bytes: usize, n: usize, table: usize, out: usize): void {
  for (let i: usize = 0; i < n; i += 4) {
    const four = load<u32>(bytes + i);
    const to = out + (i << 2);
    store<u32>(to, load<u32>(table + ((four & 0xff) << 2)));
    store<u32>(to, load<u32>(table + (((four >>> 8) & 0xff) << 2)), 4);
    store<u32>(to, load<u32>(table + (((four >>> 16) & 0xff) << 2)), 8);
    store<u32>(to, load<u32>(table + ((four >>> 24) << 2)), 12);
  }
}
