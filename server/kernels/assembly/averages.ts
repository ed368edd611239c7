// Averages of the parameters, and what the memory allows.

/** a ← d a + (1 − d) θ over n elements; all vectors whole: padding belongs to the arrays. */
export function ema(a: usize, theta: usize, n: usize, d: f32, d1: f32): void {
  const vD = f32x4.splat(d);
  const vD1 = f32x4.splat(d1);
  const bytes = n << 2;
  for (let at: usize = 0; at < bytes; at += 16) {
    const mixed = f32x4.add(
      f32x4.mul(vD, v128.load(a + at)),
      f32x4.mul(vD1, v128.load(theta + at)),
    );
    v128.store(a + at, mixed);
  }
}

/** a + c ← a + c + (θ − (a + c)) / t in f64, stored as a sum of two f32. */
export function polyak(a: usize, c: usize, theta: usize, n: usize, inverse: f64): void {
  const share = f64x2.splat(inverse);
  const bytes = n << 2;
  for (let at: usize = 0; at < bytes; at += 8) {
    const old = f64x2.add(
      f64x2.promote_low_f32x4(v128.load64_zero(a + at)),
      f64x2.promote_low_f32x4(v128.load64_zero(c + at)),
    );
    const now = f64x2.promote_low_f32x4(v128.load64_zero(theta + at));
    const mean = f64x2.add(old, f64x2.mul(f64x2.sub(now, old), share));
    const stored = f32x4.demote_f64x2_zero(mean);
    v128.store64_lane(a + at, stored, 0);
    const rest = f64x2.sub(mean, f64x2.promote_low_f32x4(stored));
    v128.store64_lane(c + at, f32x4.demote_f64x2_zero(rest), 0);
  }
}

/** a ← b + s c: what the memory allows, for the benchmark. */
export function triad(a: usize, b: usize, c: usize, n: usize, s: f32): void {
  const vS = f32x4.splat(s);
  const bytes = n << 2;
  for (let at: usize = 0; at + 32 <= bytes; at += 32) {
    v128.store(a + at, f32x4.add(v128.load(b + at), f32x4.mul(vS, v128.load(c + at))));
    v128.store(a + at, f32x4.add(v128.load(b + at + 16), f32x4.mul(vS, v128.load(c + at + 16))), 16);
  }
}
