import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { evaluate } from '../../worker/evaluate.ts';
import {
  type Experiment,
  mustBeExperiment,
  type Objective,
  type Tensor,
} from '../../worker/experiment.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { useModels } from '../support/models.ts';

const COUNT = 60;
/** Points near a line in three dimensions; nothing is to be predicted. */
const points = () => ({
  train: {
    inputs: {
      values: Float32Array.from({ length: 3 * COUNT }, (_, i) => {
        const at = (Math.floor(i / 3) / COUNT - 0.5) * 2;
        return at * [1, -0.5, 2][i % 3]! + 0.01 * Math.sin(i);
      }),
      shape: [COUNT, 3],
    },
  },
});

const autoencoder: Experiment = {
  data: points,
  model: ({ tf, inputShape }) => ({
    encoder: tf.sequential({ layers: [tf.layers.dense({ units: 2, inputShape })] }),
    decoder: tf.sequential({ layers: [tf.layers.dense({ units: 3, inputShape: [1] })] }),
  }),
  objective: ({ model, batch, random, training, tf }) => {
    const [mean, spread] = tf.split(model.encoder!.apply(batch.inputs), 2, 1);
    const noise = training ? random.normal(mean!.shape, 0, 0.1) : tf.zerosLike(mean!);
    const code = tf.add(mean!, tf.mul(noise, tf.exp(spread!)));
    const distance = tf.sub(model.decoder!.apply(code), batch.inputs).square().sum(1);
    return {
      loss: { distance, size: tf.mul(0.01, spread!.square().sum(1)) },
      metrics: { furthest: distance.max(), fixed: 3 },
    };
  },
};

const config = resolveConfig({ seed: 4, minibatchSize: 8 });
const models = useModels();
async function build(changes: Partial<Experiment> = {}) {
  const experiment = { ...autoencoder, ...changes };
  const given = dataOf(await experiment.data({} as never));
  const prepared = prepareData(given, prepareOptions(experiment, config));
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  return { model, prepared, minibatch: gather(prepared, 'train', [0, 5, 9, 14, 22, 30, 31, 40]) };
}
const problemOf = (changes: Partial<Experiment>) =>
  build(changes).then(
    () => 'nothing was refused',
    (error) => `${error.code}: ${error.message}`,
  );

