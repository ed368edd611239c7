import { describe, expect, test } from 'vitest';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { useModels } from '../support/models.ts';

/** What a worker computes for groups of parameters: nothing for frozen ones, and each loss for its own group. */

const native = readEngine(engineFolder()) !== null;
const models = useModels(native ? 'native' : 'cpu');

const COUNT = 40;
const inputs = {
  values: Float32Array.from({ length: 3 * COUNT }, (_, i) => Math.sin(i) + (i % 3)),
  shape: [COUNT, 3],
};

async function build(experiment: Experiment, groups: NonNullable<PartialConfig['groups']>) {
  const config = resolveConfig({ seed: 4, minibatchSize: 8, groups });
  const given = dataOf(await experiment.data({} as never));
  const prepared = prepareData(given, prepareOptions(experiment, config));
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  const minibatch = (first: number) =>
    gather(
      prepared,
      'train',
      [0, 1, 2, 3, 4].map((i) => first + 3 * i),
    );
  return { model, minibatch };
}
const gradientsOf = ({ layout }: Model, gradient: Float32Array) =>
  Object.fromEntries(
    layout.tensors
      .filter(({ role }) => role === 'trainable')
      .map(({ name, offset, size }) => [name, [...gradient.subarray(offset, offset + size)]]),
  );

/** A generator of points and a discriminator of points. */
const gan = (losses: 'both' | 'generator' | 'discriminator' | 'both and more'): Experiment => ({
  data: () => ({ train: { inputs } }),
  model: ({ tf }) => ({
    generator: tf.sequential({ layers: [tf.layers.dense({ units: 3, inputShape: [2] })] }),
    discriminator: tf.sequential({
      layers: [
        tf.layers.dense({ units: 4, inputShape: [3], activation: 'tanh' }),
        tf.layers.dense({ units: 1, kernelRegularizer: 'l1l2' }),
      ],
    }),
    other: tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape: [3] })] }),
  }),
  objective: ({ model, batch, random, tf }) => {
    const made = model.generator!.apply(random.normal([batch.inputs.shape[0]!, 2]));
    const real = model.discriminator!.apply(batch.inputs);
    const fake = model.discriminator!.apply(made);
    const all = {
      generator: tf.softplus(fake.neg()).mean(),
      discriminator: tf.add(tf.softplus(real.neg()), tf.softplus(fake)).mean(),
      more: model.other!.apply(made).square().mean(),
    };
    const { more, ...named } = all;
    if (losses === 'both') return { loss: named };
    if (losses === 'both and more') return { loss: all };
    return all[losses];
  },
});
const two = { generator: {}, discriminator: {} };

describe('a loss with the name of a group', () => {
  test('reaches the parameters of this group alone, as if it were computed by itself', async () => {
    const { model, minibatch } = await build(gan('both'), { ...two, other: { frozen: true } });
    const alone = await Promise.all(
      (['generator', 'discriminator'] as const).map((loss) => build(gan(loss), {})),
    );
    const whole = await model.initialise(4);
    for (let step = 0; step < 6; step++) {
      model.load(whole);
      const { gradient, loss } = await model.step(minibatch(step), step);
      const own = gradientsOf(model, gradient);
      let sum = 0;
      for (const [i, group] of ['generator', 'discriminator'].entries()) {
        const { model: one } = alone[i]!;
        await one.initialise(4);
        const given = await one.step(minibatch(step), step);
        sum += given.loss;
        const expected = gradientsOf(one, given.gradient);
        const names = Object.keys(own).filter((name) => name.startsWith(`${group}/`));
        expect(names.length).toBeGreaterThan(0);
        for (const name of names) {
          for (const [k, value] of own[name]!.entries())
            expect(value).toBeCloseTo(expected[name]![k]!, 5);
        }
      }
      expect(Object.keys(own).some((name) => name.startsWith('other/'))).toBe(false);
      expect(loss).toBeCloseTo(sum, 5);
    }
    if (native) expect(model.execution).toBe('graph');
  });

  test('leaves the other losses to all that they depend on', async () => {
    const { model, minibatch } = await build(gan('both and more'), two);
    const before = await build(gan('both'), { ...two, other: { frozen: true } });
    await model.initialise(4);
    await before.model.initialise(4);
    const { gradient } = await model.step(minibatch(0), 1);
    const without = await before.model.step(minibatch(0), 1);
    const [own, two_] = [gradientsOf(model, gradient), gradientsOf(before.model, without.gradient)];
    expect(own['other/dense_1/kernel']!.some((value) => value !== 0)).toBe(true);
    expect(own['generator/dense_1/kernel']).not.toEqual(two_['generator/dense_1/kernel']);
    for (const [k, value] of own['discriminator/dense_2/kernel']!.entries()) {
      expect(value).toBeCloseTo(two_['discriminator/dense_2/kernel']![k]!, 5);
    }
  });

  test('is refused if its group does not matter to it', async () => {
    const { model, minibatch } = await build(gan('both'), {
      ...{ generator: { pattern: 'other/*' }, discriminator: {} },
    });
    await model.initialise(4);
    await expect(model.step(minibatch(0), 1)).rejects.toThrow(
      "the loss 'generator' has the name of a group and does not depend on its parameters",
    );
  });
});

