import type { RunConfig } from './config.ts';
import { matchesPattern } from './name-pattern.ts';
import type { OptimizerConfig } from './optimizer-config.ts';

/**
 * The update rules in plain TypeScript: those of workers that take local steps, and the reference that the kernels of
 * the server (fused.ts) are tested against. Arithmetic is in float64, as everywhere in JavaScript; state and parameters are
 * rounded to float32 when they are stored.
 *
 * Symbols: θ parameters, g gradient, ε the learning rate of this step, λ the rate of weight decay, l1 that of L1,
 * δ the small `epsilon` of the configuration, as in Deep Learning ch. 8.
 */

export interface RuleOptions {
  /** The number of this update, from 1: bias corrections use it. */
  readonly step: number;
  /** ε, after schedule and damping. */
  readonly learningRate: number;
  /** From the momentum schedule; overrides the configured one. */
  readonly momentum?: number;
  /** Absent: the common one. */
  readonly velocity?: VelocityUse;
}

/**
 * Which velocity an update goes by, where workers have velocities of their own: look-ahead, DANA (Hakimi et al.
 * 2019, arXiv:1907.11612). There θ ← θ + vᵢ, and workers are sent θ + α Σ vⱼ, where the next update of each worker
 * will have taken the parameters. Kept are, as with `nesterov`, the parameters that are sent, φ = θ + α Σ vⱼ. They
 * follow vᵢ ← α vᵢ − ε g, φ ← φ + α vᵢ − ε g: the sum need not be known (DANA-Slim), and one worker's update is
 * that of `nesterov`. Of Adam, vᵢ is the first moment, and the same gives φ ← φ − ε (β₁ m̂ᵢ + (1 − β₁) ĝ) / (√v̂ + δ),
 * Nadam's step (Dozat 2016), with the second moment and the corrections of the start at 0 in common.
 */
export interface VelocityUse {
  /** 0: the common one, and the optimizer's plain rule. From 1: one of some workers, with look-ahead. */
  readonly slot: number;
  /** Before the update it becomes a copy of this slot's, or zeros: -1. Absent: it is as it was left. */
  readonly from?: number;
  /** Nobody needs these any more. */
  readonly freed?: number[];
}

/** Symbol of the state that `VelocityUse` is about; null: the optimizer has no momentum. */
export function velocitySymbol(kind: OptimizerConfig['kind']): 'v' | 'm' | null {
  if (kind === 'adam' || kind === 'adamw') return 'm';
  return kind === 'momentum' || kind === 'nesterov' || kind === 'rmsprop' ? 'v' : null;
}

/** Whether it keeps squares of gradients, which overflow in float32 long before the gradients do. */
export const keepsSquares = (kind: OptimizerConfig['kind']): boolean =>
  kind !== 'sgd' && kind !== 'momentum' && kind !== 'nesterov';

export interface Optimizer {
  /**
   * Applies one gradient in place.
   * @param parameters shape [n]. @param gradient shape [n]; may be overwritten.
   */
  apply(parameters: Float32Array, gradient: Float32Array, options: RuleOptions): void;
  /** Live state by symbol, each of shape [n]: exactly what a checkpoint must keep. */
  readonly slots: Readonly<Record<string, Float32Array>>;
  /** Velocities of workers, by slot from 1; shape [n] each. */
  readonly velocities: ReadonlyMap<number, Float32Array>;
  /** Forgets all state, as for fresh parameters. */
  reset(): void;
}

/** Parameters [start, end) decay at the rate λ ≥ 0, and by their sign at the rate `l1`. */
export interface DecayRange {
  readonly start: number;
  readonly end: number;
  readonly rate: number;
  readonly l1?: number;
}

/**
 * Where weight decay acts, and how strongly: the first matching rule, else the common rate on
 * tensors of rank 2 or more. Biases are left alone (Deep Learning §7.1). Ranges without decay are
 * left out; a rule of rate 0 exempts a tensor.
 */
