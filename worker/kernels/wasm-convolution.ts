import {
  backend_util,
  type Conv2DAttrs,
  type Conv2DBackpropFilterAttrs,
  type Conv2DBackpropInputAttrs,
  type Conv3DBackpropFilterV2Attrs,
  type Conv3DBackpropInputV2Attrs,
  type DepthwiseConv2dNativeBackpropFilterAttrs,
  type DepthwiseConv2dNativeBackpropInputAttrs,
  type KernelFunc,
  type MaxPoolAttrs,
  type TensorInfo,
} from '@tensorflow/tfjs-core';
import { DownpourError } from '../../shared/errors.ts';
import {
  columnsToImage,
  depthwiseFilterGradient,
  depthwiseInputGradient,
  imageToRows,
} from './convolution.ts';
import { outputPixels, taps, type Windows, windows2D, windows3D } from './geometry.ts';
import { multiply, transposeLast } from './wasm-matmul.ts';
import { floats, inWorkspace, type WasmKernel, type Workspace } from './wasm-workspace.ts';

/** Floats of the columns that are held at a time: 8 MB, about what the caches of a server core hold. */
const COLUMNS_FLOATS_MAX = 2 ** 21;

type Shape4D = [number, number, number, number];
export type Shape5D = [number, number, number, number, number];

/**
 * Gradient of a convolution with respect to its filter: itself a convolution. Of the input with the
 * gradient as the filter, batch and channels having changed places, stride become dilation:
 *
 *     dFilter[fy, fx, i, o] = Σ over n, y, x of  x[n, y·stride + fy − top, …, i] · dy[n, y, x, o]
 *
 * So the library's fast convolution does all the work and no columns are laid out (25 times the
 * input for a 5×5 filter).
 */
export const conv2DBackpropFilter: WasmKernel = ({ inputs, attrs, backend }) => {
  const x = inputs.x!;
  const dy = inputs.dy!;
  const { filterShape, strides, pad, dataFormat, dimRoundingMode } =
    attrs as unknown as Conv2DBackpropFilterAttrs;
  refuseChannelsFirst('Conv2DBackpropFilter', dataFormat);
  const info = backend_util.computeConv2DInfo(
    x.shape as Shape4D,
    filterShape,
    strides,
    1,
    pad,
    dimRoundingMode,
  );
  const { filterHeight, filterWidth, inChannels, outChannels, strideHeight, strideWidth } = info;
  return inWorkspace(backend, (w) => {
    if (isMatMul(info)) {
      const pixels = outputPixels(windows2D(info));
      const left = transposeLast(w, w.view(x, 0, [pixels, inChannels]));
      const out = w.make([...filterShape]);
      multiply(
        backend,
        w.view(left, 0, [1, inChannels, pixels]),
        w.view(dy, 0, [1, pixels, outChannels]),
        w.view(out, 0, [1, inChannels, outChannels]),
      );
      return out;
    }
    const { top, left } = info.padInfo;
    const [padY, cropY] = lastPadding(
      filterHeight,
      info.outHeight,
      strideHeight,
      info.inHeight,
      top,
    );
    const [padX, cropX] = lastPadding(filterWidth, info.outWidth, strideWidth, info.inWidth, left);
    const input = w.run('Transpose', { x }, { perm: [3, 1, 2, 0] });
    const filter = w.run('Transpose', { x: dy }, { perm: [1, 2, 0, 3] });
    let taps = w.run(
      'Conv2D',
      { x: input, filter },
      {
        strides: 1,
        dilations: [strideHeight, strideWidth],
        pad: [
          [0, 0],
          [top, padY],
          [left, padX],
          [0, 0],
        ],
        dataFormat: 'NHWC',
      },
    );
    w.release(input);
    w.release(filter);
    if (cropY || cropX) {
      const size = [inChannels, filterHeight, filterWidth, outChannels];
      taps = w.run('Slice', { x: taps }, { begin: [0, 0, 0, 0], size });
    }
    return w.run('Transpose', { x: taps }, { perm: [1, 2, 0, 3] });
  });
};

