/** The operations and layers whose gradients every engine must get right, in small shapes. */
import * as tf from '@tensorflow/tfjs-core';
import { layers as tfl } from '@tensorflow/tfjs-layers';
import { initializers, layers as own } from '../../worker/layers.ts';
import { drawNoise, type NoiseSource, withSeed } from '../../worker/noise.ts';
import { adaptRecurrent } from '../../worker/recurrent/adapt.ts';
import { apart, type Draw, type GradientCase, layer, op, uniform } from './gradient-check.ts';

const WHOLE_SIZE = [2, 3, 4];
const POSITIVE = uniform(WHOLE_SIZE, 0.5, 1.5);
const INSIDE_ONE = uniform(WHOLE_SIZE, -0.8, 0.8);
const ANY = uniform(WHOLE_SIZE);
const APART = apart(WHOLE_SIZE);

type Unary = (x: tf.Tensor) => tf.Tensor;

/** The layer as a model has it. */
function wholeSequence(layer: tfl.Layer): tfl.Layer {
  adaptRecurrent(layer, { noise: drawNoise });
  return layer;
}

const ELEMENTWISE: readonly (readonly [name: string, x: Draw, f: Unary])[] = [
  ['abs', APART, (x) => tf.abs(x)],
  ['acos', INSIDE_ONE, (x) => tf.acos(x)],
  ['acosh', uniform(WHOLE_SIZE, 1.5, 2.5), (x) => tf.acosh(x)],
  ['asin', INSIDE_ONE, (x) => tf.asin(x)],
  ['asinh', ANY, (x) => tf.asinh(x)],
  ['atan', ANY, (x) => tf.atan(x)],
  ['atanh', INSIDE_ONE, (x) => tf.atanh(x)],
  ['cast', ANY, (x) => tf.cast(x, 'float32')],
  ['clipByValue', APART, (x) => tf.clipByValue(x, -0.3, 0.4)],
  ['cos', ANY, (x) => tf.cos(x)],
  ['cosh', ANY, (x) => tf.cosh(x)],
  ['elu', APART, (x) => tf.elu(x)],
  ['erf', ANY, (x) => tf.erf(x)],
  ['exp', ANY, (x) => tf.exp(x)],
  ['expm1', ANY, (x) => tf.expm1(x)],
  ['gelu', ANY, (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.div(x, Math.SQRT2)), 1))],
  ['leakyRelu', APART, (x) => tf.leakyRelu(x, 0.3)],
  ['log', POSITIVE, (x) => tf.log(x)],
  ['log1p', POSITIVE, (x) => tf.log1p(x)],
  ['logSigmoid', ANY, (x) => tf.logSigmoid(x)],
  ['mish', ANY, (x) => tf.mul(x, tf.tanh(tf.softplus(x)))],
  ['neg', ANY, (x) => tf.neg(x)],
  ['reciprocal', POSITIVE, (x) => tf.reciprocal(x)],
  ['relu', APART, (x) => tf.relu(x)],
  ['relu6', apart([120]), (x) => tf.relu6(x)],
  ['rsqrt', POSITIVE, (x) => tf.rsqrt(x)],
  ['selu', APART, (x) => tf.selu(x)],
  ['sigmoid', ANY, (x) => tf.sigmoid(x)],
  ['sin', ANY, (x) => tf.sin(x)],
  ['sinh', ANY, (x) => tf.sinh(x)],
  ['softplus', ANY, (x) => tf.softplus(x)],
  ['sqrt', POSITIVE, (x) => tf.sqrt(x)],
  ['square', ANY, (x) => tf.square(x)],
  ['swish', ANY, (x) => tf.mul(x, tf.sigmoid(x))],
  ['tan', ANY, (x) => tf.tan(x)],
  ['tanh', ANY, (x) => tf.tanh(x)],
];

type Binary = (a: tf.Tensor, b: tf.Tensor) => tf.Tensor;

