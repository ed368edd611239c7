import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Batch, BatchFunction } from '../../worker/batch.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { drawsOf } from '../../worker/draws.ts';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import {
  type Augmentation,
  augment,
  brightness,
  classProbabilities,
  contrast,
  crop,
  cutout,
  flip,
  hue,
  mixup,
  pad,
  resize,
  rotate,
  scale,
  shear,
  shift,
} from '../../worker/images.ts';
import { buildModel } from '../../worker/model.ts';
import { withSeed } from '../../worker/noise.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

const ENGINES = [
  'cpu',
  'wasm',
  ...(readEngine(engineFolder('cpu')) ? ['native'] : []),
] as EngineName[];
beforeAll(() => openEngine({ engine: 'cpu' }));

interface Images {
  readonly values: readonly number[];
  readonly shape: readonly number[];
}

const functionOf = (batch: Batch): BatchFunction =>
  typeof batch === 'function' ? batch : batch.change;

/** What an augmentation makes of images and targets. */
function changed(
  batch: Batch,
  { values, shape }: Images,
  { seed = 1, training = true, targets = tf.zeros([shape[0]!]) as Tensor } = {},
): { inputs: Images; targets: Images } {
  const run = () =>
    tf.tidy(() => {
      const fields = { inputs: tf.tensor([...values], [...shape]), targets };
      const args = { tf, random: drawsOf(), training, hyperparameters: {} };
      const told = functionOf(batch)(fields, args);
      const read = (t: Tensor) => ({ values: [...t.dataSync()], shape: t.shape });
      return { inputs: read(told.inputs!), targets: read(told.targets!) } as never;
    });
  return withSeed(seed, run);
}

const images = (n: number, height: number, width: number, channels: number): Images => ({
  values: Array.from({ length: n * height * width * channels }, (_, i) => ((i * 37) % 101) / 100),
  shape: [n, height, width, channels],
});

/** The numbers that `random.number()` gives for a seed, in order. */
const numbers = (seed: number, count: number): number[] =>
  withSeed(seed, () => Array.from({ length: count }, () => Math.random()));

type At = (image: number, y: number, x: number, channel: number) => number;

/** An image of which each pixel is found by a function: the plain loop that the engine's result is compared with. */
function loop({ values, shape }: Images, size: readonly [number, number], f: (at: At) => At) {
  const [n, height, width, channels] = shape as [number, number, number, number];
  const at: At = (i, y, x, c) => values[((i * height + y) * width + x) * channels + c]!;
  const of = f(at);
  const result: number[] = [];
  for (let i = 0; i < n; i++) {
    for (let y = 0; y < size[0]; y++) {
      for (let x = 0; x < size[1]; x++) {
        for (let c = 0; c < channels; c++) result.push(of(i, y, x, c));
      }
    }
  }
  return result;
}

const clamp = (value: number, size: number) => Math.min(Math.max(value, 0), size - 1);

/** Bilinear, with the nearest pixel outside. */
const bilinear =
  (at: At, [height, width]: readonly [number, number]): At =>
  (i, y, x, c) => {
    const [top, left] = [Math.floor(y), Math.floor(x)];
    let sum = 0;
    for (const row of [top, top + 1]) {
      for (const column of [left, left + 1]) {
        const weight = (1 - Math.abs(y - row)) * (1 - Math.abs(x - column));
        if (weight > 0) sum += weight * at(i, clamp(row, height), clamp(column, width), c);
      }
    }
    return sum;
  };

function expectClose(seen: readonly number[], wanted: readonly number[], tolerance = 1e-5) {
  expect(seen).toHaveLength(wanted.length);
  const furthest = Math.max(...seen.map((value, i) => Math.abs(value - wanted[i]!)));
  expect(furthest).toBeLessThanOrEqual(tolerance);
}

