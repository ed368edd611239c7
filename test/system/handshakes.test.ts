import { request } from 'node:http';
import { afterEach, expect, test } from 'vitest';
import { FloodClient, type FloodRun, helloOf, joinOf } from '../../bench/floods/client.ts';
import type { ServeOptions } from '../../server/main.ts';
import { LIMITS } from '../../shared/limits.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { Client } from '../../worker/client.ts';
import { openTestServer } from '../support/open-server.ts';

/** How often workers may connect: who comes back again and again is refused, a cluster that comes at once is not. */

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const RUN: FloodRun = { run: 'r', experiment: 'e', experimentHash: 'h', elements: 250 };
const HANDSHAKES = 3;
const FEW = { handshakesPerSecondMax: 0.01, connectionsPerTokenMax: HANDSHAKES };

async function start(options: Partial<ServeOptions> = {}) {
  const server = await openTestServer(options);
  cleanUps.push(server.close);
  return server;
}

async function connect(url: string, token?: string): Promise<FloodClient> {
  const client = await FloodClient.open(url, token === undefined ? {} : { token });
  cleanUps.push(() => client.destroy());
  return client;
}

/** Comes and goes; resolves when the server knows it. */
async function comeAndGo(url: string, token?: string): Promise<void> {
  const client = await connect(url, token);
  client.destroy();
  await client.closed;
}

interface Answer {
  readonly status: number;
  readonly retryAfter: string | undefined;
  readonly body: { readonly code: string; readonly message: string };
}

