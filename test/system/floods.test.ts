import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { socketLimits } from '../../server/access/sockets.ts';
import { type ServeOptions, serve } from '../../server/main.ts';
import { runShard } from '../../server/shards/main.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { until } from '../support/until.ts';

/** Many sockets without a token, as many as a port may have of them and half as many again. */

const TOKEN = 'a-secret-of-this-test';
const { strangerCountMax } = socketLimits();
const FLOOD = Math.round(1.5 * strangerCountMax);
const CONFIG = { stepsMax: 30, evaluateEverySteps: 10, earlyStopping: { enabled: false } };

let engine: Engine;
const ends: (() => unknown)[] = [];
beforeAll(async () => {
  engine = await openEngine({ engine: 'cpu' });
});
afterAll(async () => {
  for (const end of ends.reverse()) await end();
});

/** Sockets that send this once and stay. */
async function flood(port: number, text: string): Promise<{ readonly open: number }> {
  const sockets: Socket[] = [];
  let open = 0;
  for (let i = 0; i < FLOOD; i++) {
    const socket = connect(port, '127.0.0.1');
    sockets.push(socket);
    socket.on('error', () => {});
    await new Promise((resolve) => socket.once('connect', resolve));
    open++;
    socket.once('close', () => open--);
    socket.resume();
    if (text !== '') socket.write(text);
  }
  ends.push(() => {
    for (const socket of sockets) socket.destroy();
  });
  // Those that gave their places are told by and by.
  await until('no more than may be are open', () => open <= strangerCountMax, { everyMs: 20 });
  return {
    get open() {
      return open;
    },
  };
}

const HEALTH = 'GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n';

describe.each([
  ['idle connections to /health', HEALTH],
  ['connections that say nothing', ''],
  ['requests that are begun and left lying', 'POST /runs HTTP/1.1\r\nHost: 127.0.0.1\r\n'],
  ['refused requests', HEALTH.replace('/health', '/runs')],
])('%s', (_, text) => {
  test('leave places for workers and for requests with a token', async () => {
    const cluster = await Cluster.start(engine, { token: TOKEN, localSocket: false });
    ends.push(() => cluster.close());
    const port = Number(new URL(cluster.url).port);
    await cluster.createRun('before', join(FIXTURES, 'cars.ts'), { ...CONFIG, workersMin: 2 });
    // It is connected already, and waits for another one.
    const early = cluster.work('before', 'early', { token: TOKEN });
    await expect
      .poll(async () => (await cluster.client.status()).workers.length, { timeout: 60_000 })
      .toBe(1);
    const { open } = await flood(port, text);
    expect(open).toBeLessThanOrEqual(strangerCountMax);
    const late = cluster.work('before', 'late', { token: TOKEN });
    await Promise.all([early.done, late.done]);
    const run = await cluster.client.run('before');
    expect(run).toMatchObject({ phase: 'finished', step: CONFIG.stepsMax });
    expect(run.workers).toBeLessThanOrEqual(2);
    await cluster.close();
  });
});

test('a shard takes its server and workers in beside them', async () => {
  const stop = new AbortController();
  const state = mkdtempSync(join(tmpdir(), 'downpour-floods-'));
  const shard = await runShard({
    ...{ host: '127.0.0.1', port: 0, state, token: TOKEN, localSocket: false },
    signal: stop.signal,
  });
  ends.push(async () => {
    stop.abort();
    await shard.closed;
    rmSync(state, { recursive: true, force: true });
  });
  const { open } = await flood(Number(new URL(shard.url).port), HEALTH);
  expect(open).toBeLessThanOrEqual(strangerCountMax);
  const options = { token: TOKEN, localSocket: false, state, shards: 2, shardsFrom: 'store' };
  const cluster = await Cluster.start(engine, options as Partial<ServeOptions>);
  const config = { ...CONFIG, hyperparameters: { units: 64 } };
  await cluster.createRun('digits', join(FIXTURES, 'few-digits.ts'), config);
  await cluster.work('digits', 'one', { token: TOKEN }).done;
  expect(await cluster.client.run('digits')).toMatchObject({ phase: 'finished', step: 30 });
  await cluster.close();
});

test('a standby says beside them that it is one', async () => {
  const primary = await Cluster.start(engine, { token: TOKEN });
  ends.push(() => primary.close());
  const stop = new AbortController();
  const standby = await serve({
    ...{ host: '127.0.0.1', port: 0, state: primary.state, token: TOKEN },
    ...{ standbyOf: primary.url, signal: stop.signal },
  });
  ends.push(async () => {
    stop.abort();
    await standby.closed;
  });
  const { open } = await flood(Number(new URL(standby.url).port), HEALTH);
  expect(open).toBeLessThanOrEqual(strangerCountMax);
  const health = await fetch(`${standby.url}/health`);
  expect(await health.json()).toMatchObject({ status: 'standby' });
});
