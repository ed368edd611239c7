/**
 * Milliseconds that a gradient step of a recurrent model takes, on the native engine, on wasm, and with PyTorch where
 * Python finds it (`python3 -m pip install torch`; DOWNPOUR_TORCH names a folder of `pip install --target`):
 *
 *     npx tsx bench/recurrent.ts
 *     npx tsx bench/recurrent.ts --steps 50 --models characters --engines wasm,torch-1
 *     npx tsx bench/recurrent.ts --threads 1      # of an operation of the native engine; default: one for each core
 *     npx tsx bench/recurrent.ts --soak 10000     # tensors and memory over so many steps of a small model
 *
 * The rows take turns step by step, so their ratios hold on a busy machine, and so does the processor's time, which is
 * measured beside: on a machine that others use, a step waits and a processor does not. Models: `characters`, an
 * embedding of 64, an LSTM of 128 and a dense layer over windows of 64 characters, minibatch 32; `lstm` and `gru`, 128
 * units over the 28 rows of a digit, minibatch 64. Gates are sigmoids, as in PyTorch.
 */
import { spawn } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { errorText } from '../shared/errors.ts';
import { medianOf } from '../shared/quantile.ts';
import { openWasm, prove, setBackend } from '../worker/backend.ts';
import type { ExperimentData } from '../worker/data/examples.ts';
import { gather } from '../worker/data/gather.ts';
import { prepareData } from '../worker/data/prepare-data.ts';
import { openEngine } from '../worker/engine.ts';
import { engineFolder, readEngine } from '../worker/engine-folder.ts';
import type { ModelArguments } from '../worker/experiment.ts';
import { buildModel } from '../worker/model.ts';
import { tf } from '../worker/tf.ts';
import { formatBytes, formatTable } from './report.ts';

const MODELS = ['characters', 'lstm', 'gru'] as const;
type ModelName = (typeof MODELS)[number];
const ENGINES = ['native', 'wasm', 'torch-1', 'torch-2'] as const;
type BenchedEngine = (typeof ENGINES)[number];

/** A graph is recorded and proved meanwhile. */
const WARM_UP_STEPS = 4;
const WINDOW = 64;
const CHARACTERS = 65;

/** Units of the models; a soak asks for few. */
let units = 128;

interface Took {
  readonly ms: number;
  readonly processorMs: number;
}

interface Stepper {
  step(index: number): Promise<Took>;
  dispose(): void;
}

function build(name: ModelName, { tf }: ModelArguments) {
  const { layers } = tf;
  const recurrent = { units, recurrentActivation: 'sigmoid' } as const;
  if (name === 'characters') {
    return tf.sequential({
      layers: [
        layers.embedding({ inputDim: CHARACTERS, outputDim: 64, inputLength: WINDOW }),
        layers.lstm({ ...recurrent, returnSequences: true }),
        layers.dense({ units: CHARACTERS }),
      ],
    });
  }
  return tf.sequential({
    layers: [
      layers.reshape({ targetShape: [28, 28], inputShape: [28, 28, 1] }),
      name === 'lstm' ? layers.lstm(recurrent) : layers.gru(recurrent),
      layers.dense({ units: 10 }),
    ],
  });
}

function data(name: ModelName): ExperimentData {
  const isText = name === 'characters';
  const count = isText ? 32 : 64;
  const train = isText
    ? {
        count,
        inputs: {
          values: Float32Array.from({ length: count * WINDOW }, (_, i) => (i * 7919) % CHARACTERS),
          shape: [count, WINDOW],
        },
        targets: {
          values: Int32Array.from({ length: count * WINDOW }, (_, i) => (i * 31) % CHARACTERS),
          shape: [count, WINDOW],
        },
      }
    : {
        count,
        inputs: {
          values: Uint8Array.from({ length: count * 784 }, (_, i) => (i * 7919) % 256),
          shape: [count, 28, 28, 1],
        },
        targets: { values: Uint8Array.from({ length: count }, (_, i) => i % 10), shape: [count] },
      };
  const classCount = isText ? CHARACTERS : 10;
  return { train, validation: train, classCount, source: 'made up' };
}

/** A model on the engine that is set, as a worker computes with it. */
async function downpourStepper(name: ModelName): Promise<Stepper> {
  const prepared = prepareData(data(name), {
    ...{ seed: 1, validationFraction: 0.2, standardise: 'none' },
  });
  const experiment = {
    data: () => {
      throw new Error('not asked for');
    },
    model: (args: ModelArguments) => build(name, args),
    loss: 'softmaxCrossEntropy' as const,
  };
  const model = await buildModel(experiment, { seed: 1, hyperparameters: {} }, prepared);
  const parameters = (await model.initialise(1)).slice(0, model.layout.exchangedSize);
  const minibatch = gather(prepared, 'train', [...Array(prepared.train.count).keys()]);
  return {
    async step(index) {
      const [began, before] = [performance.now(), process.cpuUsage()];
      model.load(parameters);
      (await model.step(minibatch, index)).discard();
      const { user, system } = process.cpuUsage(before);
      return { ms: performance.now() - began, processorMs: (user + system) / 1000 };
    },
    dispose: () => model.dispose(),
  };
}

