import type { io } from '@tensorflow/tfjs-core';
import { bytesOf } from '../../shared/codec.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { RowShape } from '../../shared/rows.ts';
import { type Layer, type LayersModel, tf } from '../tf.ts';
import { RowsLayer } from './layer.ts';
import { placeGroups, type RowBinding } from './places.ts';

/**
 * A model with tables for plain TensorFlow.js: each layer that looks up rows becomes an embedding and other layers that every
 * program with TensorFlow.js has. Ids become places in these embeddings: of a table of known size they are the places, and of
 * a table that grows a list of keys says them.
 */

/** Rows of a trained model. */
export interface TrainedTable extends RowShape {
  readonly isGrowing: boolean;
  /** Keys of the rows that have values of their own, rising. */
  readonly keys: Uint32Array;
  /** @param keys that rise. @returns shape [keys.length, width]. */
  read(keys: Uint32Array): Promise<Float32Array>;
}

/** The places of the ids of some fields, the same in all tables that they are looked up by. */
export interface IdPlaces {
  readonly fields: readonly string[];
  readonly tables: readonly string[];
  /** The place of padding, a row of zeros. Negative ids are padding. */
  readonly padding: number;
  readonly zeroIsPadding: boolean;
  /** Ids are below it, and are their places; null: `keys` says the places. */
  readonly ids: number | null;
  /** The keys at the places 1, 2, …, rising. All others share the place behind them, a row of zeros. */
  readonly keys: Uint32Array | null;
  /** Places, those of zeros included. */
  readonly size: number;
}

/** A weight whose values are not in the artifacts. */
export interface StreamedWeight {
  readonly name: string;
  readonly shape: readonly [number, number];
  pieces(): AsyncIterable<Uint8Array>;
}

export interface StockModel {
  readonly artifacts: io.ModelArtifacts;
  readonly weights: readonly StreamedWeight[];
}

/** @throws DownpourError DP_USAGE: one place for an id would not do. */
export function idPlaces(
  bindings: readonly RowBinding[],
  tables: readonly TrainedTable[],
): readonly IdPlaces[] {
  return placeGroups(bindings, tables).map(({ fields, tables: names, idsMax }) => {
    const own = tables.filter(({ name }) => names.includes(name));
    const zeroIsPadding = fields[0]!.maskZero;
    if (fields.some(({ maskZero }) => maskZero !== zeroIsPadding)) {
      throw refused(
        `the tables ${names.join(', ')} are looked up with maskZero and without it, so id 0 has two meanings`,
      );
    }
    const common = { fields: fields.map(({ name }) => name), tables: names, zeroIsPadding };
    if (own.every(({ isGrowing }) => isGrowing)) {
      const keys = union(own.map((table) => table.keys));
      return { ...common, padding: 0, ids: null, keys, size: keys.length + 2 };
    }
    const padding = zeroIsPadding ? 0 : idsMax;
    return {
      ...common,
      padding,
      ids: idsMax,
      keys: null,
      size: zeroIsPadding ? idsMax : idsMax + 1,
    };
  });
}

/**
 * @param artifacts of a model with layers that look up rows.
 * @throws DownpourError DP_USAGE: TensorFlow.js has no layers that give the same.
 */
export async function inStockLayers(
  artifacts: io.ModelArtifacts,
  places: readonly IdPlaces[],
  tables: readonly TrainedTable[],
): Promise<StockModel> {
  const given = await tf.loadLayersModel({ load: async () => artifacts });
  const stock = new StockLayers(places, tables, given);
  try {
    const inputs = given.inputs.map((input, i) => {
      const { shape, dtype } = input;
      const name = given.inputNames[i]!;
      return tf.input({ shape: shape.length === 1 ? [1] : shape.slice(1), name, dtype });
    });
    // `predict` of a LayersModel makes [n, 1] of [n].
    const taken = inputs.map((input, i) =>
      given.inputs[i]!.shape.length > 1
        ? input
        : (tf.layers.reshape({ targetShape: [] }).apply(input) as unknown as Symbolic),
    );
    const model = tf.model({ inputs, outputs: stock.through(given, taken) });
    let saved!: io.ModelArtifacts;
    await model.save(
      tf.io.withSaveHandler(async (made) => {
        saved = made;
        return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
      }),
    );
    stock.release();
    model.dispose();
    return stock.streamed(saved);
  } finally {
    given.dispose();
  }
}

