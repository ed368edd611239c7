import type { RunConfig } from '../shared/config.ts';
import { frozenAt, groupsOf, layoutWhile, type ParameterGroups } from '../shared/groups.ts';
import { createLayout, type Layout, layoutSpecs, type TensorSpec } from '../shared/layout.ts';
import type { ErrorMeasure } from '../shared/protocol.ts';
import { rowShapes, trainsRows } from '../shared/tables.ts';
import { type ChangeOptions, changed, isForEvaluations, shapeAfter } from './batch.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { collect } from './data/stored.ts';
import type { Experiment } from './experiment.ts';
import { isRecord } from './fields.ts';
import { canRecord, Graphs } from './graph.ts';
import { mustBeIds } from './ids.ts';
import { errorMeasureOf } from './losses.ts';
import { measuresOf } from './measures.ts';
import { buildInstance, checkNumbers, type LoadedLater, spreadRows } from './model/build.ts';
import {
  type DataShape,
  dataShape,
  invalid,
  type ModelData,
  targetsOf,
} from './model/data-shape.ts';
import { type Goal, goalOfMeasures, goalOfObjective } from './model/goal.ts';
import { disposeInstance, type Instance, placeWeights } from './model/instance.ts';
import {
  type EmbeddingBinding,
  embeddingBindings,
  observableLayers,
  rowBindings,
} from './model/layers-model.ts';
import { LoadedParameters } from './model/loaded.ts';
import { ModelSteps, type Step } from './model/steps.ts';
import { asRows, countOf, fieldTensors, namedTensors, read, tensorsOf } from './model/tensors.ts';
import { drawNoise, withSeed } from './noise.ts';
import { type ObjectiveTrial, tryObjective } from './objective.ts';
import type { PretrainedMatch } from './pretrained/pretrained.ts';
import { mustBeKeys } from './rows/keys-in-data.ts';
import { type ModelRows, RowsOnDevice } from './rows/model-rows.ts';
import type { PlacedMinibatch } from './rows/places.ts';
import { type LayersModel, type Tensor, tf } from './tf.ts';
import { classWeightsOf } from './weighted-classes.ts';

/**
 * The user's model as the rest of the worker sees it: flat vectors in, flat vectors out. Tensors do
 * not leave this file and its folder.
 */

/** Means over the examples of one minibatch. */
export interface MinibatchMeasures {
  readonly loss: number;
  readonly error: number;
  readonly metrics: Readonly<Record<string, number>>;
  /** What metrics over a part need, in the order of `Model.partMetrics`: shape [n, width] each, the caller's. */
  readonly each: readonly Float32Array[];
}

/** n examples' values, row-major: shape[0] is n. */
export interface Output {
  readonly values: Float32Array;
  readonly shape: readonly number[];
}

export interface NamedOutput extends Output {
  /** Name of its target; '': there is one output, without a name. */
  readonly name: string;
}

export interface LayerOutput extends Output {
  /** The layer's path, as tensors have it. */
  readonly layer: string;
  /** Class of the layer: `Dense`. */
  readonly kind: string;
  /** `relu`, `tanh`, …; null: linear, or none of its own. */
  readonly activation: string | null;
}

/** An embedding that looks up vectors by the ids of a field. */
export interface ModelEmbedding extends Pick<EmbeddingBinding, 'layer' | 'field'> {
  /** Shape [ids, width]. */
  readonly values: Float32Array;
  readonly width: number;
}

