import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { copyRun } from '../support/many-runs.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { startServerProcess } from '../support/server-process.ts';
import { useStateFolder } from '../support/state-folder.ts';
import { until } from '../support/until.ts';

/** A state folder with many runs: the server listens before it has read them, and nothing of them is lost or mistaken. */

const problem = createProblem();
const CONFIG = {
  ...{ minibatchSize: 4, learningRate: 0.01, stepsMax: 12, evaluateEverySteps: 4 },
  ...{ earlyStopping: { enabled: false }, testAtEnd: false },
};

let state: string;
const cleanUps = useStateFolder('many', (folder) => {
  state = folder;
});

interface Server extends Serving {
  readonly client: RestClient;
  readonly lines: string[];
  end(): Promise<void>;
}

async function start(options: Partial<ServeOptions> = {}): Promise<Server> {
  const controller = new AbortController();
  const lines: string[] = [];
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state, localSocket: false, signal: controller.signal },
    log: (line) => lines.push(line),
    ...options,
  });
  const end = async () => {
    controller.abort();
    await serving.closed;
  };
  cleanUps.push(end);
  const client = createRestClient({ server: serving.url, timeoutMs: 60_000 });
  return { ...serving, client, lines, end };
}

async function enter(url: string, run: string | null): Promise<ProtocolWorker> {
  const worker = await ProtocolWorker.connect(url);
  cleanUps.push(() => worker.terminate());
  worker.hello('hash', run);
  return worker;
}

/** One run that is finished, one that is being trained, and copies of both. */
async function make(finished: number, unfinished: number): Promise<void> {
  const { url, client, end } = await start();
  const of = { experiment: 'regression', experimentHash: 'hash' };
  for (const id of ['over-0', 'open-0']) {
    await client.createRun({ id, ...of, config: CONFIG });
    const worker = await enter(url, id);
    worker.join(await worker.expect('assign'), problem);
    worker.initialise(await worker.expect('initialise'));
    const first = await worker.expect('work');
    if (id === 'over-0') await worker.work(problem, first);
    else await worker.trainTo(problem, first, first.step + 3);
    worker.terminate();
  }
  await end();
  const names = (name: string, count: number) =>
    Array.from({ length: count - 1 }, (_, i) => `${name}-${i + 1}`);
  await copyRun(state, 'over-0', names('over', finished));
  await copyRun(state, 'open-0', names('open', unfinished));
}

async function readAll(client: RestClient): Promise<readonly RunSummary[]> {
  for (;;) {
    const status = await client.status();
    if (!status.runsRead) return status.runs;
    expect(status.runsRead.done).toBeLessThan(status.runsRead.of);
    expect(status.alerts.map(({ text }) => text).join()).toContain('the server has just started');
    await wait(20);
  }
}

/** The part of a summary that a restart must not change. */
const kept = ({ id, phase, step, best, validation, checkpoint }: RunSummary) => ({
  ...{ id, phase, step, best, checkpoint },
  loss: validation?.loss,
});

describe('a folder with 1,000 runs', () => {
  test('is served before they are read; who asks for one gets it', {
    timeout: 240_000,
  }, async () => {
    await make(960, 40);
    const { url, client, lines } = await start();
    const first = await client.status();
    expect(first.runsRead?.of).toBe(1_000);
    expect(first.runs.length).toBeLessThan(1_000);
    // The last one that would be read, and its curves, and its name, which is taken.
    const [run, metrics, again] = await Promise.all([
      client.run('over-1'),
      client.metrics('over-1'),
      client
        .createRun({ id: 'over-2', experiment: 'e', experimentHash: 'h' })
        .catch((error: { code: string }) => error.code),
    ]);
    expect(run).toMatchObject({ phase: 'finished', step: CONFIG.stepsMax });
    expect(metrics.evaluations.length).toBeGreaterThan(0);
    expect(again).toBe('DP_RUN_EXISTS');
    await expect(client.run('nobodys')).rejects.toMatchObject({ code: 'DP_RUN_UNKNOWN' });
    // Workers of a run that waits, of one that is over, and of any.
    const [mine, over, any] = await Promise.all([
      enter(url, 'open-1'),
      enter(url, 'over-3'),
      enter(url, null),
    ]);
    expect((await mine.expect('assign')).run).toBe('open-1');
    expect((await over.expect('end')).phase).toBe('finished');
    expect((await any.expect('assign')).run).toMatch(/^open-/);
    // One that is made meanwhile is the newest.
    await client.createRun({ id: 'new', experiment: 'e', experimentHash: 'h' });
    const all = await readAll(client);
    expect(all).toHaveLength(1_001);
    expect(all.at(-1)!.id).toBe('new');
    expect(new Set(all.map(({ phase }) => phase))).toEqual(
      new Set(['finished', 'training', 'waiting']),
    );
    const order = all.map(({ createdAt, id }) => `${createdAt} ${id}`);
    expect(order).toEqual([...order].sort());
    expect(lines.filter((line) => line.includes('cannot be'))).toEqual([]);
  });

  test('outlives kills and stops while they are read', { timeout: 300_000 }, async () => {
    await make(200, 40);
    const { client, end } = await start();
    const before = (await readAll(client)).map(kept);
    await end();
    for (const ms of [0, 100, 400]) {
      const server = await startServerProcess(state, 0);
      await wait(ms);
      await server.kill();
    }
    const stopped = await startServerProcess(state, 0);
    stopped.child.kill('SIGTERM');
    expect(await stopped.closed).toBe(0);
    const last = await start();
    expect((await readAll(last.client)).map(kept)).toEqual(before);
    expect(last.lines.filter((line) => line.includes('cannot be'))).toEqual([]);
    // A standby that takes over reads them as late, and writes each, since another folder may have the checkpoints.
    const standby = await start({ standbyOf: last.url });
    await until('the standby follows', async () => {
      return (await last.client.status()).standby?.state === 'following';
    });
    await last.end();
    await standby.active;
    expect((await standby.client.status()).runsRead?.of).toBe(240);
    const same = ({
      id,
      phase,
      step,
      best,
    }: Pick<RunSummary, 'id' | 'phase' | 'step' | 'best'>) => ({ id, phase, step, best });
    expect((await readAll(standby.client)).map(same)).toEqual(before.map(same));
    await standby.end();
    const several = await start({ shards: 2 });
    expect((await several.client.status()).runsRead?.of).toBe(240);
    expect((await readAll(several.client)).map(same)).toEqual(before.map(same));
  });
});

test('of few runs all are read before the server listens', async () => {
  await make(20, 12);
  const { client } = await start();
  const status = await client.status();
  expect(status.runsRead).toBe(null);
  expect(status.runs).toHaveLength(32);
});
