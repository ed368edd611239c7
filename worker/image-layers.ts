import {
  checkedGlobal,
  checkedLocal,
  type GlobalContrastOptions,
  globalContrast,
  type LocalContrastOptions,
  localContrast,
} from './images/contrast.ts';
import { wholeIn } from './images/range.ts';
import { invalid } from './model/data-shape.ts';
import {
  type Layer,
  type LayerArguments,
  type LayerInputs,
  registerOwnClass,
  type Tensor,
  tf,
  Wrapper,
} from './tf.ts';

/** Layers for images, of `downpour/layers`: their inputs are [n, height, width, channels]. */

const one = (inputs: LayerInputs): Tensor => (Array.isArray(inputs) ? inputs[0]! : inputs);

/** `globalContrast` of images as a layer, so exports and predictions have it too. */
class GlobalContrast extends tf.layers.Layer {
  static readonly className = 'GlobalContrast';
  readonly #options: Required<GlobalContrastOptions>;

  constructor(args: NonNullable<LayerArguments> & GlobalContrastOptions = {}) {
    super(args);
    this.#options = checkedGlobal(args);
  }

  override computeOutputShape<S>(inputShape: S): S {
    return inputShape;
  }

  override call(inputs: LayerInputs): Tensor {
    return tf.tidy(() => globalContrast(one(inputs), this.#options));
  }

  override getConfig() {
    return { ...super.getConfig(), ...this.#options };
  }
}
registerOwnClass(GlobalContrast);

/** `localContrast` of images as a layer. */
class LocalContrast extends tf.layers.Layer {
  static readonly className = 'LocalContrast';
  readonly #options: LocalContrastOptions;

  constructor(args: NonNullable<LayerArguments> & LocalContrastOptions = {}) {
    super(args);
    const { window, deviation, epsilon } = checkedLocal(args);
    this.#options = { window, deviation, ...(epsilon === undefined ? {} : { epsilon }) };
  }

  override computeOutputShape<S>(inputShape: S): S {
    return inputShape;
  }

  override call(inputs: LayerInputs): Tensor {
    return tf.tidy(() => localContrast(one(inputs), this.#options));
  }

  override getConfig() {
    return { ...super.getConfig(), ...this.#options } as ReturnType<Layer['getConfig']>;
  }
}
registerOwnClass(LocalContrast);

export interface AdaptivePoolingOptions extends NonNullable<LayerArguments> {
  /** Height and width of the result, or one number for both. */
  readonly size: number | readonly [number, number];
  /** Default `average`. */
  readonly kind?: 'average' | 'max';
}

/** From which element of an axis to which one bin i of k reaches. */
const binOf = (i: number, bins: number, size: number): readonly [number, number] => [
  Math.floor((i * size) / bins),
  Math.ceil(((i + 1) * size) / bins),
];

/**
 * Pools images of any size to one fixed size: bin i of k along an axis of m reaches from ⌊i·m / k⌋ to ⌈(i + 1)·m / k⌉, so bins
 * overlap by at most one element where k does not divide m (Deep Learning §9.3: pooling for inputs of varying size).
 */
class AdaptivePooling extends tf.layers.Layer {
  static readonly className = 'AdaptivePooling';
  readonly #size: readonly [number, number];
  readonly #kind: 'average' | 'max';

  constructor(args: AdaptivePoolingOptions) {
    super(args);
    const { size, kind = 'average' } = args;
    const [height, width] = Array.isArray(size) ? size : [size, size];
    this.#size = [
      wholeIn('adaptivePooling: size', height, 1, 4096),
      wholeIn('adaptivePooling: size', width, 1, 4096),
    ];
    if (kind !== 'average' && kind !== 'max') {
      throw invalid(
        `adaptivePooling: kind is ${JSON.stringify(kind)}; allowed: 'average' or 'max'`,
      );
    }
    this.#kind = kind;
  }

  override computeOutputShape(inputShape: never): never {
    const [n, , , channels] = inputShape as number[];
    return [n, ...this.#size, channels] as never;
  }

  override call(inputs: LayerInputs): Tensor {
    return tf.tidy(() => {
      const along = this.#kind === 'max' ? maxAlong : averageAlong;
      return along(along(one(inputs), 1, this.#size[0]), 2, this.#size[1]);
    });
  }

  override getConfig() {
    return { ...super.getConfig(), size: [...this.#size], kind: this.#kind };
  }
}
registerOwnClass(AdaptivePooling);

function maxAlong(x: Tensor, axis: 1 | 2, bins: number): Tensor {
  const size = x.shape[axis]!;
  const parts = Array.from({ length: bins }, (_, i) => {
    const [from, to] = binOf(i, bins, size);
    const begin = axis === 1 ? [0, from, 0, 0] : [0, 0, from, 0];
    const length = axis === 1 ? [-1, to - from, -1, -1] : [-1, -1, to - from, -1];
    return tf.max(tf.slice(x, begin, length), axis, true);
  });
  return tf.concat(parts, axis);
}

/** Means are a product with a matrix [size, bins], which has a gradient on every engine. */
function averageAlong(x: Tensor, axis: 1 | 2, bins: number): Tensor {
  const size = x.shape[axis]!;
  const matrix = new Float32Array(size * bins);
  for (let i = 0; i < bins; i++) {
    const [from, to] = binOf(i, bins, size);
    for (let at = from; at < to; at++) matrix[at * bins + i] = 1 / (to - from);
  }
  const order = axis === 1 ? [0, 2, 3, 1] : [0, 1, 3, 2];
  const back = axis === 1 ? [0, 3, 1, 2] : [0, 1, 3, 2];
  const last = tf.transpose(x, order);
  const rows = tf.reshape(last, [-1, size]);
  const means = tf.matMul(rows, tf.tensor2d(matrix, [size, bins]));
  return tf.transpose(tf.reshape(means, [...last.shape.slice(0, 3), bins]), back);
}

interface AlongArguments extends NonNullable<LayerArguments> {
  readonly layer: Layer;
  readonly axis: 'rows' | 'columns';
}

/** A recurrent layer that reads each row of an image as a sequence from left to right, or each column from top to bottom. */
class AlongAxis extends Wrapper {
  static readonly className = 'AlongAxis';
  readonly #axis: 'rows' | 'columns';

  constructor(args: AlongArguments) {
    super(args);
    this.#axis = args.axis;
  }

  /** [n, height, width, channels] → the shape of the sequences, [lines, steps, channels]. */
  #sequences(shape: readonly (number | null)[]): (number | null)[] {
    const [, height = null, width = null, channels = null] = shape;
    return [null, this.#axis === 'rows' ? width : height, channels];
  }

  override build(inputShape: never): void {
    if (!this.layer.built) {
      // The bias of an LSTM with unitForgetBias leaves four tensors behind.
      tf.tidy(() => this.layer.build(this.#sequences(inputShape) as never));
      this.layer.built = true;
    }
    super.build(inputShape);
  }

  override computeOutputShape(inputShape: never): never {
    const told = this.layer.computeOutputShape(this.#sequences(inputShape) as never) as number[];
    if (told.length !== 3) {
      throw invalid(
        `rowsAndColumns: the layer gives shape [${told}] for a sequence; it must give one output for each step: returnSequences: true`,
      );
    }
    const [n, height, width] = inputShape as number[];
    return [n, height, width, told[2]] as never;
  }

  override call(inputs: LayerInputs, kwargs: { readonly training?: boolean }): Tensor {
    return tf.tidy(() => {
      const x = one(inputs);
      const isRows = this.#axis === 'rows';
      const lines = isRows ? x : tf.transpose(x, [0, 2, 1, 3]);
      const [n, count, steps, channels] = lines.shape as [number, number, number, number];
      const told = one(
        this.layer.call(tf.reshape(lines, [n * count, steps, channels]), kwargs) as LayerInputs,
      );
      const back = tf.reshape(told, [n, count, steps, told.shape[2]!]);
      return isRows ? back : tf.transpose(back, [0, 2, 1, 3]);
    });
  }

  override getConfig() {
    return { ...super.getConfig(), axis: this.#axis };
  }
}
registerOwnClass(AlongAxis);

export interface RowsAndColumnsOptions {
  /** Units of each direction; the result has twice as many channels. */
  readonly units: number;
  /** Default `gru`. */
  readonly cell?: 'gru' | 'lstm' | 'simpleRNN';
  /** The shape of an image, for the first layer of a model. */
  readonly inputShape?: readonly number[];
}

/**
 * Layers that read an image along its rows and then along its columns, in both directions each, so that each pixel of the
 * result has seen the whole image (ReNet, Visin et al. 2015; Deep Learning §10.3). They keep height and width, and give
 * 2 · units channels. Pool or resize before them: each row is as many steps as it has pixels.
 */
export function rowsAndColumns({
  units,
  cell = 'gru',
  inputShape,
}: RowsAndColumnsOptions): Layer[] {
  wholeIn('rowsAndColumns: units', units, 1, 65_536);
  if (!['gru', 'lstm', 'simpleRNN'].includes(cell)) {
    throw invalid(
      `rowsAndColumns: cell is ${JSON.stringify(cell)}; allowed: 'gru', 'lstm', 'simpleRNN'`,
    );
  }
  const both = () => {
    const args = { units, returnSequences: true };
    // The forget gate starts open, as Keras has it and TensorFlow.js has not.
    const layer =
      cell === 'lstm'
        ? tf.layers.lstm({ ...args, unitForgetBias: true })
        : cell === 'gru'
          ? tf.layers.gru(args)
          : tf.layers.simpleRNN(args);
    return tf.layers.bidirectional({
      layer: layer as never,
      mergeMode: 'concat' as never,
    }) as Layer;
  };
  const shape = inputShape ? { inputShape: [...inputShape] } : {};
  return [
    new AlongAxis({ layer: both(), axis: 'rows', ...shape }),
    new AlongAxis({ layer: both(), axis: 'columns' }),
  ];
}

/** As layers: see the functions of the same names in `downpour/images`. */
export const globalContrastLayer = (
  args: NonNullable<LayerArguments> & GlobalContrastOptions = {},
): Layer => new GlobalContrast(args);
export const localContrastLayer = (
  args: NonNullable<LayerArguments> & LocalContrastOptions = {},
): Layer => new LocalContrast(args);
export const adaptivePooling = (args: AdaptivePoolingOptions): Layer => new AdaptivePooling(args);
