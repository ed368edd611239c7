import '@tensorflow/tfjs-backend-cpu';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { io } from '@tensorflow/tfjs-core';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import { factsOf } from '../../worker/data/facts.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { defineExperiment, type LayersModel, type Tensor } from '../../worker/experiment.ts';
import { writeLayersModel } from '../../worker/layers-format.ts';
import { buildModel } from '../../worker/model.ts';
import { tf } from '../../worker/tf.ts';

let folder: string;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-'));
  await tf.setBackend('cpu');
});
afterEach(() => rmSync(folder, { recursive: true }));

const draw = random(7, 1);
const numbers = (length: number) => Float32Array.from({ length }, () => draw.uniform() + 0.1);

const pixels = numbers(10 * 64);
/** The model that was built last. */
let built: LayersModel;
/** Every kind of weight: trained, statistics, frozen. */
const experiment = defineExperiment({
  data: () => ({
    train: {
      count: 10,
      inputs: { values: pixels, shape: [10, 8, 8, 1] },
      targets: { values: Int32Array.from({ length: 10 }, (_, i) => i % 3), shape: [10] },
    },
    classCount: 3,
    source: 'drawn',
  }),
  model({ tf, inputShape, classCount }) {
    built = tf.sequential({
      layers: [
        tf.layers.conv2d({ inputShape, filters: 3, kernelSize: 3 }),
        tf.layers.batchNormalization(),
        tf.layers.flatten(),
        tf.layers.dense({ units: 4, activation: 'relu', trainable: false }),
        tf.layers.dense({ units: classCount }),
      ],
    });
    return built;
  },
  loss: 'softmaxCrossEntropy',
  standardise: 'global',
});

const config = resolveConfig({});

/** A checkpoint's tensors: every weight of the model has values of its own, and there are others. */
async function checkpoint() {
  const { seed, validationFraction } = config;
  const data = await experiment.data({ folder, seed, hyperparameters: {}, log: () => {} });
  const prepared = prepareData(dataOf(data), { seed, validationFraction, standardise: 'global' });
  const model = await buildModel(experiment, config, prepared);
  const vector = numbers(model.layout.size);
  const tensors = model.layout.tensors.map(({ name, offset, size }) => ({
    name,
    values: vector.subarray(offset, offset + size),
  }));
  tensors.push({ name: 'optimizer.velocity', values: numbers(3) });
  return { model, vector, tensors, prepared };
}

function fromFolder(): io.IOHandler {
  const json = JSON.parse(readFileSync(join(folder, 'model.json'), 'utf8')) as io.ModelJSON;
  const [manifest] = json.weightsManifest;
  const bytes = readFileSync(join(folder, manifest!.paths[0]!));
  return tf.io.fromMemory({
    modelTopology: json.modelTopology as object,
    weightSpecs: manifest!.weights,
    weightData: new Uint8Array(bytes).buffer,
  });
}

const options = { experiment, config, log: () => {}, dataFolder: 'none' };

test('tf.loadLayersModel opens what is written, and predicts the same, statistics included', async () => {
  const { model, vector, tensors, prepared } = await checkpoint();
  model.load(vector);
  // Puts them into the model's own variables, which are asked below.
  await model.penalty();
  const original = built;
  const x = tf.tensor(numbers(2 * 64), [2, 8, 8, 1]);
  const expected = (original.predict(x) as typeof x).arraySync();

  await writeLayersModel({ ...options, facts: factsOf(prepared), tensors, to: folder });
  const loaded = await tf.loadLayersModel(fromFolder());
  expect((loaded.predict(x) as typeof x).arraySync()).toEqual(expected);
  expect(loaded.countParams()).toBe(vector.length);
});

test('leaves no tensor behind', async () => {
  const { tensors, prepared } = await checkpoint();
  const facts = factsOf(prepared);
  const write = () => writeLayersModel({ ...options, facts, tensors, to: folder });
  await write();
  const before = tf.memory().numTensors;
  await write();
  expect(tf.memory().numTensors).toBe(before);
});

test('a checkpoint of another model is refused, by the name of the tensor', async () => {
  const { tensors, prepared } = await checkpoint();
  const facts = factsOf(prepared);
  const without = tensors.filter(({ name }) => name !== tensors[2]!.name);
  await expect(
    writeLayersModel({ ...options, facts, tensors: without, to: folder }),
  ).rejects.toThrow(tensors[2]!.name);
});

test('a function of variables is refused, with the format that it does have', async () => {
  const byFunction = defineExperiment({
    ...experiment,
    model({ tf, classCount }) {
      const w = tf.variable(tf.zeros([64, classCount]));
      return {
        variables: { w },
        predict: (inputs: Tensor) => tf.matMul(tf.reshape(inputs, [-1, 64]), w),
      };
    },
  });
  const tensors = [{ name: 'w', values: numbers(64 * 3) }];
  await expect(
    writeLayersModel({
      ...options,
      experiment: byFunction,
      ...{ tensors, facts: factsOf((await checkpoint()).prepared) },
      to: folder,
    }),
  ).rejects.toThrow('--format safetensors');
});

test('data are read for a model alone that takes its shapes from what data() has left', async () => {
  const { prepared } = await checkpoint();
  const facts = factsOf(prepared);
  let reads = 0;
  let units = 1;
  const remembering = defineExperiment({
    ...experiment,
    data(given) {
      reads++;
      units = 3;
      return experiment.data(given);
    },
    model: ({ tf, inputShape }) =>
      tf.sequential({
        layers: [tf.layers.flatten({ inputShape }), tf.layers.dense({ units, name: 'dense' })],
      }),
  });
  const own = { ...options, facts, experiment: remembering, to: folder };
  const tensors = [
    { name: 'dense/kernel', values: numbers(64 * 3) },
    { name: 'dense/bias', values: numbers(3) },
  ];
  await writeLayersModel({ ...own, tensors });
  expect(reads).toBe(1);
  await writeLayersModel({ ...own, tensors });
  expect(reads).toBe(1);
  // For another model there is no such layer: the first reason is told.
  units = 1;
  const other = [{ name: 'other', values: numbers(1) }];
  await expect(writeLayersModel({ ...own, tensors: other })).rejects.toThrow("'dense/kernel'");
});
