import { bytesOfBase64 } from '../../shared/base64.ts';
import { BINARY } from '../kernels/binary.ts';

/** The WASM SIMD kernels of `server/kernels`. Addresses are those of `Memory`, multiples of 16. */

/** `Ahead`: with look-ahead, which that of `momentum` is by `nesterov`. */
export type UpdateRule =
  | 'sgd'
  | 'momentum'
  | 'nesterov'
  | 'adagrad'
  | 'rmsprop'
  | 'adadelta'
  | 'adam'
  | 'rmspropAhead'
  | 'adamAhead';
/** What a kernel reads; `topk` is spread out before. */
export type Decoding = 'f32' | 'bf16' | 'int8';

/** From `theta` to `out`, which may be the same. Returns 0, or 1 when a parameter is no longer finite. */
type Update = (
  theta: number,
  out: number,
  slot1: number,
  slot2: number,
  gradient: number,
  scales: number,
  start: number,
  end: number,
  limit: number,
  factor: number,
  lambda: number,
  l1: number,
  rate: number,
  p: number,
  p1: number,
  q: number,
  q1: number,
  delta: number,
  keep: number,
) => number;

/** Updates rows of a table in their slots. Returns 0, or 1 when a parameter is no longer finite. */
type UpdateRows = (
  n: number,
  width: number,
  slots: number,
  gradients: number,
  theta: number,
  state: number,
  before: number,
  numbers: number,
  maxNorm: number,
  initial: number,
  delta: number,
  p1: number,
  q1: number,
  correction: number,
) => number;

/** Kernels of tables: `server/kernels/assembly/rows.ts` says what they do. */
type RowKernels = {
  readonly [K in `rows_${'sgd' | 'adagrad' | 'adam'}`]: UpdateRows;
} & {
  rows_clip(gradients: number, n: number, limit: number, factor: number): void;
  rows_decode_int8(n: number, width: number, scales: number, bytes: number, out: number): void;
  rows_gather(
    n: number,
    width: number,
    slots: number,
    theta: number,
    factors: number,
    out: number,
  ): void;
  rows_uniform(row: number, width: number, limit: number, out: number): void;
};

export type Kernels = RowKernels & {
  /** `plain`: no limit, no decay, and no factor for rules that divide by the gradient. */
  readonly [K in `${UpdateRule}_${Decoding}${'' | '_plain'}`]: Update;
} & {
  /** Adds the squares of [start, end) to `total`, in f32; see `sumOfSquares`. */
  readonly [K in `squares_${Decoding}`]: (
    gradient: number,
    scales: number,
    start: number,
    end: number,
    total: number,
  ) => number;
} & {
  /** The same in f64, each element cut to ±limit before; NaN when one was not finite. */
  readonly [K in `exactSquares_${Decoding}`]: (
    gradient: number,
    scales: number,
    n: number,
    limit: number,
  ) => number;
} & {
  ema(average: number, theta: number, n: number, keep: number, take: number): void;
  polyak(average: number, rest: number, theta: number, n: number, inverse: number): void;
  /** a ← b + s c, what the memory allows at best. */
  triad(a: number, b: number, c: number, n: number, s: number): void;
};

let compiled: WebAssembly.Module | null = null;

export function createKernels(memory: WebAssembly.Memory): Kernels {
  compiled ??= new WebAssembly.Module(bytesOfBase64(BINARY));
  return new WebAssembly.Instance(compiled, { env: { memory } }).exports as unknown as Kernels;
}
