import { createWriteStream } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { io } from '@tensorflow/tfjs-core';
import type { RunConfig } from '../shared/config.ts';
import type { DataFacts } from '../shared/data-facts.ts';
import { DownpourError } from '../shared/errors.ts';
import type { Layout } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import { isForEvaluations } from './batch.ts';
import { examplesLike } from './data/facts.ts';
import type { Experiment } from './experiment.ts';
import { buildModel, type Model } from './model.ts';
import { dataSettings } from './prepare.ts';
import {
  type IdPlaces,
  idPlaces,
  inStockLayers,
  type StockModel,
  type StreamedWeight,
  type TrainedTable,
} from './rows/stock-layers.ts';
import { tf } from './tf.ts';

/** A trained model in the files that `tf.loadLayersModel` opens: `model.json` and `weights.bin`. */

/** A tensor of a checkpoint; of those that belong to no weight of the model none is looked at. */
export interface NamedValues {
  readonly name: string;
  readonly values: Float32Array;
}

export interface TrainedModelOptions {
  readonly experiment: Experiment;
  readonly config: RunConfig;
  readonly tensors: readonly NamedValues[];
  /** The model's shapes follow from them. */
  readonly facts: DataFacts;
  /** Its tables; absent: there are none. */
  readonly tables?: readonly TrainedTable[];
  /** Where data lie, absolute: they are read only for a model that takes its shapes from what `data()` has left. */
  readonly dataFolder: string;
  readonly log: (line: string) => void;
}

export interface LayersFormatOptions extends TrainedModelOptions {
  /** A folder that exists. */
  readonly to: string;
  readonly signal?: AbortSignal;
}

/**
 * Builds the experiment's model and gives it the parameters and statistics of a checkpoint. An engine must be open.
 * @returns what `tf.loadLayersModel` reads; null: the model is a function of variables, which has no such form, or they are several.
 * @throws DownpourError DP_LAYOUT_MISMATCH: the checkpoint is of another model; what the experiment's model throws.
 */
export async function layersArtifacts(
  options: TrainedModelOptions,
): Promise<io.ModelArtifacts | null> {
  return (await trainedArtifacts(options)).all?.[''] ?? null;
}

async function trainedArtifacts(options: TrainedModelOptions) {
  const model = await trainedModel(options);
  try {
    const all = (await model.topologies()) as Readonly<Record<string, io.ModelArtifacts>> | null;
    return { all, bindings: model.rows?.bindings ?? [] };
  } finally {
    model.dispose();
  }
}

export interface WrittenModels {
  /** Where each table has the rows of ids. */
  readonly places: readonly IdPlaces[];
  /** The names of several models, each in a folder of its name; empty: there is one. */
  readonly models: readonly string[];
}

/**
 * Writes it. Tables become embeddings, in pieces.
 * @throws DownpourError DP_USAGE: a function of variables has no such format, nor has a `batch` that evaluations apply;
 *   what `layersArtifacts` throws.
 */
export async function writeLayersModel({
  to,
  signal,
  ...options
}: LayersFormatOptions): Promise<WrittenModels> {
  if (isForEvaluations(options.experiment.batch)) {
    throw new DownpourError(
      'DP_USAGE',
      "the experiment's batch has evaluation: true, so its model needs inputs that batch() has changed, and a file for tf.loadLayersModel has no batch(): make that change a layer of the model, or export with --format safetensors",
    );
  }
  const { all, bindings } = await trainedArtifacts(options);
  if (all === null) {
    throw new DownpourError(
      'DP_USAGE',
      'the model is a function of variables, which tf.loadLayersModel cannot open: export it with --format safetensors',
    );
  }
  const { tables = [] } = options;
  const artifacts = all[''];
  if (!artifacts) {
    if (tables.length > 0) {
      throw new DownpourError(
        'DP_USAGE',
        `there are several models (${Object.keys(all).join(', ')}), and tables: tables become embeddings of one model alone; export with --format safetensors`,
      );
    }
    for (const [name, each] of Object.entries(all)) {
      await mkdir(join(to, name), { recursive: true });
      await writeModel({ to: join(to, name), stock: { artifacts: each, weights: [] }, signal });
    }
    return { places: [], models: Object.keys(all) };
  }
  const places = idPlaces(bindings, tables);
  // `predict` of a LayersModel makes [n, 1] of [n], which a layer that takes lone numbers does not take.
  const { inputs, fields = [] } = options.facts;
  const columns = fields.flatMap(({ role, column }) => (role === 'target' ? [] : column));
  const hasLone = [inputs, ...columns].some(({ shape }) => shape.length === 0);
  const stock: StockModel =
    tables.length > 0 || hasLone
      ? await inStockLayers(artifacts, places, tables)
      : { artifacts, weights: [] };
  mustFitProgram(tables, stock.weights);
  await writeModel({ to, stock, signal });
  for (const { keys, tables: names } of places) {
    if (!keys) continue;
    const bytes = new Uint8Array(keys.buffer, keys.byteOffset, keys.byteLength);
    await writeFile(join(to, keysFile(names)), bytes);
  }
  return { places, models: [] };
}

