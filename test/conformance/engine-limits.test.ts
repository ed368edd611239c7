import * as tf from '@tensorflow/tfjs-core';
import { beforeAll, expect, test } from 'vitest';
import { openEngine } from '../../worker/engine.ts';
import { ENGINE_LIMITS } from './engine-limits.ts';

/** For each kernel that can't be differentiated, an expression that uses it, and its right gradient. */
const USES: Readonly<
  Record<string, { shape: number[]; use: (x: tf.Tensor) => tf.Tensor; gradient?: number[] }>
> = {
  Conv2D: {
    shape: [1, 6, 6, 1],
    use: (x) =>
      tf.conv2d(x as tf.Tensor4D, tf.ones([3, 3, 1, 1]) as tf.Tensor4D, 1, 'same', 'NHWC', 2),
  },
  DepthwiseConv2dNative: {
    shape: [1, 6, 6, 1],
    use: (x) =>
      tf.depthwiseConv2d(
        x as tf.Tensor4D,
        tf.ones([3, 3, 1, 1]) as tf.Tensor4D,
        1,
        'same',
        'NHWC',
        2,
      ),
  },
  Conv3DBackpropInputV2: {
    shape: [1, 2, 2, 2, 1],
    use: (x) =>
      tf.conv3dTranspose(
        x as tf.Tensor5D,
        tf.ones([2, 2, 2, 1, 1]) as tf.Tensor5D,
        [1, 4, 4, 4, 1],
        2,
        'same',
      ),
  },
  GatherNd: { shape: [3, 2], use: (x) => tf.gatherND(x, tf.tensor2d([[0, 1]], [1, 2], 'int32')) },
  StridedSlice: { shape: [6], use: (x) => tf.stridedSlice(x, [0], [6], [2]) },
  Einsum: { shape: [2, 3], use: (x) => tf.einsum('ij->j', x) },
  DepthToSpace: { shape: [1, 2, 2, 4], use: (x) => tf.depthToSpace(x as tf.Tensor4D, 2, 'NHWC') },
  TopK: { shape: [5], use: (x) => tf.topk(x, 2).values },
  // The second element is there twice, the first and third once.
  MirrorPad: {
    shape: [3],
    use: (x) => tf.mirrorPad(x, [[1, 0]], 'reflect'),
    gradient: [1, 2, 1],
  },
};

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

test.each(ENGINE_LIMITS)('$kernel still has no right gradient', async ({ kernel, outcome }) => {
  const { shape, use, gradient } = USES[kernel]!;
  const x = tf.variable(tf.randomUniform(shape, 0, 1, 'float32', 1));
  const take = () => tf.tidy(() => tf.grad((input: tf.Tensor) => tf.sum(use(input)))(x));
  try {
    const { kernels } = await tf.profile(() => use(x));
    expect(kernels.map(({ name }) => name)).toContain(kernel);
    if (outcome === 'throws') expect(take).toThrow(/gradient/);
    else expect([...(await take().data())]).not.toEqual(gradient);
  } finally {
    x.dispose();
  }
});
