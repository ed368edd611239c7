// Rows of tables: the rules of their optimizers, what a row has missed, and answers. The reference twins are in
// test/support/row-rules.ts; symbols are theirs. Rows begin at any multiple of 4 bytes. Behind the last element of an array
// there is room for a vector.

const SGD = 0;
const ADAGRAD = 1;
const ADAM = 2;

/** Numbers of a row in an update, each an f64: its decay, its rate, and two of the rule. */
const NUMBERS: usize = 4;

/** The first `count` lanes. */
@inline
function firstLanes(count: i32): v128 {
  return i32x4.lt_s(i32x4(0, 1, 2, 3), i32x4.splat(count));
}

/** Lanes beyond the mask stay as they are: they are of the next row, or of its state. */
@inline
function storeLanes(at: usize, value: v128, mask: v128, masked: bool): void {
  v128.store(at, masked ? v128.bitselect(value, v128.load(at), mask) : value);
}

@inline
function upper(x: v128): v128 {
  return v128.shuffle<i64>(x, x, 1, 0);
}

/** In f64: a factor just below 1 would lose its digits in f32. */
@inline
function scaled(x: v128, factor: f64): v128 {
  const f = f64x2.splat(factor);
  const low = f32x4.demote_f64x2_zero(f64x2.mul(f64x2.promote_low_f32x4(x), f));
  const high = f32x4.demote_f64x2_zero(f64x2.mul(f64x2.promote_low_f32x4(upper(x)), f));
  return v128.shuffle<i64>(low, high, 0, 2);
}

@inline
function squares4(x: v128): v128 {
  const low = f64x2.promote_low_f32x4(x);
  const high = f64x2.promote_low_f32x4(upper(x));
  return f64x2.add(f64x2.mul(low, low), f64x2.mul(high, high));
}

/** Σ x² of one row, in f64. */
@inline
function squaresOfRow(x: usize, width: i32): f64 {
  let s0 = f64x2.splat(0), s1 = s0;
  let i = 0;
  for (; i + 8 <= width; i += 8) {
    const at = x + (<usize>i << 2);
    s0 = f64x2.add(s0, squares4(v128.load(at)));
    s1 = f64x2.add(s1, squares4(v128.load(at, 16)));
  }
  for (; i < width; i += 4) {
    const at = x + (<usize>i << 2);
    s0 = f64x2.add(s0, squares4(v128.and(v128.load(at), firstLanes(width - i))));
  }
  const sum = f64x2.add(s0, s1);
  return f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1);
}

/** One vector of one row. Returns its parameters, 0 where the mask is. */
@inline
function update4(
  rule: i32,
  decays: bool,
  decay: f64,
  theta: usize,
  g: usize,
  m: usize,
  v: usize,
  before: usize,
  beforeM: usize,
  beforeV: usize,
  isNew: bool,
  rate: v128,
  keep1: v128,
  p1: v128,
  keep2: v128,
  q1: v128,
  correction: v128,
  delta: v128,
  mask: v128,
  masked: bool,
): v128 {
  const old = v128.load(theta);
  storeLanes(before, old, mask, masked);
  const t = decays ? scaled(old, decay) : old;
  const x = v128.load(g);
  let fresh: v128;
  if (rule == ADAM) {
    const oldM = v128.load(m);
    const oldV = v128.load(v);
    storeLanes(beforeM, oldM, mask, masked);
    storeLanes(beforeV, oldV, mask, masked);
    let m1 = f32x4.mul(p1, x);
    let v1 = f32x4.mul(q1, f32x4.mul(x, x));
    if (!isNew) {
      m1 = f32x4.add(f32x4.mul(keep1, oldM), m1);
      v1 = f32x4.add(f32x4.mul(keep2, oldV), v1);
    }
    storeLanes(m, m1, mask, masked);
    storeLanes(v, v1, mask, masked);
    const root = f32x4.sqrt(f32x4.mul(v1, correction));
    fresh = f32x4.sub(t, f32x4.div(f32x4.mul(rate, m1), f32x4.add(root, delta)));
  } else {
    fresh = f32x4.sub(t, f32x4.mul(rate, x));
  }
  storeLanes(theta, fresh, mask, masked);
  return masked ? v128.and(fresh, mask) : fresh;
}

