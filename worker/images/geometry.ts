import { LIMITS } from '../../shared/limits.ts';
import type { Draws } from '../draws.ts';
import { invalid } from '../model/data-shape.ts';
import { type Tensor, tf } from '../tf.ts';
import { numberIn, wholeIn } from './range.ts';

/**
 * Changes of where pixels lie: flip, shift, crop, pad, resize, rotate, scale, shear. Steps that follow each other become one
 * map for each example, so an image is sampled once, however many steps there are.
 */

/** Rows and columns of an image, in pixels. */
export type Size = readonly [height: number, width: number];

/**
 * What stands outside the image: its nearest pixel (`edge`), the image mirrored at its edge (`reflect`), or a number in the
 * units that the model sees.
 */
export type Fill = 'edge' | 'reflect' | number;

export interface FillOptions {
  /** Default: `edge`, which suits any standardisation. */
  readonly fill?: Fill;
}

/** [a, b, c, d, e, f]: the pixel (x, y) of the result is (a·x + b·y + c, d·x + e·y + f) of the image; x counts columns. */
type Affine = readonly [number, number, number, number, number, number];

/** One change of where pixels lie. */
export interface Geometry {
  readonly kind: 'geometry';
  /** null: it looks at pixels of the image alone. */
  readonly fill: Fill | null;
  /** It may give another size than it gets; then evaluations need it too. */
  readonly resizes: boolean;
  /** The size of the result. @throws DownpourError DP_EXPERIMENT_INVALID: the step is impossible at this size. */
  sizeAfter(size: Size): Size;
  /** @param draw a number from 0, below 1; null: in evaluations, where nothing is random. */
  map(draw: (() => number) | null, size: Size): Affine;
}

const IDENTITY: Affine = [1, 0, 0, 0, 1, 0];
const same = (size: Size): Size => size;

/** A number from −range to range. */
const around = (draw: () => number, range: number) => (2 * draw() - 1) * range;

/** A map about the middle of the image. */
function centred([a, b, d, e]: readonly [number, number, number, number], size: Size): Affine {
  const [x, y] = [(size[1] - 1) / 2, (size[0] - 1) / 2];
  return [a, b, x - a * x - b * y, d, e, y - d * x - e * y];
}

function fillOf(name: string, { fill = 'edge' }: FillOptions): Fill {
  if (fill === 'edge' || fill === 'reflect' || Number.isFinite(fill)) return fill;
  throw invalid(`${name}: fill is ${JSON.stringify(fill)}; allowed: 'edge', 'reflect' or a number`);
}

/** A random change that keeps the size and leaves evaluations alone. */
const randomly = (
  fill: Fill | null,
  map: (draw: () => number, size: Size) => Affine,
): Geometry => ({
  ...{ kind: 'geometry', fill, resizes: false, sizeAfter: same },
  map: (draw, size) => (draw === null ? IDENTITY : map(draw, size)),
});

/**
 * Mirrors each image with probability 1/2. Not for digits, letters, and other things whose mirror image is something else.
 * @param axis `horizontal` (default) exchanges left and right, `vertical` top and bottom; `both` decides for each by itself.
 */
export function flip(axis: 'horizontal' | 'vertical' | 'both' = 'horizontal'): Geometry {
  if (!['horizontal', 'vertical', 'both'].includes(axis)) {
    throw invalid(
      `flip: axis is ${JSON.stringify(axis)}; allowed: 'horizontal', 'vertical', 'both'`,
    );
  }
  return randomly(null, (draw, [height, width]) => {
    const isMirrored = axis !== 'vertical' && draw() < 0.5;
    const isTurned = axis !== 'horizontal' && draw() < 0.5;
    return [
      ...(isMirrored ? ([-1, 0, width - 1] as const) : ([1, 0, 0] as const)),
      ...(isTurned ? ([0, -1, height - 1] as const) : ([0, 1, 0] as const)),
    ];
  });
}

/**
 * Moves each image by whole pixels: exact, nothing is blurred.
 * @param pixels the most in each direction: 0 or more; or the most up and down, and left and right.
 */
export function shift(
  pixels: number | readonly [number, number],
  options: FillOptions = {},
): Geometry {
  const [down, right] = pairOf('shift: pixels', pixels, 0);
  const whole = (draw: () => number, most: number) => Math.floor(draw() * (2 * most + 1)) - most;
  return randomly(fillOf('shift', options), (draw) => {
    const y = whole(draw, down);
    return [1, 0, whole(draw, right), 0, 1, y];
  });
}

