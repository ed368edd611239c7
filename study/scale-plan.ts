import { type PartialConfig, resolveConfig } from '../shared/config.ts';
import type { ScaledRun } from './scale.ts';
import type { NewTrial, StudyPlan, Trial } from './study.ts';

/** Real workers in different numbers: the trials of `downpour scale`, and what they tell. */

export interface ScalePlanSettings {
  readonly workers: readonly number[];
  /** Parts of a configuration, by name. */
  readonly modes: Readonly<Record<string, PartialConfig>>;
  readonly seeds: readonly number[];
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
  /** Evaluate the test part at the end of each run. */
  readonly test?: boolean;
}

/** One after the other, each with its own number of workers; those that are too many wait. */
export function scalePlan(
  settings: ScalePlanSettings,
): StudyPlan & { readonly trialCount: number } {
  const { workers, modes, seeds, base, test = false } = settings;
  const all: NewTrial[] = seeds.flatMap((seed) =>
    Object.entries(modes).flatMap(([mode, config], m) =>
      workers.map((count) => ({
        key: `${count}-${m}-${seed}`,
        label: `${count} worker${count === 1 ? '' : 's'}, ${mode}, seed ${seed}`,
        point: { workers: count, mode },
        config: resolveConfig(...base, config, {
          ...{ seed, workersMin: count, workersMax: count },
          ...(test ? { testAtEnd: true } : {}),
        }),
      })),
    ),
  );
  return {
    trialCount: all.length,
    decide(trials, room) {
      const start = all.slice(trials.length, trials.length + Math.max(0, room));
      return { start, change: [], done: trials.length >= all.length };
    },
  };
}

export function scaledTrials(trials: readonly Trial[]): ScaledRun[] {
  return trials.flatMap((trial) => {
    const { point, config, end, phase, step, seconds, evaluations, test, curve, pushes } = trial;
    if (end === null) return [];
    const staleness: number[] = [];
    for (const value of curve?.staleness ?? []) {
      while (staleness.length <= value) staleness.push(0);
      staleness[value]!++;
    }
    const applied = pushes ? pushes.applied + pushes.damped : 0;
    const used = pushes && applied > 0 ? applied / (applied + pushes.rejected) : null;
    return [
      {
        ...{ workers: Number(point.workers), mode: String(point.mode), seed: config.seed },
        ...{ phase: end.kind === 'failed' ? 'failed' : phase, reason: end.reason },
        ...{ step, seconds, evaluations, test, staleness, used, serverBusy: null },
        updatesPerSecond: curve?.updatesPerSecond,
      },
    ];
  });
}
