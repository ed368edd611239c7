// The network of examples/mnist-mlp.ts by hand, compiled to WASM SIMD by `npm run kernels`: digits are mostly
// zeros, so only the pixels that are not cost anything. Arrays begin at multiples of 16 bytes; hidden units
// are a multiple of 4.

// The compiler's own would keep tables in the memory, which is all ours.
@external("env", "exp")
declare function exp(x: f64): f64;
@external("env", "log")
declare function log(x: f64): f64;

/** θ as the layers of tfjs order it: W1 [inputs, hidden], b1, W2 [hidden, classes], b2. */

/** One step of xorshift32. */
@inline
function next(x: u32): u32 {
  x ^= x << 13;
  x ^= x >> 17;
  return x ^ (x << 5);
}

/**
 * Hidden units and logits of one example.
 * @param from @param to its pixels among `columns` and `values`.
 */
@inline
function forward(
  theta: usize, columns: usize, values: usize, from: u32, to: u32, inputs: u32, hidden: u32, classes: u32,
  h: usize, logits: usize,
): void {
  const w1 = theta;
  const b1 = w1 + (inputs * hidden << 2);
  const w2 = b1 + (hidden << 2);
  const b2 = w2 + (hidden * classes << 2);
  const bytes = <usize>hidden << 2;
  for (let at: usize = 0; at < bytes; at += 16) v128.store(h + at, v128.load(b1 + at));
  for (let i = from; i < to; i++) {
    const row = w1 + <usize>load<u16>(columns + (i << 1)) * bytes;
    const x = v128.load32_splat(values + (i << 2));
    for (let at: usize = 0; at < bytes; at += 16) {
      v128.store(h + at, f32x4.add(v128.load(h + at), f32x4.mul(x, v128.load(row + at))));
    }
  }
  for (let c: u32 = 0; c < classes; c++) store<f32>(logits + (c << 2), load<f32>(b2 + (c << 2)));
  for (let j: u32 = 0; j < hidden; j++) {
    const unit = max<f32>(load<f32>(h + (j << 2)), 0);
    store<f32>(h + (j << 2), unit);
  }
}

@inline
function output(theta: usize, inputs: u32, hidden: u32, classes: u32, h: usize, logits: usize): void {
  const w2 = theta + (<usize>(inputs * hidden + hidden) << 2);
  for (let j: u32 = 0; j < hidden; j++) {
    const unit = load<f32>(h + (j << 2));
    if (unit == 0) continue;
    const row = w2 + (<usize>(j * classes) << 2);
    for (let c: u32 = 0; c < classes; c++) {
      const at = <usize>c << 2;
      store<f32>(logits + at, load<f32>(logits + at) + unit * load<f32>(row + at));
    }
  }
}

/** Turns logits into probabilities. Returns the cross-entropy of the label. */
@inline
function softmax(logits: usize, classes: u32, label: u32): f64 {
  let top = load<f32>(logits);
  for (let c: u32 = 1; c < classes; c++) top = max<f32>(top, load<f32>(logits + (c << 2)));
  const own = load<f32>(logits + (label << 2));
  let sum: f64 = 0;
  for (let c: u32 = 0; c < classes; c++) {
    const power = exp(load<f32>(logits + (c << 2)) - top);
    store<f32>(logits + (c << 2), <f32>power);
    sum += power;
  }
  for (let c: u32 = 0; c < classes; c++) {
    store<f32>(logits + (c << 2), <f32>(load<f32>(logits + (c << 2)) / sum));
  }
  return log(sum) - (own - top);
}

/**
 * The gradient of the mean cross-entropy over a minibatch; returns that.
 * @param starts where the pixels of each example begin, one more than there are examples.
 * @param picked the examples. @param room for 2 · hidden + 16 numbers.
 * @param keep share of hidden units that dropout keeps, 1: all. @param seed of the mask, not 0.
 */
