import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import {
  type ExperimentData,
  type PreparedData,
  type PrepareOptions,
  prepareData,
} from './data/examples.ts';
import { dataOf } from './data/given.ts';
import type { Experiment } from './experiment.ts';

/**
 * The data of an experiment, split and standardised as a run's configuration says.
 * @param name of the experiment, for messages. @param folder where data lie, absolute.
 * @throws DownpourError DP_EXPERIMENT_INVALID or what reading the data throws.
 */
export async function prepareExperiment(
  name: string,
  experiment: Experiment,
  config: RunConfig,
  where: DataFolder,
): Promise<{ readonly data: ExperimentData; readonly prepared: PreparedData }> {
  const data = await loadData(name, experiment, config, where);
  return { data, prepared: prepareData(data, prepareOptions(experiment, config)) };
}

interface DataFolder {
  readonly folder: string;
  readonly log: (line: string) => void;
}

/** As the experiment gives them. */
export async function loadData(
  name: string,
  experiment: Experiment,
  config: RunConfig,
  { folder, log }: DataFolder,
): Promise<ExperimentData> {
  try {
    return dataOf(await experiment.data({ folder, ...dataSettings(config), log }));
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `data() of experiment '${name}' failed: ${errorText(cause)}`,
      { cause },
    );
  }
}

/** What an experiment's `data` is told of a run. */
export function dataSettings({ seed, splitSeed, hyperparameters }: RunConfig) {
  return { seed: splitSeed ?? seed, hyperparameters };
}

export function prepareOptions(experiment: Experiment, config: RunConfig): PrepareOptions {
  const { seed, splitSeed, validationFraction, validation, trainFraction, bootstrap } = config;
  const parts = { validationFraction, validation, trainFraction, bootstrap };
  return { seed, splitSeed, ...parts, standardise: experiment.standardise ?? 'none' };
}
