import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { evaluate } from '../../worker/evaluate.ts';
import { type Batch, type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { createOrders, minibatchSeed } from '../../worker/minibatches.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { seenMinibatch } from '../../worker/seen-minibatch.ts';
import { useModels } from '../support/models.ts';

const ENGINES = [
  'cpu',
  'wasm',
  ...(readEngine(engineFolder('cpu')) ? ['native'] : []),
] as EngineName[];

const COUNT = 24;
/** Example i has inputs [i, i + 0.5] and target i mod 3. */
const data: ExperimentData = {
  train: {
    count: COUNT,
    inputs: {
      values: Float32Array.from({ length: 2 * COUNT }, (_, i) => i / 2),
      shape: [COUNT, 2],
    },
    targets: { values: Int32Array.from({ length: COUNT }, (_, i) => i % 3), shape: [COUNT] },
  },
  classCount: 3,
  source: 'numbers',
};
const prepared = prepareData(data, { seed: 1, validationFraction: 0.25, standardise: 'none' });

const models = useModels();

/** A linear model of the inputs; its loss is the mean of its one output, so the gradient is the mean of the inputs. */
async function build(batch: Batch | undefined, rest: Partial<Experiment> = {}): Promise<Model> {
  const experiment: Experiment = {
    data: () => data,
    model: ({ tf, inputShape }) =>
      tf.sequential({
        layers: [tf.layers.dense({ units: 1, useBias: false, inputShape })],
      }),
    loss: (_, predictions) => predictions.mean(),
    ...(batch ? { batch } : {}),
    ...rest,
  };
  const model = await buildModel(experiment, { seed: 3, hyperparameters: { by: 2 } }, prepared);
  models.push(model);
  await model.initialise(3);
  return model;
}

const rows = [0, 1, 2, 3];
const minibatch = () => gather(prepared, 'train', rows);
const gradientOf = async (model: Model, seed = 7) => [
  ...(await model.step(minibatch(), seed)).gradient,
];
const problemOf = async (batch: unknown, rest: Partial<Experiment> = {}) =>
  build(batch as Batch, rest).then(
    () => 'nothing was refused',
    (error) => `${error.code}: ${error.message}`,
  );

test('an experiment whose batch changes evaluations has no file for tf.loadLayersModel', async () => {
  const { writeLayersModel } = await import('../../worker/layers-format.ts');
  const change = () => ({});
  const experiment = { batch: { change, evaluation: true } } as unknown as Experiment;
  await expect(writeLayersModel({ experiment, to: '' } as never)).rejects.toThrow(
    /evaluation: true.*a layer of the model, or export with --format safetensors/,
  );
});

describe('batch', () => {
  test('changes what the model trains on, and knows the hyperparameters', async () => {
    const plain = await gradientOf(await build(undefined));
    const twice = await build(({ inputs, targets }, { hyperparameters, tf }) => ({
      inputs: tf.mul(inputs, hyperparameters.by as number),
      targets: targets,
    }));
    expect(await gradientOf(twice)).toEqual(plain.map((g) => 2 * g));
  });

  test('leaves a step as it is, to the bit, where it returns the fields unchanged', async () => {
    expect(await gradientOf(await build((fields) => fields))).toEqual(
      await gradientOf(await build(undefined)),
    );
  });

  test('draws the same numbers for the same lease, others for another, whatever was drawn before', async () => {
    const model = await build(({ inputs, ...rest }, { random }) => ({
      ...rest,
      inputs: inputs.add(random.normal(inputs.shape)),
    }));
    const seeds = [0, 1, 2].map((start) => minibatchSeed(5, { epoch: 4, start }));
    const once = [];
    for (const seed of seeds) once.push(await gradientOf(model, seed));
    const again = [];
    for (const seed of seeds.toReversed()) again.unshift(await gradientOf(model, seed));
    expect(again).toEqual(once);
    expect(new Set(once.map(String)).size).toBe(seeds.length);
  });

  test("draws the same with TensorFlow.js's own random numbers", async () => {
    const model = await build(({ inputs, targets }, { tf }) => ({
      inputs: inputs.add(tf.randomNormal(inputs.shape)),
      targets: targets,
    }));
    const [a, b, other] = [
      await gradientOf(model, 1),
      await gradientOf(model, 1),
      await gradientOf(model, 2),
    ];
    expect(a).toEqual(b);
    expect(a).not.toEqual(other);
  });

  test('does not move the numbers that layers draw', async () => {
    const withDropout: Partial<Experiment> = {
      model: ({ tf, inputShape }) =>
        tf.sequential({
          layers: [
            tf.layers.dropout({ rate: 0.5, inputShape }),
            tf.layers.dense({ units: 1, useBias: false }),
          ],
        }),
    };
    const drawing = await build((fields, { random }) => {
      random.normal([100]);
      return fields;
    }, withDropout);
    expect(await gradientOf(drawing)).toEqual(
      await gradientOf(await build(undefined, withDropout)),
    );
  });

  test('is not applied in evaluations, unless it is asked for; then with the same numbers each time', async () => {
    const seen: boolean[] = [];
    const change: Batch = ({ inputs, targets }, { random, training }) => {
      seen.push(training);
      return { inputs: inputs.add(random.uniform([1])), targets: targets };
    };
    const measured = async (batch: Batch | undefined) => {
      const model = await build(batch);
      seen.length = 0;
      const parameters = (await model.initialise(3)).slice();
      const all = await evaluate(model, parameters, prepared, 'validation');
      return [all, await evaluate(model, parameters, prepared, 'validation')];
    };
    const plain = await measured(undefined);
    expect(await measured(change)).toEqual(plain);
    expect(seen).toEqual([]);
    const [first, second] = await measured({ change, evaluation: true });
    expect(seen).toEqual([false, false]);
    expect(second).toEqual(first);
    expect(first!.loss).not.toBe(plain[0]!.loss);
  });

  test('may give another shape where evaluations are changed too: the model is built for it', async () => {
    const crop: Batch = {
      change: ({ inputs, targets }) => ({
        inputs: inputs.slice([0, 0], [-1, 1]),
        targets: targets,
      }),
      evaluation: true,
    };
    const model = await build(crop);
    expect(model.layout.tensors[0]!.shape).toEqual([1, 1]);
    expect((await model.predict(minibatch())).shape).toEqual([4, 1]);
    expect(await gradientOf(model)).toHaveLength(1);
  });

  test('shows the minibatch of which the first step is computed, with the same numbers', async () => {
    const seen: number[][] = [];
    const model = await build(({ inputs, targets }, { random, tf }) => {
      const changed = inputs.add(random.normal(inputs.shape)).mul(random.number());
      seen.push([...changed.dataSync()]);
      return { inputs: changed, targets: tf.reverse(targets) };
    });
    const config = { seed: 5, minibatchSize: 6 };
    seen.length = 0;
    const shown = await seenMinibatch(model, prepared, config, 4);
    const lease = { id: 9, part: 'train', epoch: 0, start: 0, count: 6 } as const;
    const rows = createOrders(5, prepared)(lease);
    await model.step(gather(prepared, 'train', rows), minibatchSeed(5, lease));
    expect(seen[1]).toEqual(seen[0]);
    expect(shown.map(({ row }) => row)).toEqual([...rows.subarray(0, 4)]);
    const of = (row: number) => prepared.train.targets.values[row]!;
    expect(shown.map(({ target }) => target)).toEqual(
      [...rows]
        .toReversed()
        .slice(0, 4)
        .map((row) => [of(row)]),
    );
    expect(shown[0]!.shown).toEqual({
      kind: 'text',
      text: seen[0]!
        .slice(0, 2)
        .map((value) => Number(value.toPrecision(3)))
        .join(' '),
    });
    const doubled = await build(({ inputs, targets }, { tf }) => ({
      inputs: tf.concat([inputs, inputs]),
      targets: tf.concat([targets, targets]),
    }));
    const more = await seenMinibatch(doubled, prepared, config, 20);
    expect(more.map(({ row }) => row)).toEqual(new Array(12).fill(null));
  });

  test('may give more examples than it got', async () => {
    const model = await build(({ inputs, targets }, { tf }) => ({
      inputs: tf.concat([inputs, inputs]),
      targets: tf.concat([targets, targets]),
    }));
    expect(await gradientOf(model)).toEqual(await gradientOf(await build(undefined)));
  });

  test('leaves no tensor behind', async () => {
    const model = await build(({ inputs, targets }, { random }) => ({
      inputs: inputs.add(random.normal(inputs.shape)),
      targets: targets,
    }));
    const { tf } = await import('../../worker/tf.ts');
    await gradientOf(model);
    const before = tf.memory().numTensors;
    for (let seed = 0; seed < 5; seed++) await gradientOf(model, seed);
    expect(tf.memory().numTensors).toBe(before);
  });

  test('keeps whole numbers whole', async () => {
    const seen: string[] = [];
    const model = await build(
      ({ inputs, targets }, { random }) => ({
        inputs: inputs,
        targets: random.integers(targets.shape, 3),
      }),
      {
        loss: (targets, predictions) => {
          seen.push(targets.dtype);
          return predictions.mean();
        },
      },
    );
    seen.length = 0;
    await gradientOf(model);
    expect(seen).toEqual(['int32']);
  });

  test.each<[string, unknown, RegExp]>([
    ['nothing', () => undefined, /INVALID: batch\(\) returned undefined; .*'inputs' and 'targets'/],
    ['a promise', async () => ({}), /returned a promise; it must not be async/],
    ['a tensor', (f: { inputs: unknown }) => f.inputs, /returned a tensor; it must return the fi/],
    ['a field too few', (f: { inputs: unknown }) => ({ inputs: f.inputs }), /no field 'targets'/],
    ['a field too many', (f: object) => ({ ...f, input: 1 }), /'input'.*did you mean 'inputs'/],
    ['numbers', (f: object) => ({ ...f, inputs: [1, 2] }), /\[1,2\] as field 'inputs'.*tensor/],
    [
      'another shape',
      (f: { inputs: { flatten(): unknown } }) => ({ ...f, inputs: f.inputs.flatten() }),
      /'inputs' of shape \[n\], but the model is built for \[n,2\].*evaluation: true/,
    ],
    [
      'unequal counts',
      (f: { inputs: { slice(at: number, n: number): unknown } }) => ({
        ...f,
        inputs: f.inputs.slice(0, 1),
      }),
      /1 examples in field 'inputs' and 4 in field 'targets'/,
    ],
    [
      'classes that are no whole numbers',
      (f: { targets: { mul(by: number): unknown } }) => ({ ...f, targets: f.targets.mul(0.5) }),
      /'targets' as float32, but the data have whole numbers/,
    ],
    [
      'infinite numbers',
      (f: { inputs: { div(by: number): unknown } }) => ({ ...f, inputs: f.inputs.div(0) }),
      /DP_DATA_CORRUPT: batch\(\) gave (NaN|Infinity) in field 'inputs', example 0/,
    ],
    [
      'an error',
      () => {
        throw new Error('out of luck');
      },
      /batch\(\) of the experiment failed: out of luck/,
    ],
    [
      'a shape of its own in what it draws',
      (f: object, { random }: { random: { normal(shape: unknown): unknown } }) => {
        random.normal(3);
        return f;
      },
      /random\.normal was given 3 as the shape; allowed: an array/,
    ],
  ])('that gives %s is refused before training', async (_, batch, message) => {
    expect(await problemOf(batch)).toMatch(message);
  });

  test('is a function, or one with evaluation: true', () => {
    const check = (batch: unknown) => () =>
      mustBeExperiment({ data: () => 0, model: () => 0, loss: 'meanSquaredError', batch }, 'x.ts');
    expect(check(() => 0)).not.toThrow();
    expect(check({ change: () => 0, evaluation: true })).not.toThrow();
    for (const wrong of [1, {}, { change: 1, evaluation: true }, { change: () => 0 }]) {
      expect(check(wrong)).toThrow(/batch is .*; allowed: a function \(fields/);
    }
  });
});

test('what is drawn has the shape, the type and the range that was asked for', async () => {
  const { drawsOf } = await import('../../worker/draws.ts');
  const { withSeed } = await import('../../worker/noise.ts');
  fc.assert(
    fc.property(fc.nat(), fc.nat(40), fc.integer({ min: 1, max: 2 ** 31 }), (seed, n, bound) => {
      const random = drawsOf();
      const drawn = withSeed(seed, () => [
        random.uniform([n, 2], -1, 1),
        random.normal([n]),
        random.integers([n], bound),
        random.permutation(n),
      ]);
      const [uniform, normal, integers, permutation] = drawn.map((t) => [...t.dataSync()]);
      expect(drawn.map((t) => t.dtype)).toEqual(['float32', 'float32', 'int32', 'int32']);
      expect(uniform).toHaveLength(2 * n);
      expect(uniform!.every((x) => x >= -1 && x < 1)).toBe(true);
      expect(normal!.every(Number.isFinite)).toBe(true);
      expect(integers!.every((x) => x >= 0 && x < bound)).toBe(true);
      expect(permutation!.toSorted((a, b) => a - b)).toEqual(normal!.map((_, i) => i));
      for (const tensor of drawn) tensor.dispose();
    }),
    { numRuns: 30 },
  );
});

let reference: number[][] | undefined;
test.each(ENGINES)('a lease has the same numbers on %s', async (engine) => {
  await openEngine({ engine });
  try {
    const seen: number[][] = [];
    const model = await build((fields, { random, tf }) => {
      const drawn = [
        random.normal([3, 2], 5, 0.5),
        random.uniform([4], -2, 2),
        random.integers([3], 1000),
        random.permutation(6),
        tf.randomNormal([2]),
      ];
      seen.push([...drawn.flatMap((tensor) => [...tensor.dataSync()]), random.number()]);
      return fields;
    });
    const seeds = [3, 4, 3].map((start) => minibatchSeed(5, { epoch: 1, start }));
    seen.length = 0;
    for (const seed of seeds) await gradientOf(model, seed);
    expect(seen[2]).toEqual(seen[0]);
    expect(seen[1]).not.toEqual(seen[0]);
    reference ??= seen;
    expect(seen).toEqual(reference);
  } finally {
    await openEngine({ engine: 'cpu' });
  }
});