/** `model.json` and `weights.bin`, the first of them last: without it nothing looks whole. */
async function writeModel({
  to,
  stock,
  signal,
}: Pick<LayersFormatOptions, 'to'> & {
  readonly stock: StockModel;
  readonly signal: AbortSignal | undefined;
}): Promise<void> {
  const { modelTopology, weightSpecs = [], weightData = new ArrayBuffer(0) } = stock.artifacts;
  const weights = [
    ...weightSpecs,
    ...stock.weights.map(({ name, shape }) => ({
      ...{ name, shape: [...shape], dtype: 'float32' as const },
    })),
  ];
  const json: io.ModelJSON = {
    format: 'layers-model',
    generatedBy: `TensorFlow.js ${tf.version_core}`,
    convertedBy: null,
    modelTopology: modelTopology!,
    weightsManifest: [{ paths: ['weights.bin'], weights }],
  };
  const dense = tf.io.CompositeArrayBuffer.join(weightData);
  await writePieces(join(to, 'weights.bin'), signal, async function* () {
    yield new Uint8Array(dense);
    for (const { pieces } of stock.weights) yield* pieces();
  });
  await writeFile(join(to, 'model.json'), JSON.stringify(json));
}

/** @throws DownpourError DP_USAGE: the embeddings of tables take more bytes than `LIMITS.exportedTableBytesMax`. */
export function mustFitProgram(
  tables: readonly Pick<TrainedTable, 'name'>[],
  embeddings: readonly Pick<StreamedWeight, 'shape'>[],
): void {
  const bytes = embeddings.reduce((sum, { shape: [n, width] }) => sum + 4 * n * width, 0);
  if (bytes <= LIMITS.exportedTableBytesMax) return;
  throw new DownpourError(
    'DP_USAGE',
    `the tables ${tables.map(({ name }) => name).join(', ')} have ${bytes} bytes as embeddings; allowed: ${LIMITS.exportedTableBytesMax}, as a program with TensorFlow.js loads all weights at once: use --format safetensors or word2vec`,
  );
}

/** The file with the keys of tables that grow, for those that share them. */
export const keysFile = (tables: readonly string[]): string => `keys-${tables[0]}.bin`;

/** Another name is used until all is written, so an end in the midst leaves no half file. */
async function writePieces(
  path: string,
  signal: AbortSignal | undefined,
  pieces: () => AsyncIterable<Uint8Array>,
): Promise<void> {
  const partial = `${path}.part`;
  try {
    const file = createWriteStream(partial);
    await pipeline(Readable.from(pieces()), file, { ...(signal && { signal }) });
    await rename(partial, path);
  } finally {
    await rm(partial, { force: true });
  }
}

async function trainedModel(options: TrainedModelOptions): Promise<Model> {
  const { experiment, config, tensors, facts, dataFolder: folder, log } = options;
  const build = async () => {
    const model = await buildModel(experiment, config, examplesLike(facts), { later: facts });
    try {
      model.load(vectorOf(model.layout, tensors));
    } catch (error) {
      model.dispose();
      throw error;
    }
    return model;
  };
  try {
    return await build();
  } catch (error) {
    if (!(error instanceof DownpourError) || error.code === 'DP_USAGE') throw error;
    try {
      await experiment.data({ folder, ...dataSettings(config), log });
    } catch {
      throw error;
    }
    return await build();
  }
}

/**
 * The tensors of a checkpoint in their places, shape [layout.size].
 * @throws DownpourError DP_LAYOUT_MISMATCH: it is of another model.
 */
export function vectorOf(layout: Layout, tensors: readonly NamedValues[]): Float32Array {
  const byName = new Map(tensors.map(({ name, values }) => [name, values]));
  const vector = new Float32Array(layout.size);
  for (const { name, shape, offset, size } of layout.tensors) {
    const values = byName.get(name);
    if (values?.length !== size) {
      const seen = values ? `with ${values.length} elements` : 'not at all';
      throw new DownpourError(
        'DP_LAYOUT_MISMATCH',
        `the model has '${name}' of shape [${shape}], but the checkpoint has it ${seen}: the checkpoint belongs to another model or other hyperparameters`,
      );
    }
    vector.set(values, offset);
  }
  return vector;
}