const BINARY: readonly (readonly [name: string, a: Draw, b: Draw, f: Binary])[] = [
  ['add', ANY, ANY, tf.add],
  ['add, a row to all', ANY, uniform([4]), tf.add],
  ['add, both broadcast', uniform([2, 1, 4]), uniform([3, 1]), tf.add],
  ['sub, both broadcast', uniform([2, 1, 4]), uniform([3, 1]), tf.sub],
  ['mul', ANY, ANY, tf.mul],
  ['mul, both broadcast', uniform([2, 1, 4]), uniform([3, 1]), tf.mul],
  ['mul, by a scalar', ANY, uniform([]), tf.mul],
  ['div', ANY, POSITIVE, tf.div],
  ['div, both broadcast', uniform([2, 1, 4]), uniform([3, 1], 0.5, 1.5), tf.div],
  ['pow', POSITIVE, ANY, tf.pow],
  ['pow, broadcast', POSITIVE, uniform([4]), tf.pow],
  ['atan2', POSITIVE, ANY, tf.atan2],
  ['maximum', APART, apart(WHOLE_SIZE, 0.05), tf.maximum],
  ['minimum', APART, apart(WHOLE_SIZE, 0.05), tf.minimum],
  ['squaredDifference', ANY, ANY, tf.squaredDifference],
  ['squaredDifference, broadcast', ANY, uniform([3, 1]), tf.squaredDifference],
  ['maximum, broadcast', APART, apart([3, 1], 0.05), tf.maximum],
  ['minimum, broadcast', APART, apart([4], 0.05), tf.minimum],
  ['prelu', APART, uniform(WHOLE_SIZE, 0.1, 0.5), tf.prelu],
  ['prelu, a slope for each column', APART, uniform([4], 0.1, 0.5), tf.prelu],
  ['where', ANY, ANY, (a, b) => tf.where(alternating(WHOLE_SIZE), a, b)],
];

const REDUCTIONS: readonly (readonly [name: string, x: Draw, f: Unary])[] = [
  ['sum', ANY, (x) => tf.sum(x)],
  ['sum over the middle axis', ANY, (x) => tf.sum(x, 1)],
  ['sum over two axes, kept', ANY, (x) => tf.sum(x, [0, 2], true)],
  ['mean', ANY, (x) => tf.mean(x)],
  ['mean over the first axis', ANY, (x) => tf.mean(x, 0)],
  ['max over the last axis', APART, (x) => tf.max(x, -1)],
  ['max over the first axis', APART, (x) => tf.max(x, 0)],
  ['min over the last axis', APART, (x) => tf.min(x, -1)],
  ['prod', POSITIVE, (x) => tf.prod(x, 1)],
  ['variance', ANY, (x) => tf.moments(x, [0, 1]).variance],
  ['euclidean norm', ANY, (x) => tf.norm(x, 'euclidean', 1)],
  ['logSumExp', ANY, (x) => tf.logSumExp(x, 1)],
  ['softmax', ANY, (x) => tf.softmax(x)],
  ['logSoftmax', ANY, (x) => tf.logSoftmax(x)],
  ['cumsum over the first axis', ANY, (x) => tf.cumsum(x, 0)],
  ['cumsum over the middle axis', ANY, (x) => tf.cumsum(x, 1)],
  ['cumsum, exclusive, from the end', ANY, (x) => tf.cumsum(x, 2, true, true)],
  ['layer normalisation by hand', ANY, layerNormalised],
];

const SHAPES: readonly (readonly [name: string, x: Draw, f: Unary])[] = [
  ['reshape', ANY, (x) => tf.reshape(x, [6, 4])],
  ['transpose', ANY, (x) => tf.transpose(x, [2, 0, 1])],
  ['slice', ANY, (x) => tf.slice(x, [0, 1, 1], [2, 2, 3])],
  [
    'pad',
    ANY,
    (x) =>
      tf.pad(x, [
        [1, 0],
        [0, 2],
        [1, 1],
      ]),
  ],
  ['tile', ANY, (x) => tf.tile(x, [2, 1, 3])],
  ['broadcastTo', uniform([3, 1]), (x) => tf.broadcastTo(x, [2, 3, 4])],
  ['reverse', ANY, (x) => tf.reverse(x, [0, 2])],
  ['expandDims and squeeze', ANY, (x) => tf.squeeze(tf.expandDims(x, 1), [1])],
  ['split', ANY, (x) => tf.mul(...(tf.split(x, 2, 2) as [tf.Tensor, tf.Tensor]))],
  ['unstack', ANY, (x) => tf.mul(...(tf.unstack(x) as [tf.Tensor, tf.Tensor]))],
  ['gather rows', uniform([5, 3]), (x) => tf.gather(x, integers([0, 3, 3, 1]))],
  ['gather columns', ANY, (x) => tf.gather(x, integers([2, 0, 2]), 1)],
  ['gather by a matrix', uniform([5, 3]), (x) => tf.gather(x, integers([0, 4, 4, 1], [2, 2]))],
  ['unsortedSegmentSum', uniform([5, 3]), (x) => segmentSum(x, [2, 0, 2, 3, 0], 4)],
  ['unsortedSegmentSum, rank 3', uniform([4, 2, 2]), (x) => segmentSum(x, [1, 1, 0, 1], 3)],
  [
    'spaceToBatchND',
    uniform([1, 4, 4, 2]),
    (x) =>
      tf.spaceToBatchND(
        x,
        [2, 2],
        [
          [0, 0],
          [0, 0],
        ],
      ),
  ],
  [
    'batchToSpaceND',
    uniform([4, 2, 2, 2]),
    (x) =>
      tf.batchToSpaceND(
        x,
        [2, 2],
        [
          [0, 0],
          [0, 0],
        ],
      ),
  ],
  ['dropout with a fixed mask', ANY, (x) => tf.dropout(x, 0.4, undefined, 7)],
];

