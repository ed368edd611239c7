import { DownpourError } from '../../shared/errors.ts';
import { nearest } from '../../shared/spelling.ts';
import { isRecord } from '../fields.ts';

/** Takes the first layers of an architecture alone, and gives its input another shape. */

export interface Cut {
  /** The last layer that is used; default: all are. */
  readonly until?: string;
  /** The shape of one example; default: that of the file. */
  readonly inputShape?: readonly number[];
}

interface LayerConfig {
  readonly class_name?: string;
  readonly name?: string;
  readonly config: Record<string, unknown>;
  readonly inbound_nodes?: readonly unknown[];
}

interface ModelConfig {
  readonly class_name: string;
  readonly config: Record<string, unknown> | readonly LayerConfig[];
}

/**
 * @param model as `tf.loadLayersModel` reads it; it is not changed.
 * @throws DownpourError DP_EXPERIMENT_INVALID: it has no such layer, or not one input whose shape can be another one.
 */
export function cutTopology(
  path: string,
  model: Record<string, unknown>,
  { until, inputShape }: Cut,
): Record<string, unknown> {
  let cut = model as unknown as ModelConfig;
  if (until !== undefined) cut = untilLayer(path, cut, until);
  if (inputShape !== undefined) cut = withInput(path, cut, [null, ...inputShape]);
  return cut as unknown as Record<string, unknown>;
}

/** Keras 1 has the layers of a sequential model as its configuration. */
const layersOf = ({ config }: ModelConfig): readonly LayerConfig[] =>
  (Array.isArray(config) ? config : (config as { layers?: unknown }).layers) as LayerConfig[];

const nameOf = ({ name, config }: LayerConfig): string => name ?? String(config.name);

const withLayers = (model: ModelConfig, layers: readonly LayerConfig[]): ModelConfig => ({
  ...model,
  config: Array.isArray(model.config) ? layers : { ...model.config, layers },
});

function untilLayer(path: string, model: ModelConfig, until: string): ModelConfig {
  const layers = layersOf(model);
  const names = layers.map(nameOf);
  const at = names.indexOf(until);
  if (at < 0) {
    const near = nearest(until, names);
    throw invalid(
      `pretrained.until is '${until.slice(0, 80)}', and ${path} has no layer of this name; ${near ? `did you mean '${near}'?` : `its last layers are ${names.slice(-6).join(', ')}`}`,
    );
  }
  if (model.class_name === 'Sequential') return withLayers(model, layers.slice(0, at + 1));
  const kept = new Set<string>();
  const waiting = [until];
  for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
    if (kept.has(name)) continue;
    kept.add(name);
    waiting.push(...sourcesOf(layers[names.indexOf(name)]));
  }
  const isKept = (end: unknown) => Array.isArray(end) && kept.has(end[0]);
  const { input_layers: inputs } = model.config as { input_layers?: readonly unknown[] };
  const shorter = withLayers(
    model,
    layers.filter((layer) => kept.has(nameOf(layer))),
  );
  const config = {
    ...shorter.config,
    input_layers: inputs?.filter(isKept) ?? [],
    output_layers: [[until, 0, 0]],
  };
  return { ...shorter, config };
}

/** The layers whose outputs the first call of a layer gets. */
function sourcesOf(layer: LayerConfig | undefined): string[] {
  const [first] = layer?.inbound_nodes ?? [];
  if (!Array.isArray(first)) return [];
  return first.filter(Array.isArray).map(([name]) => String(name));
}

/** The shape stands in the input layer, or in the first layer of a sequential model, which may be a model itself. */
function withInput(
  path: string,
  model: ModelConfig,
  shape: readonly (number | null)[],
): ModelConfig {
  const layers = layersOf(model);
  const isInput = ({ class_name, inbound_nodes }: LayerConfig, i: number) =>
    model.class_name === 'Sequential'
      ? i === 0 || (i === 1 && layers[0]!.class_name === 'InputLayer' && isModel(layers[1]!))
      : class_name === 'InputLayer' && (inbound_nodes ?? []).length === 0;
  const count = model.class_name === 'Sequential' ? 1 : layers.filter(isInput).length;
  if (count !== 1) {
    throw invalid(
      `pretrained.inputShape is [${shape.slice(1)}], and ${path} has ${count} inputs; it is for models with one input: leave it out`,
    );
  }
  return withLayers(
    model,
    layers.map((layer, i) => {
      if (!isInput(layer, i)) return layer;
      if (isModel(layer)) {
        return withInput(path, layer as unknown as ModelConfig, shape) as unknown as LayerConfig;
      }
      return { ...layer, config: { ...layer.config, batch_input_shape: shape } };
    }),
  );
}

const isModel = ({ config }: LayerConfig): boolean =>
  Array.isArray(config) || (isRecord(config) && Array.isArray(config.layers));

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
