import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import {
  type NamedAttrMap,
  type NamedTensorInfoMap,
  type ResizeNearestNeighborAttrs,
  type TensorInfo,
  type UnsortedSegmentSumAttrs,
  util,
} from '@tensorflow/tfjs-core';
import { poolingWindows } from './kernels/geometry.ts';
import { averagePoolGradient, maxPoolGradient } from './kernels/pooling.ts';
import { replaceKernel } from './kernels/replace.ts';
import { resizeBilinearGradient, resizeNearestGradient } from './kernels/resize.ts';
import { unsortedSegmentSum } from './kernels/segments.ts';

interface CpuCall {
  readonly inputs: NamedTensorInfoMap;
  readonly attrs: NamedAttrMap;
  readonly backend: MathBackendCPU;
}

type CpuKernel = (call: CpuCall) => TensorInfo;

const avgPoolGrad: CpuKernel = ({ inputs, attrs, backend }) => {
  const { shape } = inputs.input!;
  const dx = new Float32Array(util.sizeFromShape(shape));
  averagePoolGradient(dx, read(backend, inputs.dy!), poolingWindows(shape, attrs));
  return backend.makeTensorInfo(shape, 'float32', dx);
};

const maxPool3DGrad: CpuKernel = ({ inputs, attrs, backend }) => {
  const { shape } = inputs.input!;
  const dx = new Float32Array(util.sizeFromShape(shape));
  maxPoolGradient(
    dx,
    read(backend, inputs.input!),
    read(backend, inputs.dy!),
    poolingWindows(shape, attrs),
  );
  return backend.makeTensorInfo(shape, 'float32', dx);
};

function resizeGrad(gradient: typeof resizeNearestGradient): CpuKernel {
  return ({ inputs, attrs, backend }) => {
    const { alignCorners, halfPixelCenters } = attrs as unknown as ResizeNearestNeighborAttrs;
    const input = inputs.images!.shape;
    const dx = new Float32Array(util.sizeFromShape(input));
    const shapes = { input, output: inputs.dy!.shape };
    gradient(dx, read(backend, inputs.dy!), shapes, { alignCorners, halfPixelCenters });
    return backend.makeTensorInfo(input, 'float32', dx);
  };
}

const segmentSum: CpuKernel = ({ inputs, attrs, backend }) => {
  const { numSegments: segments } = attrs as unknown as UnsortedSegmentSumAttrs;
  const x = inputs.x!;
  const segmentIds = inputs.segmentIds!;
  const rowShape = x.shape.slice(segmentIds.shape.length);
  const width = util.sizeFromShape(rowShape);
  const out =
    x.dtype === 'int32' ? new Int32Array(segments * width) : new Float32Array(segments * width);
  const ids = backend.readSync(segmentIds.dataId) as Int32Array;
  unsortedSegmentSum(out, read(backend, x), ids, { segments, width });
  return backend.makeTensorInfo([segments, ...rowShape], x.dtype, out);
};

/** The tensor's own array: read only. */
function read(backend: MathBackendCPU, tensor: TensorInfo): Float32Array {
  return backend.readSync(tensor.dataId) as Float32Array;
}

const KERNELS: Readonly<Record<string, CpuKernel>> = {
  // Wrong in tfjs-backend-cpu 4.22: windows that are partly padding; windows of unequal sides; any
  // batch of more than one; images that aren't square.
  AvgPoolGrad: avgPoolGrad,
  AvgPool3DGrad: avgPoolGrad,
  MaxPool3DGrad: maxPool3DGrad,
  ResizeNearestNeighborGrad: resizeGrad(resizeNearestGradient),
  ResizeBilinearGrad: resizeGrad(resizeBilinearGradient),
  // Slow: the gradient of an embedding takes rows × vocabulary operations.
  UnsortedSegmentSum: segmentSum,
};

/**
 * Replaces the gradients that are wrong on the cpu engine, so that others can be compared with it.
 * Call once '@tensorflow/tfjs-backend-cpu' is loaded; a second call changes nothing.
 *
 * Mind that this engine aliases memory: `tf.tensor` and `dataSync` share the array with the caller.
 * Never write to an array that a tensor was made from, and copy what `dataSync` gave before the
 * tensor's array may be reused.
 */
export function repairCpuKernels(): void {
  for (const [kernelName, kernel] of Object.entries(KERNELS)) {
    replaceKernel(
      'cpu',
      kernelName,
      () =>
        ({ inputs, attrs, backend }) =>
          kernel({ inputs, attrs: attrs ?? {}, backend: backend as MathBackendCPU }),
    );
  }
}
