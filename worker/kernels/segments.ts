/**
 * Sums rows by segment: row `i` of `x` (shape [rows, width]) is added to row `segmentIds[i]` of `out`
 * (shape [segments, width], overwritten). Rows with an id outside [0, segments) are dropped, as
 * TensorFlow does. This is the gradient of an embedding.
 */
export function unsortedSegmentSum(
  out: Float32Array | Int32Array,
  x: Float32Array | Int32Array,
  segmentIds: Int32Array,
  sizes: { readonly segments: number; readonly width: number },
): void {
  const { segments, width } = sizes;
  out.fill(0);
  for (let row = 0; row < segmentIds.length; row++) {
    const segment = segmentIds[row]!;
    if (segment < 0 || segment >= segments) continue;
    const from = row * width;
    const to = segment * width;
    for (let i = 0; i < width; i++) out[to + i]! += x[from + i]!;
  }
}