export interface Model {
  /** With the groups that are frozen now. */
  readonly layout: Layout;
  /** The tensors with the roles that the model gives them. */
  readonly specs: readonly TensorSpec[];
  /**
   * Other groups are frozen from now on: the layout changes, and what was loaded is gone.
   * @param groups by name. @returns whether it changed.
   */
  freeze(groups: readonly string[]): boolean;
  /** What `measure` has as the error. */
  readonly errorMeasure: ErrorMeasure;
  /** How much an example of each class counts in the loss, by target; `targets` is the name of the one without. */
  readonly classWeights: Readonly<Record<string, readonly number[]>>;
  /** Which initial parameters come from the file of `pretrained`; null: none. */
  readonly pretrained: PretrainedMatch | null;
  /** The layers of that file, for the facts of a run; null: there are none, or they are too long. */
  readonly architecture: string | null;
  /**
   * Fresh parameters, shape [layout.size]: the same for the same seed, on every machine whose
   * logarithm and square root agree. The model holds them afterwards.
   */
  initialise(seed: number): Promise<Float32Array>;
  /**
   * Takes parameters; they are put on the device when something is computed there that is no recorded step.
   * @param parameters shape [layout.exchangedSize] or [layout.size]. Not to be written to by anybody
   *   before the next `load` or `dispose` returns: until then a tensor may use this very memory.
   * @param step updates applied to them, which an objective may ask for.
   * @param carried in the place of the carried tensors that come with the parameters, shape [carriedSize]; as untouchable.
   */
  load(parameters: Float32Array, step?: number, carried?: Float32Array | null): void;
  /** Elements of the tensors that are carried from minibatch to minibatch, the last of `exchangedSize`. */
  readonly carriedSize: number;
  /** What was loaded last, and the step that was said of it. */
  readonly loaded: Float32Array | null;
  readonly loadedStep: number;
  /**
   * One gradient at the parameters loaded.
   * @param minibatch borrowed until the promise resolves. @param seed of dropout and other noise.
   */
  step(minibatch: Minibatch, seed: number): Promise<Step>;
  /**
   * Loss, error and metrics at the parameters loaded, training mode off.
   * @param seed of random numbers that an experiment draws in evaluations: the same for the same examples.
   */
  measure(minibatch: Minibatch, seed?: number): Promise<MinibatchMeasures>;
  /** Metrics that need all examples of a part. */
  readonly partMetrics: Goal['ofParts'];
  /** An objective returns the gradients: they need not be those of the loss. */
  readonly givesGradients: boolean;
  /** Losses of regularised layers at the parameters loaded: what a step's gradient has beside its loss. */
  penalty(): Promise<number>;
  /**
   * A training minibatch as a step sees it: after `batch` of the experiment.
   * @param seed as for `step`.
   */
  seen(minibatch: Minibatch, seed: number): Promise<Minibatch>;
  /** Whether it has predictions: an objective over several models has none. */
  readonly predicts: boolean;
  /** Training mode off. Of several outputs, those of each example stand behind each other. */
  predict(minibatch: Minibatch): Promise<Output>;
  /** The same, each output by itself, in the order of the data's targets. */
  outputs(minibatch: Minibatch): Promise<readonly NamedOutput[]>;
  /** What each layer gives, training mode off; empty for a function of variables. */
  activations(minibatch: Minibatch): Promise<readonly LayerOutput[]>;
  /** Its tables; absent: it has none. */
  readonly rows?: ModelRows | undefined;
  /** Its embeddings of ids, with the parameters loaded. */
  embeddings(): readonly ModelEmbedding[];
  /** Whether steps may become a recorded graph. */
  readonly records: boolean;
  /** How steps are computed: `graph`, or `operations`, possibly with why. */
  readonly execution: string;
  /** Why steps with code of others are not recorded, as far as is known; null: they are, or were not tried. */
  readonly refusal: string | null;
  /** It has a topology, or each of its models has one: none is a function of variables. */
  readonly hasTopology: boolean;
  /** What `tf.loadLayersModel` reads, with the parameters loaded, by the names of models; '': there is one. Null: it has none. */
  topologies(): Promise<Readonly<Record<string, Record<string, unknown>>> | null>;
  dispose(): void;
}

export interface ModelOptions {
  /** Steps may run as a recorded graph where the engine can. Default true. */
  readonly record?: boolean;
  /** All parameters are loaded from a checkpoint before the model is used. Default: it begins with its own. */
  readonly later?: LoadedLater;
}

/**
 * Builds the experiment's model for some data. An engine must be open.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the model cannot be built, or fits neither the data
 *   nor what the server can do; DP_LAYOUT_INVALID.
 */