export function decayRanges(
  config: RunConfig['weightDecay'],
  tensors: readonly {
    readonly name: string;
    readonly role: string;
    readonly shape: readonly number[];
    readonly offset: number;
    readonly size: number;
  }[],
): DecayRange[] {
  const ranges: DecayRange[] = [];
  for (const { name, role, shape, offset, size } of tensors) {
    if (role !== 'trainable') continue;
    const rule = config.rules.find(({ pattern }) => matchesPattern(name, pattern));
    const { rate, l1 = 0 } = rule ?? (shape.length >= 2 ? config : NO_DECAY);
    if (rate === 0 && l1 === 0) continue;
    ranges.push({ start: offset, end: offset + size, rate, ...(l1 > 0 ? { l1 } : {}) });
  }
  return ranges;
}

const NO_DECAY = { rate: 0, l1: 0 } as const;

/**
 * @param n trainable parameters. @param decay rising, disjoint ranges. L2 weight decay is added to
 *   the gradient, g + λ θ, before all else; with `adamw` it is decoupled: θ ← θ − ε λ θ beside the
 *   update (Loshchilov and Hutter 2019, arXiv:1711.05101). Either way ε is the learning rate of the
 *   step, so decay follows the schedule and the damping of stale gradients. L1 adds l1 · sign(θ) to
 *   the gradient (Deep Learning §7.1.2), with `adamw` too: weights that do not pay come
 *   close to 0, and stay there within the size of a step.
 */
export function createOptimizer(
  config: OptimizerConfig,
  n: number,
  decay: readonly DecayRange[] = [],
): Optimizer {
  const rule = createRule(config, n);
  const spans = spansOf(n, decay);
  const { slots, initial = 0 } = rule;
  const velocities = new Map<number, Float32Array>();
  const symbol = velocitySymbol(config.kind);
  const reset = () => {
    for (const slot of Object.values(slots)) slot.fill(initial);
    velocities.clear();
  };
  reset();
  /** The velocity that an update goes by; null: the common one. */
  const velocityOf = (use: VelocityUse | undefined): Float32Array | null => {
    if (!use || symbol === null) return null;
    const of = (slot: number) => (slot === 0 ? slots[symbol] : velocities.get(slot));
    const from = use.from === undefined ? null : (of(use.from) ?? new Float32Array(n));
    for (const freed of use.freed ?? []) velocities.delete(freed);
    const own = of(use.slot) ?? new Float32Array(n);
    if (use.slot > 0) velocities.set(use.slot, own);
    if (from) own.set(from);
    return use.slot > 0 ? own : null;
  };
  return {
    slots,
    velocities,
    apply(parameters, gradient, options) {
      const own = velocityOf(options.velocity);
      for (const span of spans) rule.update(parameters, gradient, span, options, own);
    },
    reset,
  };
}

/** All of [0, n), where nothing decays at rate 0, so that a rule needs one loop for both. */
export function spansOf(n: number, decay: readonly DecayRange[]): DecayRange[] {
  const spans: DecayRange[] = [];
  let covered = 0;
  for (const range of decay) {
    if (range.start > covered) spans.push({ start: covered, end: range.start, rate: 0 });
    spans.push(range);
    covered = range.end;
  }
  if (covered < n) spans.push({ start: covered, end: n, rate: 0 });
  return spans;
}

interface OptimizerRule {
  readonly slots: Readonly<Record<string, Float32Array>>;
  /** What all slots begin with; 0 unless given. */
  readonly initial?: number;
  /** Updates one span of the parameters. @param own velocity of a worker: with look-ahead. */
  update(
    theta: Float32Array,
    g: Float32Array,
    span: DecayRange,
    options: RuleOptions,
    own: Float32Array | null,
  ): void;
}

function createRule(config: OptimizerConfig, n: number): OptimizerRule {
  switch (config.kind) {
    case 'sgd':
      return sgd();
    case 'momentum':
      return momentum(config.momentum, n);
    case 'nesterov':
      return nesterov(config.momentum, n);
    case 'adagrad':
      return adagrad(config, n);
    case 'rmsprop':
      return rmsprop(config, n);
    case 'adadelta':
      return adadelta(config, n);
    case 'adam':
      return adam(config, n, false);
    case 'adamw':
      return adam(config, n, true);
  }
}

