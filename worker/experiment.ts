import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile, realpath } from 'node:fs/promises';
import Module, { createRequire, register } from 'node:module';
import { basename, dirname, extname, relative, resolve, sep } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { FROM_DOWNPOUR } from '../shared/bundle.ts';
import { NAME_PATTERN, type PartialConfig, type RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { TensorRole } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import { IS_BUILT, ownModule, ROOT } from '../shared/own-files.ts';
import type { Space } from '../shared/space.ts';
import type { Batch, BatchArguments, BatchFunction, FieldTensors } from './batch.ts';
import type { Carried, CarriedArguments } from './carried.ts';
import {
  CLASS_WEIGHTS_ALLOWED,
  type ClassWeights,
  type GivenClassWeights,
  isClassWeights,
} from './class-weights.ts';
import type { DataArguments } from './data/data-arguments.ts';
import type { ExperimentData } from './data/examples.ts';
import type { GivenData } from './data/given.ts';
import type { Standardise } from './data/transform.ts';
import type { Draws } from './draws.ts';
import { TABLE_VECTORS_FIELDS, type TableVectors } from './embeddings/table-vectors.ts';
import { type FieldRules, fieldProblems, isRecord } from './fields.ts';
import type { Objective, ObjectiveArguments, ObjectiveModel } from './objective.ts';
import { PART_METRICS, type PartMetricName } from './part-metrics.ts';
import { PRETRAINED_FIELDS, PRETRAINED_GROUP, type Pretrained } from './pretrained/pretrained.ts';
import type { LayersModel, Scalar, Tensor, Tf, Variable } from './tf.ts';

/**
 * The user's module: data, model, loss, defaults of the configuration. Workers load it from their
 * own disk by name and compare its hash with the run's; code travels to browsers (docs/join.md), and to workers that
 * were started to take it (`BundleSource` of shelf.ts).
 *
 *     import { defineExperiment, loadMnist } from 'downpour';
 *
 *     export default defineExperiment({
 *       data: ({ folder }) => loadMnist({ dataFolder: folder }),
 *       model: ({ tf, inputShape, classCount }) =>
 *         tf.sequential({ layers: [
 *           tf.layers.flatten({ inputShape }),
 *           tf.layers.dense({ units: classCount }),
 *         ] }),
 *       loss: 'softmaxCrossEntropy',
 *       config: { learningRate: 0.1 },
 *     });
 */

export { readIdx } from './data/idx.ts';
export { loadMnist } from './data/mnist.ts';
export { readNpy } from './data/npy.ts';
export { loadImageFolder } from './data/pictures/images.ts';
export type { ExampleSource, ReadOptions, SourceField, SourceRows } from './data/source.ts';
export { type ArrayField, type ArraySourceOptions, arraySource } from './data/sources/arrays.ts';
export { type CsvSourceOptions, csvSource } from './data/sources/csv.ts';
export {
  type DatasetField,
  type DatasetLike,
  type DatasetOptions,
  fromDataset,
} from './data/sources/dataset.ts';
export {
  type ImageSourceData,
  type ImageSourceOptions,
  imageFolderSource,
} from './data/sources/image-folder.ts';
export { type ParquetSourceOptions, parquetSource } from './data/sources/parquet.ts';
export { type SpoolOptions, spooled } from './data/sources/spooled.ts';
export type { TableSourceData } from './data/sources/table-sources.ts';
export { type TarSourceOptions, tarSource } from './data/sources/tar.ts';
export {
  type TextWindows,
  type TextWindowsOptions,
  textWindows,
} from './data/sources/text.ts';
export { type CsvParts, loadCsv } from './data/tables/csv.ts';
export type { CsvOptions } from './data/tables/csv-options.ts';
export type { CsvData } from './data/tables/table.ts';
export type { TarField } from './data/tar/tar-fields.ts';
export type { Tokenizer } from './data/texts/vocabulary.ts';
export type {
  Batch,
  BatchArguments,
  BatchFunction,
  Carried,
  CarriedArguments,
  ClassWeights,
  DataArguments,
  Draws,
  ExperimentData,
  FieldTensors,
  GivenData,
  LayersModel,
  Objective,
  ObjectiveArguments,
  ObjectiveModel,
  PartialConfig,
  Pretrained,
  RunConfig,
  Scalar,
  Space,
  TableVectors,
  Tensor,
  Tf,
  Variable,
};

/** What an experiment's functions are given of the run's configuration. */
export type Hyperparameters = Readonly<RunConfig['hyperparameters']>;

export interface ModelArguments {
  /** TensorFlow.js, core and layers. Use this one: tensors of another copy have no gradients here. */
  readonly tf: Tf;
  readonly seed: number;
  readonly hyperparameters: Hyperparameters;
  /** The shape of one example, without the minibatch. */
  readonly inputShape: number[];
  /** Classes of the targets; 0 where they are numbers. */
  readonly classCount: number;
  /** The model of the file of `pretrained`, with its parameters; null: there is none, or its file has tensors alone. */
  readonly pretrained: LayersModel | null;
}

/** A model without layers: variables and a function of them. */
export interface FunctionModel {
  /**
   * By name. A plain variable is trained (frozen when made with `trainable: false`). `statistics` are
   * moving averages with a `momentum`: in training, `predict` assigns the minibatch's own value, and
   * the server averages. Give variables no name in `tf.variable`: the name here is theirs.
   */
  readonly variables: Readonly<
    Record<string, Variable | { variable: Variable; role: TensorRole; momentum?: number }>
  >;
  /**
   * @param inputs shape [n, ...inputShape]; where the data have several, an object of them by name. @returns logits or
   *   values, n first; where the data have several targets, an object of them by name.
   */
  predict(
    inputs: Tensor,
    mode: { readonly training: boolean },
  ): Tensor | Readonly<Record<string, Tensor>>;
}

/** One model; for an objective also several by name. */
export type GivenModel =
  | LayersModel
  | FunctionModel
  | Readonly<Record<string, LayersModel | FunctionModel>>;

export type LossName =
  /** Classes 0 … k−1 from logits, shape [n, k] (or [n, …, k] with targets [n, …]). */
  | 'softmaxCrossEntropy'
  /** The same from logarithms of probabilities, for models that end in `tf.logSoftmax` or a mixture. */
  | 'negativeLogLikelihood'
  /** Yes or no from logits: targets 0 or 1 of the predictions' size. */
  | 'sigmoidCrossEntropy'
  | 'meanSquaredError'
  | 'meanAbsoluteError';

/**
 * The mean over the examples of a minibatch: one number, or one for each example, of which the mean is taken.
 * Targets that are as many numbers as the predictions and have another shape ([n] and [n, 1]) come in the shape of
 * the predictions where the function would else compare each target with each prediction. Evaluations take the
 * mean over minibatches, each weighed by its examples: exact for means, close to it for others. A metric that is no mean
 * has a name (`PartMetricName`).
 */
export type Measure = (targets: Tensor, predictions: Tensor) => Tensor;

export type GivenMetric = Measure | PartMetricName;

/** A table of rows, as `tables` of the configuration has it; what is left out has its default. */
export type GivenTable = NonNullable<PartialConfig['tables']>[string];

/** A table of an experiment, which may begin with word vectors of a file. */
export type ExperimentTable = GivenTable & { readonly pretrained?: TableVectors };

/** An experiment. Its name is that of its file: `mnist-mlp.ts` is `mnist-mlp`. */
export interface Experiment {
  readonly data: (args: DataArguments) => GivenData | Promise<GivenData>;
  /**
   * Changes each training minibatch before the model sees it: augmentation, noise, masks. Fields in, fields out. With
   * `{ change, evaluation: true }` evaluations and predictions are changed as well.
   */
  readonly batch?: Batch;
  /** Ends in logits: no softmax or sigmoid at its end, the losses have them inside. */
  readonly model: (args: ModelArguments) => GivenModel | Promise<GivenModel>;
  readonly loss?: LossName | Measure | Readonly<Record<string, LossName | Measure>> | undefined;
  /** Initial parameters from a file, and what of them is not trained. See docs/experiments.md. */
  readonly pretrained?: Pretrained;
  /** In the place of `loss`, `error` and `metrics`: any computation that gives a loss. Then there need be no targets. */
  readonly objective?: Objective;
  /**
   * Beside an objective: tensors that live from minibatch to minibatch, as the first minibatch gets them. See
   * docs/experiments.md.
   */
  readonly carried?: Carried;
  /**
   * Whether the native engine tries to record steps as a graph, which is faster and rounds otherwise. Default: with an
   * objective, and for models and losses without code of the user's.
   */
  readonly record?: boolean;
  /**
   * Large tables of which a minibatch uses a few rows, by name; `layers.rows` looks them up. They are defaults of
   * `config.tables`. See docs/experiments.md.
   */
  readonly tables?: Readonly<Record<string, ExperimentTable>>;
  /** What each output's loss is multiplied with before they are added up; default 1. */
  readonly lossWeights?: Readonly<Record<string, number>>;
  /**
   * Share ε of the targets' certainty that is spread over all classes while training, 0.1 as a rule;
   * evaluations have the targets as they are. A function of the hyperparameters makes it searchable.
   */
  readonly labelSmoothing?: number | ((hyperparameters: Hyperparameters) => number);
  /**
   * How much an example of each class counts in the loss, in training and in evaluations; for classes of which some are
   * rare. Of several outputs, by name. See docs/layers.md.
   */
  readonly classWeights?: GivenClassWeights;
  /** Reported by evaluations, by name: functions, or `'auc'`, `'rmse'`, `'r2'`, which are computed over the whole part. */
  readonly metrics?: Readonly<Record<string, GivenMetric | Readonly<Record<string, GivenMetric>>>>;
  /**
   * What an evaluation reports as the error, better when lower. Default: the share of examples
   * answered wrongly for the cross-entropies, else the loss.
   */
  readonly error?:
    | 'misclassification'
    | 'loss'
    | Measure
    | Readonly<Record<string, 'misclassification' | 'loss' | Measure>>;
  /** Inputs are brought to mean 0 and deviation 1, or whitened (`zca`), by numbers from the training part alone. */
  readonly standardise?: Standardise | Readonly<Record<string, Standardise>>;
  /** Defaults of the configuration, weaker than what the command line says. */
  readonly config?: PartialConfig;
  /** Where `downpour search` looks: by the path of a field of the configuration, its range. */
  readonly search?: Space;
  /**
   * Browsers may train it: `downpour serve --join` sends its code and its data to workers in pages. See docs/join.md.
   */
  readonly browser?: boolean;
  /** What `downpour ablate` compares: parts of the configuration by name, the first the baseline. */
  readonly ablate?: Readonly<Record<string, PartialConfig>>;
}

/** Gives an experiment its type. A plain object as the default export does as well. */
export function defineExperiment(experiment: Experiment): Experiment {
  return experiment;
}

const LOSSES: readonly string[] = [
  'softmaxCrossEntropy',
  'negativeLogLikelihood',
  'sigmoidCrossEntropy',
  'meanSquaredError',
  'meanAbsoluteError',
] satisfies LossName[];

const isFunction = (value: unknown) => typeof value === 'function';

/** Beside an objective. */
const NO_LOSS = {
  allowed: 'nothing, because objective gives the loss',
  test: (value: unknown) => value === undefined,
};

// A text that is no name of a metric is refused where the metric is known by its own name.
const isMetric = (value: unknown) => isFunction(value) || typeof value === 'string';
const isLoss = (value: unknown) => isFunction(value) || LOSSES.includes(value as string);
const isError = (value: unknown) =>
  isFunction(value) || value === 'misclassification' || value === 'loss';
const EPSILON_MAX = 1e6;
/** Not an input that is called `kind`: its value would be a text alone. */
const isWhitening = (value: unknown) =>
  isRecord(value) &&
  value.kind === 'zca' &&
  Object.keys(value).every((key) => ['kind', 'epsilon'].includes(key)) &&
  (value.epsilon === undefined ||
    (typeof value.epsilon === 'number' && value.epsilon > 0 && value.epsilon <= EPSILON_MAX));
const isStandardise = (value: unknown) =>
  ['none', 'global', 'feature', 'zca'].includes(value as string) || isWhitening(value);
const isByName = (value: unknown, test: (each: unknown) => boolean) =>
  isRecord(value) && Object.keys(value).length > 0 && Object.values(value).every(test);

const isBatch = (value: unknown) =>
  isRecord(value) &&
  isFunction(value.change) &&
  typeof value.evaluation === 'boolean' &&
  Object.keys(value).length === 2;

const FIELDS: FieldRules<keyof Experiment> = {
  data: { allowed: 'a function that gives the examples', test: isFunction },
  model: { allowed: 'a function that gives the model', test: isFunction },
  batch: {
    allowed:
      'a function (fields, { random, training, tf, hyperparameters }), or { change: function, evaluation: true }',
    test: (v) => v === undefined || isFunction(v) || isBatch(v),
  },
  loss: {
    allowed: `a function (targets, predictions), one of ${LOSSES.join(', ')}, or an object with one of these for each output`,
    // An objective stands in for it; `mustBeExperiment` sees to that.
    test: (v) => isLoss(v) || isByName(v, isLoss),
  },
  pretrained: {
    allowed: 'an object with from, sha256, and where needed map, freeze, fresh',
    test: (v) => v === undefined || isRecord(v),
  },
  objective: {
    allowed:
      'a function ({ model, batch, random, training, step, carried, tf, hyperparameters }) that gives the loss',
    test: (v) => v === undefined || isFunction(v),
  },
  carried: {
    allowed:
      'a function ({ tf, random, seed, inputShape, hyperparameters }) that gives tensors by name',
    test: (v) => v === undefined || isFunction(v),
  },
  record: {
    allowed: 'true or false',
    test: (v) => v === undefined || typeof v === 'boolean',
  },
  tables: {
    allowed: 'an object of tables by name, each { rows, width, … }',
    test: (v) => v === undefined || (isRecord(v) && Object.values(v).every(isRecord)),
  },
  lossWeights: {
    allowed: 'an object with a number above 0 for each output',
    test: (v) =>
      v === undefined ||
      isByName(v, (weight) => typeof weight === 'number' && weight > 0 && Number.isFinite(weight)),
  },
  labelSmoothing: {
    allowed: 'a number from 0, below 1, or a function of the hyperparameters',
    test: (v) => v === undefined || isFunction(v) || (typeof v === 'number' && v >= 0 && v < 1),
  },
  classWeights: {
    allowed: CLASS_WEIGHTS_ALLOWED,
    test: (v) => v === undefined || isClassWeights(v),
  },
  metrics: {
    allowed: `an object of functions (targets, predictions) and names of metrics (${PART_METRICS})`,
    test: (v) =>
      v === undefined ||
      (isRecord(v) && Object.values(v).every((each) => isMetric(each) || isByName(each, isMetric))),
  },
  error: {
    allowed:
      "'misclassification', 'loss', a function (targets, predictions), or an object with one of these for one output",
    test: (v) =>
      v === undefined ||
      isError(v) ||
      (isByName(v, isError) && Object.keys(v as object).length === 1),
  },
  standardise: {
    allowed: `'none', 'global', 'feature', 'zca' or { kind: 'zca', epsilon } with an epsilon above 0 and up to ${EPSILON_MAX}, or an object with one of these for each input`,
    test: (v) => v === undefined || isStandardise(v) || isByName(v, isStandardise),
  },
  config: { allowed: 'an object', test: (v) => v === undefined || isRecord(v) },
  search: { allowed: 'an object of ranges', test: (v) => v === undefined || isRecord(v) },
  browser: {
    allowed: 'true or false',
    test: (v) => v === undefined || typeof v === 'boolean',
  },
  ablate: {
    allowed: 'an object of parts of the configuration, by name',
    test: (v) => v === undefined || (isRecord(v) && Object.values(v).every(isRecord)),
  },
};

/** Names that evaluations themselves and JavaScript's objects have. */
const RESERVED = ['loss', 'error', 'trainingLoss', 'trainingError', '__proto__'];
/** Evaluations of the training part add two of their own. */
const METRICS_MAX = LIMITS.metricCountMax - 2;
const isMetricName = (name: string) =>
  name.trim() !== '' && name.length <= 64 && !/\p{Cc}/u.test(name) && !RESERVED.includes(name);

/**
 * Imports an experiment, TypeScript or JavaScript, and checks its fields.
 * @throws DownpourError DP_EXPERIMENT_UNKNOWN: no such file; DP_EXPERIMENT_INVALID: it throws, or a
 *   field is wrong.
 */
export async function loadExperiment(path: string): Promise<Experiment> {
  const file = resolve(path);
  if (!existsSync(file)) {
    throw new DownpourError(
      'DP_EXPERIMENT_UNKNOWN',
      `there is no experiment file ${file}: check the path`,
    );
  }
  experimentName(file);
  await readTypeScript();
  resolveOwnName();
  let module: { default?: unknown };
  try {
    // Links are followed here: Node follows each once, and a mounted config map changes by moving one.
    module = (await import(pathToFileURL(await realpath(file)).href)) as typeof module;
  } catch (cause) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the experiment ${file} cannot be loaded: ${errorText(cause)}`,
      { cause },
    );
  }
  let experiment = module.default;
  // A CommonJS module's default export arrives one level down.
  if (isRecord(experiment) && 'default' in experiment) experiment = experiment.default;
  return mustBeExperiment(experiment, file);
}

/** @throws DownpourError DP_EXPERIMENT_INVALID with a line for each wrong field. */
export function mustBeExperiment(value: unknown, where: string): Experiment {
  if (!isRecord(value)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${where} has no experiment as its default export: write export default defineExperiment({ … })`,
    );
  }
  const { name, ...fields } = value;
  const known = fields.objective === undefined ? FIELDS : { ...FIELDS, loss: NO_LOSS };
  const problems = fieldProblems(fields, known);
  for (const field of ['error', 'metrics', 'lossWeights', 'labelSmoothing', 'classWeights']) {
    if (fields.objective === undefined || fields[field] === undefined) continue;
    problems.push(`${field} is not allowed beside objective: return it from the objective`);
  }
  if (fields.objective === undefined && fields.carried !== undefined) {
    problems.push('carried needs an objective, which gets the tensors and returns the next ones');
  }
  if (name !== undefined) {
    problems.unshift('name is not a field: an experiment is named by its file; leave it out');
  }
  if (isRecord(value.pretrained)) {
    const found = fieldProblems(value.pretrained, PRETRAINED_FIELDS);
    problems.push(...found.map((problem) => `pretrained: ${problem}`));
    if (value.browser === true) {
      problems.push(
        'browser: true is not allowed beside pretrained: a page does not have its file',
      );
    }
  }
  for (const [table, given] of Object.entries(isRecord(value.tables) ? value.tables : {})) {
    const { pretrained } = given as { pretrained?: unknown };
    if (pretrained === undefined) continue;
    const where = `tables.${table}.pretrained`;
    const found = isRecord(pretrained)
      ? fieldProblems(pretrained, TABLE_VECTORS_FIELDS)
      : ['it must be an object with from, sha256 and words'];
    problems.push(...found.map((problem) => `${where}: ${problem}`));
    if (value.browser === true) {
      problems.push(`browser: true is not allowed beside ${where}: a page does not have its file`);
    }
  }
  if (isRecord(value.metrics)) {
    const count = Object.keys(value.metrics).length;
    if (count > METRICS_MAX)
      problems.push(`metrics has ${count} functions; at most ${METRICS_MAX} are allowed`);
    for (const metric of Object.keys(value.metrics)) {
      if (isMetricName(metric)) continue;
      problems.push(
        `metrics has the name ${JSON.stringify(metric.slice(0, 80))}; allowed: 1 to 64 characters without line breaks, and none of ${RESERVED.join(', ')}`,
      );
    }
  }
  if (problems.length > 0) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the experiment ${where} is not valid:\n${problems.map((p) => `  ${p}`).join('\n')}`,
    );
  }
  return withTables(withPretrained(value as unknown as Experiment, where), where);
}

/** Tables are a part of the configuration, which the server has. Files of vectors are the worker's. */
function withTables(experiment: Experiment, where: string): Experiment {
  const { tables: given, config } = experiment;
  if (!given) return experiment;
  const tables: Record<string, ExperimentTable> = {};
  const told: Record<string, GivenTable> = {};
  for (const [name, { pretrained, ...table }] of Object.entries(given)) {
    const from = pretrained && resolve(dirname(where), pretrained.from);
    told[name] = table;
    tables[name] = { ...table, ...(pretrained && { pretrained: { ...pretrained, from: from! } }) };
  }
  return { ...experiment, tables, config: { ...config, tables: told } };
}

/** Its file lies beside that of the experiment, and what is not trained is a group like any other. */
function withPretrained(experiment: Experiment, where: string): Experiment {
  const { pretrained, config } = experiment;
  if (!pretrained) return experiment;
  const from = resolve(dirname(where), pretrained.from);
  const named = { ...experiment, pretrained: { ...pretrained, from } };
  if (!pretrained.freeze) return named;
  const group = { pattern: [...pretrained.freeze], frozen: true as const };
  const groups = { ...config?.groups, [PRETRAINED_GROUP]: group };
  return { ...named, config: { ...config, groups } };
}

/**
 * The name of an experiment: its file's, without the ending.
 * @throws DownpourError DP_EXPERIMENT_INVALID: it cannot be a name.
 */
export function experimentName(path: string): string {
  const name = basename(path, extname(path));
  if (!new RegExp(NAME_PATTERN).test(name)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the file ${path} cannot name an experiment: '${name}' must match ${NAME_PATTERN}; rename it`,
    );
  }
  return name;
}

