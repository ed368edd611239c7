import { beforeAll, describe, expect, test } from 'vitest';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { globalContrast, localContrast } from '../../worker/images.ts';
import { layers } from '../../worker/layers.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

const ENGINES = [
  'cpu',
  'wasm',
  ...(readEngine(engineFolder('cpu')) ? ['native'] : []),
] as EngineName[];
beforeAll(() => openEngine({ engine: 'cpu' }));

type Shape = readonly [number, number, number, number];

/** Numbers from 0 to 1, another mean and another spread for each image. */
const numbers = ([n, height, width, channels]: Shape): number[] => {
  const size = height * width * channels;
  return Array.from({ length: n * size }, (_, i) => {
    const image = Math.floor(i / size);
    return (((i * 37 + image * 11) % 101) / 100) * (0.2 + 0.3 * image) + 0.1 * image;
  });
};

function expectClose(seen: ArrayLike<number>, wanted: readonly number[], tolerance = 1e-5) {
  expect(seen.length).toBe(wanted.length);
  let furthest = 0;
  for (let i = 0; i < wanted.length; i++) {
    furthest = Math.max(furthest, Math.abs(seen[i]! - wanted[i]!));
  }
  expect(furthest).toBeLessThanOrEqual(tolerance);
}

/** Equation 12.3 of Deep Learning, in plain loops. */
function plainGlobal(
  values: readonly number[],
  n: number,
  s: number,
  lambda: number,
  epsilon: number,
) {
  const size = values.length / n;
  const result: number[] = [];
  for (let image = 0; image < n; image++) {
    const own = values.slice(image * size, (image + 1) * size);
    let mean = 0;
    for (const x of own) mean += x / size;
    let variance = 0;
    for (const x of own) variance += (x - mean) ** 2 / size;
    for (const x of own)
      result.push((s * (x - mean)) / Math.max(epsilon, Math.sqrt(lambda + variance)));
  }
  return result;
}

/** Each pixel's window, weighed by a Gaussian whose part inside the image adds up to 1, in plain loops. */
function plainLocal(
  values: readonly number[],
  [n, height, width, channels]: Shape,
  { window, deviation, epsilon }: { window: number; deviation: number; epsilon?: number },
) {
  const reach = (window - 1) / 2;
  const at = (i: number, y: number, x: number, c: number) =>
    ((i * height + y) * width + x) * channels + c;
  const blurred = (list: readonly number[]) => {
    const result = new Array<number>(list.length);
    for (let i = 0; i < n; i++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          for (let c = 0; c < channels; c++) {
            let [sum, weights] = [0, 0];
            for (let dy = -reach; dy <= reach; dy++) {
              for (let dx = -reach; dx <= reach; dx++) {
                const [row, column] = [y + dy, x + dx];
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                const weight = Math.exp(-(dy * dy + dx * dx) / (2 * deviation * deviation));
                sum += weight * list[at(i, row, column, c)]!;
                weights += weight;
              }
            }
            result[at(i, y, x, c)] = sum / weights;
          }
        }
      }
    }
    return result;
  };
  const means = blurred(values);
  const centred = values.map((value, i) => value - means[i]!);
  const spread = blurred(centred.map((value) => value * value)).map(Math.sqrt);
  return centred.map((value, i) => {
    const [image, channel] = [Math.floor(i / (height * width * channels)), i % channels];
    let mean = 0;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) mean += spread[at(image, y, x, channel)]! / (height * width);
    }
    return value / Math.max(spread[i]!, epsilon ?? mean);
  });
}

const SHAPE: Shape = [3, 9, 8, 2];