/** Turns each image about its middle, bilinear. @param degrees the most in each direction, 0 … 180. */
export function rotate(degrees: number, options: FillOptions = {}): Geometry {
  const most = numberIn('rotate: degrees', degrees, 0, 180);
  return randomly(fillOf('rotate', options), (draw, size) => {
    const angle = (around(draw, most) * Math.PI) / 180;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    return centred([cos, -sin, sin, cos], size);
  });
}

/**
 * Makes the content of each image larger or smaller, about its middle, bilinear. The size of the image stays.
 * @param share 0 … 0.9: the factor is from 1 − share to 1 + share.
 */
export function scale(share: number, options: FillOptions = {}): Geometry {
  const most = numberIn('scale: share', share, 0, 0.9);
  return randomly(fillOf('scale', options), (draw, size) => {
    const inverse = 1 / (1 + around(draw, most));
    return centred([inverse, 0, 0, inverse], size);
  });
}

/** Slants each image, as italics are: rows move sideways, bilinear. @param degrees the most in each direction, 0 … 60. */
export function shear(degrees: number, options: FillOptions = {}): Geometry {
  const most = numberIn('shear: degrees', degrees, 0, 60);
  return randomly(fillOf('shear', options), (draw, size) => {
    const slope = Math.tan((around(draw, most) * Math.PI) / 180);
    return centred([1, slope, 0, 1], size);
  });
}

/**
 * Cuts a window out of each image: at a random place in training, from the middle in evaluations.
 * @param size height and width of the window in pixels, or one number for both.
 */
export function crop(size: number | Size): Geometry {
  const [height, width] = pairOf('crop: size', size, 1);
  const at = (draw: (() => number) | null, room: number) =>
    Math.floor(draw === null ? room / 2 : draw() * (room + 1));
  return {
    ...{ kind: 'geometry', fill: null, resizes: true },
    sizeAfter(from) {
      if (height <= from[0] && width <= from[1]) return [height, width];
      throw invalid(
        `crop: a window of ${height} × ${width} does not fit into images of ${from[0]} × ${from[1]} (height × width); use a smaller window, or resize or pad first`,
      );
    },
    map(draw, from) {
      const y = at(draw, from[0] - height);
      return [1, 0, at(draw, from[1] - width), 0, 1, y];
    },
  };
}

/** Adds pixels on all four sides, in evaluations as well. @param pixels on each side; or above and below, and left and right. */
export function pad(
  pixels: number | readonly [number, number],
  options: FillOptions = {},
): Geometry {
  const [rows, columns] = pairOf('pad: pixels', pixels, 0);
  return {
    ...{ kind: 'geometry', fill: fillOf('pad', options), resizes: true },
    sizeAfter: ([height, width]) => [height + 2 * rows, width + 2 * columns],
    map: () => [1, 0, -columns, 0, 1, -rows],
  };
}

/**
 * Brings images to another size, bilinear, in evaluations as well. It looks at four pixels for each new one: to less than
 * half of the size, give `size` to `loadImageFolder` instead, which takes means.
 * @param size height and width in pixels, or one number for both.
 */
export function resize(size: number | Size): Geometry {
  const [height, width] = pairOf('resize: size', size, 1);
  return {
    ...{ kind: 'geometry', fill: 'edge', resizes: true },
    sizeAfter: () => [height, width],
    map(_draw, from) {
      // Pixels are squares, and (x, y) is the middle of one.
      const [y, x] = [from[0] / height, from[1] / width];
      return [x, 0, (x - 1) / 2, 0, y, (y - 1) / 2];
    },
  };
}

function pairOf(what: string, given: number | readonly [number, number], least: number): Size {
  const pair = typeof given === 'number' ? [given, given] : given;
  if (!Array.isArray(pair) || pair.length !== 2) {
    throw invalid(
      `${what} is ${JSON.stringify(given)}; allowed: a number, or [vertical, horizontal]`,
    );
  }
  const most = LIMITS.imageSideMax;
  return [wholeIn(what, pair[0], least, most), wholeIn(what, pair[1], least, most)];
}

/** `first`, then `second`: a pixel of the result is found in what `first` gave, and that in the image. */
function composed(first: Affine, second: Affine): Affine {
  const [a, b, c, d, e, f] = first;
  const [g, h, i, j, k, l] = second;
  return [
    a * g + b * j,
    a * h + b * k,
    a * i + b * l + c,
    d * g + e * j,
    d * h + e * k,
    d * i + e * l + f,
  ];
}

/**
 * Applies steps of one fill.
 * @param images [n, height, width, channels]; float32.
 * @param random null: in evaluations.
 */