export async function buildModel(
  experiment: Experiment,
  config: Pick<RunConfig, 'seed' | 'hyperparameters' | 'groups'> & Partial<RunConfig>,
  prepared: ModelData | PreparedData,
  { record = true, later }: ModelOptions = {},
): Promise<Model> {
  const given = dataShape(prepared);
  const { hyperparameters } = config;
  const changes = experiment.batch ? { batch: experiment.batch, hyperparameters } : null;
  const data =
    changes && isForEvaluations(changes.batch) ? await shapeAfter(given, changes) : given;
  const shapes = rowShapes(config);
  const rows = shapes.length > 0 ? new RowsOnDevice(shapes) : null;
  const build = (seed: number) => buildInstance(experiment, config, data, seed, later, rows);
  const instance = await build(config.seed);
  try {
    rows?.bind(bindingsOf(instance, data, rowBindings));
    const specs = layoutSpecs(createLayout(instance.weights.map(specOf)));
    const groups = groupsOf(config);
    const frozen = frozenAt(groups, 0);
    const layout = layoutWhile(specs, groups, frozen, trainsRows(config));
    const { objective } = experiment;
    // Without examples nothing is measured, so that no class counts.
    const hasExamples = 'transform' in prepared && prepared.train.count > 0;
    const weights = hasExamples ? classWeightsOf(experiment, prepared, data) : {};
    const measures = objective
      ? null
      : await measuresOf(experiment, config, data, instance.outputShape, weights);
    let trial: ObjectiveTrial = { hasError: false, givesGradients: false };
    const call = { objective: objective!, hyperparameters, instance };
    if (objective && !hasExamples) trial = tryObjective(call, data, () => null);
    if (hasExamples) {
      const examples = spreadRows(prepared.train.count);
      const sample = await collect(prepared, 'train', examples);
      if (instance.layersModel) mustBeIds(instance.layersModel, prepared);
      // A function of the experiment may make ids of what the data have.
      if (rows && !changes) mustBeKeys(rows.bindings, rows.shapes, prepared);
      // What training would stop at is told before it begins.
      const trained = changes
        ? await changed(sample, given, data, { ...changes, training: true, seed: 0 })
        : sample;
      const seen = isForEvaluations(changes?.batch)
        ? await changed(sample, given, data, { ...changes!, training: false, seed: 0 })
        : sample;
      const placed = (minibatch: Minibatch) => rows?.tryOut(minibatch) ?? minibatch;
      if (objective) trial = tryObjective(call, data, () => fieldTensors(placed(trained), data));
      else await checkNumbers(instance, placed(seen), examples, data);
    }
    if (rows && trial.givesGradients) {
      throw invalid(
        `objective() returns gradients, and the experiment has tables (${shapes.map(({ name }) => name).join(', ')}): rows have the gradient of the loss alone; return no gradients, or use no tables`,
      );
    }
    const losses = isRecord(experiment.loss) ? Object.values(experiment.loss) : [experiment.loss];
    const isForeign = instance.foreign || losses.some((loss) => typeof loss === 'function');
    // What older experiments compute keeps its last bits.
    const isTried = experiment.record ?? (objective !== undefined || !isForeign);
    const errorMeasure = objective ? (trial.hasError ? 'own' : 'loss') : errorMeasureOf(experiment);
    const goal = measures
      ? goalOfMeasures(measures, data)
      : goalOfObjective({ objective: objective!, hyperparameters }, trial.givesGradients);
    return new BuiltModel({
      ...{ layout, specs, groups, frozen, rows, trainsRows: trainsRows(config) },
      instance,
      build,
      changes,
      given,
      data,
      goal,
      hasOthers: objective !== undefined || isForeign,
      errorMeasure,
      classWeights: weights,
      record: record && isTried,
    });
  } catch (cause) {
    disposeInstance(instance);
    throw cause;
  }
}

/** What layers look up by ids, in all models of an experiment. @param of one model: `rowBindings`, `embeddingBindings`. */
function bindingsOf<T>(
  { layersModel, models }: Instance,
  data: DataShape,
  of: (model: LayersModel, fields: readonly string[]) => readonly T[],
): readonly T[] {
  const all = models ? Object.values(models).map((part) => part.layersModel) : [layersModel];
  const fields = data.fields.map(({ name }) => name);
  return all.flatMap((model) => (model ? of(model, fields) : []));
}

