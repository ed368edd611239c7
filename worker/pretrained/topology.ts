import { DownpourError } from '../../shared/errors.ts';
import { isRecord } from '../fields.ts';

/** The architecture in a `model.json`, in the form that tfjs reads: Keras 3 writes some of it in another one. */

/**
 * @param given `modelTopology` of the file. @returns a copy that `tf.loadLayersModel` reads.
 * @throws DownpourError DP_DATA_CORRUPT: it describes no model; DP_EXPERIMENT_INVALID: a layer that tfjs does not have.
 */
export function topologyOf(path: string, given: unknown): Record<string, unknown> {
  const model = isRecord(given) && isRecord(given.model_config) ? given.model_config : given;
  if (!isRecord(model) || typeof model.class_name !== 'string' || !isRecord(model.config)) {
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `the pretrained file ${path} has no modelTopology with class_name and config, so it is no layers model: convert the Keras model with tensorflowjs_converter --output_format=tfjs_layers_model`,
    );
  }
  return convert(path, model) as Record<string, unknown>;
}

function convert(path: string, value: unknown): unknown {
  if (Array.isArray(value)) return value.map((each) => convert(path, each));
  if (!isRecord(value)) return value;
  if (value.class_name === 'DTypePolicy' && isRecord(value.config)) return value.config.name;
  const made = Object.fromEntries(
    Object.entries(value).map(([key, each]): [string, unknown] => [
      key === 'batch_shape' ? 'batch_input_shape' : key,
      key === 'inbound_nodes' ? nodesOf(each) : convert(path, each),
    ]),
  );
  if (made.class_name === 'GRU' && isRecord(made.config) && made.config.reset_after === true) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `layer '${String(made.config.name)}' of ${path} is a GRU with reset_after: true, which tfjs does not compute: train the Keras model with reset_after=False, or use an LSTM`,
    );
  }
  // Keras 3 has one input as ["name", 0, 0], Keras 2 as a list of such.
  for (const key of ['input_layers', 'output_layers']) {
    const ends = made[key];
    if (Array.isArray(ends) && typeof ends[0] === 'string') made[key] = [ends];
  }
  return made;
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
