import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { ablationPlan, ablationReport } from '../../study/ablate.ts';
import { meanOf } from '../../study/statistics.ts';
import { builtInVariants, ownVariants, type VariantSet } from '../../study/variants.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { tf } from '../../worker/tf.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { studyOn, workForAll } from '../support/study.ts';
import { digits, type Trainable, type Trained, trainHere } from '../support/train-here.ts';

// Deep Learning chapters 6, 7 and 11: how large a model, and what keeps it from learning by heart.

beforeAll(async () => {
  await openEngine({ engine: 'wasm' });
});

const mlp = (units: number): Trainable => ({
  loss: 'softmaxCrossEntropy',
  model: (args) =>
    tf.sequential({
      layers: [...layers.hidden(args, { units }), tf.layers.dense({ units: args.classCount })],
    }),
});
async function train(
  data: PreparedData,
  units: number,
  config: PartialConfig,
): Promise<readonly Trained[]> {
  const runs: Trained[] = [];
  for (const seed of [1, 2]) runs.push(await trainHere(data, mlp(units), { ...config, seed }));
  return runs;
}
const loss = (runs: readonly Trained[]) => meanOf(runs.map(({ validation }) => validation.loss));
const trainingLoss = (runs: readonly Trained[]) => meanOf(runs.map((run) => run.training.loss));
const norm = (runs: readonly Trained[], tensor: string) =>
  meanOf(runs.map(({ norms }) => norms[tensor]!));

describe('§7.12: dropout', () => {
  test('of a fifth of the inputs and half of the hidden units lowers the validation loss, and costs training', async () => {
    const data = await digits(2000, 0.4, 2);
    const base = {
      ...{ epochsMax: 16, learningRate: 0.05, optimizer: { kind: 'momentum' as const } },
    };
    const none = await train(data, 128, base);
    const dropped = await train(data, 128, {
      ...base,
      hyperparameters: { inputDropout: 0.2, dropout: 0.5 },
    });
    expect(loss(dropped)).toBeLessThan(loss(none) - 0.05);
    // After as many updates it has fitted far less of the training set: it wants more of them.
    expect(trainingLoss(dropped)).toBeGreaterThan(3 * trainingLoss(none));
  });
});

describe('§7.1: weight decay', () => {
  test('lowers the validation loss of a small data set; each layer may have a coefficient of its own', async () => {
    const data = await digits(500, 0.6, 2);
    const base = { epochsMax: 50, learningRate: 0.3 };
    const of = (weightDecay: PartialConfig['weightDecay']) =>
      train(data, 32, { ...base, weightDecay: weightDecay ?? {} });
    const none = await of({});
    const shared = await of({ rate: 0.003 });
    const first = await of({ rules: [{ pattern: 'dense_1/kernel', rate: 0.003 }] });
    const l1 = await of({ l1: 0.0005 });
    expect(loss(shared)).toBeLessThan(loss(none) - 0.03);
    expect(loss(first)).toBeLessThan(loss(none) - 0.01);
    expect(loss(l1)).toBeLessThan(loss(none) - 0.02);
    const [kernel1, kernel2] = ['dense_1/kernel', 'dense_2/kernel'];
    expect(norm(shared, kernel2)).toBeLessThan(0.9 * norm(none, kernel2));
    // Where it is for one layer, the other is left to grow.
    expect(norm(first, kernel1)).toBeLessThan(0.9 * norm(none, kernel1));
    expect(norm(first, kernel2)).toBeGreaterThan(norm(none, kernel2));
  });

  test('§7.2: a bound on the norm of each unit’s weights does as well', async () => {
    const data = await digits(500, 0.6, 2);
    const base = { epochsMax: 50, learningRate: 0.3 };
    const none = await train(data, 32, base);
    const bound = await train(data, 32, { ...base, maxNorm: { value: 1.5 } });
    expect(loss(bound)).toBeLessThan(loss(none) - 0.02);
    expect(norm(bound, 'dense_1/kernel')).toBeLessThan(1.5 * Math.sqrt(32) + 1e-4);
  });
});

describe('downpour ablate', () => {
  const FILE = join(FIXTURES, 'knobs.ts');
  let cluster: Cluster;
  let own: PartialConfig;
  beforeAll(async () => {
    cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
    await workForAll(cluster, 2, [FIXTURES]);
    own = (await loadExperiment(FILE)).config!;
  });
  afterAll(() => cluster.close());

  async function ablate(name: string, set: VariantSet, base: readonly unknown[], repeats: number) {
    const settings = { ...{ set, repeats, base }, metric: 'error' as const };
    const trials = await studyOn(cluster, name, FILE, ablationPlan(settings));
    const report = ablationReport(name, settings, trials);
    const of = new Map(
      (report.facts.variants as Summary[]).map((variant) => [variant.name, variant]),
    );
    return { report, of: (variant: string) => of.get(variant)! };
  }
  interface Summary {
    readonly name: string;
    readonly value: { readonly mean: number };
    readonly parameters: number;
    readonly hint: string | null;
  }

  test('§6.4.1, §11.4: twice the units of a small network lower its error; deep and thin is compared at equal size', async () => {
    const base = [own, { epochsMax: 8, hyperparameters: { units: 6 } }];
    const set = builtInVariants('capacity', resolveConfig(...base))!;
    const { report, of } = await ablate('capacity', set, base, 2);
    expect(of('units doubled').value.mean).toBeLessThan(of('units halved').value.mean - 0.05);
    expect(of('units doubled').parameters).toBe(785 * 12 + 13 * 10);
    const [shallow, deep] = [of('shallow and wide'), of('deep and thin')];
    expect(Math.abs(deep.parameters / shallow.parameters - 1)).toBeLessThan(0.05);
    // It has one layer as it is, so this is the same model, and the report says so.
    expect(report.rows.find(([name]) => name === 'shallow and wide')).toContain('the same runs');
    expect(report.advice).toMatch(/'deep and thin' [+−]\d/);
  });

  test('§11.2: trouble with the optimisation asks for batch normalisation at once, and that ends it', async () => {
    const deep = { layers: 5, units: 24, activation: 'sigmoid' };
    const set = ownVariants(
      {
        sigmoids: { hyperparameters: deep },
        'with batch normalisation': { hyperparameters: { ...deep, batchNorm: true } },
      },
      'the test',
    );
    const { report, of } = await ablate('trouble', set, [own, { epochsMax: 15 }], 1);
    expect(of('sigmoids').value.mean).toBeGreaterThan(0.8);
    expect(of('sigmoids').hint).toContain('try batch normalisation at once (§11.2');
    expect(report.advice).toContain('try batch normalisation at once');
    const normalised = of('with batch normalisation');
    expect(normalised.value.mean).toBeLessThan(0.5);
    expect(normalised.hint).toBeNull();
  });
});