type Symbolic = LayersModel['outputs'][number];

class StockLayers {
  readonly #places: readonly IdPlaces[];
  readonly #tables: readonly TrainedTable[];
  readonly #taken: Set<string>;
  /** By name; each is built with one row, so that no engine needs memory for a table. */
  readonly #embeddings = new Map<
    string,
    { layer: Layer; weight: Omit<StreamedWeight, 'name'>; uses: number }
  >();

  constructor(places: readonly IdPlaces[], tables: readonly TrainedTable[], model: LayersModel) {
    this.#places = places;
    this.#tables = tables;
    this.#taken = new Set(model.layers.map(({ name }) => name));
  }

  /** The outputs of a model for other inputs. */
  through(model: LayersModel, inputs: readonly Symbolic[]): Symbolic[] {
    const made = new Map(model.inputs.map((input, i) => [input, inputs[i]!]));
    const outputOf = (wanted: Symbolic): Symbolic => {
      const known = made.get(wanted);
      if (known) return known;
      const layer = wanted.sourceLayer as Layer;
      const node = layer.inboundNodes[wanted.nodeIndex]!;
      const outputs = this.#apply(layer, node.inputTensors.map(outputOf), node.callArgs);
      for (const [i, tensor] of node.outputTensors.entries()) made.set(tensor, outputs[i]!);
      return made.get(wanted)!;
    };
    return model.outputs.map(outputOf);
  }

  #apply(layer: Layer, inputs: readonly Symbolic[], callArgs: object | undefined): Symbolic[] {
    if (layer instanceof RowsLayer) return [this.#rows(layer, inputs)];
    if (layer instanceof tf.LayersModel && hasRows(layer)) return this.through(layer, inputs);
    const given = inputs.length === 1 ? inputs[0]! : [...inputs];
    return [layer.apply(given as never, callArgs as never)].flat() as unknown as Symbolic[];
  }

  #rows(layer: RowsLayer, [ids, weights]: readonly Symbolic[]): Symbolic {
    const { table: name, combine, maskZero, width } = layer;
    const where = `layer '${layer.name}'`;
    const table = this.#tables.find((each) => each.name === name)!;
    const places = this.#places.find(({ tables }) => tables.includes(name))!;
    const isMasked = combine === 'none' && maskZero;
    const rows = this.#embedding(`${name}_rows${isMasked ? '_masked' : ''}`, isMasked, {
      shape: [places.size, width],
      pieces: () => rowsAt(places, table),
    }).apply(ids as never) as unknown as Symbolic;
    if (combine === 'none') {
      if (!weights) return rows;
      throw refused(`${where} weighs single rows: multiply them by a layer of the model instead`);
    }
    const k = ids!.shape[1];
    if (ids!.shape.length !== 2 || typeof k !== 'number') {
      throw refused(
        `${where} has bags of ids of shape [${ids!.shape.slice(1).map((d) => d ?? 'null')}]; allowed: [k], one bag of a known number of ids for each example`,
      );
    }
    const dot = (shares: Symbolic) =>
      tf.layers
        .dot({ axes: 1, name: layer.name })
        .apply([rows, shares] as never) as unknown as Symbolic;
    if (weights && combine === 'sum') return dot(weights);
    if (weights) {
      throw refused(
        `${where} gives a weighted mean: use combine 'sum' with weights whose sum is 1`,
      );
    }
    const isMean = combine === 'mean';
    const presence = this.#embedding(`${name}_${isMean ? 'shares' : 'counts'}`, false, {
      shape: [places.size, 1],
      pieces: () => presenceAt(places, isMean),
    }).apply(ids as never);
    const flat = tf.layers.reshape({ targetShape: [k] }).apply(presence);
    // The softmax of 0 for ids and of a very low number for padding: each id has the same share.
    return dot((isMean ? tf.layers.softmax().apply(flat) : flat) as unknown as Symbolic);
  }

  #embedding(wanted: string, maskZero: boolean, weight: Omit<StreamedWeight, 'name'>): Layer {
    const known = this.#embeddings.get(wanted);
    if (known) {
      known.uses++;
      return known.layer;
    }
    let name = wanted;
    while (this.#taken.has(name)) name += '_';
    this.#taken.add(name);
    const outputDim = weight.shape[1];
    const layer = tf.layers.embedding({ inputDim: 1, outputDim, maskZero, name });
    this.#embeddings.set(wanted, { layer, weight, uses: 1 });
    return layer;
  }

  /** The artifacts without the embeddings of tables, whose sizes are put right. */
  streamed(artifacts: io.ModelArtifacts): StockModel {
    const own = new Map(
      [...this.#embeddings.values()].map((each) => [each.layer.name, each.weight]),
    );
    const topology = JSON.parse(JSON.stringify(artifacts.modelTopology)) as object;
    setSizes(topology, own);
    const bytes = new Uint8Array(tf.io.CompositeArrayBuffer.join(artifacts.weightData));
    const specs: io.WeightsManifestEntry[] = [];
    const kept: Uint8Array[] = [];
    const weights: StreamedWeight[] = [];
    let at = 0;
    for (const spec of artifacts.weightSpecs ?? []) {
      const end = at + 4 * spec.shape.reduce((product, d) => product * d, 1);
      const weight = own.get(spec.name.slice(0, spec.name.lastIndexOf('/')));
      if (weight) weights.push({ name: spec.name, ...weight });
      else {
        specs.push(spec);
        kept.push(bytes.subarray(at, end));
      }
      at = end;
    }
    const weightData = new Uint8Array(Buffer.concat(kept)).buffer;
    return {
      artifacts: { ...artifacts, modelTopology: topology, weightSpecs: specs, weightData },
      weights,
    };
  }

  /** A layer counts how often it was applied, and a model that is disposed of takes one from it. */
  release(): void {
    for (const { layer, uses } of this.#embeddings.values()) {
      for (let i = 1; i < uses; i++) layer.dispose();
    }
  }
}

