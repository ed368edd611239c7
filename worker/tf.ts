import * as core from '@tensorflow/tfjs-core';
// Only its types: the methods themselves are put in place below.
import type {} from '@tensorflow/tfjs-core/dist/public/chained_ops/register_all_chained_ops.js';
import * as layers from '@tensorflow/tfjs-layers';
import { orthonormal } from './orthogonal.ts';

/**
 * The one TensorFlow.js of the process: the core and the layers in one object, as the package
 * `@tensorflow/tfjs` has them. Experiments get it as the argument `tf`; a second copy would bring
 * other tensor classes, whose gradients are not ours.
 */
export type Tf = Omit<typeof core, keyof typeof layers> & typeof layers;
export const tf: Tf = { ...core, ...layers };
export type { Scalar, Tensor, Tensor1D, Variable } from '@tensorflow/tfjs-core';

import type { LayersModel } from '@tensorflow/tfjs-layers';

export type { LayersModel };
export type Layer = LayersModel['layers'][number];

/** Taken before any experiment has been loaded and could have registered classes of its own. */
const libraryClasses = new Set<unknown>(
  Object.values(core.serialization.SerializationMap.getMap().classNameMap).map(([c]) => c),
);

/** Makes a class of ours known to TensorFlow.js, which loads it by its name, and as safe to record. */
export function registerOwnClass(own: unknown): void {
  core.serialization.registerClass(own as never);
  libraryClasses.add(own);
}

/** Whether a layer is exactly one of tfjs-layers' own, or of ours. */
export function isLibraryClass(layer: object): boolean {
  return libraryClasses.has(layer.constructor);
}

/** What every layer may be given. */
export type LayerArguments = ConstructorParameters<typeof layers.layers.Layer>[0];

/** What a layer is called with: a tensor, or several. */
export type LayerInputs = core.Tensor | core.Tensor[];

/** tfjs-layers' own base class of wrappers, which it does not export. */
export const Wrapper = Object.getPrototypeOf(
  layers.layers.timeDistributed({ layer: layers.layers.flatten() as never }).constructor,
) as new (
  args: NonNullable<LayerArguments> & { readonly layer: Layer },
) => Layer & { readonly layer: Layer };

// The core's build for Node leaves the methods of tensors out, yet its own layers call them: the
// orthogonal initialiser of an LSTM fails with "flatten is not a function".
const SAME_AS_FUNCTION = `
  abs acos acosh add all any argMax argMin asin asinh atan atan2 atanh avgPool batchNorm
  batchToSpaceND broadcastTo cast ceil clipByValue conv1d conv2d conv2dTranspose cos cosh cumprod
  cumsum depthToSpace depthwiseConv2d dilation2d div divNoNan dot elu equal erf euclideanNorm exp
  expandDims expm1 fft floor gather greater greaterEqual ifft irfft isFinite isInf isNaN leakyRelu
  less lessEqual localResponseNormalization log log1p logSigmoid logSoftmax logSumExp logicalAnd
  logicalNot logicalOr logicalXor matMul max maxPool maximum mean min minimum mirrorPad mod mul neg
  norm notEqual oneHot onesLike pad pool pow prelu prod reciprocal relu relu6 reshape reverse rfft
  round rsqrt selu separableConv2d sigmoid sign sin sinh slice softmax softplus spaceToBatchND split
  sqrt square squaredDifference squeeze step stridedSlice sub sum tan tanh tile topk transpose unique
  unsortedSegmentSum unstack zerosLike`;

type TensorMethod = (this: core.Tensor, ...args: never[]) => unknown;
const listOf = (x: core.Tensor | core.Tensor[]) => (Array.isArray(x) ? x : [x]);
const reshapeTo = function (this: core.Tensor, ...shape: number[]) {
  return core.reshape(this, shape);
};
const castTo = (dtype: core.DataType) =>
  function (this: core.Tensor) {
    return core.cast(this, dtype);
  };

const methods: Record<string, TensorMethod> = {
  as1D() {
    return core.reshape(this, [this.size]);
  },
  flatten() {
    return core.reshape(this, [this.size]);
  },
  asScalar() {
    return core.reshape(this, []);
  },
  as2D: reshapeTo,
  as3D: reshapeTo,
  as4D: reshapeTo,
  as5D: reshapeTo,
  reshapeAs(x: core.Tensor) {
    return core.reshape(this, x.shape);
  },
  asType(dtype: core.DataType) {
    return core.cast(this, dtype);
  },
  toBool: castTo('bool'),
  toFloat: castTo('float32'),
  toInt: castTo('int32'),
  concat(x: core.Tensor | core.Tensor[], axis?: number) {
    return core.concat([this, ...listOf(x)], axis);
  },
  stack(x: core.Tensor | core.Tensor[], axis?: number) {
    return core.stack([this, ...listOf(x)], axis);
  },
  where(condition: core.Tensor, x: core.Tensor) {
    return core.where(condition, this, x);
  },
  resizeBilinear(...args: [[number, number], boolean?, boolean?]) {
    return core.image.resizeBilinear(this as core.Tensor3D, ...args);
  },
  resizeNearestNeighbor(...args: [[number, number], boolean?, boolean?]) {
    return core.image.resizeNearestNeighbor(this as core.Tensor3D, ...args);
  },
};
const functions = core as unknown as Record<string, (...args: unknown[]) => unknown>;
for (const name of SAME_AS_FUNCTION.trim().split(/\s+/)) {
  methods[name] = function (this: core.Tensor, ...args: unknown[]) {
    return functions[name]!(this, ...args);
  };
}
const prototype = core.Tensor.prototype as unknown as Record<string, TensorMethod>;
for (const [name, method] of Object.entries(methods)) prototype[name] ??= method;

// The orthogonal initialiser of TensorFlow.js, which recurrent layers have by default, takes seconds and warns that it does.
const orthogonal = layers.initializers.orthogonal({} as never).constructor.prototype as {
  apply(this: { gain: number; seed?: number }, shape: number[], dtype?: core.DataType): core.Tensor;
};
const slowly = orthogonal.apply;
orthogonal.apply = function (shape, dtype) {
  // Its own refusals.
  if (shape.length < 2 || (dtype ?? 'float32') !== 'float32')
    return slowly.call(this, shape, dtype);
  return core.tidy(() => {
    const columns = shape.at(-1)!;
    const rows = core.util.sizeFromShape(shape) / columns;
    const [longer, shorter] = [Math.max(rows, columns), Math.min(rows, columns)];
    const drawn = core.randomNormal([longer, shorter], 0, 1, 'float32', this.seed).dataSync();
    const q = core.tensor2d(orthonormal(drawn, longer, shorter), [longer, shorter]);
    return core.mul(core.reshape(rows < columns ? core.transpose(q) : q, shape), this.gain);
  });
};
