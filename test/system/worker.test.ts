import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { runFacts } from '../../cli/output/progress.ts';
import { type Serving, serve } from '../../server/main.ts';
import type { PartialConfig } from '../../shared/config.ts';
import type { RunDetail, Status } from '../../shared/rest.ts';
import { failureText } from '../../shared/text.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { experimentName, hashExperiment } from '../../worker/experiment.ts';
import { runWorker, type WorkerOptions, type WorkerResult } from '../../worker/main.ts';
import { startProxy } from '../support/proxy.ts';
import { until } from '../support/until.ts';

/** Real workers on the cpu engine against a real server, in one process: they meet on the wire. */

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');
const FAST: PartialConfig = {
  minibatchSize: 16,
  learningRate: 0.01,
  optimizer: { kind: 'adam' },
  epochsMax: 15,
  earlyStopping: { enabled: false },
  checkpoint: { everySeconds: 0.2 },
};

let engine: Engine;
beforeAll(async () => {
  engine = await openEngine({ engine: 'cpu' });
});

let folder: string;
let server: Serving;
let stopServer: AbortController;
const lines: string[] = [];
const log = (line: string) => lines.push(line);
const workers: { stop: AbortController; done: Promise<WorkerResult> }[] = [];

async function start(port = 0): Promise<void> {
  stopServer = new AbortController();
  const state = join(folder, 'state');
  server = await serve({ host: '127.0.0.1', port, state, signal: stopServer.signal, log });
}

beforeEach(async () => {
  lines.length = 0;
  folder = await mkdtemp(join(tmpdir(), 'downpour-worker-'));
  await start();
});
afterEach(async () => {
  for (const { stop } of workers) stop.abort();
  await Promise.allSettled(workers.splice(0).map(({ done }) => done));
  stopServer.abort();
  await server.closed;
  await rm(folder, { recursive: true, force: true });
});

async function rest<T>(path: string, body?: object): Promise<T> {
  const response = await answerTo(path, body);
  const answer = (await response.json()) as T;
  if (!response.ok) throw new Error(JSON.stringify(answer));
  return answer;
}

/** Who asks as often as these tests is told to wait by a server that has little time. */
async function answerTo(path: string, body?: object): Promise<Response> {
  const response = await fetch(server.url + path, {
    ...(body
      ? {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(body),
        }
      : {}),
  });
  if (response.status !== 429) return response;
  await wait(1000 * Number(response.headers.get('retry-after')));
  return answerTo(path, body);
}

async function createRun(
  id: string,
  config: PartialConfig = FAST,
  file = join(EXAMPLES, 'csv-regression.ts'),
): Promise<void> {
  const experimentHash = await hashExperiment(file);
  await rest('/runs', { id, experiment: experimentName(file), experimentHash, config });
}

function work(name: string, options: Partial<WorkerOptions> = {}) {
  const stop = new AbortController();
  const done = runWorker({
    server: server.url.replace('http', 'ws'),
    run: 'cars',
    name,
    engine,
    folders: [EXAMPLES],
    dataFolder: folder,
    once: true,
    signal: stop.signal,
    log: (line) => log(`${name}: ${line}`),
    ...options,
  });
  // A failure is looked at where it is awaited.
  done.catch(() => {});
  workers.push({ stop, done });
  return { stop, done };
}

/** Resolves when some workers have pushed so often in all. */
function pushes(count: number) {
  let seen = 0;
  let reached: () => void;
  const promise = new Promise<void>((resolve) => {
    reached = resolve;
  });
  return {
    promise,
    onProgress: () => {
      if (++seen === count) reached();
    },
  };
}

/** 314 training examples in minibatches of 16. */
const STEPS_PER_EPOCH = 20;