export interface FoundExperiment {
  /** Absolute. */
  readonly path: string;
  /** SHA-256 of it and of what it imports from its folder. */
  readonly hash: string;
}

const ENDINGS = ['.ts', '.mts', '.js', '.mjs'];

/**
 * All experiments of some folders (not of folders within), by name; of two with one name the first
 * folder's counts. Files that cannot be an experiment (bad name, no default export) are left out.
 */
export async function findExperiments(
  folders: readonly string[],
): Promise<Map<string, FoundExperiment>> {
  const found = new Map<string, FoundExperiment>();
  for (const folder of folders) {
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const ending = extname(entry.name);
      const name = basename(entry.name, ending);
      if (entry.isDirectory() || !ENDINGS.includes(ending) || entry.name.endsWith('.d.ts'))
        continue;
      if (found.has(name) || !new RegExp(NAME_PATTERN).test(name)) continue;
      const path = resolve(folder, entry.name);
      const source = await readFile(path, 'utf8').catch(() => '');
      if (!/\bexport\s+default\b|\bas\s+default\b|\bmodule\.exports\b/.test(source)) continue;
      found.set(name, { path, hash: await hashExperiment(path) });
    }
  }
  return found;
}

/** Specifiers of static imports, re-exports and dynamic imports with a plain text. */
const IMPORTS = /(?:\bfrom|\bimport)\s*\(?\s*(['"])(\.{1,2}\/[^'"\n]+)\1/g;

/**
 * SHA-256 over the experiment and, transitively, the files in its folder that it imports: their
 * paths relative to it and their contents, with line ends made alike, so that it is the same on
 * every machine. Downpour itself and packages do not count: they have releases.
 */
export async function hashExperiment(path: string): Promise<string> {
  const contents = await sourcesOf(path);
  const folder = dirname(await realpath(resolve(path)));
  const hash = createHash('sha256');
  const names = [...contents.keys()].map((file) => ({
    file,
    name: relative(folder, file).split(sep).join('/'),
  }));
  for (const { file, name } of names.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const source = contents.get(file)!;
    hash.update(`${name}\n${Buffer.byteLength(source)}\n`).update(source);
  }
  return hash.digest('hex');
}

/** What the hash is made of: the contents of each file, by its absolute path without links. */
export async function sourcesOf(path: string): Promise<Map<string, string>> {
  const root = await realpath(resolve(path));
  const folder = dirname(root);
  const contents = new Map<string, string>();
  const waiting = [root];
  for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
    if (contents.has(file)) continue;
    const source = (await readFile(file, 'utf8')).replaceAll('\r\n', '\n');
    contents.set(file, source);
    for (const [, , specifier] of source.matchAll(IMPORTS)) {
      const target = importedFile(resolve(dirname(file), specifier!));
      const inside =
        target?.startsWith(folder + sep) && !target.includes(`${sep}node_modules${sep}`);
      if (target && inside) waiting.push(target);
    }
  }
  return contents;
}

/** The file that a relative import means: as written, `.js` for a `.ts` file, or without ending. */
function importedFile(path: string): string | null {
  const candidates = [path, path.replace(/\.(m?)js$/, '.$1ts'), ...ENDINGS.map((e) => path + e)];
  return candidates.find((candidate) => extname(candidate) !== '' && existsSync(candidate)) ?? null;
}

let reads: Promise<void> | null = null;
/**
 * Lets this process import TypeScript. In a checkout it does so already, since Downpour itself is TypeScript. In the
 * built package only experiments need it, and all that is imported afterwards takes longer.
 */
function readTypeScript(): Promise<void> {
  if (!IS_BUILT) return Promise.resolve();
  reads ??= import('tsx/esm/api').then(({ register }) => void register());
  return reads;
}

let resolved = false;
/** What the package exports, by name. */
const OWN_NAMES: Readonly<Record<string, string>> = {
  downpour: ownModule('index', new URL('../library/index.ts', import.meta.url)).href,
  'downpour/images': ownModule('images', new URL('images.ts', import.meta.url)).href,
  'downpour/layers': ownModule('layers', new URL('layers.ts', import.meta.url)).href,
  'downpour/text': ownModule('text', new URL('text.ts', import.meta.url)).href,
};
/** Finds what a bundle has behind `FROM_DOWNPOUR`, for CommonJS. */
const ownRequire = createRequire(import.meta.url);

/**
 * Makes `import … from 'downpour'` work in experiments wherever they lie: with a global
 * installation no `node_modules` above them holds the package. Where no package.json says
 * `"type": "module"`, tsx compiles a file with `import` to CommonJS, which could not load this very
 * module while it loads: so such a file is said to be a module. Real CommonJS is told the name too.
 */
function resolveOwnName(): void {
  if (resolved) return;
  resolved = true;
  const hook = `
    import { readFileSync } from 'node:fs';
    const scheme = ${JSON.stringify(FROM_DOWNPOUR)};
    const parentURL = ${JSON.stringify(import.meta.url)};
    export async function resolve(name, context, next) {
      if (name.startsWith(scheme)) {
        return next(name.slice(scheme.length), { ...context, parentURL });
      }
      const found = await next(${JSON.stringify(OWN_NAMES)}[name] ?? name, context);
      const isOurs = found.format === 'commonjs' && found.url.startsWith('file:') &&
        !found.url.includes('/node_modules/');
      if (!isOurs) return found;
      // tsx marks CommonJS that is imported by a query of its own.
      const url = found.url.replace(/(\\?|%3F)tsx-commonjs-.*$/, '');
      const source = readFileSync(new URL(url), 'utf8');
      return /^\\s*(import|export)\\b/m.test(source) ? { ...found, url, format: 'module' } : found;
    }`;
  register(`data:text/javascript,${encodeURIComponent(hook)}`);
  const loader = Module as unknown as {
    _resolveFilename(request: string, ...rest: unknown[]): string;
  };
  const resolveFilename = loader._resolveFilename;
  loader._resolveFilename = function (request, ...rest) {
    if (request.startsWith(FROM_DOWNPOUR)) {
      return ownRequire.resolve(request.slice(FROM_DOWNPOUR.length));
    }
    const own = OWN_NAMES[request];
    return resolveFilename.call(this, own ? fileURLToPath(own) : request, ...rest);
  };
}

/** Where experiments are looked for: the folders given, then this package's examples. */
export function experimentFolders(folders: readonly string[]): string[] {
  const own = fileURLToPath(new URL('examples', ROOT));
  return [...folders.map((folder) => resolve(folder)), own];
}