/** What the server answers to a handshake. */
function shake(url: string, token?: string): Promise<Answer | 'opened'> {
  return new Promise((resolve, reject) => {
    const asked = request(`${url}/ws`, {
      headers: {
        ...{ upgrade: 'websocket', connection: 'upgrade', 'sec-websocket-version': '13' },
        'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      },
    });
    asked.on('error', reject);
    asked.on('upgrade', (_, socket) => {
      socket.destroy();
      resolve('opened');
    });
    asked.on('response', async (response) => {
      const text = (await response.toArray()).join('');
      const { statusCode, headers } = response;
      resolve({
        ...{ status: statusCode!, retryAfter: headers['retry-after'], body: JSON.parse(text) },
      });
    });
    asked.end();
  });
}

test('a token that connects too often is told when to come again; all others go on', async () => {
  const { url } = await start({ token: 'o', workerToken: 'w', limits: FEW });
  const stays = await connect(url, 'w');
  for (let i = 1; i < HANDSHAKES; i++) await comeAndGo(url, 'w');
  const refused = await shake(url, 'w');
  expect(refused).toMatchObject({ status: 429, body: { code: 'DP_LIMIT' } });
  const { retryAfter, body } = refused as Answer;
  // 100 s after the first one.
  expect(Number(retryAfter)).toBeGreaterThan(50);
  expect(Number(retryAfter)).toBeLessThanOrEqual(100);
  expect(body.message).toContain('0.01 times a second, and 3 times at once');
  expect(body.message).toContain(`connect again in ${retryAfter} s`);
  expect(stays.ended).toBe(null);
  // Another token, and what is no handshake.
  expect(await shake(url, 'o')).toBe('opened');
  await createRestClient({ server: url, token: 'o' }).status();
});

test('who comes too soon waits for the answer, but nobody else does, and few wait at a time', async () => {
  const { url } = await start({
    token: 'o',
    workerToken: 'w',
    limits: { ...FEW, connectionsPerTokenMax: 1, refusalHeldMs: 15_000 },
  });
  await comeAndGo(url, 'w');
  const answers: string[] = [];
  const note = (what: string) => () => void answers.push(what);
  const waiting = Array.from({ length: LIMITS.refusalsHeldMax }, () =>
    shake(url, 'w').then(note('held')),
  );
  const refusals = async () => {
    const headers = { authorization: 'Bearer o' };
    const text = await (await fetch(`${url}/metrics`, { headers })).text();
    return Number(/downpour_errors_total\{code="DP_LIMIT"\} (\d+)/.exec(text)?.[1] ?? 0);
  };
  await expect.poll(refusals, { timeout: 14_000, interval: 20 }).toBe(LIMITS.refusalsHeldMax);
  expect(answers).toEqual([]);
  await shake(url, 'w').then(note('one too many'));
  expect(answers[0]).toBe('one too many');
  await Promise.all(waiting);
  expect(answers.length).toBe(LIMITS.refusalsHeldMax + 1);
});

test('without tokens they are counted by address', async () => {
  const { url } = await start({ limits: FEW });
  for (let i = 0; i < HANDSHAKES; i++) await comeAndGo(url);
  expect(await shake(url)).toMatchObject({ status: 429, body: { code: 'DP_LIMIT' } });
  await createRestClient({ server: url }).status();
});

test('after a while it may connect again', async () => {
  const { url } = await start({ limits: { ...FEW, handshakesPerSecondMax: 2 } });
  for (let i = 0; i < HANDSHAKES; i++) await comeAndGo(url);
  await expect.poll(() => shake(url), { timeout: 120_000 }).toBe('opened');
});

const FAULTS: [what: string, commit: (client: FloodClient) => void, code: number][] = [
  ['a malformed message', (client) => client.send({ type: 'nonsense' }), 1007],
  ['a message out of order', (client) => client.send({ type: 'leave', failure: null }), 1002],
  ['a broken frame', (client) => client.write(Uint8Array.of(0xff, 0x80, 0, 0, 0, 0)), 1002],
  ['a payload where none belongs', (client) => client.begin({ type: 'leave' }, 4), 1007],
];

test.each(FAULTS)('%s counts as ten handshakes', async (_, commit, code) => {
  const left = 4;
  const limits = {
    ...FEW,
    connectionsPerTokenMax: LIMITS.handshakesPerFault + left,
  };
  const { url } = await start({ limits });
  const client = await connect(url);
  commit(client);
  expect((await client.closed).code).toBe(code);
  for (let i = 0; i < left; i++) await comeAndGo(url);
  await expect.poll(() => shake(url)).toMatchObject({ status: 429 });
});

test('a refusal that is no fault of the protocol counts once', async () => {
  const { url } = await start({ limits: FEW });
  const client = await connect(url);
  const { name: worker, incarnation } = client;
  client.send({
    ...{ type: 'hello', worker, incarnation, run: 'nobodys', experiments: {} },
    ...{ engine: 'none', device: 'none' },
  });
  expect((await client.closed).code).toBe(4404);
  for (let i = 1; i < HANDSHAKES; i++) await comeAndGo(url);
  expect(await shake(url)).toMatchObject({ status: 429 });
});

test('as many workers as a server may have join at once', async () => {
  // They are in this process too: on a busy machine it reads the last request long after its connection.
  const limits = { requestHeaderMs: 600_000, requestMs: 600_000 };
  const { url } = await start({ token: 'o', workerToken: 'w', limits });
  const client = createRestClient({ server: url, token: 'o', timeoutMs: 60_000 });
  await client.createRun({ id: 'r', experiment: 'e', experimentHash: 'h', config: {} });
  const first = await connect(url, 'w');
  first.send(helloOf(first, RUN));
  await first.expect('assign');
  first.send(joinOf(RUN));
  const { grant } = await first.expect('initialise');
  first.send({ type: 'initialised', run: RUN.run, grant }, new Uint8Array(4 * RUN.elements));
  await first.expect('work');
  const others = Array.from({ length: LIMITS.workerCountMax - 1 }, async () => {
    const worker = await connect(url, 'w');
    await worker.enter(RUN);
    return worker;
  });
  await Promise.all(others);
  expect((await client.status()).workers.length).toBe(LIMITS.workerCountMax);
});

test('a worker that is refused waits as long as it is told', async () => {
  const { url } = await start({ limits: { ...FEW, handshakesPerSecondMax: 0.2 } });
  const rest = createRestClient({ server: url });
  for (let i = 0; i < HANDSHAKES; i++) await comeAndGo(url);
  const stop = new AbortController();
  const client = new Client({
    server: url,
    hello: { worker: 'w', run: null, experiments: {}, engine: 'none', device: 'none' },
    signal: stop.signal,
    localSocket: false,
    log: () => {},
  });
  await expect.poll(() => client.connected, { timeout: 120_000 }).toBe(true);
  const line = (await rest.prometheus())
    .split('\n')
    .find((each) => each.startsWith('downpour_errors_total{code="DP_LIMIT"}'));
  // Asking ever more rarely from a quarter of a second on, it would have been refused several times in the 5 seconds.
  expect(Number(line!.split(' ')[1])).toBeLessThanOrEqual(1);
  await client.close();
});