/** Every step that draws numbers, at an amount of 0 and at another one. */
const STEPS: readonly (readonly [string, Augmentation | null, Augmentation])[] = [
  ['flip', null, flip('both')],
  ['shift', shift(0), shift([1, 2])],
  ['rotate', rotate(0), rotate(30)],
  ['scale', scale(0), scale(0.3)],
  ['shear', shear(0), shear(20)],
  ['brightness', brightness(0), brightness(0.3)],
  ['contrast', contrast(0), contrast(0.5)],
  ['cutout', cutout(0), cutout(3)],
  ['crop', crop([6, 5]), crop([4, 3])],
  ['pad', pad(0), pad([1, 2], { fill: 'reflect' })],
  ['resize', resize([6, 5]), resize([9, 4])],
];

describe('a step', () => {
  test.each(STEPS.filter(([, zero]) => zero !== null))(
    'that changes nothing leaves images as they are, to the bit: %s',
    (_, zero) => {
      const given = images(3, 6, 5, 2);
      const seen = changed(augment([zero!]), given).inputs;
      expect(seen.shape).toEqual(given.shape);
      expectClose(seen.values, [...Float32Array.from(given.values)], 0);
    },
  );

  test('shifts by whole pixels, each example by its own, exactly', () => {
    const given = images(4, 6, 5, 2);
    const draws = numbers(5, 8);
    const by = (i: number) => [
      Math.floor(draws[2 * i]! * 3) - 1,
      Math.floor(draws[2 * i + 1]! * 5) - 2,
    ];
    expect(new Set([0, 1, 2, 3].map((i) => String(by(i)))).size).toBeGreaterThan(1);
    for (const fill of ['edge', 'reflect', 0.25] as const) {
      const wanted = loop(given, [6, 5], (at) => (i, y, x, c) => {
        const [row, column] = [y + by(i)[0]!, x + by(i)[1]!];
        const isOutside = row < 0 || row > 5 || column < 0 || column > 4;
        if (isOutside && fill === 0.25) return fill;
        const place = (at: number, size: number) =>
          fill === 'edge' || (at >= 0 && at < size)
            ? clamp(at, size)
            : at < 0
              ? -1 - at
              : 2 * size - 1 - at;
        return at(i, place(row, 6), place(column, 5), c);
      });
      const seen = changed(augment([shift([1, 2], { fill })]), given, { seed: 5 }).inputs.values;
      expectClose(seen, [...Float32Array.from(wanted)], 0);
    }
  });

  test('mirrors about half of the examples exactly, and twice is none', () => {
    const given = images(40, 3, 4, 1);
    const draws = numbers(2, 40);
    const wanted = loop(
      given,
      [3, 4],
      (at) => (i, y, x, c) => at(i, y, draws[i]! < 0.5 ? 3 - x : x, c),
    );
    expectClose(
      changed(augment([flip()]), given, { seed: 2 }).inputs.values,
      [...Float32Array.from(wanted)],
      0,
    );
    const mirrored = draws.filter((draw) => draw < 0.5).length;
    expect(mirrored).toBeGreaterThan(8);
    expect(mirrored).toBeLessThan(32);
  });

  test('turns, scales and slants bilinearly about the middle', () => {
    const given = images(3, 6, 5, 2);
    const draws = numbers(9, 3).map((draw) => 2 * draw - 1);
    const cases: readonly [
      Augmentation,
      (amount: number, y: number, x: number) => [number, number],
    ][] = [
      [
        rotate(40),
        (amount, y, x) => {
          const angle = (amount * 40 * Math.PI) / 180;
          return [
            Math.sin(angle) * x + Math.cos(angle) * y,
            Math.cos(angle) * x - Math.sin(angle) * y,
          ];
        },
      ],
      [scale(0.4), (amount, y, x) => [y / (1 + 0.4 * amount), x / (1 + 0.4 * amount)]],
      [shear(25), (amount, y, x) => [y, x + Math.tan((amount * 25 * Math.PI) / 180) * y]],
    ];
    for (const [step, from] of cases) {
      const wanted = loop(given, [6, 5], (at) => (i, y, x, c) => {
        const [row, column] = from(draws[i]!, y - 2.5, x - 2);
        return bilinear(at, [6, 5])(i, row + 2.5, column + 2, c);
      });
      expectClose(changed(augment([step]), given, { seed: 9 }).inputs.values, wanted);
    }
  });

  test('crops at random in training and from the middle in evaluations; pads; resizes', () => {
    const given = images(3, 6, 5, 2);
    const draws = numbers(3, 6);
    const cropped = changed(augment([crop([4, 3])]), given, { seed: 3 }).inputs;
    expect(cropped.shape).toEqual([3, 4, 3, 2]);
    const wanted = loop(
      given,
      [4, 3],
      (at) => (i, y, x, c) =>
        at(i, y + Math.floor(draws[2 * i]! * 3), x + Math.floor(draws[2 * i + 1]! * 3), c),
    );
    expectClose(cropped.values, [...Float32Array.from(wanted)], 0);
    const middle = changed(augment([crop([4, 3])]), given, { training: false }).inputs.values;
    const wantedMiddle = loop(given, [4, 3], (at) => (i, y, x, c) => at(i, y + 1, x + 1, c));
    expectClose(middle, [...Float32Array.from(wantedMiddle)], 0);
    const padded = changed(augment([pad([1, 2], { fill: 7 })]), given, { training: false }).inputs;
    expect(padded.shape).toEqual([3, 8, 9, 2]);
    const wantedPadded = loop(
      given,
      [8, 9],
      (at) => (i, y, x, c) => (y < 1 || y > 6 || x < 2 || x > 6 ? 7 : at(i, y - 1, x - 2, c)),
    );
    expectClose(padded.values, [...Float32Array.from(wantedPadded)], 0);
    const resized = changed(augment([resize([9, 4])]), given, { training: false }).inputs;
    const engine = tf.tidy(() => [
      ...tf.image
        .resizeBilinear(tf.tensor4d([...given.values], [3, 6, 5, 2]), [9, 4], false, true)
        .dataSync(),
    ]);
    expectClose(resized.values, engine);
  });

  test('samples once: steps that follow each other are one map', () => {
    const given = images(2, 8, 8, 1);
    // A turn and its opposite, whose draws are the same number, would blur if each sampled.
    const by = (draw: number): Augmentation => ({
      ...rotate(0),
      map: (_, size) => rotate(20).map(() => draw, size),
    });
    const [half, back] = [by(0.9), by(0.1)];
    expectClose(changed(augment([half, back]), given).inputs.values, given.values);
    expect(
      Math.max(
        ...changed(augment([half]), given).inputs.values.map((v, i) =>
          Math.abs(v - given.values[i]!),
        ),
      ),
    ).toBeGreaterThan(0.1);
  });

  test('brightness, contrast and hue are what they say', () => {
    const given = images(3, 4, 3, 3);
    const draws = numbers(4, 3).map((draw) => 2 * draw - 1);
    const pixelsOf = (i: number, c?: number) =>
      given.values.slice(i * 36, (i + 1) * 36).filter((_, at) => c === undefined || at % 3 === c);
    const mean = (list: readonly number[]) => list.reduce((a, b) => a + b, 0) / list.length;
    expectClose(
      changed(augment([brightness(0.5)]), given, { seed: 4 }).inputs.values,
      loop(given, [4, 3], (at) => (i, y, x, c) => {
        const range = Math.max(...pixelsOf(i)) - Math.min(...pixelsOf(i));
        return at(i, y, x, c) + 0.5 * draws[i]! * range;
      }),
    );
    expectClose(
      changed(augment([contrast(0.5)]), given, { seed: 4 }).inputs.values,
      loop(given, [4, 3], (at) => (i, y, x, c) => {
        const middle = mean(pixelsOf(i, c));
        return middle + (at(i, y, x, c) - middle) * (1 + 0.5 * draws[i]!);
      }),
    );
    const hued = changed(augment([hue(90)]), given, { seed: 4 }).inputs.values;
    const luminance = (list: readonly number[], at: number) =>
      0.299 * list[at]! + 0.587 * list[at + 1]! + 0.114 * list[at + 2]!;
    for (let at = 0; at < hued.length; at += 3) {
      expect(Math.abs(luminance(hued, at) - luminance(given.values, at))).toBeLessThan(1e-5);
    }
    // The angle in the plane of the two colour differences.
    const angle = (list: readonly number[]) => {
      const [r, g, b] = list as [number, number, number];
      return Math.atan2(
        0.211456 * r - 0.522591 * g + 0.311135 * b,
        0.595716 * r - 0.274453 * g - 0.321263 * b,
      );
    };
    const turned = angle(hued.slice(0, 3)) - angle(given.values.slice(0, 3));
    expect(Math.cos(turned - (draws[0]! * 90 * Math.PI) / 180)).toBeGreaterThan(0.9999);
  });

  test('cutout covers one square with the mean of the channel', () => {
    const given = images(5, 6, 7, 2);
    const draws = numbers(6, 10);
    const wanted = loop(given, [6, 7], (at) => (i, y, x, c) => {
      const [top, left] = [
        Math.floor(draws[2 * i]! * 6) - 1,
        Math.floor(draws[2 * i + 1]! * 7) - 1,
      ];
      if (y < top || y >= top + 3 || x < left || x >= left + 3) return at(i, y, x, c);
      let sum = 0;
      for (let row = 0; row < 6; row++)
        for (let column = 0; column < 7; column++) sum += at(i, row, column, c);
      return sum / 42;
    });
    expectClose(changed(augment([cutout(3)]), given, { seed: 6 }).inputs.values, wanted);
    const nothing = changed(augment([cutout(100, { fill: 0 })]), given).inputs.values;
    expect(nothing.every((value) => value === 0)).toBe(true);
  });
});

