import { DownpourError } from '../../shared/errors.ts';
import { isRecord } from '../fields.ts';
import { type Cut, cutTopology } from './cut.ts';

/** The architecture in a `model.json`, in the form that tfjs reads: Keras 3 writes some of it in another one. */

/**
 * @param given `modelTopology` of the file. @returns a copy that `tf.loadLayersModel` reads.
 * @throws DownpourError DP_DATA_CORRUPT: it describes no model; DP_EXPERIMENT_INVALID: it cannot be cut.
 */
export function topologyOf(path: string, given: unknown, cut: Cut = {}): Record<string, unknown> {
  const model = isRecord(given) && isRecord(given.model_config) ? given.model_config : given;
  if (
    !isRecord(model) ||
    typeof model.class_name !== 'string' ||
    !(isRecord(model.config) || Array.isArray(model.config))
  ) {
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `the pretrained file ${path} has no modelTopology with class_name and config, so it is no layers model: convert the Keras model with tensorflowjs_converter --output_format=tfjs_layers_model`,
    );
  }
  const converted = convert(model) as Record<string, unknown>;
  const { config } = converted as { config: Record<string, unknown> };
  if (!Array.isArray(config) && !Array.isArray(config.layers)) {
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `the pretrained file ${path} has a model without a list of layers: copy it again from where it came`,
    );
  }
  return cutTopology(path, converted, cut);
}

function convert(value: unknown): unknown {
  if (Array.isArray(value)) return value.map((each) => convert(each));
  if (!isRecord(value)) return value;
  if (value.class_name === 'DTypePolicy' && isRecord(value.config)) return value.config.name;
  const made = Object.fromEntries(
    Object.entries(value).map(([key, each]): [string, unknown] => [
      key === 'batch_shape' ? 'batch_input_shape' : key,
      key === 'inbound_nodes' ? nodesOf(each) : convert(each),
    ]),
  );
  // What is not trained, the experiment says: a trunk that Keras has saved frozen could else never thaw.
  if (isRecord(made.config) && made.config.trainable === false) {
    made.config = { ...made.config, trainable: true };
  }
  if (isRecord(made.config) && made.config.reset_after === true) {
    // Keras writes it beside GRU and GRUCell alone.
    made.class_name = `ResetAfter${String(made.class_name)}`;
  }
  if (made.class_name === 'Bidirectional') made.config = bidirectional(made.config);
  // Keras 3 has one input as ["name", 0, 0], Keras 2 as a list of such.
  for (const key of ['input_layers', 'output_layers']) {
    const ends = made[key];
    if (Array.isArray(ends) && typeof ends[0] === 'string') made[key] = [ends];
  }
  return made;
}

/** Keras 3 writes both directions with the names that they have within the layer; tfjs gives them these names itself. */
function bidirectional(config: unknown): unknown {
  if (!isRecord(config) || !isRecord(config.layer) || !isRecord(config.layer.config)) return config;
  const { layer, backward_layer: backward, ...others } = config;
  const { config: forward } = layer as { config: Record<string, unknown> };
  if (isRecord(backward) && isRecord(backward.config)) {
    const settings = ({ name: _, go_backwards: __, ...kept }: Record<string, unknown>) =>
      JSON.stringify(kept);
    if (settings(forward) !== settings(backward.config)) {
      throw new DownpourError(
        'DP_EXPERIMENT_INVALID',
        `layer '${String(config.name)}' has a backward_layer with other settings than its layer, which TensorFlow.js does not have: use the layers before it alone (pretrained.until), or give both directions the same settings in Keras`,
      );
    }
  }
  const name = String(forward.name).replace(/^forward_/, '');
  return { ...others, layer: { ...layer, config: { ...forward, name } } };
}

/** Calls of a layer: Keras 3 has `{ args, kwargs }` with tensors that say whose they are, Keras 2 a list of those names. */
function nodesOf(nodes: unknown): unknown {
  if (!Array.isArray(nodes)) return nodes;
  return nodes.map((node: unknown) => {
    if (!isRecord(node) || !Array.isArray(node.args)) return node;
    const tensors = node.args.flat(1).filter(isTensor);
    const { mask, training, ...others } = isRecord(node.kwargs) ? node.kwargs : {};
    return tensors.map(({ config: { keras_history: from } }) => [...from, others]);
  });
}

interface KerasTensor {
  readonly config: { readonly keras_history: readonly [string, number, number] };
}

const isTensor = (value: unknown): value is KerasTensor =>
  isRecord(value) &&
  value.class_name === '__keras_tensor__' &&
  isRecord(value.config) &&
  Array.isArray(value.config.keras_history);
