/**
 * Milliseconds that one gradient step takes (minibatch of 64: forward, backward, all gradients read
 * back), per engine and network:
 *
 *     npx tsx bench/engines.ts             # wasm as it comes, wasm with our kernels, cpu
 *     npx tsx bench/engines.ts wasm        # only the rows named
 *
 * A row gives the median and the fastest of the timed steps. Trust ratios: the machine is noisy.
 */
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import { performance } from 'node:perf_hooks';
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import { errorText } from '../shared/errors.ts';
import { openEngine } from '../worker/engine.ts';
import { repairCpuKernels } from '../worker/kernels-cpu.ts';
import { registerWasmKernels } from '../worker/kernels-wasm.ts';

const BATCH_SIZE = 64;
const WARM_UP_STEPS = 3;

/** In this order: the stock engine must be timed before our kernels are registered. */
const ROWS: Readonly<Record<string, () => Promise<void>>> = {
  'wasm-stock': async () => {
    await useEngine('wasm');
    await row('wasm-stock', 'mlp', 30);
    await row('wasm-stock', 'cnn', 5);
  },
  wasm: async () => {
    registerWasmKernels();
    await useEngine('wasm');
    await row('wasm', 'mlp', 60);
    await row('wasm', 'cnn', 20);
  },
  // Needs `downpour engine install`.
  native: async () => {
    await openEngine({ engine: 'native' });
    await row('native', 'mlp', 200);
    await row('native', 'cnn', 40);
  },
  // A CNN step takes minutes here.
  cpu: async () => {
    repairCpuKernels();
    await useEngine('cpu');
    await row('cpu', 'mlp', 5);
  },
};

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
};

async function useEngine(name: string): Promise<void> {
  await tf.setBackend(name);
  await tf.ready();
}

async function row(engine: string, network: keyof typeof NETWORKS, steps: number): Promise<void> {
  const model = NETWORKS[network]();
  const x = tf.randomUniform([BATCH_SIZE, 28, 28, 1], 0, 1, 'float32', 1);
  const classes = Int32Array.from({ length: BATCH_SIZE }, (_, i) => i % 10);
  const y = tf.oneHot(tf.tensor1d(classes, 'int32'), 10);
  const loss = () => {
    const logits = model.apply(x, { training: true }) as tf.Tensor;
    return tf.losses.softmaxCrossEntropy(y, logits) as tf.Scalar;
  };
  const step = () =>
    tf.tidy(() => {
      const { grads } = tf.variableGrads(loss);
      tf.concat(Object.values(grads).map((g) => tf.reshape(g, [-1]))).dataSync();
    });
  try {
    for (let i = 0; i < WARM_UP_STEPS; i++) step();
    const times = Array.from({ length: steps }, () => {
      const start = performance.now();
      step();
      return performance.now() - start;
    }).sort((a, b) => a - b);
    const median = times[Math.floor(times.length / 2)]!;
    print(engine, network, `${median.toFixed(1)} ms (fastest ${times[0]!.toFixed(1)})`);
  } catch (error) {
    print(engine, network, `cannot: ${errorText(error).split('\n')[0]}`);
  } finally {
    tf.dispose([x, y]);
    model.dispose();
  }
}

function print(engine: string, network: string, text: string): void {
  console.log(`${engine.padEnd(12)}${network.padEnd(6)}${text}`);
}

const wanted = process.argv.slice(2);
for (const [name, run] of Object.entries(ROWS)) {
  if (wanted.length === 0 || wanted.includes(name)) await run();
}
