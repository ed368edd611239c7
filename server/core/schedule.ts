import type { RunConfig } from '../../shared/config.ts';
import type { ScheduleConfig } from '../../shared/schedule-config.ts';

/** How the learning rate changes over the updates of a phase. */
export interface Schedule {
  /** @param step updates applied so far, from 0. @returns ε of the next one. */
  rate(step: number): number;
  /** Takes a validation value in, lower is better; only `plateau` listens. */
  observe(value: number): 'kept' | 'divided';
  /** What a checkpoint must keep. */
  state(): ScheduleState;
  restore(state: ScheduleState): void;
}

export interface ScheduleState {
  readonly factor: number;
  readonly best: number | null;
  readonly sinceBest: number;
}

/**
 * Each kind is a factor on `learningRate`, 1 at step 0. Linear decay to a fixed small rate: Deep
 * Learning §8.3.1, eq. 8.14. Cosine: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
 * Rising: the range test of Smith 2017, arXiv:1506.01186, evenly on a logarithmic scale.
 * Plateau: divided by `divideBy` after `patience` evaluations in a row without improvement (§11.2).
 */
export function createSchedule(
  config: ScheduleConfig,
  options: { readonly learningRate: number; readonly warmupSteps: number },
): Schedule {
  const { learningRate, warmupSteps } = options;
  let state: ScheduleState = { factor: 1, best: null, sinceBest: 0 };
  return {
    rate(step) {
      return learningRate * warmUpAt(step, warmupSteps) * factorAt(config, step, state.factor);
    },
    observe(value) {
      if (config.kind !== 'plateau') return 'kept';
      const { best, sinceBest, factor } = state;
      // NaN improves on nothing.
      if (Number.isFinite(value) && (best === null || value < best - config.minImprovement)) {
        state = { factor, best: value, sinceBest: 0 };
        return 'kept';
      }
      if (sinceBest + 1 < config.patience) {
        state = { factor, best, sinceBest: sinceBest + 1 };
        return 'kept';
      }
      const divided = Math.max(config.floor, factor / config.divideBy);
      state = { factor: divided, best, sinceBest: 0 };
      return divided < factor ? 'divided' : 'kept';
    },
    state: () => state,
    restore(restored) {
      state = restored;
    },
  };
}

/**
 * Warm-up multiplies, so that the rate joins its schedule without a jump. Its steps are numbered from 1: a first step at
 * rate 0 would waste a minibatch.
 */
export const warmUpAt = (step: number, warmupSteps: number): number =>
  step < warmupSteps ? (step + 1) / (warmupSteps + 1) : 1;

/** @param plateau what `plateau` has left of the rate. */
export function factorAt(config: ScheduleConfig, step: number, plateau: number): number {
  switch (config.kind) {
    case 'constant':
      return 1;
    case 'linear': {
      const done = Math.min(1, step / config.steps);
      return 1 - done + done * config.floor;
    }
    case 'exponential':
      return config.factor ** (step / config.steps);
    case 'step':
      return config.factor ** Math.floor(step / config.steps);
    case 'cosine': {
      const done = Math.min(1, step / config.steps);
      return config.floor + ((1 - config.floor) * (1 + Math.cos(Math.PI * done))) / 2;
    }
    case 'rising':
      return config.factor ** Math.min(1, step / config.steps);
    case 'plateau':
      return plateau;
  }
}

/**
 * The momentum of the next update, undefined without a schedule. Deep Learning §8.3.2: it begins
 * small and is raised later: 0.5, 0.9, 0.99.
 * @param step updates applied so far, from 0.
 */
export function momentumAt(
  config: RunConfig['momentumSchedule'],
  step: number,
): number | undefined {
  if (config === null) return undefined;
  let passed = 0;
  while (passed < config.steps.length && step >= config.steps[passed]!) passed++;
  return config.values[passed];
}
