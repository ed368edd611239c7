import type { train as Train } from './train.ts';

/** What experiments and programs import as `downpour`. */

export {
  type CsvData,
  type CsvOptions,
  type CsvParts,
  type DataArguments,
  defineExperiment,
  type Experiment,
  type ExperimentData,
  type FunctionModel,
  type GivenData,
  type Hyperparameters,
  type LayersModel,
  type LossName,
  loadCsv,
  loadImageFolder,
  loadMnist,
  type Measure,
  type ModelArguments,
  type PartialConfig,
  type RunConfig,
  readIdx,
  readNpy,
  type Scalar,
  type Space,
  type Tensor,
  type Tf,
  type Variable,
} from '../worker/experiment.ts';
export type { TrainedTensor, TrainingProgress, TrainingResult, TrainOptions } from './train.ts';

// An experiment needs none of what follows, and each worker loads one.

/**
 * Trains an experiment: starts a server and workers on this machine, and ends them when the run has ended.
 * @param experiment its file (a path, or a `file:` URL), or the experiment itself.
 * @throws DownpourError DP_RUN_FAILED: the run has failed; what loading the experiment and starting a server throws; the
 *   reason of `signal`.
 */
export const train: typeof Train = async (experiment, options) =>
  (await import('./train.ts')).train(experiment, options);
