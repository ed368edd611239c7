import { DownpourError, errorText } from '../../shared/errors.ts';
import { matchesPattern } from '../../shared/name-pattern.ts';
import { nearest } from '../../shared/spelling.ts';
import { type FieldRules, isRecord } from '../fields.ts';
// Keras's GRU becomes a layer of ours, which is found by its name.
import '../reset-after-gru.ts';
import { type LayersModel, tf, type Variable } from '../tf.ts';

/** `pretrained` of an experiment: initial parameters from a file, and its architecture for `model()`. */

export interface Pretrained {
  /** `model.json` of a tfjs layers model, or a safetensors file; relative to the file of the experiment. */
  readonly from: string;
  /** The hash of the files: that of a model.json covers it and then its weight files. The error for a wrong one says the right one. */
  readonly sha256: string;
  /** Names of the model, and under which name each is in the file: tensors, or layers with all of their tensors. */
  readonly map?: Readonly<Record<string, string>>;
  /** Patterns of names of tensors that are not trained: the group `pretrained` of the configuration. */
  readonly freeze?: readonly string[];
  /** Only the architecture is used, with fresh parameters. Default false. */
  readonly fresh?: boolean;
  /** The last layer of a model.json that is used; default: all layers are. */
  readonly until?: string;
  /** The shape of one example, in the place of that in a model.json: photographs of another size for convolutions. */
  readonly inputShape?: readonly number[];
}

/** A tensor of a file. */
export interface PretrainedTensor {
  readonly shape: readonly number[];
  /** Row-major. */
  readonly values: Float32Array;
}

export interface PretrainedFile {
  /** What `tf.loadLayersModel` reads; null: the file has tensors alone. */
  readonly topology: Record<string, unknown> | null;
  readonly tensors: ReadonlyMap<string, PretrainedTensor>;
}

/** The name of the group that `freeze` makes. */
export const PRETRAINED_GROUP = 'pretrained';

const isText = (value: unknown) => typeof value === 'string' && value !== '';

/** What a user writes. */
export const PRETRAINED_FIELDS: FieldRules<keyof Pretrained> = {
  from: {
    allowed: 'the path of a file that ends in .json or .safetensors, on this machine',
    test: (v) =>
      isText(v) && /\.(json|safetensors)$/.test(v as string) && !/^\w+:\/\//.test(v as string),
  },
  sha256: {
    allowed: "the hash of the files as text; '' gives an error that says it",
    test: (v) => typeof v === 'string',
  },
  map: {
    allowed: 'an object: names of the model, each with the name that the file has',
    test: (v) => v === undefined || (isRecord(v) && Object.values(v).every(isText)),
  },
  freeze: {
    allowed: 'a list of patterns of names of tensors',
    test: (v) => v === undefined || (Array.isArray(v) && v.length > 0 && v.every(isText)),
  },
  fresh: { allowed: 'true or false', test: (v) => v === undefined || typeof v === 'boolean' },
  until: {
    allowed: 'the name of a layer of the file',
    test: (v) => v === undefined || isText(v),
  },
  inputShape: {
    allowed: 'a list of whole numbers above 0: [96, 96, 3]',
    test: (v) =>
      v === undefined ||
      (Array.isArray(v) && v.length > 0 && v.every((d) => Number.isSafeInteger(d) && d > 0)),
  },
};

/** The model of a file for `model()`. */
export interface LoadedPretrained {
  readonly model: LayersModel;
  /** The name in the file of each variable that has its values from there. */
  readonly names: ReadonlyMap<Variable, string>;
}

/** How the parameters of a file go into its layers. */
export interface LoadOptions {
  /** They do not. */
  readonly fresh: boolean;
  /** Those that do not fit stay fresh: the file's are for an input of another shape. */
  readonly mayDiffer: boolean;
}

/**
 * Builds the model of a file, with its parameters or with fresh ones.
 * @param where the file, for errors.
 * @throws DownpourError DP_EXPERIMENT_INVALID: tfjs cannot build it; DP_DATA_CORRUPT: its weights are not those of its layers.
 */