describe('mixup', () => {
  const oneHot = () => tf.oneHot(tf.tensor1d([0, 1, 2, 0, 1, 2], 'int32'), 3).toFloat();

  test('mixes targets as it mixes inputs, by a share of its own for each example', () => {
    const given: Images = {
      values: [0, 1, 2, 0, 1, 2].flatMap((c) => [0, 1, 2].map((k) => (k === c ? 1 : 0))),
      shape: [6, 1, 1, 3],
    };
    const { inputs, targets } = changed(augment([mixup(1)]), given, { targets: oneHot() });
    expect(inputs.values).toEqual(targets.values);
    const shares = new Set<number>();
    for (let i = 0; i < 18; i += 3) {
      const row = targets.values.slice(i, i + 3);
      expect(Math.abs(row.reduce((a, b) => a + b, 0) - 1)).toBeLessThan(1e-6);
      shares.add(Math.max(...row));
    }
    expect(shares.size).toBeGreaterThan(2);
    expectClose(
      changed(augment([mixup(0)]), given, { targets: oneHot() }).targets.values,
      [...oneHot().dataSync()],
      0,
    );
  });

  test('draws its shares from Beta(α, α)', () => {
    const n = 4000;
    const given: Images = { values: Array.from({ length: n }, (_, i) => i), shape: [n, 1, 1, 1] };
    for (const alpha of [0.2, 1, 2]) {
      // Targets 1 for one half and 0 for the other: where both meet, the mixture is λ or 1 − λ.
      const half = tf.tensor1d(Float32Array.from({ length: n }, (_, i) => (i < n / 2 ? 1 : 0)));
      const { targets } = changed(augment([mixup(alpha)]), given, { targets: half });
      const drawn = targets.values.filter((value) => value > 0 && value < 1);
      const variance = drawn.reduce((sum, value) => sum + (value - 0.5) ** 2, 0) / drawn.length;
      const wanted = 1 / (4 * (2 * alpha + 1));
      // About 2,000 draws: the deviation of their variance is below 3 % of it. At 0.2 some round to 0 or 1.
      if (alpha > 0.2) expect(Math.abs(variance / wanted - 1)).toBeLessThan(0.12);
      else expect(variance).toBeGreaterThan(0.14);
    }
  });

  test('refuses class numbers and says what to give instead; classProbabilities gives it', () => {
    const given = images(3, 1, 1, 1);
    const labels = tf.tensor1d([0, 1, 2], 'int32');
    expect(() => changed(augment([mixup()]), given, { targets: labels })).toThrow(
      /targets are class numbers \(int32\).*classProbabilities/,
    );
    const data = {
      train: {
        count: 3,
        inputs: { values: new Float32Array(3), shape: [3, 1] },
        targets: { values: Int32Array.of(2, 0, 1), shape: [3] },
      },
      classCount: 3,
      source: 'x',
    };
    const told = classProbabilities(data).train.targets;
    expect(told.shape).toEqual([3, 3]);
    expect([...told.values]).toEqual([0, 0, 1, 1, 0, 0, 0, 1, 0]);
    const { classCount: _, ...numbers } = data;
    expect(() => classProbabilities(numbers)).toThrow(/no classCount/);
  });
});