const MATRICES: readonly GradientCase[] = [
  ...[false, true].flatMap((transposeA) =>
    [false, true].flatMap((transposeB) =>
      [[], [3], [2, 2]].map((batch) => {
        const a = transposeA ? [5, 4] : [4, 5];
        const b = transposeB ? [6, 5] : [5, 6];
        const sides = `${transposeA ? 'aᵀ' : 'a'} · ${transposeB ? 'bᵀ' : 'b'}`;
        return op(
          `matMul ${sides}, batch [${batch}]`,
          { a: uniform([...batch, ...a]), b: uniform([...batch, ...b]) },
          (t) => tf.matMul(t.a, t.b, transposeA, transposeB),
        );
      }),
    ),
  ),
  // One side only: broadcast on both, the cpu engine's own product is wrong.
  op('matMul, one matrix for the batch', { a: uniform([3, 4, 5]), b: uniform([1, 6, 5]) }, (t) =>
    tf.matMul(t.a, t.b, false, true),
  ),
  op('matMul, rank 2 for the batch', { a: uniform([2, 3, 4, 5]), b: uniform([5, 6]) }, (t) =>
    tf.matMul(t.a, t.b),
  ),
  op('matMul of a row and a column', { a: uniform([1, 7]), b: uniform([7, 1]) }, (t) =>
    tf.matMul(t.a, t.b),
  ),
  op('dot', { a: uniform([5]), b: uniform([5, 3]) }, (t) => tf.dot(t.a, t.b)),
  op('outerProduct', { a: uniform([5]), b: uniform([3]) }, (t) =>
    tf.outerProduct(t.a as tf.Tensor1D, t.b as tf.Tensor1D),
  ),
  op(
    'fused matMul with bias and elu',
    { a: uniform([4, 5]), b: uniform([5, 3]), bias: uniform([3]) },
    (t) => tf.fused.matMul({ a: t.a, b: t.b, bias: t.bias as tf.Tensor1D, activation: 'elu' }),
  ),
  op('concat of rows', { a: uniform([2, 3]), b: uniform([4, 3]) }, (t) => tf.concat([t.a, t.b], 0)),
  op('concat of columns', { a: uniform([3, 2]), b: uniform([3, 4]) }, (t) =>
    tf.concat([t.a, t.b], 1),
  ),
  op('stack', { a: uniform([3, 2]), b: uniform([3, 2]) }, (t) => tf.stack([t.a, t.b], 1)),
];

type Padding = 'same' | 'valid' | number;

/** Filter, stride and padding; the input is 9×8, so that windows hang over and input is left over. */
const WINDOWS: readonly (readonly [filter: [number, number], stride: number, pad: Padding])[] = [
  [[1, 1], 1, 'valid'],
  [[1, 1], 2, 'same'],
  [[2, 2], 1, 'same'],
  [[2, 2], 2, 'valid'],
  [[2, 2], 3, 'same'],
  [[3, 3], 1, 'same'],
  [[3, 3], 1, 'valid'],
  [[3, 3], 2, 'same'],
  [[3, 3], 2, 'valid'],
  [[3, 3], 1, 1],
  [[3, 2], 2, 1],
  [[5, 5], 1, 'same'],
  [[5, 3], 3, 'valid'],
];

const IMAGE = [2, 9, 8, 3];