describe('workers', () => {
  test('two train a run to its end, every minibatch once', async () => {
    await createRun('cars');
    const [one, two] = await Promise.all([work('one').done, work('two').done]);
    expect(one.ended).toEqual([
      { run: 'cars', phase: 'finished', reason: expect.stringContaining('epochsMax') },
    ]);
    expect(two.ended).toEqual(one.ended);
    const run = await rest<RunDetail>('/runs/cars');
    expect(run.step).toBe(15 * STEPS_PER_EPOCH);
    expect(run.examples).toBe(15 * 314);
    expect(run.best!.loss).toBeLessThan(60);
    expect(run.best!.examples).toBe(78);
  });

  test('one whose connection is lost while it loads data joins once', async () => {
    const file = join(EXAMPLES, 'csv-regression.ts');
    const { default: cars } = await import(file);
    const proxy = await startProxy(Number(new URL(server.url).port));
    const connected = () => lines.filter((line) => line.startsWith('late: connected to')).length;
    const data = async (args: object) => {
      if (connected() === 1) {
        proxy.cut();
        await vi.waitUntil(() => connected() === 2, { timeout: 120_000 });
        // The second assignment is there before the first is dealt with.
        await rest('/status');
      }
      return cars.data(args);
    };
    const hash = await hashExperiment(file);
    await createRun('cars', { ...FAST, epochsMax: 1 });
    const experiments = { [experimentName(file)]: { experiment: { ...cars, data }, hash } };
    const url = `ws://127.0.0.1:${proxy.port}`;
    await work('late', { server: url, experiments, folders: [], localSocket: false }).done;
    await proxy.close();
    expect(connected()).toBe(2);
    expect(lines.filter((line) => line.includes('DP_'))).toEqual([]);
    expect((await rest<RunDetail>('/runs/cars')).examples).toBe(314);
  });

  test('one may leave and another come, and no minibatch is lost', async () => {
    await createRun('cars');
    const some = pushes(40);
    const first = work('first', { onProgress: some.onProgress });
    await some.promise;
    first.stop.abort(new Error('Ctrl-C'));
    expect(await first.done).toEqual({ ended: [] });
    await work('second').done;
    const run = await rest<RunDetail>('/runs/cars');
    expect([run.phase, run.step]).toEqual(['finished', 15 * STEPS_PER_EPOCH]);
    expect(run.pushes.rejected).toBe(0);
  });

  test('outlive a server that is stopped and started again', async () => {
    await createRun('cars');
    const some = pushes(60);
    const worker = work('steady', { onProgress: some.onProgress });
    await some.promise;
    stopServer.abort();
    await server.closed;
    await start(Number(new URL(server.url).port));
    await worker.done;
    const run = await rest<RunDetail>('/runs/cars');
    expect([run.phase, run.step]).toEqual(['finished', 15 * STEPS_PER_EPOCH]);
    expect(lines.filter((line) => line.startsWith('steady: connected'))).toHaveLength(2);
  });

  test('end with the run when a user stops it while they push', async () => {
    await createRun('cars', { ...FAST, epochsMax: 10_000 });
    const some = pushes(30);
    const both = [work('one', { onProgress: some.onProgress }), work('two')];
    await some.promise;
    await rest('/runs/cars/stop', {});
    for (const { done } of both) {
      expect((await done).ended).toMatchObject([{ run: 'cars', phase: 'stopped' }]);
    }
  });

  test('for any run take one after the other', async () => {
    await createRun('cars');
    await createRun('more');
    const pool = work('pool', { run: null, once: false });
    // It hears of an end after those who ask.
    for (const run of ['cars', 'more']) {
      await until(`it has heard of the end of ${run}`, () =>
        lines.some((line) => line.startsWith(`pool: run ${run} finished`)),
      );
    }
    pool.stop.abort();
    expect((await pool.done).ended.map(({ run }) => run).sort()).toEqual(['cars', 'more']);
  });
});

describe('a worker whose experiment comes while it waits', () => {
  /** An experiment that fits 3 x, or as many times x as its helper says. */
  const experiment = `import { slope } from './slope.mjs';
    export default {
      data() {
        const values = Float32Array.from({ length: 64 }, (_, i) => i / 64);
        const targets = { values: values.map((x) => slope * x), shape: [64, 1] };
        return { train: { inputs: { values, shape: [64, 1] }, targets } };
      },
      model: ({ tf }) => tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape: [1] })] }),
      loss: 'meanSquaredError',
    };`;
  const slope = (n: number) => `export const slope = ${n};\n`;
  let here: string;
  let there: string;
  beforeEach(async () => {
    here = join(folder, 'here');
    there = join(folder, 'there');
    for (const each of [here, there]) await mkdir(each);
    await writeFile(join(there, 'slope.mjs'), slope(3));
    for (const name of ['first', 'second']) await writeFile(join(there, `${name}.mjs`), experiment);
  });
  const over = (run: string) =>
    vi.waitUntil(async () => (await rest<RunDetail>(`/runs/${run}`)).phase === 'finished', {
      timeout: 60_000,
    });
  const said = (text: RegExp) => vi.waitUntil(() => lines.some((line) => text.test(line)), 60_000);

  test('says by name what it misses and where it looks, and trains it when it is there', async () => {
    await createRun('new', FAST, join(there, 'first.mjs'));
    const pool = work('pool', { run: null, once: false, folders: [here] });
    await said(/pool: run new needs experiment 'first', which is in none of .*here: put its files/);
    // Another version of it is named as that. The worker looks at any moment: the helper is there first.
    await writeFile(join(here, 'slope.mjs'), slope(4));
    await cp(there, here, { recursive: true, force: false });
    await said(/pool: run new needs experiment 'first' with hash .*first\.mjs has .*: copy/);
    await writeFile(join(here, 'slope.mjs'), slope(3));
    await over('new');
    expect(lines.filter((line) => /in none of/.test(line))).toHaveLength(1);
    pool.stop.abort();
    await pool.done;
  });

  test('never trains with a file that it has loaded in another version', async () => {
    await cp(there, here, { recursive: true });
    await createRun('before', FAST, join(there, 'first.mjs'));
    const pool = work('pool', { run: null, once: false, folders: [here] });
    await over('before');
    for (const each of [here, there]) await writeFile(join(each, 'slope.mjs'), slope(5));
    // It has the helper of the first one in its memory.
    await createRun('after', FAST, join(there, 'second.mjs'));
    await said(/pool: .*slope\.mjs has changed since this worker loaded it: restart the worker/);
    expect(await rest<RunDetail>('/runs/after')).toMatchObject({ step: 0 });
    pool.stop.abort();
    await pool.done;
  });
});

