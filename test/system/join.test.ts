import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type JoinPageBundle, makeJoinBundle } from '../../cli/bundles/join.ts';
import { readJoinFile } from '../../server/http/join.ts';
import { checkPushLog } from '../../server/watch/push-log.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { unpackData } from '../../worker/data/packed.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { findBrowser } from '../support/browser.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import {
  accessibilityProblems,
  type Browser,
  type BrowserContext,
  launch,
  type Page,
  picture,
  problemsOf,
} from '../support/dashboard.ts';
import { startServerProcess } from '../support/server-process.ts';

/** Workers in a real browser: what they train is compared with what Node makes of the same. */

const DIGITS = join(FIXTURES, 'few-digits.ts');
const TOKENS = { token: 'the-operator', workerToken: 'a-worker', observerToken: 'an-observer' };
/** 1000 digits, of which 200 are for validation: 25 minibatches of 32 an epoch. */
const STEPS_PER_EPOCH = 25;
const CONFIG: PartialConfig = { minibatchSize: 32, learningRate: 0.1, seed: 3 };

/** Its data can be read in Node alone. */
const FROM_DISK = `
  import { readFileSync } from 'node:fs';
  import { join } from 'path';
  export default {
    browser: true,
    data: ({ folder }: { folder: string }) => {
      const values = Float32Array.from(readFileSync(join(folder, 'xs')));
      const column = { values, shape: [values.length, 1] };
      return { train: { count: values.length, inputs: column, targets: column }, source: 'xs' };
    },
    model: () => { throw new Error('nobody builds it'); },
    loss: 'meanSquaredError',
  };`;

/** Ids, numbers that are centred and sequences that are padded; a quantity and classes. */
const HOUSES = `
  const count = 96;
  const wave = (i: number) => Math.sin(1 + i * i);
  const made = <T extends { from(of: { length: number }, at: (_: unknown, i: number) => number): unknown }>(type: T, size: number, at: (i: number) => number) =>
    ({ values: type.from({ length: count * size }, (_, i) => at(i)), shape: size === 1 ? [count] : [count, size] });
  export default {
    browser: true,
    data: () => ({
      train: {
        inputs: {
          town: { ...made(Int32Array, 1, (i) => (i * 7) % 5), shape: [count, 1] },
          area: made(Float64Array, 2, (i) => 1e9 + 50 * wave(i)),
          waves: { values: Array.from({ length: count }, (_, i) => [wave(i), wave(2 * i), 1].slice(0, 1 + (i % 3))), pad: 0 },
        },
        targets: {
          price: { ...made(Float32Array, 1, (i) => wave(3 * i)), shape: [count, 1] },
          large: { ...made(Int32Array, 1, (i) => (wave(3 * i) > 0 ? 1 : 0)), classes: ['small', 'large'] },
        },
      },
      source: 'houses',
    }),
    standardise: { area: 'feature' },
    model: ({ tf }: { tf: any }) => {
      const town = tf.input({ shape: [1], name: 'town', dtype: 'int32' });
      const area = tf.input({ shape: [2], name: 'area' });
      const waves = tf.input({ shape: [3], name: 'waves' });
      const mask = tf.input({ shape: [3], name: 'waves_mask' });
      const place = tf.layers.flatten().apply(tf.layers.embedding({ inputDim: 5, outputDim: 3 }).apply(town));
      const kept = tf.layers.multiply().apply([waves, mask]);
      const all = tf.layers.concatenate().apply([place, area, kept]);
      const hidden = tf.layers.dense({ units: 8, activation: 'tanh' }).apply(all);
      const price = tf.layers.dense({ units: 1, name: 'price' }).apply(hidden);
      const large = tf.layers.dense({ units: 2, name: 'large' }).apply(hidden);
      return tf.model({ inputs: [town, area, waves, mask], outputs: [price, large] });
    },
    loss: { price: 'meanSquaredError', large: 'softmaxCrossEntropy' },
  };`;

