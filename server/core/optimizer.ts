import type { OptimizerConfig, RunConfig } from '../../shared/config.ts';

/**
 * The update rules. Arithmetic is in float64 as everywhere in JavaScript, state and parameters are
 * stored as float32. One pass over memory a step, nothing allocated.
 *
 * Symbols: θ parameters, g gradient, ε the learning rate of this step, as in Deep Learning ch. 8.
 */

export interface StepOptions {
  /** The number of this update, from 1: bias corrections use it. */
  readonly step: number;
  /** ε, after schedule and damping. */
  readonly learningRate: number;
  /** From the momentum schedule; overrides the configured one. */
  readonly momentum?: number;
}

export interface Optimizer {
  /**
   * Applies one gradient in place.
   * @param parameters shape [n]. @param gradient shape [n]; may be overwritten.
   */
  apply(parameters: Float32Array, gradient: Float32Array, options: StepOptions): void;
  /** Live state by symbol, each of shape [n]: exactly what a checkpoint must keep. */
  readonly slots: Readonly<Record<string, Float32Array>>;
  /** Forgets all state, as for fresh parameters. */
  reset(): void;
}

/** Parameters [start, end) decay at this rate. */
export interface DecayRange {
  readonly start: number;
  readonly end: number;
  readonly rate: number;
}

/**
 * Where weight decay acts, and how strongly: the first matching rule, else the common rate on
 * tensors of rank 2 or more. Biases are left alone (Deep Learning §7.1). Ranges without decay are
 * left out.
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
  const rules = config.rules.map(({ pattern, rate }) => ({ matches: globOf(pattern), rate }));
  const ranges: DecayRange[] = [];
  for (const { name, role, shape, offset, size } of tensors) {
    if (role !== 'trainable') continue;
    const rule = rules.find(({ matches }) => matches.test(name));
    const rate = rule ? rule.rate : shape.length >= 2 ? config.rate : 0;
    if (rate > 0) ranges.push({ start: offset, end: offset + size, rate });
  }
  return ranges;
}

/** `*` matches any text. */
function globOf(pattern: string): RegExp {
  const escaped = pattern.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*');
  return new RegExp(`^${escaped}$`);
}

/**
 * @param n trainable parameters. @param decay L2 weight decay, added to the gradient; with `adamw`
 *   decoupled from it (Loshchilov and Hutter 2019, arXiv:1711.05101).
 */
export function createOptimizer(
  config: OptimizerConfig,
  n: number,
  decay: readonly DecayRange[] = [],
): Optimizer {
  const rule = createRule(config, n);
  const decoupled = config.kind === 'adamw';
  return {
    slots: rule.slots,
    apply(parameters, gradient, options) {
      if (decoupled) shrink(parameters, decay, options.learningRate);
      else addDecay(gradient, parameters, decay);
      rule.apply(parameters, gradient, options);
    },
    reset: rule.reset,
  };
}

/** g ← g + rate · θ */
function addDecay(
  gradient: Float32Array,
  parameters: Float32Array,
  ranges: readonly DecayRange[],
): void {
  for (const { start, end, rate } of ranges) {
    for (let i = start; i < end; i++) gradient[i] = gradient[i]! + rate * parameters[i]!;
  }
}

/** θ ← θ − ε · rate · θ */
function shrink(parameters: Float32Array, ranges: readonly DecayRange[], epsilon: number): void {
  for (const { start, end, rate } of ranges) {
    const keep = 1 - epsilon * rate;
    for (let i = start; i < end; i++) parameters[i] = keep * parameters[i]!;
  }
}

function createRule(config: OptimizerConfig, n: number): Optimizer {
  switch (config.kind) {
    case 'sgd':
      return sgd();
    case 'momentum':
      return momentum(config.momentum, n, false);
    case 'nesterov':
      return momentum(config.momentum, n, true);
    case 'adagrad':
      return adagrad(config, n);
    case 'rmsprop':
      return rmsprop(config, n);
    case 'adadelta':
      return adadelta(config, n);
    case 'adam':
    case 'adamw':
      return adam(config, n);
  }
}

/** θ ← θ − ε g. Deep Learning, Algorithm 8.1. */
function sgd(): Optimizer {
  return {
    slots: {},
    apply(theta, g, { learningRate }) {
      for (let i = 0; i < theta.length; i++) theta[i] = theta[i]! - learningRate * g[i]!;
    },
    reset() {},
  };
}