describe('a worker that cannot take part', () => {
  test('says that its experiment differs from the run', async () => {
    await createRun('cars');
    await writeFile(join(folder, 'csv-regression.mjs'), PLAIN);
    await expect(work('other', { folders: [folder] }).done).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_MISMATCH',
    });
  });

  test('says that it lacks the experiment, or that there is no such run', async () => {
    await createRun('cars');
    await expect(work('poor', { folders: [folder] }).done).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_UNKNOWN',
    });
    await expect(work('lost', { run: 'nothing' }).done).rejects.toMatchObject({
      code: 'DP_RUN_UNKNOWN',
    });
  });

  test('tells the server why', async () => {
    const file = join(folder, 'broken.mjs');
    await writeFile(file, PLAIN);
    await createRun('cars', FAST, file);
    await expect(work('unlucky', { folders: [folder] }).done).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: "data() of experiment 'broken' failed: the disk is gone",
    });
    expect(lines).toContainEqual(expect.stringMatching(/unlucky cannot take part .*disk is gone/));
  });

  test('goes on with other runs when it is for any', async () => {
    const file = join(folder, 'broken.mjs');
    await writeFile(file, PLAIN);
    await createRun('bad', FAST, file);
    await createRun('cars');
    const pool = work('pool', { run: null, once: false, folders: [folder, EXAMPLES] });
    await until('the other run is finished', async () => {
      return (await rest<RunDetail>('/runs/cars')).phase === 'finished';
    });
    pool.stop.abort();
    await pool.done;
    expect(lines).toContainEqual(expect.stringMatching(/pool: run bad is not for this worker/));
  });
});

describe('a worker that fails at its work', () => {
  const failing = (when: string) => `
let calls = 0;
const values = Float32Array.from({ length: 64 }, (_, i) => i / 64);
const part = {
  count: 64,
  inputs: { values, shape: [64, 1] },
  targets: { values, shape: [64, 1] },
};
export default {
  data: () => ({ train: part, validation: part, source: 'numbers' }),
  model: ({ tf, inputShape }) =>
    tf.sequential({ layers: [tf.layers.dense({ inputShape, units: 1 })] }),
  loss: 'meanSquaredError',
  metrics: {
    largest: (_targets, predictions) => {
      if (${when === 'an evaluation'} && predictions.shape[0] === 64) {
        throw new Error('the shelf fell down');
      }
      return predictions.max(1);
    },
  },
  batch: (fields) => {
    if (${when === 'a step'} && ++calls > 3) throw new Error('the shelf fell down');
    return fields;
  },
};
`;

  const cases: [when: string, said: [code: string, message: string]][] = [
    ['a step', ['DP_EXPERIMENT_INVALID', 'batch() of the experiment failed: the shelf fell down']],
    [
      'an evaluation',
      [
        'DP_INTERNAL',
        'the shelf fell down: the code of the experiment or the engine failed; the log of this worker says where',
      ],
    ],
  ];

  test.for(cases)('in %s has its run say why', async ([when, said]) => {
    const file = join(folder, 'failing.mjs');
    await writeFile(file, failing(when));
    await createRun('cars', { ...FAST, evaluateEverySteps: 2 }, file);
    for (const name of ['first', 'second']) {
      await expect(work(name, { folders: [folder] }).done).rejects.toThrow('the shelf fell down');
    }
    const run = await until('the server knows of the second', async () => {
      const found = await rest<RunDetail>('/runs/cars');
      return found.workers === 0 && found.workerFailure?.worker === 'second' ? found : null;
    });
    expect(run.phase).toBe('training');
    const { message, step, code, count } = run.workerFailure!;
    expect([code, message, step]).toEqual([...said, run.step]);
    expect(count).toBeGreaterThan(0);
    const { alerts } = await rest<Status>('/status');
    expect(alerts).toContainEqual(
      expect.objectContaining({
        severity: 'critical',
        text: `cars: ${failureText(run.workerFailure!)}`,
      }),
    );
    expect(runFacts(run).join('\n')).toContain(failureText(run.workerFailure!));
  });
});

const PLAIN = `export default {
  data() { throw new Error('the disk is gone'); },
  model() {},
  loss: 'meanSquaredError',
};
`;