export async function loadPretrained(
  { topology, tensors }: PretrainedFile,
  where: string,
  { fresh, mayDiffer }: LoadOptions,
): Promise<LoadedPretrained | null> {
  if (topology === null) return null;
  mustKnowLayers(topology, where);
  let model: LayersModel;
  try {
    model = await tf.loadLayersModel({ load: async () => ({ modelTopology: topology }) });
  } catch (cause) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `tfjs cannot build the model of ${where}: ${errorText(cause)}; it may have layers that tfjs does not have`,
      { cause },
    );
  }
  const names = new Map<Variable, string>();
  if (fresh) return { model, names };
  for (const weight of model.weights) {
    const [name, tensor] = stored(weight.originalName, tensors) ?? [weight.originalName, null];
    if (String(tensor?.shape) !== String(weight.shape)) {
      if (tensor && mayDiffer) continue;
      const seen = tensor ? `of shape [${tensor.shape}]` : 'not at all';
      model.dispose();
      throw new DownpourError(
        'DP_DATA_CORRUPT',
        `the layers of ${where} have the tensor '${name}' of shape [${weight.shape}], and its weights have it ${seen}: its model.json and its weights do not belong together`,
      );
    }
    const variable = weight.read() as Variable;
    assign(variable, tensor!);
    names.set(variable, name);
  }
  return { model, names };
}

/**
 * @throws DownpourError DP_EXPERIMENT_INVALID: a layer is of a class that nobody has registered. Its own error would not
 *   say which layer it is.
 */
function mustKnowLayers(topology: Record<string, unknown>, where: string): void {
  const known = tf.serialization.SerializationMap.getMap().classNameMap;
  const { config } = topology as { config: unknown };
  const layers = (Array.isArray(config) ? config : (config as { layers?: unknown }).layers) as {
    readonly class_name?: unknown;
    readonly name?: string;
    readonly config?: Record<string, unknown>;
  }[];
  for (const [i, layer] of layers.entries()) {
    const kind = String(layer.class_name);
    if (isRecord(layer.config) && Array.isArray(layer.config.layers)) {
      mustKnowLayers(layer as Record<string, unknown>, where);
    }
    if (Object.hasOwn(known, kind)) continue;
    const nameOf = (at: number) => String(layers[at]?.name ?? layers[at]?.config?.name);
    const before =
      i > 1 ? `pretrained.until: '${nameOf(i - 1)}' takes the layers before it alone; or ` : '';
    throw invalid(
      `layer '${nameOf(i)}' of ${where} is of the class ${kind.slice(0, 80)}, which TensorFlow.js does not have: ${before}write the class in the experiment's file and call tf.serialization.registerClass with it`,
    );
  }
}

/**
 * Keras 3 has the name of the model before the names of its layers, and since TensorFlow 2.2 that of the cell of a recurrent
 * layer stands between the layer and its weight: `gru/gru_cell/kernel` is `gru/kernel` here. The `depthwise_kernel` of a
 * depthwise convolution is a `kernel` in Keras 3.
 */
function stored(
  name: string,
  tensors: PretrainedFile['tensors'],
): [string, PretrainedTensor] | null {
  const own = tensors.get(name);
  if (own) return [name, own];
  const isSame = (given: string) => given === name || given.endsWith(`/${name}`);
  const longer = [...tensors].filter(([each]) => isSame(each) || isSame(withoutCell(each)));
  if (longer.length === 1) return longer[0]!;
  const depthwise = '/depthwise_kernel';
  if (longer.length > 1 || !name.endsWith(depthwise)) return null;
  return stored(`${name.slice(0, -depthwise.length)}/kernel`, tensors);
}

const withoutCell = (name: string) => name.replace(/\/[^/]*_cell(?:_\d+)?(?=\/[^/]+$)/, '');

function assign(variable: Variable, { shape, values }: PretrainedTensor): void {
  tf.tidy(() => variable.assign(tf.tensor(values, [...shape], 'float32')));
}

/** How the tensors of a model and of a file met. */
export interface PretrainedMatch {
  /** Names of the model that have their values from the file. */
  readonly taken: readonly string[];
  /** Names of the model that begin fresh, each with why. */
  readonly fresh: readonly string[];
  /** Names of the file that nothing has taken. */
  readonly unused: readonly string[];
}

