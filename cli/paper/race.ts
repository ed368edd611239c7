import type { PartialConfig } from '../../shared/config.ts';
import type { ComputeLaw } from '../simulate/laws.ts';
import { createQuadratic, type QuadraticOptions } from '../simulate/quadratic.ts';
import type { VirtualProblem } from '../simulate/virtual-cluster.ts';
import { type Lab, trial, updates } from './result.ts';

/** Virtual time until the loss of a quadratic is low enough: what methods for workers of unlike speeds are compared by. */

export interface Race {
  readonly quadratic: QuadraticOptions;
  /** Share of the first loss that is to be reached. */
  readonly share: number;
  /** A race that takes longer ends here, virtual ms. */
  readonly capMs: number;
  readonly workers: number;
  readonly law: string | ComputeLaw;
  readonly seed: number;
  readonly config: PartialConfig;
}

export interface RaceEnd {
  /** Virtual ms; null: the share was not reached. */
  readonly ms: number | null;
  /** For tuning, higher is better: less time, and of two that do not get there the one with the lower loss. */
  readonly score: number;
}

export async function raceTo(lab: Lab, race: Race): Promise<RaceEnd> {
  const { share, capMs, workers, law, seed, config } = race;
  const quadratic = createQuadratic(race.quadratic);
  let first: number | null = null;
  let lowest = Infinity;
  // The server sends its newest parameters, so a worker that pulls sees the loss of this moment.
  const problem: VirtualProblem = {
    ...quadratic,
    gradient(lease, x, payload, noiseSeed) {
      const loss = quadratic.gradient(lease, x, payload, noiseSeed) as number;
      first ??= loss;
      lowest = Math.min(lowest, loss / first);
      return loss;
    },
  };
  const { nowMs } = await trial(lab, {
    ...{ problem, workers, seed, law },
    config: {
      ...updates(1_000_000),
      ...{ minibatchSize: 1, leaseSeconds: 3_600, divergence: { rollbacksMax: 0 }, ...config },
      optimizer: { kind: 'sgd' },
    },
    until: ({ ms }) => lowest <= share || ms >= capMs,
  });
  if (lowest <= share) return { ms: nowMs, score: -nowMs };
  return { ms: null, score: -capMs * (1 + lowest) };
}