export function gradient(
  theta: usize, g: usize, columns: usize, values: usize, starts: usize, labels: usize, picked: usize, count: u32,
  inputs: u32, hidden: u32, classes: u32, room: usize, keep: f32, seed: u32,
): f64 {
  const size = <usize>(inputs * hidden + hidden + hidden * classes + classes) << 2;
  memory.fill(g, 0, size);
  const h = room;
  const dh = h + (hidden << 2);
  const p = dh + (hidden << 2);
  const bytes = <usize>hidden << 2;
  const w2 = theta + (<usize>(inputs * hidden + hidden) << 2);
  const gb1 = g + (<usize>(inputs * hidden) << 2);
  const gw2 = gb1 + bytes;
  const gb2 = gw2 + (<usize>(hidden * classes) << 2);
  const share: f32 = 1 / <f32>count;
  const bound = <u32>(keep * 4294967295.0);
  let loss: f64 = 0;
  for (let n: u32 = 0; n < count; n++) {
    const example = load<u32>(picked + (n << 2));
    const from = load<u32>(starts + (example << 2));
    const to = load<u32>(starts + (example << 2), 4);
    const label = <u32>load<u8>(labels + example);
    forward(theta, columns, values, from, to, inputs, hidden, classes, h, p);
    if (keep < 1) {
      const up: f32 = 1 / keep;
      for (let j: u32 = 0; j < hidden; j++) {
        seed = next(seed);
        const at = h + (j << 2);
        store<f32>(at, seed <= bound ? load<f32>(at) * up : 0);
      }
    }
    output(theta, inputs, hidden, classes, h, p);
    loss += softmax(p, classes, label);
    store<f32>(p + (label << 2), load<f32>(p + (label << 2)) - 1);
    for (let c: u32 = 0; c < classes; c++) {
      const at = <usize>c << 2;
      const d = load<f32>(p + at) * share;
      store<f32>(p + at, d);
      store<f32>(gb2 + at, load<f32>(gb2 + at) + d);
    }
    for (let j: u32 = 0; j < hidden; j++) {
      const unit = load<f32>(h + (j << 2));
      let sum: f32 = 0;
      if (unit > 0) {
        const row = <usize>(j * classes) << 2;
        for (let c: u32 = 0; c < classes; c++) {
          const at = row + (c << 2);
          const d = load<f32>(p + (c << 2));
          store<f32>(gw2 + at, load<f32>(gw2 + at) + unit * d);
          sum += load<f32>(w2 + at) * d;
        }
        if (keep < 1) sum /= keep;
      }
      store<f32>(dh + (j << 2), sum);
    }
    for (let at: usize = 0; at < bytes; at += 16) {
      v128.store(gb1 + at, f32x4.add(v128.load(gb1 + at), v128.load(dh + at)));
    }
    for (let i = from; i < to; i++) {
      const row = g + <usize>load<u16>(columns + (i << 1)) * bytes;
      const x = v128.load32_splat(values + (i << 2));
      for (let at: usize = 0; at < bytes; at += 16) {
        v128.store(row + at, f32x4.add(v128.load(row + at), f32x4.mul(x, v128.load(dh + at))));
      }
    }
  }
  return loss / count;
}

/**
 * The sum of the cross-entropies of examples [first, last) of `picked`, and at `room` how many were wrong.
 * @param room as of `gradient`.
 */
export function evaluate(
  theta: usize, columns: usize, values: usize, starts: usize, labels: usize, picked: usize, first: u32, last: u32,
  inputs: u32, hidden: u32, classes: u32, room: usize,
): f64 {
  const h = room + 16;
  const p = h + (hidden << 2);
  let wrong: f32 = 0;
  let loss: f64 = 0;
  for (let n = first; n < last; n++) {
    const example = load<u32>(picked + (n << 2));
    const label = <u32>load<u8>(labels + example);
    const from = load<u32>(starts + (example << 2));
    const to = load<u32>(starts + (example << 2), 4);
    forward(theta, columns, values, from, to, inputs, hidden, classes, h, p);
    output(theta, inputs, hidden, classes, h, p);
    let best: u32 = 0;
    for (let c: u32 = 1; c < classes; c++) {
      if (load<f32>(p + (c << 2)) > load<f32>(p + (best << 2))) best = c;
    }
    if (best != label) wrong += 1;
    loss += softmax(p, classes, label);
  }
  store<f32>(room, wrong);
  return loss;
}