/**
 * Zeros needed after the input so that sliding `output` (dilated by `stride`) over it gives exactly
 * `filter` positions; where a stride left elements of the input over, how many positions to crop.
 */
function lastPadding(
  filter: number,
  output: number,
  stride: number,
  input: number,
  before: number,
): [padding: number, crop: number] {
  const after = filter + (output - 1) * stride - input - before;
  return after >= 0 ? [after, 0] : [0, -after];
}

/**
 * Gradient of a convolution with respect to its input, and the forward pass of a transposed
 * convolution. With stride 1 it is a convolution with the filter turned by 180° and its channels
 * changed places; else matrix product to columns, and the columns added back to the image.
 */
export const conv2DBackpropInput: WasmKernel = ({ inputs, attrs, backend }) => {
  const dy = inputs.dy!;
  const filter = inputs.filter!;
  const { inputShape, strides, pad, dataFormat, dimRoundingMode } =
    attrs as unknown as Conv2DBackpropInputAttrs;
  refuseChannelsFirst('Conv2DBackpropInput', dataFormat);
  const info = backend_util.computeConv2DInfo(
    inputShape,
    filter.shape as Shape4D,
    strides,
    1,
    pad,
    dimRoundingMode,
  );
  return inWorkspace(backend, (w) => {
    const padding = mirroredPadding(info);
    if (info.strideHeight !== 1 || info.strideWidth !== 1 || padding === undefined) {
      return inputGradientByColumns(w, { dy, filter, shape: inputShape }, windows2D(info));
    }
    const turned = w.run('Reverse', { x: filter }, { dims: [0, 1] });
    const swapped = transposeLast(w, turned);
    return w.run(
      'Conv2D',
      { x: dy, filter: swapped },
      { strides: 1, dilations: 1, pad: padding, dataFormat: 'NHWC' },
    );
  });
};

/** Gradient of a three-dimensional convolution with respect to its input. */
export const conv3DBackpropInput: WasmKernel = ({ inputs, attrs, backend }) => {
  const dy = inputs.dy!;
  const filter = inputs.filter!;
  const { inputShape, strides, pad } = attrs as unknown as Conv3DBackpropInputV2Attrs;
  const info = backend_util.computeConv3DInfo(inputShape, filter.shape as Shape5D, strides, 1, pad);
  return inWorkspace(backend, (w) =>
    inputGradientByColumns(w, { dy, filter, shape: inputShape }, windows3D(info)),
  );
};

/** Gradient of a three-dimensional convolution with respect to its filter. */
export const conv3DBackpropFilter: WasmKernel = ({ inputs, attrs, backend }) => {
  const x = inputs.x!;
  const dy = inputs.dy!;
  const { filterShape, strides, pad } = attrs as unknown as Conv3DBackpropFilterV2Attrs;
  const info = backend_util.computeConv3DInfo(x.shape as Shape5D, filterShape, strides, 1, pad);
  const windows = windows3D(info);
  const { outChannels } = windows;
  const rows = taps(windows) * windows.inChannels;
  const pixels = outputPixels(windows);
  return inWorkspace(backend, (w) => {
    const out = w.make([...filterShape]);
    floats(backend, out).fill(0);
    const partial = w.make([1, rows, outChannels]);
    const chunk = chunkPixels(pixels, rows);
    const columns = w.make([1, rows, chunk]);
    for (let first = 0; first < pixels; first += chunk) {
      const count = Math.min(chunk, pixels - first);
      const left = w.view(columns, 0, [1, rows, count]);
      const right = w.view(dy, first * outChannels, [1, count, outChannels]);
      imageToRows(floats(backend, left), floats(backend, x), windows, first, first + count);
      multiply(backend, left, right, partial);
      const sum = floats(backend, out);
      const part = floats(backend, partial);
      for (let i = 0; i < sum.length; i++) sum[i]! += part[i]!;
      w.release(left);
      w.release(right);
    }
    return out;
  });
};

/** How many output positions are laid out at a time, at `rowLength` floats each. */
function chunkPixels(pixels: number, rowLength: number): number {
  return Math.min(pixels, Math.max(1, Math.floor(COLUMNS_FLOATS_MAX / rowLength)));
}

