import { type AvgPool3DGradAttrs, backend_util, type NamedAttrMap } from '@tensorflow/tfjs-core';

/** Sizes along depth, height, width; flat kernels have a depth of 1. */
export type Sizes = readonly [depth: number, height: number, width: number];

/**
 * How the windows of a convolution or pooling lie on their input. One description for two and three
 * dimensions, so that each kernel is written once. Arrays are [batch, depth, height, width, channels].
 */
export interface Windows {
  readonly batch: number;
  readonly inChannels: number;
  readonly outChannels: number;
  readonly input: Sizes;
  readonly output: Sizes;
  readonly filter: Sizes;
  readonly stride: Sizes;
  readonly dilation: Sizes;
  /** Zeros before the first element. */
  readonly padding: Sizes;
}

export function windows2D(info: backend_util.Conv2DInfo): Windows {
  return {
    batch: info.batchSize,
    inChannels: info.inChannels,
    outChannels: info.outChannels,
    input: [1, info.inHeight, info.inWidth],
    output: [1, info.outHeight, info.outWidth],
    filter: [1, info.filterHeight, info.filterWidth],
    stride: [1, info.strideHeight, info.strideWidth],
    dilation: [1, info.dilationHeight, info.dilationWidth],
    padding: [0, info.padInfo.top, info.padInfo.left],
  };
}

export function windows3D(info: backend_util.Conv3DInfo): Windows {
  return {
    batch: info.batchSize,
    inChannels: info.inChannels,
    outChannels: info.outChannels,
    input: [info.inDepth, info.inHeight, info.inWidth],
    output: [info.outDepth, info.outHeight, info.outWidth],
    filter: [info.filterDepth, info.filterHeight, info.filterWidth],
    stride: [info.strideDepth, info.strideHeight, info.strideWidth],
    dilation: [info.dilationDepth, info.dilationHeight, info.dilationWidth],
    padding: [info.padInfo.front, info.padInfo.top, info.padInfo.left],
  };
}

/** The windows of the gradient of a pooling, by its attributes; two dimensions or three, as the input's shape says. */
export function poolingWindows(shape: readonly number[], attrs: NamedAttrMap): Windows {
  const { filterSize, strides, pad, dimRoundingMode } = attrs as unknown as AvgPool3DGradAttrs;
  if (shape.length === 4) {
    const flat = shape as [number, number, number, number];
    const sides = [filterSize, strides] as unknown as [number, number][];
    return windows2D(
      backend_util.computePool2DInfo(flat, sides[0]!, sides[1]!, 1, pad, dimRoundingMode),
    );
  }
  const deep = shape as [number, number, number, number, number];
  return windows3D(
    backend_util.computePool3DInfo(deep, filterSize, strides, 1, pad, dimRoundingMode),
  );
}

/**
 * Calls `visit` for each pair of an output position and an input position that its window covers,
 * output positions in memory order. Positions count pixels, not elements: times channels = offset.
 * Padding is left out: `visit` sees real input only.
 *
 * @param first first output position (of batch · depth · height · width) to visit
 * @param last one past the last
 */
export function forEachTap(
  windows: Windows,
  visit: (output: number, input: number, tap: number) => void,
  first = 0,
  last = outputPixels(windows),
): void {
  const { input, output, filter, stride, dilation, padding } = windows;
  const [inDepth, inHeight, inWidth] = input;
  const [outDepth, outHeight, outWidth] = output;
  for (let at = first; at < last; at++) {
    const column = at % outWidth;
    const row = Math.floor(at / outWidth) % outHeight;
    const plane = Math.floor(at / (outWidth * outHeight)) % outDepth;
    const image = Math.floor(at / (outWidth * outHeight * outDepth));
    const z0 = plane * stride[0] - padding[0];
    const y0 = row * stride[1] - padding[1];
    const x0 = column * stride[2] - padding[2];
    for (let fz = 0; fz < filter[0]; fz++) {
      const z = z0 + fz * dilation[0];
      if (z < 0 || z >= inDepth) continue;
      for (let fy = 0; fy < filter[1]; fy++) {
        const y = y0 + fy * dilation[1];
        if (y < 0 || y >= inHeight) continue;
        const line = ((image * inDepth + z) * inHeight + y) * inWidth;
        const tapLine = (fz * filter[1] + fy) * filter[2];
        for (let fx = 0; fx < filter[2]; fx++) {
          const x = x0 + fx * dilation[2];
          if (x >= 0 && x < inWidth) visit(at, line + x, tapLine + fx);
        }
      }
    }
  }
}

/** Output positions of the whole batch. */
export function outputPixels({ batch, output }: Windows): number {
  return batch * output[0] * output[1] * output[2];
}

/** Positions of one window. */
export function taps({ filter }: Windows): number {
  return filter[0] * filter[1] * filter[2];
}
