import type { Transform } from '../../shared/data-facts.ts';
import {
  answerKind,
  joinPredictions,
  type Prediction,
  predictionsOf,
} from '../../shared/prediction.ts';
import type { Reading } from '../../shared/reading.ts';
import type { Tokenizer } from '../data/texts/vocabulary.ts';
import { copyScaled, scalerOf } from '../data/transform.ts';
import { BadExample, type Encoder, encoderOf } from './encode.ts';
import { type AboutField, type EncodedField, encodeFields } from './fields.ts';
import { type AboutIds, inPlaces, placesOf } from './id-places.ts';

/**
 * Opens a model that `downpour export --format tfjs` wrote, with plain TensorFlow.js, in Node and in browsers. `export` bundles
 * this file as `predict.js` beside the model.
 */

/** What of `downpour.json` is used. */
export interface About {
  readonly run: string;
  /** Null: of the user's own, or there are several. */
  readonly loss: string | null;
  /** The loss of each target that is a field; null: of the user's own. Absent: there is no such target. */
  readonly losses?: Readonly<Record<string, string | null>>;
  /** Several inputs or several targets; `inputShape` and what is said of targets are then of nothing. */
  readonly fields?: readonly AboutField[];
  readonly inputTransform: Transform;
  readonly inputShape: readonly number[];
  readonly classCount: number | null;
  readonly classes: readonly string[] | null;
  readonly targetNames: readonly string[] | null;
  readonly inputNames?: readonly string[] | null;
  readonly reading?: Reading;
  /** Fields whose ids are looked up in tables. */
  readonly idPlaces?: readonly AboutIds[];
}

/** The part of TensorFlow.js that is used: of `@tensorflow/tfjs`, of `tfjs-node`, or of tfjs-core with tfjs-layers. */
export interface Tfjs {
  loadLayersModel(from: unknown): Promise<TfjsModel>;
  tensor(values: Float32Array | Int32Array, shape: number[], type: 'float32' | 'int32'): TfjsTensor;
}
interface TfjsModel {
  readonly inputNames: string[];
  readonly outputNames: string[];
  predict(inputs: TfjsTensor | TfjsTensor[]): TfjsTensor | TfjsTensor[];
  dispose(): unknown;
}
interface TfjsTensor {
  readonly shape: number[];
  data(): Promise<ArrayLike<number>>;
  dispose(): void;
}

export interface OpenedModel {
  /** What `downpour.json` has: names, shapes, the standardisation. */
  readonly about: About;
  /** The tfjs model: it takes standardised inputs. */
  readonly model: TfjsModel;
  /**
   * @param examples rows of a table as objects by column; pictures as `{ width, height, data }`; objects by the names of fields;
   * or, where the model does not know how its data were read, the numbers of each example.
   * @throws Error that names the example and what is wrong with it.
   */
  predict(examples: readonly unknown[]): Promise<Prediction[]>;
  dispose(): void;
}

/** The same model, for which a category that it has never seen is none of those it knows, and any cell may be empty. */
export function takingUnknown<A extends About>(about: A): A {
  const { reading } = about;
  if (reading?.kind !== 'table') return about;
  return { ...about, reading: { ...reading, unknown: 'none' } };
}

/** What is written wrongly would be passed over in silence. */
function mustBeOptions(options: OpenOptions): void {
  for (const [name, value] of Object.entries(options)) {
    if (name !== 'unknown') {
      throw new Error(`openModel has no option '${name}'; it has: unknown`);
    }
    if (value !== undefined && value !== 'error' && value !== 'none') {
      throw new Error(`unknown is '${value}'; allowed: 'error', 'none'`);
    }
  }
}

/** The field of a model with one input, which has no name of its own. */
export const ONE_INPUT = 'inputs';

/**
 * Inputs of examples, standardised, by field; a single input is `ONE_INPUT`.
 * @param tokenizer of texts, where the model names its file alone. @throws BadExample.
 */