/** θ ← θ − ε g. Deep Learning, Algorithm 8.1. */
function sgd(): OptimizerRule {
  return {
    slots: {},
    update(theta, g, { start, end, rate, l1 = 0 }, { learningRate }) {
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        theta[i] = t - learningRate * (g[i]! + rate * t + l1 * Math.sign(t));
      }
    },
  };
}

/**
 * v ← α v − ε g, θ ← θ + v. Deep Learning, Algorithm 8.2, eq. 8.15 and 8.16: ε is inside the velocity, so
 * a change of ε acts on new gradients only. (tfjs keeps it outside: the same while ε is constant.)
 */
function momentum(alphaDefault: number, n: number): OptimizerRule {
  const v = new Float32Array(n);
  const ahead = nesterov(alphaDefault, n);
  return {
    slots: { v },
    update(theta, g, span, options, own) {
      if (own) {
        ahead.update(theta, g, span, options, own);
        return;
      }
      const { start, end, rate, l1 = 0 } = span;
      const { learningRate, momentum: alpha = alphaDefault } = options;
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        const velocity = alpha * v[i]! - learningRate * (g[i]! + rate * t + l1 * Math.sign(t));
        v[i] = velocity;
        theta[i] = t + velocity;
      }
    },
  };
}

/**
 * Algorithm 8.3 (eq. 8.21 and 8.22) takes the gradient at θ + α v. Workers send it at the parameters
 * they were given, so here those *are* the looked-ahead point φ = θ + α v, and the same method reads
 * v ← α v − ε g, φ ← φ + α v − ε g (Bengio et al. 2012, arXiv:1212.0901; Sutskever et al. 2013).
 */
function nesterov(alphaDefault: number, n: number): OptimizerRule {
  const common = new Float32Array(n);
  return {
    slots: { v: common },
    update(
      theta,
      g,
      { start, end, rate, l1 = 0 },
      { learningRate, momentum: alpha = alphaDefault },
      own,
    ) {
      const v = own ?? common;
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        const step = learningRate * (g[i]! + rate * t + l1 * Math.sign(t));
        const velocity = alpha * v[i]! - step;
        v[i] = velocity;
        theta[i] = t + alpha * velocity - step;
      }
    },
  };
}

/**
 * r ← r + g², θ ← θ − ε g / (δ + √r). Deep Learning, Algorithm 8.4; the rule of Downpour SGD (Dean et
 * al. 2012, §4.1).
 */
function adagrad(
  config: { readonly initialAccumulator: number; readonly epsilon: number },
  n: number,
): OptimizerRule {
  const { initialAccumulator: initial, epsilon: delta } = config;
  const r = new Float32Array(n);
  return {
    slots: { r },
    initial,
    update(theta, g, { start, end, rate, l1 = 0 }, { learningRate }) {
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        const gi = g[i]! + rate * t + l1 * Math.sign(t);
        const ri = r[i]! + gi * gi;
        r[i] = ri;
        theta[i] = t - (learningRate * gi) / (delta + Math.sqrt(ri));
      }
    },
  };
}

/**
 * r ← ρ r + (1 − ρ) g², v ← α v − ε g / √(δ + r), θ ← θ + v. Deep Learning, Algorithm 8.5 and, with
 * momentum, 8.6 (whose Nesterov look-ahead is left to `nesterov`). v is kept even where α is 0: a
 * momentum schedule may raise it.
 */
function rmsprop(
  config: { readonly decay: number; readonly momentum: number; readonly epsilon: number },
  n: number,
): OptimizerRule {
  const { decay: rho, momentum: alphaDefault, epsilon: delta } = config;
  const r = new Float32Array(n);
  const common = new Float32Array(n);
  return {
    slots: { r, v: common },
    update(
      theta,
      g,
      { start, end, rate, l1 = 0 },
      { learningRate, momentum: alpha = alphaDefault },
      own,
    ) {
      const v = own ?? common;
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        const gi = g[i]! + rate * t + l1 * Math.sign(t);
        const ri = rho * r[i]! + (1 - rho) * gi * gi;
        const step = (learningRate * gi) / Math.sqrt(delta + ri);
        const velocity = alpha * v[i]! - step;
        r[i] = ri;
        v[i] = velocity;
        theta[i] = own ? t + alpha * velocity - step : t + velocity;
      }
    },
  };
}

