import type { RunConfig } from '../shared/config.ts';
import type { DataFacts } from '../shared/data-facts.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { watch } from './browser/needs.ts';
import { needsClassCounts } from './class-weights.ts';
import type { ExperimentData, PreparedData, PrepareOptions } from './data/examples.ts';
import { dataOf } from './data/given.ts';
import { roundedColumns, roundedText } from './data/precision.ts';
import { prepareAny } from './data/prepare-stored.ts';
import { closeSources } from './data/stored.ts';
import type { Experiment } from './experiment.ts';
import { isRecord } from './fields.ts';

/**
 * The data of an experiment, split and standardised as a run's configuration says.
 * @param name of the experiment, for messages. @param folder where data lie, absolute.
 * @param facts of a run whose parameters are used: inputs are standardised as there.
 * @throws DownpourError DP_EXPERIMENT_INVALID or what reading the data throws; DP_DATA_MISMATCH: the
 *   facts are of other inputs.
 */
export async function prepareExperiment(
  name: string,
  experiment: Experiment,
  config: RunConfig,
  { facts = null, ...where }: DataFolder & { readonly facts?: DataFacts | null },
): Promise<LoadedData & { readonly prepared: PreparedData }> {
  const loaded = await loadData(name, experiment, config, where);
  const options = { ...prepareOptions(experiment, config), facts };
  const prepared = await prepareAny(loaded.data, options, where).catch(async (error: unknown) => {
    await closeSources(loaded.data, where.log);
    throw error;
  });
  for (const column of roundedColumns(prepared.train.inputs)) {
    where.log(`${roundedText(column)} Give it as a Float64Array, with standardise: 'feature'`);
  }
  return { ...loaded, prepared };
}

interface DataFolder {
  readonly folder: string;
  readonly log: (line: string) => void;
  /** Ends the reading of a source. */
  readonly signal?: AbortSignal | undefined;
}

export interface LoadedData {
  /** As the experiment gives them. */
  readonly data: ExperimentData;
  /** What `data()` looked at: `seed`, `hyperparameters.<name>`. */
  readonly depends: readonly string[];
}

/** @throws DownpourError DP_EXPERIMENT_INVALID or what reading the data throws. */
export async function loadData(
  name: string,
  experiment: Experiment,
  config: RunConfig,
  { folder, log }: DataFolder,
): Promise<LoadedData> {
  const { args, needs } = watch({ folder, ...dataSettings(config), log });
  let given: unknown;
  try {
    given = await experiment.data(args);
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `data() of experiment '${name}' failed: ${cause === undefined ? 'it threw nothing that says why' : errorText(cause)}`,
      { cause },
    );
  }
  const { seed, hyperparameters } = needs();
  const names = Object.keys(hyperparameters).map((each) => `hyperparameters.${each}`);
  return { data: dataOf(given), depends: [...(seed === null ? [] : ['seed']), ...names] };
}

/** What an experiment's `data` is told of a run. */
export function dataSettings({ seed, splitSeed, hyperparameters }: RunConfig) {
  return { seed: splitSeed ?? seed, hyperparameters };
}

export function prepareOptions(experiment: Experiment, config: RunConfig): PrepareOptions {
  const { seed, splitSeed, validationFraction, validation, trainFraction, bootstrap } = config;
  const parts = { validationFraction, validation, trainFraction, bootstrap };
  const { loss: given } = experiment;
  const nameOf = (loss: unknown) => (typeof loss === 'string' ? loss : null);
  const losses = isRecord(given)
    ? Object.fromEntries(Object.entries(given).map(([name, loss]) => [name, nameOf(loss)]))
    : {};
  const targetsOptional = experiment.objective !== undefined;
  // Only where it is needed: what was found in sources is kept under the options.
  const counted = needsClassCounts(experiment.classWeights) ? { countClasses: true as const } : {};
  const targets = { loss: nameOf(given), losses, targetsOptional, ...counted };
  return { seed, splitSeed, ...parts, standardise: experiment.standardise ?? 'none', ...targets };
}
