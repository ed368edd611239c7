// Matrix products and the element-wise part of recurrent steps for the wasm engine, in AssemblyScript, compiled to WASM
// SIMD by `npm run kernels`. Addresses are of float32 in the memory of tfjs-backend-wasm; strides count floats.
// The reference twins are the operations of worker/recurrent/cells.ts.

/** Columns of a panel: with 4 rows, 8 vectors of sums stay in registers. */
const WIDTH = 8;
const PANEL_BYTES: usize = 32;

/** Up to 4 floats; zeros beyond `count`. */
@inline
function read(at: usize, count: i32): v128 {
  if (count >= 4) return v128.load(at);
  let x = v128.load32_zero(at);
  if (count > 1) x = v128.load32_lane(at + 4, x, 1);
  if (count > 2) x = v128.load32_lane(at + 8, x, 2);
  return x;
}

@inline
function write(at: usize, x: v128, count: i32): void {
  if (count >= 4) {
    v128.store(at, x);
    return;
  }
  v128.store32_lane(at, x, 0);
  if (count > 1) v128.store32_lane(at + 4, x, 1);
  if (count > 2) v128.store32_lane(at + 8, x, 2);
}

// ---------------------------------------------------------------- products

/**
 * Lays a matrix [rows, columns] out in panels of 8 columns, [⌈columns / 8⌉, rows, 8], with zeros beyond the last column.
 * Element (k, n) is at matrix + k · rowStride + n · columnStride.
 */
export function pack(
  out: usize,
  matrix: usize,
  rows: i32,
  columns: i32,
  rowStride: usize,
  columnStride: usize,
): void {
  const row = rowStride << 2;
  const column = columnStride << 2;
  for (let n = 0; n < columns; n += WIDTH) {
    const left = columns - n;
    let from = matrix + <usize>n * column;
    for (let k = 0; k < rows; k++) {
      if (left >= WIDTH && columnStride == 1) {
        v128.store(out, v128.load(from));
        v128.store(out, v128.load(from, 16), 16);
      } else {
        for (let j = 0; j < WIDTH; j++) {
          store<f32>(out + (<usize>j << 2), j < left ? load<f32>(from + <usize>j * column) : 0);
        }
      }
      from += row;
      out += PANEL_BYTES;
    }
  }
}

/** The sums of one row and 8 columns, into C. */
@inline
function finish(c: usize, low: v128, high: v128, left: i32, add: bool): void {
  if (add) low = f32x4.add(low, read(c, left));
  write(c, low, left);
  if (left <= 4) return;
  if (add) high = f32x4.add(high, read(c + 16, left - 4));
  write(c + 16, high, left - 4);
}

/**
 * C = A · B, or C += A · B. A is [M, K], element (m, k) at a + m · aRow + k · aColumn; B is packed; C is [M, N] with
 * rows cRow apart.
 */