const CONVOLUTIONS: readonly GradientCase[] = [
  ...WINDOWS.flatMap(([filter, stride, pad]) => {
    const text = `${filter.join('×')}, stride ${stride}, padding ${pad}`;
    return [
      op(`conv2d ${text}`, { x: uniform(IMAGE), filter: uniform([...filter, 3, 4]) }, (t) =>
        tf.conv2d(t.x as tf.Tensor4D, t.filter as tf.Tensor4D, stride, pad),
      ),
      op(`depthwise ${text}`, { x: uniform(IMAGE), filter: uniform([...filter, 3, 1]) }, (t) =>
        tf.depthwiseConv2d(t.x as tf.Tensor4D, t.filter as tf.Tensor4D, stride, pad),
      ),
      op(`maxPool ${text}`, { x: apart(IMAGE) }, (t) =>
        tf.maxPool(t.x as tf.Tensor4D, filter, stride, pad),
      ),
      op(`avgPool ${text}`, { x: uniform(IMAGE) }, (t) =>
        tf.avgPool(t.x as tf.Tensor4D, filter, stride, pad),
      ),
    ];
  }),
  op(
    'conv2d, padding wider than the filter',
    { x: uniform([2, 5, 4, 2]), filter: uniform([2, 2, 2, 3]) },
    (t) => tf.conv2d(t.x as tf.Tensor4D, t.filter as tf.Tensor4D, 1, 3),
  ),
  op(
    'conv2d, padding of its own on each side, two strides',
    { x: uniform(IMAGE), filter: uniform([3, 4, 3, 2]) },
    (t) =>
      tf.conv2d(
        t.x as tf.Tensor4D,
        t.filter as tf.Tensor4D,
        [2, 1],
        [
          [0, 0],
          [0, 2],
          [3, 1],
          [0, 0],
        ],
      ),
  ),
  op(
    'fused conv2d with bias and elu',
    { x: uniform(IMAGE), filter: uniform([2, 2, 3, 4]), bias: uniform([4]) },
    (t) =>
      tf.fused.conv2d({
        x: t.x as tf.Tensor4D,
        filter: t.filter as tf.Tensor4D,
        bias: t.bias,
        strides: 3,
        pad: 'same',
        activation: 'elu',
      }),
  ),
  ...[1, 2].map((stride) =>
    op(
      `depthwise with 2 filters a channel, stride ${stride}`,
      { x: uniform(IMAGE), filter: uniform([3, 3, 3, 2]) },
      (t) => tf.depthwiseConv2d(t.x as tf.Tensor4D, t.filter as tf.Tensor4D, stride, 'same'),
    ),
  ),
  op(
    'separableConv2d',
    { x: uniform(IMAGE), depth: uniform([3, 3, 3, 2]), point: uniform([1, 1, 6, 4]) },
    (t) =>
      tf.separableConv2d(
        t.x as tf.Tensor4D,
        t.depth as tf.Tensor4D,
        t.point as tf.Tensor4D,
        1,
        'same',
      ),
  ),
  op('conv1d', { x: uniform([2, 9, 3]), filter: uniform([3, 3, 4]) }, (t) =>
    tf.conv1d(t.x as tf.Tensor3D, t.filter as tf.Tensor3D, 2, 'same'),
  ),
  ...(
    [
      [1, 3, 'same', [2, 5, 4, 3]],
      [1, 3, 'valid', [2, 7, 6, 3]],
      [2, 3, 'same', [2, 10, 8, 3]],
      [2, 3, 'valid', [2, 11, 9, 3]],
      [3, 2, 'same', [2, 15, 12, 3]],
    ] as const
  ).map(([stride, size, pad, out]) =>
    op(
      `conv2dTranspose ${size}×${size}, stride ${stride}, padding ${pad}`,
      { x: uniform([2, 5, 4, 4]), filter: uniform([size, size, 3, 4]) },
      (t) => tf.conv2dTranspose(t.x as tf.Tensor4D, t.filter as tf.Tensor4D, [...out], stride, pad),
    ),
  ),
  op(
    'conv2dTranspose of more pixels than are laid out at a time',
    { x: uniform([8, 40, 40, 4]), filter: uniform([5, 5, 4, 4]) },
    (t) =>
      tf.conv2dTranspose(t.x as tf.Tensor4D, t.filter as tf.Tensor4D, [8, 80, 80, 4], 2, 'same'),
    { differences: false },
  ),
  ...[1, 2].flatMap((stride) =>
    (['same', 'valid'] as const).flatMap((pad) => {
      const text = `2×3×2, stride ${stride}, padding ${pad}`;
      const volume = [2, 4, 5, 5, 2];
      const window: [number, number, number] = [2, 3, 2];
      return [
        op(`conv3d ${text}`, { x: uniform(volume), filter: uniform([2, 3, 2, 2, 3]) }, (t) =>
          tf.conv3d(t.x as tf.Tensor5D, t.filter as tf.Tensor5D, stride, pad),
        ),
        op(`maxPool3d ${text}`, { x: apart(volume) }, (t) =>
          tf.maxPool3d(t.x as tf.Tensor5D, window, stride, pad),
        ),
        op(`avgPool3d ${text}`, { x: uniform(volume) }, (t) =>
          tf.avgPool3d(t.x as tf.Tensor5D, window, stride, pad),
        ),
      ];
    }),
  ),
  op('maxPool of negative values only', { x: apart(IMAGE, -25) }, (t) =>
    tf.maxPool(t.x as tf.Tensor4D, 2, 2, 'same'),
  ),
  op('maxPool3d of negative values only', { x: apart([2, 4, 5, 5, 2], -25) }, (t) =>
    tf.maxPool3d(t.x as tf.Tensor5D, 2, 2, 'same'),
  ),
];

