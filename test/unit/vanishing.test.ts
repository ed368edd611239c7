import { beforeAll, describe, expect, test } from 'vitest';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import type { ModelArguments } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import type { Layer } from '../../worker/tf.ts';

beforeAll(() => openEngine({ engine: 'cpu' }));

/** Builds a model of the layers, which end in two logits, for images of this shape. */
async function build(
  shape: number[],
  layers: (args: ModelArguments) => Layer[],
  functional = false,
) {
  const size = shape.reduce((a, b) => a * b, 1);
  const train = {
    count: 4,
    inputs: { values: new Float32Array(4 * size), shape: [4, ...shape] },
    targets: { values: Int32Array.of(0, 1, 0, 1), shape: [4] },
  };
  const data = { train, validation: train, classCount: 2, source: 'numbers' };
  const options = { seed: 1, validationFraction: 0, standardise: 'none' } as const;
  const model = await buildModel(
    {
      data: () => data,
      model: (args) => {
        const { tf } = args;
        const all = [
          ...layers(args),
          tf.layers.flatten(),
          tf.layers.dense({ units: 2 }),
        ] as Layer[];
        if (!functional) return tf.sequential({ layers: all });
        const input = tf.input({ shape });
        return tf.model({
          inputs: input,
          outputs: all.reduce((x, layer) => layer.apply(x) as typeof input, input),
        });
      },
      loss: 'softmaxCrossEntropy',
    },
    { seed: 1, hyperparameters: {} },
    prepareData(data, options),
  );
  model.dispose();
}

const convolutions =
  (count: number, padding: 'same' | 'valid') =>
  ({ tf, inputShape }: ModelArguments): Layer[] =>
    Array.from({ length: count }, (_, i) =>
      tf.layers.conv2d({ filters: 2, kernelSize: 5, padding, ...(i === 0 ? { inputShape } : {}) }),
    ) as Layer[];

describe('a layer of which nothing is left', () => {
  test.each([false, true])(
    'is refused with the shapes of each layer (functional: %s)',
    async (functional) => {
      await expect(build([8, 8, 1], convolutions(2, 'valid'), functional)).rejects.toThrow(
        /nothing is left after layer 'conv2d_.*': it has a window of 5 × 5, which does not fit into \[4,4,2\]\. Shapes: input \[8,8,1\] → Conv2D \(5 × 5, valid\) \[4,4,2\] → Conv2D \(5 × 5, valid\) \[0,0,2\]\. With padding 'valid'.*'same'/,
      );
      await build([8, 8, 1], convolutions(1, 'valid'), functional);
      await build([8, 8, 1], convolutions(2, 'same'), functional);
    },
  );

  test.each<[string, number[], (args: ModelArguments) => unknown[], RegExp]>([
    [
      'far larger than the image',
      [4, 4, 1],
      ({ tf, inputShape }) => [tf.layers.conv2d({ inputShape, filters: 1, kernelSize: 8 })],
      /window of 8 × 8.*\[4,4,1\] → Conv2D \(8 × 8, valid\) \[-3,-3,1\]/,
    ],
    [
      'of pooling',
      [3, 3, 1],
      ({ tf, inputShape }) => [
        tf.layers.maxPooling2d({ inputShape, poolSize: 2 }),
        tf.layers.averagePooling2d({ poolSize: 2 }),
      ],
      /MaxPooling2D \(2 × 2, strides 2 × 2, valid\) \[1,1,1\] → AveragePooling2D .* \[0,0,1\]/,
    ],
    [
      'of a sequence',
      [4, 1],
      ({ tf, inputShape }) => [tf.layers.conv1d({ inputShape, filters: 2, kernelSize: 5 })],
      /window of 5, which does not fit into \[4,1\]/,
    ],
    [
      'that crops',
      [4, 4, 1],
      ({ tf, inputShape }) => [
        tf.layers.cropping2D({
          inputShape,
          cropping: [
            [2, 2],
            [2, 2],
          ],
        }),
      ],
      /takes more away than \[4,4,1\] has.*Use fewer such layers/,
    ],
  ])('%s', async (_, shape, layers, message) => {
    await expect(build(shape, layers as never)).rejects.toThrow(message);
  });
});
