import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Validator } from '@seriousme/openapi-schema-validator';
import { createRestClient, type RestClient } from 'downpour/client';
import Type, { type TSchema } from 'typebox';
import Value from 'typebox/value';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { readCheckpoint } from '../../files/checkpoint.ts';
import { Run } from '../../server/core/run.ts';
import { type Serving, serve } from '../../server/main.ts';
import { bytesOf, encodeFrame } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { decodeFacts } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import {
  type CheckpointSummary,
  CheckpointSummarySchema,
  HealthSchema,
  MetricsSchema,
  ObservationsSchema,
  type RunData,
  RunDataSchema,
  type RunDetail,
  RunDetailSchema,
  RunExamplesSchema,
  RunLogSchema,
  type RunSummary,
  type Status,
  StatusSchema,
  type StudyReport,
  TimelineSchema,
  type WorkerSummary,
  WorkerSummarySchema,
} from '../../shared/rest.ts';
import { decodeRows, encodeKeys, encodeRows } from '../../shared/rows.ts';
import { TABLES_HEADER } from '../../shared/tables.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem, EXCHANGED, FACTS } from '../support/regression.ts';

const problem = createProblem();
const cleanUps: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'downpour-'));
  cleanUps.push(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function start(state: string, token?: string): Promise<Serving & { stop(): Promise<void> }> {
  const controller = new AbortController();
  const serving = await serve({
    host: '127.0.0.1',
    port: 0,
    state,
    signal: controller.signal,
    ...(token === undefined ? {} : { token }),
  });
  const stop = async () => {
    controller.abort();
    await serving.closed;
  };
  cleanUps.push(stop);
  return { ...serving, stop };
}

async function request<T>(method: string, url: string, body?: unknown, token?: string) {
  const response = await fetch(url, {
    method,
    headers: {
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: (await response.json()) as T };
}

async function createRun(url: string, config: PartialConfig = {}, token?: string): Promise<string> {
  const { status, body } = await request<RunSummary>(
    'POST',
    `${url}/runs`,
    {
      experiment: 'regression',
      experimentHash: 'hash',
      config: { minibatchSize: 4, learningRate: 0.05, epochsMax: 5, ...config },
    },
    token,
  );
  expect(status).toBe(201);
  return body.id;
}

describe('a run over real sockets', () => {
  test('two workers train it to its end, and its final parameters are on disk', async () => {
    const state = await folder();
    const { url, stop } = await start(state);
    const id = await createRun(url);
    const workers = await Promise.all([ProtocolWorker.connect(url), ProtocolWorker.connect(url)]);
    const firsts = [await workers[0]!.enter(problem), await workers[1]!.enter(problem)];
    const ends = await Promise.all(workers.map((worker, i) => worker.work(problem, firsts[i]!)));
    expect(ends.map((end) => end.type)).toEqual(['end', 'end']);
    const { body: run } = await request<RunSummary>('GET', `${url}/runs/${id}`);
    expect(run).toMatchObject({
      phase: 'finished',
      step: 25,
      examples: 100,
      reason: 'reached epochsMax 5',
    });
    expect(run.test?.examples).toBe(10);
    expect(run.pushes.applied).toBe(25);
    // What each did is still told when it has left the run.
    const { body: status } = await request<Status>('GET', `${url}/status`);
    expect(status.workers.reduce((sum, { pushes }) => sum + pushes.applied, 0)).toBe(25);
    expect(status.workers.map(({ run, leases }) => [run, leases])).toEqual(
      workers.map(() => [null, 0]),
    );
    await stop();
    const again = await start(state);
    const { body } = await request<{ checkpoints: CheckpointSummary[] }>(
      'GET',
      `${again.url}/runs/${id}/checkpoints`,
    );
    const final = body.checkpoints.find((checkpoint) => checkpoint.kind === 'final')!;
    const { tensors } = await readCheckpoint(join(state, id, 'checkpoints'), final);
    expect(tensors.map((tensor) => tensor.name)).toEqual(['weights', 'bias', 'mean', 'offset']);
    const download = await fetch(`${again.url}/runs/${id}/checkpoints/final/file`);
    expect((await download.arrayBuffer()).byteLength).toBe(final.bytes);
    const { body: restored } = await request<RunSummary>('GET', `${again.url}/runs/${id}`);
    expect(restored.phase).toBe('finished');
    expect(restored.test).toEqual(run.test);
  });

  test('a worker that dies is replaced, and every example is still used once an epoch', async () => {
    const { url } = await start(await folder());
    const id = await createRun(url);
    const dying = await ProtocolWorker.connect(url);
    await dying.enter(problem);
    dying.terminate();
    const worker = await ProtocolWorker.connect(url);
    const end = await worker.work(problem, await worker.enter(problem));
    expect(end.type).toBe('end');
    const { body } = await request<RunSummary>('GET', `${url}/runs/${id}`);
    expect(body).toMatchObject({ phase: 'finished', examples: 100, step: 25 });
    const { body: who } = await request<{ workers: WorkerSummary[] }>('GET', `${url}/status`);
    expect(who.workers.filter((w) => w.state === 'gone').length).toBe(1);
  });

  test('a reconnected worker sends its push again, and it is applied once', async () => {
    const { url } = await start(await folder());
    const id = await createRun(url);
    const first = await ProtocolWorker.connect(url);
    const work = await first.enter(problem);
    first.push(problem, work);
    await first.expect('work');
    first.terminate();
    const { name, incarnation } = first;
    const second = await ProtocolWorker.connect(url, { name, incarnation });
    await second.enter(problem);
    second.push(problem, work);
    expect((await second.expect('work')).acknowledgements[0]).toMatchObject({
      outcome: 'duplicate',
      sequence: 1,
    });
    const { body } = await request<RunSummary>('GET', `${url}/runs/${id}`);
    expect(body.pushes).toEqual({ applied: 1, damped: 0, duplicate: 1, rejected: 0 });
    expect(body.step).toBe(1);
  });

  test('stop ends the workers, a restarted server knows it, and resume goes on', async () => {
    const state = await folder();
    const { url, stop } = await start(state);
    const id = await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    const work = await worker.enter(problem);
    worker.push(problem, work);
    await worker.expect('work');
    expect((await request<RunSummary>('POST', `${url}/runs/${id}/stop`)).body.phase).toBe(
      'stopped',
    );
    expect(await worker.expect('end')).toMatchObject({ phase: 'stopped' });
    await stop();
    const again = await start(state);
    const stopped = await request<RunSummary>('GET', `${again.url}/runs/${id}`);
    expect(stopped.body).toMatchObject({ phase: 'stopped', step: 1 });
    const resumed = await request<RunSummary>('POST', `${again.url}/runs/${id}/resume`);
    expect(resumed.body.phase).toBe('training');
    const other = await ProtocolWorker.connect(again.url);
    expect((await other.work(problem, await other.enter(problem))).type).toBe('end');
    const { body } = await request<RunSummary>('GET', `${again.url}/runs/${id}`);
    expect(body).toMatchObject({ phase: 'finished', step: 25, examples: 100 });
  });

  test('a push that crosses the end of its run is no offence', async () => {
    const { url } = await start(await folder());
    const id = await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    const work = await worker.enter(problem);
    await request('POST', `${url}/runs/${id}/stop`);
    worker.push(problem, work);
    await worker.expect('end');
    await worker.expect('idle');
    const next = await createRun(url);
    expect((await worker.expect('assign')).run).toBe(next);
  });

  test('frozen tensors come with the first work only, and unchanged parameters are not sent again', async () => {
    const { url } = await start(await folder());
    await createRun(url, { consistency: { stalenessMax: 0 } });
    const worker = await ProtocolWorker.connect(url);
    const first = await worker.enter(problem);
    expect(first.payload.length).toBe(EXCHANGED + 1);
    worker.push(problem, first);
    const second = await worker.expect('work');
    expect(second.payload.length).toBe(EXCHANGED);
    worker.push(problem, { ...second, payload: first.payload }, { loss: null });
    const third = await worker.expect('work');
    expect(third.acknowledgements[0]?.code).toBe('DP_GRADIENT_NOT_FINITE');
    expect(third.payload.length).toBe(0);
  });

  test('one pool of workers serves several runs, the one with the fewest workers first', async () => {
    const { url } = await start(await folder());
    const ids = [await createRun(url), await createRun(url)];
    const workers = await Promise.all([1, 2].map(() => ProtocolWorker.connect(url)));
    for (const worker of workers) worker.hello();
    const assigned = await Promise.all(workers.map((worker) => worker.expect('assign')));
    expect(assigned.map((assign) => assign.run).sort()).toEqual([...ids].sort());
  });

  test('a worker for any run whose data are not those of one is told why, and given another', async () => {
    const { url } = await start(await folder());
    const bound = await createRun(url);
    const first = await ProtocolWorker.connect(url);
    await first.enter(problem);
    const other = await ProtocolWorker.connect(url);
    other.hello();
    const grown = { data: { ...problem.summary, trainCount: 21 } };
    other.join(await other.expect('assign'), problem, grown);
    const end = await other.expect('end');
    expect(end).toMatchObject({
      run: bound,
      reason: expect.stringMatching(/DP_DATA_MISMATCH .*21 training/),
    });
    await other.expect('idle');
    const free = await createRun(url);
    const assign = await other.expect('assign');
    expect(assign.run).toBe(free);
    other.join(assign, problem, grown);
    await other.expect('initialise');
  });

  test('a worker that waits is given the run that is created later', async () => {
    const { url } = await start(await folder());
    const worker = await ProtocolWorker.connect(url);
    worker.hello();
    await worker.expect('idle');
    const id = await createRun(url);
    expect((await worker.expect('assign')).run).toBe(id);
  });
});

describe('a worker whose initial parameters hold NaN', () => {
  async function enter(worker: ProtocolWorker) {
    worker.hello();
    worker.join(await worker.expect('assign'), problem);
  }
  async function giveNaN(worker: ProtocolWorker) {
    const { run, grant } = await worker.expect('initialise');
    worker.send(
      { type: 'initialised', run, grant },
      new Float32Array(EXCHANGED + 1).fill(Number.NaN),
    );
    expect(await worker.expect('error')).toMatchObject({
      code: 'DP_GRADIENT_NOT_FINITE',
      message: expect.stringMatching(/hold NaN in tensor '\w+': look at the model's initialisers$/),
    });
  }

  test('is told that the run has failed, if it is alone', async () => {
    const { url } = await start(await folder());
    const id = await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    await enter(worker);
    await giveNaN(worker);
    const reason = expect.stringMatching(/^no connected worker has .* hold NaN in tensor '/);
    expect(await worker.expect('end')).toMatchObject({ run: id, phase: 'failed', reason });
    const { body } = await request<RunDetail>('GET', `${url}/runs/${id}`);
    expect(body).toMatchObject({ phase: 'failed', reason });
  });

  test('works on with those of another worker', async () => {
    const { url } = await start(await folder());
    await createRun(url, { evaluateEverySteps: 1_000 });
    const [bad, good] = [await ProtocolWorker.connect(url), await ProtocolWorker.connect(url)];
    await enter(bad);
    const asked = await bad.expect('initialise');
    await enter(good);
    const nan = new Float32Array(EXCHANGED + 1).fill(Number.NaN);
    bad.send({ type: 'initialised', run: asked.run, grant: asked.grant }, nan);
    expect(await bad.expect('error')).toMatchObject({ code: 'DP_GRADIENT_NOT_FINITE' });
    good.initialise(await good.expect('initialise'));
    const works = await Promise.all([bad, good].map((worker) => worker.expect('work')));
    expect(works.every(({ leases }) => leases.length > 0)).toBe(true);
  });
});

test('rows of tables are pulled, pushed and wanted over real sockets, and a restarted server has them', async () => {
  const state = await folder();
  const { url, stop } = await start(state);
  const tables = { word: { rows: 40, width: 2, optimizer: { kind: 'sgd' as const } } };
  const id = await createRun(url, { tables, learningRate: 0.5, epochsMax: 100 });
  const old = await ProtocolWorker.connect(url);
  old.hello('hash', id);
  expect(await old.expect('error')).toMatchObject({ code: 'DP_PROTOCOL_VERSION' });
  const worker = await ProtocolWorker.connect(url, { headers: { [TABLES_HEADER]: 'yes' } });
  const work = await worker.enter(problem);
  expect(work.rows).toBeUndefined();
  const shapes = [{ name: 'word', width: 2, keysMax: 40 }];
  const rowsIn = (payload: Float32Array) => decodeRows(shapes, bytesOf(payload), 'f32')[0]!;
  worker.pullRows(id, [Uint32Array.of(3, 7)]);
  const first = await worker.expect('rows');
  expect(first).toMatchObject({ run: id, request: 7, step: 0, encoding: 'f32' });
  const initial = rowsIn(first.payload);
  expect([...initial.keys]).toEqual([3, 7]);
  const gradient = { keys: Uint32Array.of(3), values: Float32Array.of(1, -2) };
  const rows = encodeRows(shapes, [gradient], 'f32');
  const wanted = encodeKeys([Uint32Array.of(3, 7)]);
  const both = Uint8Array.from([...rows, ...wanted]);
  const told = { step: first.step, encoding: 'f32' as const };
  worker.pushRows(problem, work, { ...told, bytes: rows.length, wanted: wanted.length }, both);
  const answer = await worker.expect('work');
  expect(answer.acknowledgements[0]).toMatchObject({ outcome: 'applied' });
  expect(answer.rows).toMatchObject({ step: 1, encoding: 'f32', bytes: 28 });
  const { values } = rowsIn(answer.payload.subarray(-7));
  // The rate is that of the run: the row has moved against its gradient, the other one has not.
  expect(values[0]! - initial.values[0]!).toBeCloseTo(-0.5, 5);
  expect(values[1]! - initial.values[1]!).toBeCloseTo(1, 5);
  expect([...values.subarray(2)]).toEqual([...initial.values.subarray(2)]);
  const dense = { ...answer, payload: answer.payload.subarray(0, -7) };
  // A worker that claims newer rows than it was sent would evade the bound of staleness.
  const ahead = { ...told, step: 2, bytes: rows.length, wanted: 0 };
  worker.pushRows(problem, dense, ahead, rows);
  const early = (await worker.expect('work')).acknowledgements[0];
  expect(early).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE' });
  expect(early!.message).toContain('this worker was sent none after row step 1');
  const falling = encodeKeys([Uint32Array.of(7, 3)]);
  const bad = { ...told, bytes: 0, wanted: falling.length };
  worker.pushRows(problem, dense, bad, falling);
  const refused = (await worker.expect('work')).acknowledgements[0];
  expect(refused).toMatchObject({ outcome: 'rejected', code: 'DP_ROWS_INVALID' });
  worker.pullRows(id, [Uint32Array.of(40)]);
  expect(await worker.expect('error')).toMatchObject({ code: 'DP_ROWS_INVALID' });
  const { body: detail } = await request<RunDetail>('GET', `${url}/runs/${id}`);
  expect(detail.tables).toMatchObject([{ name: 'word', rows: 1, dropped: 0 }]);
  await stop();
  const again = await start(state);
  const later = await ProtocolWorker.connect(again.url, { headers: { [TABLES_HEADER]: 'yes' } });
  await later.enter(problem);
  later.pullRows(id, [Uint32Array.of(3, 7)]);
  expect(rowsIn((await later.expect('rows')).payload).values).toEqual(values);
});

describe('pushes that come together', () => {
  async function holding(count: number) {
    const { url } = await start(await folder());
    await createRun(url, { consistency: { depth: count }, evaluateEverySteps: 1_000 });
    const worker = await ProtocolWorker.connect(url);
    const work = await worker.enter(problem);
    const pushAll = () => {
      for (const lease of work.leases.slice(0, count)) {
        worker.push(problem, { ...work, leases: [lease] });
      }
    };
    return { worker, work, pushAll };
  }

  test('are answered together, in their order, with one pull', async () => {
    const { worker, work, pushAll } = await holding(8);
    worker.together(pushAll);
    const answer = await worker.expect('work');
    expect(answer.acknowledgements.map(({ sequence }) => sequence)).toEqual(
      Array.from({ length: 8 }, (_, i) => i + 1),
    );
    expect(answer.acknowledgements.every(({ outcome }) => outcome === 'applied')).toBe(true);
    expect(answer.step).toBe(work.step + 8);
    expect(answer.payload.length).toBe(work.payload.length - 1);
    expect(answer.leases).toHaveLength(9);
  });

  test('are answered before what comes of the message behind them', async () => {
    const { worker, pushAll } = await holding(2);
    worker.together(() => {
      pushAll();
      worker.send({ type: 'nonsense' });
    });
    const answer = await worker.expect('work');
    expect(answer.acknowledgements).toHaveLength(2);
    expect(answer.leases).toHaveLength(3);
    await worker.expect('error');
  });

  test('are answered when another one begins behind them and does not end', async () => {
    const { worker, pushAll } = await holding(2);
    worker.together(() => {
      pushAll();
      worker.sendFragment(new Uint8Array(10));
    });
    expect((await worker.expect('work')).acknowledgements).toHaveLength(2);
  });
});

describe('room for pushes', () => {
  afterEach(() => {
    vi.restoreAllMocks();
  });

  test('a push waits until another one has given its room back', async () => {
    const { url } = await start(await folder());
    await createRun(url, { consistency: { stalenessMax: 5 } });
    const [first, second] = [await ProtocolWorker.connect(url), await ProtocolWorker.connect(url)];
    const works = [await first.enter(problem), await second.enter(problem)];
    const { land } = Run.prototype;
    let asked: () => void = () => {};
    const waits = new Promise<void>((resolve) => {
      asked = resolve;
    });
    let rooms = 0;
    vi.spyOn(Run.prototype, 'land').mockImplementation(function (this: Run, bytes, encoding) {
      asked();
      return rooms > 0 ? land.call(this, bytes, encoding) : null;
    });
    first.push(problem, works[0]!);
    await waits;
    rooms = 1;
    second.push(problem, works[1]!);
    for (const worker of [first, second]) {
      expect((await worker.expect('work')).acknowledgements[0]?.outcome).toBe('applied');
    }
  });

  test('but not for ever behind workers that stall', async () => {
    const { url } = await start(await folder());
    await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    const work = await worker.enter(problem);
    vi.spyOn(Run.prototype, 'land').mockReturnValue(null);
    worker.push(problem, work);
    expect((await worker.expect('work')).acknowledgements[0]?.outcome).toBe('applied');
  });

  test('a worker that leaves while its push waits leaves nothing behind', async () => {
    const { url } = await start(await folder());
    await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    const work = await worker.enter(problem);
    const land = vi.spyOn(Run.prototype, 'land').mockReturnValue(null);
    worker.push(problem, work);
    while (land.mock.calls.length === 0) await new Promise(setImmediate);
    worker.terminate();
    land.mockRestore();
    const other = await ProtocolWorker.connect(url);
    expect((await other.work(problem, await other.enter(problem))).type).toBe('end');
  });
});

/** Each wrong thing that a worker may say: the code it is answered, and whether it is hung up on. */
describe('bad input from a worker', () => {
  type Wrong = (worker: ProtocolWorker, run: string) => void | Promise<void>;
  const table: [string, Wrong, string, number | null][] = [
    [
      'a frame that is not ours',
      (w) => w.sendBytes(new Uint8Array([1, 2, 3])),
      'DP_FRAME_MALFORMED',
      1007,
    ],
    ['a text message', (w) => w.sendBytes('hello'), 'DP_FRAME_MALFORMED', 1007],
    [
      'another protocol version',
      (w) => w.sendBytes(encodeFrame({ type: 'hello' }).with(2, 77)),
      'DP_PROTOCOL_VERSION',
      1002,
    ],
    [
      'an unknown field',
      (w) => w.send({ type: 'leave', failure: null, x: 1 } as never),
      'DP_FRAME_MALFORMED',
      1007,
    ],
    [
      'a push before hello',
      (w, run) =>
        w.send({
          type: 'push',
          run,
          sequence: 1,
          lease: 1,
          step: 0,
          generation: 1,
          loss: 1,
          computeMs: 1,
          encoding: 'f32',
        }),
      'DP_PROTOCOL_ORDER',
      1002,
    ],
    ['an unknown run', (w) => w.hello('hash', 'nowhere'), 'DP_RUN_UNKNOWN', 4404],
    [
      'an experiment with another hash',
      (w, run) => w.hello('other', run),
      'DP_EXPERIMENT_MISMATCH',
      4409,
    ],
    [
      'a push for an unknown run',
      async (w) => {
        const work = await w.enter(problem);
        w.push(problem, work, { run: 'nowhere' });
      },
      // As for a run that there is and that it was not given: it is told of no other.
      'DP_PROTOCOL_ORDER',
      1002,
    ],
    [
      'a model of another layout',
      async (w, run) => {
        const first = await ProtocolWorker.connect(urlOf(w));
        await first.enter(problem);
        w.hello('hash', run);
        const tensors = [{ name: 'weights', shape: [2], role: 'trainable' }];
        w.join(await w.expect('assign'), problem, { tensors });
      },
      'DP_LAYOUT_MISMATCH',
      4409,
    ],
    [
      'other data',
      async (w, run) => {
        const first = await ProtocolWorker.connect(urlOf(w));
        await first.enter(problem);
        w.hello('hash', run);
        w.join(await w.expect('assign'), problem, { data: { ...problem.summary, trainCount: 7 } });
      },
      'DP_DATA_MISMATCH',
      4409,
    ],
    [
      'initial parameters of the wrong size',
      async (w) => {
        w.hello();
        w.join(await w.expect('assign'), problem);
        const { run, grant } = await w.expect('initialise');
        w.send({ type: 'initialised', run, grant }, new Float32Array(3));
      },
      'DP_TENSOR_SIZE',
      null,
    ],
    [
      'a second hello',
      async (w) => {
        w.hello();
        await w.expect('assign');
        w.hello();
      },
      'DP_PROTOCOL_ORDER',
      1002,
    ],
  ];
  const urls = new WeakMap<ProtocolWorker, string>();
  const urlOf = (worker: ProtocolWorker) => urls.get(worker)!;

  test.each(table)('%s', async (_, wrong, code, close) => {
    const { url } = await start(await folder());
    const run = await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    urls.set(worker, url);
    await wrong(worker, run);
    const error = await worker.expect('error');
    expect(error.code).toBe(code);
    expect(error.message.length).toBeGreaterThan(20);
    if (close !== null) expect(await worker.next()).toMatchObject({ kind: 'closed', code: close });
    // The server is as well as before.
    expect((await request('GET', `${url}/health`)).status).toBe(200);
  });

  const pushes: [string, (payload: Float32Array) => Float32Array, object, string][] = [
    ['NaN in the gradient', (p) => p.fill(Number.NaN, 0, 1), {}, 'DP_GRADIENT_NOT_FINITE'],
    ['infinity in the statistics', (p) => p.fill(Infinity, 7), {}, 'DP_GRADIENT_NOT_FINITE'],
    ['a loss that is not finite', (p) => p, { loss: null }, 'DP_GRADIENT_NOT_FINITE'],
    ['a gradient that is too short', (p) => p.slice(1), {}, 'DP_TENSOR_SIZE'],
    ['a lease that it never had', (p) => p, { lease: 12345 }, 'DP_PUSH_LEASE_LOST'],
    ['parameters of the future', (p) => p, { step: 99 }, 'DP_PUSH_STALE'],
  ];

  test.each(pushes)(
    'a push with %s is rejected, and the worker goes on',
    async (_, spoil, changes, code) => {
      const { url } = await start(await folder());
      const id = await createRun(url);
      const worker = await ProtocolWorker.connect(url);
      const work = await worker.enter(problem);
      const { run, step, generation, leases } = work;
      const push = {
        type: 'push' as const,
        run,
        sequence: 1,
        lease: leases[0]!.id,
        step,
        generation,
        loss: 1,
        computeMs: 1,
        encoding: 'f32',
      };
      worker.send({ ...push, ...changes }, spoil(new Float32Array(EXCHANGED)));
      const answer = await worker.expect('work');
      expect(answer.acknowledgements[0]).toMatchObject({ outcome: 'rejected', code, sequence: 1 });
      expect(answer.leases.length).toBeGreaterThan(0);
      const { body } = await request<RunSummary>('GET', `${url}/runs/${id}`);
      expect(body).toMatchObject({ step: 0, phase: 'training' });
      const error = async () => {
        const path = `${url}/runs/${id}/workers`;
        const { body: who } = await request<{ workers: WorkerSummary[] }>('GET', path);
        return who.workers[0]!.lastError;
      };
      expect(await error()).toMatchObject({ code, at: expect.stringMatching(/^\d{4}-.*Z$/) });
      // A push that is applied after it ends it.
      const { step: now, generation: present } = answer;
      const next = { sequence: 2, lease: answer.leases[0]!.id, step: now, generation: present };
      worker.send({ ...push, ...next }, new Float32Array(EXCHANGED));
      const { acknowledgements } = await worker.expect('work');
      expect(acknowledgements[0]).toMatchObject({ outcome: 'applied' });
      expect(await error()).toBeNull();
    },
  );

  test('a frame larger than the limit is refused before its payload is read', async () => {
    const { url } = await start(await folder());
    const { port } = new URL(url);
    const socket = connect(Number(port), '127.0.0.1');
    const received: Buffer[] = [];
    socket.on('data', (data) => received.push(data));
    socket.write(
      'GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n' +
        'sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n',
    );
    // Final binary frame, masked, of 2³¹ bytes: none of which follow.
    socket.write(Buffer.from('82ff000000008000000000000000', 'hex'));
    await once(socket, 'close');
    const closing = Buffer.concat(received).subarray(-4).toString('hex');
    expect(closing).toBe('880203f1'); // Close, 2 bytes, 1009.
    expect((await request('GET', `${url}/health`)).status).toBe(200);
  });

  test("a name is its worker's while it is connected, and then the next one's", async () => {
    const { url } = await start(await folder());
    await createRun(url);
    const first = await ProtocolWorker.connect(url, { name: 'same' });
    const work = await first.enter(problem);
    const second = await ProtocolWorker.connect(url, { name: 'same' });
    second.hello();
    expect(await second.expect('error')).toMatchObject({ code: 'DP_NAME_TAKEN' });
    expect(await second.next()).toMatchObject({ kind: 'closed', code: 4409 });
    first.push(problem, work);
    expect((await first.expect('work')).acknowledgements[0]!.outcome).toBe('applied');
    // The same process, that has lost its connection and does not know whether the server has.
    const { incarnation } = first;
    const again = await ProtocolWorker.connect(url, { name: 'same', incarnation });
    await again.enter(problem);
    expect((await first.expect('error')).code).toBe('DP_SESSION_REPLACED');
    again.terminate();
    for (;;) {
      const third = await ProtocolWorker.connect(url, { name: 'same' });
      third.hello();
      const said = await third.next();
      if (said.kind === 'message' && said.message.type === 'assign') break;
      expect(said).toMatchObject({ message: { code: 'DP_NAME_TAKEN' } });
    }
  });
});

describe('access', () => {
  test('without the token nothing but /health answers', async () => {
    const { url } = await start(await folder(), 's3cret');
    expect((await request('GET', `${url}/health`)).status).toBe(200);
    expect(await request('GET', `${url}/status`)).toMatchObject({
      status: 401,
      body: { code: 'DP_UNAUTHORIZED' },
    });
    expect((await request('GET', `${url}/status`, undefined, 'wrong')).status).toBe(401);
    expect((await request('GET', `${url}/status`, undefined, 's3cret')).status).toBe(200);
    await expect(ProtocolWorker.connect(url)).rejects.toThrow(/401/);
    await expect(ProtocolWorker.connect(url, { token: 'wrong' })).rejects.toThrow(/401/);
    await createRun(url, {}, 's3cret');
    const worker = await ProtocolWorker.connect(url, { token: 's3cret' });
    await worker.enter(problem);
  });

  test('a server open to the network needs a token, or the word --insecure', async () => {
    const { signal } = new AbortController();
    await expect(
      serve({ host: '0.0.0.0', port: 0, state: await folder(), signal }),
    ).rejects.toMatchObject({
      code: 'DP_USAGE',
    });
  });

  test('an address that is taken is a clear error, and the state is free again', async () => {
    const { url } = await start(await folder());
    const state = await folder();
    const { signal } = new AbortController();
    const port = Number(new URL(url).port);
    await expect(serve({ host: '127.0.0.1', port, state, signal })).rejects.toMatchObject({
      code: 'DP_USAGE',
      message: expect.stringContaining('another program listens there'),
    });
    await start(state);
  });

  test('a second server on the same folder is refused, and says who has it', async () => {
    const state = await folder();
    await start(state);
    await expect(start(state)).rejects.toMatchObject({
      code: 'DP_STATE_LOCKED',
      message: expect.stringContaining(String(process.pid)),
    });
  });
});

describe('REST', () => {
  test('unknown fields, wrong types and wrong names are refused, each named', async () => {
    const { url } = await start(await folder());
    const body = { experiment: 'regression', experimentHash: 'hash' };
    const wrong: [object, string, RegExp][] = [
      [{ ...body, batchsize: 3 }, 'DP_BODY_INVALID', /batchsize/],
      [{ ...body, config: { batchsize: 3 } }, 'DP_CONFIG_INVALID', /did you mean 'minibatchSize'/],
      [{ ...body, config: { minibatchSize: '3' } }, 'DP_CONFIG_INVALID', /minibatchSize is "3"/],
      [{ ...body, experiment: '../../etc/passwd' }, 'DP_BODY_INVALID', /experiment/],
      [{ experiment: 'regression' }, 'DP_BODY_INVALID', /experimentHash/],
      // In words, and not as a pattern.
      [
        { ...body, id: 'My run' },
        'DP_BODY_INVALID',
        /^body\.id must be 1 to 64 lower-case letters/,
      ],
    ];
    for (const [json, code, message] of wrong) {
      const answer = await request('POST', `${url}/runs`, json);
      expect(answer).toMatchObject({ status: 400, body: { code } });
      expect((answer.body as { message: string }).message).toMatch(message);
    }
    expect(await request('PATCH', `${url}/runs/any`, { addTags: ['two words'] })).toMatchObject({
      status: 400,
      body: { message: expect.stringMatching(/^body\.addTags\.0 must be a tag without spaces/) },
    });
    expect(await request('GET', `${url}/runs/nowhere`)).toMatchObject({
      status: 404,
      body: { code: 'DP_RUN_UNKNOWN' },
    });
    expect(await request('GET', `${url}/nowhere`)).toMatchObject({
      status: 404,
      body: { code: 'DP_NOT_FOUND' },
    });
  });

  test('a run id is used once', async () => {
    const { url } = await start(await folder());
    const body = { id: 'mine', experiment: 'regression', experimentHash: 'hash' };
    expect((await request('POST', `${url}/runs`, body)).status).toBe(201);
    expect(await request('POST', `${url}/runs`, body)).toMatchObject({
      status: 409,
      body: { code: 'DP_RUN_EXISTS' },
    });
  });

  test('the OpenAPI document names every route with its answers', async () => {
    const { url } = await start(await folder());
    const { body } = await request<{
      paths: Record<string, Record<string, { responses: object }>>;
    }>('GET', `${url}/openapi.json`);
    for (const [path, methods] of Object.entries(body.paths)) {
      for (const [method, { responses }] of Object.entries(methods)) {
        const told = [expect.stringMatching(/^20\d$/), '4XX', '5XX'];
        expect(Object.keys(responses), `${method} ${path}`).toEqual(told);
      }
    }
    expect(Object.keys(body.paths).sort()).toEqual([
      '/bundles/{sha256}',
      '/feed',
      '/health',
      '/join/files/{name}',
      '/join/ticket',
      '/metrics',
      '/openapi.json',
      '/runs',
      '/runs/{id}',
      '/runs/{id}/checkpoint',
      '/runs/{id}/checkpoints',
      '/runs/{id}/checkpoints/{kind}/file',
      '/runs/{id}/data',
      '/runs/{id}/examples',
      '/runs/{id}/log',
      '/runs/{id}/metrics',
      '/runs/{id}/observations',
      '/runs/{id}/resume',
      '/runs/{id}/stop',
      '/runs/{id}/test',
      '/runs/{id}/workers',
      '/session',
      '/status',
      '/studies',
      '/studies/{name}',
      '/timeline',
    ]);
  });

  test('keeps what workers tell beside work: of the one that evaluates, and not too often', async () => {
    const { url } = await start(await folder());
    const id = await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    const machine = {
      ...{ type: 'machine', cores: 2, cpuCores: 0.5, memoryBytes: 1e8, memoryBytesMax: 1e9 },
      ...{ tensorBytes: 1e6, gpuShare: null, gpuMemoryBytes: null, gpuMemoryBytesMax: null },
    };
    const first = await worker.enter(problem, { engine: 'the faster one' });
    worker.send(machine);
    // Too soon after the last one.
    worker.send({ ...machine, ...{ cpuCores: 2 } });
    const shown = [
      {
        shown: { kind: 'text', text: 'x: 1' },
        caption: ['is <b>1</b>, said 2'],
        wrong: true,
      },
    ] as const;
    const evaluated = {
      ...{ type: 'evaluated', run: id, evaluation: 1e6, loss: 1, error: 1, examples: 1 },
      ...{ metrics: {}, shown },
    };
    // Nobody has asked this worker.
    worker.send(evaluated);
    const client = createRestClient({ server: url });
    await expect
      .poll(async () => (await client.workers(id))[0]?.machine)
      .toMatchObject({ cpuCores: 0.5 });
    // What it computes this run with, which `hello` could not say.
    expect((await client.workers(id))[0]?.engine).toBe('the faster one');
    expect(await client.examples(id)).toEqual({ step: null, at: null, examples: [] });
    const asked: number[] = [];
    const { send } = worker;
    worker.send = (message: { type: string }, ...more) => {
      const isAnswer = message.type === 'evaluated';
      if (isAnswer) asked.push((message as unknown as { evaluation: number }).evaluation);
      send.call(worker, isAnswer ? { ...message, shown } : message, ...more);
    };
    await worker.work(problem, first);
    expect(asked.length).toBeGreaterThan(0);
    const { step, examples } = await client.examples(id);
    expect(examples).toEqual(shown);
    const { evaluations } = await client.metrics(id);
    expect(step).toBe(evaluations.findLast(({ part }) => part === 'validation')!.step);
    const { lines } = await client.runLog(id);
    const texts = lines.map(({ text }) => text);
    expect(texts[0]).toContain(`run ${id} created`);
    expect(texts.some((text) => text.includes(`${worker.name} takes part`))).toBe(true);
    expect(texts.some((text) => text.includes('→ finished'))).toBe(true);
    expect((await client.runLog(id, 1)).lines).toHaveLength(1);
    const refused = await request('GET', `${url}/runs/${id}/log?lines=201`);
    expect(refused.status).toBe(400);
    // More than a dozen are no message of the protocol.
    const other = await ProtocolWorker.connect(url);
    other.send({ ...evaluated, ...{ shown: new Array(13).fill(shown[0]) } });
    const { message } = (await other.next()) as { message: { type: string; code: string } };
    expect(message).toMatchObject({ type: 'error', code: 'DP_FRAME_MALFORMED' });
    other.close();
  });

  test('answers are of the shapes that the schemas say, and nothing more', async () => {
    const { url } = await start(await folder());
    const id = await createRun(url);
    const worker = await ProtocolWorker.connect(url);
    await worker.work(problem, await worker.enter(problem));
    const shapes: readonly (readonly [string, TSchema])[] = [
      ['/health', HealthSchema],
      ['/status', StatusSchema],
      ['/timeline', TimelineSchema],
      [`/runs/${id}`, RunDetailSchema],
      [`/runs/${id}/data`, RunDataSchema],
      [`/runs/${id}/metrics`, MetricsSchema],
      [`/runs/${id}/observations`, ObservationsSchema],
      [`/runs/${id}/examples`, RunExamplesSchema],
      [`/runs/${id}/log`, RunLogSchema],
      [`/runs/${id}/workers`, Type.Object({ workers: Type.Array(WorkerSummarySchema) })],
      [
        `/runs/${id}/checkpoints`,
        Type.Object({ checkpoints: Type.Array(CheckpointSummarySchema) }),
      ],
    ];
    for (const [path, schema] of shapes) {
      const { body } = await request('GET', url + path);
      expect([path, ...Value.Errors(schema, body)]).toEqual([path]);
      expect(Value.Clean(schema, structuredClone(body)), path).toEqual(body);
    }
    const { body } = await request<RunData>('GET', `${url}/runs/${id}/data`);
    expect(body).toEqual({ summary: problem.summary, facts: decodeFacts(FACTS) });
  });

  test('the OpenAPI document is one, and the client has each of its routes', async () => {
    const { url } = await start(await folder());
    const asked = new Set<string>();
    const client = createRestClient({
      server: url,
      fetch: async (place, init) => {
        const { pathname } = new URL(String(place));
        const path = pathname
          .replace(/^\/runs\/r(?=\/|$)/, '/runs/{id}')
          .replace('/studies/s', '/studies/{name}')
          .replace(/^\/bundles\/\w+$/, '/bundles/{sha256}');
        asked.add(`${init?.method ?? 'GET'} ${path.replace('/last/', '/{kind}/')}`);
        return fetch(place, init);
      },
    });
    const document = await client.openapi();
    const { valid, errors } = await new Validator().validate({ ...document });
    expect({ valid, errors }).toEqual({ valid: true, errors: undefined });
    await client.createRun({ id: 'r', experiment: 'regression', experimentHash: 'hash' });
    const calls: Record<Exclude<keyof RestClient, 'url'>, () => Promise<unknown>> = {
      openapi: () => client.openapi(),
      prometheus: () => client.prometheus(),
      health: () => client.health(),
      status: () => client.status(),
      timeline: () => client.timeline(),
      createRun: () => client.createRun({ id: 'r', experiment: 'e', experimentHash: 'h' }),
      runs: () => client.runs(),
      run: () => client.run('r'),
      stop: () => client.stop('r'),
      resume: () => client.resume('r'),
      checkpoint: () => client.checkpoint('r'),
      test: () => client.test('r'),
      metrics: () => client.metrics('r'),
      observations: () => client.observations('r'),
      examples: () => client.examples('r'),
      runLog: () => client.runLog('r'),
      runData: () => client.runData('r'),
      workers: () => client.workers('r'),
      checkpoints: () => client.checkpoints('r'),
      checkpointFile: () => client.checkpointFile('r', 'last'),
      sendBundle: () => client.sendBundle('ab'.repeat(32), Buffer.from('x')),
      bundle: () => client.bundle('ab'.repeat(32)),
      studies: () => client.studies(),
      study: () => client.study('s'),
      tellStudy: () => client.tellStudy('s', {} as StudyReport),
      removeStudy: () => client.removeStudy('s'),
      editRun: () => client.editRun('r', { tags: ['x'] }),
      removeRun: () => client.removeRun('r'),
    };
    for (const call of Object.values(calls)) {
      // The run is new: what it cannot do yet has been asked for all the same.
      await call().catch((error) => expect(error).toBeInstanceOf(DownpourError));
    }
    const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    );
    // Routes of browsers: a stream of events, the cookie that stands for a token, and what a worker in a page is made of.
    const ofPages = [
      ...['GET /feed', 'GET /session', 'POST /session', 'DELETE /session'],
      ...['GET /join/files/{name}', 'POST /join/ticket'],
    ];
    expect([...asked, ...ofPages].sort()).toEqual(routes.sort());
  });
});