export function inputsOf(
  about: About,
  examples: readonly unknown[],
  tokenizer?: Tokenizer,
): Readonly<Record<string, EncodedField>> {
  const { fields = [], inputShape, reading } = about;
  if (inputShape[0] !== 0 && fields.every(({ role }) => role === 'target')) {
    if (reading || !examples.some(isNamed)) {
      return { [ONE_INPUT]: { values: oneInput(about, examples, tokenizer), shape: inputShape } };
    }
    const named = examples.map((each) => (isNamed(each) ? each : { [ONE_INPUT]: each }));
    return encodeFields(namedInputs(about), named);
  }
  return encodeFields(namedInputs(about), examples);
}

/** All fields that are given; a single input is one of them. */
function namedInputs(about: About): readonly AboutField[] {
  const { fields = [], inputShape, inputTransform, inputNames = null } = about;
  if (inputShape[0] === 0) return fields;
  const none = { classCount: null, classes: null };
  const kind = inputTransform.scale === 1 ? 'float32' : 'uint8';
  return [
    {
      ...{ name: ONE_INPUT, role: 'input', kind, shape: inputShape, inputTransform, ...none },
      names: inputNames,
    },
    ...fields,
  ];
}

const isNamed = (example: unknown) =>
  typeof example === 'object' &&
  example !== null &&
  !Array.isArray(example) &&
  !ArrayBuffer.isView(example);

function oneInput(
  about: About,
  examples: readonly unknown[],
  tokenizer: Tokenizer | undefined,
): Float32Array {
  const { inputTransform, inputShape, reading } = about;
  const size = inputShape.reduce((product, each) => product * each, 1);
  const encoder = reading ? encoderOf(reading, tokenizer) : numbersEncoder(size);
  const raw = new Float64Array(size);
  const inputs = new Float32Array(examples.length * size);
  const scaler = scalerOf(inputTransform);
  for (const [i, example] of examples.entries()) {
    try {
      encoder.encode(example, raw, 0);
    } catch (error) {
      throw error instanceof BadExample ? new BadExample(`example ${i}: ${error.message}`) : error;
    }
    copyScaled(scaler, raw, 0, inputs, i * size, size);
  }
  return inputs;
}

function numbersEncoder(size: number): Encoder {
  return {
    size,
    encode(example, target, at) {
      const numbers = Array.isArray(example) ? example.flat(Infinity) : example;
      const isList = Array.isArray(numbers) || ArrayBuffer.isView(numbers);
      const list = isList ? Array.from(numbers as ArrayLike<unknown>) : [];
      if (list.length !== size || !list.every((value) => Number.isFinite(value))) {
        throw new BadExample(`it must be ${size} numbers`);
      }
      target.set(list as number[], at);
    },
  };
}

/** One output of the model for some examples. */
interface ToldOutput {
  /** Name of its target; '': there is one output, without a name. */
  readonly name: string;
  readonly values: Float32Array;
  /** Shape of all examples together. */
  readonly shape: readonly number[];
}

/** @param outputs of all examples. */
export function predictionsFrom(about: About, outputs: readonly ToldOutput[]): Prediction[] {
  if (outputs.length === 1) return predictionsOfOutput(about, outputs[0]!);
  return joinPredictions(
    Object.fromEntries(
      outputs.map((output) => [output.name, predictionsOfOutput(about, output)] as const),
    ),
  );
}

function predictionsOfOutput(about: About, { name, values, shape }: ToldOutput): Prediction[] {
  const field = about.fields?.find((each) => each.name === name && each.role === 'target');
  const known = field
    ? { ...field, loss: about.losses?.[name] ?? null, targetNames: field.names }
    : about;
  const last = shape.length > 1 ? shape.at(-1)! : 1;
  const kind = answerKind(known.loss, known.classCount, last);
  const width = kind === 'binary' ? 1 : last;
  const answers = { kind, width, outputs: values, count: values.length / width };
  return predictionsOf(answers, shape[0]!, known);
}

