/**
 * Gradients that are put right for the way of the parameters since the worker read them. The reference and the only twin:
 * each is one pass beside that of the update.
 */

/** How the gradient of one push is put right. */
export type CompensationUse = {
  /** Where the parameters are that its worker was sent, from 1. */
  readonly slot: number;
} & (
  | { readonly kind: 'constant'; readonly lambda: number }
  | { readonly kind: 'adaptive'; readonly lambda: number; readonly decay: number }
  /** `typical`: the size of a typical step of one parameter. */
  | { readonly kind: 'gap'; readonly typical: number }
);

/**
 * @param gradient shape [n], in place. @param now the parameters, and @param sent those that the worker was sent.
 * @param squares of `adaptive`: the worker's running mean of squared gradients, in place.
 */
export function compensate(
  use: CompensationUse,
  gradient: Float32Array,
  now: Float32Array,
  sent: Float32Array,
  squares: Float32Array | null,
): void {
  switch (use.kind) {
    case 'constant':
      constant(gradient, now, sent, use.lambda);
      break;
    case 'adaptive':
      adaptive(gradient, now, sent, squares!, use.lambda, use.decay);
      break;
    case 'gap':
      gap(gradient, now, sent, use.typical);
      break;
  }
}

/** g ← g + λ g² ⊙ (w − w_bak): DC-ASGD-c, Zheng et al. 2017, arXiv:1609.08326. */
function constant(g: Float32Array, w: Float32Array, bak: Float32Array, lambda: number): void {
  for (let i = 0; i < g.length; i++) {
    const x = g[i]!;
    g[i] = x + lambda * x * x * (w[i]! - bak[i]!);
  }
}

/** MS ← m MS + (1 − m) g², g ← g + λ₀ g² ⊙ (w − w_bak) / √(MS + 1e-7): DC-ASGD-a, as in the official code. */
function adaptive(
  g: Float32Array,
  w: Float32Array,
  bak: Float32Array,
  ms: Float32Array,
  lambda: number,
  m: number,
): void {
  for (let i = 0; i < g.length; i++) {
    const x = g[i]!;
    const square = m * ms[i]! + (1 - m) * x * x;
    ms[i] = square;
    g[i] = x + (lambda * x * x * (w[i]! - bak[i]!)) / Math.sqrt(square + 1e-7);
  }
}

/** g ← g / (1 + |w − w_bak| / C), element by element: gap-aware, Barkai et al. 2020, arXiv:1909.10802. */
function gap(g: Float32Array, w: Float32Array, bak: Float32Array, typical: number): void {
  if (!(typical > 0)) return;
  for (let i = 0; i < g.length; i++) g[i] = g[i]! / (1 + Math.abs(w[i]! - bak[i]!) / typical);
}
