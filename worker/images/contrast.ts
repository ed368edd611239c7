import { type Tensor, tf } from '../tf.ts';
import { numberIn, wholeIn } from './range.ts';

/**
 * Normalisation of the contrast of each image by itself (Deep Learning §12.2.1.1). Nothing is learnt or measured on other
 * images, so training, evaluations and predictions are treated alike.
 */

export interface GlobalContrastOptions {
  /** s: the standard deviation of an image afterwards. Default 1. */
  readonly scale?: number;
  /**
   * λ, added to the variance: images with hardly any contrast stay so. In squared units of the images: the book's 10 for small
   * random crops is for pixels of 0 … 255; for bytes divided by 255 it is 10 / 255². Default 0.
   */
  readonly lambda?: number;
  /** ε: what an image is divided by at least. Default 1e-8, the book's for loosely cropped images; 0 needs a λ above 0. */
  readonly epsilon?: number;
}

/**
 * Global contrast normalisation: each image minus its mean over rows, columns and channels, divided by its contrast,
 * s · (x − x̄) / max(ε, √(λ + mean (x − x̄)²)) (Deep Learning, equation 12.3).
 * @param images [n, height, width, channels], or [n, …]; float32.
 * @throws DownpourError DP_EXPERIMENT_INVALID: an option is out of range.
 */
export function globalContrast(images: Tensor, options: GlobalContrastOptions = {}): Tensor {
  const { scale, lambda, epsilon } = checkedGlobal(options);
  const axes = images.shape.slice(1).map((_, i) => i + 1);
  const centred = centredOver(images, axes);
  const variance = tf.mean(tf.square(centred), axes, true);
  // max(ε, √v) is √max(ε², v). √ has no slope at 0, so ε² is not allowed to be 0 in float32.
  const least = Math.max(epsilon * epsilon, SMALLEST);
  return tf.mul(tf.div(centred, tf.sqrt(tf.maximum(tf.add(variance, lambda), least))), scale);
}

/**
 * Minus the mean, twice: in float32 the mean of equal numbers is off by their rounding, which a contrast of 0 would be
 * divided into something.
 */
function centredOver(x: Tensor, axes: number[]): Tensor {
  const once = tf.sub(x, tf.mean(x, axes, true));
  return tf.sub(once, tf.mean(once, axes, true));
}

/** Above the smallest normal number of float32, which engines may round to 0. */
const SMALLEST = 1e-36;

/** @throws DownpourError DP_EXPERIMENT_INVALID. */
export function checkedGlobal(given: GlobalContrastOptions): Required<GlobalContrastOptions> {
  const { scale = 1, lambda = 0, epsilon = 1e-8 } = given;
  numberIn('globalContrast: scale', scale, 1e-6, 1e6);
  numberIn('globalContrast: lambda', lambda, 0, 1e12);
  numberIn('globalContrast: epsilon', epsilon, lambda > 0 ? 0 : 1e-12, 1e6);
  return { scale, lambda, epsilon };
}

export interface LocalContrastOptions {
  /** Side of the window in pixels, odd. Default 9. */
  readonly window?: number;
  /** Standard deviation of the window's Gaussian weights, in pixels. Default: a quarter of the window. */
  readonly deviation?: number;
  /** What a pixel is divided by at least. Default: the mean over the image of what its pixels would be divided by. */
  readonly epsilon?: number;
}

/**
 * Local contrast normalisation: each pixel minus the weighted mean of its neighbours, divided by their weighted deviation
 * from their own means (Jarrett et al. 2009, Deep Learning §12.2.1.1). Each channel by itself. At the border the window's
 * weights inside the image add up to 1. Gaussian weights are separable: two convolutions by rows and by columns, instead of
 * one by window² numbers.
 * @param images [n, height, width, channels]; float32.
 * @throws DownpourError DP_EXPERIMENT_INVALID: an option is out of range.
 */
export function localContrast(images: Tensor, options: LocalContrastOptions = {}): Tensor {
  const { window, deviation, epsilon } = checkedLocal(options);
  const weights = gaussian(window, deviation);
  const [, height, width] = images.shape as [number, number, number, number];
  const inside = tf.tensor4d(outer(sumsInside(weights, height), sumsInside(weights, width)), [
    1,
    height,
    width,
    1,
  ]);
  const blurred = (x: Tensor) => tf.div(separable(x, weights), inside);
  // What all pixels have in common changes nothing but the rounding.
  const own = centredOver(images, [1, 2]);
  const centred = tf.sub(own, blurred(own));
  const variance = blurred(tf.square(centred));
  const spread = tf.sqrt(tf.maximum(variance, SMALLEST));
  const least = epsilon ?? tf.maximum(tf.mean(spread, [1, 2], true), 1e-8);
  return tf.div(centred, tf.maximum(spread, least));
}

/** @throws DownpourError DP_EXPERIMENT_INVALID. */
export function checkedLocal({ window = 9, deviation, epsilon }: LocalContrastOptions) {
  wholeIn('localContrast: window', window, 3, LOCAL_WINDOW_MAX);
  if (window % 2 === 0) {
    // The middle of an even window is no pixel.
    numberIn('localContrast: window (an odd number)', Number.NaN, 3, LOCAL_WINDOW_MAX);
  }
  const own = deviation ?? window / 4;
  numberIn('localContrast: deviation', own, 0.1, LOCAL_WINDOW_MAX);
  if (epsilon !== undefined) numberIn('localContrast: epsilon', epsilon, 1e-12, 1e6);
  return { window, deviation: own, epsilon };
}

const LOCAL_WINDOW_MAX = 255;

/** Weights that add up to 1. */
function gaussian(window: number, deviation: number): Float32Array {
  const middle = (window - 1) / 2;
  const raw = Array.from({ length: window }, (_, i) =>
    Math.exp(-(((i - middle) / deviation) ** 2) / 2),
  );
  const sum = raw.reduce((a, b) => a + b, 0);
  return Float32Array.from(raw, (value) => value / sum);
}

/** For each place of a line, the sum of the weights that lie inside it. */
function sumsInside(weights: Float32Array, size: number): Float32Array {
  const middle = (weights.length - 1) / 2;
  return Float32Array.from({ length: size }, (_, at) =>
    weights.reduce((sum, weight, i) => {
      const place = at + i - middle;
      return place >= 0 && place < size ? sum + weight : sum;
    }, 0),
  );
}

const outer = (rows: Float32Array, columns: Float32Array) =>
  Float32Array.from({ length: rows.length * columns.length }, (_, i) => {
    return rows[Math.floor(i / columns.length)]! * columns[i % columns.length]!;
  });

/** Along the columns, then along the rows, zeros outside. */
function separable(x: Tensor, weights: Float32Array): Tensor {
  const channels = x.shape[3]!;
  const filter = (height: number, width: number) =>
    tf.tile(tf.tensor4d(weights, [height, width, 1, 1]), [1, 1, channels, 1]) as never;
  const along = tf.depthwiseConv2d(x as never, filter(weights.length, 1), 1, 'same');
  return tf.depthwiseConv2d(along, filter(1, weights.length), 1, 'same') as Tensor;
}