describe('augment', () => {
  test('leaves evaluations alone, and says whether they need it', () => {
    expect(augment('digits')).toBeTypeOf('function');
    expect(augment([shift(1), mixup()])).toBeTypeOf('function');
    expect(augment([crop(4)])).toMatchObject({ evaluation: true });
    const given = images(3, 6, 6, 3);
    const all = augment([
      flip(),
      shift(1),
      rotate(9),
      brightness(1),
      cutout(3),
      mixup(),
      resize(6),
    ]);
    expectClose(
      changed(all, given, { training: false }).inputs.values,
      [...Float32Array.from(given.values)],
      0,
    );
  });

  test('takes images without channels, fields by name, and functions', () => {
    const flat = { ...images(2, 4, 5, 1), shape: [2, 4, 5] };
    expect(changed(augment([rotate(20)]), flat).inputs.shape).toEqual([2, 4, 5]);
    const doubled = augment([(x) => tf.mul(x, 2)]);
    expect(changed(doubled, flat).inputs.values).toEqual([
      ...Float32Array.from(flat.values, (v) => 2 * v),
    ]);
    expect(changed(doubled, flat, { training: false }).inputs.values).toEqual([
      ...Float32Array.from(flat.values),
    ]);
    const photo = tf.ones([2, 2, 2, 1]);
    const args = { tf, random: drawsOf(), training: true, hyperparameters: {} };
    const named = functionOf(augment([(x) => tf.mul(x, 3)], { inputs: 'photo' }));
    expect(named({ photo } as never, args).photo!.dataSync()[0]).toBe(3);
    expect(() => named({ image: photo } as never, args)).toThrow(
      /no field 'photo'; they have image/,
    );
  });

  test('never mirrors or turns digits and lines of text around', () => {
    // An image whose left half is white keeps it, whatever is drawn.
    const given = {
      values: Array.from({ length: 40 * 28 * 28 }, (_, i) => (i % 28 < 14 ? 1 : 0)),
      shape: [40, 28, 28, 1],
    };
    for (const policy of ['digits', 'text'] as const) {
      const { values } = changed(augment(policy), given).inputs;
      for (let i = 0; i < 40; i++) {
        const row = values.slice((i * 28 + 14) * 28, (i * 28 + 15) * 28);
        expect(row[2]! - row[25]!).toBeGreaterThan(0.5);
      }
    }
    const { values } = changed(augment('photos'), given).inputs;
    const firsts = Array.from({ length: 40 }, (_, i) => values[i * 784 + 14 * 28]! > 0.5);
    expect(new Set(firsts).size).toBe(2);
  });

  test.each<[string, () => unknown, RegExp]>([
    ['a policy that there is none of', () => augment('digit' as never), /'digits'/],
    ['no steps', () => augment(3 as never), /an array of steps such as/],
    [
      'a step without brackets',
      () => augment([flip as never]),
      /step 0 is the function flip: call it, flip\(…\)/,
    ],
    ['a number as a step', () => augment([3 as never]), /step 0 is 3; allowed: what flip\(\)/],
    [
      'a shift of half a pixel',
      () => shift(0.5),
      /shift: pixels is 0.5; allowed: a whole number from 0 to 16384/,
    ],
    ['a shift by too much', () => shift(16_385), /16385; allowed: a whole number from 0 to 16384/],
    ['a turn by too much', () => rotate(181), /degrees is 181; allowed: a number from 0 to 180/],
    ['a negative scale', () => scale(-0.1), /scale: share is -0.1/],
    [
      'a fill that is none',
      () => pad(1, { fill: 'zero' as never }),
      /pad: fill is "zero"; allowed: 'edge'/,
    ],
    ['an α above 2', () => mixup(2.1), /alpha is 2.1; allowed: a number from 0 to 2/],
    ['NaN', () => brightness(Number.NaN), /share is NaN/],
    ['an axis', () => flip('left' as never), /axis is "left"/],
    [
      'a window that does not fit',
      () => changed(augment([crop(7)]), images(1, 6, 8, 1)),
      /7 × 7 does not fit into images of 6 × 8/,
    ],
    [
      'hue of grey images',
      () => changed(augment([hue(3)]), images(1, 2, 2, 1)),
      /have 1 channel; allowed: 3/,
    ],
    [
      'numbers that are no images',
      () => changed(augment('digits'), { values: [1, 2], shape: [1, 2] }),
      /float32 of shape \[n,2\]; allowed/,
    ],
  ])('refuses %s', (_, wrong, message) => {
    expect(wrong).toThrow(message);
  });

  test('at the limits is allowed', () => {
    for (const step of [
      shift(16_384),
      rotate(180),
      scale(0.9),
      shear(60),
      mixup(2),
      cutout(16_384),
    ]) {
      expect(step).toBeTypeOf('object');
    }
  });

  test('leaves no tensor behind', () => {
    const given = images(4, 8, 8, 3);
    const batch = augment('photos');
    changed(batch, given);
    const before = tf.memory().numTensors;
    changed(batch, given, { seed: 2, targets: tf.zeros([4]) }).inputs;
    expect(tf.memory().numTensors).toBe(before + 1);
  });
});