type Size = [number, number];

const IMAGES: readonly GradientCase[] = [
  ...(
    [
      ['twice as large', [6, 8], false, false],
      ['smaller', [2, 3], false, false],
      ['odd ratio', [7, 5], false, false],
      ['corners aligned', [7, 9], true, false],
      ['centres of pixels', [6, 8], false, true],
    ] as const
  ).flatMap(([text, size, align, half]) => [
    op(`resizeBilinear ${text}`, { x: uniform([2, 3, 4, 2]) }, (t) =>
      tf.image.resizeBilinear(t.x as tf.Tensor4D, [...size] as Size, align, half),
    ),
    op(`resizeNearestNeighbor ${text}`, { x: uniform([2, 3, 4, 2]) }, (t) =>
      tf.image.resizeNearestNeighbor(t.x as tf.Tensor4D, [...size] as Size, align, half),
    ),
  ]),
  op('localResponseNormalization', { x: uniform([2, 3, 3, 5]) }, (t) =>
    tf.localResponseNormalization(t.x as tf.Tensor4D, 2, 1, 0.5, 0.75),
  ),
  op(
    'batchNorm',
    {
      x: uniform([4, 3]),
      mean: uniform([3]),
      variance: uniform([3], 0.5, 1.5),
      offset: uniform([3]),
      scale: uniform([3]),
    },
    (t) =>
      tf.batchNorm(
        t.x,
        t.mean as tf.Tensor1D,
        t.variance as tf.Tensor1D,
        t.offset as tf.Tensor1D,
        t.scale as tf.Tensor1D,
        1e-3,
      ),
  ),
];

const LOGITS = uniform([4, 5], -2, 2);

const LOSSES: readonly (readonly [name: string, x: Draw, f: Unary])[] = [
  ['softmax cross entropy', LOGITS, (x) => tf.losses.softmaxCrossEntropy(classes(4, 5), x)],
  [
    '… with smoothed labels',
    LOGITS,
    (x) => tf.losses.softmaxCrossEntropy(classes(4, 5), x, 1, 0.1),
  ],
  ['sigmoid cross entropy', LOGITS, (x) => tf.losses.sigmoidCrossEntropy(classes(4, 5), x)],
  ['mean squared error', LOGITS, (x) => tf.losses.meanSquaredError(classes(4, 5), x)],
  ['mean absolute error', apart([4, 5]), (x) => tf.losses.absoluteDifference(classes(4, 5), x)],
  ['huber', apart([4, 5]), (x) => tf.losses.huberLoss(classes(4, 5), x, 1, 0.52)],
  ['hinge', apart([4, 5]), (x) => tf.losses.hingeLoss(classes(4, 5), x)],
  ['log loss', uniform([4, 5], 0.2, 0.8), (x) => tf.losses.logLoss(classes(4, 5), x)],
  ['cosine distance', LOGITS, (x) => tf.losses.cosineDistance(classes(4, 5), x, 1)],
];

const SEQUENCE = uniform([2, 4, 3]);

