// How the gradient is written; see shared/compression.ts.
export const F32 = 0;
export const BF16 = 1;
export const INT8 = 2;

@inline
export function decoded(kind: i32, g: usize, scales: usize, i: usize): v128 {
  if (kind == F32) return v128.load(g + (i << 2));
  if (kind == BF16) return i32x4.shl(v128.load_ext<u16>(g + (i << 1)), 16);
  // A block of 256 shares a scale, and a vector never reaches over the end of a block.
  const bytes = i16x8.extend_low_i8x16_s(v128.load32_zero(g + i));
  const numbers = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(bytes));
  return f32x4.mul(numbers, v128.load32_splat(scales + ((i >> 8) << 2)));
}

/** Lanes of the vector at i that lie in [start, end). */
@inline
export function lanes(i: usize, start: usize, end: usize): v128 {
  const at = i32x4.add(i32x4.splat(<i32>i), i32x4(0, 1, 2, 3));
  return v128.and(i32x4.ge_s(at, i32x4.splat(<i32>start)), i32x4.lt_s(at, i32x4.splat(<i32>end)));
}
