import { forEachTap, outputPixels, type Windows } from './geometry.ts';

/**
 * Max pooling, forward: `y` gets the largest element of each window.
 *
 * @param y shape of the output, overwritten; @param x the input
 */
export function maxPool(y: Float32Array, x: Float32Array, windows: Windows): void {
  const channels = windows.inChannels;
  y.fill(Number.NEGATIVE_INFINITY);
  forEachTap(windows, (output, input) => {
    const to = output * channels;
    const from = input * channels;
    for (let c = 0; c < channels; c++) {
      if (x[from + c]! > y[to + c]!) y[to + c] = x[from + c]!;
    }
  });
}

/**
 * Gradient of max pooling: each window hands its gradient to its first largest element, as
 * TensorFlow does. A window of negative values has a largest element like any other.
 *
 * @param dx shape of the input of the pooling, overwritten
 * @param x the input of the pooling; @param dy gradient of its output
 */
export function maxPoolGradient(
  dx: Float32Array,
  x: Float32Array,
  dy: Float32Array,
  windows: Windows,
): void {
  const channels = windows.inChannels;
  dx.fill(0);
  // The winners of one window, one per channel: the loop over channels is the inner one because
  // channels lie side by side in memory.
  const winners = new Int32Array(channels);
  const largest = new Float32Array(channels);
  let current = -1;
  const handOut = () => {
    if (current < 0) return;
    const from = current * channels;
    for (let c = 0; c < channels; c++) dx[winners[c]!]! += dy[from + c]!;
  };
  forEachTap(windows, (output, input) => {
    const at = input * channels;
    if (output !== current) {
      handOut();
      current = output;
      for (let c = 0; c < channels; c++) {
        winners[c] = at + c;
        largest[c] = x[at + c]!;
      }
      return;
    }
    for (let c = 0; c < channels; c++) {
      const value = x[at + c]!;
      if (value <= largest[c]!) continue;
      winners[c] = at + c;
      largest[c] = value;
    }
  });
  handOut();
}

/**
 * Gradient of average pooling: each window spreads its gradient evenly over the elements it really
 * covers. At a border with padding these are fewer than the window has places, and the forward
 * pass divides by that smaller count too; tfjs 4.22 divides by the full window here.
 */
export function averagePoolGradient(dx: Float32Array, dy: Float32Array, windows: Windows): void {
  const channels = windows.inChannels;
  dx.fill(0);
  const covered = new Int32Array(outputPixels(windows));
  forEachTap(windows, (output) => {
    covered[output]!++;
  });
  forEachTap(windows, (output, input) => {
    const factor = 1 / covered[output]!;
    const from = output * channels;
    const to = input * channels;
    for (let c = 0; c < channels; c++) dx[to + c]! += dy[from + c]! * factor;
  });
}
