import { beforeAll, expect, test } from 'vitest';
import { createUpdater } from '../../cli/study/updater.ts';
import { resolveConfig } from '../../shared/config.ts';
import { checkExperiment } from '../../worker/check/check.ts';
import { checkThroughput } from '../../worker/check/throughput.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { openEngine } from '../../worker/engine.ts';
import { mustBeExperiment } from '../../worker/experiment.ts';
import { layers } from '../../worker/layers.ts';
import { registerOwnClass, type Tensor, tf } from '../../worker/tf.ts';

beforeAll(async () => {
  await openEngine({ engine: 'cpu' });
});

const COUNT = 200;
const TOWNS = 12;
/** Each town has a price of its own. */
const towns = Int32Array.from({ length: COUNT }, (_, i) => (i * 7) % TOWNS);
const prepared = prepareData(
  dataOf({
    train: {
      inputs: { values: towns, shape: [COUNT, 1] },
      targets: {
        values: Float32Array.from(towns, (town) => Math.sin(5 * town)),
        shape: [COUNT, 1],
      },
    },
    source: 'towns',
  }),
  { seed: 1, validationFraction: 0.2, standardise: 'none' },
);

/** The rows behind it get twice their gradient. */
class Doubles extends tf.layers.Layer {
  static readonly className = 'DoublesGradient';
  override call(inputs: Tensor | Tensor[]): Tensor {
    const double = tf.customGrad((x: unknown) => ({
      value: (x as Tensor).clone(),
      gradFunc: (dy: Tensor) => dy.mul(2),
    }));
    return double(Array.isArray(inputs) ? inputs[0]! : inputs);
  }
}
registerOwnClass(Doubles as never);

function experimentOf(isWrong: boolean, isAlone = false) {
  const experiment = mustBeExperiment(
    {
      data: () => {
        throw new Error('not asked for');
      },
      tables: {
        town: {
          rows: TOWNS,
          width: isAlone ? 1 : 3,
          initializer: { kind: 'normal', deviation: 0.5 },
        },
      },
      model: () =>
        tf.sequential({
          layers: [
            layers.rows({ table: 'town', combine: 'sum', inputShape: [1] }),
            ...(isWrong ? [new Doubles({})] : []),
            ...(isAlone ? [] : [tf.layers.dense({ units: 1, name: 'price' })]),
          ],
        }),
      loss: 'meanSquaredError',
      config: { learningRate: isAlone ? 1e-6 : 0.3, minibatchSize: 16 },
    },
    'towns.ts',
  );
  return { experiment, config: resolveConfig(experiment.config ?? {}) };
}

async function checked(isWrong: boolean, isAlone = false) {
  const { experiment, config } = experimentOf(isWrong, isAlone);
  const findings = await checkExperiment({
    ...{ experiment, config, prepared, steps: 60 },
    updater: (layout, initial) => createUpdater(layout, config, initial),
  });
  return Object.fromEntries(findings.map((found) => [found.check, found]));
}

test('the gradient of rows is compared with the slope of the loss, and a short training changes them', async () => {
  const { gradient, scale, progress, independence } = await checked(false);
  expect(gradient).toMatchObject({ verdict: 'ok' });
  const { tensors } = gradient!.numbers as { tensors: { tensor: string; silent: boolean }[] };
  expect(tensors).toContainEqual(expect.objectContaining({ tensor: 'table town', silent: false }));
  expect(independence!.verdict).toBe('ok');
  // Ids are not looked at as sizes.
  expect(scale?.text ?? '').not.toMatch(/standardise/);
  expect(progress!.verdict).toBe('ok');
  // A dense layer without rows would know nothing of the towns.
  const { lossBefore, lossAfter } = progress!.numbers as Record<string, number>;
  expect(lossAfter).toBeLessThan(0.2 * lossBefore!);
}, 30_000);

test('a wrong gradient of rows is a problem that names the table', async () => {
  const { gradient } = await checked(true);
  expect(gradient).toMatchObject({ verdict: 'problem' });
  expect(gradient!.text).toContain('not the slope of the loss for table town');
}, 30_000);

test('a model of rows alone is told how far its rows move', async () => {
  const { progress } = await checked(false, true);
  expect(progress!.text).toMatch(
    /It hardly moves: the largest update is [\d.e-]*[1-9][\d.e-]* of its rows\./,
  );
}, 30_000);

test('speeds are measured with made-up rows', async () => {
  const { experiment, config } = experimentOf(false);
  const { verdict, text } = await checkThroughput(experiment, config, prepared);
  expect(verdict).not.toBe('problem');
  expect(text).toMatch(/16: \d/);
}, 30_000);
