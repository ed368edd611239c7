import type { RunConfig, ScheduleConfig } from '../../shared/config.ts';

/** How the learning rate changes over the updates of a phase. */
export interface Schedule {
  /** @param step updates applied so far, from 0. @returns ε of the next one. */
  rate(step: number): number;
  /** Takes a validation value in (lower is better); only `plateau` listens. */
  observe(value: number): void;
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
 * Deep Learning §8.3.1 (linear decay to a fixed small rate, eq. 8.14) and §11.4.1; cosine: Loshchilov
 * and Hutter 2017, arXiv:1608.03983, without restarts.
 */
export function createSchedule(
  config: ScheduleConfig,
  options: { readonly learningRate: number; readonly warmupSteps: number },
): Schedule {
  const { learningRate, warmupSteps } = options;
  let state: ScheduleState = { factor: 1, best: null, sinceBest: 0 };
  return {
    rate(step) {
      // Warm-up multiplies, so that the rate joins its schedule without a jump.
      const warm = step < warmupSteps ? (step + 1) / (warmupSteps + 1) : 1;
      return learningRate * warm * factorAt(config, step, state.factor);
    },
    observe(value) {
      if (config.kind !== 'plateau') return;
      const { best, sinceBest, factor } = state;
      if (Number.isFinite(value) && (best === null || value < best - config.minImprovement)) {
        state = { factor, best: value, sinceBest: 0 };
      } else if (sinceBest + 1 < config.patience) {
        state = { factor, best, sinceBest: sinceBest + 1 };
      } else {
        state = { factor: Math.max(config.floor, factor / config.divideBy), best, sinceBest: 0 };
      }
    },
    state: () => state,
    restore(restored) {
      state = restored;
    },
  };
}

function factorAt(config: ScheduleConfig, step: number, plateau: number): number {
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
  const passed = config.steps.filter((at) => step >= at).length;
  return config.values[passed];
}
