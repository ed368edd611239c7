import { afterEach, describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import type { FeedUpdate, RunPage, Status } from '../../shared/rest.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { openTestServer } from '../support/open-server.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';

/** Lists of runs: in pages, and at a cost that does not grow with the runs that stand still. */

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const CONFIG = {
  minibatchSize: 4,
  earlyStopping: { enabled: false },
  evaluateEverySteps: 1e9,
  stepsMax: 1e9,
};

async function start(runCount: number) {
  const { url, close } = await openTestServer();
  cleanUps.push(close);
  const client = createRestClient({ server: url, timeoutMs: 60_000 });
  const ids = Array.from({ length: runCount }, (_, i) => `r-${i}`);
  for (const id of ids) {
    await client.createRun({
      id,
      experiment: 'regression',
      experimentHash: 'hash',
      config: CONFIG,
    });
  }
  const get = async <A>(path: string) => {
    const response = await fetch(url + path);
    return { status: response.status, body: (await response.json()) as A };
  };
  return { url, client, ids, get };
}

const idsOf = ({ runs }: { readonly runs: readonly { readonly id: string }[] }) =>
  runs.map(({ id }) => id);

describe('GET /runs', () => {
  test('tells all without a limit, as ever, and pages with one', async () => {
    const { client, ids, get } = await start(7);
    const all = await get<RunPage>('/runs');
    expect(idsOf(all.body)).toEqual(ids);
    expect(all.body.next).toBeNull();
    const first = await get<RunPage>('/runs?limit=3');
    expect(idsOf(first.body)).toEqual(ids.slice(0, 3));
    expect(first.body.next).toBe('r-2');
    const last = await get<RunPage>('/runs?limit=3&after=r-5');
    expect(last.body).toMatchObject({ runs: [{ id: 'r-6' }], next: null });
    expect(idsOf({ runs: await client.runs() })).toEqual(ids);
  });

  test('says what is wrong with a question', async () => {
    const { get } = await start(1);
    for (const [query, code, status] of [
      ['limit=0', 'DP_BODY_INVALID', 400],
      ['limit=10001', 'DP_BODY_INVALID', 400],
      ['limit=ten', 'DP_BODY_INVALID', 400],
      ['after=nobody', 'DP_RUN_UNKNOWN', 404],
      ['after=..%2Fx', 'DP_BODY_INVALID', 400],
      ['from=r-0', 'DP_BODY_INVALID', 400],
    ] as const) {
      expect(await get(`/runs?${query}`), query).toMatchObject({ status, body: { code } });
    }
    expect(await get('/runs?limit=10000')).toMatchObject({ status: 200 });
  });
});

test('GET /status tells of as many runs as are wanted, and how many there are', async () => {
  const { client, ids, get } = await start(6);
  await client.stop('r-0');
  await client.stop('r-5');
  const { body: all } = await get<Status>('/status');
  expect(idsOf(all)).toEqual(ids);
  expect(all.runCount).toBe(6);
  const some = await client.status(5);
  // Those at work, then the newest, in the order of creation.
  expect(idsOf(some)).toEqual(['r-1', 'r-2', 'r-3', 'r-4', 'r-5']);
  expect(some.runCount).toBe(6);
  expect(some.alerts.map(({ text }) => text)).toEqual([
    expect.stringContaining('4 runs wait for a worker'),
  ]);
});

test('no question makes the server read runs that stand still', async () => {
  const { url, client, get } = await start(40);
  await client.stop('r-3');
  const worker = await ProtocolWorker.connect(url);
  const problem = createProblem();
  const work = await worker.enter(problem);
  await worker.trainTo(problem, work, work.step + 3);
  const look = async () => {
    await get('/runs');
    await get('/status');
    await (await fetch(`${url}/metrics`)).text();
    const feed = await fetch(`${url}/feed`);
    await feed.body!.getReader().read();
    await feed.body!.cancel().catch(() => {});
  };
  await look();
  const read: string[] = [];
  const { summary } = Run.prototype;
  Run.prototype.summary = function (now) {
    read.push(this.id);
    return summary.call(this, now);
  };
  cleanUps.push(() => {
    Run.prototype.summary = summary;
  });
  for (let i = 0; i < 10; i++) await look();
  await client.stop('r-7');
  for (let i = 0; i < 10; i++) await look();
  const timesOf = (id: string) => read.filter((each) => each === id).length;
  // The one at work each time; one that was stopped when it was, and when that was on disk.
  expect(timesOf(work.run)).toBeGreaterThanOrEqual(60);
  for (const id of ['r-3', 'r-7']) expect(timesOf(id), id).toBeLessThan(8);
  expect([...new Set(read)].sort()).toEqual(expect.not.arrayContaining(['r-1', 'r-39']));
  expect(new Set(read).size).toBeLessThanOrEqual(3);
  worker.close();
});

test('what is told of a run is as new as the question', async () => {
  const { url, client, get } = await start(2);
  const problem = createProblem();
  const worker = await ProtocolWorker.connect(url);
  const work = await worker.enter(problem);
  const of = async () => {
    const { body } = await get<RunPage>('/runs');
    return body.runs.find(({ id }) => id === work.run)!;
  };
  expect(await of()).toMatchObject({ workers: 1, phase: 'training' });
  await worker.trainTo(problem, work, 5);
  expect((await of()).step).toBe(5);
  await client.checkpoint(work.run);
  expect((await of()).checkpoint?.step).toBe(5);
  const stopped = await client.stop(work.run);
  expect(await of()).toEqual(await client.run(work.run).then((run) => pick(run, stopped)));
  await client.resume(work.run);
  expect((await of()).phase).toBe('training');
  worker.close();
});

const pick = (run: object, like: object) =>
  Object.fromEntries(Object.entries(run).filter(([key]) => key in like));

test('the feed tells all runs in the end', async () => {
  const { url, ids } = await start(230);
  const feed = await fetch(`${url}/feed`);
  const reader = feed.body!.pipeThrough(new TextDecoderStream()).getReader();
  cleanUps.push(() => reader.cancel());
  const seen = new Set<string>();
  let text = '';
  for (let rest = 1; rest > 0; ) {
    text += (await reader.read()).value ?? '';
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      if (!event.startsWith('data: ')) continue;
      const update = JSON.parse(event.slice(6)) as FeedUpdate;
      expect(update.runs.length).toBeLessThanOrEqual(201);
      for (const { id } of update.runs) seen.add(id);
      rest = update.rest!;
    }
  }
  expect(seen).toEqual(new Set(ids));
});
