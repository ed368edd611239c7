import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, expect, inject, test } from 'vitest';
import { createRestClient } from '../../shared/rest-client.ts';
import { openEngine } from '../../worker/engine.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { runWorker } from '../../worker/main.ts';
import { tf } from '../../worker/tf.ts';
import { FIXTURES } from '../support/cluster.ts';

const PROGRAM = inject('program');
const STEPS = 10_000;
/** When start-up costs (compiled code, caches, the first checkpoints) are paid. */
const SETTLED = 2_000;
/**
 * One push or pull of this model has 51 KB: one that stays behind at each of the 8,000 steps would
 * cost 400 MB. What the allocator and a collection that comes late leave lying about stays below
 * the first number (90 MB were seen on a machine busy with other things), what is alive after a
 * collection below the second: 1.2 KB a step.
 */
const GROWTH_MAX = { rss: 160e6, live: 10e6 };

setFlagsFromString('--expose-gc');
const collect: () => void = runInNewContext('gc');

let server: ChildProcess | null = null;
let folder: string | null = null;
afterEach(async () => {
  if (server && server.exitCode === null) {
    server.kill('SIGTERM');
    await once(server, 'exit');
  }
  if (folder) await rm(folder, { recursive: true, force: true });
});

test('the memory of server and worker is flat over 10,000 steps of a recurrent model', {
  timeout: 400_000,
}, async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  const args = ['serve', '--port', '0', '--state', join(folder, 'state'), '--json'];
  server = spawn(process.execPath, [PROGRAM, ...args], {
    env: { ...process.env, DOWNPOUR_REDIS_URL: '', DOWNPOUR_TOKEN: '' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let url = '';
  for await (const line of createInterface({ input: server.stdout! })) {
    url = /http:\/\/[0-9.:]+/.exec(line)?.[0] ?? '';
    if (url !== '') break;
  }
  server.stdout!.resume();
  const client = createRestClient({ server: url });
  const file = join(FIXTURES, 'recurrent-digits.ts');
  await client.createRun({
    id: 'long',
    experiment: 'recurrent-digits',
    experimentHash: await hashExperiment(file),
    config: {
      minibatchSize: 16,
      learningRate: 0.001,
      stepsMax: STEPS,
      evaluateEverySteps: 500,
      earlyStopping: { enabled: false },
      checkpoint: { everySeconds: 1 },
    },
  });

  const tensors: number[] = [];
  const samples: { worker: number; server: number; live: number }[] = [];
  const asked: Promise<void>[] = [];
  let steps = 0;
  const onProgress = () => {
    steps++;
    if (steps >= SETTLED) tensors.push(tf.memory().numTensors);
    if (steps < SETTLED || steps % 500 !== 0) return;
    collect();
    const { rss: worker, heapUsed, arrayBuffers } = process.memoryUsage();
    const ask = client.status().then(({ memoryBytes }) => {
      samples.push({ worker, server: memoryBytes.rss, live: heapUsed + arrayBuffers });
    });
    asked.push(ask);
  };
  await runWorker({
    server: url.replace('http', 'ws'),
    run: 'long',
    engine: await openEngine({ engine: 'wasm' }),
    folders: [FIXTURES],
    dataFolder: folder,
    once: true,
    signal: new AbortController().signal,
    log: () => {},
    onProgress,
  });
  await Promise.all(asked);
  const run = await client.run('long');
  expect(run).toMatchObject({ phase: 'finished', step: STEPS });
  expect(new Set(tensors).size).toBe(1);
  const third = Math.floor(samples.length / 3);
  for (const what of ['worker', 'server', 'live'] as const) {
    const early = Math.min(...samples.slice(0, third).map((sample) => sample[what]));
    const late = Math.min(...samples.slice(-third).map((sample) => sample[what]));
    const allowed = what === 'live' ? GROWTH_MAX.live : GROWTH_MAX.rss;
    expect((late - early) / 1e6, `growth, MB: ${what}`).toBeLessThan(allowed / 1e6);
  }
});
