import { resolve } from 'node:path';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { matchesPattern } from '../../shared/name-pattern.ts';
import { openEngine } from '../../worker/engine.ts';
import { layersPart } from '../../worker/model/layers-model.ts';
import { readPretrained } from '../../worker/pretrained/open.ts';
import { loadPretrained } from '../../worker/pretrained/pretrained.ts';
import { topologyOf } from '../../worker/pretrained/topology.ts';
import { type Layer, type LayersModel, tf } from '../../worker/tf.ts';
import { groups as thousands } from '../output/progress.ts';
import { code, codeList } from './source.ts';

/** The part of an experiment that begins with a pretrained model: which of its layers serve, and when they are trained. */

export interface PretrainedRequest {
  /** The model.json, as the user named it. */
  readonly from: string;
  /** The last layer to use; default: the last one that has features of the input. */
  readonly until?: string;
  /** Pixels of each side, in the place of the size in the file. */
  readonly size?: number;
  /** The values of black and white that the model was trained with; default: 0 and 1, or those that its layers say. */
  readonly pixels?: readonly [number, number];
  /** Its parameters are not used. */
  readonly fresh?: boolean;
  /** Only the head is trained. */
  readonly frozen?: boolean;
}

/** The name of the new last layer. */
const HEAD = 'head';

/** A pretrained model that an experiment may begin with. */
export interface Trunk {
  readonly until: string;
  /** [height, width, channels] that it takes. */
  readonly inputShape: readonly [number, number, number];
  /** Lines of source code within `defineExperiment`. @param stages when parts of the trunk thaw, in steps; null: never. */
  source(stages: readonly number[] | null): TrunkSource;
  readonly note: string;
}

interface TrunkSource {
  readonly pretrained: string;
  readonly model: string;
  /** Entries of `groups`; empty: there are none. */
  readonly groups: string;
}

/**
 * Opens the file and finds the layers to use.
 * @param place the file as seen from the experiment. @param isTyped the experiment is TypeScript.
 * @param sizeOfPictures pixels of a side for a model that takes images of any size.
 * @throws DownpourError of `readPretrained`; DP_USAGE: it is not for images, or its layers do not fit the size.
 */
export async function openTrunk(
  { from, until, size, pixels, fresh = false, frozen = false }: PretrainedRequest,
  { place, isTyped }: { readonly place: string; readonly isTyped: boolean },
  sizeOfPictures: () => Promise<number>,
): Promise<Trunk> {
  if (!from.endsWith('.json')) {
    throw unfit(
      `--from is ${from}, and a new head needs the layers of a model: name the model.json of a TensorFlow.js layers model. The tensors of a safetensors file go into a model that you write: docs/experiments.md, pretrained`,
    );
  }
  const path = resolve(from);
  // Only shapes are computed: an engine that is always there does.
  await openEngine({ engine: 'wasm' });
  const { sha256, modelTopology, tensors } = await readPretrained(path, null);
  const build = async (cut: { until?: string; inputShape?: readonly number[] }) => {
    const topology = topologyOf(path, modelTopology, cut);
    const options = { fresh: true, mayDiffer: true };
    return (await loadPretrained({ topology, tensors }, path, options))!.model;
  };
  const whole = await build({});
  const own = whole.inputs.length === 1 ? whole.inputs[0]!.shape.slice(1) : [];
  if (own.length !== 3) {
    const shapes = whole.inputs.map(({ shape }) => `[${shape.slice(1)}]`).join(' and ');
    throw unfit(
      `${from} takes inputs of shape ${shapes}, and a folder has images of shape [height, width, channels]: use a model for images, or write the experiment by hand`,
    );
  }
  const [height, width, channels] = own;
  if (channels !== 1 && channels !== 3) {
    throw unfit(`${from} takes images of ${channels ?? 'any number of'} channels; allowed: 1 or 3`);
  }
  const last = until ?? lastFeatures(whole, from).name;
  const values = pixels ?? (rescales(whole) ? ([0, 255] as const) : ([0, 1] as const));
  whole.dispose();
  const side = size ?? (height && width ? null : await sizeOfPictures());
  const inputShape = [side ?? height!, side ?? width!, channels] as const;
  const isOther = side !== null && (side !== height || side !== width);
  const cut = { until: last, ...(isOther ? { inputShape } : {}) };
  const trunk = await build(cut);
  mustFit(trunk, tensors, { from, last, inputShape });
  const features = trunk.outputs[0]!.shape.slice(1) as number[];
  const parts = thawing(trunk, frozen || fresh);
  const parameters = trunk.countParams();
  trunk.dispose();
  return {
    until: last,
    inputShape,
    note: `${from}: the layers up to '${last}' (${thousands(parameters)} parameters) give ${features.length === 3 ? `${features[2]} features at ${features[0]} × ${features[1]} places` : `${features[0]} features`}${fresh ? '; they begin fresh' : ''}`,
    source(stages) {
      const thaws = stages === null ? [] : parts.thaws.slice(0, stages.length);
      const still = parts.names.filter((name) => !thaws.flat().includes(name));
      const freeze = fresh ? [] : patternsFor(still, [...thaws.flat(), HEAD]);
      return {
        pretrained: pretrainedSource({ from: place, sha256, cut, freeze, fresh }),
        model: modelSource(features, values, isTyped),
        groups: thaws
          .map((names, i) => {
            const others = [...parts.names.filter((name) => !names.includes(name)), HEAD];
            return groupSource(['top', 'middle'][i]!, patternsFor(names, others), stages![i]!);
          })
          .join('\n'),
      };
    },
  };
}