describe('a frozen group', () => {
  const normalised: Experiment = {
    data: () => ({
      train: {
        inputs,
        targets: {
          values: Float32Array.from({ length: COUNT }, (_, i) => i / COUNT),
          shape: [COUNT],
        },
      },
    }),
    model: ({ tf, inputShape }) =>
      tf.sequential({
        layers: [
          tf.layers.dense({ units: 4, inputShape, name: 'trunk_dense' }),
          tf.layers.batchNormalization({ name: 'trunk_norm' }),
          tf.layers.dense({ units: 1, name: 'head' }),
        ],
      }),
    loss: 'meanSquaredError',
  };
  const trunk = { trunk: { pattern: 'trunk*', frozen: { untilStep: 5 } } };

  test('has no gradient, and its normalisation uses its averages and leaves them alone', async () => {
    const { model, minibatch } = await build(normalised, trunk);
    const roles = () => model.layout.tensors.map(({ name, role }) => `${name} ${role}`);
    const frozenRoles = [
      ...['head/kernel trainable', 'head/bias trainable', 'trunk_dense/kernel frozen'],
      ...['trunk_dense/bias frozen', 'trunk_norm/gamma frozen', 'trunk_norm/beta frozen'],
      ...['trunk_norm/moving_mean frozen', 'trunk_norm/moving_variance frozen'],
    ];
    expect(roles()).toEqual(frozenRoles);
    expect(model.layout.exchangedSize).toBe(5);
    const whole = await model.initialise(4);
    model.load(whole);
    // In training as in evaluation: the loss is the same, for the averages are.
    for (let step = 0; step < 4; step++) {
      const { loss, gradient } = await model.step(minibatch(step), step);
      expect(gradient.length).toBe(5);
      expect(loss).toBeCloseTo((await model.measure(minibatch(step))).loss, 5);
    }
    expect(model.freeze(['trunk'])).toBe(false);
    expect(model.freeze([])).toBe(true);
    expect(roles().filter((role) => role.endsWith('statistics')).length).toBe(2);
    const { size, exchangedSize } = model.layout;
    expect(exchangedSize).toBe(size);
    model.load(await model.initialise(4));
    for (let step = 0; step < 4; step++) {
      const { loss, gradient } = await model.step(minibatch(step), step);
      expect(gradient.length).toBe(size);
      const statistics = gradient.subarray(model.layout.trainableSize);
      expect([...statistics].every((value) => value !== 0)).toBe(true);
      expect(loss).not.toBeCloseTo((await model.measure(minibatch(step))).loss, 3);
    }
    // And back, as where a phase begins anew.
    expect(model.freeze(['trunk'])).toBe(true);
    expect(roles()).toEqual(frozenRoles);
  });
});
