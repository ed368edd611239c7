import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkpointFolder, readCheckpoint } from '../../files/checkpoint.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { until } from '../support/until.ts';

// Groups of parameters on the wire: what is frozen does not travel, and thaws while workers are connected.

const FILE = join(FIXTURES, 'two-groups.ts');
/** Bytes of the trunk: its layer, and four vectors of its batch normalisation. */
const TRUNK_BYTES = 4 * (150 * 300 + 300 + 4 * 300);
/** Bytes of a message of a worker beside its payload, with what goes with it over the wire. */
const MESSAGE_BYTES = 4_000;
const STEPS = 40;
const frozenTrunk = { trunk: { pattern: 'trunk*', frozen: true } };
const common: PartialConfig = {
  ...{ minibatchSize: 16, learningRate: 0.01, earlyStopping: { enabled: false } },
  ...{ stepsMax: STEPS, evaluateEverySteps: STEPS / 2, testAtEnd: false },
};

let engine: Engine;
let cluster: Cluster;
beforeAll(async () => {
  engine = await openEngine({ engine: 'wasm' });
  cluster = await Cluster.start(engine);
});
afterAll(() => cluster?.close());

/** Trains a run, by workers that stay connected. @returns the bytes of each of them, and lines of their logs. */
async function train(on: Cluster, id: string, config: PartialConfig, workers = 1) {
  await on.createRun(id, FILE, { ...common, workersMin: workers, ...config });
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  for (let i = 0; i < workers; i++) on.work(id, `${id}-${i}`, { log });
  let bytes: { received: number; sent: number }[] = [];
  await until('the run is finished', async () => {
    const listed = await on.client.workers(id);
    if (listed.length === workers) bytes = listed.map((worker) => worker.bytes);
    return (await on.client.run(id)).phase === 'finished';
  });
  const run = await on.client.run(id);
  await on.stopWorkers();
  return { run, bytes, lines };
}

/** A tensor of the final checkpoint. */
async function tensorOf(on: Cluster, id: string, name: string) {
  const final = await until('the last checkpoint is written', async () =>
    (await on.client.checkpoints(id)).find(({ kind }) => kind === 'final'),
  );
  const folder = checkpointFolder(on.state, id);
  const { tensors } = await readCheckpoint(folder, join(folder, final.file));
  return tensors.find((tensor) => tensor.name === name)!.values;
}

test('a frozen group is pushed by nobody and pulled once', async () => {
  const { run, bytes } = await train(cluster, 'frozen', { groups: frozenTrunk });
  expect(run).toMatchObject({ step: STEPS, parameters: 301 });
  // Its initial values came from this worker once, and went to it once; no push and no answer has them.
  const [{ received, sent }] = bytes as [{ received: number; sent: number }];
  expect(received).toBeGreaterThan(TRUNK_BYTES);
  expect(received).toBeLessThan(TRUNK_BYTES + STEPS * MESSAGE_BYTES);
  expect(sent).toBeGreaterThan(TRUNK_BYTES);
  expect(sent).toBeLessThan(TRUNK_BYTES + STEPS * MESSAGE_BYTES);
});

test.each(['f32', 'int8', 'topk'] as const)(
  'a group thaws with two workers connected, and %s pushes',
  async (kind) => {
    const groups = { trunk: { pattern: 'trunk*', frozen: { untilStep: STEPS / 2 } } };
    const push = kind === 'topk' ? ({ kind, density: 0.1 } as const) : { kind };
    const compression = { push, pull: 'bf16' } as const;
    const optimizer = { kind: 'momentum' } as const;
    const { run, lines } = await train(cluster, kind, { groups, compression, optimizer }, 2);
    expect(run).toMatchObject({ step: STEPS, parameters: TRUNK_BYTES / 4 - 600 + 301 });
    expect(run.pushes.applied).toBe(STEPS);
    expect(lines.filter((line) => line === 'no group is frozen any more').length).toBe(2);
  },
);

test('parts of the head lie on shards with a frozen group; one that thaws is refused in words', async () => {
  const shards = await Cluster.start(engine, { shards: 2 });
  try {
    const head = { head: { pattern: ['head/*', 'trunk_norm*'], frozen: true } };
    const { run } = await train(shards, 'parts', { groups: head, optimizer: { kind: 'adam' } });
    expect(run).toMatchObject({ step: STEPS, parameters: 150 * 300 + 300 });
    expect(await tensorOf(shards, 'parts', 'trunk_norm/gamma')).toEqual(
      new Float32Array(300).fill(1),
    );
    await shards.createRun('thaws', FILE, {
      ...common,
      groups: { head: { pattern: 'head/*', frozen: { untilStep: 3 } } },
    });
    await expect(shards.work('thaws', 'w').done).rejects.toThrow(
      'groups.head.frozen is { untilStep: 3 }; on a server with shards',
    );
  } finally {
    await shards.close();
  }
});