export interface OpenOptions {
  /** A category that the model has never seen: an error, or `none`, it sets none of the inputs of its column. Default: error. */
  readonly unknown?: 'error' | 'none';
}

/**
 * @param tf TensorFlow.js. @param from the folder with `model.json`: a URL, or in Node a path; default: where this file is.
 * @throws Error: there is no such option.
 */
export async function openModel(
  tf: Tfjs,
  from: string | URL = new URL('.', import.meta.url),
  options: OpenOptions = {},
): Promise<OpenedModel> {
  mustBeOptions(options);
  const read = await readerOf(from);
  const own = JSON.parse(textOf(await read('downpour.json'))) as About;
  const about = options.unknown === 'none' ? takingUnknown(own) : own;
  const places = await Promise.all((about.idPlaces ?? []).map((each) => placesOf(each, read)));
  const model = await tf.loadLayersModel({ load: () => artifactsOf(read) });
  return {
    about,
    model,
    async predict(examples) {
      if (examples.length === 0) return [];
      const given = inPlaces(inputsOf(about, examples), places, examples.length);
      const names = Object.keys(given).length === 1 ? Object.keys(given) : model.inputNames;
      const inputs = names.map((name) => {
        const { values, shape } = given[name]!;
        const type = values instanceof Int32Array ? 'int32' : 'float32';
        return tf.tensor(values, [examples.length, ...shape], type);
      });
      const outputs = [model.predict(inputs.length === 1 ? inputs[0]! : inputs)].flat();
      try {
        const told: ToldOutput[] = [];
        for (const [i, output] of outputs.entries()) {
          const values = Float32Array.from(await output.data());
          told.push({ name: outputName(about, model, i), values, shape: output.shape });
        }
        return predictionsFrom(about, told);
      } finally {
        for (const tensor of [...inputs, ...outputs]) tensor.dispose();
      }
    },
    dispose: () => void model.dispose(),
  };
}

/** An only output may have another name than its target. */
function outputName({ fields = [] }: About, { outputNames }: TfjsModel, i: number): string {
  if (outputNames.length > 1) return outputNames[i]!;
  const targets = fields.filter(({ role }) => role === 'target');
  return targets.length === 1 ? targets[0]!.name : '';
}

const textOf = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

type Read = (file: string) => Promise<Uint8Array>;

interface ModelFile {
  readonly modelTopology: unknown;
  readonly weightsManifest: readonly {
    readonly paths: readonly string[];
    readonly weights: readonly unknown[];
  }[];
}

/** As `tf.io` wants it, so that `loadLayersModel` needs neither tfjs-node nor a server. */
async function artifactsOf(read: Read) {
  const { modelTopology, weightsManifest } = JSON.parse(
    textOf(await read('model.json')),
  ) as ModelFile;
  const weightSpecs = weightsManifest.flatMap(({ weights }) => weights);
  const parts = await Promise.all(weightsManifest.flatMap(({ paths }) => paths.map(read)));
  const weightData = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    weightData.set(part, at);
    at += part.length;
  }
  return { modelTopology, weightSpecs, weightData: weightData.buffer };
}

async function readerOf(from: string | URL): Promise<Read> {
  const text = String(from);
  const isFile = text.startsWith('file:') || !/^[a-z]+:\/\//i.test(text);
  if (isFile && typeof process === 'object' && process.versions?.node) {
    const [{ readFile }, { join }, { fileURLToPath }] = await Promise.all([
      import('node:fs/promises'),
      import('node:path'),
      import('node:url'),
    ]);
    const folder = text.startsWith('file:') ? fileURLToPath(text) : text;
    return (file) => readFile(join(folder, file));
  }
  const base = new URL(text.endsWith('/') ? text : `${text}/`, globalThis.location?.href);
  return async (file) => {
    const answer = await fetch(new URL(file, base));
    if (!answer.ok) throw new Error(`${answer.url}: ${answer.status} ${answer.statusText}`);
    return new Uint8Array(await answer.arrayBuffer());
  };
}
