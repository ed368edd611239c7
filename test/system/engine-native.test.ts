import { execFile } from 'node:child_process';
import { createRequire } from 'node:module';
import { promisify } from 'node:util';
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  type EngineName,
  type EngineSurvey,
  openEngine,
  surveyEngines,
} from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';

/**
 * Engines add up in different orders, so their float32 gradients differ by rounding: the largest
 * difference over the largest component was 1.6e-7 (dense) and 2.6e-7 (convolution). The networks are
 * smooth, so that no near-tie of a maximum flips between engines.
 */
const TOLERANCE = 5e-6;
const BATCH_SIZE = 16;

const NETWORKS: Readonly<Record<string, () => tfl.Sequential>> = {
  dense: () =>
    tfl.sequential({
      layers: [
        tfl.layers.flatten({ inputShape: [28, 28, 1] }),
        tfl.layers.dense({ units: 32, activation: 'tanh' }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
  convolution: () =>
    tfl.sequential({
      layers: [
        tfl.layers.conv2d({
          filters: 4,
          kernelSize: 5,
          padding: 'same',
          activation: 'tanh',
          inputShape: [28, 28, 1],
        }),
        tfl.layers.batchNormalization(),
        tfl.layers.averagePooling2d({ poolSize: 2 }),
        tfl.layers.conv2d({ filters: 8, kernelSize: 3, strides: 2, activation: 'sigmoid' }),
        tfl.layers.flatten(),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
};

const installed = readEngine(engineFolder('cpu')) !== null;

describe('downpour doctor', () => {
  let rows: readonly EngineSurvey[];
  beforeAll(async () => {
    rows = await surveyEngines();
  });

  it('has a row for every engine, and a reason for each that is not there', () => {
    expect(rows.map((row) => row.name)).toEqual([
      'tfjs-node-gpu',
      'native-gpu',
      'webgpu',
      'tfjs-node',
      'native',
      'wasm',
      'cpu',
    ]);
    for (const row of rows) {
      if (row.available) expect(row.device).toBeTruthy();
      else expect(row.why).not.toBe('');
    }
  });

  it('finds wasm and cpu everywhere', () => {
    const available = rows.filter((row) => row.available).map((row) => row.name);
    expect(available).toEqual(expect.arrayContaining(['wasm', 'cpu']));
  });

  it('prints the same as JSON and ends with 0', async () => {
    const script = `
      import { Command } from 'commander';
      import { registerEngineCommands } from ${JSON.stringify(new URL('../../cli/engine.ts', import.meta.url).href)};
      const program = new Command('downpour');
      registerEngineCommands(program);
      await program.parseAsync(['doctor', '--json'], { from: 'user' });`;
    const tsx = createRequire(import.meta.url).resolve('tsx');
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ['--import', tsx, '--input-type=module', '--eval', script],
      {
        timeout: 120_000,
        env: { ...process.env, DOWNPOUR_REDIS_URL: 'redis://u:secret@127.0.0.1:1' },
      },
    );
    const facts = JSON.parse(stdout);
    expect(facts.engine).toBe(rows.find((row) => row.available)!.name);
    expect(facts.redis.reachable).toBe(false);
    expect(stdout).not.toContain('secret');
  });
});

it.runIf(process.env.CI)('CI has the native engine: downpour engine install', () => {
  expect(installed).toBe(true);
});

// One process, as a worker has it: wasm first, so that the native engine comes to a tfjs already in use.
const where = installed ? engineFolder('cpu') : 'not installed: downpour engine install';
describe.skipIf(!installed)(`the native engine (${where})`, () => {
  const gradients = new Map<string, Float32Array>();
  beforeAll(async () => {
    const cpuNetworks = ['dense'];
    const plan: readonly [EngineName, readonly string[]][] = [
      ['wasm', Object.keys(NETWORKS)],
      // A convolution takes the plain cpu engine seconds a step.
      ['cpu', cpuNetworks],
      ['native', Object.keys(NETWORKS)],
    ];
    for (const [engine, networks] of plan) {
      await openEngine({ engine, threads: 1 });
      for (const network of networks) gradients.set(`${engine} ${network}`, gradient(network));
    }
  });

  it('computes with the tfjs that the worker has imported, on TensorFlow', async () => {
    const engine = await openEngine({ engine: 'native', threads: 1 });
    expect(engine.backend).toBe('tensorflow');
    expect(tf.getBackend()).toBe('tensorflow');
    expect(engine.versions.tensorflow).toBe('2.15.1');
    // Operations of a graph wait for one another: handing them to other threads takes a quarter of an LSTM's step.
    expect(process.env.TF_NUM_INTEROP_THREADS).toBe('1');
    const own = createRequire(import.meta.url).resolve('@tensorflow/tfjs-core');
    const copies = Object.keys(createRequire(import.meta.url).cache).filter(
      (file) => file.endsWith('tf-core.node.js') || file.endsWith('tf.node.js'),
    );
    expect(copies).toEqual([own]);
  });

  it.each([
    ['dense', 'wasm'],
    ['dense', 'cpu'],
    ['convolution', 'wasm'],
  ])(`gives the gradient of a %s network that %s gives, to ${TOLERANCE}`, (network, other) => {
    const native = gradients.get(`native ${network}`)!;
    const reference = gradients.get(`${other} ${network}`)!;
    expect(native.length).toBe(reference.length);
    const largest = Math.max(...reference.map(Math.abs));
    expect(largest).toBeGreaterThan(0.001);
    let difference = 0;
    for (const [i, g] of native.entries()) {
      difference = Math.max(difference, Math.abs(g - reference[i]!));
    }
    expect(difference / largest).toBeLessThan(TOLERANCE);
  });

  it.each(Object.keys(NETWORKS))(
    'keeps no tensor over 200 steps of a %s network',
    async (network) => {
      await openEngine({ engine: 'native' });
      const model = build(network);
      const { x, y } = minibatch();
      step(model, x, y);
      const { numTensors } = tf.memory();
      for (let i = 0; i < 200; i++) step(model, x, y);
      expect(tf.memory().numTensors).toBe(numTensors);
      tf.dispose([x, y]);
      model.dispose();
    },
  );
});

/** Every parameter's gradient, one after the other, at the same parameters on every engine. */
function gradient(network: string): Float32Array {
  const model = build(network);
  const { x, y } = minibatch();
  const result = step(model, x, y);
  tf.dispose([x, y]);
  model.dispose();
  return result;
}

/** Glorot-like parameters that depend on nothing but their index. */
function build(network: string): tfl.Sequential {
  const model = NETWORKS[network]!();
  tf.tidy(() => {
    for (const [i, weight] of model.trainableWeights.entries()) {
      const shape = weight.shape.map((size) => size!);
      const fanIn = Math.max(
        1,
        shape.slice(0, -1).reduce((a, b) => a * b, 1),
      );
      const values = Float32Array.from(
        { length: tf.util.sizeFromShape(shape) },
        (_, j) => Math.sin(1 + i + j * 12.9898) / Math.sqrt(fanIn),
      );
      weight.write(tf.tensor(values, shape));
    }
  });
  return model;
}

function step(model: tfl.Sequential, x: tf.Tensor, y: tf.Tensor): Float32Array {
  return tf.tidy(() => {
    const { grads } = tf.variableGrads(
      () =>
        tf.losses.softmaxCrossEntropy(
          y,
          model.apply(x, { training: true }) as tf.Tensor,
        ) as tf.Scalar,
    );
    // In the order in which the variables were made: the model's.
    const flat = Object.values(grads).map((g) => tf.reshape(g, [-1]));
    return tf.concat(flat).dataSync().slice() as Float32Array;
  });
}

let digits: readonly number[][] | undefined;
/** Real digits: one image of each class in turn, from the package `mnist`. */
function minibatch(): { x: tf.Tensor; y: tf.Tensor } {
  digits ??= Array.from({ length: BATCH_SIZE }, (_, i) => {
    const mnist = createRequire(import.meta.url)('mnist') as { get(i: number): number[] }[];
    return mnist[i % 10]!.get(Math.floor(i / 10));
  });
  const classes = Int32Array.from({ length: BATCH_SIZE }, (_, i) => i % 10);
  return tf.tidy(() => ({
    x: tf.tensor4d(Float32Array.from(digits!.flat()), [BATCH_SIZE, 28, 28, 1]),
    y: tf.oneHot(tf.tensor1d(classes, 'int32'), 10),
  }));
}
