/**
 * Milliseconds that a gradient step takes (minibatch of 64: parameters put on the device, forward,
 * backward, one gradient read back), per engine and network, by two paths in turn:
 *
 *     npx tsx bench/engines.ts             # wasm, and the native engine where it is installed
 *     npx tsx bench/engines.ts wasm cpu    # only the rows named
 *     npx tsx bench/engines.ts native-gpu  # not beside `native`: two TensorFlows collide in one process
 *
 * - `plain`: what a program on TensorFlow.js does: `LayersModel.apply`, `variableGrads`, one concat and
 *   one readback. Its own random dropout.
 * - `downpour`: `Model.load` and `Model.step`, as a worker calls them.
 *
 * Medians, and the fastest step. Both paths take turns step by step, so the ratio holds on a noisy
 * machine.
 */
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import { performance } from 'node:perf_hooks';
import { pathToFileURL } from 'node:url';
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import { errorText } from '../shared/errors.ts';
import { gather } from '../worker/data/gather.ts';
import { prepareData } from '../worker/data/prepare-data.ts';
import { openEngine } from '../worker/engine.ts';
import { engineFolder, readEngine } from '../worker/engine-folder.ts';
import type { Experiment } from '../worker/experiment.ts';
import { buildModel } from '../worker/model.ts';

const BATCH_SIZE = 64;
/** A graph is recorded and proved meanwhile. */
const WARM_UP_STEPS = 4;

const BENCH_ENGINES = ['wasm-stock', 'wasm', 'native', 'webgpu', 'native-gpu', 'cpu'] as const;
export type BenchEngine = (typeof BENCH_ENGINES)[number];

export interface EngineRow {
  readonly engine: BenchEngine;
  readonly network: NetworkName;
  readonly path: 'plain' | 'downpour';
  /** Median, ms. */
  readonly ms: number;
  readonly fastestMs: number;
}

export interface EnginesOptions {
  readonly engines?: readonly BenchEngine[];
  /** Steps of each path; a CNN takes a quarter of them. */
  readonly steps?: number;
  readonly onRow?: (row: EngineRow) => void;
  readonly log?: (line: string) => void;
}

