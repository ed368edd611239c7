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

/** For each position along an axis of the output, the position of the input it was copied from. */
function sources(
  size: number,
  outSize: number,
  options: { readonly alignCorners: boolean; readonly halfPixelCenters: boolean },
): Int32Array {
  const { alignCorners, halfPixelCenters } = options;
  const ends = alignCorners && outSize > 1 ? 1 : 0;
  const scale = (size - ends) / (outSize - ends);
  return Int32Array.from({ length: outSize }, (_, i) => {
    const exact = scale * (halfPixelCenters ? i + 0.5 : i);
    return Math.min(size - 1, alignCorners ? Math.round(exact) : Math.floor(exact));
  });
}
