import { relative } from 'node:path';
import { DownpourError } from '../../shared/errors.ts';
import { pathArgument, shellCommand } from '../../shared/shell.ts';
import { curvePlan, curveReport } from '../../study/curve.ts';
import { foldsPlan, foldsReport } from '../../study/folds.ts';
import { checkTestPart, stoppingPlan, stoppingReport, WAYS } from '../../study/stopping.ts';
import { type StudyCommandOptions, studyCommand } from './study.ts';

/** `downpour folds`, `stopping` and `curve`: studies whose trials are known before they start. */

export interface FoldsOptions extends StudyCommandOptions {
  readonly folds: number;
  readonly stratified?: boolean;
  readonly repeats: number;
}

/** `downpour folds <experiment>`. @returns the exit code. */
export async function foldsCommand(file: string, options: FoldsOptions): Promise<number> {
  const { folds, repeats, stratified = false } = options;
  return studyCommand('folds', file, options, ({ base }) => {
    const settings = { folds, stratified, repeats, base };
    const train = (steps: number) => {
      const settings = ['--after-stop', 'retrain', '--set', `stepsMax=${steps}`];
      return shellCommand(
        'downpour',
        'train',
        pathArgument(relative(process.cwd(), file)),
        ...settings,
      );
    };
    return {
      settings: { folds, stratified, repeats },
      plan: foldsPlan(settings),
      trialCount: folds * repeats,
      report: (name, trials) => foldsReport(name, settings, trials, train),
    };
  });
}

export interface StoppingOptions extends StudyCommandOptions {
  readonly repeats: number;
}

/** `downpour stopping <experiment>`. @returns the exit code. */
export async function stoppingCommand(file: string, options: StoppingOptions): Promise<number> {
  const { repeats } = options;
  return studyCommand('stopping', file, options, ({ base, config }) => {
    if (!config.earlyStopping.enabled) {
      throw new DownpourError(
        'DP_USAGE',
        'earlyStopping.enabled is false: without a stop there is nothing to compare; set it to true',
      );
    }
    return {
      settings: { repeats },
      plan: stoppingPlan({ repeats, base }),
      trialCount: repeats * WAYS.length,
      checkData: checkTestPart,
      report: (name, trials) => stoppingReport(name, trials),
    };
  });
}

export interface CurveOptions extends StudyCommandOptions {
  readonly fractions: readonly number[];
  readonly repeats: number;
  readonly target?: number;
}

/** `downpour curve <experiment>`. @returns the exit code. */
export async function curveCommand(file: string, options: CurveOptions): Promise<number> {
  const { fractions, repeats, target = null } = options;
  return studyCommand('curve', file, options, ({ base }) => {
    const settings = { fractions, repeats, target, base };
    const plan = curvePlan(settings);
    return {
      // The target changes the advice, not the runs.
      settings: { fractions, repeats },
      plan,
      trialCount: plan.trialCount,
      report: (name, trials) => curveReport(name, settings, trials),
    };
  });
}
