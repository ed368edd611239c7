import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { errorCode } from '../../shared/errors.ts';
import { openEngine } from '../../worker/engine.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { until } from '../support/until.ts';

// A run that begins with the parameters of another one, which must not notice.

const DIGITS = join(FIXTURES, 'digits.ts');
let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(() => cluster.close());

const short = { stepsMax: 30, evaluateEverySteps: 10, testAtEnd: false, learningRate: 0.05 };

async function tensorsOf(run: string, kind: string): Promise<string> {
  const { body } = await fetch(`${cluster.url}/runs/${run}/checkpoints/${kind}/file`);
  const hash = createHash('sha256');
  const bytes = Buffer.from(await new Response(body).arrayBuffer());
  const header = Number(bytes.readBigUInt64LE(0));
  const tensors = JSON.parse(bytes.subarray(8, 8 + header).toString()) as Record<
    string,
    { data_offsets: [number, number] }
  >;
  for (const name of Object.keys(tensors).sort()) {
    if (name.startsWith('@') || name === '__metadata__') continue;
    const [from, to] = tensors[name]!.data_offsets;
    hash.update(name).update(bytes.subarray(8 + header + from, 8 + header + to));
  }
  return hash.digest('hex');
}

/** Every file of a run. */
async function filesOf(run: string): Promise<Record<string, string>> {
  const folder = join(cluster.state, run);
  const names = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = names.filter((entry) => entry.isFile());
  return Object.fromEntries(
    await Promise.all(
      files.map(async ({ parentPath, name }) => {
        const bytes = await readFile(join(parentPath, name));
        return [join(parentPath, name), createHash('sha256').update(bytes).digest('hex')] as const;
      }),
    ),
  );
}

async function fork(id: string, of: string, config: object, checkpoint = 'last') {
  const experimentHash = await hashExperiment(DIGITS);
  const made = { id, experiment: 'digits', experimentHash, config };
  return cluster.client.createRun({ ...made, fork: { run: of, checkpoint } });
}

test('a fork begins with the very parameters of another run, which is untouched to the bit', async () => {
  await cluster.createRun('source', DIGITS, short);
  await cluster.work('source', 'one').done;
  // A server that ends has written all there is to write.
  await cluster.stopServer();
  await cluster.serve();
  const before = { files: await filesOf('source'), run: await cluster.client.run('source') };

  const made = await fork('fork', 'source', { ...short, schedule: { kind: 'rising', steps: 30 } });
  expect(made).toMatchObject({ step: 0, phase: 'waiting' });
  expect(await tensorsOf('fork', 'last')).toBe(await tensorsOf('source', 'last'));
  await cluster.work('fork', 'two').done;
  const forked = await cluster.client.run('fork');
  expect(forked).toMatchObject({ phase: 'finished', step: 30 });
  // It went on from what the other had learnt, with rates of its own.
  const { training } = await cluster.client.metrics('fork');
  const first = (await cluster.client.metrics('source')).training;
  const mean = (of: readonly (number | null)[]) =>
    of.slice(0, 5).reduce<number>((sum, loss) => sum + loss! / 5, 0);
  expect(mean(training.minibatchLoss)).toBeLessThan(0.7 * mean(first.minibatchLoss));
  expect(training.learningRate[0]).toBeCloseTo(0.05, 6);
  expect(training.learningRate[29]! / training.learningRate[0]!).toBeCloseTo(1000 ** (29 / 30), 1);

  expect(await filesOf('source')).toEqual(before.files);
  expect(await cluster.client.run('source')).toEqual(before.run);
});

test('a live run that is forked ends as one that was not', async () => {
  const config = { ...short, stepsMax: 60, evaluateEverySteps: 60 };
  await cluster.createRun('alone', DIGITS, config);
  await cluster.work('alone', 'one').done;
  await cluster.createRun('live', DIGITS, { ...config, pauseAfter: [] });
  const worker = cluster.work('live', 'two');
  const isTraining = async () => (await cluster.client.run('live')).step > 5;
  await until('the run is under way', isTraining, { everyMs: 10 });
  await fork('branch', 'live', { ...short, stepsMax: 5 });
  await worker.done;
  expect((await cluster.client.run('branch')).step).toBe(0);
  await until('it has its final checkpoint', async () =>
    (await cluster.client.checkpoints('live')).some((c) => c.kind === 'final'),
  );
  expect(await tensorsOf('live', 'final')).toBe(await tensorsOf('alone', 'final'));
});

test('a fork outlives the server that made it, and what cannot be forked is refused', async () => {
  await fork('later', 'source', short, 'best');
  const parameters = await tensorsOf('later', 'last');
  await cluster.stopServer();
  await cluster.serve();
  expect(await tensorsOf('later', 'last')).toBe(parameters);
  await cluster.work('later', 'three').done;
  expect(await cluster.client.run('later')).toMatchObject({ phase: 'finished' });
  const code = (attempt: Promise<unknown>) => attempt.then(() => 'made', errorCode);
  expect(await code(fork('x', 'nobody', short))).toBe('DP_RUN_UNKNOWN');
  expect(await code(fork('x', 'source', short, 'step-9'))).toBe('DP_CHECKPOINT_MISSING');
  expect(await code(fork('later', 'source', short))).toBe('DP_RUN_EXISTS');
});

test('no minibatch is given out before workersMin workers have joined', async () => {
  await cluster.createRun('both', DIGITS, { ...short, workersMin: 2, stepsMax: 40 });
  const one = cluster.work('both', 'one');
  await until('the first one waits', async () =>
    (await cluster.client.workers('both')).some((w) => w.state === 'waiting'),
  );
  expect((await cluster.client.run('both')).step).toBe(0);
  const two = cluster.work('both', 'two');
  await Promise.all([one.done, two.done]);
  const workers = await cluster.client.workers('both');
  expect(workers.every(({ pushes }) => pushes.applied > 0)).toBe(true);
});
