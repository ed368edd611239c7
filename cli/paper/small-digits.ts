import type { PartialConfig } from '../../shared/config.ts';
import type { ComputeLaw } from '../simulate/laws.ts';
import type { VirtualOutcome, VirtualProblem } from '../simulate/virtual-cluster.ts';
import { createDigits } from './digits.ts';
import { type Lab, trial, updates } from './result.ts';

/**
 * 10,000 digits at 14 × 14 and a network of 196-32-10, minibatches of 16, 2,400 gradients in all, however many workers:
 * small enough for hundreds of trainings in minutes.
 */

export const SMALL_DIGITS =
  '10,000 digits at 14 × 14, a network of 196-32-10, minibatches of 16, 2,400 gradients in all however many workers';

const GRADIENTS = 2_400;
/** The quick form takes so much less. */
const QUICK = 6;

let made: { readonly key: string; readonly problem: Promise<VirtualProblem> } | null = null;

/** The digits split by a seed; the last ones are kept. */
function smallDigits(lab: Lab, seed: number): Promise<VirtualProblem> {
  const trainMax = lab.quick ? 2_000 : 10_000;
  const key = `${seed} ${trainMax}`;
  if (made?.key !== key) {
    const what = { hidden: 32, dropout: 0, seed, minibatchMax: 16, trainMax, small: true };
    made = { key, problem: createDigits(what) };
  }
  return made.problem;
}

export interface SmallTrial {
  readonly workers: number;
  readonly seed: number;
  readonly law: string | ComputeLaw;
  readonly config: PartialConfig;
  /** Gradients in an update; default: 1. */
  readonly updateOf?: number;
  /** In all; default: 2,400. */
  readonly gradients?: number;
}

export interface SmallResult {
  /** Accuracy on the test part, %; that of a guess where the run diverged. */
  readonly accuracy: number;
  readonly diverged: boolean;
  readonly outcome: VirtualOutcome;
}

export async function trainSmall(
  lab: Lab,
  { workers, seed, law, config, updateOf = 1, gradients = GRADIENTS }: SmallTrial,
): Promise<SmallResult> {
  const outcome = await trial(lab, {
    ...{ problem: await smallDigits(lab, seed), workers, seed, law },
    config: {
      ...updates(Math.round((lab.quick ? gradients / QUICK : gradients) / updateOf)),
      ...{ minibatchSize: 16, divergence: { rollbacksMax: 0 }, nonFiniteMax: 3, seed },
      ...config,
    },
  });
  const { phase, test } = outcome.server.summary(outcome.nowMs);
  const diverged = phase !== 'finished' || test?.error == null;
  return { accuracy: diverged ? 10 : 100 * (1 - test!.error!), diverged, outcome };
}
