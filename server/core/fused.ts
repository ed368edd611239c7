import { type Memory, regionBytes } from '../../shared/memory.ts';
import {
  type DecayRange,
  spansOf,
  type VelocityUse,
  velocitySymbol,
} from '../../shared/optimizer.ts';
import type { OptimizerConfig } from '../../shared/optimizer-config.ts';
import type { Decoding, Kernels, UpdateRule } from './kernels.ts';
import type { StepOptions } from './step-options.ts';

/**
 * The optimizers of shared/optimizer.ts in one pass over memory: the gradient is decoded, clipped, applied and
 * the result checked on the way. Arithmetic is in float32, four at a time; tests compare with the
 * float64 twins.
 */

/** A gradient in the run's memory. */
export interface Staged {
  readonly decoding: Decoding;
  readonly address: number;
  /** Address of the scales of `int8`. */
  readonly scales: number;
}

/** Whether squares added up in f32 are right: none vanished, none overflowed, all were finite. */
const holds = (squares: number) => squares >= 1e-30 && squares < Number.MAX_VALUE;

/**
 * Σ x² of a gradient of n elements, each cut to ±limit before; NaN as soon as one is not finite.
 * @param sum of the squares as they were added up in f32 already, where there is no limit.
 */
export function sumOfSquares(
  kernels: Kernels,
  { decoding, address, scales }: Staged,
  n: number,
  limit: number,
  sum = limit === Infinity ? kernels[`squares_${decoding}`](address, scales, 0, n, 0) : Number.NaN,
): number {
  return holds(sum) ? sum : kernels[`exactSquares_${decoding}`](address, scales, n, limit);
}

export interface Clip {
  /** Each element is cut to ±limit first; infinite: not. */
  readonly limit: number;
  /** Then multiplied. */
  readonly factor: number;
}

/** Elements [start, end) of the parameters, read at the address `from` and written at `to`, maybe the same. */
export interface Where {
  readonly from: number;
  readonly to: number;
  /** A multiple of 16. */
  readonly start: number;
  readonly end: number;
}

export interface FusedOptimizer {
  /** Live state by symbol, each of shape [n]: exactly what a checkpoint must keep. */
  readonly slots: Readonly<Record<string, Float32Array>>;
  /** Velocities of workers, by slot from 1; shape [n] each: a checkpoint must keep them too. */
  readonly velocities: ReadonlyMap<number, Float32Array>;
  /** That of a slot, to be restored; it is one of the `velocities` then. */
  velocity(slot: number): Float32Array;
  /**
   * Updates the parameters.
   * @param where all of them in place unless given. @returns whether all of them are finite then.
   */
  apply(gradient: Staged, clip: Clip, options: StepOptions, where?: Where): boolean;
  /** Forgets all state, as for fresh parameters. */
  reset(): void;
}

/** One update rule, of all parameters or of some ranges of them. */
export interface FusedRule extends FusedOptimizer {
  /** For an update that leaves these parameters alone: the velocity that it would have used is made ready all the same. */
  skip(velocity: VelocityUse, where: Where): void;
}

/** Symbols of the state of each optimizer, in the order in which its kernel takes them. */
const SLOTS: Readonly<Record<OptimizerConfig['kind'], readonly string[]>> = {
  sgd: [],
  momentum: ['v'],
  nesterov: ['v'],
  adagrad: ['r'],
  rmsprop: ['r', 'v'],
  adadelta: ['r', 'u'],
  adam: ['m', 'v'],
  adamw: ['m', 'v'],
};

/** Symbols of the `slots` of an optimizer. */
export const optimizerSymbols = ({ kind }: OptimizerConfig): readonly string[] => SLOTS[kind];

/** What `createFusedOptimizer` takes of the memory. @param velocities of workers. */
export function optimizerBytes({ kind }: OptimizerConfig, n: number, velocities = 0): number {
  return (SLOTS[kind].length + velocities) * regionBytes(4 * n);
}

/** What the rules of several groups of parameters have in common. */
export interface SharedState {
  /** Addresses of the state of each symbol, shape [n]. */
  readonly addressOf: (symbol: string) => number;
  /** Addresses of the velocities of workers, from slot 1. */
  readonly velocities: readonly number[];
  /** Those in use. */
  readonly used: Map<number, Float32Array>;
}

/** One of several rules, each for other ranges of the parameters. */
export interface RulePart {
  /** Ranges of this rule, rising and disjoint, also those that do not decay. */
  readonly spans: readonly DecayRange[];
  readonly state: SharedState;
}

/**
 * @param theta address of the parameters, shape [n]. @param decay as of `createOptimizer`.
 * @param velocities of workers: slots from 1 to so many may be used.
 * @param part absent: the rule is that of all parameters.
 */
