import { relative } from 'node:path';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { isOver } from '../../shared/phases.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { pathArgument, shellCommand } from '../../shared/shell.ts';
import {
  type LearningRateSettings,
  learningRatePlan,
  learningRateReport,
} from '../../study/learning-rate.ts';
import type { Fork } from '../../study/study.ts';
import { experimentName, hashExperiment } from '../../worker/experiment.ts';
import { tell } from '../options.ts';
import { openTrainServer } from '../used-server.ts';
import { type EarlySession, type StudyCommandOptions, studyCommand } from './study.ts';

export interface LearningRateOptions extends StudyCommandOptions {
  readonly fork?: string;
  readonly newData?: boolean;
  readonly checkpoint: string;
  readonly low: number;
  readonly high: number;
  readonly steps: number;
  readonly probeSteps: number;
  readonly seeds: number;
}

/** `downpour lr-find <experiment>`. @returns the exit code. */
export async function learningRateCommand(
  file: string,
  options: LearningRateOptions,
): Promise<number> {
  const { low, high, steps, probeSteps, seeds, workersPerTrial: workers } = options;
  if (high <= low) {
    throw new DownpourError('DP_USAGE', `--high is ${high}, not above --low ${low}`);
  }
  const early = options.fork === undefined ? null : await openSource(options.fork, options);
  const fork = early && { ...early.fork, ...(options.newData && { data: 'other' as const }) };
  return studyCommand(
    'lr',
    file,
    options,
    ({ base }) => {
      const own = { low, high, steps, probeSteps, seeds, workers, fork };
      const settings: LearningRateSettings = { ...own, base };
      let plan = learningRatePlan(settings);
      const command = (rate: number) =>
        shellCommand(
          'downpour',
          'train',
          pathArgument(relative(process.cwd(), file)),
          '--set',
          `learningRate=${rate}`,
        );
      return {
        settings: own,
        plan: { decide: (trials, room) => plan.decide(trials, room) },
        trialCount: plan.trialCount,
        keepCurves: true,
        async prepare(client, name) {
          if (!fork) return;
          // All trials begin with one copy: the run itself may go on, and its checkpoints go.
          const copy = `${name}-origin`;
          await copyOnce(client, { study: name, copy, fork, file });
          plan = learningRatePlan({
            ...settings,
            fork: { ...fork, run: copy, checkpoint: 'last' },
          });
        },
        report: (name, trials) => learningRateReport(name, settings, trials, command),
      };
    },
    early,
  );
}

/** @throws DownpourError DP_USAGE for a run that workers of this command would train on. */
async function openSource(
  run: string,
  options: LearningRateOptions,
): Promise<EarlySession & { readonly fork: Fork }> {
  const { checkpoint } = options;
  const usedServer = await openTrainServer(options, options.verbose ? tell : () => {});
  try {
    const { client } = usedServer;
    const { phase, step, config } = await client.run(run);
    const isLive = !isOver(phase);
    if (usedServer.state !== null && isLive) {
      throw new DownpourError(
        'DP_USAGE',
        `run ${run} is not over (${phase}), and this command's own server would train it on: end it by \`downpour stop ${run}\`, or name the server that has it by --server`,
      );
    }
    if (isLive && checkpoint === 'last')
      return { usedServer, config, fork: { run, checkpoint, step } };
    const known = await client.checkpoints(run);
    const found = known.findLast(({ kind, file }) => kind === checkpoint || file === checkpoint);
    if (!found) {
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `run ${run} has no checkpoint '${checkpoint}'; it has: ${known.map(({ file }) => file).join(', ') || 'none'}`,
      );
    }
    return { usedServer, config, fork: { run, checkpoint: found.file, step: found.step } };
  } catch (error) {
    await usedServer.close();
    throw error;
  }
}

/** Makes a run that holds the parameters and is never trained, unless there is one. */
async function copyOnce(
  client: RestClient,
  { study, copy, fork, file }: { study: string; copy: string; fork: Fork; file: string },
): Promise<void> {
  const { config } = await client.run(fork.run);
  try {
    await client.createRun({
      id: copy,
      study,
      experiment: experimentName(file),
      experimentHash: await hashExperiment(file),
      // No pool has so many: it waits until it is stopped.
      config: { ...config, workersMin: 1000, workersMax: null },
      fork: { run: fork.run, checkpoint: fork.checkpoint, ...(fork.data && { data: fork.data }) },
    });
  } catch (error) {
    if (errorCode(error) !== 'DP_RUN_EXISTS') throw error;
  }
  await client.stop(copy);
}
