import { pathToFileURL } from 'node:url';
import { resolveConfig } from '../shared/config.ts';
import { gather } from '../worker/data/gather.ts';
import { dataOf } from '../worker/data/given.ts';
import { prepareData } from '../worker/data/prepare-data.ts';
import { openEngine } from '../worker/engine.ts';
import { type Experiment, loadExperiment, type Tensor } from '../worker/experiment.ts';
import { buildModel } from '../worker/model.ts';
import { prepareOptions } from '../worker/prepare.ts';

/**
 * A step of an experiment with code of its own, recorded as a graph and by single operations, by turns: `npx tsx
 * bench/objective.ts [steps]`. Needs the native engine; the pictures are made up.
 */

const BATCH_SIZE = 100;
const COUNT = 2 * BATCH_SIZE;
const WARM_UP_STEPS = 5;

const pictures = () => ({
  values: Uint8Array.from({ length: COUNT * 784 }, (_, i) => (i * 7919) % 256),
  shape: [COUNT, 28, 28, 1],
});
const example = async (name: string): Promise<Experiment> => ({
  ...(await loadExperiment(new URL(`../examples/${name}.ts`, import.meta.url).pathname)),
  data: () => ({ train: { inputs: pictures() } }),
});

/** A classifier of 784-256-10 with a layer of the user's between them, and a loss of the user's. */
const layered: Experiment = {
  data: () => ({
    train: {
      inputs: pictures(),
      targets: { values: Int32Array.from({ length: COUNT }, (_, i) => i % 10), shape: [COUNT] },
    },
    classCount: 10,
  }),
  model: ({ tf, inputShape, classCount }) => {
    class Swish extends tf.layers.Layer {
      static readonly className = 'Swish';
      override call(inputs: Tensor | Tensor[]): Tensor {
        const x = [inputs].flat()[0]!;
        return tf.mul(x, tf.sigmoid(x));
      }
      override computeOutputShape(shape: number[]): number[] {
        return shape;
      }
    }
    return tf.sequential({
      layers: [
        tf.layers.flatten({ inputShape }),
        tf.layers.dense({ units: 256 }),
        new Swish({}) as never,
        tf.layers.dense({ units: classCount }),
      ],
    });
  },
  loss: (targets, predictions) =>
    predictions
      .logSoftmax()
      .mul(targets.toInt().oneHot(10, 1, 0))
      .sum(1)
      .neg(),
  record: true,
};

async function measure(name: string, experiment: Experiment, steps: number): Promise<string> {
  const config = resolveConfig({ minibatchSize: BATCH_SIZE, validationFraction: 0.5 });
  const prepared = prepareData(
    dataOf(await experiment.data({} as never)),
    prepareOptions(experiment, config),
  );
  const rows = Array.from({ length: prepared.train.count }, (_, i) => i);
  const minibatch = gather(prepared, 'train', rows);
  const ways = await Promise.all(
    [true, false].map(async (record) => {
      const model = await buildModel(experiment, config, prepared, { record });
      const initial = await model.initialise(1);
      const flat = [0, 1].map(() => initial.slice(0, model.layout.exchangedSize));
      return { model, flat, times: [] as number[] };
    }),
  );
  for (let i = 0; i < WARM_UP_STEPS + steps; i++) {
    for (const { model, flat, times } of ways) {
      const start = performance.now();
      model.load(flat[i % 2]!);
      const { discard } = await model.step(minibatch, i);
      if (i >= WARM_UP_STEPS) times.push(performance.now() - start);
      discard();
    }
  }
  const [recorded, single] = ways.map(({ times }) => times.sort((a, b) => a - b));
  const text = (times: number[]) =>
    `${times[Math.floor(times.length / 2)]!.toFixed(2)} (${times[0]!.toFixed(2)})`;
  const middle = (times: number[]) => times[Math.floor(times.length / 2)]!;
  const ratio = middle(single!) / middle(recorded!);
  const { execution } = ways[0]!.model;
  for (const { model } of ways) model.dispose();
  return `${name.padEnd(32)}${execution.padEnd(8)}${text(recorded!).padEnd(16)}${text(single!).padEnd(16)}${ratio.toFixed(1)}`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const steps = Number(process.argv[2] ?? 100);
  await openEngine({ engine: 'native' });
  console.log(
    `${'ms a step: median (fastest)'.padEnd(40)}${'recorded'.padEnd(16)}${'operations'.padEnd(16)}ratio`,
  );
  const rows: readonly (readonly [string, Experiment])[] = [
    ['objective: mnist-vae', await example('mnist-vae')],
    ['objective: mnist-rbm', await example('mnist-rbm')],
    ['layer and loss of the user', layered],
  ];
  for (const [name, experiment] of rows) console.log(await measure(name, experiment, steps));
}