export function multiply(
  c: usize,
  cRow: usize,
  a: usize,
  aRow: usize,
  aColumn: usize,
  panels: usize,
  M: i32,
  N: i32,
  K: i32,
  add: bool,
): void {
  const row = aRow << 2;
  const column = aColumn << 2;
  const out = cRow << 2;
  const zero = f32x4.splat(0);
  for (let n = 0; n < N; n += WIDTH) {
    let m = 0;
    let a0 = a;
    let to = c + (<usize>n << 2);
    for (; m + 4 <= M; m += 4) {
      let s00 = zero, s01 = zero, s10 = zero, s11 = zero;
      let s20 = zero, s21 = zero, s30 = zero, s31 = zero;
      let at = a0;
      let b = panels;
      for (let k = 0; k < K; k++) {
        const low = v128.load(b);
        const high = v128.load(b, 16);
        let x = v128.load32_splat(at);
        s00 = f32x4.add(s00, f32x4.mul(x, low));
        s01 = f32x4.add(s01, f32x4.mul(x, high));
        x = v128.load32_splat(at + row);
        s10 = f32x4.add(s10, f32x4.mul(x, low));
        s11 = f32x4.add(s11, f32x4.mul(x, high));
        x = v128.load32_splat(at + row * 2);
        s20 = f32x4.add(s20, f32x4.mul(x, low));
        s21 = f32x4.add(s21, f32x4.mul(x, high));
        x = v128.load32_splat(at + row * 3);
        s30 = f32x4.add(s30, f32x4.mul(x, low));
        s31 = f32x4.add(s31, f32x4.mul(x, high));
        at += column;
        b += PANEL_BYTES;
      }
      finish(to, s00, s01, N - n, add);
      finish(to + out, s10, s11, N - n, add);
      finish(to + out * 2, s20, s21, N - n, add);
      finish(to + out * 3, s30, s31, N - n, add);
      a0 += row * 4;
      to += out * 4;
    }
    for (; m < M; m++) {
      let low = zero, high = zero;
      let at = a0;
      let b = panels;
      for (let k = 0; k < K; k++) {
        const x = v128.load32_splat(at);
        low = f32x4.add(low, f32x4.mul(x, v128.load(b)));
        high = f32x4.add(high, f32x4.mul(x, v128.load(b, 16)));
        at += column;
        b += PANEL_BYTES;
      }
      finish(to, low, high, N - n, add);
      a0 += row;
      to += out;
    }
    panels += <usize>K * PANEL_BYTES;
  }
}

// ---------------------------------------------------------------- activations

@inline
function one(): v128 {
  return f32x4.splat(1);
}

/** eˣ to 2 units in the last place (the polynomial of Cephes, S. Moshier), x held between −87 and 88. */
@inline
function exp(x: v128): v128 {
  const bounded = f32x4.max(f32x4.min(x, f32x4.splat(88)), f32x4.splat(-87));
  const n = f32x4.nearest(f32x4.mul(bounded, f32x4.splat(1.44269504088896341)));
  let r = f32x4.sub(bounded, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let p = f32x4.splat(1.9875691500e-4);
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1));
  p = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(p, r), r), r), one());
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, power);
}

/** Not a number stays what it is. */
@inline
function sigmoid(x: v128): v128 {
  return f32x4.div(one(), f32x4.add(one(), exp(f32x4.neg(x))));
}

@inline
function tanh(x: v128): v128 {
  const size = f32x4.abs(x);
  const e = exp(f32x4.mul(size, f32x4.splat(-2)));
  const large = f32x4.div(f32x4.sub(one(), e), f32x4.add(one(), e));
  // Near 0 the difference above would have no digits left.
  const s = f32x4.mul(x, x);
  let p = f32x4.splat(-5.70498872745e-3);
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(2.06390887954e-2));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-5.37397155531e-2));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(1.33314422036e-1));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-3.33332819422e-1));
  const small = f32x4.add(f32x4.mul(f32x4.mul(p, s), size), size);
  const y = v128.bitselect(small, large, f32x4.lt(size, f32x4.splat(0.625)));
  return v128.or(y, v128.and(x, i32x4.splat(0x80000000)));
}

@inline
function gate(x: v128, hard: bool): v128 {
  if (!hard) return sigmoid(x);
  const line = f32x4.add(f32x4.mul(x, f32x4.splat(0.2)), f32x4.splat(0.5));
  return f32x4.min(f32x4.max(line, f32x4.splat(0)), one());
}

/** dy · f′, where the gate gave y. */
@inline
function gateBack(dy: v128, y: v128, hard: bool): v128 {
  const s = f32x4.sub(y, f32x4.mul(y, y));
  if (!hard) return f32x4.mul(dy, s);
  return v128.and(f32x4.mul(dy, f32x4.splat(0.2)), f32x4.gt(s, f32x4.splat(0)));
}

@inline
function tanhBack(dy: v128, y: v128): v128 {
  return f32x4.sub(dy, f32x4.mul(dy, f32x4.mul(y, y)));
}

// ---------------------------------------------------------------- steps of recurrent cells
// B examples, H units. Arrays are [B, H] without gaps; gates are [B, 4 H] or [B, 3 H]; h, its like and dy have rows of a
// given stride. A row whose mask is 0 keeps its states. mask 0: there is none.

