import { LIMITS } from '../../shared/limits.ts';
import type { Draws } from '../draws.ts';
import { invalid } from '../model/data-shape.ts';
import { type Tensor, tf } from '../tf.ts';
import { numberIn, wholeIn } from './range.ts';

/**
 * Changes of what pixels are: brightness, contrast, hue, and squares that are cut out. Amounts are relative to each image, so
 * they mean the same for bytes divided by 255 and for standardised numbers.
 */

/** One change of what pixels are, in training alone. */
export interface Values {
  readonly kind: 'values';
  /** @param images [n, height, width, channels]; float32. @returns the same shape. */
  change(images: Tensor, random: Draws): Tensor;
}

/** A number for each example, from −range to range: [n, 1, 1, 1]. */
function amounts(images: Tensor, random: Draws, range: number): Tensor {
  const values = Float32Array.from(
    { length: images.shape[0]! },
    () => (2 * random.number() - 1) * range,
  );
  return tf.tensor(values, [values.length, 1, 1, 1]);
}

/**
 * Adds one number to all pixels of an image.
 * @param share 0 … 1: the most, as a share of the difference between the image's largest and smallest number. Nothing is
 *   clipped.
 */
export function brightness(share: number): Values {
  const most = numberIn('brightness: share', share, 0, 1);
  return {
    kind: 'values',
    change(images, random) {
      const axes = [1, 2, 3];
      const range = tf.sub(tf.max(images, axes, true), tf.min(images, axes, true));
      return tf.add(images, tf.mul(range, amounts(images, random, most)));
    },
  };
}

/**
 * Brings the pixels of a channel closer to their mean, or further away from it.
 * @param share 0 … 1: the factor is from 1 − share to 1 + share.
 */
export function contrast(share: number): Values {
  const most = numberIn('contrast: share', share, 0, 1);
  return {
    kind: 'values',
    change(images, random) {
      const mean = tf.mean(images, [1, 2], true);
      return tf.add(images, tf.mul(tf.sub(images, mean), amounts(images, random, most)));
    },
  };
}

/** Red, green and blue as luminance and two colour differences (YIQ), and back. */
const TO_YIQ = [
  [0.299, 0.587, 0.114],
  [0.595716, -0.274453, -0.321263],
  [0.211456, -0.522591, 0.311135],
] as const;
const TO_RGB = [
  [1, 0.956296, 0.621024],
  [1, -0.272122, -0.647381],
  [1, -1.106989, 1.704615],
] as const;

/**
 * Turns the colours of an image about the axis of greys: luminance and greys stay. Three channels only.
 * @param degrees the most in each direction, 0 … 180; 120 turns red into green.
 */
export function hue(degrees: number): Values {
  const most = numberIn('hue: degrees', degrees, 0, 180);
  return {
    kind: 'values',
    change(images, random) {
      const [n, height, width, channels] = images.shape as [number, number, number, number];
      if (channels !== 3) {
        throw invalid(
          `hue: the images have ${channels} channel${channels === 1 ? '' : 's'}; allowed: 3 (red, green, blue). Leave hue out`,
        );
      }
      const matrices = new Float32Array(9 * n);
      for (let i = 0; i < n; i++) {
        matrices.set(hueMatrix(((2 * random.number() - 1) * most * Math.PI) / 180), 9 * i);
      }
      const pixels = tf.reshape(images, [n, height * width, 3]);
      const turned = tf.matMul(pixels, tf.tensor3d(matrices, [n, 3, 3]));
      return tf.reshape(turned, images.shape);
    },
  };
}

/** What a row (red, green, blue) is multiplied with; row by row. */
function hueMatrix(angle: number): number[] {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const matrix: number[] = [];
  for (let from = 0; from < 3; from++) {
    const [y, i, q] = [TO_YIQ[0][from]!, TO_YIQ[1][from]!, TO_YIQ[2][from]!];
    const turned = [y, i * cos - q * sin, i * sin + q * cos] as const;
    for (let to = 0; to < 3; to++) {
      matrix.push(TO_RGB[to]!.reduce((sum, weight, k) => sum + weight * turned[k]!, 0));
    }
  }
  return matrix;
}

export interface CutoutOptions {
  /** What the square is filled with: the mean of each channel of the image (default), or a number in the model's units. */
  readonly fill?: 'mean' | number;
}

/**
 * Covers one square of each image (DeVries and Taylor 2017). Its middle is anywhere in the image, so a part of it may lie
 * outside.
 * @param size its side in pixels.
 */
export function cutout(size: number, { fill = 'mean' }: CutoutOptions = {}): Values {
  const side = wholeIn('cutout: size', size, 0, LIMITS.imageSideMax);
  if (fill !== 'mean' && !Number.isFinite(fill)) {
    throw invalid(`cutout: fill is ${JSON.stringify(fill)}; allowed: 'mean' or a number`);
  }
  return {
    kind: 'values',
    change(images, random) {
      const [n, height, width] = images.shape as [number, number, number];
      const covered = new Float32Array(n * height * width);
      for (let image = 0; image < n; image++) {
        const top = Math.floor(random.number() * height) - (side >> 1);
        const left = Math.floor(random.number() * width) - (side >> 1);
        for (let y = Math.max(0, top); y < Math.min(height, top + side); y++) {
          const start = (image * height + y) * width;
          const [from, to] = [Math.max(0, left), Math.max(0, Math.min(width, left + side))];
          covered.fill(1, start + from, start + to);
        }
      }
      const mask = tf.tensor4d(covered, [n, height, width, 1]);
      const inside = fill === 'mean' ? tf.mean(images, [1, 2], true) : tf.scalar(fill);
      return tf.add(tf.mul(images, tf.sub(1, mask)), tf.mul(mask, inside));
    },
  };
}
