/**
 * From the components of a JPEG to the colours that viewers show, by the integers of libjpeg. The
 * decoder repeats samples of chrominance that stand for several pixels; viewers interpolate them
 * (`jdsample.c`, the triangle filter). On strong colours that makes 10 of 255 on average.
 */

/** How many pixels one sample of a component stands for: across, down. */
export type Spread = readonly [number, number];

/**
 * @param rgba components in the place of red, green, blue, repeated to full size; changed in place
 * @param component 0, 1 or 2
 */
export function interpolate(
  rgba: Uint8Array,
  width: number,
  height: number,
  component: number,
  [across, down]: Spread,
): void {
  const isFiltered = (across === 2 && down <= 2) || (across === 1 && down === 2);
  const columns = Math.ceil(width / across);
  // libjpeg repeats the samples of two columns or one.
  if (!isFiltered || (across === 2 && columns <= 2)) return;
  const rows = Math.ceil(height / down);
  const samples = new Uint8Array(columns * rows);
  for (let y = 0, i = 0; y < rows; y++) {
    const row = y * down * width;
    for (let x = 0; x < columns; x++) {
      samples[i++] = rgba[4 * (row + x * across) + component]!;
    }
  }
  // Each row between two of samples: three parts of the near one, one of the far one.
  const sums = new Uint16Array(columns);
  for (let y = 0; y < height; y++) {
    const near = Math.floor(y / down);
    const isLower = y % down === 1;
    const far = Math.min(rows - 1, Math.max(0, isLower ? near + 1 : near - 1));
    for (let x = 0; x < columns; x++) {
      const sample = samples[near * columns + x]!;
      sums[x] = down === 1 ? sample : 3 * sample + samples[far * columns + x]!;
    }
    const target = rgba.subarray(4 * y * width, 4 * (y + 1) * width);
    if (across === 1) {
      const round = isLower ? 2 : 1;
      for (let x = 0; x < width; x++) target[4 * x + component] = (sums[x]! + round) >> 2;
    } else {
      widen(sums, target, width, component, down);
    }
  }
}

/** The same across. `sums` hold four times a sample where there are two rows. */
function widen(
  sums: Uint16Array,
  target: Uint8Array,
  width: number,
  component: number,
  down: number,
): void {
  const last = sums.length - 1;
  const [left, right, shift] = down === 1 ? [1, 2, 2] : [8, 7, 4];
  for (let x = 0; x < width; x++) {
    const near = x >> 1;
    const isRight = (x & 1) === 1;
    const far = isRight ? Math.min(last, near + 1) : Math.max(0, near - 1);
    const round = isRight ? right : left;
    target[4 * x + component] = (3 * sums[near]! + sums[far]! + round) >> shift;
  }
}

const fixed = (factor: number): number => Math.round(factor * 65_536);
const [RED_CR, GREEN_CB, GREEN_CR, BLUE_CB] = [1.402, 0.34414, 0.71414, 1.772].map(fixed) as [
  number,
  number,
  number,
  number,
];
const HALF = 32_768;

/** From Y, Cb, Cr to red, green, blue, in place (JFIF 1.02, `jdcolor.c`). */
export function toRgb(rgba: Uint8Array): void {
  for (let at = 0; at < rgba.length; at += 4) {
    const y = rgba[at]!;
    const cb = rgba[at + 1]! - 128;
    const cr = rgba[at + 2]! - 128;
    rgba[at] = clamped(y + ((RED_CR * cr + HALF) >> 16));
    rgba[at + 1] = clamped(y + ((HALF - GREEN_CB * cb - GREEN_CR * cr) >> 16));
    rgba[at + 2] = clamped(y + ((BLUE_CB * cb + HALF) >> 16));
  }
}

const clamped = (value: number): number => (value < 0 ? 0 : Math.min(value, 255));