/**
 * Updates n rows in their slots; those with a slot below 0 are left out. `before` gets them as they were, each with its state
 * behind it. The third number of a row is below 0 where its state is as new. Returns 1 when a row is no longer finite.
 * @param maxNorm 0: rows may have any norm. @param initial of the state.
 */
@inline
function update(
  rule: i32,
  n: i32,
  width: i32,
  slots: usize,
  g: usize,
  theta: usize,
  state: usize,
  before: usize,
  numbers: usize,
  maxNorm: f64,
  initial: f32,
  delta: f32,
  p1: f32,
  q1: f32,
  correction: f32,
): i32 {
  const bytes = <usize>width << 2;
  const whole = width & ~3;
  const mask = firstLanes(width - whole);
  const vP1 = f32x4.splat(p1);
  const vQ1 = f32x4.splat(q1);
  const vDelta = f32x4.splat(delta);
  const vCorrection = f32x4.splat(correction);
  const stateBytes: usize = rule == ADAM ? bytes << 1 : rule == ADAGRAD ? 4 : 0;
  let finite = f32x4.splat(0);
  for (let i = 0; i < n; i++) {
    const slot = load<i32>(slots);
    const own = before;
    const from = g;
    const those = numbers;
    slots += 4;
    g += bytes;
    before += bytes + stateBytes;
    numbers += NUMBERS << 3;
    if (slot < 0) continue;
    const row = theta + <usize>slot * bytes;
    const m = state + <usize>slot * stateBytes;
    const decay = load<f64>(those);
    let rate = load<f64>(those, 8);
    const keep1 = load<f64>(those, 16);
    const keep2 = load<f64>(those, 24);
    const isNew = keep1 < 0;
    let r: f32 = 0;
    if (rule == ADAGRAD) {
      r = <f32>(<f64>(isNew ? initial : load<f32>(m)) + squaresOfRow(from, width) / <f64>width);
      rate /= sqrt(<f64>r) + <f64>delta;
    }
    const vRate = f32x4.splat(<f32>rate);
    const vKeep1 = f32x4.splat(<f32>keep1);
    const vKeep2 = f32x4.splat(<f32>keep2);
    const decays = decay != 1;
    let at: usize = 0;
    for (; at < <usize>whole << 2; at += 16) {
      const fresh = update4(
        rule, decays, decay, row + at, from + at, m + at, m + bytes + at,
        own + at, own + bytes + at, own + (bytes << 1) + at, isNew,
        vRate, vKeep1, vP1, vKeep2, vQ1, vCorrection, vDelta, mask, false,
      );
      finite = f32x4.add(finite, f32x4.sub(fresh, fresh));
    }
    if (whole < width) {
      const fresh = update4(
        rule, decays, decay, row + at, from + at, m + at, m + bytes + at,
        own + at, own + bytes + at, own + (bytes << 1) + at, isNew,
        vRate, vKeep1, vP1, vKeep2, vQ1, vCorrection, vDelta, mask, true,
      );
      finite = f32x4.add(finite, f32x4.sub(fresh, fresh));
    }
    if (rule == ADAGRAD) {
      store<f32>(own + bytes, load<f32>(m));
      store<f32>(m, r);
    }
    if (maxNorm == 0) continue;
    const norm = sqrt(squaresOfRow(row, width));
    if (norm > maxNorm) {
      const factor = maxNorm / norm;
      let j: usize = 0;
      for (; j < <usize>whole << 2; j += 16) v128.store(row + j, scaled(v128.load(row + j), factor));
      if (whole < width) storeLanes(row + j, scaled(v128.load(row + j), factor), mask, true);
    }
  }
  return v128.any_true(f32x4.ne(finite, f32x4.splat(0))) ? 1 : 0;
}

export function rows_sgd(
  n: i32, width: i32, slots: usize, g: usize, theta: usize, state: usize, before: usize, numbers: usize, maxNorm: f64, initial: f32, delta: f32, p1: f32, q1: f32, correction: f32,
): i32 {
  return update(SGD, n, width, slots, g, theta, state, before, numbers, maxNorm, initial, delta, p1, q1, correction);
}
export function rows_adagrad(
  n: i32, width: i32, slots: usize, g: usize, theta: usize, state: usize, before: usize, numbers: usize, maxNorm: f64, initial: f32, delta: f32, p1: f32, q1: f32, correction: f32,
): i32 {
  return update(ADAGRAD, n, width, slots, g, theta, state, before, numbers, maxNorm, initial, delta, p1, q1, correction);
}
export function rows_adam(
  n: i32, width: i32, slots: usize, g: usize, theta: usize, state: usize, before: usize, numbers: usize, maxNorm: f64, initial: f32, delta: f32, p1: f32, q1: f32, correction: f32,
): i32 {
  return update(ADAM, n, width, slots, g, theta, state, before, numbers, maxNorm, initial, delta, p1, q1, correction);
}