export function createFusedOptimizer(
  config: OptimizerConfig,
  n: number,
  decay: readonly DecayRange[],
  { memory, kernels, theta }: { memory: Memory; kernels: Kernels; theta: number },
  velocities = 0,
  part: RulePart | null = null,
): FusedRule {
  const addresses = SLOTS[config.kind].map(
    (symbol) => part?.state.addressOf(symbol) ?? memory.take(4 * n),
  );
  const spans = part?.spans ?? spansOf(n, decay);
  const own = createVelocities(config.kind, addresses, n, memory, velocities, part);
  const slots = Object.fromEntries(
    SLOTS[config.kind].map((symbol, i) => [symbol, memory.floats(addresses[i]!, n)]),
  );
  const plainRule: UpdateRule = config.kind === 'adamw' ? 'adam' : config.kind;
  /** The others divide by what they make of the gradient. */
  const folds = ['sgd', 'momentum', 'nesterov', 'adam'].includes(plainRule);
  const initial = config.kind === 'adagrad' ? config.initialAccumulator : 0;
  const reset = () => {
    for (const slot of Object.values(slots)) {
      for (const { start, end } of spans) slot.fill(initial, start, end);
    }
    own.used.clear();
  };
  reset();
  const whole: Where = { from: theta, to: theta, start: 0, end: n };
  return {
    slots,
    velocities: own.used,
    velocity: own.restored,
    skip: own.begin,
    apply({ decoding, address, scales }, { limit, factor }, options, where = whole) {
      const { p, q, delta, rate } = coefficients(config, options);
      const { velocity } = options;
      if (velocity) own.begin(velocity, where);
      const [slot1 = 0, slot2 = 0] = own.addresses(velocity);
      const ahead = velocity && velocity.slot > 0 ? AHEAD[plainRule] : undefined;
      const rule = ahead ?? plainRule;
      let spoilt = 0;
      for (const { start: first, end: last, rate: decayRate, l1 = 0 } of spans) {
        const start = Math.max(first, where.start);
        const end = Math.min(last, where.end);
        if (start >= end) continue;
        const lambda = config.kind === 'adamw' ? 0 : decayRate;
        const keep = config.kind === 'adamw' ? 1 - options.learningRate * decayRate : 1;
        const plain = limit === Infinity && decayRate === 0 && l1 === 0 && (factor === 1 || folds);
        const update = kernels[`${rule}_${decoding}${plain ? '_plain' : ''}`];
        // biome-ignore format: as the kernel takes them
        spoilt |= update(where.from, where.to, slot1, slot2, address, scales, start, end, limit, factor,
          lambda, l1, rate, p, 1 - p, q, 1 - q, delta, keep);
      }
      return spoilt === 0;
    },
    reset,
  };
}

/** Rules with momentum, and the same rules with look-ahead. */
const AHEAD: Partial<Record<UpdateRule, UpdateRule>> = {
  momentum: 'nesterov',
  nesterov: 'nesterov',
  rmsprop: 'rmspropAhead',
  adam: 'adamAhead',
};

/** Velocities of workers, beside the common one. @param common addresses of the optimizer's state. */
function createVelocities(
  kind: OptimizerConfig['kind'],
  common: readonly number[],
  n: number,
  memory: Memory,
  count: number,
  part: RulePart | null,
) {
  const index = SLOTS[kind].indexOf(velocitySymbol(kind) ?? '');
  const addresses =
    part?.state.velocities ??
    Array.from({ length: index < 0 ? 0 : count }, () => memory.take(4 * n));
  const states = [
    common,
    ...addresses.map((address) => common.map((of, i) => (i === index ? address : of))),
  ];
  const views = new Map<number, Float32Array>();
  const used = part?.state.used ?? new Map<number, Float32Array>();
  const copied = part?.spans ?? [{ start: 0, end: n }];
  const view = (slot: number): Float32Array => {
    const address = states[slot]?.[index];
    if (address === undefined) throw new Error(`there is no room for velocity ${slot}`);
    let values = views.get(slot);
    if (!values) {
      values = memory.floats(address, n);
      views.set(slot, values);
    }
    return values;
  };
  return {
    used,
    /** Addresses of the optimizer's state with the velocity in use. */
    addresses: (use: VelocityUse | undefined): readonly number[] => states[use?.slot ?? 0]!,
    begin({ slot, from, freed }: VelocityUse, { start, end }: Where): void {
      if (freed && start === 0) for (const other of freed) used.delete(other);
      // One of several rules may have no momentum.
      if (index < 0) return;
      if (slot > 0 && !used.has(slot)) used.set(slot, view(slot));
      if (from === undefined) return;
      for (const span of copied) {
        const first = Math.max(start, span.start);
        const last = Math.min(end, span.end);
        if (first >= last) continue;
        if (from < 0) view(slot).fill(0, first, last);
        else view(slot).set(view(from).subarray(first, last), first);
      }
    },
    restored(slot: number): Float32Array {
      used.set(slot, view(slot));
      return view(slot);
    },
  };
}

/** In float64, before the kernel rounds them. */
function coefficients(config: OptimizerConfig, options: StepOptions) {
  const { learningRate, step, momentum } = options;
  const result = { p: 0, q: 0, delta: 0, rate: learningRate };
  if (config.kind === 'sgd') return result;
  if (config.kind === 'momentum' || config.kind === 'nesterov') {
    return { ...result, p: momentum ?? config.momentum };
  }
  const { epsilon: delta } = config;
  if (config.kind === 'adagrad') return { ...result, delta };
  if (config.kind === 'rmsprop') {
    return { ...result, delta, p: momentum ?? config.momentum, q: config.decay };
  }
  if (config.kind === 'adadelta') return { ...result, delta, q: config.decay };
  const { beta1: p, beta2: q } = config;
  // ε m̂ / (√v̂ + δ) with both corrections taken out of the loop.
  const correction = Math.sqrt(1 - q ** step);
  return {
    p,
    q,
    delta: delta * correction,
    rate: (learningRate * correction) / (1 - p ** step),
  };
}