test('the example of docs/images.md trains', async () => {
  const page = await readFile(new URL('../../docs/images.md', import.meta.url), 'utf8');
  const [, file, source] = /```ts\n\/\/ (\S+\.ts)\n([\s\S]*?)```/.exec(page)!;
  const folder = await mkdtemp(join(tmpdir(), 'downpour-images-'));
  try {
    await writeFile(join(folder, file!), source!);
    const experiment = await loadExperiment(join(folder, file!));
    const all = (await experiment.data({
      folder,
      seed: 1,
      hyperparameters: {},
      log: () => {},
    })) as ExperimentData;
    const options = { seed: 1, validationFraction: 0.2, standardise: 'none' } as const;
    const prepared = prepareData(all, options);
    const model = await buildModel(experiment, { seed: 1, hyperparameters: {} }, prepared);
    model.load((await model.initialise(1)).slice());
    const rows = Array.from({ length: 32 }, (_, i) => i);
    const minibatch = gather(prepared, 'train', rows);
    const seen = await model.seen(minibatch, 3);
    expect(seen.inputs).not.toEqual(minibatch.inputs);
    expect((await model.step(minibatch, 3)).gradient.some((value) => value !== 0)).toBe(true);
    model.dispose();
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

let reference: Images[] | undefined;
test.each(ENGINES)('a lease gives the same minibatch on %s', async (engine) => {
  await openEngine({ engine });
  try {
    const given = images(5, 9, 8, 3);
    const seen = [
      ...STEPS.map(([, , step]) => changed(augment([step]), given).inputs),
      ...(['digits', 'photos', 'text'] as const).map(
        (name) => changed(augment(name), given).inputs,
      ),
      changed(augment([mixup(1)]), given).inputs,
      // More pixels than are sampled at once.
      changed(augment([resize(300), rotate(30)]), images(2, 9, 8, 1)).inputs,
    ];
    reference ??= seen;
    seen.forEach(({ shape, values }, i) => {
      expect(shape).toEqual(reference![i]!.shape);
      let furthest = 0;
      for (let at = 0; at < values.length; at++) {
        furthest = Math.max(furthest, Math.abs(values[at]! - reference![i]!.values[at]!));
      }
      expect(furthest).toBeLessThanOrEqual(1e-5);
    });
  } finally {
    await openEngine({ engine: 'cpu' });
  }
});

afterAll(() => tf.disposeVariables());