const hasRows = (model: LayersModel): boolean =>
  model.layers.some(
    (layer) => layer instanceof RowsLayer || (layer instanceof tf.LayersModel && hasRows(layer)),
  );

function setSizes(node: unknown, sizes: ReadonlyMap<string, Pick<StreamedWeight, 'shape'>>): void {
  if (typeof node !== 'object' || node === null) return;
  const { class_name: kind, config } = node as {
    class_name?: unknown;
    config?: { name?: string; input_dim?: number };
  };
  const own = kind === 'Embedding' ? sizes.get(config?.name ?? '') : undefined;
  if (own) config!.input_dim = own.shape[0];
  for (const value of Object.values(node)) setSizes(value, sizes);
}

/** Numbers read at once, and rows that one reading may bring. */
const PIECE = 2 ** 18;
const PIECE_ROWS = 2 ** 15;

async function* rowsAt(
  { keys, ids, zeroIsPadding }: IdPlaces,
  { width, read }: TrainedTable,
): AsyncIterable<Uint8Array> {
  const count = Math.max(1, Math.min(PIECE_ROWS, Math.floor(PIECE / width)));
  const zeros = bytesOf(new Float32Array(width));
  if (keys) yield zeros;
  const all = keys?.length ?? ids!;
  for (let from = 0; from < all; from += count) {
    const end = Math.min(all, from + count);
    const some =
      keys?.subarray(from, end) ?? Uint32Array.from({ length: end - from }, (_, i) => from + i);
    const rows = await read(some);
    if (!keys && zeroIsPadding && from === 0) rows.fill(0, 0, width);
    yield bytesOf(rows);
  }
  if (keys || !zeroIsPadding) yield zeros;
}

/** So low that its exponential is 0. */
const ABSENT = -1e9;

async function* presenceAt(
  { size, padding }: IdPlaces,
  isMean: boolean,
): AsyncIterable<Uint8Array> {
  const values = new Float32Array(size).fill(isMean ? 0 : 1);
  values[padding] = isMean ? ABSENT : 0;
  yield bytesOf(values);
}

/** Keys of several tables, each once, rising. */
function union(lists: readonly Uint32Array[]): Uint32Array {
  if (lists.length === 1) return lists[0]!;
  return Uint32Array.from(new Set(lists.flatMap((keys) => [...keys]))).sort();
}

const refused = (what: string) =>
  new DownpourError(
    'DP_USAGE',
    `TensorFlow.js has no layers of its own for this model: ${what}. Or export with --format safetensors or word2vec`,
  );
