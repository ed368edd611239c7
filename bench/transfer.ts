import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defineExperiment, loadMnist, train } from '../library/index.ts';
import { encodeSafetensorsHeader } from '../shared/safetensors.ts';
import type { Examples, ExperimentData } from '../worker/data/examples.ts';
import type { Pretrained } from '../worker/experiment.ts';

/**
 * Transfer: a network learns the digits 0 to 4; its convolutions, frozen, then serve the digits 5 to 9: `npx tsx
 * bench/transfer.ts`. The digits are those of `DOWNPOUR_DATA`.
 */

const CLASSES = 5;
const EPOCHS = 4;

/** The digits first … first + 4 as classes 0 … 4. */
function select(given: Examples, first: number) {
  const [count = 0, ...shape] = given.inputs.shape;
  const size = shape.reduce((product, d) => product * d, 1);
  const [pixels, digits] = [given.inputs.values, given.targets.values] as [Uint8Array, Uint8Array];
  const rows: number[] = [];
  for (let row = 0; row < count; row++) {
    const label = digits[row]! - first;
    if (label >= 0 && label < CLASSES) rows.push(row);
  }
  const values = new Uint8Array(rows.length * size);
  for (const [i, row] of rows.entries()) {
    values.set(pixels.subarray(row * size, (row + 1) * size), i * size);
  }
  const targets = Uint8Array.from(rows, (row) => digits[row]! - first);
  return {
    inputs: { values, shape: [rows.length, ...shape] },
    targets: { values: targets, shape: [rows.length] },
  };
}

const mnist = (await loadMnist({ log: console.log })) as ExperimentData & { test: Examples };

/**
 * @param first the digit that is class 0.
 * @returns the percentage of the test digits that are answered rightly, and the parameters.
 */
async function trained(first: number, pretrained?: Pretrained) {
  const experiment = defineExperiment({
    data: () => ({
      train: select(mnist.train, first),
      test: select(mnist.test, first),
      classCount: CLASSES,
      source: `${mnist.source}, digits ${first} to ${first + CLASSES - 1}`,
    }),
    ...(pretrained ? { pretrained } : {}),
    model: ({ tf, inputShape, classCount }) => {
      const convolution = { filters: 32, kernelSize: 3, activation: 'relu' } as const;
      return tf.sequential({
        layers: [
          tf.layers.conv2d({ ...convolution, name: 'trunk_1', inputShape }),
          tf.layers.conv2d({ ...convolution, name: 'trunk_2' }),
          tf.layers.maxPooling2d({ poolSize: 2 }),
          tf.layers.dropout({ rate: 0.25 }),
          tf.layers.flatten(),
          tf.layers.dense({ name: 'head_1', units: 128, activation: 'relu' }),
          tf.layers.dropout({ rate: 0.5 }),
          tf.layers.dense({ name: 'head_2', units: classCount }),
        ],
      });
    },
    loss: 'softmaxCrossEntropy',
    config: {
      ...{ seed: 1, minibatchSize: 64, epochsMax: EPOCHS, validationFraction: 0.1 },
      ...{ learningRate: 0.001, optimizer: { kind: 'adam' } },
    },
  });
  const state = await mkdtemp(join(tmpdir(), 'downpour-transfer-'));
  try {
    const { run, parameters } = await train(experiment, { workers: 1, state, log: () => {} });
    return { correct: 100 * (1 - run.test!.error!), parameters };
  } finally {
    await rm(state, { recursive: true, force: true });
  }
}

const folder = await mkdtemp(join(tmpdir(), 'downpour-transfer-'));
try {
  const base = await trained(0);
  console.log(`0 to 4: ${base.correct.toFixed(2)} % of the test digits`);
  const trunk = [...base.parameters].filter(([name]) => name.startsWith('trunk'));
  const entries = trunk.map(([name, { shape, values }]) => ({
    ...{ name, shape, byteLength: values.byteLength },
  }));
  const parts = trunk.map(([, { values }]) => new Uint8Array(values.slice().buffer));
  const bytes = Buffer.concat([encodeSafetensorsHeader(entries), ...parts]);
  const from = join(folder, 'trunk.safetensors');
  await writeFile(from, bytes);
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const pretrained = { from, sha256, freeze: ['trunk_*'] };
  const all = await trained(5, pretrained);
  console.log(`5 to 9, frozen convolutions: ${all.correct.toFixed(2)} %`);
} finally {
  await rm(folder, { recursive: true, force: true });
}
