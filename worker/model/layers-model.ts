import { nearest } from '../../shared/spelling.ts';
import { isNoisy } from '../layers.ts';
import { drawNoise, type NoiseSource } from '../noise.ts';
import { adaptRecurrent } from '../recurrent/adapt.ts';
import { adaptEmbedding } from '../recurrent/looked-up.ts';
import { type RowLookup, RowsLayer } from '../rows/layer.ts';
import type { RowBinding } from '../rows/places.ts';
import {
  isLibraryClass,
  type Layer,
  type LayersModel,
  type Tensor,
  tf,
  type Variable,
} from '../tf.ts';
import { keepArgumentsApart } from './arguments.ts';
import { type DataShape, inputsOf, invalid, targetsOf } from './data-shape.ts';
import type { ModelPart, ModelWeight, OwnInstance } from './instance.ts';

/** A LayersModel of tfjs as training needs it: names that stay, noise from elsewhere, normalisation put right. */

type LayerWeight = Layer['weights'][number];

/** @param tensors where layers find rows of tables. */
export function layersInstance(
  model: LayersModel,
  data: DataShape,
  tensors: RowLookup | null,
): OwnInstance {
  mustTakeInputs(model, data);
  const outputNames = outputsOf(model, data);
  const { weights, part, foreign } = layersPart(model, tensors);
  return {
    weights,
    predict: (inputs, training, noise = drawNoise) => {
      const told = part.apply(inputs, training, noise) as Tensor | Tensor[];
      if (outputNames === null) return [told].flat()[0]!;
      return Object.fromEntries([told].flat().map((output, i) => [outputNames[i]!, output]));
    },
    penalties: () => model.calculateLosses(),
    layersModel: model,
    foreign,
  };
}

/**
 * @param tensors where layers find rows of tables. @param prefix before the names of its tensors.
 * @param counted how often it is applied in a step is counted.
 */