/** @param gates in: before activation; out: after it (input, forget, candidate, output). @param a tanh of the new c. */
export function lstm_forward(
  gates: usize,
  c: usize,
  h: usize,
  hRow: usize,
  nextC: usize,
  nextH: usize,
  nextHRow: usize,
  a: usize,
  mask: usize,
  B: i32,
  H: i32,
  hard: bool,
): void {
  const width = <usize>H << 2;
  for (let row = 0; row < B; row++) {
    const counts = mask == 0 || load<f32>(mask + (<usize>row << 2)) != 0;
    for (let j = 0; j < H; j += 4) {
      const left = H - j;
      const at = <usize>j << 2;
      const i = gate(read(gates + at, left), hard);
      const f = gate(read(gates + width + at, left), hard);
      const g = tanh(read(gates + width * 2 + at, left));
      const o = gate(read(gates + width * 3 + at, left), hard);
      const before = read(c + at, left);
      const next = f32x4.add(f32x4.mul(f, before), f32x4.mul(i, g));
      const active = tanh(next);
      write(gates + at, i, left);
      write(gates + width + at, f, left);
      write(gates + width * 2 + at, g, left);
      write(gates + width * 3 + at, o, left);
      write(a + at, active, left);
      write(nextC + at, counts ? next : before, left);
      write(nextH + at, counts ? f32x4.mul(o, active) : read(h + at, left), left);
    }
    gates += width * 4;
    c += width;
    nextC += width;
    a += width;
    h += hRow << 2;
    nextH += nextHRow << 2;
  }
}

/**
 * Begins a row of a step backward: its dh gets dy, if there is one. A row that is masked hands dh on as it is, and has no dz.
 * @returns how many units are to be computed: all or none.
 */
@inline
function begin(
  dz: usize,
  dh: usize,
  dy: usize,
  mask: usize,
  row: i32,
  H: i32,
  gates: usize,
): i32 {
  if (dy != 0) {
    for (let j = 0; j < H; j += 4) {
      const at = <usize>j << 2;
      write(dh + at, f32x4.add(read(dh + at, H - j), read(dy + at, H - j)), H - j);
    }
  }
  if (mask == 0 || load<f32>(mask + (<usize>row << 2)) != 0) return H;
  memory.fill(dz, 0, (<usize>H << 2) * gates);
  return 0;
}

/**
 * @param dh in: by the new h, from the step after; out: what a masked row hands on, 0 else.
 * @param dc in: by the new c; out: by the c before. @param dy by the output of this step; 0: none.
 */
export function lstm_backward(
  dz: usize,
  dh: usize,
  dc: usize,
  dy: usize,
  dyRow: usize,
  gates: usize,
  c: usize,
  a: usize,
  mask: usize,
  B: i32,
  H: i32,
  hard: bool,
): void {
  const width = <usize>H << 2;
  const zero = f32x4.splat(0);
  for (let row = 0; row < B; row++) {
    const units = begin(dz, dh, dy, mask, row, H, 4);
    for (let j = 0; j < units; j += 4) {
      const left = H - j;
      const at = <usize>j << 2;
      const d = read(dh + at, left);
      const i = read(gates + at, left);
      const f = read(gates + width + at, left);
      const g = read(gates + width * 2 + at, left);
      const o = read(gates + width * 3 + at, left);
      const active = read(a + at, left);
      const by = f32x4.add(read(dc + at, left), tanhBack(f32x4.mul(d, o), active));
      write(dz + at, gateBack(f32x4.mul(by, g), i, hard), left);
      write(dz + width + at, gateBack(f32x4.mul(by, read(c + at, left)), f, hard), left);
      write(dz + width * 2 + at, tanhBack(f32x4.mul(by, i), g), left);
      write(dz + width * 3 + at, gateBack(f32x4.mul(d, active), o, hard), left);
      write(dc + at, f32x4.mul(by, f), left);
      write(dh + at, zero, left);
    }
    dz += width * 4;
    gates += width * 4;
    dh += width;
    dc += width;
    c += width;
    a += width;
    if (dy != 0) dy += dyRow << 2;
  }
}

