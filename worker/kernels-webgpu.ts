import {
  type CumsumAttrs,
  getKernel,
  type KernelBackend,
  type KernelFunc,
  type NamedAttrMap,
  type TensorInfo,
} from '@tensorflow/tfjs-core';
import { poolingWindows, type Windows } from './kernels/geometry.ts';
import { replaceKernel } from './kernels/replace.ts';

/**
 * What is wrong in tfjs-backend-webgpu 4.22, put right by operations that are right: what is on the GPU cannot be
 * read back in the midst of a computation. Seen on an NVIDIA H200 and on SwiftShader alike.
 */

type GpuBackend = KernelBackend & {
  makeTensorInfo(shape: number[], dtype: 'float32', values: Float32Array): TensorInfo;
};

interface GpuCall {
  readonly inputs: Readonly<Record<string, TensorInfo>>;
  readonly attrs: NamedAttrMap;
  readonly backend: GpuBackend;
  /** The kernel of tfjs that this one stands for. */
  readonly stock: KernelFunc;
}

type GpuKernel = (call: GpuCall) => TensorInfo;

/** The stock gradient divides by the size of a window, also where part of it is padding. */
const averagePoolGrad: GpuKernel = ({ inputs, attrs, backend, stock }) => {
  const { dy, input } = inputs;
  const windows = poolingWindows(input!.shape, attrs);
  const weights = partlyPadded(windows);
  if (weights === null)
    return stock({ inputs: { dy: dy!, input: input! }, attrs, backend }) as TensorInfo;
  const [depth, height, width] = windows.output;
  const shape = dy!.shape.length === 5 ? [1, depth, height, width, 1] : [1, height, width, 1];
  const factor = backend.makeTensorInfo(shape, 'float32', weights);
  const weighed = call('Multiply', { a: dy!, b: factor }, {}, backend);
  const dx = stock({ inputs: { dy: weighed, input: input! }, attrs, backend }) as TensorInfo;
  for (const { dataId } of [factor, weighed]) backend.disposeData(dataId);
  return dx;
};

/** For each output position, the size of a window over how much of it is no padding; null: 1 everywhere. */
function partlyPadded({ input, output, filter, stride, padding }: Windows): Float32Array | null {
  const inside = [0, 1, 2].map((axis) =>
    Array.from({ length: output[axis]! }, (_, i) => {
      const start = i * stride[axis]! - padding[axis]!;
      const end = Math.min(input[axis]!, start + filter[axis]!);
      return filter[axis]! / Math.max(1, end - Math.max(0, start));
    }),
  );
  if (inside.every((axis) => axis.every((share) => share === 1))) return null;
  const [depths, heights, widths] = inside as [number[], number[], number[]];
  return Float32Array.from(
    depths.flatMap((d) => heights.flatMap((h) => widths.map((w) => d * h * w))),
  );
}

/** Sums (or products) from the end are those from the beginning of what is turned around. */
const cumulative: GpuKernel = ({ inputs, attrs, backend, stock }) => {
  const { axis, reverse } = attrs as unknown as CumsumAttrs;
  const x = inputs.x!;
  if (!reverse) return stock({ inputs: { x }, attrs, backend }) as TensorInfo;
  const turned = call('Reverse', { x }, { dims: [axis] }, backend);
  const sums = stock({ inputs: { x: turned }, attrs: { ...attrs, reverse: false }, backend });
  const result = call('Reverse', { x: sums as TensorInfo }, { dims: [axis] }, backend);
  for (const { dataId } of [turned, sums as TensorInfo]) backend.disposeData(dataId);
  return result;
};

const refused: GpuKernel = () => {
  throw new Error(
    'the gradient of 3-D max pooling is wrong by WebGPU (TensorFlow.js 4.22): train with another engine, --engine native or wasm',
  );
};

function call(
  kernelName: string,
  inputs: Record<string, TensorInfo>,
  attrs: NamedAttrMap,
  backend: GpuBackend,
): TensorInfo {
  return getKernel(kernelName, 'webgpu')!.kernelFunc({ inputs, attrs, backend }) as TensorInfo;
}

const KERNELS: Readonly<Record<string, GpuKernel>> = {
  AvgPoolGrad: averagePoolGrad,
  AvgPool3DGrad: averagePoolGrad,
  Cumsum: cumulative,
  Cumprod: cumulative,
  MaxPool3DGrad: refused,
};

/** Call once '@tensorflow/tfjs-backend-webgpu' is loaded; a second call changes nothing. */
export function repairWebgpuKernels(): void {
  for (const [kernelName, kernel] of Object.entries(KERNELS)) {
    replaceKernel(
      'webgpu',
      kernelName,
      (stock) =>
        ({ inputs, attrs, backend }) =>
          kernel({
            inputs: inputs as Record<string, TensorInfo>,
            attrs: attrs ?? {},
            backend: backend as GpuBackend,
            stock: stock!,
          }),
    );
  }
}