export function moved(images: Tensor, steps: readonly Geometry[], random: Draws | null): Tensor {
  const [n, ...rest] = images.shape as [number, number, number, number];
  const draw = random === null ? null : () => random.number();
  let size: Size = [rest[0], rest[1]];
  const sizes = steps.map((step) => {
    const before = size;
    size = step.sizeAfter(size);
    return before;
  });
  const maps = Array.from({ length: n }, () =>
    steps.reduce((map, step, i) => composed(map, step.map(draw, sizes[i]!)), IDENTITY),
  );
  const isSame = maps.every((map) => map.every((value, i) => value === IDENTITY[i]));
  if (isSame && size[0] === rest[0] && size[1] === rest[1]) return images;
  return sampled(images, maps, size, commonFill(steps) ?? 'edge');
}

/** The fill of steps that have the same one; null: none needs any. */
export const commonFill = (steps: readonly Geometry[]): Fill | null =>
  steps.find(({ fill }) => fill !== null)?.fill ?? null;

/** Pixels of the result that are computed at once: 4 taps with index and weight are 32 bytes each. */
const PIXELS_AT_ONCE = 2 ** 17;

function sampled(images: Tensor, maps: readonly Affine[], size: Size, fill: Fill): Tensor {
  const atOnce = Math.max(1, Math.floor(PIXELS_AT_ONCE / (size[0] * size[1])));
  const parts: Tensor[] = [];
  for (let i = 0; i < maps.length; i += atOnce) {
    const own = maps.slice(i, i + atOnce);
    const part = tf.slice(images, i, own.length);
    parts.push(sampledAtOnce(part, own, size, fill));
  }
  return parts.length === 1 ? parts[0]! : tf.concat(parts);
}

function sampledAtOnce(images: Tensor, maps: readonly Affine[], size: Size, fill: Fill): Tensor {
  const [n, height, width, channels] = images.shape as [number, number, number, number];
  const pixels = n * size[0] * size[1];
  const isWhole = maps.every((map) => map.every(Number.isInteger));
  const taps = tapsOf(maps, [height, width], size, { fill, count: isWhole ? 1 : 4 });
  const flat = tf.reshape(images, [n * height * width, channels]);
  const found = tf.gather(flat, tf.tensor1d(taps.indices, 'int32'));
  const shape = [n, size[0], size[1], channels];
  if (isWhole && typeof fill !== 'number') return tf.reshape(found, shape);
  const weights = tf.tensor(taps.weights, [pixels, taps.count, 1]);
  const sum = tf.sum(tf.mul(tf.reshape(found, [pixels, taps.count, channels]), weights), 1);
  const result = tf.reshape(sum, shape);
  if (typeof fill !== 'number' || fill === 0) return result;
  const outside = tf.sub(1, tf.reshape(tf.sum(weights, 1), [n, size[0], size[1], 1]));
  return tf.add(result, tf.mul(outside, fill));
}

interface Taps {
  /** [pixels · count]: which pixel of the minibatch. */
  readonly indices: Int32Array;
  /** [pixels · count]: how much of it; 0 outside the image where a number fills. */
  readonly weights: Float32Array;
  readonly count: number;
}

/** In JavaScript, in float64, so that each engine gets the same numbers. */
function tapsOf(
  maps: readonly Affine[],
  [height, width]: Size,
  [outHeight, outWidth]: Size,
  { fill, count }: { readonly fill: Fill; readonly count: 1 | 4 },
): Taps {
  const total = maps.length * outHeight * outWidth * count;
  const indices = new Int32Array(total);
  const weights = new Float32Array(total);
  const clipped = typeof fill === 'number';
  const inside = fill === 'reflect' ? reflected : nearest;
  let at = 0;
  const put = (image: number, x: number, y: number, weight: number) => {
    const isOutside = clipped && (x < 0 || x >= width || y < 0 || y >= height);
    indices[at] = (image * height + inside(y, height)) * width + inside(x, width);
    weights[at++] = isOutside ? 0 : weight;
  };
  maps.forEach(([a, b, c, d, e, f], image) => {
    for (let row = 0; row < outHeight; row++) {
      for (let column = 0; column < outWidth; column++) {
        const x = a * column + b * row + c;
        const y = d * column + e * row + f;
        const [left, top] = [Math.floor(x), Math.floor(y)];
        if (count === 1) {
          put(image, left, top, 1);
          continue;
        }
        const [right, bottom] = [x - left, y - top];
        put(image, left, top, (1 - right) * (1 - bottom));
        put(image, left + 1, top, right * (1 - bottom));
        put(image, left, top + 1, (1 - right) * bottom);
        put(image, left + 1, top + 1, right * bottom);
      }
    }
  });
  return { indices, weights, count };
}

const nearest = (at: number, size: number) => Math.min(Math.max(at, 0), size - 1);

/** dcba|abcd|dcba */
function reflected(at: number, size: number): number {
  const period = 2 * size;
  const within = ((at % period) + period) % period;
  return within < size ? within : period - 1 - within;
}