const LAYERS: readonly GradientCase[] = [
  layer('dense, tanh', () => tfl.dense({ units: 4, activation: 'tanh' }), uniform([3, 5])),
  layer('dense, softmax', () => tfl.dense({ units: 4, activation: 'softmax' }), uniform([3, 5])),
  layer('dense on sequences', () => tfl.dense({ units: 4, activation: 'sigmoid' }), SEQUENCE),
  layer('conv1d', () => tfl.conv1d({ filters: 3, kernelSize: 3, padding: 'same' }), SEQUENCE),
  layer(
    'conv2d, elu',
    () => tfl.conv2d({ filters: 3, kernelSize: 3, strides: 2, padding: 'same', activation: 'elu' }),
    uniform([2, 6, 5, 2]),
  ),
  layer(
    'conv2dTranspose',
    () => tfl.conv2dTranspose({ filters: 3, kernelSize: 3, strides: 2, padding: 'same' }),
    uniform([2, 3, 4, 2]),
  ),
  layer('conv3d', () => tfl.conv3d({ filters: 2, kernelSize: 2 }), uniform([2, 3, 4, 3, 2])),
  layer(
    'depthwiseConv2d',
    () => tfl.depthwiseConv2d({ kernelSize: 3, depthMultiplier: 2, padding: 'same' }),
    uniform([2, 5, 4, 2]),
  ),
  layer(
    'separableConv2d',
    () => tfl.separableConv2d({ filters: 3, kernelSize: 3, activation: 'tanh' }),
    uniform([2, 5, 4, 2]),
  ),
  layer('maxPooling1d', () => tfl.maxPooling1d({ poolSize: 2 }), apart([2, 6, 3])),
  layer('averagePooling1d', () => tfl.averagePooling1d({ poolSize: 2 }), uniform([2, 6, 3])),
  layer('globalAveragePooling2d', () => tfl.globalAveragePooling2d({}), uniform([2, 3, 4, 2])),
  layer('globalMaxPooling2d', () => tfl.globalMaxPooling2d({}), apart([2, 3, 4, 2])),
  layer('upSampling2d', () => tfl.upSampling2d({ size: [2, 3] }), uniform([2, 3, 4, 2])),
  layer('zeroPadding2d', () => tfl.zeroPadding2d({ padding: 1 }), uniform([2, 3, 4, 2])),
  layer('flatten', () => tfl.flatten(), uniform([2, 3, 4, 2])),
  layer('permute', () => tfl.permute({ dims: [2, 1] }), SEQUENCE),
  layer('repeatVector', () => tfl.repeatVector({ n: 3 }), uniform([2, 3])),
  layer('prelu', () => tfl.prelu(), apart([3, 4])),
  layer('prelu, a slope a channel', () => tfl.prelu({ sharedAxes: [1, 2] }), apart([2, 3, 3, 2])),
  layer('leakyReLU', () => tfl.leakyReLU({ alpha: 0.1 }), apart([3, 4])),
  // Far enough from its kink with this noise, where most units are on.
  layer('noisyReLU, training', () => fixed(own.noisyReLU()), apart([3, 4], 2), true),
  layer('noisyReLU, evaluating', () => own.noisyReLU(), apart([3, 4])),
  layer(
    'weightNoise of dense, training',
    () => fixed(own.weightNoise({ layer: tfl.dense({ units: 4 }), stddev: 0.5 })),
    uniform([3, 5]),
    true,
  ),
  layer(
    'weightNoise of an LSTM, training',
    () => fixed(own.weightNoise({ layer: tfl.lstm({ units: 3 }) as never, stddev: 0.2 })),
    SEQUENCE,
    true,
  ),
  layer('globalContrast', () => own.globalContrast({ lambda: 0.1 }), uniform([2, 4, 3, 2])),
  layer(
    'localContrast',
    () => own.localContrast({ window: 3, epsilon: 0.1 }),
    uniform([2, 4, 3, 2]),
  ),
  layer('adaptivePooling', () => own.adaptivePooling({ size: [2, 3] }), uniform([2, 5, 4, 2])),
  layer(
    'adaptivePooling of maxima',
    () => own.adaptivePooling({ size: [2, 3], kind: 'max' }),
    apart([2, 5, 4, 2]),
  ),
  layer(
    'an LSTM along the rows of images',
    () => own.rowsAndColumns({ units: 2, cell: 'lstm' })[0]!,
    uniform([2, 3, 4, 2]),
  ),
  layer(
    'a GRU along the columns of images',
    () => own.rowsAndColumns({ units: 2 })[1]!,
    uniform([2, 3, 4, 2]),
  ),
  layer(
    'simpleRNN with echo-state initial values',
    () => tfl.simpleRNN({ units: 8, recurrentInitializer: initializers.echoState() }),
    SEQUENCE,
  ),
  layer('batchNormalization, training', () => tfl.batchNormalization(), uniform([6, 3]), true),
  layer(
    'batchNormalization of images, training',
    () => tfl.batchNormalization(),
    uniform([3, 4, 3, 2]),
    true,
  ),
  layer('batchNormalization, evaluating', () => tfl.batchNormalization(), uniform([6, 3])),
  layer('layerNormalization', () => tfl.layerNormalization(), uniform([3, 6])),
  layer(
    'embedding',
    () => tfl.embedding({ inputDim: 7, outputDim: 3 }),
    () =>
      tf.tensor2d([
        [1, 6, 1],
        [0, 3, 6],
      ]),
  ),
  layer('simpleRNN', () => tfl.simpleRNN({ units: 3 }), SEQUENCE),
  layer('LSTM', () => tfl.lstm({ units: 3 }), SEQUENCE),
  layer('LSTM, sequences', () => tfl.lstm({ units: 3, returnSequences: true }), SEQUENCE),
  layer('GRU', () => tfl.gru({ units: 3 }), SEQUENCE),
  layer(
    'bidirectional',
    () => tfl.bidirectional({ layer: tfl.gru({ units: 2 }), mergeMode: 'concat' }),
    SEQUENCE,
  ),
  layer(
    'LSTM whose steps are one operation',
    () => wholeSequence(tfl.lstm({ units: 3, returnSequences: true, goBackwards: true })),
    SEQUENCE,
  ),
  layer(
    'GRU whose steps are one operation',
    () => wholeSequence(tfl.gru({ units: 5, recurrentActivation: 'sigmoid' })),
    SEQUENCE,
  ),
  layer(
    'simpleRNN cells, two, whose steps are one operation',
    () =>
      wholeSequence(
        tfl.rnn({ cell: [2, 3].map((units) => tfl.simpleRNNCell({ units })) as never }),
      ),
    SEQUENCE,
  ),
  layer('timeDistributed', () => tfl.timeDistributed({ layer: tfl.dense({ units: 2 }) }), SEQUENCE),
  layer(
    'convLstm2d',
    () => tfl.convLstm2d({ filters: 2, kernelSize: 2 }),
    uniform([1, 2, 3, 4, 2]),
  ),
];

