import { writeFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkpointFolder, readCheckpoint, writeCheckpoint } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { readTensors } from '../../files/tensor-file.ts';
import { ROW_FIELDS } from '../../server/core/tables/run-tables.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { wholeKeys } from '../../shared/row-groups.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { openModel } from '../../worker/serving/exported-model.ts';
import { tf } from '../../worker/tf.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';
import { startProxy } from '../support/proxy.ts';
import { until } from '../support/until.ts';

const EXPERIMENT = `${FIXTURES}/rows-of-words.ts`;
const COMMON = {
  ...{ seed: 3, learningRate: 2, epochsMax: 12, minibatchSize: 20, observe: { everySteps: null } },
  ...{ optimizer: { kind: 'sgd' }, consistency: { correction: 'none' } },
} as const satisfies PartialConfig;
const table = (rows: number | 'hash'): PartialConfig => ({
  tables: {
    word: { rows, width: 1, initializer: { kind: 'zeros' }, optimizer: { kind: 'sgd' } },
  },
});

let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(() => cluster?.close());

async function lossesOf(run: string, workers: number, config: PartialConfig) {
  await cluster.createRun(run, EXPERIMENT, { ...COMMON, ...config });
  return lossesAtEnd(run, workers);
}

async function lossesAtEnd(run: string, workers: number) {
  for (let i = 0; i < workers; i++) cluster.work(run, `${run}-${i}`);
  const ended = async () => {
    const found = await cluster.client.run(run);
    return ['finished', 'failed'].includes(found.phase) ? found : null;
  };
  const detail = await until(`${run} has ended`, ended, { withinMs: 120_000 });
  expect(detail.phase).toBe('finished');
  const { evaluations } = await cluster.client.metrics(run);
  return evaluations.map(({ loss }) => loss!);
}

/** It is to be stopped before it ends: a step takes a millisecond. */
async function someSteps(run: string): Promise<void> {
  const areMade = async () => (await cluster.client.run(run)).step >= 5;
  await until('some steps are made', areMade, { everyMs: 1 });
}

async function answerOf(run: string): Promise<number> {
  const words = join(cluster.folder, 'words.jsonl');
  writeFileSync(words, JSON.stringify({ inputs: [0, 31, 124, 79, 96] }));
  const where = ['--server', cluster.url, '--experiments', FIXTURES];
  // The engine is that of this process: another one would compute what follows.
  const answer = await outputOf('predict', run, words, ...where, '--engine', 'wasm');
  return Number(answer.trim().split('\n').at(-1)!.split(',')[1]);
}

test('rows of a table learn what an embedding learns, by one worker and by three', async () => {
  const dense = await lossesOf('dense', 1, { hyperparameters: { dense: true } });
  expect(dense.at(-1)!).toBeLessThan(0.5 * dense[0]!);
  for (const rows of [200, 'hash'] as const) {
    const losses = await lossesOf(`rows-${rows}`, 1, table(rows));
    for (const [i, loss] of losses.entries()) expect(loss).toBeCloseTo(dense[i]!, 4);
  }
  // What is trained answers without its server, by the rows of its checkpoint.
  const byRows = await answerOf('rows-200');
  expect(byRows).toBeCloseTo(await answerOf('dense'), 3);
  const where = ['--server', cluster.url, '--experiments', FIXTURES];
  // And without Downpour, by layers that TensorFlow.js has itself.
  for (const run of ['rows-200', 'rows-hash']) {
    const to = join(cluster.folder, run);
    await outputOf('export', run, ...where, '--to', to, '--format', 'tfjs');
    const model = await openModel(tf as never, to);
    const [told] = await model.predict([{ inputs: [0, 31, 124, 79, 96] }]);
    expect(told!.prediction).toBeCloseTo(await answerOf(run), 4);
    model.dispose();
    const said = await outputOf('export', run, ...where, '--to', to, '--format', 'word2vec');
    expect(said).toMatch(/table 'word': \d+ rows of 1 numbers; \d+ were trained/);
  }
  const three = await lossesOf('three', 3, { ...table(200), learningRate: 0.5 });
  expect(three.at(-1)!).toBeLessThan(0.8 * three[0]!);
});

