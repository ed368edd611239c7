import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { type ExperimentData, type PreparedData, prepareData } from './data/examples.ts';
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
  { folder, log }: { readonly folder: string; readonly log: (line: string) => void },
): Promise<{ readonly data: ExperimentData; readonly prepared: PreparedData }> {
  const { seed, hyperparameters, validationFraction, validation, trainFraction } = config;
  let data: ExperimentData;
  try {
    data = await experiment.data({ folder, seed, hyperparameters, log });
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `data() of experiment '${name}' failed: ${errorText(cause)}`,
      { cause },
    );
  }
  const standardise = experiment.standardise ?? 'none';
  const how = { seed, validationFraction, validation, trainFraction, standardise };
  return { data, prepared: prepareData(data, how) };
}