const specOf = ({ name, shape, role, momentum }: TensorSpec): TensorSpec =>
  momentum === undefined ? { name, shape, role } : { name, shape, role, momentum };

interface BuiltModelOptions {
  readonly layout: Layout;
  readonly specs: readonly TensorSpec[];
  readonly groups: ParameterGroups | null;
  readonly frozen: readonly string[];
  /** See `layoutWhile`. */
  readonly trainsRows: boolean;
  readonly rows: RowsOnDevice | null;
  readonly instance: Instance;
  /** The same model with the initial parameters of another seed. */
  readonly build: (seed: number) => Promise<Instance>;
  /** What is done to minibatches before the model sees them; null: nothing. */
  readonly changes: Omit<ChangeOptions, 'training' | 'seed'> | null;
  /** The data's shapes before that, and after it. */
  readonly given: DataShape;
  readonly data: DataShape;
  readonly goal: Goal;
  /** Code of others takes part in a step: an objective, a layer, a loss, a function of variables. */
  readonly hasOthers: boolean;
  readonly errorMeasure: ErrorMeasure;
  readonly classWeights: Model['classWeights'];
  /** Whether steps are tried as a graph. */
  readonly record: boolean;
}

class BuiltModel implements Model {
  readonly specs: readonly TensorSpec[];
  readonly #groups: ParameterGroups | null;
  #frozen: readonly string[];
  readonly #trainsRows: boolean;
  readonly #rows: RowsOnDevice | null;
  /** The training minibatch that was placed last. */
  #placed: {
    readonly minibatch: Minibatch;
    readonly seed: number;
    readonly placed: PlacedMinibatch;
  } | null = null;
  #layout: Layout;
  readonly errorMeasure: ErrorMeasure;
  readonly classWeights: Model['classWeights'];
  readonly #build: (seed: number) => Promise<Instance>;
  readonly #changes: BuiltModelOptions['changes'];
  readonly #given: DataShape;
  readonly #data: DataShape;
  readonly #goal: Goal;
  readonly #hasOthers: boolean;
  readonly #records: boolean;
  #graphs!: Graphs | null;
  #parameters!: LoadedParameters;
  #steps!: ModelSteps;
  #instance: Instance;

  constructor(options: BuiltModelOptions) {
    const { layout, specs, groups, frozen, instance, data, goal, record } = options;
    this.#layout = layout;
    this.specs = specs;
    this.#groups = groups;
    this.#frozen = frozen;
    this.#trainsRows = options.trainsRows;
    this.#rows = options.rows;
    this.errorMeasure = options.errorMeasure;
    this.classWeights = options.classWeights;
    this.#build = options.build;
    this.#instance = instance;
    this.#changes = options.changes;
    this.#given = options.given;
    this.#data = data;
    this.#goal = goal;
    this.#hasOthers = options.hasOthers;
    this.#records = record && canRecord();
    this.#place();
  }

  /** Makes all that depends on the layout. */
  #place(): void {
    const [layout, data, goal, groups] = [this.#layout, this.#data, this.#goal, this.#groups];
    const ends = layout.tensors
      .filter(({ role }) => role !== 'frozen')
      .map(({ offset, size }) => offset + size);
    const graphs = this.#records ? new Graphs(this.#hasOthers ? { ends } : null) : null;
    const weights = placeWeights(layout, this.#instance.weights);
    const parameters = new LoadedParameters(layout, weights);
    this.#graphs = graphs;
    this.#parameters = parameters;
    const rows = this.#rows;
    this.#steps = new ModelSteps({ layout, data, parameters, goal, graphs, groups, rows });
  }

  get layout(): Layout {
    return this.#layout;
  }

  freeze(frozen: readonly string[]): boolean {
    if (String(frozen) === String(this.#frozen)) return false;
    this.#steps.dispose();
    this.#parameters.dispose();
    this.#frozen = frozen;
    this.#layout = layoutWhile(this.specs, this.#groups, frozen, this.#trainsRows);
    this.#place();
    return true;
  }

  get loaded(): Float32Array | null {
    return this.#parameters.values;
  }

  get pretrained(): PretrainedMatch | null {
    return this.#instance.match;
  }

  get architecture(): string | null {
    return this.#instance.architecture;
  }

  get partMetrics(): Goal['ofParts'] {
    return this.#goal.ofParts;
  }

  get givesGradients(): boolean {
    return this.#goal.givesGradients;
  }

  get refusal(): string | null {
    return this.#hasOthers ? (this.#graphs?.refusal ?? null) : null;
  }

  get carriedSize(): number {
    return this.#parameters.carriedSize;
  }

  get loadedStep(): number {
    return this.#parameters.step;
  }

  get records(): boolean {
    return this.#graphs !== null;
  }

  get execution(): string {
    if (this.#graphs) return this.#graphs.execution;
    return this.#hasOthers ? 'operations: it has code of others' : 'operations';
  }

  get predicts(): boolean {
    const { models } = this.#instance;
    return models === undefined || models[''] !== undefined;
  }

  async initialise(seed: number): Promise<Float32Array> {
    disposeInstance(this.#instance);
    this.#instance = await this.#build(seed);
    return this.#parameters.replace(placeWeights(this.layout, this.#instance.weights));
  }

  load(parameters: Float32Array, step?: number, carried?: Float32Array | null): void {
    this.#parameters.load(parameters, step, carried);
  }

  get rows(): ModelRows | undefined {
    const rows = this.#rows;
    if (!rows) return undefined;
    return {
      shapes: rows.shapes,
      bindings: rows.bindings,
      keysOf: async (minibatch, seed) => (await this.#placedOf(rows, minibatch, seed)).keys,
      load: (loaded) => rows.load(loaded),
      from: (source) => rows.from(source),
    };
  }

  embeddings(): readonly ModelEmbedding[] {
    const bindings = bindingsOf(this.#instance, this.#data, embeddingBindings);
    return bindings.flatMap(({ layer, field, variable }) => {
      const weight = this.#parameters.weights.find((own) => own.variable === variable);
      const values = weight ? this.#parameters.valuesOf(weight) : null;
      return values ? [{ layer, field, values, width: variable.shape[1]! }] : [];
    });
  }

  async step(minibatch: Minibatch, seed: number): Promise<Step> {
    const rows = this.#rows;
    const seen = rows
      ? await rows.take(await this.#placedOf(rows, minibatch, seed))
      : await this.seen(minibatch, seed);
    return this.#steps.step(this.#instance, seen, seed);
  }

  /** A training minibatch as a step has it. Its rows are asked for while another one is trained on. */
  async #placedOf(rows: RowsOnDevice, minibatch: Minibatch, seed: number) {
    const known = this.#placed;
    if (known?.minibatch === minibatch && known.seed === seed) return known.placed;
    const placed = rows.place(await this.seen(minibatch, seed));
    this.#placed = { minibatch, seed, placed };
    return placed;
  }

  async seen(minibatch: Minibatch, seed: number): Promise<Minibatch> {
    return this.#changes ? this.#change(minibatch, true, seed) : minibatch;
  }

  async measure(given: Minibatch, seed = 0): Promise<MinibatchMeasures> {
    const minibatch = await this.#evaluated(given, seed);
    this.#parameters.upload();
    let names: readonly string[] = [];
    const flat = withSeed(seed, () =>
      tf.tidy(() => {
        const fields = fieldTensors(minibatch, this.#data);
        const [instance, { step }] = [this.#instance, this.#parameters];
        const measured = this.#goal.measure({ instance, fields, noise: drawNoise, step });
        names = measured.means.map(([name]) => name);
        const all = [...measured.means.map(([, value]) => value), ...measured.each];
        return tf.concat(all.map((value) => tf.reshape(tf.cast(value, 'float32'), [-1])));
      }),
    );
    const values = await read(flat);
    const named = names.slice(2).map((name, i) => [name, values[i + 2]!]);
    const count = countOf(minibatch, this.#data);
    let at = names.length;
    const each = this.partMetrics.map(({ width }) => {
      const start = at;
      at += width * count;
      return values.slice(start, at);
    });
    return { loss: values[0]!, error: values[1]!, metrics: Object.fromEntries(named), each };
  }

  async penalty(): Promise<number> {
    this.#parameters.upload();
    const total = tf.tidy(() => {
      const penalties = this.#instance.penalties();
      if (penalties.length === 0) return tf.scalar(0);
      return tf.addN(penalties.map((p) => tf.reshape(p, [])));
    });
    return (await read(total))[0]!;
  }

  /** A minibatch as evaluations see it. */
  async #evaluated(minibatch: Minibatch, seed = 0): Promise<Minibatch> {
    const seen = isForEvaluations(this.#changes?.batch)
      ? await this.#change(minibatch, false, seed)
      : minibatch;
    const rows = this.#rows;
    return rows ? rows.take(rows.place(seen)) : seen;
  }

  #change(minibatch: Minibatch, training: boolean, seed: number): Promise<Minibatch> {
    return changed(minibatch, this.#given, this.#data, { ...this.#changes!, training, seed });
  }

  async predict(given: Minibatch): Promise<Output> {
    const minibatch = await this.#evaluated(given);
    this.#parameters.upload();
    const output = tf.tidy(() => {
      const { inputs } = tensorsOf(minibatch, this.#data);
      return asRows(this.#instance.predict(inputs, false), countOf(minibatch, this.#data));
    });
    const { shape } = output;
    return { values: (await read(output)).slice(), shape };
  }

  async outputs(given: Minibatch): Promise<readonly NamedOutput[]> {
    const minibatch = await this.#evaluated(given);
    this.#parameters.upload();
    const names = targetsOf(this.#data).map(({ name }) => name);
    const outputs = tf.tidy(() => {
      const { inputs } = tensorsOf(minibatch, this.#data);
      return namedTensors(this.#instance.predict(inputs, false), names);
    });
    const told: NamedOutput[] = [];
    for (const [name, output] of Object.entries(outputs)) {
      const { shape } = output;
      told.push({ name, shape, values: (await read(output)).slice() });
    }
    return told;
  }

  async activations(given: Minibatch): Promise<readonly LayerOutput[]> {
    const { layersModel } = this.#instance;
    if (!layersModel) return [];
    const minibatch = await this.#evaluated(given);
    this.#parameters.upload();
    const layers = observableLayers(layersModel);
    const outputs = tf.tidy(() => {
      const probe = tf.model({
        inputs: layersModel.inputs,
        outputs: layers.map(({ output }) => output),
      });
      const { inputs } = tensorsOf(minibatch, this.#data);
      const given =
        inputs instanceof tf.Tensor ? inputs : layersModel.inputNames.map((name) => inputs[name]!);
      return [probe.apply(given, { training: false })].flat() as Tensor[];
    });
    const results: LayerOutput[] = [];
    for (const [i, { layer, kind, activation }] of layers.entries()) {
      const { shape } = outputs[i]!;
      const values = (await read(outputs[i]!)).slice();
      results.push({ layer, kind, activation, values, shape });
    }
    return results;
  }

  get hasTopology(): boolean {
    return this.#layersModels() !== null;
  }

  /** All models by name; null: one of them is a function of variables. */
  #layersModels(): Readonly<Record<string, LayersModel>> | null {
    const { layersModel, models } = this.#instance;
    if (layersModel) return { '': layersModel };
    const parts = Object.entries(models ?? {});
    const all = parts.flatMap(([name, part]) => {
      return part.layersModel ? [[name, part.layersModel] as const] : [];
    });
    return all.length > 0 && all.length === parts.length ? Object.fromEntries(all) : null;
  }

  async topologies(): Promise<Readonly<Record<string, Record<string, unknown>>> | null> {
    this.#parameters.upload();
    const all = this.#layersModels();
    if (!all) return null;
    const topologies: Record<string, Record<string, unknown>> = {};
    for (const [name, model] of Object.entries(all)) {
      await model.save(
        tf.io.withSaveHandler(async (artifacts) => {
          topologies[name] = artifacts as unknown as Record<string, unknown>;
          return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
        }),
      );
    }
    return topologies;
  }

  dispose(): void {
    disposeInstance(this.#instance);
    this.#steps.dispose();
    this.#parameters.dispose();
    this.#rows?.dispose();
  }
}