/** Bags of words and a user, whose rows are in tables: one of known size, and one that grows. */
const BAGS = `
  import { layers } from 'downpour/layers';
  const count = 96;
  const ids = (size: number, at: (i: number) => number) => Int32Array.from({ length: count * size }, (_, i) => at(i));
  export default {
    browser: true,
    data: () => ({
      train: {
        inputs: {
          words: { values: ids(4, (i) => (i * i * 7) % 40), shape: [count, 4], vocabulary: Array.from({ length: 40 }, (_, i) => 'w' + i) },
          user: { values: ids(1, (i) => 1e6 * ((i * 5) % 12)), shape: [count] },
        },
        targets: { values: Float32Array.from({ length: count }, (_, i) => Math.sin(i)), shape: [count, 1] },
      },
      source: 'bags',
    }),
    model: ({ tf }: { tf: any }) => {
      const words = tf.input({ shape: [4], name: 'words', dtype: 'int32' });
      const user = tf.input({ shape: [], name: 'user', dtype: 'int32' });
      const bag = layers.rows({ table: 'word', combine: 'mean', maskZero: true }).apply(words);
      const both = tf.layers.concatenate().apply([bag, layers.rows({ table: 'user' }).apply(user)]);
      return tf.model({ inputs: [words, user], outputs: tf.layers.dense({ units: 1 }).apply(both) });
    },
    loss: 'meanSquaredError',
  };`;

const skipped = findBrowser() === null && !process.env.CI;
let folder: string;
let bundle: JoinPageBundle;
const said: string[] = [];
let engine: Engine;
let cluster: Cluster;
let browser: Browser;
let context: BrowserContext;
/** It offers WebGPU, by a program on the processor. */
let adapter: boolean;
const problems: string[] = [];

beforeAll(async () => {
  if (skipped) return;
  folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  engine = await openEngine({ engine: 'wasm' });
  const own = join(folder, 'experiments');
  await mkdir(own);
  await writeFile(join(own, 'from-disk.ts'), FROM_DISK);
  await writeFile(join(own, 'houses.ts'), HOUSES);
  await writeFile(join(own, 'bags.ts'), BAGS);
  await writeFile(join(own, 'not-asked.ts'), FROM_DISK.replace('browser: true', 'browser: false'));
  await writeFile(join(own, 'broken.ts'), "throw new Error('no such module');\nexport default {};");
  await writeFile(join(folder, 'xs'), 'abcdefgh');
  bundle = await makeJoinBundle([DIGITS, own], folder, (line) => said.push(line));
  const pushLog = join(folder, 'pushes');
  cluster = await Cluster.start(engine, { ...TOKENS, join: bundle.files, pushLog });
  browser = await launch(['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader']);
  context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  await page.goto(`${cluster.url}/join`);
  adapter = await page.evaluate(async () => {
    const { gpu } = navigator as unknown as { gpu?: { requestAdapter(): Promise<unknown> } };
    return gpu !== undefined && (await gpu.requestAdapter()) !== null;
  });
  await page.close();
});
afterEach(async () => {
  for (const page of context?.pages() ?? []) await page.close();
  for (const { id, phase } of (await cluster?.client.runs()) ?? []) {
    if (!['finished', 'stopped', 'failed'].includes(phase)) await stopRun(id);
  }
});
afterAll(async () => {
  if (skipped) return;
  await browser?.close();
  await cluster?.close();
  await bundle?.dispose();
  await rm(folder, { recursive: true, force: true });
});

/** Opens the page in a tab of its own; it is logged in after the first time. */
async function open(query = ''): Promise<Page> {
  const page = await context.newPage();
  const own = problemsOf(page);
  page.on('close', () => problems.push(...own));
  await page.goto(`${cluster.url}/join${query}`);
  return page;
}

const tile = (page: Page, label: string) =>
  page.locator('.tile', { has: page.locator('dt', { hasText: new RegExp(`^${label}$`) }) });
const stateOf = (page: Page) => page.locator('.join-status .badge');
const lineOf = (page: Page, text: string | RegExp) =>
  page.locator('.join-log li', { hasText: text });

const create = (id: string, config: PartialConfig = {}) =>
  cluster.createRun(id, DIGITS, { ...CONFIG, ...config });
/** With its checkpoint, for which a server that has just started loads what writes it. */
const stopRun = (id: string) =>
  createRestClient({ server: cluster.url, token: TOKENS.token, timeoutMs: 120_000 }).stop(id);
const finished = (id: string) =>
  expect
    .poll(async () => (await cluster.client.run(id)).phase, { timeout: 120_000 })
    .toBe('finished');