/**
 * v ← α v − ε g, θ ← θ + v. Deep Learning, Algorithm 8.2. Nesterov (Algorithm 8.3) evaluates the
 * gradient at θ + α v; workers send it at θ, so the same method is written for the looked-ahead
 * point itself: θ ← θ + α v − ε g after v is updated (Sutskever et al. 2013; Bengio et al. 2012,
 * arXiv:1212.0901).
 */
function momentum(alphaDefault: number, n: number, nesterov: boolean): Optimizer {
  const v = new Float32Array(n);
  return {
    slots: { v },
    apply(theta, g, { learningRate, momentum: alpha = alphaDefault }) {
      for (let i = 0; i < n; i++) {
        const step = learningRate * g[i]!;
        const velocity = alpha * v[i]! - step;
        v[i] = velocity;
        theta[i] = theta[i]! + (nesterov ? alpha * velocity - step : velocity);
      }
    },
    reset: () => void v.fill(0),
  };
}

/**
 * r ← r + g², θ ← θ − ε g / (δ + √r). Deep Learning, Algorithm 8.4; the rule of Downpour SGD (Dean et
 * al. 2012, §4.1).
 */
function adagrad(
  config: { readonly initialAccumulator: number; readonly epsilon: number },
  n: number,
): Optimizer {
  const r = new Float32Array(n).fill(config.initialAccumulator);
  return {
    slots: { r },
    apply(theta, g, { learningRate }) {
      for (let i = 0; i < n; i++) {
        const gi = g[i]!;
        const ri = r[i]! + gi * gi;
        r[i] = ri;
        theta[i] = theta[i]! - (learningRate * gi) / (config.epsilon + Math.sqrt(ri));
      }
    },
    reset: () => void r.fill(config.initialAccumulator),
  };
}

/**
 * r ← ρ r + (1 − ρ) g², v ← α v − ε g / √(δ + r), θ ← θ + v. Deep Learning, Algorithms 8.5 and, with
 * momentum, 8.6 (whose Nesterov look-ahead is left to `nesterov`).
 */
function rmsprop(
  config: { readonly decay: number; readonly momentum: number; readonly epsilon: number },
  n: number,
): Optimizer {
  const { decay: rho, epsilon: delta } = config;
  const r = new Float32Array(n);
  const v = new Float32Array(n);
  return {
    slots: { r, v },
    apply(theta, g, { learningRate, momentum: alpha = config.momentum }) {
      for (let i = 0; i < n; i++) {
        const gi = g[i]!;
        const ri = rho * r[i]! + (1 - rho) * gi * gi;
        const velocity = alpha * v[i]! - (learningRate * gi) / Math.sqrt(delta + ri);
        r[i] = ri;
        v[i] = velocity;
        theta[i] = theta[i]! + velocity;
      }
    },
    reset() {
      r.fill(0);
      v.fill(0);
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
): Optimizer {
  const { decay: rho, epsilon: delta } = config;
  const r = new Float32Array(n);
  const u = new Float32Array(n);
  return {
    slots: { r, u },
    apply(theta, g, { learningRate }) {
      for (let i = 0; i < n; i++) {
        const gi = g[i]!;
        const ri = rho * r[i]! + (1 - rho) * gi * gi;
        const change = (Math.sqrt(u[i]! + delta) / Math.sqrt(ri + delta)) * gi;
        r[i] = ri;
        u[i] = rho * u[i]! + (1 - rho) * change * change;
        theta[i] = theta[i]! - learningRate * change;
      }
    },
    reset() {
      r.fill(0);
      u.fill(0);
    },
  };
}

/**
 * m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², both corrected for their start at 0, θ ← θ − ε m̂ / (√v̂
 * + δ). Deep Learning, Algorithm 8.7; Kingma and Ba 2015, arXiv:1412.6980.
 */
function adam(
  config: { readonly beta1: number; readonly beta2: number; readonly epsilon: number },
  n: number,
): Optimizer {
  const { beta1, beta2, epsilon: delta } = config;
  const m = new Float32Array(n);
  const v = new Float32Array(n);
  return {
    slots: { m, v },
    apply(theta, g, { learningRate, step }) {
      const scale = learningRate / (1 - beta1 ** step);
      const correction = 1 / (1 - beta2 ** step);
      for (let i = 0; i < n; i++) {
        const gi = g[i]!;
        const mi = beta1 * m[i]! + (1 - beta1) * gi;
        const vi = beta2 * v[i]! + (1 - beta2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        theta[i] = theta[i]! - (scale * mi) / (Math.sqrt(vi * correction) + delta);
      }
    },
    reset() {
      m.fill(0);
      v.fill(0);
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