/** @throws Error: Python or PyTorch is missing. */
async function torchStepper(name: ModelName): Promise<Record<'torch-1' | 'torch-2', Stepper>> {
  const { DOWNPOUR_TORCH } = process.env;
  const program = fileURLToPath(new URL('recurrent.py', import.meta.url));
  const child = spawn('python3', [program, name], {
    env: { ...process.env, ...(DOWNPOUR_TORCH ? { PYTHONPATH: DOWNPOUR_TORCH } : {}) },
  });
  let said = '';
  child.stderr.on('data', (text) => {
    said += text;
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const stepper = (threads: number): Stepper => ({
    async step() {
      child.stdin.write(`${threads}\n`);
      const { value, done } = await lines.next();
      if (done) throw new Error(said.trim().split('\n').at(-1) || 'python3 ended');
      const [ms, processorMs] = String(value).split(' ').map(Number) as [number, number];
      return { ms, processorMs };
    },
    dispose: () => child.stdin.end(),
  });
  child.stdin.on('error', () => {});
  await stepper(1).step(0);
  return { 'torch-1': stepper(1), 'torch-2': stepper(2) };
}

async function measure(name: ModelName, engines: readonly BenchedEngine[], steps: number) {
  const opened = new Map<BenchedEngine, Stepper>();
  const set = async (engine: BenchedEngine) => {
    if (!engine.startsWith('torch')) await setBackend(engine === 'native' ? 'tensorflow' : engine);
  };
  for (const engine of engines.filter((each) => !each.startsWith('torch'))) {
    await set(engine);
    opened.set(engine, await downpourStepper(name));
  }
  if (engines.some((each) => each.startsWith('torch'))) {
    try {
      const torch = Object.entries(await torchStepper(name)) as [BenchedEngine, Stepper][];
      for (const [engine, each] of torch) if (engines.includes(engine)) opened.set(engine, each);
    } catch (error) {
      console.log(`PyTorch: ${errorText(error)}`);
    }
  }
  const took = new Map<BenchedEngine, Took[]>([...opened.keys()].map((engine) => [engine, []]));
  for (let i = 0; i < WARM_UP_STEPS + steps; i++) {
    for (const [engine, each] of opened) {
      await set(engine);
      const time = await each.step(i);
      if (i >= WARM_UP_STEPS) took.get(engine)!.push(time);
    }
  }
  for (const [engine, each] of opened) {
    await set(engine);
    each.dispose();
  }
  return [...took].map(([engine, times]) => {
    const of = (key: keyof Took) => times.map((time) => time[key]);
    return {
      ...{ model: name, engine, ms: medianOf(of('ms')), fastestMs: Math.min(...of('ms')) },
      ...{ processorMs: medianOf(of('processorMs')), leastMs: Math.min(...of('processorMs')) },
    };
  });
}

/** @param steps of each engine. Prints the tensors and the resident memory after each tenth of them. */
async function soak(name: ModelName, engine: BenchedEngine, steps: number): Promise<void> {
  await setBackend(engine === 'native' ? 'tensorflow' : engine);
  const model = await downpourStepper(name);
  for (let i = 0; i <= steps; i++) {
    if (i % Math.ceil(steps / 10) === 0) {
      const [tensors, bytes] = [tf.memory().numTensors, process.memoryUsage().rss];
      console.log(`${name} ${engine} step ${i}: ${tensors} tensors, ${formatBytes(bytes)}`);
    }
    await model.step(i);
  }
  model.dispose();
}

const { values } = parseArgs({
  options: {
    models: { type: 'string', default: MODELS.join(',') },
    engines: { type: 'string', default: ENGINES.join(',') },
    steps: { type: 'string', default: '30' },
    threads: { type: 'string' },
    soak: { type: 'string' },
  },
});
const asked = values.engines.split(',') as BenchedEngine[];
const isInstalled = readEngine(engineFolder('cpu')) !== null;
if (asked.includes('native') && !isInstalled) console.log('native: downpour engine install');
const engines = asked.filter((each) => each !== 'native' || isInstalled);
if (engines.includes('native')) {
  const { threads } = values;
  await openEngine({ engine: 'native', ...(threads ? { threads: Number(threads) } : {}) });
}
if (engines.includes('wasm')) await openWasm('').then(prove);
if (values.soak !== undefined) {
  units = 8;
  for (const name of values.models.split(',') as ModelName[]) {
    for (const engine of engines.filter((each) => !each.startsWith('torch'))) {
      await soak(name, engine, Number(values.soak));
    }
  }
  process.exit(0);
}
for (const name of values.models.split(',') as ModelName[]) {
  const rows = await measure(name, engines, Number(values.steps));
  const columns = [
    { key: 'model', title: 'model' },
    { key: 'engine', title: 'engine' },
    { key: 'ms', title: 'ms a step', digits: 1 },
    { key: 'fastestMs', title: 'fastest', digits: 1 },
    { key: 'processorMs', title: 'processor, ms', digits: 1 },
    { key: 'leastMs', title: 'least', digits: 1 },
  ];
  console.log(formatTable({ columns, rows }));
}
