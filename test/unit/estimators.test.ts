import { describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { evaluate } from '../../worker/evaluate.ts';
import type { Experiment, ObjectiveArguments, Tensor, Tf } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { useModels } from '../support/models.ts';

/**
 * Estimators that are no gradient of a loss, on a restricted Boltzmann machine so small that all of its states can
 * be counted (Deep Learning §18.2, §20.2).
 */

const [VISIBLE, HIDDEN] = [4, 3];
const COUNT = 1200;
/** All states of some units, shape [2^units, units]. */
const states = (tf: Tf, units: number): Tensor =>
  tf.tensor2d(
    Array.from({ length: 2 ** units }, (_, i) =>
      Array.from({ length: units }, (_, j) => (i >> j) & 1),
    ),
  );

/** Bits of which the first two agree as a rule. */
const bits = () => ({
  train: {
    inputs: {
      values: Float32Array.from({ length: VISIBLE * COUNT }, (_, i) => {
        const [row, j] = [Math.floor(i / VISIBLE), i % VISIBLE];
        const noise = (Math.imul(row + 1, 2654435761) >>> 16) % 10;
        return j === 1 && noise > 0 ? row % 2 : j === 0 ? row % 2 : (noise >> j) & 1;
      }),
      shape: [COUNT, VISIBLE],
    },
  },
});

const model: Experiment['model'] = ({ tf, seed }) => {
  const variables = {
    weights: tf.variable(tf.randomNormal([VISIBLE, HIDDEN], 0, 2, 'float32', seed + 1)),
    visible: tf.variable(tf.randomNormal([VISIBLE], 0, 0.3, 'float32', seed + 2)),
    hidden: tf.variable(tf.randomNormal([HIDDEN], 0, 0.3, 'float32', seed + 3)),
  };
  return { variables, predict: (x: Tensor) => x };
};

interface Units {
  readonly weights: Tensor;
  readonly visible: Tensor;
  readonly hidden: Tensor;
}
const unitsOf = ({ model }: ObjectiveArguments) => model.variables as unknown as Units;

/** F(v) = −v·b − Σ log(1 + e^(c + v·W)), shape [n]. */
const freeEnergy = (v: Tensor, { weights, visible, hidden }: Units): Tensor =>
  v.mul(visible).sum(1).add(v.matMul(weights).add(hidden).softplus().sum(1)).neg();

/** −log p(v), the mean over the minibatch, by counting all states. */
const exactLoss = (args: ObjectiveArguments): Tensor => {
  const units = unitsOf(args);
  const all = freeEnergy(states(args.tf, VISIBLE), units).neg().logSumExp();
  return freeEnergy(args.batch.inputs, units).mean().add(all);
};

/** ⟨∂F⟩ over `data` less ⟨∂F⟩ over `model`, whose rows count as much as `weights` says. */
const difference = (tf: Tf, units: Units, data: Tensor, other: Tensor, weights?: Tensor) => {
  const share = weights ?? tf.fill([other.shape[0]!], 1 / other.shape[0]!);
  const [p, q] = [data, other].map((v) => v.matMul(units.weights).add(units.hidden).sigmoid());
  const n = data.shape[0]!;
  const weighted = other.mul(share.expandDims(1));
  return {
    weights: tf.sub(weighted.matMul(q!, true), data.matMul(p!, true).div(n)),
    visible: tf.sub(weighted.sum(0), data.mean(0)),
    hidden: tf.sub(q!.mul(share.expandDims(1)).sum(0), p!.mean(0)),
  };
};

const exactGradients = (args: ObjectiveArguments) => {
  const { tf, batch } = args;
  const units = unitsOf(args);
  const all = states(tf, VISIBLE);
  const shares = tf.softmax(freeEnergy(all, units).neg());
  return {
    loss: exactLoss(args),
    gradients: difference(tf, units, batch.inputs, all, shares),
  };
};

/** One step of Gibbs sampling. */
const gibbs = (
  v: Tensor,
  { weights, visible, hidden }: Units,
  { random, tf }: ObjectiveArguments,
) => {
  const sample = (p: Tensor) => tf.cast(random.uniform(p.shape).less(p), 'float32');
  const h = sample(v.matMul(weights).add(hidden).sigmoid());
  return sample(tf.matMul(h, weights, false, true).add(visible).sigmoid());
};

/** Contrastive divergence with k steps. */
const contrastive = (k: number) => (args: ObjectiveArguments) => {
  const { tf, batch, training } = args;
  const units = unitsOf(args);
  let v = batch.inputs as Tensor;
  for (let i = 0; i < (training ? k : 1); i++) v = gibbs(v, units, args);
  const error = v.sub(batch.inputs).square().sum(1).mean();
  return training ? { error, gradients: difference(tf, units, batch.inputs, v) } : { error };
};

const config = resolveConfig({ seed: 4, minibatchSize: 100 });
const models = useModels();
async function build(changes: Partial<Experiment>) {
  const experiment: Experiment = { data: bits, model, ...changes };
  const prepared = prepareData(dataOf(bits()), prepareOptions(experiment, config));
  const built = await buildModel(experiment, config, prepared);
  models.push(built);
  const rows = Array.from({ length: prepared.train.count }, (_, i) => i);
  return { model: built, prepared, minibatch: gather(prepared, 'train', rows) };
}

/** ‖a − b‖ / ‖a‖ */
const distance = (a: Float32Array, b: Float32Array) =>
  Math.hypot(...a.map((x, i) => x - b[i]!)) / Math.hypot(...a);

describe('an objective that returns gradients', () => {
  test('trains by them as by the gradient of the loss where they are the same', async () => {
    const tape = await build({ objective: exactLoss });
    const own = await build({ objective: exactGradients });
    for (const each of [tape, own]) await each.model.initialise(4);
    const [a, b] = [
      await tape.model.step(tape.minibatch, 1),
      await own.model.step(own.minibatch, 1),
    ];
    expect(b.loss).toBe(a.loss);
    // Sums of 1,000 numbers in f32.
    expect(distance(a.gradient, b.gradient)).toBeLessThan(1e-5);
  });

  test('estimates: contrastive divergence with many steps has the exact gradient as its mean', async () => {
    const tape = await build({ objective: exactLoss });
    const { gradient: exact } = await tape.model.step(tape.minibatch, 1);
    const meanOf = async (k: number, draws: number) => {
      const { model, minibatch } = await build({ objective: contrastive(k) });
      const mean = new Float64Array(exact.length);
      for (let seed = 0; seed < draws; seed++) {
        const { gradient } = await model.step(minibatch, seed);
        for (let i = 0; i < mean.length; i++) mean[i]! += gradient[i]! / draws;
      }
      return Float32Array.from(mean);
    };
    // Each of the 19 elements is a mean of 10 × 960 bits: a standard error of 0.005 at most.
    const tolerance = 4 * 0.005 * Math.sqrt(exact.length);
    const norm = Math.hypot(...exact);
    expect(norm * distance(exact, await meanOf(40, 10))).toBeLessThan(tolerance);
    // And the comparison can fail: one step is another estimate.
    expect(norm * distance(exact, await meanOf(1, 10))).toBeGreaterThan(2 * tolerance);
  });

  test('needs no loss where it has an error, which is reported as the loss; evaluations need no gradients', async () => {
    const { model, prepared, minibatch } = await build({ objective: contrastive(1) });
    const parameters = (await model.initialise(4)).slice();
    const before = await evaluate(model, parameters, prepared, 'validation');
    expect(before.loss).toBe(before.error);
    for (let step = 0; step < 200; step++) {
      model.load(parameters.slice());
      const { gradient } = await model.step(minibatch, step);
      for (let i = 0; i < gradient.length; i++) parameters[i]! -= 0.3 * gradient[i]!;
    }
    const after = await evaluate(model, parameters, prepared, 'validation');
    expect(after.loss).toBeLessThan(0.8 * before.loss!);
  });

  test('adds the gradients of regularised layers', async () => {
    const of = (l2: number) =>
      build({
        model: ({ tf, inputShape }) =>
          tf.sequential({
            layers: [
              tf.layers.dense({
                ...{ units: 1, useBias: false, inputShape, kernelInitializer: 'ones' },
                kernelRegularizer: tf.regularizers.l2({ l2 }),
              }),
            ],
          }),
        objective: ({ model, batch, tf }) => ({
          loss: batch.inputs.mean(),
          gradients: { 'dense_1/kernel': tf.zerosLike(model.variables['dense_1/kernel']!) },
        }),
      });
    const gradientOf = async (l2: number) => {
      const { model, minibatch } = await of(l2);
      return [...(await model.step(minibatch, 1)).gradient];
    };
    expect(await gradientOf(0)).toEqual([0, 0, 0, 0]);
    for (const g of await gradientOf(0.25)) expect(g).toBeCloseTo(0.5);
  });

  const gives = (change: (gradients: Record<string, Tensor>, tf: Tf) => unknown) =>
    build({
      objective: ((args: ObjectiveArguments) => {
        const { loss, gradients } = exactGradients(args);
        return { loss, gradients: change(gradients, args.tf) };
      }) as never,
    }).then(
      () => 'nothing was refused',
      (error) => `${error.code}: ${error.message}`,
    );
  test.each<[string, Parameters<typeof gives>[0], RegExp]>([
    ['as one tensor', ({ weights }) => weights, /as gradients; it must be an object.*'weights'/],
    ['none', () => ({}), /no gradient of 'weights'; return one for each trained tensor: zeros/],
    [
      'of an unknown name',
      ({ hidden, ...others }) => ({ ...others, hiden: hidden }),
      /a gradient of 'hiden', and .* no such trained tensor; did you mean 'hidden'\?/,
    ],
    [
      'of another shape',
      (given) => ({ ...given, weights: given.weights!.transpose() }),
      /float32 of shape \[3,4\] as the gradient of 'weights'; it must be float32 of shape \[4,3\]/,
    ],
    [
      'of whole numbers',
      (given, tf) => ({ ...given, hidden: tf.zeros([3], 'int32') }),
      /int32 of shape \[3\] as the gradient of 'hidden'/,
    ],
    ['as numbers', (given) => ({ ...given, hidden: [1, 2, 3] }), /an array of 3 as the gradient/],
    [
      'that is not finite',
      (given) => ({ ...given, hidden: given.hidden!.div(0) }),
      /gradient of 'hidden' that is not finite/,
    ],
  ])('%s is refused before training', async (_, change, message) => {
    expect(await gives(change)).toMatch(/^DP_EXPERIMENT_INVALID/);
    expect(await gives(change)).toMatch(message);
  });

  test('is refused with neither loss nor error, and if it changes its mind', async () => {
    await expect(
      build({ objective: (args) => ({ gradients: exactGradients(args).gradients }) }),
    ).rejects.toThrow(/neither loss nor error/);
    let calls = 0;
    const { model, minibatch } = await build({
      objective: (args) => (calls++ < 3 ? exactGradients(args) : exactLoss(args)),
    });
    await model.step(minibatch, 1);
    await expect(model.step(minibatch, 2)).rejects.toThrow(
      /returned no gradients, and returned some when it was tried/,
    );
  });
});

/** Persistent contrastive divergence: chains that go on where they were (Tieleman 2008). */
const persistent: Partial<Experiment> = {
  carried: ({ tf }) => ({ chains: tf.zeros([600, VISIBLE]) }),
  objective: (args) => {
    const { tf, batch, carried, training } = args;
    const units = unitsOf(args);
    const chains = gibbs(carried.chains!, units, args);
    const error = freeEnergy(batch.inputs, units).mean();
    if (!training) return { error };
    const gradients = difference(tf, units, batch.inputs, chains);
    return { error, gradients, carried: { chains } };
  },
};

describe('persistent chains', () => {
  test('have the exact gradient as their mean, with one step for each minibatch', async () => {
    const tape = await build({ objective: exactLoss });
    const { gradient: exact } = await tape.model.step(tape.minibatch, 1);
    const meanOf = async (goesOn: boolean) => {
      const { model, minibatch } = await build(persistent);
      const parameters = (await model.initialise(4)).slice();
      const mean = new Float64Array(exact.length);
      const [burnIn, steps] = [40, 60];
      for (let step = 0; step < burnIn + steps; step++) {
        model.load(parameters);
        const { gradient } = await model.step(minibatch, step);
        if (goesOn) parameters.set(gradient.subarray(exact.length), exact.length);
        if (step < burnIn) continue;
        for (let i = 0; i < mean.length; i++) mean[i]! += gradient[i]! / steps;
      }
      return Float32Array.from(mean);
    };
    // 600 chains of 60 steps each; those of one chain resemble each other, so a tenth of them counts.
    const tolerance = 4 * (0.5 / Math.sqrt((600 * 60) / 10)) * Math.sqrt(exact.length);
    const norm = Math.hypot(...exact);
    expect(norm * distance(exact, await meanOf(true))).toBeLessThan(tolerance);
    // And the comparison can fail: chains that begin anew are elsewhere.
    expect(norm * distance(exact, await meanOf(false))).toBeGreaterThan(2 * tolerance);
  });
});