test('rows on three shards, and on two after a stop, are those on one server, to the bit', async () => {
  const whole = 'whole';
  const config = { ...table('hash'), epochsMax: 6 };
  const expected = await lossesOf(whole, 1, config);
  const expectedAnswer = await answerOf(whole);
  const tables = await countsOf(whole);
  const move = async (shards: number) => {
    await cluster.stopWorkers();
    await cluster.stopServer();
    await cluster.serve(0, { shards });
  };
  await move(3);
  await cluster.createRun('cut', EXPERIMENT, { ...COMMON, ...config });
  cluster.work('cut', 'first');
  await someSteps('cut');
  await cluster.client.stop('cut');
  const before = await cluster.client.run('cut');
  await move(2);
  await cluster.client.resume('cut');
  expect(before.step).toBeLessThan(144);
  expect(await lossesAtEnd('cut', 1)).toEqual(expected);
  expect(await answerOf('cut')).toBe(expectedAnswer);
  // Shards tell how many rows they have about once a second.
  await until('all rows are told', async () => {
    return JSON.stringify(await countsOf('cut')) === JSON.stringify(tables);
  });
  const three = await lossesOf('three-on-two', 3, { ...table(200), learningRate: 0.5 });
  expect(three.at(-1)!).toBeLessThan(0.8 * three[0]!);
});

/** Counts of the tables of a run that a restart keeps. */
const countsOf = async (run: string) =>
  (await cluster.client.run(run)).tables!.map(({ name, rows, pretrained, dropped }) => {
    return { name, rows, pretrained, dropped };
  });