function inputGradientByColumns(
  w: Workspace,
  { dy, filter, shape }: { dy: TensorInfo; filter: TensorInfo; shape: readonly number[] },
  windows: Windows,
): TensorInfo {
  const { backend } = w;
  const { outChannels } = windows;
  const rowLength = taps(windows) * windows.inChannels;
  const weights = transposeLast(w, w.view(filter, 0, [rowLength, outChannels]));
  const right = w.view(weights, 0, [1, outChannels, rowLength]);
  const out = w.make([...shape]);
  floats(backend, out).fill(0);
  const pixels = outputPixels(windows);
  const chunk = chunkPixels(pixels, rowLength);
  const columns = w.make([1, chunk, rowLength]);
  for (let first = 0; first < pixels; first += chunk) {
    const count = Math.min(chunk, pixels - first);
    const left = w.view(dy, first * outChannels, [1, count, outChannels]);
    const product = w.view(columns, 0, [1, count, rowLength]);
    multiply(backend, left, right, product);
    columnsToImage(floats(backend, out), floats(backend, product), windows, first, first + count);
    w.release(left);
    w.release(product);
  }
  return out;
}

/** Gradient of a depthwise convolution with respect to its input. */
export const depthwiseBackpropInput: WasmKernel = ({ inputs, attrs, backend }) => {
  const dy = inputs.dy!;
  const filter = inputs.filter!;
  const { inputShape, strides, pad, dilations, dimRoundingMode } =
    attrs as unknown as DepthwiseConv2dNativeBackpropInputAttrs;
  const info = backend_util.computeConv2DInfo(
    inputShape,
    filter.shape as Shape4D,
    strides,
    dilations,
    pad,
    dimRoundingMode,
    true,
  );
  const padding = mirroredPadding(info);
  return inWorkspace(backend, (w) => {
    const plain =
      info.strideHeight === 1 &&
      info.strideWidth === 1 &&
      info.dilationHeight === 1 &&
      info.dilationWidth === 1 &&
      info.outChannels === info.inChannels;
    if (plain && padding !== undefined) {
      const turned = w.run('Reverse', { x: filter }, { dims: [0, 1] });
      return w.run(
        'DepthwiseConv2dNative',
        { x: dy, filter: turned },
        { strides: 1, dilations: 1, pad: padding, dataFormat: 'NHWC' },
      );
    }
    const out = w.make([...inputShape]);
    const view = (tensor: TensorInfo) => floats(backend, tensor);
    depthwiseInputGradient(view(out), view(dy), view(filter), windows2D(info));
    return out;
  });
};

/** Gradient of a depthwise convolution with respect to its filter. */
export const depthwiseBackpropFilter: WasmKernel = ({ inputs, attrs, backend }) => {
  const x = inputs.x!;
  const dy = inputs.dy!;
  const { filterShape, strides, pad, dilations, dimRoundingMode } =
    attrs as unknown as DepthwiseConv2dNativeBackpropFilterAttrs;
  const info = backend_util.computeConv2DInfo(
    x.shape as Shape4D,
    filterShape,
    strides,
    dilations,
    pad,
    dimRoundingMode,
    true,
  );
  return inWorkspace(backend, (w) => {
    const out = w.make([...filterShape]);
    const view = (tensor: TensorInfo) => floats(backend, tensor);
    depthwiseFilterGradient(view(out), view(x), view(dy), windows2D(info));
    return out;
  });
};

/**
 * A forward convolution of the library with its padding said in numbers, side by side. The library
 * gets 'same' wrong where the stride is larger than the filter and leaves input over (it shifts the
 * windows), and writes past the end of its output where one number is the padding of a filter that
 * isn't square (tfjs-core works out both sides of the output by the filter's height).
 *
 * @param stock the library's kernel (plain, fused or depthwise)
 */
