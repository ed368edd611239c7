import type { ImageReading } from '../../../shared/reading.ts';
import type { Picture } from './pictures.ts';

/** A picture as the numbers of an example: on a background, in grey or colours, in the size that all have. */

export type Canvas = Pick<ImageReading, 'height' | 'width' | 'channels' | 'background' | 'fit'>;

/**
 * @param target bytes, shape [height, width, channels].
 * @returns whether something was transparent, and whether nothing can be seen because of that
 */
export function paint(picture: Picture, target: Uint8Array, canvas: Canvas) {
  const { width, height, channels, background, fit } = canvas;
  const { rgba } = picture;
  if (picture.width === width && picture.height === height) {
    return copyPixels(rgba, target, channels, background);
  }
  const whole = new Uint8Array(picture.width * picture.height * channels);
  const kind = copyPixels(rgba, whole, channels, background);
  const from = { width: picture.width, height: picture.height };
  resize(whole, from, target, canvas, fit ?? 'crop');
  return kind;
}

interface PixelSize {
  readonly width: number;
  readonly height: number;
}

/**
 * `crop` scales until the picture covers the target, and cuts off what sticks out on both sides alike; `pad` scales until it
 * fits in, and fills the rest with the background; `stretch` scales both axes alone. Each pixel is the mean under a
 * triangle as wide as two pixels of the coarser picture (antialiased bilinear), in float64: the same on all machines.
 */
function resize(
  source: Uint8Array,
  from: PixelSize,
  target: Uint8Array,
  { width, height, channels, background }: Canvas,
  fit: NonNullable<ImageReading['fit']>,
): void {
  const [sx, sy] = [width / from.width, height / from.height];
  const scale = fit === 'crop' ? Math.max(sx, sy) : Math.min(sx, sy);
  const [scaleX, scaleY] = fit === 'stretch' ? [sx, sy] : [scale, scale];
  const columns = weightsOf(width, from.width, scaleX);
  const rows = weightsOf(height, from.height, scaleY);
  // First across, then down.
  const middle = new Float64Array(from.height * width * channels);
  for (let y = 0; y < from.height; y++) {
    for (let x = 0; x < width; x++) {
      const { start, weights } = columns[x]!;
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k]! * source[(y * from.width + start + k) * channels + c]!;
        }
        middle[(y * width + x) * channels + c] = sum;
      }
    }
  }
  for (let y = 0; y < height; y++) {
    const { start, weights } = rows[y]!;
    for (let x = 0; x < width; x++) {
      const isOutside = weights.length === 0 || columns[x]!.weights.length === 0;
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k]! * middle[((start + k) * width + x) * channels + c]!;
        }
        target[(y * width + x) * channels + c] = isOutside
          ? groundOf(background, channels, c)
          : Math.round(sum);
      }
    }
  }
}

/** For each of `size` pixels, the first of `from` pixels that it takes from, and how much of each; none: it lies outside. */
function weightsOf(size: number, from: number, scale: number) {
  const support = Math.max(1, 1 / scale);
  const offset = (size - from * scale) / 2;
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5 - offset) / scale;
    if (centre < 0 || centre > from) return { start: 0, weights: [] };
    const start = Math.max(0, Math.ceil(centre - support - 0.5));
    const end = Math.min(from - 1, Math.floor(centre + support - 0.5));
    const weights = Array.from({ length: end - start + 1 }, (_, k) =>
      Math.max(0, 1 - Math.abs(start + k + 0.5 - centre) / support),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { start, weights: weights.map((weight) => weight / total) };
  });
}

function groundOf(background: readonly number[], channels: 1 | 3, c: number): number {
  return channels === 3 ? background[c]! : luma(background[0]!, background[1]!, background[2]!);
}

/** The luma of ITU-R BT.601, in integers: grey stays exactly what it was. */
const luma = (r: number, g: number, b: number) =>
  Math.floor((299 * r + 587 * g + 114 * b + 500) / 1000);

function copyPixels(
  rgba: Uint8Array,
  target: Uint8Array,
  channels: 1 | 3,
  background: readonly number[],
): 'opaque' | 'transparent' | 'vanished' {
  const [red = 255, green = 255, blue = 255] = background;
  let isOpaque = true;
  let [alphaMin, alphaMax] = [255, 0];
  for (let at = 0, to = 0; at < rgba.length; at += 4) {
    const alpha = rgba[at + 3]!;
    let r = rgba[at]!;
    let g = rgba[at + 1]!;
    let b = rgba[at + 2]!;
    if (alpha < alphaMin) alphaMin = alpha;
    if (alpha > alphaMax) alphaMax = alpha;
    if (alpha !== 255) {
      isOpaque = false;
      // Integers, rounded, are the same everywhere.
      const rest = 255 - alpha;
      r = Math.floor((r * alpha + red * rest + 127) / 255);
      g = Math.floor((g * alpha + green * rest + 127) / 255);
      b = Math.floor((b * alpha + blue * rest + 127) / 255);
    }
    if (channels === 1) {
      target[to++] = luma(r, g, b);
    } else {
      target[to++] = r;
      target[to++] = g;
      target[to++] = b;
    }
  }
  if (isOpaque) return 'opaque';
  const isFlat = target.every((value, i) => value === target[i % channels]);
  return isFlat && alphaMin !== alphaMax ? 'vanished' : 'transparent';
}
