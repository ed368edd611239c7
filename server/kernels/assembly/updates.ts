// Updates of dense parameters: a function for each rule and encoding of the gradient.
import { BF16, decoded, F32, INT8, lanes } from './encodings';

const SGD = 0;
const MOMENTUM = 1;
const NESTEROV = 2;
const ADAGRAD = 3;
const RMSPROP = 4;
const ADADELTA = 5;
const ADAM = 6;
// With look-ahead by the momentum of a worker's own; that of momentum is NESTEROV.
const RMSPROP_AHEAD = 7;
const ADAM_AHEAD = 8;

@inline
function store(at: usize, value: v128, mask: v128, masked: bool): void {
  v128.store(at, masked ? v128.bitselect(value, v128.load(at), mask) : value);
}

/** One vector of one update. Returns the parameters, 0 where the mask is. */
@inline
function update4(
  rule: i32,
  plain: bool,
  theta: usize,
  out: usize,
  s1: usize,
  s2: usize,
  at: usize,
  gradient: v128,
  limit: v128,
  factor: v128,
  lambda: v128,
  l1: v128,
  rate: v128,
  p: v128,
  p1: v128,
  q: v128,
  q1: v128,
  delta: v128,
  keep: v128,
  mask: v128,
  masked: bool,
): v128 {
  const t = v128.load(theta + at);
  let x = gradient;
  if (!plain) {
    x = f32x4.mul(f32x4.pmin(f32x4.pmax(x, f32x4.neg(limit)), limit), factor);
    x = f32x4.add(x, f32x4.mul(lambda, t));
    // l1 with the sign of t, 0 where t is.
    const signed = v128.or(v128.and(t, i32x4.splat(0x80000000)), l1);
    x = f32x4.add(x, v128.and(signed, f32x4.ne(t, f32x4.splat(0))));
  }
  let fresh = t;
  if (rule == SGD) {
    fresh = f32x4.sub(t, f32x4.mul(rate, x));
  } else if (rule == MOMENTUM) {
    const v = f32x4.sub(f32x4.mul(p, v128.load(s1 + at)), f32x4.mul(rate, x));
    store(s1 + at, v, mask, masked);
    fresh = f32x4.add(t, v);
  } else if (rule == NESTEROV) {
    const step = f32x4.mul(rate, x);
    const v = f32x4.sub(f32x4.mul(p, v128.load(s1 + at)), step);
    store(s1 + at, v, mask, masked);
    fresh = f32x4.sub(f32x4.add(t, f32x4.mul(p, v)), step);
  } else if (rule == ADAGRAD) {
    const r = f32x4.add(v128.load(s1 + at), f32x4.mul(x, x));
    store(s1 + at, r, mask, masked);
    fresh = f32x4.sub(t, f32x4.div(f32x4.mul(rate, x), f32x4.add(delta, f32x4.sqrt(r))));
  } else if (rule == RMSPROP) {
    const r = f32x4.add(f32x4.mul(q, v128.load(s1 + at)), f32x4.mul(q1, f32x4.mul(x, x)));
    store(s1 + at, r, mask, masked);
    const step = f32x4.div(f32x4.mul(rate, x), f32x4.sqrt(f32x4.add(delta, r)));
    const v = f32x4.sub(f32x4.mul(p, v128.load(s2 + at)), step);
    store(s2 + at, v, mask, masked);
    fresh = f32x4.add(t, v);
  } else if (rule == RMSPROP_AHEAD) {
    const r = f32x4.add(f32x4.mul(q, v128.load(s1 + at)), f32x4.mul(q1, f32x4.mul(x, x)));
    store(s1 + at, r, mask, masked);
    const step = f32x4.div(f32x4.mul(rate, x), f32x4.sqrt(f32x4.add(delta, r)));
    const v = f32x4.sub(f32x4.mul(p, v128.load(s2 + at)), step);
    store(s2 + at, v, mask, masked);
    fresh = f32x4.sub(f32x4.add(t, f32x4.mul(p, v)), step);
  } else if (rule == ADADELTA) {
    const r = f32x4.add(f32x4.mul(q, v128.load(s1 + at)), f32x4.mul(q1, f32x4.mul(x, x)));
    store(s1 + at, r, mask, masked);
    const u = v128.load(s2 + at);
    const ratio = f32x4.div(f32x4.add(u, delta), f32x4.add(r, delta));
    const change = f32x4.mul(f32x4.sqrt(ratio), x);
    const size = f32x4.mul(q1, f32x4.mul(change, change));
    store(s2 + at, f32x4.add(f32x4.mul(q, u), size), mask, masked);
    fresh = f32x4.sub(t, f32x4.mul(rate, change));
  } else {
    const g = f32x4.mul(p1, x);
    let m = f32x4.add(f32x4.mul(p, v128.load(s1 + at)), g);
    store(s1 + at, m, mask, masked);
    if (rule == ADAM_AHEAD) m = f32x4.add(f32x4.mul(p, m), g);
    const v = f32x4.add(f32x4.mul(q, v128.load(s2 + at)), f32x4.mul(q1, f32x4.mul(x, x)));
    store(s2 + at, v, mask, masked);
    // The correction of v is in rate and delta.
    const step = f32x4.div(f32x4.mul(rate, m), f32x4.add(f32x4.sqrt(v), delta));
    fresh = f32x4.sub(plain ? t : f32x4.mul(keep, t), step);
  }
  store(out + at, fresh, mask, masked);
  return masked ? v128.and(fresh, mask) : fresh;
}

