import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defineExperiment, loadMnist, train } from '../library/index.ts';
import { encodeSafetensorsHeader } from '../shared/safetensors.ts';
import type { Examples, ExperimentData } from '../worker/data/examples.ts';
import type { Pretrained } from '../worker/experiment.ts';

/**
 * Transfer: a network learns the digits 0 to 4; its convolutions, frozen, then serve the digits 5 to 9, once with all
 * examples and once with ten a class, against the same network that begins fresh.
 *
 *     npx tsx bench/transfer.ts [seeds]
 */

const CLASSES = 5;
const seeds = Number(process.argv[2] ?? 5);

/** The digits first … first + 4 as classes 0 … 4. @param perClass the most of each class, the first ones after `skip` of them. */
function select(given: Examples, first: number, perClass = Number.POSITIVE_INFINITY, skip = 0) {
  const [count = 0, ...shape] = given.inputs.shape;
  const size = shape.reduce((product, d) => product * d, 1);
  const [pixels, digits] = [given.inputs.values, given.targets.values] as [Uint8Array, Uint8Array];
  const seen = new Array<number>(CLASSES).fill(-skip);
  const rows: number[] = [];
  for (let row = 0; row < count; row++) {
    const label = digits[row]! - first;
    if (label < 0 || label >= CLASSES) continue;
    const position = seen[label]!++;
    if (position >= 0 && position < perClass) rows.push(row);
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

interface Trial {
  readonly first: number;
  readonly epochs: number;
  readonly seed: number;
  readonly perClass?: number;
  readonly pretrained?: Pretrained;
}

/** @returns the share of the test digits that are answered rightly, the parameters, and what was trained. */
async function trained({ first, epochs, seed, perClass, pretrained }: Trial) {
  const few = perClass !== undefined;
  const experiment = defineExperiment({
    data: () => ({
      train: select(mnist.train, first, perClass, few ? perClass * seed : 0),
      ...(few ? { validation: select(mnist.train, first, perClass, perClass * seed) } : {}),
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
      ...{ seed, minibatchSize: few ? 10 : 64, learningRate: 0.001, optimizer: { kind: 'adam' } },
      ...{ epochsMax: epochs, ...(few ? {} : { validationFraction: 0.1 }) },
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
  const base = await trained({ first: 0, epochs: 4, seed: 1 });
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
  const all = await trained({ first: 5, epochs: 4, seed: 1, pretrained });
  console.log(`5 to 9, frozen convolutions: ${all.correct.toFixed(2)} %`);
  for (let seed = 1; seed <= seeds; seed++) {
    const few = { first: 5, epochs: 60, seed, perClass: 10 };
    const frozen = await trained({ ...few, pretrained });
    const fresh = await trained(few);
    console.log(
      `10 a class, seed ${seed}: frozen ${frozen.correct.toFixed(1)} %, fresh ${fresh.correct.toFixed(1)} %`,
    );
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