/** Applied ones of workers in pages, also of those that have gone. */
async function pushesFromPages(id: string): Promise<number> {
  const text = await readFile(join(folder, 'pushes'), 'utf8').catch(() => '');
  return text.split('\n').filter((line) => {
    const [kind, , run, , worker = ''] = line.split(' ');
    return kind === 'push' && run === id && worker.startsWith('browser-');
  }).length;
}

describe.skipIf(skipped)('a worker in a browser', () => {
  test('asks for a worker’s token and sends nobody else the experiments', async () => {
    const files = `${cluster.url}/join/files/worker.js`;
    expect((await fetch(files)).status).toBe(401);
    const page = await open();
    await page.waitForSelector('form.login');
    const logIn = async (token: string) => {
      await page.getByLabel('Token').fill(token);
      await page.getByRole('button', { name: 'Log in' }).click();
    };
    await logIn(TOKENS.observerToken);
    await page.getByText('this takes an operator').waitFor();
    await logIn(TOKENS.workerToken);
    await page.getByRole('heading', { name: 'Train in this browser' }).waitFor();
    expect(page.url()).not.toContain(TOKENS.workerToken);
    const asked = (path: string) => page.evaluate(async (p) => (await fetch(p)).status, path);
    expect(await asked('/join/files/worker.js')).toBe(200);
    expect(await asked('/join/files/..%2Fpackage.json')).toBe(404);
    // With a worker's login one reads nothing.
    expect(await asked('/runs')).toBe(403);
    await page.goto(cluster.url);
    await page.waitForSelector('form.login');
  });

  test('says why it computes with what it does, and waits for a run', async () => {
    const page = await open();
    await lineOf(page, 'no run for this worker now').waitFor();
    expect(await tile(page, 'Engine').textContent()).toContain('Wasm');
    const why = adapter
      ? /webgpu: the only adapter is software \(.*swiftshader.*\)/
      : 'webgpu: the browser finds no GPU';
    await page.locator('.join-notes li', { hasText: why }).waitFor();
    await expect.poll(() => stateOf(page).textContent()).toBe('waiting');
    await page.getByRole('button', { name: 'Stop' }).click();
    await lineOf(page, 'stopped').waitFor();
    await expect
      .poll(async () =>
        (await cluster.client.status()).workers.every(({ state }) => state === 'gone'),
      )
      .toBe(true);
  });

  const own = (name: string) => () => join(folder, 'experiments', name);
  test.for<[what: string, file: () => string, more?: PartialConfig]>([
    ['pictures', () => DIGITS],
    ['fields by name', own('houses.ts')],
    [
      'rows of tables',
      own('bags.ts'),
      { tables: { word: { rows: 40, width: 3 }, user: { rows: 'hash', width: 2 } } },
    ],
  ])(
    'computes what WebAssembly computes in Node, to the last evaluation: %s',
    async ([what, file, more]) => {
      const endless = { evaluateEverySteps: 15, earlyStopping: { enabled: false } };
      const config: PartialConfig = { epochsMax: 3, ...endless, ...more };
      const ids = ['node', 'page'].map((where) => `in-${where}-${what.split(' ')[0]}`);
      const [inNode, inPage] = ids as [string, string];
      await cluster.createRun(inNode, file(), { ...CONFIG, ...config });
      await cluster.work(inNode, 'node', { folders: [FIXTURES, join(folder, 'experiments')] }).done;
      await cluster.createRun(inPage, file(), { ...CONFIG, ...config });
      await open('?engine=wasm');
      await finished(inPage);
      const [node, there] = await Promise.all(ids.map((id) => cluster.client.metrics(id)));
      expect(there!.training.step).toEqual(node!.training.step);
      // The same instructions in the same order; only logarithms and exponentials are each engine's own.
      for (const [i, loss] of there!.training.loss.entries()) {
        expect(Math.abs(loss! - node!.training.loss[i]!)).toBeLessThan(1e-5);
      }
      expect(there!.evaluations).toHaveLength(node!.evaluations.length);
      for (const [i, { loss, error, part }] of there!.evaluations.entries()) {
        const other = node!.evaluations[i]!;
        expect([part, error]).toEqual([other.part, other.error]);
        expect(Math.abs(loss! - other.loss!)).toBeLessThan(1e-5);
      }
      const [a, b] = await Promise.all(ids.map((id) => cluster.client.run(id)));
      expect(b!.data!.fingerprint).toBe(a!.data!.fingerprint);
    },
  );

  test('trains beside Node; its tab is closed in the midst, and each example counts once an epoch', async () => {
    const epochsMax = 24;
    await create('shared', { epochsMax, earlyStopping: { enabled: false }, leaseSeconds: 20 });
    const page = await open();
    await expect.poll(() => pushesFromPages('shared'), { timeout: 60_000 }).toBeGreaterThan(20);
    const alone = await pushesFromPages('shared');
    const { done } = cluster.work('shared', 'node');
    // Until both have had a share.
    const byBoth = async () => {
      const byPage = await pushesFromPages('shared');
      const byNode = (await cluster.client.run('shared')).step - byPage;
      return byPage > alone && byNode > 0;
    };
    await expect.poll(byBoth, { timeout: 60_000 }).toBe(true);
    await page.close();
    const seen = await pushesFromPages('shared');
    await done;
    const run = await cluster.client.run('shared');
    expect(run).toMatchObject({ phase: 'finished', step: epochsMax * STEPS_PER_EPOCH });
    expect(run.examples).toBe(epochsMax * 800);
    expect(run.pushes.applied + run.pushes.damped).toBe(epochsMax * STEPS_PER_EPOCH);
    const report = checkPushLog(await readFile(join(folder, 'pushes'), 'utf8'));
    expect([report.twice, report.steps]).toEqual([[], []]);
    // One may have been on its way.
    expect((await pushesFromPages('shared')) - seen).toBeLessThanOrEqual(1);
    expect(seen).toBeLessThan(epochsMax * STEPS_PER_EPOCH);
    await create('alone', { epochsMax, earlyStopping: { enabled: false } });
    await cluster.work('alone', 'node').done;
    // 0.14 either way; a standard deviation of 1000 answers is 0.011.
    const { test: node } = await cluster.client.run('alone');
    expect(Math.abs(run.test!.error! - node!.error!)).toBeLessThan(0.03);
  });

  test('shows what it does, and hands its leases back at once when it is told to stop', async () => {
    await create('endless', { epochsMax: 100_000, earlyStopping: { patience: 10_000 } });
    const page = await open();
    await expect.poll(() => pushesFromPages('endless')).toBeGreaterThan(3);
    const value = (label: string) => tile(page, label).locator('.tile-value').textContent();
    await expect.poll(() => value('Run')).toBe('endless');
    await expect.poll(async () => Number(await value('Step'))).toBeGreaterThan(3);
    for (const label of ['Minibatches / s', 'Loss', 'Staleness']) {
      await expect.poll(() => value(label), { message: label }).toMatch(/^\d/);
    }
    await expect.poll(() => stateOf(page).textContent()).toBe('training');
    await picture(page, 'join');
    await page.getByRole('button', { name: 'Stop' }).click();
    await lineOf(page, 'stopped; its leases are handed back').waitFor();
    await expect.poll(() => cluster.client.workers('endless')).toEqual([]);
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme });
      expect(await accessibilityProblems(page), colorScheme).toEqual([]);
    }
    await page.getByRole('button', { name: 'Start' }).click();
    await expect.poll(() => stateOf(page).textContent()).toBe('training');
    // A server that comes back is asked for another ticket, by the same login.
    const { port } = new URL(cluster.url);
    await cluster.stopServer();
    const before = await pushesFromPages('endless');
    await cluster.serve(Number(port));
    await expect
      .poll(() => pushesFromPages('endless'), { timeout: 60_000 })
      .toBeGreaterThan(before);
    await stopRun('endless');
    await lineOf(page, 'run endless stopped').waitFor();
  });

  test('refuses a run whose data would be others, and leaves it to Node', async () => {
    await create('fewer', { epochsMax: 1, hyperparameters: { count: 100 } });
    const page = await open();
    await lineOf(
      page,
      /DP_DATA_MISMATCH .*made for pages with hyperparameters.count null, the run has 100/,
    ).waitFor();
    await page.close();
    await cluster.work('fewer', 'node').done;
    expect((await cluster.client.run('fewer')).phase).toBe('finished');
    expect(await pushesFromPages('fewer')).toBe(0);
  });

  test('trains by WebGPU, on an adapter that is a program when told to', async ({ skip }) => {
    skip(!adapter && !process.env.CI, 'this browser has no adapter for WebGPU');
    const config = { stepsMax: 6, evaluateEverySteps: 6, testAtEnd: false };
    await create('node-six', config);
    await cluster.work('node-six', 'node').done;
    await create('gpu-six', config);
    const page = await open('?engine=webgpu&software-gpu=1');
    await finished('gpu-six');
    expect(await tile(page, 'Engine').textContent()).toContain('WebGPU');
    const [node, gpu] = await Promise.all(
      ['node-six', 'gpu-six'].map((id) => cluster.client.metrics(id)),
    );
    // Sums in another order.
    for (const [i, loss] of gpu!.training.loss.entries()) {
      expect(Math.abs(loss! - node!.training.loss[i]!)).toBeLessThan(1e-4);
    }
    const { workers } = await cluster.client.status();
    expect(
      workers.some(({ engine, device }) => engine === 'webgpu' && /swiftshader/i.test(device)),
    ).toBe(true);
  });

  test('is logged in no more when its token has gone', async () => {
    const file = join(folder, 'tokens');
    await writeFile(file, 'operator boss\nworker old\n');
    const other = await Cluster.start(engine, {
      token: 'boss',
      tokensFile: file,
      join: bundle.files,
    });
    try {
      const page = await context.newPage();
      await page.goto(`${other.url}/join?engine=cpu`);
      await page.getByLabel('Token').fill('old');
      await page.getByRole('button', { name: 'Log in' }).click();
      await lineOf(page, 'no run for this worker now').waitFor();
      await writeFile(file, 'operator boss\nworker new\n');
      await page.waitForSelector('form.login');
    } finally {
      await other.close();
    }
  });

  test('trains an example of ours for a server that was started by the command', async () => {
    const example = join(import.meta.dirname, '..', '..', 'examples', 'mnist-mlp.ts');
    const { url, client, child, log } = await startServerProcess(join(folder, 'served'), 0, [
      ...['--join', example],
    ]);
    try {
      await client.createRun({
        ...{
          id: 'example',
          experiment: 'mnist-mlp',
          experimentHash: await hashExperiment(example),
        },
        config: {
          ...{ stepsMax: 20, evaluateEverySteps: 10, testAtEnd: false },
          groups: { biases: { pattern: '*/bias', frozen: { untilStep: 10 } } },
        },
      });
      const page = await context.newPage();
      // Nobody is asked for a token by a server that has none.
      await page.goto(`${url}/join?engine=wasm`);
      const phase = async () => (await client.run('example')).phase;
      await expect.poll(phase, { timeout: 120_000 }).toBe('finished');
      const { evaluations } = await client.metrics('example');
      expect(evaluations.map(({ step }) => step)).toEqual([10, 20]);
      expect(evaluations[1]!.loss).toBeLessThan(evaluations[0]!.loss!);
      // A page knows groups, also one that is trained from a step on.
      expect((await client.run('example')).groups).toMatchObject([
        { frozen: false, trainedFrom: 10 },
      ]);
      expect(log()).toContain('mnist-mlp may be trained by browsers');
    } finally {
      child.kill('SIGTERM');
      await once(child, 'exit');
    }
  });

  test('does nothing that its policy forbids, and fails nowhere', () => {
    expect(problems).toEqual([]);
  });
});

describe.skipIf(skipped)('what is sent to browsers', () => {
  test('is those experiments of a folder that say so, with the data that Node read', async () => {
    expect(bundle.experiments).toEqual(['few-digits', 'bags', 'from-disk', 'houses']);
    const files = [...bundle.files.files.keys()];
    for (const name of ['few-digits.data', 'from-disk.data', 'worker.js']) {
      expect(files).toContain(name);
    }
    const chunks: Uint8Array[] = [];
    for await (const chunk of readJoinFile(bundle.files, 'from-disk.data', false)) {
      chunks.push(chunk as Uint8Array);
    }
    const { train, source } = unpackData(new Uint8Array(Buffer.concat(chunks)));
    expect([...train.inputs.values]).toEqual([...Buffer.from('abcdefgh')]);
    expect(source).toBe('xs');
    expect(said.filter((line) => line.startsWith('broken'))).toEqual([
      expect.stringMatching(/^broken is not for browsers, it cannot be loaded: .*no such module/s),
    ]);
  });

  test('is nothing where none says so', async () => {
    await expect(makeJoinBundle([join(FIXTURES, 'digits.ts')], '/', () => {})).rejects.toThrow(
      /digits.ts does not let browsers train it: write browser: true/,
    );
  });
});
