import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { errorFormatOf, numberText } from '../../study/report.ts';
import { scaleReport } from '../../study/scale.ts';
import { scaledTrials, scalePlan } from '../../study/scale-plan.ts';
import { type StudyCommandOptions, studyCommand } from '../study/study.ts';
import { parseModes } from './modes.ts';
import { type SimulateOptions, simulateCommand } from './simulate.ts';

export interface ScaleOptions
  extends SimulateOptions,
    Omit<StudyCommandOptions, 'workers' | 'workersPerTrial'> {
  readonly simulated?: boolean;
}

const WORLD = [
  ...(['compute', 'network', 'service', 'cores'] as const),
  ...(['slow', 'failures', 'change', 'evaluation'] as const),
];

/** `downpour scale <experiment>`. @returns the exit code. */
export async function scaleCommand(file: string, options: ScaleOptions): Promise<number> {
  const { workers, seeds, metric, target = null, test = false } = options;
  if (options.simulated) return simulateCommand(file, { ...options, test });
  const most = Math.max(...workers);
  const virtual = WORLD.filter((name) => options[name] !== undefined);
  if (virtual.length > 0) {
    throw new DownpourError(
      'DP_USAGE',
      `--${virtual[0]} says what virtual workers live in, and these would be real processes: add --simulated, or leave it out`,
    );
  }
  if (most > LIMITS.workerCountMax) {
    throw new DownpourError(
      'DP_USAGE',
      `--workers has ${most}; a server lets in at most ${LIMITS.workerCountMax}: add --simulated for more`,
    );
  }
  // All of them are there from the beginning: a trial that has enough does not take the others.
  const study = { ...options, workers: most, workersPerTrial: most };
  return studyCommand('scale', file, study, ({ base, config }) => {
    const modes = parseModes(options.modes ?? config.consistency.correction ?? 'none', base);
    const own = Array.from({ length: seeds }, (_, i) => config.seed + i);
    const plan = scalePlan({ workers, modes, seeds: own, base, test });
    return {
      settings: { workers, modes, seeds, ...(test ? { test } : {}) },
      plan,
      trialCount: plan.trialCount,
      keepCurves: true,
      report: (name, trials) =>
        scaleReport(name, scaledTrials(trials), {
          ...{ metric, target, clock: 'real' },
          format: metric === 'loss' ? numberText : errorFormatOf(trials),
          about: 'Real worker processes, all on this machine unless others joined.',
        }),
    };
  });
}
