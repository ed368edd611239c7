import { DownpourError } from '../shared/errors.ts';
import { elementAt } from './data/columns.ts';
import type { PreparedData } from './data/examples.ts';
import { ofField, viewOf } from './data/fields.ts';
import type { NumberRanges } from './data/source.ts';
import { type Layer, type LayersModel, tf } from './tf.ts';

/**
 * Ids of tokens and categories. An embedding looks up one row for each id. If an id has no row, each engine returns
 * something else (zeros, the last row, the memory after it), and none reports an error.
 */

/** Layers that move numbers and leave them as they are. */
const MOVES: readonly string[] = [
  ...['InputLayer', 'Flatten', 'Reshape', 'Permute', 'RepeatVector', 'Masking'],
  ...['Cropping2D', 'UpSampling2D'],
];

/** Embeddings that are given the model's own inputs. */
function embeddingsOf(
  model: LayersModel,
  inputs: LayersModel['inputs'] = model.inputs,
): { name: string; rows: number }[] {
  const untouched = new Set(inputs.map(({ id }) => id));
  const found: { name: string; rows: number }[] = [];
  for (const layer of model.layers) {
    for (const { inputTensors, outputTensors } of layer.inboundNodes) {
      if (inputTensors.length === 0 || !inputTensors.every(({ id }) => untouched.has(id))) continue;
      const inner = (layer as { layer?: Layer }).layer ?? layer;
      if (inner instanceof tf.LayersModel) found.push(...embeddingsOf(inner));
      if (inner.getClassName() === 'Embedding') {
        found.push({ name: layer.name, rows: Number(inner.getConfig().inputDim) });
      }
      if (!MOVES.includes(layer.getClassName())) continue;
      for (const { id } of outputTensors) untouched.add(id);
    }
  }
  return found;
}

/** @throws DownpourError DP_EXPERIMENT_INVALID with part, row and value: an id that an embedding has no row for. */
export function mustBeIds(model: LayersModel, prepared: PreparedData): void {
  const { train, validation, test, source, transforms = {} } = prepared;
  if (!train.fields) {
    mustBeIdsOf(embeddingsOf(model), prepared, rangesOf(prepared, 'inputs'));
    return;
  }
  model.inputNames.forEach((name, i) => {
    const transform = transforms[name];
    if (!transform) return;
    const own = embeddingsOf(model, [model.inputs[i]!]);
    const view = viewOf({ train, validation, ...(test ? { test } : {}), source }, name);
    ofField(name, () =>
      mustBeIdsOf(
        own,
        { ...view, validation: view.validation!, test: view.test ?? null, transform },
        rangesOf(prepared, name),
      ),
    );
  });
}

/** What is known of a column of a source, by part; its numbers are not in memory. */
const rangesOf = (prepared: PreparedData, name: string): NumberRanges =>
  Object.fromEntries(
    PARTS.flatMap((part) => {
      const range = prepared[part]?.stored?.ranges?.[name];
      return range ? [[part, range]] : [];
    }),
  );

const PARTS = ['train', 'validation', 'test'] as const;

type PreparedParts = Pick<PreparedData, 'train' | 'validation' | 'test' | 'transform'>;

function mustBeIdsOf(
  embeddings: { name: string; rows: number }[],
  prepared: PreparedParts,
  ranges: NumberRanges,
): void {
  const [embedding] = embeddings.sort((a, b) => a.rows - b.rows);
  if (embedding === undefined) return;
  const { name, rows } = embedding;
  const layer = `the embedding '${name}'`;
  const { kind, scale } = prepared.transform;
  if (scale !== 1) {
    throw invalid(
      `the inputs are bytes (pixels, divided by 255), but ${layer} takes ids: use an Int32Array`,
    );
  }
  if (kind !== 'none') {
    throw invalid(
      `${layer} takes ids, but standardise: '${kind}' would turn them into fractions: set standardise: 'none'`,
    );
  }
  const refuse = (where: string, id: number) => {
    const advice =
      id >= rows && Number.isInteger(id)
        ? `set its inputDim to ${highest(prepared, ranges) + 1} or more, or replace rare ids by one common id`
        : 'ids are whole numbers from 0';
    return invalid(
      `${where}: ${id} is not an id of ${layer}, which has rows 0 … ${rows - 1}; ${advice}`,
    );
  };
  for (const part of PARTS) {
    const range = ranges[part];
    if (range) {
      const { min, max, minRow, maxRow, fractionRow } = range;
      const where = (row: number) => `inputs of the ${part} part, example ${row} of the source`;
      if (min < 0) throw refuse(where(minRow), min);
      if (max >= rows) throw refuse(where(maxRow), max);
      if (fractionRow !== null) {
        throw invalid(
          `${where(fractionRow)}: a number that is not whole is not an id of ${layer}; ids are whole numbers from 0`,
        );
      }
      continue;
    }
    const inputs = prepared[part]?.inputs;
    if (!inputs) continue;
    const { values } = inputs;
    for (let i = 0; i < values.length; i++) {
      const id = values[i]!;
      if (id >= 0 && id < rows && Number.isInteger(id)) continue;
      throw refuse(`inputs of the ${part} part, ${elementAt(inputs, i)}`, id);
    }
  }
}

function highest(prepared: PreparedParts, ranges: NumberRanges): number {
  let max = 0;
  for (const part of PARTS) {
    max = Math.max(max, ranges[part]?.max ?? 0);
    for (const value of prepared[part]?.inputs.values ?? []) max = Math.max(max, value);
  }
  return max;
}

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
