import type { SymbolicTensor } from '@tensorflow/tfjs-layers';
import { type Layer, tf } from '../tf.ts';
import { invalid } from './data-shape.ts';

/**
 * Images and sequences of which nothing is left. TensorFlow.js gives a layer the size 0 without a word, and what follows then
 * trains on its biases alone.
 */

let isInstalled = false;

/** From now on a layer whose result would be empty is refused when a model is built, with the shapes of all layers before it. */
export function refuseVanishing(): void {
  if (isInstalled) return;
  isInstalled = true;
  const prototype = tf.layers.Layer.prototype as { apply: Layer['apply'] };
  const { apply } = prototype;
  prototype.apply = function (this: Layer, ...args: Parameters<Layer['apply']>) {
    const result = apply.apply(this, args);
    for (const output of [result].flat()) {
      if (output instanceof tf.Tensor || !isEmpty(output.shape)) continue;
      const inputs = [args[0]].flat() as SymbolicTensor[];
      // What was empty before vanished elsewhere.
      if (inputs.some(({ shape }) => isEmpty(shape))) continue;
      throw invalid(messageOf(this, inputs[0]!, output.shape));
    }
    return result;
  };
}

/** null: any size. */
type OpenShape = readonly (number | null)[];

const isEmpty = (shape: OpenShape) => shape.slice(1).some((size) => size !== null && size < 1);

function messageOf(layer: Layer, input: SymbolicTensor, shape: OpenShape): string {
  const { padding } = layer as Windowed;
  const window = windowOf(layer);
  const reason =
    window === null
      ? `takes more away than [${sizesOf(input.shape)}] has`
      : `has a window of ${window.join(' × ')}, which does not fit into [${sizesOf(input.shape)}]`;
  const steps = [...layersBefore(input), `${named(layer)} [${sizesOf(shape)}]`].join(' → ');
  const advice =
    padding === 'valid'
      ? "With padding 'valid' a window lies inside as a whole, so each layer makes the result smaller by its window less 1. Give padding: 'same', which adds zeros around and leaves the size to the strides; or use a smaller window, fewer such layers, or larger inputs"
      : 'Use fewer such layers, or larger inputs';
  return `nothing is left after layer '${layer.name}': it ${reason}. Shapes: ${steps}. ${advice}`;
}

/** Layers with windows have these. */
type Windowed = Layer & {
  readonly kernelSize?: number | readonly number[];
  readonly poolSize?: number | readonly number[];
  readonly strides?: number | readonly number[];
  readonly padding?: string;
};

function windowOf(layer: Layer): readonly number[] | null {
  const { kernelSize, poolSize } = layer as Windowed;
  const window = kernelSize ?? poolSize;
  return window === undefined ? null : [window].flat();
}

/** The layer's kind with what decides about the size. */
function named(layer: Layer): string {
  const { padding, strides } = layer as Windowed;
  const window = windowOf(layer);
  if (window === null) return layer.getClassName();
  const steps = [strides ?? 1].flat();
  const stepped = steps.some((step) => step !== 1) ? `, strides ${steps.join(' × ')}` : '';
  return `${layer.getClassName()} (${window.join(' × ')}${stepped}, ${padding})`;
}

/** From the model's input on, each layer with its result. */
function layersBefore(tensor: SymbolicTensor): string[] {
  const { sourceLayer, inputs, shape } = tensor;
  const own = sizesOf(shape);
  if (!inputs || inputs.length === 0) return [`input [${own}]`];
  return [...layersBefore(inputs[0]!), `${named(sourceLayer)} [${own}]`];
}

const sizesOf = (shape: OpenShape) =>
  shape
    .slice(1)
    .map((size) => size ?? '?')
    .join(',');
