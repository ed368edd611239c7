import type { train as Train } from './train.ts';
import type { trainOn as TrainOn } from './train-on.ts';

/** What experiments and programs import as `downpour`. */

export {
  type ArrayField,
  type ArraySourceOptions,
  arraySource,
  type Batch,
  type BatchArguments,
  type BatchFunction,
  type Carried,
  type CarriedArguments,
  type CsvData,
  type CsvOptions,
  type CsvParts,
  type CsvSourceOptions,
  csvSource,
  type DataArguments,
  type DatasetField,
  type DatasetLike,
  type DatasetOptions,
  type Draws,
  defineExperiment,
  type ExampleSource,
  type Experiment,
  type ExperimentData,
  // What programs that conduct studies need of an experiment.
  experimentName,
  type FieldTensors,
  type FunctionModel,
  fromDataset,
  type GivenData,
  type Hyperparameters,
  hashExperiment,
  type ImageSourceData,
  type ImageSourceOptions,
  imageFolderSource,
  type LayersModel,
  type LossName,
  loadCsv,
  loadExperiment,
  loadImageFolder,
  loadMnist,
  type Measure,
  type ModelArguments,
  type Objective,
  type ObjectiveArguments,
  type ObjectiveModel,
  type ParquetSourceOptions,
  type PartialConfig,
  type Pretrained,
  parquetSource,
  type ReadOptions,
  type RunConfig,
  readIdx,
  readNpy,
  type Scalar,
  type SourceField,
  type SourceRows,
  type Space,
  type SpoolOptions,
  spooled,
  type TableSourceData,
  type TarField,
  type TarSourceOptions,
  type Tensor,
  type TextWindows,
  type TextWindowsOptions,
  type Tf,
  type Tokenizer,
  tarSource,
  textWindows,
  type Variable,
} from '../worker/experiment.ts';
export type { TrainedTensor, TrainingProgress, TrainingResult, TrainOptions } from './train.ts';
export type { DataOn, ExamplesOn, Numbers, TrainOnOptions } from './train-on.ts';

// An experiment needs none of what follows, and each worker loads one.

/**
 * Trains an experiment: starts a server and workers on this machine, and ends them when the run has ended.
 * @param experiment its file (a path, or a `file:` URL), or the experiment itself.
 * @throws DownpourError DP_RUN_FAILED: the run has failed; what loading the experiment and starting a server throws; the
 *   reason of `signal`; what `onProgress` or `log` has thrown, which stop the run as `signal` does.
 */
export const train: typeof Train = async (experiment, options) =>
  (await import('./train.ts')).train(experiment, options);

/**
 * Trains a compiled `LayersModel`, beginning with the weights that it has: its loss and its optimizer are those of
 * `model.compile`. Its weights are the trained ones afterwards.
 * @throws DownpourError DP_USAGE: the model is not compiled, or has what a worker could not have.
 */
export const trainOn: typeof TrainOn = async (model, data, options) =>
  (await import('./train-on.ts')).trainOn(model, data, options);