const unfit = (message: string) => new DownpourError('DP_USAGE', message);

/** The layer before, on the way from the output to the input. */
function before(layer: Layer): Layer | null {
  const [node] = layer.inboundNodes as unknown as { readonly inboundLayers: Layer[] }[];
  return node?.inboundLayers[0] ?? null;
}

/**
 * The last layer that still has places (height and width), else the one that the last layer with weights gets: what
 * comes after it knows the old classes. Pooling over the places then serves images of any size.
 */
function lastFeatures(model: LayersModel, from: string): Layer {
  const way: Layer[] = [];
  const { sourceLayer } = model.outputs[0]!;
  for (let layer: Layer | null = sourceLayer; layer !== null; layer = before(layer))
    way.push(layer);
  const hasWeights = (layers: readonly Layer[]) => layers.some(({ weights }) => weights.length > 0);
  const places = way.findIndex((layer, i) => {
    const [, height, width, ...others] = layer.outputShape as (number | null)[];
    return others.length === 1 && (height !== 1 || width !== 1) && hasWeights(way.slice(i));
  });
  if (places >= 0) return way[places]!;
  const head = way.findIndex(({ weights }) => weights.length > 0);
  const at = way.findIndex((layer, i) => i > head && layer.getClassName() !== 'Dropout');
  if (head >= 0 && at >= 0 && hasWeights(way.slice(at))) return way[at]!;
  throw unfit(
    `${from} has no layer with weights before its last one, so nothing of it can serve other classes: use a larger model`,
  );
}

/** Whether the layers begin with one that divides bytes: Keras puts it into some models. */
const rescales = (model: LayersModel): boolean =>
  model.layers.some((layer) =>
    layer instanceof tf.LayersModel ? rescales(layer) : layer.getClassName() === 'Rescaling',
  );

function mustFit(
  trunk: LayersModel,
  tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>,
  { from, last, inputShape }: { from: string; last: string; inputShape: readonly number[] },
): void {
  const rank = trunk.outputs[0]!.shape.length;
  if (rank !== 2 && rank !== 4) {
    throw unfit(
      `layer '${last}' of ${from} gives [n,${trunk.outputs[0]!.shape.slice(1)}]; a head needs features of each example, or at each place: choose another layer by --until`,
    );
  }
  for (const { originalName, shape } of trunk.weights) {
    const stored = tensors.get(originalName);
    if (!stored || String(stored.shape) === String(shape)) continue;
    throw unfit(
      `for images of ${inputShape[1]} × ${inputShape[0]} the tensor '${originalName}' has the shape [${shape}], and ${from} has it of shape [${stored.shape}]: leave --size out, or choose an earlier layer by --until`,
    );
  }
}

