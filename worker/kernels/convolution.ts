import { forEachTap, type Windows } from './geometry.ts';

/**
 * Adds the columns of a range of output positions back to where they were taken from: the transpose
 * of im2col.
 *
 * @param dx [batch, depth, height, width, inChannels], added to
 * @param columns [last - first, taps, inChannels]
 * @param first first output position in `columns`; @param last one past the last
 */
export function columnsToImage(
  dx: Float32Array,
  columns: Float32Array,
  windows: Windows,
  first: number,
  last: number,
): void {
  const channels = windows.inChannels;
  const { filter } = windows;
  const rowLength = filter[0] * filter[1] * filter[2] * channels;
  forEachTap(
    windows,
    (output, input, tap) => {
      const from = (output - first) * rowLength + tap * channels;
      const to = input * channels;
      for (let c = 0; c < channels; c++) dx[to + c]! += columns[from + c]!;
    },
    first,
    last,
  );
}

/**
 * Lays out what the windows of a range of output positions see (im2col), transposed: a row for each
 * place of the window and channel, padding as zeros.
 *
 * @param columns [taps · inChannels, last - first], overwritten
 * @param x [batch, depth, height, width, inChannels]
 * @param first first output position in `columns`; @param last one past the last
 */
export function imageToRows(
  columns: Float32Array,
  x: Float32Array,
  windows: Windows,
  first: number,
  last: number,
): void {
  const channels = windows.inChannels;
  const count = last - first;
  columns.fill(0);
  forEachTap(
    windows,
    (output, input, tap) => {
      const from = input * channels;
      let to = tap * channels * count + output - first;
      for (let c = 0; c < channels; c++, to += count) columns[to] = x[from + c]!;
    },
    first,
    last,
  );
}

/**
 * Gradient of a depthwise convolution with respect to its input.
 *
 * @param dx [batch, height, width, channels], overwritten
 * @param filter [height, width, channels, multiplier]
 * @param dy [batch, outHeight, outWidth, channels · multiplier]
 */
export function depthwiseInputGradient(
  dx: Float32Array,
  dy: Float32Array,
  filter: Float32Array,
  windows: Windows,
): void {
  const channels = windows.inChannels;
  const outChannels = windows.outChannels;
  const multiplier = outChannels / channels;
  dx.fill(0);
  forEachTap(windows, (output, input, tap) => {
    const to = input * channels;
    const weights = tap * outChannels;
    const from = output * outChannels;
    if (multiplier === 1) {
      for (let c = 0; c < channels; c++) dx[to + c]! += dy[from + c]! * filter[weights + c]!;
      return;
    }
    for (let o = 0; o < outChannels; o++) {
      dx[to + Math.floor(o / multiplier)]! += dy[from + o]! * filter[weights + o]!;
    }
  });
}

/**
 * Gradient of a depthwise convolution with respect to its filter; shapes as in
 * `depthwiseInputGradient`. Sums in float64: a filter element adds up a term per output pixel.
 */
export function depthwiseFilterGradient(
  dFilter: Float32Array,
  x: Float32Array,
  dy: Float32Array,
  windows: Windows,
): void {
  const channels = windows.inChannels;
  const outChannels = windows.outChannels;
  const multiplier = outChannels / channels;
  const sums = new Float64Array(dFilter.length);
  forEachTap(windows, (output, input, tap) => {
    const at = input * channels;
    const weights = tap * outChannels;
    const from = output * outChannels;
    if (multiplier === 1) {
      for (let c = 0; c < channels; c++) sums[weights + c]! += dy[from + c]! * x[at + c]!;
      return;
    }
    for (let o = 0; o < outChannels; o++) {
      sums[weights + o]! += dy[from + o]! * x[at + Math.floor(o / multiplier)]!;
    }
  });
  dFilter.set(sums);
}