/** A tensor of the model that is trained. */
interface FilledWeight {
  readonly name: string;
  readonly shape: readonly number[];
  readonly variable: Variable;
  readonly isCarried?: boolean;
}

export interface PretrainedFill {
  readonly pretrained: Pretrained;
  readonly file: PretrainedFile;
  readonly loaded: LoadedPretrained | null;
}

/**
 * Gives the tensors of a model the values that the file has under their names, or under the names of `map`.
 * @throws DownpourError DP_EXPERIMENT_INVALID: no tensor has a value in the file, a name of `map` is nobody's, or a
 *   tensor that `freeze` names would stay at random values.
 */
export function fillPretrained(
  weights: readonly FilledWeight[],
  { pretrained, file, loaded }: PretrainedFill,
): PretrainedMatch {
  const { from, map = {}, freeze = [] } = pretrained;
  const taken: string[] = [];
  const fresh: string[] = [];
  const used = new Set<string>();
  const mapped = new Set<string>();
  for (const { name, shape, variable, isCarried } of weights) {
    if (isCarried) continue;
    const key = Object.hasOwn(map, name) ? name : longestLayer(name, map);
    const wanted = key === null ? name : map[key]! + name.slice(key.length);
    if (key !== null) mapped.add(key);
    const own = key === null ? loaded?.names.get(variable) : undefined;
    const tensor = file.tensors.get(wanted);
    if (own !== undefined) {
      taken.push(name);
      used.add(own);
    } else if (!tensor) {
      fresh.push(key === null ? name : `${name} (the file has no '${wanted}')`);
    } else if (String(tensor.shape) !== String(shape)) {
      used.add(wanted);
      fresh.push(`${name} (shape [${shape}], in the file [${tensor.shape}])`);
    } else {
      assign(variable, tensor);
      taken.push(name);
      used.add(wanted);
    }
  }
  const strange = Object.keys(map).find((key) => !mapped.has(key));
  const known = weights.map(({ name }) => name);
  if (strange !== undefined) {
    throw invalid(
      `pretrained.map has '${strange}', and the model has no tensor and no layer of this name; ${hint(strange, [...new Set(known.map(layerOf)), ...known])}`,
    );
  }
  if (taken.length === 0) {
    const names = [...file.tensors.keys()];
    throw invalid(
      `no tensor of the model has values in ${from}: the model has ${list(known)}, the file has ${list(names)}; give the layers the names of the file, or say pretrained.map`,
    );
  }
  const has = new Set(taken);
  const random = known.find(
    (name) => !has.has(name) && freeze.some((pattern) => matchesPattern(name, pattern)),
  );
  if (random !== undefined) {
    throw invalid(
      `pretrained.freeze names '${random}', which has no values in ${from}, so it would stay random: ${fresh.find((each) => each.startsWith(random)) ?? random}; correct the pattern, or say pretrained.map`,
    );
  }
  const unused = [...file.tensors.keys()].filter((name) => !used.has(name));
  return { taken, fresh, unused };
}

const layerOf = (name: string) => name.slice(0, Math.max(0, name.lastIndexOf('/'))) || name;

/** The longest key of the map that is a layer, or a model, with this tensor. */
function longestLayer(name: string, map: Readonly<Record<string, string>>): string | null {
  const keys = Object.keys(map).filter((key) => name.startsWith(`${key}/`));
  return keys.sort((a, b) => b.length - a.length)[0] ?? null;
}

/** The match in a sentence for the log. */
export function matchText({ taken, fresh, unused }: PretrainedMatch, from: string): string {
  const parts = [`${taken.length} tensors from ${from}`];
  if (fresh.length > 0) parts.push(`${fresh.length} begin fresh: ${list(fresh)}`);
  if (unused.length > 0) parts.push(`${unused.length} of the file are not used: ${list(unused)}`);
  return parts.join('; ');
}

const SHOWN = 6;
function list(names: readonly string[]): string {
  const more = names.length - SHOWN;
  return names.slice(0, SHOWN).join(', ') + (more > 0 ? ` and ${more} more` : '');
}

function hint(word: string, known: readonly string[]): string {
  const near = nearest(word, known);
  return near ? `did you mean '${near}'?` : `it has ${list(known)}`;
}

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