/** 0 in each lane, NaN where x is not finite. */
@inline
function finite(x: v128): v128 {
  return f32x4.sub(x, x);
}

/** Updates [start, end), a few vectors, whatever the rule. Returns 0, NaN in a lane that is no longer finite. */
function edge(
  rule: i32,
  kind: i32,
  theta: usize,
  out: usize,
  s1: usize,
  s2: usize,
  g: usize,
  scales: usize,
  start: usize,
  end: usize,
  limit: f32,
  factor: f32,
  lambda: f32,
  l1: f32,
  rate: f32,
  p: f32,
  p1: f32,
  q: f32,
  q1: f32,
  delta: f32,
  keep: f32,
): v128 {
  let sum = f32x4.splat(0);
  for (let i = start & ~3; i < end; i += 4) {
    const x = decoded(kind, g, scales, i);
    const mask = lanes(i, start, end);
    const fresh = update4(
      rule, false, theta, out, s1, s2, i << 2, x, f32x4.splat(limit), f32x4.splat(factor),
      f32x4.splat(lambda), f32x4.splat(l1), f32x4.splat(rate), f32x4.splat(p), f32x4.splat(p1), f32x4.splat(q),
      f32x4.splat(q1), f32x4.splat(delta), f32x4.splat(keep), mask, true,
    );
    sum = f32x4.add(sum, finite(fresh));
  }
  return sum;
}

/**
 * Updates [start, end) from θ to `out`, which may be the same. Returns 0, or 1 when a parameter is no longer finite.
 * `plain`: no limit, no decay, and the factor can be put into the other numbers.
 */