const NETWORKS = {
  /** 784-256-10. */
  mlp: () =>
    tfl.sequential({
      layers: [
        tfl.layers.flatten({ inputShape: [28, 28, 1] }),
        tfl.layers.dense({ units: 256, activation: 'relu' }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
  'mlp with dropout': () =>
    tfl.sequential({
      layers: [
        tfl.layers.flatten({ inputShape: [28, 28, 1] }),
        tfl.layers.dense({ units: 256, activation: 'relu' }),
        tfl.layers.dropout({ rate: 0.2 }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
  /** Two convolutions 5×5 (16, 32), each with a 2×2 pooling, then 128-10. */
  cnn: () =>
    tfl.sequential({
      layers: [
        tfl.layers.conv2d({
          filters: 16,
          kernelSize: 5,
          padding: 'same',
          activation: 'relu',
          inputShape: [28, 28, 1],
        }),
        tfl.layers.maxPooling2d({ poolSize: 2 }),
        tfl.layers.conv2d({ filters: 32, kernelSize: 5, padding: 'same', activation: 'relu' }),
        tfl.layers.maxPooling2d({ poolSize: 2 }),
        tfl.layers.flatten(),
        tfl.layers.dense({ units: 128, activation: 'relu' }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
  /** Four convolutions 3×3 (64, 64, 128, 128) and 512-10: 3.5 million parameters, work for a GPU. */
  'cnn, wide': () =>
    tfl.sequential({
      layers: [
        ...[64, 64, 128, 128].flatMap((filters, i) => [
          tfl.layers.conv2d({
            ...{ filters, kernelSize: 3, padding: 'same', activation: 'relu' },
            ...(i === 0 ? { inputShape: [28, 28, 1] } : {}),
          }),
          ...(i % 2 === 1 ? [tfl.layers.maxPooling2d({ poolSize: 2 })] : []),
        ]),
        tfl.layers.flatten(),
        tfl.layers.dense({ units: 512, activation: 'relu' }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
  /** Two convolutions with batch normalisation and dropout: the example mnist-cnn. */
  'cnn, normalised': () =>
    tfl.sequential({
      layers: [
        ...[16, 32].flatMap((filters, i) => [
          tfl.layers.conv2d({
            ...{ filters, kernelSize: 5, padding: 'same', useBias: false },
            ...(i === 0 ? { inputShape: [28, 28, 1] } : {}),
          }),
          tfl.layers.maxPooling2d({ poolSize: 2 }),
          tfl.layers.batchNormalization({ momentum: 0.9 }),
          tfl.layers.reLU(),
        ]),
        tfl.layers.flatten(),
        tfl.layers.dropout({ rate: 0.3 }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
  /** 28 rows of 28 numbers through 64 units. */
  lstm: () =>
    tfl.sequential({
      layers: [
        tfl.layers.reshape({ targetShape: [28, 28], inputShape: [28, 28, 1] }),
        tfl.layers.lstm({ units: 64, recurrentInitializer: 'glorotUniform' }),
        tfl.layers.dense({ units: 10 }),
      ],
    }),
};
type NetworkName = keyof typeof NETWORKS;

/** Measures every network on every engine asked for; an engine that is not installed is left out. */
async function benchEngines(options: EnginesOptions = {}): Promise<EngineRow[]> {
  const { engines = ['wasm-stock', 'wasm', 'native'], steps = 200, onRow, log } = options;
  const rows: EngineRow[] = [];
  // In this order: the stock engine must be timed before our kernels are registered.
  for (const engine of BENCH_ENGINES.filter((each) => engines.includes(each))) {
    if (engine === 'native' && readEngine(engineFolder('cpu')) === null) {
      log?.('native: not installed; downpour engine install');
      continue;
    }
    if (engine === 'wasm-stock') {
      await tf.setBackend('wasm');
      await tf.ready();
    } else await openEngine({ engine });
    for (const network of Object.keys(NETWORKS) as NetworkName[]) {
      const isCnn = network.startsWith('cnn') || network === 'lstm';
      const isWide = network === 'cnn, wide';
      const onGpu = engine === 'webgpu' || engine === 'native-gpu';
      // A CNN step takes minutes there, a wide one seconds.
      if ((engine === 'cpu' && isCnn) || (engine.startsWith('wasm') && isWide)) continue;
      const share = (isCnn ? 4 : 1) * (engine === 'cpu' ? 20 : 1) * (isWide && !onGpu ? 10 : 1);
      const count = Math.ceil(steps / share);
      try {
        for (const row of await measure(engine, network, count)) {
          rows.push(row);
          onRow?.(row);
        }
      } catch (error) {
        log?.(`${engine} ${network} cannot: ${errorText(error).split('\n')[0]}`);
      }
    }
  }
  return rows;
}

async function measure(
  engine: BenchEngine,
  network: NetworkName,
  steps: number,
): Promise<EngineRow[]> {
  const paths: Record<EngineRow['path'], Path> =
    engine === 'wasm-stock'
      ? ({ plain: await plainPath(network) } as Record<EngineRow['path'], Path>)
      : { plain: await plainPath(network), downpour: await downpourPath(network) };
  const entries = Object.entries(paths) as [EngineRow['path'], Path][];
  const times = new Map<EngineRow['path'], number[]>(entries.map(([path]) => [path, []]));
  try {
    for (let i = 0; i < WARM_UP_STEPS + steps; i++) {
      for (const [path, { step }] of entries) {
        const start = performance.now();
        await step(i);
        if (i >= WARM_UP_STEPS) times.get(path)!.push(performance.now() - start);
      }
    }
  } finally {
    for (const [, { dispose }] of entries) dispose();
  }
  return entries.map(([path]) => {
    const sorted = times.get(path)!.sort((a, b) => a - b);
    const ms = sorted[Math.floor(sorted.length / 2)]!;
    return { engine, network, path, ms, fastestMs: sorted[0]! };
  });
}

interface Path {
  step(i: number): Promise<void>;
  dispose(): void;
}

async function plainPath(network: NetworkName): Promise<Path> {
  const model = NETWORKS[network]();
  const x = tf.randomUniform([BATCH_SIZE, 28, 28, 1], 0, 1, 'float32', 1);
  const classes = Int32Array.from({ length: BATCH_SIZE }, (_, i) => i % 10);
  const y = tf.oneHot(tf.tensor1d(classes, 'int32'), 10);
  const weights = model.trainableWeights.map((weight) => weight.read() as tf.Variable);
  const sizes = weights.map(({ size }) => size);
  const flat = [0, 1].map(() => new Float32Array(sizes.reduce((sum, size) => sum + size, 0)));
  const initial = await tf.tidy(() => tf.concat(weights.map((w) => tf.reshape(w, [-1])))).data();
  for (const each of flat) each.set(initial);
  const loss = () => {
    const logits = model.apply(x, { training: true }) as tf.Tensor;
    return tf.losses.softmaxCrossEntropy(y, logits) as tf.Scalar;
  };
  return {
    async step(i) {
      const flatGradient = tf.tidy(() => {
        let offset = 0;
        for (const weight of weights) {
          const values = flat[i % 2]!.subarray(offset, offset + weight.size);
          weight.assign(tf.tensor(values, weight.shape));
          offset += weight.size;
        }
        const { grads } = tf.variableGrads(loss, weights);
        return tf.concat(weights.map((w) => tf.reshape(grads[w.name]!, [-1])));
      });
      // A GPU of a browser's kind has no other way.
      if (tf.getBackend() === 'webgpu') await flatGradient.data();
      else flatGradient.dataSync();
      flatGradient.dispose();
    },
    dispose() {
      tf.dispose([x, y]);
      model.dispose();
    },
  };
}

async function downpourPath(network: NetworkName): Promise<Path> {
  const values = Uint8Array.from({ length: BATCH_SIZE * 784 }, (_, i) => (i * 7919) % 256);
  const labels = Uint8Array.from({ length: BATCH_SIZE }, (_, i) => i % 10);
  const part = {
    count: BATCH_SIZE,
    inputs: { values, shape: [BATCH_SIZE, 28, 28, 1] },
    targets: { values: labels, shape: [BATCH_SIZE] },
  };
  const prepared = prepareData(
    { train: part, validation: part, classCount: 10, source: 'made up' },
    { seed: 1, validationFraction: 0.2, standardise: 'none' },
  );
  const experiment: Experiment = {
    data: () => {
      throw new Error('not asked for');
    },
    model: NETWORKS[network],
    loss: 'softmaxCrossEntropy',
  };
  const model = await buildModel(experiment, { seed: 1, hyperparameters: {} }, prepared);
  const initial = await model.initialise(1);
  const flat = [0, 1].map(() => initial.slice(0, model.layout.exchangedSize));
  const rows = Array.from({ length: BATCH_SIZE }, (_, i) => i);
  const minibatch = gather(prepared, 'train', rows);
  return {
    async step(i) {
      model.load(flat[i % 2]!);
      await model.step(minibatch, i);
    },
    dispose: () => model.dispose(),
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const wanted = process.argv.slice(2) as BenchEngine[];
  await benchEngines({
    ...(wanted.length > 0 ? { engines: wanted } : {}),
    onRow: ({ engine, network, path, ms, fastestMs }) => {
      const text = `${ms.toFixed(2)} ms (fastest ${fastestMs.toFixed(2)})`;
      console.log(`${engine.padEnd(12)}${network.padEnd(18)}${path.padEnd(10)}${text}`);
    },
    log: (line) => console.log(line),
  });
}
