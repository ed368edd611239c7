import { base64Of } from './base64.ts';
import { type Card, FIGURE_LIMITS } from './figure.ts';

/** How an example is shown: as a picture, or in words. */
export type ExampleView =
  | {
      readonly kind: 'image';
      readonly width: number;
      readonly height: number;
      readonly channels: 1 | 3 | 4;
      /** Row by row, 0 … 255. */
      readonly pixels: Uint8Array;
    }
  | { readonly kind: 'text'; readonly text: string };

/** One example of a training minibatch, as the model sees it. */
export interface SeenExample {
  readonly shown: ExampleView;
  /** Its index in the training part; null: `batch` gave another number of examples than it got. */
  readonly row: number | null;
  /** Its target, as the loss gets it. */
  readonly target: readonly number[];
}

const TEXT_MAX = 500;

/** As it travels, within the limits of figures. */
export function toldView(view: ExampleView): Card['shown'] {
  if (view.kind === 'text') return { kind: 'text', text: cut(view.text, TEXT_MAX) };
  const { width, height, channels, pixels } = shrunk(view);
  return { ...{ kind: 'image', width, height, channels }, pixels: base64Of(pixels) };
}

export const cut = (text: string, most = 1_000) =>
  text.length <= most ? text : `${text.slice(0, most - 1)}…`;

/** Means over squares of pixels, where a side has more than `FIGURE_LIMITS.imageSide`. */
export function shrunk(image: Extract<ExampleView, { kind: 'image' }>): typeof image {
  const { width, height, channels, pixels } = image;
  const scale = Math.max(width, height) / FIGURE_LIMITS.imageSide;
  if (scale <= 1) return image;
  const [w, h] = [width, height].map((side) => Math.max(1, Math.floor(side / scale))) as [
    number,
    number,
  ];
  const small = new Uint8Array(w * h * channels);
  for (let y = 0; y < h; y++) {
    const [top, bottom] = [Math.floor((y * height) / h), Math.floor(((y + 1) * height) / h)];
    for (let x = 0; x < w; x++) {
      const [left, right] = [Math.floor((x * width) / w), Math.floor(((x + 1) * width) / w)];
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let i = top; i < bottom; i++) {
          for (let j = left; j < right; j++) sum += pixels[(i * width + j) * channels + c]!;
        }
        small[(y * w + x) * channels + c] = sum / ((bottom - top) * (right - left));
      }
    }
  }
  return { ...image, width: w, height: h, pixels: small };
}
