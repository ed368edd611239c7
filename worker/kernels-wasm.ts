import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import {
  backend_util,
  type KernelFunc,
  type MaxPool3DAttrs,
  type TensorInfo,
  type UnsortedSegmentSumAttrs,
} from '@tensorflow/tfjs-core';
import { DownpourError } from '../shared/errors.ts';
import { poolingWindows, windows3D } from './kernels/geometry.ts';
import { averagePoolGradient, maxPool, maxPoolGradient } from './kernels/pooling.ts';
import { replaceKernel } from './kernels/replace.ts';
import { unsortedSegmentSum } from './kernels/segments.ts';
import {
  conv2DBackpropFilter,
  conv2DBackpropInput,
  conv3DBackpropFilter,
  conv3DBackpropInput,
  convolutionPaddedInNumbers,
  depthwiseBackpropFilter,
  depthwiseBackpropInput,
  poolingPaddedInNumbers,
  type Shape5D,
} from './kernels/wasm-convolution.ts';
import { batchMatMul } from './kernels/wasm-matmul.ts';
import { floats, type WasmKernel } from './kernels/wasm-workspace.ts';

const maxPoolGrad: WasmKernel = ({ inputs, attrs, backend }) => {
  const x = inputs.input!;
  const dx = backend.makeOutput(x.shape, 'float32');
  const view = (tensor: TensorInfo) => floats(backend, tensor);
  maxPoolGradient(view(dx), view(x), view(inputs.dy!), poolingWindows(x.shape, attrs));
  return dx;
};

const maxPool3D: WasmKernel = ({ inputs, attrs, backend }) => {
  const { filterSize, strides, pad, dimRoundingMode } = attrs as unknown as MaxPool3DAttrs;
  const x = inputs.x!;
  const shape = x.shape as Shape5D;
  const info = backend_util.computePool3DInfo(shape, filterSize, strides, 1, pad, dimRoundingMode);
  const y = backend.makeOutput(info.outShape, 'float32');
  maxPool(floats(backend, y), floats(backend, x), windows3D(info));
  return y;
};

const avgPoolGrad: WasmKernel = ({ inputs, attrs, backend }) => {
  const { shape } = inputs.input!;
  const dx = backend.makeOutput(shape, 'float32');
  averagePoolGradient(
    floats(backend, dx),
    floats(backend, inputs.dy!),
    poolingWindows(shape, attrs),
  );
  return dx;
};

const segmentSum: WasmKernel = ({ inputs, attrs, backend }) => {
  const { numSegments: segments } = attrs as unknown as UnsortedSegmentSumAttrs;
  const x = inputs.x!;
  const segmentIds = inputs.segmentIds!;
  const rowShape = x.shape.slice(segmentIds.shape.length);
  const width = rowShape.reduce((size, n) => size * n, 1);
  const out = backend.makeOutput([segments, ...rowShape], x.dtype);
  unsortedSegmentSum(
    backend.typedArrayFromHeap(out) as Float32Array | Int32Array,
    backend.typedArrayFromHeap(x) as Float32Array | Int32Array,
    backend.typedArrayFromHeap(segmentIds) as Int32Array,
    { segments, width },
  );
  return out;
};

/** Shares the memory, as a reshape does: tensors never change, and the tape clones each weight. */
const identity: WasmKernel = ({ inputs, backend }) => {
  const { dataId, shape, dtype } = inputs.x!;
  backend.incRef(dataId);
  return { dataId, shape, dtype };
};

/** What is added to the wasm engine or replaced in it, by the name of the kernel. */
const KERNELS: Readonly<Record<string, WasmKernel>> = {
  // Missing in tfjs-backend-wasm 4.22: convolutions and embeddings can't be trained without.
  Conv2DBackpropFilter: conv2DBackpropFilter,
  DepthwiseConv2dNativeBackpropInput: depthwiseBackpropInput,
  DepthwiseConv2dNativeBackpropFilter: depthwiseBackpropFilter,
  UnsortedSegmentSum: segmentSum,
  // Wrong: windows that are all negative (in 3D forward too); windows that are partly padding;
  // conv3d by its input, and by its filter when strided.
  MaxPoolGrad: maxPoolGrad,
  MaxPool3D: maxPool3D,
  MaxPool3DGrad: maxPoolGrad,
  AvgPoolGrad: avgPoolGrad,
  AvgPool3DGrad: avgPoolGrad,
  Conv3DBackpropInputV2: conv3DBackpropInput,
  Conv3DBackpropFilterV2: conv3DBackpropFilter,
  // Slow: copies; transposed or batched products; the gradient of every convolution but the first.
  Identity: identity,
  BatchMatMul: batchMatMul,
  Conv2DBackpropInput: conv2DBackpropInput,
};

/** What is kept and given other arguments. */
const WRAPPERS: Readonly<Record<string, (stock: KernelFunc) => WasmKernel>> = {
  Conv2D: (stock) => convolutionPaddedInNumbers(stock, false),
  FusedConv2D: (stock) => convolutionPaddedInNumbers(stock, false),
  DepthwiseConv2dNative: (stock) => convolutionPaddedInNumbers(stock, true),
  FusedDepthwiseConv2D: (stock) => convolutionPaddedInNumbers(stock, true),
  MaxPool: poolingPaddedInNumbers,
  AvgPool: poolingPaddedInNumbers,
};

/**
 * Makes the wasm engine able to train: adds the kernels that it lacks, replaces those that are wrong
 * or slow. Call once '@tensorflow/tfjs-backend-wasm' is loaded; a second call changes nothing.
 */
export function registerWasmKernels(): void {
  for (const [kernelName, kernel] of Object.entries(KERNELS)) replace(kernelName, () => kernel);
  for (const [kernelName, wrap] of Object.entries(WRAPPERS)) replace(kernelName, wrap);
}

function replace(kernelName: string, make: (stock: KernelFunc) => WasmKernel): void {
  replaceKernel('wasm', kernelName, (stock) => {
    const kernel = make(stock!);
    return ({ inputs, attrs, backend }) =>
      kernel({ inputs, attrs: attrs ?? {}, backend: backend as BackendWasm });
  });
}

/**
 * Makes a full heap an error that says so. WebAssembly ends at 4 GiB; the library does not look at
 * what its allocator answers and goes on to write at address 0. Call once the backend is set.
 *
 * @throws (later, at an allocation) DP_ENGINE_KERNEL
 */
export function guardWasmMemory(backend: BackendWasm): void {
  const module = backend.wasm as unknown as { _malloc: Allocate; _free(address: number): void };
  if (guarded.has(module._malloc)) return;
  // The first call puts the real allocator in the place of a stand-in, and would undo ours.
  module._free(module._malloc(1));
  const allocate = module._malloc;
  module._malloc = (bytes) => {
    const address = allocate(bytes);
    if (address !== 0 || bytes === 0) return address;
    throw new DownpourError(
      'DP_ENGINE_KERNEL',
      `wasm: no room for a tensor of ${bytes} bytes, its memory ends at 4 GiB; ` +
        'use a smaller minibatch, or another engine: downpour engine install',
    );
  };
  guarded.add(module._malloc);
}

type Allocate = (bytes: number) => number;

const guarded = new WeakSet<Allocate>();