describe('a model of rows alone', () => {
  const file = `${FIXTURES}/rows-alone.ts`;
  const pairsFile = () => join(cluster.folder, 'pairs.jsonl');
  /** Some of those that the data have. */
  const PAIRS = [
    { user: 7, film: 4 },
    { user: 14, film: 10 },
    { user: 21, film: 18 },
    { user: 17, film: 34 },
  ];
  const where = () => ['--server', cluster.url, '--experiments', FIXTURES];
  async function answersOf(run: string): Promise<number[]> {
    writeFileSync(pairsFile(), PAIRS.map((pair) => JSON.stringify(pair)).join('\n'));
    const told = await outputOf('predict', run, pairsFile(), ...where(), '--engine', 'wasm');
    const lines = told.trim().split('\n').slice(1);
    return lines.map((line) => Number(line.split(',')[1]));
  }
  async function trained(run: string, more: PartialConfig = {}) {
    const { config } = await loadExperiment(file);
    await cluster.createRun(run, file, { ...config, ...more });
    return lossesAtEnd(run, 1);
  }

  test('is trained, resumed, exported and used as any other', async () => {
    const losses = await trained('alone');
    expect(losses.at(-1)!).toBeLessThan(0.1 * losses[0]!);
    expect((await cluster.client.run('alone')).parameters).toBe(0);
    const expected = await answersOf('alone');
    const trueOf = (user: number, film: number) =>
      Math.sin(user) * Math.cos(film) + 0.5 * Math.cos(user) * Math.sin(2 * film);
    for (const [i, { user, film }] of PAIRS.entries()) {
      expect(Math.abs(expected[i]! - trueOf(user, film))).toBeLessThan(0.3);
    }
    const to = join(cluster.folder, 'alone');
    await outputOf('export', 'alone', ...where(), '--to', to, '--format', 'safetensors');
    const { tensors } = await readTensors(join(to, 'alone.safetensors'));
    expect(tensors.every(({ name }) => name.startsWith('@table.'))).toBe(true);
    await outputOf('export', 'alone', ...where(), '--to', to, '--format', 'tfjs');
    const model = await openModel(tf as never, to);
    const told = await model.predict(PAIRS);
    for (const [i, { prediction }] of told.entries()) {
      expect(prediction).toBeCloseTo(expected[i]!, 4);
    }
    model.dispose();
  });

  test.each([
    ['int8', { compression: { push: { kind: 'int8' } } }],
    ['topk', { compression: { push: { kind: 'topk', density: 0.1 } } }],
    ['bf16', { compression: { push: { kind: 'bf16' }, pull: 'bf16' } }],
    ['synchronous', { consistency: { mode: 'synchronous' } }],
    ['clipped', { clip: { norm: 1, value: 0.5 } }],
  ] as const)('is trained with %s', async (name, more) => {
    const losses = await trained(`alone-${name}`, { ...more, epochsMax: 8 } as PartialConfig);
    expect(losses.at(-1)!).toBeLessThan(0.8 * losses[0]!);
  });

  test('is refused by the worker where the server is of an older release, which says what to do', async () => {
    const { config } = await loadExperiment(file);
    await cluster.createRun('alone-old', file, config!);
    const proxy = await startProxy(Number(new URL(cluster.url).port));
    try {
      // An older release names fewer things, or does not send the header.
      proxy.edit = (head) => head.replace(/^downpour-takes: .*\r\n/im, '');
      const server = `ws://127.0.0.1:${proxy.port}`;
      await expect(cluster.work('alone-old', 'newer', { server }).done).rejects.toThrow(
        /rows of tables alone, and the server is of an older release, .*: update the server/,
      );
      expect((await cluster.client.run('alone-old')).step).toBe(0);
    } finally {
      await cluster.stopWorkers();
      await proxy.close();
    }
    const losses = await lossesAtEnd('alone-old', 1);
    expect(losses.at(-1)!).toBeLessThan(0.1 * losses[0]!);
  });

  test('goes on after a stop, on any number of shards, to the bit', async () => {
    const answers = await answersOf('alone');
    const { config } = await loadExperiment(file);
    const move = async (shards: number) => {
      await cluster.stopWorkers();
      await cluster.stopServer();
      await cluster.serve(0, { shards });
    };
    for (const [before, after] of [
      [1, 1],
      [2, 1],
      [1, 3],
    ] as const) {
      const run = `alone-${before}-${after}`;
      await move(before);
      await cluster.createRun(run, file, config!);
      cluster.work(run, run);
      await someSteps(run);
      await cluster.client.stop(run);
      await move(after);
      await cluster.client.resume(run);
      await lossesAtEnd(run, 1);
      expect(await answersOf(run)).toEqual(answers);
    }
    await move(1);
  });
});

test('rows begin with the vectors of a file, which the server keeps: frozen ones stay, missing ones are learnt', async () => {
  const said: string[] = [];
  const file = `${FIXTURES}/rows-pretrained.ts`;
  const bare = { consistency: { correction: 'none' as const }, observe: { everySteps: null } };
  const { config } = await loadExperiment(file);
  await cluster.createRun('pretrained', file, { ...config, ...bare });
  for (let i = 0; i < 2; i++) {
    cluster.work('pretrained', `pretrained-${i}`, { log: (line) => said.push(line) });
  }
  const detail = await until('it has ended', async () => {
    const found = await cluster.client.run('pretrained');
    return ['finished', 'failed'].includes(found.phase) ? found : null;
  });
  expect(detail.phase).toBe('finished');
  const facts = { name: 'word', rows: 200, pretrained: 120, dropped: 0 };
  await until('all rows are told', async () => {
    return JSON.stringify(await countsOf('pretrained')) === JSON.stringify([facts]);
  });
  const coverage = said.find((line) => line.includes("table 'word'"));
  expect(coverage).toContain('120 of 200 words (60.0 %) have a vector in the file');
  expect(coverage).toContain('of the 2400 tokens of the training part');
  const { evaluations } = await cluster.client.metrics('pretrained');
  expect(evaluations.at(-1)!.loss).toBeLessThan(0.2 * evaluations[0]!.loss!);

  const path = join(cluster.folder, 'final.safetensors');
  const final = await until('its final parameters are on disk', () =>
    cluster.client.checkpointFile('pretrained', 'final').catch(() => null),
  );
  await writeFile(path, final);
  const { tensors } = await readTensors(path);
  const tensor = (field: string) =>
    tensors.find(({ name }) => name === `@table.word.model.${field}`)!.values;
  const keys = tensor('keys').filter((_, i) => i % 2 === 1);
  const rows = new Map([...keys].map((key, i) => [key, tensor('values')[i]!]));
  for (let word = 80; word < 200; word++) {
    expect(rows.get(word)).toBe(Math.fround(Number(Math.sin(word).toFixed(6))));
  }
  for (let word = 1; word < 80; word++) expect(rows.get(word)).toBeCloseTo(Math.sin(word), 0);
});

