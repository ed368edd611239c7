import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect } from 'vitest';
import { VECTORS } from '../../cli/docs/vectors.ts';
import { checkPushLog } from '../../server/watch/push-log.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { rawFingerprint } from '../../worker/data/fingerprint.ts';
import { loadMnist, MNIST_FILES } from '../../worker/data/mnist.ts';
import { openEngine } from '../../worker/engine.ts';
import { sharedData } from '../data-folder.ts';
import { Cluster } from '../support/cluster.ts';
import { startProxy } from '../support/proxy.ts';
import { isLacking, python, pythonEnvironment, pythonTest } from '../support/python.ts';
import { until } from '../support/until.ts';

/** The worker in examples/python: whether docs/protocol.md suffices to write one. */

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');
const FILE = join(EXAMPLES, 'mnist-mlp.ts');
const NEEDED = ['numpy', 'msgpack', 'websockets'] as const;
const it = pythonTest(NEEDED);

// The folder of a checkout may not be written to.
const ENV = { PYTHONDONTWRITEBYTECODE: '1', OPENBLAS_NUM_THREADS: '1', PYTHONUNBUFFERED: '1' };

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-python-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Vectors {
  readonly [list: string]: unknown;
}

describe('test vectors', () => {
  const check = (file: string) =>
    python([join(EXAMPLES, 'python/check_vectors.py'), file], ENV).then(
      ({ stdout, stderr }) =>
        JSON.parse(stdout || JSON.stringify({ wrong: [stderr] })) as {
          compared: Record<string, number>;
          wrong: string[];
        },
    );
  const all = JSON.parse(readFileSync(VECTORS, 'utf8')) as Vectors;
  const lists = Object.keys(all).filter((name) => Array.isArray(all[name]) && name !== 'tensors');

  it('the Python worker computes all of them as they are written', async () => {
    const { compared, wrong } = await check(VECTORS.pathname);
    expect(wrong).toEqual([]);
    // Every list is looked at.
    expect(Object.keys(compared).sort()).toEqual([...lists].sort());
  });

  it('a vector of each list that is another would be noticed', async () => {
    const other = structuredClone(all) as Record<string, Record<string, unknown>[]>;
    const change: Record<string, (first: never) => void> = {
      mix: (first: { mixed: number }) => first.mixed++,
      random: (first: { bits: number[] }) => first.bits[5]!++,
      orders: (first: { examples: number[] }) => first.examples.reverse(),
      leases: (first: { rows: object[] }) => first.rows.reverse(),
      splits: (first: { validation: number[] }) => first.validation[0]!++,
      digests: (first: { digest: string }) => {
        first.digest = '0'.repeat(32);
      },
      data: (first: { summary: { fingerprint: string } }) => {
        first.summary.fingerprint = `2:${'0'.repeat(32)}`;
      },
      experimentHashes: (first: { hash: string }) => {
        first.hash = '0'.repeat(64);
      },
      partitions: (first: { ranges: number[][] }) => first.ranges[0]![1]!++,
      losses: (first: { error: number }) => {
        first.error += 0.25;
      },
      // By little more than what is allowed.
      gradients: (first: { pushes: { gradient: number[] }[] }) => {
        first.pushes[0]!.gradient[7]! += 2e-5;
      },
      errors: (first: { connectAgain: boolean }) => {
        first.connectAgain = !first.connectAgain;
      },
      tables: (first: { width: number }) => first.width++,
      rowShards: (first: { owners: number[] }) => first.owners[0]!++,
      vectors: (first: { header: { worker: string } }) => {
        first.header.worker = 'w-2';
      },
    };
    expect(Object.keys(change).sort()).toEqual([...lists].sort());
    for (const [list, alter] of Object.entries(change)) alter(other[list]![0] as never);
    const file = join(folder, 'other-vectors.json');
    writeFileSync(file, JSON.stringify(other));
    const { wrong } = await check(file);
    const noticed = new Set(wrong.map((line) => line.slice(0, line.indexOf(':'))));
    expect([...noticed].sort()).toEqual([...lists].sort());
  });
});

it('reads the same digits as workers on Node, where there is no MNIST too', async () => {
  const source = `
import json, sys
sys.path.insert(0, sys.argv[1])
import digits, protocol
config = dict(seed=1, splitSeed=None, validationFraction=0.2, trainFraction=1, bootstrap=False)
config["validation"] = dict(folds=None)
given, source = digits.load()
print(json.dumps(protocol.Data(config, given, 10, "none").summary["rawFingerprint"]))`;
  const env = { ...ENV, DOWNPOUR_DATA: folder };
  const { status, stdout, stderr } = await python(['-c', source, join(EXAMPLES, 'python')], env);
  expect(status, stderr).toBe(0);
  expect(JSON.parse(stdout)).toBe(rawFingerprint(await loadMnist({ dataFolder: folder })));
});

interface PythonWorker {
  readonly child: ChildProcess;
  /** Its exit code, or the signal that ended it. */
  readonly end: Promise<number | NodeJS.Signals>;
  log(): string;
}

