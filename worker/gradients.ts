import * as tf from '@tensorflow/tfjs-core';
import { mixes } from './kernels/resize.ts';

type Unbroadcast = (gradient: tf.Tensor, like: tf.Tensor) => tf.Tensor;

/** Sums a gradient over the axes along which an input of shape `like` was broadcast. */
const unbroadcast: Unbroadcast = (gradient, like) => {
  const axes = tf.broadcast_util.getReductionAxes(like.shape, gradient.shape);
  const summed = axes.length > 0 ? tf.sum(gradient, axes) : gradient;
  return tf.reshape(summed, like.shape);
};

/** Gradients of tfjs-core 4.22 that throw or are wrong, on every engine. */
const GRADIENTS: readonly tf.GradConfig[] = [
  {
    // These four have the gradient of equal shapes only.
    kernelName: tf.Maximum,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, saved) => {
      const [a, b] = saved as [tf.Tensor, tf.Tensor];
      const part = (mask: tf.Tensor) => tf.mul(dy as tf.Tensor, tf.cast(mask, 'float32'));
      return {
        a: () => unbroadcast(part(tf.greaterEqual(a, b)), a),
        b: () => unbroadcast(part(tf.less(a, b)), b),
      };
    },
  },
  {
    kernelName: tf.Minimum,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, saved) => {
      const [a, b] = saved as [tf.Tensor, tf.Tensor];
      const part = (mask: tf.Tensor) => tf.mul(dy as tf.Tensor, tf.cast(mask, 'float32'));
      return {
        a: () => unbroadcast(part(tf.lessEqual(a, b)), a),
        b: () => unbroadcast(part(tf.greater(a, b)), b),
      };
    },
  },
  {
    kernelName: tf.SquaredDifference,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, saved) => {
      const [a, b] = saved as [tf.Tensor, tf.Tensor];
      const slope = () => tf.mul(dy as tf.Tensor, tf.mul(2, tf.sub(a, b)));
      return { a: () => unbroadcast(slope(), a), b: () => unbroadcast(tf.neg(slope()), b) };
    },
  },
  {
    kernelName: tf.BatchMatMul,
    inputsToSave: ['a', 'b'],
    gradFunc: (dy, saved, attrs) => {
      const [a, b] = saved as [tf.Tensor, tf.Tensor];
      const { transposeA, transposeB } = attrs as unknown as tf.BatchMatMulAttrs;
      const g = dy as tf.Tensor;
      // dA = dY · Bᵀ and dB = Aᵀ · dY, both transposed where the input was.
      const dA = () =>
        transposeA ? tf.matMul(b, g, transposeB, true) : tf.matMul(g, b, false, !transposeB);
      const dB = () =>
        transposeB ? tf.matMul(g, a, true, transposeA) : tf.matMul(a, g, !transposeA, false);
      return { a: () => unbroadcast(dA(), a), b: () => unbroadcast(dB(), b) };
    },
  },
  {
    // Has its axes changed places unless it goes along the last one.
    kernelName: tf.Cumsum,
    inputsToSave: ['x'],
    gradFunc: (dy, _saved, attrs) => {
      const { axis, exclusive, reverse } = attrs as unknown as tf.CumsumAttrs;
      return { x: () => tf.cumsum(dy as tf.Tensor, axis, exclusive, !reverse) };
    },
  },
  {
    // The engines' kernels for it don't look at `halfPixelCenters`.
    kernelName: tf.ResizeBilinear,
    inputsToSave: ['images'],
    gradFunc: (dy, saved, attrs) => {
      const images = saved[0]!;
      const { halfPixelCenters } = attrs as unknown as tf.ResizeBilinearAttrs;
      if (halfPixelCenters)
        return { images: () => resizeByCentersGradient(dy as tf.Tensor, images) };
      const inputs = { dy: dy as tf.Tensor, images };
      return {
        images: () => tf.engine().runKernel<tf.Tensor>(tf.ResizeBilinearGrad, inputs, attrs),
      };
    },
  },
];

/** A resize is linear along each axis, so its gradient is a product with each axis's mix, transposed. */
function resizeByCentersGradient(dy: tf.Tensor, images: tf.Tensor): tf.Tensor {
  const [batch, height, width, channels] = images.shape as [number, number, number, number];
  const [, outHeight, outWidth] = dy.shape as [number, number, number, number];
  const lines = tf.reshape(dy, [batch, outHeight, outWidth * channels]);
  const rows = tf.matMul(mixMatrix(height, outHeight), lines);
  const columns = tf.reshape(rows, [batch * height, outWidth, channels]);
  return tf.reshape(tf.matMul(mixMatrix(width, outWidth), columns), images.shape);
}

/** Shape [1, size, outSize]: what part of each pixel of the input goes into each of the output. */
function mixMatrix(size: number, outSize: number): tf.Tensor {
  const matrix = new Float32Array(size * outSize);
  mixes(size, outSize, { alignCorners: false, halfPixelCenters: true }).forEach((mix, out) => {
    matrix[mix.low * outSize + out]! += 1 - mix.part;
    matrix[mix.high * outSize + out]! += mix.part;
  });
  return tf.tensor(matrix, [1, size, outSize]);
}

/** Puts right what is wrong in tfjs-core's own gradients. Call once an engine is open. */
export function repairGradients(): void {
  for (const gradient of GRADIENTS) {
    tf.unregisterGradient(gradient.kernelName);
    tf.registerGradient(gradient);
  }
}