@inline
function update(
  rule: i32,
  kind: i32,
  plain: bool,
  theta: usize,
  out: usize,
  s1: usize,
  s2: usize,
  g: usize,
  scales: usize,
  start: usize,
  end: usize,
  limit: f32,
  factor: f32,
  lambda: f32,
  l1: f32,
  rate: f32,
  p: f32,
  p1: f32,
  q: f32,
  q1: f32,
  delta: f32,
  keep: f32,
): i32 {
  const from = min(end, (start + 15) & ~15);
  const to = max(from, end & ~15);
  let sum = edge(
    rule, kind, theta, out, s1, s2, g, scales, start, from, limit, factor, lambda, l1, rate, p, p1, q, q1,
    delta, keep,
  );
  const adam = rule == ADAM || rule == ADAM_AHEAD;
  const vLimit = f32x4.splat(limit);
  const vFactor = f32x4.splat(factor);
  const vLambda = f32x4.splat(lambda);
  const vL1 = f32x4.splat(l1);
  const vRate = f32x4.splat(plain && !adam ? rate * factor : rate);
  const vP = f32x4.splat(p);
  const vP1 = f32x4.splat(plain ? p1 * factor : p1);
  const vQ = f32x4.splat(q);
  const vQ1 = f32x4.splat(plain ? q1 * factor * factor : q1);
  const vDelta = f32x4.splat(delta);
  const vKeep = f32x4.splat(keep);
  for (let i = from; i < to; i += 16) {
    let x0: v128, x1: v128, x2: v128, x3: v128;
    if (kind == F32) {
      const at = g + (i << 2);
      x0 = v128.load(at);
      x1 = v128.load(at, 16);
      x2 = v128.load(at, 32);
      x3 = v128.load(at, 48);
    } else if (kind == BF16) {
      const at = g + (i << 1);
      const zero = i32x4.splat(0);
      const low = v128.load(at);
      const high = v128.load(at, 16);
      x0 = v128.shuffle<i16>(zero, low, 0, 8, 1, 9, 2, 10, 3, 11);
      x1 = v128.shuffle<i16>(zero, low, 4, 12, 5, 13, 6, 14, 7, 15);
      x2 = v128.shuffle<i16>(zero, high, 0, 8, 1, 9, 2, 10, 3, 11);
      x3 = v128.shuffle<i16>(zero, high, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
      // A block of 256 shares a scale, and sixteen never reach over the end of a block.
      const scale = v128.load32_splat(scales + ((i >> 8) << 2));
      const low = v128.load_ext<i8>(g + i);
      const high = v128.load_ext<i8>(g + i, 8);
      x0 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(low)), scale);
      x1 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(low)), scale);
      x2 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(high)), scale);
      x3 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(high)), scale);
    }
    const at = i << 2;
    const r0 = update4(
      rule, plain, theta, out, s1, s2, at + 0, x0, vLimit, vFactor, vLambda, vL1, vRate, vP, vP1, vQ, vQ1,
      vDelta, vKeep, vLimit, false,
    );
    const r1 = update4(
      rule, plain, theta, out, s1, s2, at + 16, x1, vLimit, vFactor, vLambda, vL1, vRate, vP, vP1, vQ, vQ1,
      vDelta, vKeep, vLimit, false,
    );
    const r2 = update4(
      rule, plain, theta, out, s1, s2, at + 32, x2, vLimit, vFactor, vLambda, vL1, vRate, vP, vP1, vQ, vQ1,
      vDelta, vKeep, vLimit, false,
    );
    const r3 = update4(
      rule, plain, theta, out, s1, s2, at + 48, x3, vLimit, vFactor, vLambda, vL1, vRate, vP, vP1, vQ, vQ1,
      vDelta, vKeep, vLimit, false,
    );
    // Sixteen at once; that a sum of large ones overflows is found out below.
    sum = f32x4.add(sum, finite(f32x4.add(f32x4.add(r0, r1), f32x4.add(r2, r3))));
  }
  if (v128.any_true(f32x4.ne(sum, f32x4.splat(0)))) {
    sum = f32x4.splat(0);
    for (let at = start & ~3; at < to; at += 4) {
      const mask = lanes(at, start, to);
      sum = f32x4.add(sum, finite(v128.and(v128.load(out + (at << 2)), mask)));
    }
  }
  if (to < end) {
    const rest = edge(
      rule, kind, theta, out, s1, s2, g, scales, to, end, limit, factor, lambda, l1, rate, p, p1, q, q1,
      delta, keep,
    );
    sum = f32x4.add(sum, rest);
  }
  return v128.any_true(f32x4.ne(sum, f32x4.splat(0))) ? 1 : 0;
}

// Exported for each rule and encoding, so that the compiler folds both into the loop.
export function sgd_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(SGD, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function sgd_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(SGD, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function sgd_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(SGD, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function sgd_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(SGD, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function sgd_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(SGD, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function sgd_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(SGD, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function momentum_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(MOMENTUM, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function momentum_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(MOMENTUM, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function momentum_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(MOMENTUM, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function momentum_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(MOMENTUM, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function momentum_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(MOMENTUM, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function momentum_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(MOMENTUM, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function nesterov_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(NESTEROV, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function nesterov_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(NESTEROV, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function nesterov_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(NESTEROV, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function nesterov_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(NESTEROV, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function nesterov_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(NESTEROV, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function nesterov_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(NESTEROV, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adagrad_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAGRAD, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adagrad_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAGRAD, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adagrad_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAGRAD, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adagrad_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAGRAD, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adagrad_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAGRAD, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adagrad_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAGRAD, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmsprop_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmsprop_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmsprop_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmsprop_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmsprop_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmsprop_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adadelta_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADADELTA, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adadelta_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADADELTA, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adadelta_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADADELTA, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adadelta_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADADELTA, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adadelta_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADADELTA, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adadelta_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADADELTA, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adam_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adam_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adam_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adam_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adam_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adam_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmspropAhead_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP_AHEAD, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmspropAhead_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP_AHEAD, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmspropAhead_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP_AHEAD, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmspropAhead_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP_AHEAD, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmspropAhead_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP_AHEAD, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function rmspropAhead_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(RMSPROP_AHEAD, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adamAhead_f32_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM_AHEAD, F32, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adamAhead_f32(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM_AHEAD, F32, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adamAhead_bf16_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM_AHEAD, BF16, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adamAhead_bf16(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM_AHEAD, BF16, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adamAhead_int8_plain(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM_AHEAD, INT8, true, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
export function adamAhead_int8(
  theta: usize, out: usize, s1: usize, s2: usize, g: usize, scales: usize, start: usize, end: usize, limit: f32, factor: f32, lambda: f32, l1: f32, rate: f32, p: f32, p1: f32, q: f32, q1: f32, delta: f32, keep: f32,
): i32 {
  return update(ADAM_AHEAD, INT8, false, theta, out, s1, s2, g, scales, start, end, limit, factor, lambda, l1, rate, p, p1, q, q1, delta, keep);
}