/** Each of n elements cut to ±limit, then multiplied. */
export function rows_clip(g: usize, n: i32, limit: f32, factor: f32): void {
  const most = f32x4.splat(limit);
  const least = f32x4.neg(most);
  const by = f32x4.splat(factor);
  const end = g + (<usize>n << 2);
  for (; g < end; g += 16) {
    v128.store(g, f32x4.mul(f32x4.pmin(f32x4.pmax(v128.load(g), least), most), by));
  }
}

/** Signed bytes of n rows, each row with its scale, as f32. */
export function rows_decode_int8(n: i32, width: i32, scales: usize, bytes: usize, out: usize): void {
  for (let i = 0; i < n; i++) {
    const scale = v128.load32_splat(scales);
    for (let j = 0; j < width; j += 4) {
      const words = i16x8.extend_low_i8x16_s(v128.load32_zero(bytes + j));
      const numbers = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(words));
      v128.store(out + (<usize>j << 2), f32x4.mul(numbers, scale));
    }
    scales += 4;
    bytes += width;
    out += <usize>width << 2;
  }
}

/** Copies n rows out of their slots; those with a slot below 0 are left out. @param factors an f64 for each; 0: all are 1. */
export function rows_gather(
  n: i32,
  width: i32,
  slots: usize,
  theta: usize,
  factors: usize,
  out: usize,
): void {
  const bytes = <usize>width << 2;
  for (let i = 0; i < n; i++) {
    const slot = load<i32>(slots + (<usize>i << 2));
    if (slot >= 0) {
      const row = theta + <usize>slot * bytes;
      const factor = factors ? load<f64>(factors + (<usize>i << 3)) : 1;
      if (factor == 1) {
        for (let at: usize = 0; at < bytes; at += 16) v128.store(out + at, v128.load(row + at));
      } else {
        for (let at: usize = 0; at < bytes; at += 16) {
          v128.store(out + at, scaled(v128.load(row + at), factor));
        }
      }
    }
    out += bytes;
  }
}

/** `mix` of shared/random.ts, of the same first number with four second ones. */
@inline
function mixed(a: v128, b: v128): v128 {
  let h = v128.xor(a, i32x4.mul(b, i32x4.splat(<i32>0x9e3779b1)));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 16)), i32x4.splat(<i32>0x85ebca6b));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 13)), i32x4.splat(<i32>0xc2b2ae35));
  h = v128.xor(h, i32x4.shr_u(h, 16));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 15)), i32x4.splat(<i32>0x2c1b3c6d));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 12)), i32x4.splat(<i32>0x297a2d39));
  return v128.xor(h, i32x4.shr_u(h, 15));
}

/** limit (2 u − 1) with u the mix of a row and its columns over 2³². */
@inline
function uniform2(bits: v128, limit: v128): v128 {
  const u = f64x2.mul(f64x2.convert_low_i32x4_u(bits), f64x2.splat(1.0 / 2147483648.0));
  return f32x4.demote_f64x2_zero(f64x2.mul(limit, f64x2.sub(u, f64x2.splat(1))));
}

/** Initial values of one row: `createInitialRow` of `uniform`, to the bit. @param row the mix of its key. */
export function rows_uniform(row: i32, width: i32, limit: f64, out: usize): void {
  const a = i32x4.splat(row);
  const most = f64x2.splat(limit);
  const whole = width & ~3;
  for (let i = 0; i < width; i += 4) {
    const bits = mixed(a, i32x4.add(i32x4.splat(i), i32x4(0, 1, 2, 3)));
    const x = v128.shuffle<i64>(uniform2(bits, most), uniform2(upper(bits), most), 0, 2);
    storeLanes(out + (<usize>i << 2), x, firstLanes(width - i), i == whole);
  }
}
