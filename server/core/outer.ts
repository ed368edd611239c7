import type { RunConfig } from '../../shared/config.ts';
import { localOf, outerOf, type PushKind } from '../../shared/local-steps.ts';
import { type Memory, regionBytes } from '../../shared/memory.ts';
import type { OptimizerConfig } from '../../shared/optimizer-config.ts';
import {
  createFusedOptimizer,
  type FusedOptimizer,
  optimizerBytes,
  optimizerSymbols,
} from './fused.ts';
import type { Kernels } from './kernels.ts';

/**
 * What the server makes of the results of local steps. A delta Δ = θ_read − θ_worker is used as a gradient is: with the
 * rate γ and Nesterov momentum the update m ← β m + Δ, θ ← θ − γ (β m + Δ) of DiLoCo (Douillard et al. 2023,
 * arXiv:2311.08105) is that of `nesterov` with v = −γ m; with γ = 1 and no momentum θ becomes the mean of the workers'
 * parameters. An elastic push x becomes θ − x, so that θ ← θ + α (x − θ) is plain SGD with the rate α.
 */

type Config = Pick<RunConfig, 'optimizer' | 'local' | 'outer' | 'consistency'>;

/** The rule for pushes of gradients. With local steps from the start there are none, and nothing is kept for them. */
export function gradientRule(config: Config): OptimizerConfig {
  return localOf(config)?.after === 0 ? { kind: 'sgd' } : config.optimizer;
}

/** The rule for the results of local steps; null: there are none. */
function outerRule(config: Config): OptimizerConfig | null {
  const local = localOf(config);
  if (!local) return null;
  const { momentum, nesterov } = outerOf(config);
  if (local.push === 'elastic' || momentum === 0) return { kind: 'sgd' };
  return { kind: nesterov ? 'nesterov' : 'momentum', momentum };
}

/** How a push of this kind is clipped. With local steps workers have clipped their gradients. */
export const clipOf = ({ clip }: Pick<RunConfig, 'clip'>, kind: PushKind): RunConfig['clip'] =>
  kind === 'gradient' ? clip : UNCLIPPED;
const UNCLIPPED: RunConfig['clip'] = { norm: null, value: null };

const isDelayed = (config: Config) => localOf(config) !== null && outerOf(config).delayed !== null;

/** Symbols of the state that a checkpoint must keep. */
export function outerSymbols(config: Config): readonly string[] {
  if (isDelayed(config)) return DELAYED_SYMBOLS;
  const rule = outerRule(config);
  return rule ? optimizerSymbols(rule) : [];
}

/** What `createOuter` takes of the memory. @param n trainable parameters. */
export function outerBytes(config: Config, n: number): number {
  if (isDelayed(config)) return DELAYED_SYMBOLS.length * regionBytes(4 * n);
  const rule = outerRule(config);
  return rule ? optimizerBytes(rule, n) : 0;
}

interface OuterMemory {
  readonly memory: Memory;
  readonly kernels: Kernels;
  readonly theta: number;
}

/** @returns null: the run takes no local steps. */
export function createOuter(config: Config, n: number, room: OuterMemory): FusedOptimizer | null {
  const rule = outerRule(config);
  if (!rule) return null;
  const { momentum, delayed } = outerOf(config);
  if (isDelayed(config)) return createDelayed(momentum, delayed!, n, room);
  // Weights decay in the local steps.
  return createFusedOptimizer(rule, n, [], room);
}

const DELAYED_SYMBOLS = ['m', 'sum'] as const;

/**
 * Delayed Nesterov (Liu et al. 2024, arXiv:2401.09135, Algorithm 3 with c = 0): each push θ ← θ − γ Δ / N; at every N-th
 * m ← β m + Σ Δ / N, θ ← θ − γ β m, with the sum over the pushes since the last time. So a momentum that is as large as in
 * the synchronous method is applied as often as there.
 */
function createDelayed(beta: number, every: number, n: number, room: OuterMemory): FusedOptimizer {
  const { memory, kernels, theta } = room;
  const plain = createFusedOptimizer({ kind: 'sgd' }, n, [], room);
  const momentum = memory.take(4 * n);
  const sum = memory.take(4 * n);
  const slots = { m: memory.floats(momentum, n), sum: memory.floats(sum, n) };
  const share = 1 / every;
  return {
    slots,
    velocities: plain.velocities,
    velocity: plain.velocity,
    apply(gradient, clip, options, where = { from: theta, to: theta, start: 0, end: n }) {
      const { start, end, to } = where;
      const { decoding, address, scales } = gradient;
      const { learningRate, step } = options;
      // First: the gradient may lie where the parameters will be.
      const add = kernels[`sgd_${decoding}`];
      // biome-ignore format: as the kernel takes them
      add(sum, sum, 0, 0, address, scales, start, end, clip.limit, clip.factor, 0, 0, -share, 0, 1, 0, 1, 0, 1);
      const scaled = { ...options, learningRate: learningRate * share };
      let finite = plain.apply(gradient, clip, scaled, where);
      if (step % every !== 0 || start >= end) return finite;
      const at = 4 * start;
      kernels.ema(momentum + at, sum + at, end - start, beta, 1);
      slots.sum.fill(0, start, end);
      const slow = { decoding: 'f32', address: momentum, scales: 0 } as const;
      const behind = { from: to, to, start, end };
      const rate = learningRate * beta;
      if (!plain.apply(slow, NO_CLIP, { ...options, learningRate: rate }, behind)) finite = false;
      return finite;
    },
    reset() {
      for (const slot of Object.values(slots)) slot.fill(0);
    },
  };
}

const NO_CLIP = { limit: Infinity, factor: 1 } as const;