export function convolutionPaddedInNumbers(stock: KernelFunc, depthwise: boolean): WasmKernel {
  return ({ inputs, attrs, backend }) => {
    const { strides, pad, dilations, dimRoundingMode, dataFormat } =
      attrs as unknown as Conv2DAttrs;
    const size = (padding: typeof pad, rounding: typeof dimRoundingMode) =>
      backend_util.computeConv2DInfo(
        inputs.x!.shape as Shape4D,
        inputs.filter!.shape as Shape4D,
        strides,
        dilations ?? 1,
        padding,
        rounding,
        depthwise,
      );
    refuseChannelsFirst('Conv2D', dataFormat);
    const numbers = paddingInNumbers(size(pad, dimRoundingMode), (p) => size(p, undefined));
    const call = { ...attrs, pad: numbers, dimRoundingMode: 'floor' };
    return stock({ inputs, attrs: call, backend }) as TensorInfo;
  };
}

/** The same for a pooling of the library. */
export function poolingPaddedInNumbers(stock: KernelFunc): WasmKernel {
  return ({ inputs, attrs, backend }) => {
    const { filterSize, strides, pad, dimRoundingMode } = attrs as unknown as MaxPoolAttrs;
    const shape = inputs.x!.shape as Shape4D;
    const size = (padding: typeof pad, rounding: typeof dimRoundingMode) =>
      backend_util.computePool2DInfo(shape, filterSize, strides, 1, padding, rounding);
    const numbers = paddingInNumbers(size(pad, dimRoundingMode), (p) => size(p, undefined));
    const call = { ...attrs, pad: numbers, dimRoundingMode: 'floor' };
    return stock({ inputs, attrs: call, backend }) as TensorInfo;
  };
}

/**
 * Padding on each side that gives exactly the output of `info`.
 * @throws DP_ENGINE_KERNEL when there is none: better than a library that writes past its memory.
 */
function paddingInNumbers(
  info: backend_util.Conv2DInfo,
  size: (pad: backend_util.ExplicitPadding) => backend_util.Conv2DInfo,
): backend_util.ExplicitPadding {
  const { top, left } = info.padInfo;
  const height = (info.outHeight - 1) * info.strideHeight + info.effectiveFilterHeight;
  const width = (info.outWidth - 1) * info.strideWidth + info.effectiveFilterWidth;
  const bottom = Math.max(0, height - info.inHeight - top);
  const right = Math.max(0, width - info.inWidth - left);
  const padding: backend_util.ExplicitPadding = [
    [0, 0],
    [top, bottom],
    [left, right],
    [0, 0],
  ];
  const given = size(padding);
  if (given.outHeight !== info.outHeight || given.outWidth !== info.outWidth) {
    throw new DownpourError(
      'DP_ENGINE_KERNEL',
      `wasm: a window of ${info.filterHeight}×${info.filterWidth} with this padding gives ` +
        `${given.outHeight}×${given.outWidth} positions, tfjs expects ` +
        `${info.outHeight}×${info.outWidth}; use 'same', 'valid' or a padding for each side`,
    );
  }
  return padding;
}

/** One pixel of filter, stride 1, no padding: a matrix product over all pixels. */
function isMatMul(info: backend_util.Conv2DInfo): boolean {
  return (
    info.filterHeight * info.filterWidth === 1 &&
    info.outHeight === info.inHeight &&
    info.outWidth === info.inWidth &&
    info.strideHeight * info.strideWidth === 1
  );
}

/**
 * The padding with which a convolution (stride 1) of the gradient gives back the input's size;
 * undefined where it would be negative, which takes a padding wider than the filter.
 */
function mirroredPadding(info: backend_util.Conv2DInfo): backend_util.ExplicitPadding | undefined {
  const top = info.filterHeight - 1 - info.padInfo.top;
  const left = info.filterWidth - 1 - info.padInfo.left;
  const bottom = info.inHeight - info.outHeight + info.filterHeight - 1 - top;
  const right = info.inWidth - info.outWidth + info.filterWidth - 1 - left;
  if (Math.min(top, left, bottom, right) < 0) return undefined;
  return [
    [0, 0],
    [top, bottom],
    [left, right],
    [0, 0],
  ];
}

function refuseChannelsFirst(kernel: string, dataFormat: string | undefined): void {
  if (dataFormat !== 'NCHW') return;
  throw new DownpourError(
    'DP_ENGINE_KERNEL',
    `wasm: ${kernel} got dataFormat NCHW, takes NHWC; put the channels last in the model`,
  );
}