/** All cases; names are unique. */
export const GRADIENT_CASES: readonly GradientCase[] = [
  ...[...ELEMENTWISE, ...REDUCTIONS, ...SHAPES].map(([name, x, f]) =>
    op(name, { x }, (t) => f(t.x)),
  ),
  ...LOSSES.map(([name, x, f]) => op(`loss ${name}`, { x }, (t) => f(t.x))),
  ...BINARY.map(([name, a, b, f]) => op(name, { a, b }, (t) => f(t.a, t.b))),
  ...MATRICES,
  ...CONVOLUTIONS,
  ...IMAGES,
  ...LAYERS,
];

/** The same noise at each call, so that it can be differentiated. */
function fixed<L extends tfl.Layer>(layer: L): L {
  const noise: NoiseSource = (request) => withSeed(5, () => drawNoise(request));
  return Object.assign(layer, { noise });
}

function integers(values: number[], shape: number[] = [values.length]): tf.Tensor {
  return tf.tensor(values, shape, 'int32');
}

function segmentSum(x: tf.Tensor, ids: number[], segments: number): tf.Tensor {
  return tf.unsortedSegmentSum(x, tf.tensor1d(ids, 'int32'), segments);
}

function alternating(shape: number[]): tf.Tensor {
  const size = shape.reduce((product, n) => product * n, 1);
  return tf.tensor(
    Array.from({ length: size }, (_, i) => i % 3 === 0),
    shape,
    'bool',
  );
}

function classes(count: number, kinds: number): tf.Tensor2D {
  const labels = Array.from({ length: count }, (_, i) => (i * 3 + 1) % kinds);
  return tf.cast(tf.oneHot(tf.tensor1d(labels, 'int32'), kinds), 'float32') as tf.Tensor2D;
}

function layerNormalised(x: tf.Tensor): tf.Tensor {
  const { mean, variance } = tf.moments(x, -1, true);
  return tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, 1e-3)));
}