describe('an objective', () => {
  test('trains several models without targets; losses are metrics, weighed by examples', async () => {
    const { model, prepared, minibatch } = await build();
    expect(model.layout.tensors.map(({ name }) => name)).toEqual(
      [
        ...['decoder/dense_1/bias', 'decoder/dense_1/kernel'].toSorted(),
        ...['encoder/dense_1/bias', 'encoder/dense_1/kernel'].toSorted(),
      ].toSorted((a, b) => order(model, a) - order(model, b)),
    );
    const parameters = (await model.initialise(4)).slice();
    const before = await evaluate(model, parameters, prepared, 'validation');
    for (let step = 0; step < 300; step++) {
      model.load(parameters.slice());
      const { gradient } = await model.step(minibatch, step);
      for (let i = 0; i < gradient.length; i++) parameters[i]! -= 0.05 * gradient[i]!;
    }
    const after = await evaluate(model, parameters, prepared, 'validation');
    expect(after.loss).toBeLessThan(0.2 * before.loss!);
    expect(after.metrics.fixed).toBeCloseTo(3);
    expect(after.loss).toBeCloseTo(after.metrics.distance! + after.metrics.size!, 5);
    expect(Object.keys(after.metrics)).toEqual(['distance', 'size', 'furthest', 'fixed']);
    expect(model.errorMeasure).toBe('loss');
    // An evaluation draws nothing: it is the same again.
    expect(await evaluate(model, parameters, prepared, 'validation')).toEqual(after);
  });

  test('is the same as the loss that it computes, to the bit', async () => {
    const withTargets = () => {
      const { inputs } = points().train;
      return { train: { inputs, targets: inputs } };
    };
    const common: Partial<Experiment> = {
      data: withTargets,
      model: ({ tf, inputShape }) =>
        tf.sequential({
          layers: [
            tf.layers.dense({
              units: 4,
              inputShape,
              activation: 'tanh',
              kernelRegularizer: 'l1l2',
            }),
            tf.layers.dropout({ rate: 0.3 }),
            tf.layers.batchNormalization(),
            tf.layers.dense({ units: 3 }),
          ],
        }),
    };
    const own = await build({
      ...common,
      objective: ({ model, batch, tf }) =>
        tf.sub(model.apply(batch.inputs), batch.targets).square().mean(),
    });
    const { objective: _, ...plain } = autoencoder;
    const experiment: Experiment = { ...plain, ...common, loss: 'meanSquaredError' };
    const prepared = prepareData(dataOf(withTargets()), prepareOptions(experiment, config));
    const model = await buildModel(experiment, config, prepared);
    models.push(model);
    for (const each of [own.model, model]) await each.initialise(4);
    for (const seed of [1, 2]) {
      const [a, b] = [
        await own.model.step(own.minibatch, seed),
        await model.step(own.minibatch, seed),
      ];
      expect(a.loss).toBe(b.loss);
      expect([...a.gradient]).toEqual([...b.gradient]);
    }
    const [a, b] = [await own.model.measure(own.minibatch), await model.measure(own.minibatch)];
    expect(a.loss).toBe(b.loss);
    expect(own.model.predicts).toBe(true);
  });

  test('measures the statistics of a model that it applies twice as their mean, and of none as they are', async () => {
    const of = (times: number) =>
      build({
        model: ({ tf, inputShape }) =>
          tf.sequential({
            layers: [tf.layers.batchNormalization({ inputShape }), tf.layers.dense({ units: 1 })],
          }),
        objective: ({ model, batch, tf, training }) => {
          let loss = tf.scalar(0) as never as ReturnType<typeof model.apply>;
          for (let i = 0; i < times; i++)
            loss = loss.add(model.apply(batch.inputs).square().mean());
          if (training && times === 0) {
            return loss.add(tf.sum(model.variables['dense_1/kernel']!.square()));
          }
          return loss;
        },
      });
    const statisticsOf = async (times: number) => {
      const { model, minibatch } = await of(times);
      await model.initialise(1);
      const { gradient } = await model.step(minibatch, 1);
      return model.layout.tensors
        .filter(({ role }) => role === 'statistics')
        .flatMap(({ offset, size }) => [...gradient.subarray(offset, offset + size)]);
    };
    const [once, twice, never] = [
      await statisticsOf(1),
      await statisticsOf(2),
      await statisticsOf(0),
    ];
    once.forEach((value, i) => {
      expect(twice[i]).toBeCloseTo(value, 4);
    });
    expect(never).toEqual([0, 0, 0, 1, 1, 1]);
  });

  test('knows the step of the parameters, before and after an evaluation', async () => {
    const { model, minibatch, prepared } = await build({
      objective: ({ model, batch, step, tf }) =>
        tf.add(tf.mul(0, model.encoder!.apply(batch.inputs).mean()), step),
    });
    const parameters = (await model.initialise(4)).slice();
    model.load(parameters, 17);
    expect((await model.step(minibatch, 1)).loss).toBe(17);
    const other = parameters.slice();
    expect((await evaluate(model, other, prepared, 'validation', { step: 20 })).loss).toBe(20);
    expect((await model.step(minibatch, 1)).loss).toBe(17);
  });

  test('leaves no tensor behind', async () => {
    const { model, minibatch } = await build();
    const { tf } = await import('../../worker/tf.ts');
    await model.step(minibatch, 1);
    const before = tf.memory().numTensors;
    for (let seed = 0; seed < 3; seed++) {
      await model.step(minibatch, seed);
      await model.measure(minibatch);
    }
    expect(tf.memory().numTensors).toBe(before);
  });

  const one = (objective: (args: Parameters<Objective>[0]) => unknown): Partial<Experiment> => ({
    objective: objective as Objective,
  });
  test.each<[string, Partial<Experiment>, RegExp]>([
    [
      'nothing',
      one(() => undefined),
      /objective\(\) returned undefined.*a tensor, the loss, or \{ loss/,
    ],
    ['a number', one(() => 3), /returned the number 3, which has no gradient/],
    ['a promise', one(async () => 3), /returned a promise/],
    ['a matrix', one(({ batch }) => batch.inputs), /returned shape \[4,3\] for 4 examples/],
    [
      'an unknown field',
      one(({ batch }) => ({ loss: batch.inputs.mean(), kl: 1 })),
      /a field 'kl'; allowed: loss, error, metrics/,
    ],
    ['no loss by name', one(() => ({ loss: {} })), /no loss: loss has no names/],
    [
      'a metric with a name that is taken',
      one(({ batch }) => ({ loss: batch.inputs.mean(), metrics: { error: 1 } })),
      /one with the name 'error'/,
    ],
    [
      'no gradient',
      one(({ batch }) => batch.inputs.mean()),
      /has no gradient with respect to the parameters/,
    ],
    [
      'no finite number',
      one(({ model, batch }) => model.encoder!.apply(batch.inputs).mul(0).log().mean()),
      /gives the loss (-Infinity|NaN) for training examples/,
    ],
    [
      'an error',
      one(() => {
        throw new Error('out of luck');
      }),
      /objective\(\) of the experiment failed: out of luck/,
    ],
    [
      'a model that is none',
      { model: () => ({ encoder: 3 }) as never },
      /gave as 'encoder' neither a LayersModel nor/,
    ],
    [
      'a model without a shape',
      { model: ({ tf }) => ({ a: tf.sequential({ layers: [tf.layers.dense({ units: 1 })] }) }) },
      /must get an `inputShape`/,
    ],
  ])('that gives %s is refused before training', async (_, changes, message) => {
    expect(await problemOf(changes)).toMatch(message);
  });

  test('stands alone: no loss, no error, no metrics beside it', () => {
    const check = (changes: object) => () => mustBeExperiment({ ...autoencoder, ...changes }, 'x');
    expect(check({})).not.toThrow();
    expect(check({ loss: 'meanSquaredError' })).toThrow(/loss is .*allowed: nothing, because obj/);
    expect(check({ metrics: {} })).toThrow(/metrics is not allowed beside objective/);
    expect(check({ objective: 3 })).toThrow(/objective is 3; allowed: a function/);
  });

  test('over several models has no predictions', async () => {
    const { model, minibatch } = await build();
    expect(model.predicts).toBe(false);
    await expect(model.predict(minibatch)).rejects.toThrow(
      /objective over the models encoder, dec/,
    );
  });
});

const order = (model: Model, name: string) =>
  model.layout.tensors.findIndex((tensor) => tensor.name === name);

describe.skipIf(!readEngine(engineFolder('cpu')))(
  'recorded as a graph on the native engine',
  () => {
    beforeAll(() => openEngine({ engine: 'native' as EngineName }));
    afterAll(() => openEngine({ engine: 'cpu' }));

    const executionOf = async (changes: Partial<Experiment>, steps = 4) => {
      const { model, minibatch } = await build(changes);
      const single = await build(changes);
      await model.initialise(4);
      for (let seed = 0; seed < steps; seed++) await model.step(minibatch, seed);
      // What it computes is right, recorded or not.
      const prepared = { ...single.prepared };
      const reference = await buildModel({ ...autoencoder, ...changes }, config, prepared, {
        record: false,
      });
      models.push(reference);
      await reference.initialise(4);
      const [a, b] = [await model.step(minibatch, 77), await reference.step(minibatch, 77)];
      a.gradient.forEach((g, i) => {
        expect(g).toBeCloseTo(b.gradient[i]!, 4);
      });
      return model.execution;
    };

    test('if it draws from random alone and reads nothing', async () => {
      expect(await executionOf({})).toBe('graph');
    });

    test('if it returns gradients, and if it carries tensors', async () => {
      const execution = await executionOf({
        carried: ({ tf }) => ({ mean: tf.zeros([3]) }),
        objective: ({ model, batch, carried, random, training, tf }) => {
          const mean = carried.mean!.mul(0.9).add(batch.inputs.mean(0).mul(0.1));
          const code = model.encoder!.apply(batch.inputs.sub(mean));
          const loss = code.square().mean();
          if (!training) return { loss };
          const gradients = Object.fromEntries(
            ['encoder', 'decoder'].flatMap((name) =>
              Object.entries(model[name]!.variables).map(([key, value]) => [
                `${name}/${key}`,
                tf.mul(value, code.mean()).add(random.normal(value.shape)),
              ]),
            ),
          );
          return { loss, gradients, carried: { mean } };
        },
      });
      expect(execution).toBe('graph');
    });

    let calls = 0;
    let kept: Tensor | null = null;
    let own: Tensor | null = null;
    afterAll(() => {
      kept?.dispose();
      own?.dispose();
    });
    test.each<[string, Objective, RegExp]>([
      [
        'it reads `step`',
        ({ model, batch, step, tf }) =>
          tf.mul(1 + 0 * step, model.encoder!.apply(batch.inputs).square().mean()),
        /it reads `step`/,
      ],
      [
        'it draws a number for JavaScript',
        ({ model, batch, random, tf }) =>
          tf.mul(random.number(), model.encoder!.apply(batch.inputs).square().mean()),
        /random\.number\(\)/,
      ],
      [
        'it draws by TensorFlow.js',
        ({ model, batch, tf }) =>
          model
            .encoder!.apply(tf.add(batch.inputs, tf.randomNormal(batch.inputs.shape)))
            .square()
            .mean(),
        /random numbers of its own/,
      ],
      [
        'it drops out by TensorFlow.js',
        ({ model, batch, tf }) =>
          model.encoder!.apply(tf.dropout(batch.inputs, 0.5)).square().mean(),
        /random numbers of its own/,
      ],
      [
        'it draws by JavaScript',
        ({ model, batch, tf }) =>
          tf.mul(Math.random(), model.encoder!.apply(batch.inputs).square().mean()),
        /random numbers of its own/,
      ],
      [
        'it keeps a tensor from call to call',
        ({ model, batch, tf }) => {
          kept ??= tf.keep(tf.tensor1d([1, 0, 2]));
          return model.encoder!.apply(batch.inputs.mul(kept)).square().mean();
        },
        /uses a tensor that was made before the step, as an input of Mul: make it inside/,
      ],
      [
        'it keeps a variable of its own',
        ({ model, batch, tf }) => {
          own ??= tf.variable(tf.scalar(2));
          return model.encoder!.apply(batch.inputs.div(own)).square().mean();
        },
        /uses a tensor that was made before the step, as an input of RealDiv/,
      ],
      [
        'it reads a tensor',
        ({ model, batch, tf }) => {
          const by = batch.inputs.abs().max().dataSync()[0]!;
          return tf.mul(by, model.encoder!.apply(batch.inputs).square().mean());
        },
        /reads a tensor in its midst/,
      ],
    ])('refused because %s, and trained right', async (_, objective, why) => {
      expect(await executionOf({ objective })).toMatch(why);
    });

    test('refused because TensorFlow draws, which does not begin anew in each step', async () => {
      const { model, minibatch } = await build({
        objective: ({ model, batch, tf }) => {
          const drawn = tf.multinomial(batch.inputs as never, 1, 5).toFloat();
          return model.encoder!.apply(batch.inputs.mul(drawn)).square().mean();
        },
      });
      await model.initialise(4);
      for (let seed = 0; seed < 2; seed++) await model.step(minibatch, seed);
      expect(model.execution).toMatch(/: Multinomial draws random numbers by TensorFlow$/);
    });

    test('refused because a shape depends on the numbers, before it shows', async () => {
      // As many numbers as differ from each other: 24 in the first steps, and fewer later.
      const objective: Objective = ({ model, batch, tf }) => {
        const { values } = tf.unique(tf.reshape(batch.inputs, [-1]));
        const mean = tf.reshape(values, [values.size]).abs().sum().div(values.size);
        return model.encoder!.apply(batch.inputs).square().mean().mul(mean);
      };
      const { model, prepared } = await build({ objective });
      const reference = await buildModel({ ...autoencoder, objective }, config, prepared, {
        record: false,
      });
      models.push(reference);
      for (const each of [model, reference]) await each.initialise(4);
      const rowsOf = (step: number) => [0, 1, 2, 3, 4, 5, 6, 7].map((row) => (row + step) % 40);
      for (let step = 0; step < 5; step++) {
        const minibatch = gather(prepared, 'train', rowsOf(step));
        const [a, b] = [await model.step(minibatch, step), await reference.step(minibatch, step)];
        expect(a.loss).toBeCloseTo(b.loss, 4);
      }
      // Eight times the same row: 3 numbers.
      const minibatch = gather(prepared, 'train', [7, 7, 7, 7, 7, 7, 7, 7]);
      const [a, b] = [await model.step(minibatch, 9), await reference.step(minibatch, 9)];
      expect(a.loss).toBeCloseTo(b.loss, 4);
      expect(model.execution).toMatch(/^operations: the shape of what Unique\w* gives depends on/);
    });

    test('of layers and functions of the user as of library layers', async () => {
      const layered = await executionOf({
        model: ({ tf, inputShape }) => {
          class Halve extends tf.layers.Layer {
            static readonly className = 'Halve';
            override call(inputs: Tensor | Tensor[]): Tensor {
              return tf.mul([inputs].flat()[0]!, 0.5);
            }
            override computeOutputShape(shape: number[]): number[] {
              return shape;
            }
          }
          const layers = [tf.layers.dense({ units: 2, inputShape }), new Halve({}) as never];
          return { encoder: tf.sequential({ layers }) };
        },
        objective: ({ model, batch }) => model.encoder!.apply(batch.inputs).square().mean(),
      });
      expect(layered).toBe('graph');
      const functional = await executionOf({
        model: ({ tf, seed }) => {
          const w = tf.variable(tf.randomNormal([3, 2], 0, 1, 'float32', seed + 1));
          return { variables: { w }, predict: (x: Tensor) => x.matMul(w) };
        },
        objective: ({ model, batch, random }) =>
          model
            .apply(batch.inputs.add(random.normal(batch.inputs.shape)))
            .square()
            .mean(),
      });
      expect(functional).toBe('graph');
    });

    test('looks at small parts as closely as at large ones', async () => {
      const of = async (share: number) => {
        calls = 0;
        const { model, minibatch } = await build({
          objective: ({ model, batch, tf }) => {
            const large = model.encoder!.apply(batch.inputs).square().mean();
            const small = model
              .decoder!.apply(tf.ones([1, 1]))
              .square()
              .mean();
            return tf.add(large, tf.mul(small, share * ++calls));
          },
        });
        await model.initialise(4);
        for (let seed = 0; seed < 4; seed++) await model.step(minibatch, seed);
        return model.execution;
      };
      // A thousandth of the gradient, and other numbers in each step; one that rounding would hide is none.
      expect(await of(1e-3)).toMatch(/as a graph it gives something else/);
      expect(await of(1e-12)).toBe('graph');
    });

    test('refused because it counts its calls, also if it begins to do so later', async () => {
      const counting = (from: number): Objective => {
        calls = 0;
        return ({ model, batch, tf }) => {
          calls++;
          const by = calls > from ? calls : 1;
          return tf.mul(by, model.encoder!.apply(batch.inputs).square().mean());
        };
      };
      const run = async (from: number, steps: number) => {
        const { model, minibatch } = await build({ objective: counting(from) });
        await model.initialise(4);
        for (let seed = 0; seed < steps; seed++) await model.step(minibatch, seed);
        return model.execution;
      };
      expect(await run(0, 4)).toMatch(/as a graph it gives something else/);
      // Three calls at the beginning of training, after two of the trial; the next one is at step 500.
      expect(await run(5, 499)).toBe('graph');
      expect(await run(5, 501)).toMatch(/as a graph it gives something else/);
    });
  },
);
