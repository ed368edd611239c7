/**
 * Gradient of a nearest-neighbour resize: each pixel of the output hands its gradient to the one
 * pixel it was copied from.
 *
 * @param dx [batch, height, width, channels], overwritten
 * @param dy [batch, outHeight, outWidth, channels]
 */
export function resizeNearestGradient(
  dx: Float32Array,
  dy: Float32Array,
  shapes: { readonly input: readonly number[]; readonly output: readonly number[] },
  options: { readonly alignCorners: boolean; readonly halfPixelCenters: boolean },
): void {
  const [batch, height, width, channels] = shapes.input as [number, number, number, number];
  const [, outHeight, outWidth] = shapes.output as [number, number, number, number];
  const rows = sources(height, outHeight, options);
  const columns = sources(width, outWidth, options);
  dx.fill(0);
  let from = 0;
  for (let image = 0; image < batch; image++) {
    for (let row = 0; row < outHeight; row++) {
      const line = (image * height + rows[row]!) * width;
      for (let column = 0; column < outWidth; column++) {
        const to = (line + columns[column]!) * channels;
        for (let c = 0; c < channels; c++) dx[to + c]! += dy[from++]!;
      }
    }
  }
}

/**
 * Gradient of a bilinear resize: each pixel of the output hands its gradient to the four pixels it
 * was mixed from, by the weights of the mix. Arguments as for `resizeNearestGradient`.
 */
export function resizeBilinearGradient(
  dx: Float32Array,
  dy: Float32Array,
  shapes: { readonly input: readonly number[]; readonly output: readonly number[] },
  options: { readonly alignCorners: boolean; readonly halfPixelCenters: boolean },
): void {
  const [batch, height, width, channels] = shapes.input as [number, number, number, number];
  const [, outHeight, outWidth] = shapes.output as [number, number, number, number];
  const rows = mixes(height, outHeight, options);
  const columns = mixes(width, outWidth, options);
  dx.fill(0);
  let from = 0;
  for (let image = 0; image < batch; image++) {
    for (const row of rows) {
      const above = (image * height + row.low) * width;
      const below = (image * height + row.high) * width;
      for (const column of columns) {
        for (let c = 0; c < channels; c++) {
          const g = dy[from++]!;
          dx[(above + column.low) * channels + c]! += g * (1 - row.part) * (1 - column.part);
          dx[(above + column.high) * channels + c]! += g * (1 - row.part) * column.part;
          dx[(below + column.low) * channels + c]! += g * row.part * (1 - column.part);
          dx[(below + column.high) * channels + c]! += g * row.part * column.part;
        }
      }
    }
  }
}

/** For each position along an axis of the output, the two of the input and the second one's part. */
export function mixes(
  size: number,
  outSize: number,
  options: { readonly alignCorners: boolean; readonly halfPixelCenters: boolean },
): { low: number; high: number; part: number }[] {
  const scale = ratio(size, outSize, options.alignCorners);
  return Array.from({ length: outSize }, (_, i) => {
    const exact = options.halfPixelCenters ? scale * (i + 0.5) - 0.5 : scale * i;
    const low = Math.max(0, Math.floor(exact));
    return { low, high: Math.min(size - 1, Math.ceil(exact)), part: Math.max(0, exact - low) };
  });
}

/** Pixels of the input for one of the output. */
function ratio(size: number, outSize: number, alignCorners: boolean): number {
  const ends = alignCorners && outSize > 1 ? 1 : 0;
  return (size - ends) / (outSize - ends);
}

/** For each position along an axis of the output, the position of the input it was copied from. */
function sources(
  size: number,
  outSize: number,
  options: { readonly alignCorners: boolean; readonly halfPixelCenters: boolean },
): Int32Array {
  const { alignCorners, halfPixelCenters } = options;
  const scale = ratio(size, outSize, alignCorners);
  return Int32Array.from({ length: outSize }, (_, i) => {
    const exact = scale * (halfPixelCenters ? i + 0.5 : i);
    return Math.min(size - 1, alignCorners ? Math.round(exact) : Math.floor(exact));
  });
}