/** Update and reset gates, and what the candidate is computed of: rh = reset · h. */
export function gru_gates(
  gates: usize,
  h: usize,
  hRow: usize,
  rh: usize,
  B: i32,
  H: i32,
  hard: bool,
): void {
  const width = <usize>H << 2;
  for (let row = 0; row < B; row++) {
    for (let j = 0; j < H; j += 4) {
      const left = H - j;
      const at = <usize>j << 2;
      const r = gate(read(gates + width + at, left), hard);
      write(gates + at, gate(read(gates + at, left), hard), left);
      write(gates + width + at, r, left);
      write(rh + at, f32x4.mul(r, read(h + at, left)), left);
    }
    gates += width * 3;
    rh += width;
    h += hRow << 2;
  }
}

/** @param gates in: the candidate before activation; out: after it. */
export function gru_output(
  gates: usize,
  h: usize,
  hRow: usize,
  nextH: usize,
  nextHRow: usize,
  mask: usize,
  B: i32,
  H: i32,
): void {
  const width = <usize>H << 2;
  for (let row = 0; row < B; row++) {
    const counts = mask == 0 || load<f32>(mask + (<usize>row << 2)) != 0;
    for (let j = 0; j < H; j += 4) {
      const left = H - j;
      const at = <usize>j << 2;
      const g = tanh(read(gates + width * 2 + at, left));
      const before = read(h + at, left);
      const next = f32x4.add(g, f32x4.mul(read(gates + at, left), f32x4.sub(before, g)));
      write(gates + width * 2 + at, g, left);
      write(nextH + at, counts ? next : before, left);
    }
    gates += width * 3;
    h += hRow << 2;
    nextH += nextHRow << 2;
  }
}

/**
 * Gradients by the update gate and the candidate.
 * @param dh as in `lstm_backward`; out: what goes by the update gate to the h before.
 */
export function gru_backward(
  dz: usize,
  dh: usize,
  dy: usize,
  dyRow: usize,
  gates: usize,
  h: usize,
  hRow: usize,
  mask: usize,
  B: i32,
  H: i32,
  hard: bool,
): void {
  const width = <usize>H << 2;
  for (let row = 0; row < B; row++) {
    const units = begin(dz, dh, dy, mask, row, H, 3);
    for (let j = 0; j < units; j += 4) {
      const left = H - j;
      const at = <usize>j << 2;
      const d = read(dh + at, left);
      const u = read(gates + at, left);
      const g = read(gates + width * 2 + at, left);
      const straight = f32x4.mul(d, u);
      const byUpdate = f32x4.mul(d, f32x4.sub(read(h + at, left), g));
      write(dz + at, gateBack(byUpdate, u, hard), left);
      write(dz + width * 2 + at, tanhBack(f32x4.sub(d, straight), g), left);
      write(dh + at, straight, left);
    }
    dz += width * 3;
    gates += width * 3;
    dh += width;
    h += hRow << 2;
    if (dy != 0) dy += dyRow << 2;
  }
}

/** Gradients by the reset gate. @param drh by reset · h: zeros where the row is masked. */
export function gru_reset_backward(
  dz: usize,
  dh: usize,
  drh: usize,
  gates: usize,
  h: usize,
  hRow: usize,
  B: i32,
  H: i32,
  hard: bool,
): void {
  const width = <usize>H << 2;
  for (let row = 0; row < B; row++) {
    for (let j = 0; j < H; j += 4) {
      const left = H - j;
      const at = <usize>j << 2;
      const d = read(drh + at, left);
      const r = read(gates + width + at, left);
      write(dz + width + at, gateBack(f32x4.mul(d, read(h + at, left)), r, hard), left);
      write(dh + at, f32x4.add(read(dh + at, left), f32x4.mul(d, r)), left);
    }
    dz += width * 3;
    gates += width * 3;
    dh += width;
    drh += width;
    h += hRow << 2;
  }
}