/**
 * r ← ρ r + (1 − ρ) g², Δ = √(u + δ) / √(r + δ) · g, u ← ρ u + (1 − ρ) Δ², θ ← θ − ε Δ. Zeiler 2012,
 * arXiv:1212.5701, where ε = 1.
 */
function adadelta(
  config: { readonly decay: number; readonly epsilon: number },
  n: number,
): OptimizerRule {
  const { decay: rho, epsilon: delta } = config;
  const r = new Float32Array(n);
  const u = new Float32Array(n);
  return {
    slots: { r, u },
    update(theta, g, { start, end, rate, l1 = 0 }, { learningRate }) {
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        const gi = g[i]! + rate * t + l1 * Math.sign(t);
        const ri = rho * r[i]! + (1 - rho) * gi * gi;
        const change = Math.sqrt((u[i]! + delta) / (ri + delta)) * gi;
        r[i] = ri;
        u[i] = rho * u[i]! + (1 - rho) * change * change;
        theta[i] = t - learningRate * change;
      }
    },
  };
}

/**
 * m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², both corrected for their start at 0, θ ← θ − ε m̂ / (√v̂
 * + δ). Deep Learning, Algorithm 8.7; Kingma and Ba 2015, arXiv:1412.6980. `decoupled`: AdamW.
 */
function adam(
  config: { readonly beta1: number; readonly beta2: number; readonly epsilon: number },
  n: number,
  decoupled: boolean,
): OptimizerRule {
  const { beta1, beta2, epsilon: delta } = config;
  const common = new Float32Array(n);
  const v = new Float32Array(n);
  return {
    slots: { m: common, v },
    update(theta, g, { start, end, rate, l1 = 0 }, { learningRate, step }, own) {
      const m = own ?? common;
      const scale = learningRate / (1 - beta1 ** step);
      const correction = 1 / (1 - beta2 ** step);
      const lambda = decoupled ? 0 : rate;
      const keep = decoupled ? 1 - learningRate * rate : 1;
      for (let i = start; i < end; i++) {
        const t = theta[i]!;
        const gi = g[i]! + lambda * t + l1 * Math.sign(t);
        const mi = beta1 * m[i]! + (1 - beta1) * gi;
        const vi = beta2 * v[i]! + (1 - beta2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        const ahead = own ? beta1 * mi + (1 - beta1) * gi : mi;
        theta[i] = keep * t - (scale * ahead) / (Math.sqrt(vi * correction) + delta);
      }
    },
  };
}

/**
 * The L2 norm; NaN or infinity as soon as one element is (the float64 sum of squares of finite
 * float32 numbers does not overflow below 10²³¹ elements).
 */
export function normAndFinite(values: Float32Array): number {
  let sumOfSquares = 0;
  for (let i = 0; i < values.length; i++) sumOfSquares += values[i]! * values[i]!;
  return Math.sqrt(sumOfSquares);
}

/**
 * Scales a gradient so that its L2 norm is at most `normMax`; its direction is kept.
 * Deep Learning §10.11.1; Pascanu et al. 2013, arXiv:1211.5063.
 * @param norm of the gradient as it is. @returns the norm that it has then.
 */
export function clipByNorm(gradient: Float32Array, normMax: number, norm: number): number {
  if (norm <= normMax) return norm;
  const factor = normMax / norm;
  for (let i = 0; i < gradient.length; i++) gradient[i] = gradient[i]! * factor;
  return normMax;
}

/** Cuts each element to [−valueMax, valueMax] (Mikolov 2012; Deep Learning §10.11.1). */
export function clipByValue(gradient: Float32Array, valueMax: number): void {
  for (let i = 0; i < gradient.length; i++) {
    const value = gradient[i]!;
    if (value > valueMax) gradient[i] = valueMax;
    else if (value < -valueMax) gradient[i] = -valueMax;
  }
}