/** Names as the experiment's model has them, from the input to the output, and which of them thaw. */
function thawing(trunk: LayersModel, frozen: boolean) {
  // As in the model that `modelSource` writes.
  const model = tf.sequential({ layers: [trunk] });
  const { weights } = layersPart(model);
  const layerOf = (name: string) => name.slice(0, name.lastIndexOf('/'));
  const names = [...new Set(weights.map(({ name }) => layerOf(name)))];
  // Batch normalisation stays with the averages of the file: those of a few small minibatches are worse.
  const normalises = new Set(
    weights.filter(({ role }) => role !== 'trainable').map(({ name }) => layerOf(name)),
  );
  const trainable = names.filter((name) => !normalises.has(name));
  const third = Math.ceil(trainable.length / 3);
  const count = trainable.length;
  const thaws = [
    trainable.slice(Math.max(0, count - third)),
    trainable.slice(Math.max(0, count - 2 * third), Math.max(0, count - third)),
  ].filter((each) => each.length > 0);
  return { names, thaws: frozen ? [] : thaws };
}

/** Patterns that match the tensors of these layers, and of none of the others: as few as a common beginning or end allows. */
export function patternsFor(names: readonly string[], others: readonly string[]): string[] {
  const tensorOf = (name: string) => `${name}/kernel`;
  const rivals = others.map(tensorOf);
  const patterns: string[] = [];
  let open = [...names];
  while (open.length > 0) {
    const [name] = open as [string];
    const cuts = [...name.matchAll(/[_/.-]/g)].map(({ index }) => index);
    const candidates = [
      ...cuts.flatMap((at) => [`${name.slice(0, at + 1)}*`, `*${name.slice(at)}/*`]),
      `${name}/*`,
    ].filter((pattern) => !rivals.some((rival) => matchesPattern(rival, pattern)));
    const covers = (pattern: string) =>
      open.filter((each) => matchesPattern(tensorOf(each), pattern)).length;
    const best = candidates.reduce((a, b) => (covers(b) > covers(a) ? b : a), `${name}/*`);
    patterns.push(best);
    open = open.filter((each) => !matchesPattern(tensorOf(each), best));
  }
  if (patterns.length <= LIMITS.groupPatternsMax) return patterns;
  throw unfit(
    `the layers to train need ${patterns.length} patterns of names; at most ${LIMITS.groupPatternsMax} are allowed: use --frozen, and write the groups by hand`,
  );
}

function pretrainedSource({
  from,
  sha256,
  cut,
  freeze,
  fresh,
}: {
  readonly from: string;
  readonly sha256: string;
  readonly cut: { readonly until: string; readonly inputShape?: readonly number[] };
  readonly freeze: readonly string[];
  readonly fresh: boolean;
}): string {
  const lines = [
    `from: ${code(from)},`,
    `sha256: '${sha256}',`,
    `until: ${code(cut.until)},`,
    ...(cut.inputShape ? [`inputShape: [${cut.inputShape.join(', ')}],`] : []),
    ...(fresh ? ['fresh: true,'] : []),
    ...(freeze.length > 0
      ? [
          '// Not trained. Batch normalisation keeps the averages of the file.',
          `freeze: ${codeList(freeze, '    ')},`,
        ]
      : []),
  ];
  return `  pretrained: {\n${lines.map((line) => `    ${line}\n`).join('')}  },`;
}

function modelSource(
  features: readonly number[],
  [black, white]: readonly [number, number],
  isTyped: boolean,
): string {
  const isUnit = black === 0 && white === 1;
  const layers = [
    ...(isUnit
      ? []
      : [
          `// Pixels come as 0 to 1; the file's layers take ${black} to ${white}.`,
          `tf.layers.rescaling({ inputShape, scale: ${white - black}, offset: ${black} }),`,
        ]),
    `pretrained${isTyped ? '!' : ''},`,
    ...(features.length === 3 ? ['tf.layers.globalAveragePooling2d({}),'] : []),
    'tf.layers.dropout({ rate: Number(hyperparameters.dropout ?? 0.2) }),',
    '// The new head. Logits: the softmax is in the loss.',
    `tf.layers.dense({ units: classCount, name: '${HEAD}' }),`,
  ];
  return `  model: ({ tf, ${isUnit ? '' : 'inputShape, '}classCount, hyperparameters, pretrained }) =>
    tf.sequential({
      layers: [
${layers.map((line) => `        ${line}`).join('\n')}
      ],
    }),`;
}

function groupSource(name: string, patterns: readonly string[], untilStep: number): string {
  return `      ${name}: {
        pattern: ${codeList(patterns, '        ')},
        frozen: { untilStep: ${untilStep} },
        learningRate: 0.1,
      },`;
}