describe.each(ENGINES)('on %s', (engine) => {
  beforeAll(() => openEngine({ engine }));

  test('global contrast normalisation is what plain loops give', () => {
    const values = numbers(SHAPE);
    for (const [scale, lambda, epsilon] of [
      [1, 0, 1e-8],
      [1, 10, 0],
      [2, 0.05, 0],
      [1, 0, 0.2],
    ] as const) {
      const seen = tf.tidy(() =>
        globalContrast(tf.tensor4d(values, [...SHAPE]), { scale, lambda, epsilon }).dataSync(),
      );
      expectClose(seen, plainGlobal(values, 3, scale, lambda, epsilon));
    }
  });

  test('local contrast normalisation is what plain loops give', () => {
    const values = numbers(SHAPE);
    for (const options of [
      { window: 9, deviation: 2.25 },
      { window: 3, deviation: 1 },
      { window: 5, deviation: 0.7, epsilon: 0.1 },
    ]) {
      const seen = tf.tidy(() =>
        localContrast(tf.tensor4d(values, [...SHAPE]), options).dataSync(),
      );
      expectClose(seen, plainLocal(values, SHAPE, options));
    }
  });

  test('rows and columns of an image are sequences of a recurrent layer', () => {
    const [first, second] = layers.rowsAndColumns({ units: 3, inputShape: [4, 5, 2] }) as [
      ReturnType<typeof layers.noisyReLU>,
      ReturnType<typeof layers.noisyReLU>,
    ];
    const x = tf.tensor4d(numbers([2, 4, 5, 2]), [2, 4, 5, 2]);
    const rows = first.apply(x) as Tensor;
    expect(rows.shape).toEqual([2, 4, 5, 6]);
    const { layer } = first as unknown as { layer: typeof first };
    // Each row of each image by itself.
    const each = tf.unstack(x).flatMap((image) => tf.unstack(image));
    const wanted = each.flatMap((row) => [
      ...(layer.apply(tf.expandDims(row)) as Tensor).dataSync(),
    ]);
    expectClose(rows.dataSync(), wanted);
    const both = second.apply(rows) as Tensor;
    expect(both.shape).toEqual([2, 4, 5, 6]);
    const own = (second as unknown as { layer: typeof first }).layer;
    const turned = tf
      .unstack(tf.transpose(rows, [0, 2, 1, 3]))
      .flatMap((image) => tf.unstack(image));
    const columns = turned.flatMap((line) => [
      ...(own.apply(tf.expandDims(line)) as Tensor).dataSync(),
    ]);
    const wantedBoth = tf.transpose(tf.tensor4d(columns, [2, 5, 4, 6]), [0, 2, 1, 3]);
    expectClose(both.dataSync(), [...wantedBoth.dataSync()]);
  });

  test('adaptive pooling of any size is what plain loops give', () => {
    for (const [height, width, size] of [
      [7, 5, [3, 2]],
      [4, 4, [4, 4]],
      [2, 3, [3, 5]],
      [8, 8, [2, 2]],
    ] as const) {
      const values = numbers([2, height, width, 2]);
      const x = tf.tensor4d(values, [2, height, width, 2]);
      for (const kind of ['average', 'max'] as const) {
        const seen = layers.adaptivePooling({ size, kind }).apply(x) as Tensor;
        expect(seen.shape).toEqual([2, ...size, 2]);
        const wanted: number[] = [];
        for (let i = 0; i < 2; i++) {
          for (let row = 0; row < size[0]; row++) {
            for (let column = 0; column < size[1]; column++) {
              for (let c = 0; c < 2; c++) {
                const window: number[] = [];
                for (
                  let y = Math.floor((row * height) / size[0]);
                  y < Math.ceil(((row + 1) * height) / size[0]);
                  y++
                ) {
                  for (
                    let z = Math.floor((column * width) / size[1]);
                    z < Math.ceil(((column + 1) * width) / size[1]);
                    z++
                  ) {
                    window.push(values[((i * height + y) * width + z) * 2 + c]!);
                  }
                }
                wanted.push(
                  kind === 'max'
                    ? Math.max(...window)
                    : window.reduce((a, b) => a + b, 0) / window.length,
                );
              }
            }
          }
        }
        expectClose(seen.dataSync(), wanted);
      }
    }
  });
});

test('contrast that is not there stays 0, and is nothing to divide by', () => {
  for (const level of [0.3, 254.7]) {
    const flat = tf.fill([2, 6, 6, 1], level);
    const told = [...globalContrast(flat).dataSync(), ...localContrast(flat).dataSync()];
    for (const value of told) expect(Math.abs(value)).toBeLessThan(1e-3);
  }
});

test('one model takes images of any size, is saved, and is loaded again', async () => {
  const model = tf.sequential({
    layers: [
      layers.globalContrast({ inputShape: [null as never, null as never, 2], lambda: 0.1 }),
      layers.localContrast({ window: 3 }),
      tf.layers.conv2d({ filters: 3, kernelSize: 3, padding: 'same' }),
      ...layers.rowsAndColumns({ units: 2, cell: 'lstm' }),
      layers.adaptivePooling({ size: [2, 3], kind: 'max' }),
      tf.layers.flatten(),
      tf.layers.dense({ units: 2 }),
    ],
  });
  let saved: Parameters<typeof tf.io.fromMemory>[0] | undefined;
  await model.save(
    tf.io.withSaveHandler(async (artifacts) => {
      saved = artifacts as never;
      return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
    }),
  );
  const loaded = await tf.loadLayersModel(tf.io.fromMemory(saved!));
  for (const [height, width] of [
    [5, 7],
    [9, 4],
  ] as const) {
    const x = tf.tensor4d(numbers([2, height, width, 2]), [2, height, width, 2]);
    const answer = model.predict(x) as Tensor;
    expect(answer.shape).toEqual([2, 2]);
    expect([...(loaded.predict(x) as Tensor).dataSync()]).toEqual([...answer.dataSync()]);
  }
});

test.each<[string, () => unknown, RegExp]>([
  ['an even window', () => layers.localContrast({ window: 4 }), /an odd number/],
  [
    'a window below 3',
    () => layers.localContrast({ window: 1 }),
    /window is 1; allowed: a whole number from 3 to 255/,
  ],
  ['a window above 255', () => layers.localContrast({ window: 257 }), /from 3 to 255/],
  [
    'no λ and no ε',
    () => layers.globalContrast({ epsilon: 0 }),
    /epsilon is 0; allowed: a number from 1e-12/,
  ],
  ['a negative λ', () => layers.globalContrast({ lambda: -1 }), /lambda is -1/],
  [
    'a size of 0',
    () => layers.adaptivePooling({ size: 0 }),
    /size is 0; allowed: a whole number from 1 to 4096/,
  ],
  [
    'a kind',
    () => layers.adaptivePooling({ size: 1, kind: 'mean' as never }),
    /kind is "mean"; allowed: 'average' or 'max'/,
  ],
  ['a cell', () => layers.rowsAndColumns({ units: 1, cell: 'rnn' as never }), /cell is "rnn"/],
  ['no units', () => layers.rowsAndColumns({ units: 0 }), /units is 0/],
])('refuses %s', (_, wrong, message) => {
  expect(wrong).toThrow(message);
});

test('at the limits is allowed', () => {
  expect(layers.localContrast({ window: 255 })).toBeDefined();
  expect(layers.adaptivePooling({ size: 4096 })).toBeDefined();
  expect(layers.globalContrast({ lambda: 10, epsilon: 0 })).toBeDefined();
});