test('a checkpoint of changed rows is downloaded and exported as one file with all rows', async () => {
  const run = 'pretrained';
  const place = checkpointFolder(cluster.state, run);
  const base = (await listCheckpoints(place)).findLast(({ kind }) => kind === 'last')!;
  const { tensors } = await readCheckpoint(place, base);
  const [keys, values] = ['@table.word.keys', '@table.word.values'];
  const changed = (name: string, own: Float32Array, width: number) => {
    // The first row alone, and another one has gone.
    if (name === values) return Float32Array.of(42);
    return own.subarray(0, width);
  };
  const all = wholeKeys(tensors.find(({ name }) => name === keys)!.values);
  const count = all.length;
  // In the order in which the table has them. 120 stays as it is.
  const first = all[0]!;
  const second = all.find((key) => key !== first && key !== 120)!;
  expect(first).not.toBe(120);
  const ofRows = ROW_FIELDS.map((field) => `@table.word.${field}`);
  const fields = tensors.filter(({ name }) => ofRows.includes(name) && name !== keys);
  const gone = { name: '@table.word.gone', shape: [2], values: Float32Array.of(0, second) };
  await writeCheckpoint(place, {
    ...{ run, step: base.step, kind: 'last', layoutHash: base.layoutHash, state: base.state },
    now: new Date(),
    tensors: [
      ...tensors.map((tensor) => {
        const isRow = tensor.name === keys || fields.includes(tensor);
        if (!isRow) return tensor;
        const own = changed(tensor.name, tensor.values, tensor.values.length / count);
        return { name: tensor.name, shape: [own.length], values: own };
      }),
      gone,
    ],
    continues: {
      after: [{ file: base.file, sha256: base.sha256 }],
      rows: [{ keys: keys!, fields: fields.map(({ name }) => name), gone: gone.name }],
    },
  });
  const [listed] = (await cluster.client.checkpoints(run)).slice(-1);
  expect(listed).toMatchObject({ kind: 'last', continues: 1 });
  const path = join(cluster.folder, 'last.safetensors');
  await writeFile(path, await cluster.client.checkpointFile(run, 'last'));
  const where = ['--server', cluster.url, '--experiments', FIXTURES];
  const to = join(cluster.folder, 'exported-last');
  await outputOf('export', run, ...where, '--kind', 'last', '--to', to, '--format', 'safetensors');
  for (const file of [path, join(to, `${run}.safetensors`)]) {
    const { tensors } = await readTensors(file);
    const of = (name: string) => tensors.find((tensor) => tensor.name === name)!.values;
    expect(tensors.map(({ name }) => name)).not.toContain(gone.name);
    const got = new Map(wholeKeys(of(keys!)).map((key, i) => [key, of(values!)[i]!] as const));
    expect(got.size).toBe(count - 1);
    expect(got.get(first)).toBe(42);
    expect(got.has(second)).toBe(false);
    expect(got.get(120)).toBe(Math.fround(Number(Math.sin(120).toFixed(6))));
  }
});