describe('in a run', () => {
  let cluster: Cluster;
  const workers = new Set<PythonWorker>();
  beforeAll(async () => {
    if (isLacking(NEEDED)) return;
    const pushLog = join(folder, 'pushes');
    cluster = await Cluster.start(await openEngine({ engine: 'wasm' }), { pushLog });
  });
  afterEach(async () => {
    for (const { child } of workers) child.kill('SIGKILL');
    await Promise.all([...workers].map(({ end }) => end));
  });
  afterAll(() => cluster?.close());

  function work(run: string, name: string, data: string, url = cluster.url): PythonWorker {
    const args = ['--server', url.replace('http', 'ws'), '--run', run, '--name', name];
    const child = spawn('python3', [join(EXAMPLES, 'python/worker.py'), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...pythonEnvironment(), ...ENV, DOWNPOUR_DATA: data },
      cwd: folder,
    });
    let text = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (piece) => {
        text += piece;
      });
    }
    const end = new Promise<number | NodeJS.Signals>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) => {
        workers.delete(worker);
        resolve(code ?? signal!);
      });
    });
    const worker = { child, end, log: () => text };
    workers.add(worker);
    return worker;
  }

  it('as the only worker it trains the MLP on MNIST', { timeout: 900_000 }, async () => {
    const shared = sharedData();
    // All of MNIST gives 2.4 %, the 6,400 training digits of the npm package 6.0 %.
    const [epochsMax, errorMax] = shared ? [3, 0.03] : [8, 0.07];
    await cluster.createRun('alone', FILE, {
      ...{ epochsMax, minibatchSize: 128, learningRate: 0.002, optimizer: { kind: 'adam' } },
      averaging: { kind: 'ema', decay: 0.99 },
      evaluateTraining: 1000,
    });
    const worker = work('alone', 'numpy', shared ?? folder);
    expect(await worker.end, worker.log()).toBe(0);
    const run = await cluster.client.run('alone');
    expect(run).toMatchObject({ phase: 'finished', stepsLost: 0, workers: 0 });
    expect(run.pushes.rejected).toBe(0);
    expect(run.examples).toBe(epochsMax * run.data!.trainCount);
    expect(run.test!.error).toBeLessThan(errorMax);
    expect(run.validation!.metrics.trainingError).toBeLessThan(run.validation!.error!);
  });

  /** A few hundred digits as the four files of MNIST. @returns their folder. */
  async function fewDigits(): Promise<string> {
    const place = join(folder, 'few');
    mkdirSync(place, { recursive: true });
    const { train, test } = await loadMnist({ dataFolder: sharedData() ?? folder });
    const idx = (values: Uint8Array, shape: readonly number[]) => {
      const bytes = Buffer.alloc(4 + 4 * shape.length);
      bytes.set([0, 0, 8, shape.length]);
      for (const [i, size] of shape.entries()) bytes.writeUInt32BE(size, 4 + 4 * i);
      return Buffer.concat([bytes, values]);
    };
    for (const [part, count, images, labels] of [
      [train, FEW, MNIST_FILES.trainImages, MNIST_FILES.trainLabels],
      [test!, 200, MNIST_FILES.testImages, MNIST_FILES.testLabels],
    ] as const) {
      const [inputs, targets] = [part.inputs.values, part.targets.values] as Uint8Array[];
      const pixels = inputs!.subarray(0, 784 * count);
      writeFileSync(join(place, images), idx(pixels, [count, 28, 28]));
      writeFileSync(join(place, labels), idx(targets!.subarray(0, count), [count]));
    }
    return place;
  }
  const FEW = 800;
  const SMALL = {
    ...{ minibatchSize: 16, hyperparameters: { units: 32 }, earlyStopping: { enabled: false } },
    ...{ averaging: { kind: 'none' }, schedule: { kind: 'constant' }, leaseSeconds: 20 },
  } as const satisfies PartialConfig;
  const TRAINED = 0.8 * FEW;
  const PER_EPOCH = TRAINED / SMALL.minibatchSize;

  const appliedBy = async (run: string, name: string) =>
    (await cluster.client.workers(run))
      .filter(({ worker }) => worker === name)
      .reduce((sum, { pushes }) => sum + pushes.applied + pushes.damped, 0);

  async function mustBeWhole(run: string, epochsMax: number): Promise<void> {
    const { phase, step, examples, pushes } = await cluster.client.run(run);
    expect({ phase, step, examples }).toEqual({
      ...{ phase: 'finished', step: epochsMax * PER_EPOCH, examples: epochsMax * TRAINED },
    });
    expect(pushes.applied + pushes.damped).toBe(step);
    const report = checkPushLog(await readFile(join(folder, 'pushes'), 'utf8'));
    expect([report.twice, report.steps]).toEqual([[], []]);
  }

  it('beside Node, killed in the midst: each example counts once an epoch', async () => {
    const epochsMax = 20;
    const data = await fewDigits();
    // Neither may be far ahead: each has a share, whichever the machine holds up.
    const consistency = { mode: 'bounded', aheadMax: 2 } as const;
    await cluster.createRun('shared', FILE, { ...SMALL, epochsMax, consistency });
    // It is the first: its parameters, layout and fingerprints bind the worker on Node.
    const numpy = work('shared', 'numpy', data);
    await expect.poll(() => appliedBy('shared', 'numpy'), LONG).toBeGreaterThan(10);
    const node = cluster.work('shared', 'node', { folders: [EXAMPLES], dataFolder: data });
    await expect.poll(() => appliedBy('shared', 'node'), LONG).toBeGreaterThan(3);
    const before = await appliedBy('shared', 'numpy');
    await expect.poll(() => appliedBy('shared', 'numpy'), LONG).toBeGreaterThan(before);
    expect((await cluster.client.run('shared')).phase).toBe('training');
    numpy.child.kill('SIGKILL');
    expect(await numpy.end).toBe('SIGKILL');
    await node.done;
    await mustBeWhole('shared', epochsMax);
    const { data: found } = await cluster.client.run('shared');
    expect(found).toMatchObject({ trainCount: TRAINED, validationCount: FEW / 5, testCount: 200 });
  });

  it('joins a run that Node began, finds its server again, and goes in good order on Ctrl-C', async () => {
    const epochsMax = 20;
    const data = await fewDigits();
    await cluster.createRun('second', FILE, { ...SMALL, epochsMax });
    const node = cluster.work('second', 'node', { folders: [EXAMPLES], dataFolder: data });
    await expect.poll(() => appliedBy('second', 'node'), LONG).toBeGreaterThan(0);
    node.stop.abort();
    await node.done;
    const numpy = work('second', 'numpy', data);
    await expect.poll(() => appliedBy('second', 'numpy'), LONG).toBeGreaterThan(3);
    const port = Number(new URL(cluster.url).port);
    await cluster.stopServer();
    await cluster.serve(port);
    await until(
      'it has found its server again',
      async () => (await appliedBy('second', 'numpy')) > 0,
      {
        withinMs: LONG.timeout,
        logs: numpy.log,
      },
    );
    numpy.child.kill('SIGINT');
    expect(await numpy.end, numpy.log()).toBe(0);
    await expect.poll(() => cluster.client.workers('second'), LONG).toEqual([]);
    expect((await cluster.client.run('second')).phase).toBe('training');
    // Another process under the same name goes on where it left, and ends with the run.
    const next = work('second', 'numpy', data);
    expect(await next.end, next.log()).toBe(0);
    await mustBeWhole('second', epochsMax);
    expect((await cluster.client.run('second')).stepsLost).toBe(0);
  });

  it('over a network that is cut again and again: each example counts once', async () => {
    const epochsMax = 12;
    const data = await fewDigits();
    // Parameters in bf16, and more leases than it has pushes under way.
    const more = { compression: { pull: 'bf16' }, consistency: { depth: 2 } } as const;
    await cluster.createRun('cut', FILE, { ...SMALL, ...more, epochsMax });
    const proxy = await startProxy(Number(new URL(cluster.url).port));
    try {
      const numpy = work('cut', 'numpy', data, `http://127.0.0.1:${proxy.port}`);
      for (let cuts = 0; cuts < 6; cuts++) {
        const before = await appliedBy('cut', 'numpy');
        await expect.poll(() => appliedBy('cut', 'numpy'), LONG).toBeGreaterThan(before);
        proxy.cut();
      }
      expect(await numpy.end, numpy.log()).toBe(0);
      expect(numpy.log().match(/no connection/g)!.length).toBeGreaterThan(3);
    } finally {
      await proxy.close();
    }
    await mustBeWhole('cut', epochsMax);
  });

  it('a server that hangs up while it connects is asked again', async () => {
    // As one that ends does with connections that it has not answered.
    const ending = createServer((socket) => socket.once('data', () => socket.end()));
    ending.listen(0, '127.0.0.1');
    await once(ending, 'listening');
    try {
      const { port } = ending.address() as AddressInfo;
      const worker = work('any', 'numpy', folder, `http://127.0.0.1:${port}`);
      await expect.poll(worker.log, LONG).toMatch(/no connection.*no connection/s);
      worker.child.kill('SIGINT');
      expect(await worker.end, worker.log()).toBe(0);
    } finally {
      ending.close();
    }
  });

  it('a run that it cannot compute is refused, and says why', async () => {
    const data = await fewDigits();
    await cluster.createRun('deep', FILE, { hyperparameters: { layers: 3 } });
    const worker = work('deep', 'numpy', data);
    expect(await worker.end).toBe(1);
    expect(worker.log()).toContain("does not know the hyperparameters ['layers']");
    const { client } = cluster;
    await client.createRun({
      ...{ id: 'other', experiment: 'mnist-mlp', experimentHash: '0'.repeat(64), config: {} },
    });
    const other = work('other', 'numpy', data);
    expect(await other.end).toBe(1);
    expect(other.log()).toContain('DP_EXPERIMENT_MISMATCH');
    expect(other.log()).toContain("the run's has 000000000000");
  });
});

/** What comes sooner is not waited for. */
const LONG = { timeout: 120_000, interval: 50 };