export function layersPart(
  model: LayersModel,
  tensors: RowLookup | null = null,
  prefix = '',
  counted = false,
): { readonly weights: ModelWeight[]; readonly part: ModelPart; readonly foreign: boolean } {
  let calls = 0;
  const weights: ModelWeight[] = [];
  const seen = new Set<LayerWeight>();
  const names = new Set<string>();
  const trainableWeights = new Set(model.trainableWeights);
  const source: { noise: NoiseSource } = { noise: drawNoise };
  const foreign = isForeign(model);
  keepArgumentsApart(model);
  for (const { layer, outer, path } of walkLayers(model)) {
    if (isLibraryClass(layer)) {
      adaptNoise(layer, source);
      adaptRecurrent(layer, source);
      adaptEmbedding(layer);
    }
    if (outer !== layer) adaptNoise(outer, source);
    if (layer instanceof RowsLayer) layer.tensors = tensors;
    const normalises = layer.getClassName() === 'BatchNormalization';
    if (normalises) adaptNormalisation(layer, path, trainableWeights);
    for (const weight of layer.weights) {
      if (seen.has(weight)) continue;
      seen.add(weight);
      if (weight.constraint != null) {
        throw invalid(
          `layer '${path}' has a weight constraint (${weight.constraint.getClassName()}); parameters are the server's: use maxNorm of the configuration, weightDecay or a regularizer`,
        );
      }
      const name = uniqueName(`${prefix}${path}/${weight.originalName.split('/').at(-1)}`, names);
      const variable = weight.read() as Variable;
      const spec = { name, shape: variable.shape, variable };
      const freeze = (frozen: boolean) => {
        if (frozen) frozenByGroup.add(layer);
        else frozenByGroup.delete(layer);
      };
      const { momentum } = layer as unknown as { momentum: number };
      if (trainableWeights.has(weight)) weights.push({ ...spec, role: 'trainable' });
      else if (normalises && isActive(layer)) {
        weights.push({
          ...spec,
          role: 'statistics',
          momentum,
          freeze,
          ...(counted ? { calls: () => calls } : {}),
        });
      } else weights.push({ ...spec, role: 'frozen' });
    }
  }
  const part: ModelPart = {
    apply(inputs, training, noise) {
      source.noise = noise;
      if (training) calls++;
      const isNamed = !(inputs instanceof tf.Tensor) && !Array.isArray(inputs);
      const given = isNamed
        ? model.inputNames.map((name) => (inputs as Record<string, Tensor>)[name]!)
        : inputs;
      return model.apply(given, { training }) as Tensor | Tensor[];
    },
    variables: () =>
      Object.fromEntries(
        weights.map(({ name, variable }) => [name.slice(prefix.length), variable]),
      ),
    layersModel: model,
    resetCalls() {
      calls = 0;
    },
  };
  return { weights, part, foreign };
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: the model's inputs are not those of the data. */
function mustTakeInputs(model: LayersModel, data: DataShape): void {
  const fields = inputsOf(data);
  const fits = (taken: readonly (number | null)[], shape: readonly number[]) =>
    taken.length === shape.length && taken.every((d, i) => d === null || d === shape[i]);
  if (fields.length === 0) {
    const { inputShape } = data;
    if (model.inputs.length !== 1) {
      throw invalid(
        `the model has ${model.inputs.length} inputs (${model.inputNames.join(', ')}) and the data have one: give inputs by name, inputs: { ${model.inputNames[0]}: { values, shape }, … }`,
      );
    }
    const taken = model.inputs[0]!.shape.slice(1);
    if (fits(taken, inputShape)) return;
    throw invalid(
      `the model takes inputs of shape [n,${taken}], but the data have [n,${inputShape}]: pass inputShape to the first layer`,
    );
  }
  const known = fields.map(({ name }) => name);
  const list = known.map((name) => `'${name}'`).join(', ');
  model.inputNames.forEach((name, i) => {
    const field = fields.find((each) => each.name === name);
    if (!field) {
      const near = nearest(name, known);
      throw invalid(
        `the model has an input '${name}', and the data have no such field; ${near ? `did you mean '${near}'?` : `they have ${list}`}: name each input by tf.input({ shape, name })`,
      );
    }
    const taken = model.inputs[i]!.shape.slice(1);
    if (fits(taken, field.shape)) return;
    throw invalid(
      `the model takes the input '${name}' of shape [n,${taken}], but the data have [n${field.shape.map((d) => `,${d}`).join('')}] in this field`,
    );
  });
  // A mask need not be looked at.
  const unused = fields.find(
    ({ name, role }) => role === 'input' && !model.inputNames.includes(name),
  );
  if (!unused) return;
  throw invalid(
    `the data have a field '${unused.name}', and no input of the model has this name (its inputs: ${model.inputNames.join(', ')}): add tf.input({ shape, name: '${unused.name}' }), or leave the field out of the data`,
  );
}

/** The names of the outputs in their order; null: the data have one target without a name. */
function outputsOf(model: LayersModel, data: DataShape): readonly string[] | null {
  const targets = targetsOf(data).map(({ name }) => name);
  const { outputNames } = model;
  if (targets.length === 0) {
    if (outputNames.length === 1) return null;
    throw invalid(
      `the model has ${outputNames.length} outputs (${outputNames.join(', ')}), and the data do not name their targets: give targets: { ${outputNames[0]}: { values, shape }, … }`,
    );
  }
  if (targets.length === 1 && outputNames.length === 1) return targets;
  const lonely =
    targets.find((name) => !outputNames.includes(name)) ??
    outputNames.find((name) => !targets.includes(name));
  if (lonely === undefined) return outputNames;
  throw invalid(
    `the model's outputs are ${outputNames.join(', ')}, and the targets of the data are ${targets.join(', ')}; '${lonely}' is not among both: give the last layer of each output the name of its target`,
  );
}

/** Whether the layer is of a class of the user's, has a `call` of the user's, or a state from step to step. */
function isForeign(layer: Layer): boolean {
  if (!isLibraryClass(layer) || Object.hasOwn(layer, 'call') || layer.stateful) return true;
  const { layers, layer: wrapped, forwardLayer, backwardLayer, cell, cells } = layer as Nested;
  const inner = [wrapped, forwardLayer, backwardLayer, cell, ...(layers ?? []), ...(cells ?? [])];
  return inner.some((each) => each !== undefined && isForeign(each));
}

/** Where layers keep other layers: models, wrappers, recurrent ones. */
type Nested = Layer &
  Partial<Record<'layer' | 'forwardLayer' | 'backwardLayer' | 'cell', Layer>> &
  Partial<Record<'layers' | 'cells', readonly Layer[]>>;

/** Takes the noise from elsewhere: cheaper, and one that a recorded step can be fed. */
function adaptNoise(layer: Layer, source: { noise: NoiseSource }): void {
  if (isNoisy(layer)) layer.noise = (request) => source.noise(request);
  const kind = layer.getClassName();
  const adapted = NOISES[kind]?.(layer, source);
  if (!adapted) return;
  layer.call = (inputs, kwargs) => {
    const x = Array.isArray(inputs) ? inputs[0]! : inputs;
    return kwargs.training === true ? adapted(x) : x;
  };
}

/** tfjs-layers' own, by class: what they do in training. */
const NOISES: Readonly<
  Record<string, (layer: Layer, source: { noise: NoiseSource }) => (x: Tensor) => Tensor>
> = {
  Dropout(layer, source) {
    const { rate, noiseShape, seed } = layer as unknown as {
      rate: number;
      noiseShape?: readonly (number | null)[];
      seed?: number;
    };
    return (x) => {
      if (!(rate > 0 && rate < 1)) return x;
      const shape = x.shape.map((size, i) => noiseShape?.[i] ?? size);
      return tf.mul(x, source.noise({ kind: 'dropout', shape, rate, seed }));
    };
  },
  GaussianNoise(layer, source) {
    const { stddev } = layer as unknown as { stddev: number };
    return (x) => tf.add(x, tf.mul(source.noise({ kind: 'normal', shape: x.shape }), stddev));
  },
};

/** Batch normalisation that takes part in training: it has trained weights of its own. */
function isActive(layer: Layer): boolean {
  return activeNormalisations.has(layer);
}
const activeNormalisations = new WeakSet<Layer>();

/**
 * A frozen normalisation must use its averages and leave them alone, also in training mode, where
 * tfjs would normalise by the minibatch and go on averaging.
 */
function adaptNormalisation(layer: Layer, path: string, trained: Set<LayerWeight>): void {
  const { center, scale, momentum } = layer as unknown as {
    center: boolean;
    scale: boolean;
    momentum: number;
  };
  if (layer.weights.some((weight) => trained.has(weight))) {
    if (!center || !scale) {
      throw invalid(
        `layer '${path}': batch normalisation without ${center ? 'scale' : 'center'} cannot be trained by TensorFlow.js 4.22 (it reads the missing weight): leave it on`,
      );
    }
    if (!(momentum >= 0 && momentum < 1)) {
      throw invalid(`layer '${path}' has momentum ${momentum}; allowed: from 0, below 1`);
    }
    activeNormalisations.add(layer);
    const call = layer.call.bind(layer);
    layer.call = (inputs, kwargs) =>
      call(inputs, frozenByGroup.has(layer) ? { ...kwargs, training: false } : kwargs);
    return;
  }
  const call = layer.call.bind(layer);
  layer.call = (inputs, kwargs) => call(inputs, { ...kwargs, training: false });
}
/** Those whose averages belong to a group that is frozen now. */
const frozenByGroup = new WeakSet<Layer>();

/**
 * The layers that hold weights, innermost first found, each with a stable path. tfjs numbers layers
 * over the life of the process (`dense_Dense7`); here they are numbered within their model
 * (`dense_1`), so that every worker and every rebuild has the same names.
 */
function* walkLayers(model: LayersModel, prefix = ''): Generator<Walked> {
  const given = new Set(model.layers.filter((l) => generatedKind(l) === null).map((l) => l.name));
  const counts = new Map<string, number>();
  for (const layer of model.layers) {
    let name = layer.name;
    const kind = generatedKind(layer);
    if (kind !== null) {
      do {
        const count = (counts.get(kind) ?? 0) + 1;
        counts.set(kind, count);
        name = `${kind}_${count}`;
      } while (given.has(name));
    }
    const path = prefix + name;
    if (layer instanceof tf.LayersModel) yield* walkLayers(layer, `${path}/`);
    else yield { layer: innermost(layer), outer: layer, path };
  }
}

interface Walked {
  readonly layer: Layer;
  /** The wrapper around it, or itself. */
  readonly outer: Layer;
  readonly path: string;
}

/** The layers on the model's way from input to output whose output is one tensor. */
export function observableLayers(model: LayersModel) {
  const paths = new Map([...walkLayers(model)].map(({ layer, path }) => [layer, path]));
  return model.layers.flatMap((layer) => {
    const kind = layer.getClassName();
    // A layer that is used twice has no single output.
    if (kind === 'InputLayer' || layer.inboundNodes.length !== 1) return [];
    const { output } = layer;
    if (Array.isArray(output)) return [];
    const { activation } = layer as unknown as { activation?: { getClassName?(): string } };
    const own = activation?.getClassName?.() ?? ACTIVATION_LAYERS[kind] ?? null;
    const path = paths.get(innermost(layer)) ?? layer.name;
    return [{ layer: path, kind, output, activation: own === 'linear' ? null : own }];
  });
}

/** Layers that are an activation and nothing else. */
const ACTIVATION_LAYERS: Readonly<Record<string, string>> = {
  ...{ ReLU: 'relu', LeakyReLU: 'leakyrelu', ELU: 'elu', PReLU: 'prelu', Softmax: 'softmax' },
  NoisyReLU: 'relu',
};

/** Wrappers that leave the one layer inside them as it is. */
const WRAPPERS = ['TimeDistributed', 'WeightNoise', 'AlongAxis'];

/** Inside wrappers with one layer, that layer. */
function innermost(layer: Layer): Layer {
  const wrapped = (layer as unknown as { layer?: Layer }).layer;
  return wrapped instanceof Object && WRAPPERS.includes(layer.getClassName())
    ? innermost(wrapped)
    : layer;
}

/** What a name that tfjs made up begins with (`dense` of `dense_Dense7`); null: the user's own. */
function generatedKind(layer: Layer): string | null {
  const type = layer.getClassName();
  if (layer instanceof tf.LayersModel) {
    const kind = type.toLowerCase();
    return new RegExp(`^${kind}_?\\d+$`).test(layer.name) ? kind : null;
  }
  const [, kind] = new RegExp(`^(.+)_${type}\\d+$`).exec(layer.name) ?? [];
  return kind ?? null;
}

/** Both directions of a bidirectional layer have a `kernel`. */
function uniqueName(name: string, names: Set<string>): string {
  let unique = name;
  for (let i = 2; names.has(unique); i++) unique = `${name}_${i}`;
  names.add(unique);
  return unique;
}

/** A layer of embeddings that is applied to an input of the model. */
export interface EmbeddingBinding {
  readonly layer: string;
  readonly field: string;
  /** Shape [ids, width]. */
  readonly variable: Variable;
}

/** The embeddings of ids that are a field of the data. @param fields as for `rowBindings`. */
export function embeddingBindings(
  model: LayersModel,
  fields: readonly string[],
): readonly EmbeddingBinding[] {
  return [...walkLayers(model)].flatMap(({ layer, path }) => {
    if (layer.getClassName() !== 'Embedding' || layer.weights.length === 0) return [];
    const variable = layer.weights[0]!.read() as Variable;
    return layer.inboundNodes.flatMap(({ inputTensors }): EmbeddingBinding[] => {
      const source = inputTensors[0]!.sourceLayer as Layer;
      if (source.getClassName() !== 'InputLayer') return [];
      const field = fields.length === 0 ? 'inputs' : source.name;
      return fields.length === 0 || fields.includes(field)
        ? [{ layer: path, field, variable }]
        : [];
    });
  });
}

/**
 * The fields whose ids layers look up rows by. @param fields of the data; empty: there is one input, `inputs`.
 * @throws DownpourError DP_EXPERIMENT_INVALID: the ids are no field of the data.
 */
export function rowBindings(model: LayersModel, fields: readonly string[]): readonly RowBinding[] {
  return [...walkLayers(model)].flatMap(({ layer, path }) => {
    if (!(layer instanceof RowsLayer)) return [];
    const { table, maskZero, field } = layer;
    return layer.inboundNodes.map(({ inputTensors }): RowBinding => {
      const source = inputTensors[0]!.sourceLayer as Layer;
      if (field === null && source.getClassName() !== 'InputLayer') {
        throw invalid(
          `layer '${path}' looks up rows of table '${table}' by what layer '${source.name}' gives: ids must be an input of the model, an Int32Array field of the data`,
        );
      }
      if (fields.length === 0) return { table, field: 'inputs', maskZero };
      const name = field ?? source.name;
      if (fields.includes(name)) return { table, field: name, maskZero };
      const near = nearest(name, fields);
      throw invalid(
        `layer '${path}' looks up rows of table '${table}' by the field '${name}', which the data do not have; ${near ? `did you mean '${near}'?` : `they have ${fields.join(', ')}`}: write layers.rows({ table: '${table}', field: … })`,
      );
    });
  });
}
