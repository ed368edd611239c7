// Sums of squares of a gradient.
import { BF16, decoded, F32, INT8, lanes } from './encodings';

@inline
function square(x: v128): v128 {
  const low = f64x2.promote_low_f32x4(x);
  const upper = i8x16.shuffle(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  const high = f64x2.promote_low_f32x4(upper);
  return f64x2.add(f64x2.mul(low, low), f64x2.mul(high, high));
}

/** Elements whose squares are added up in f32: 64 in each lane, off by 4e-6 of the sum at worst. */
const RUN: usize = 1024;

/** The sum of four lanes, in f64. */
@inline
function total4(sum: v128): f64 {
  const low = f64x2.promote_low_f32x4(sum);
  const high = f64x2.promote_low_f32x4(v128.shuffle<i64>(sum, sum, 1, 0));
  const both = f64x2.add(low, high);
  return f64x2.extract_lane(both, 0) + f64x2.extract_lane(both, 1);
}

/** Σ x² of [start, end), a multiple of 16 elements of f32 or bf16. */
@inline
function squaresOfRun(kind: i32, g: usize, start: usize, end: usize): f64 {
  let s0 = f32x4.splat(0), s1 = s0, s2 = s0, s3 = s0;
  for (let i = start; i < end; i += 16) {
    let x0: v128, x1: v128, x2: v128, x3: v128;
    if (kind == F32) {
      const at = g + (i << 2);
      x0 = v128.load(at);
      x1 = v128.load(at, 16);
      x2 = v128.load(at, 32);
      x3 = v128.load(at, 48);
    } else {
      // The lower half of each lane belongs to its neighbour, and is less than its last bit.
      const at = g + (i << 1);
      const upper = i32x4.splat(<i32>0xffff0000);
      const low = v128.load(at);
      const high = v128.load(at, 16);
      x0 = i32x4.shl(low, 16);
      x1 = v128.and(low, upper);
      x2 = i32x4.shl(high, 16);
      x3 = v128.and(high, upper);
    }
    s0 = f32x4.add(s0, f32x4.mul(x0, x0));
    s1 = f32x4.add(s1, f32x4.mul(x1, x1));
    s2 = f32x4.add(s2, f32x4.mul(x2, x2));
    s3 = f32x4.add(s3, f32x4.mul(x3, x3));
  }
  return total4(f32x4.add(f32x4.add(s0, s1), f32x4.add(s2, s3)));
}

/** Σ x² of one block of 256: whole numbers, exact, times the square of its scale. */
@inline
function squaresOfBlock(g: usize, start: usize, scale: f64): f64 {
  let s0 = i32x4.splat(0), s1 = s0;
  for (let i = start; i < start + 256; i += 16) {
    const low = v128.load_ext<i8>(g + i);
    const high = v128.load_ext<i8>(g + i, 8);
    s0 = i32x4.add(s0, i32x4.dot_i16x8_s(low, low));
    s1 = i32x4.add(s1, i32x4.dot_i16x8_s(high, high));
  }
  return total4(f32x4.convert_i32x4_s(i32x4.add(s0, s1))) * scale * scale;
}

/**
 * Adds Σ x² of [start, end) to `total`, in f32 by runs; NaN or infinite as soon as an element is not finite.
 * `start` is a multiple of RUN, so that the sum is the same in pieces. What is too large or too small for f32
 * must be summed again by `exactSquares`.
 */
@inline
function squares(kind: i32, g: usize, scales: usize, start: usize, end: usize, total: f64): f64 {
  const step = kind == INT8 ? 256 : RUN;
  let i = start;
  for (; i + step <= end; i += step) {
    if (kind == INT8) total += squaresOfBlock(g, i, <f64>load<f32>(scales + ((i >> 8) << 2)));
    else total += squaresOfRun(kind, g, i, i + step);
  }
  if (i == end) return total;
  let rest = f32x4.splat(0);
  for (; i < end; i += 4) {
    const x = v128.and(decoded(kind, g, scales, i), lanes(i, 0, end));
    rest = f32x4.add(rest, f32x4.mul(x, x));
  }
  return total + total4(rest);
}

/** Each element cut to ±limit before; NaN as soon as one is not finite. In f64 all the way. Four sums: one addition would wait for the one before. */
@inline
function exactSquares(kind: i32, g: usize, scales: usize, n: usize, limit: f32): f64 {
  const upper = f32x4.splat(limit);
  const lower = f32x4.neg(upper);
  let s0 = f64x2.splat(0), s1 = s0, s2 = s0, s3 = s0;
  // Cutting would hide what is infinite: it is looked for in the numbers as they are.
  let f0 = f32x4.splat(0), f1 = f0;
  let i: usize = 0;
  for (; i + 16 <= n; i += 16) {
    const x0 = decoded(kind, g, scales, i);
    const x1 = decoded(kind, g, scales, i + 4);
    const x2 = decoded(kind, g, scales, i + 8);
    const x3 = decoded(kind, g, scales, i + 12);
    f0 = f32x4.add(f0, f32x4.add(f32x4.sub(x0, x0), f32x4.sub(x1, x1)));
    f1 = f32x4.add(f1, f32x4.add(f32x4.sub(x2, x2), f32x4.sub(x3, x3)));
    s0 = f64x2.add(s0, square(f32x4.pmin(f32x4.pmax(x0, lower), upper)));
    s1 = f64x2.add(s1, square(f32x4.pmin(f32x4.pmax(x1, lower), upper)));
    s2 = f64x2.add(s2, square(f32x4.pmin(f32x4.pmax(x2, lower), upper)));
    s3 = f64x2.add(s3, square(f32x4.pmin(f32x4.pmax(x3, lower), upper)));
  }
  for (; i < n; i += 4) {
    const x = v128.and(decoded(kind, g, scales, i), lanes(i, 0, n));
    f0 = f32x4.add(f0, f32x4.sub(x, x));
    s0 = f64x2.add(s0, square(f32x4.pmin(f32x4.pmax(x, lower), upper)));
  }
  const sum = f64x2.add(f64x2.add(s0, s1), f64x2.add(s2, s3));
  const total = f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1);
  return v128.any_true(f32x4.ne(f32x4.add(f0, f1), f32x4.splat(0))) ? f64.NaN : total;
}

export function squares_f32(g: usize, scales: usize, start: usize, end: usize, total: f64): f64 {
  return squares(F32, g, scales, start, end, total);
}
export function squares_bf16(g: usize, scales: usize, start: usize, end: usize, total: f64): f64 {
  return squares(BF16, g, scales, start, end, total);
}
export function squares_int8(g: usize, scales: usize, start: usize, end: usize, total: f64): f64 {
  return squares(INT8, g, scales, start, end, total);
}
export function exactSquares_f32(g: usize, scales: usize, n: usize, limit: f32): f64 {
  return exactSquares(F32, g, scales, n, limit);
}
export function exactSquares_bf16(g: usize, scales: usize, n: usize, limit: f32): f64 {
  return exactSquares(BF16, g, scales, n, limit);
}
export function exactSquares_int8(g: usize, scales: usize, n: usize, limit: f32): f64 {
  return exactSquares(INT8, g, scales, n, limit);
}
