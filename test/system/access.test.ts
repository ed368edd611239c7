import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { ticketProtocols } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { WorkerMessage } from '../../shared/protocol.ts';
import type { RunSummary, StudyReport, WorkerSummary } from '../../shared/rest.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { Client } from '../../worker/client.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem, EXCHANGED } from '../support/regression.ts';

const cleanUps: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(
  options: Partial<ServeOptions> = {},
): Promise<Serving & { folder: string; lines: string[]; line(part: string): Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  cleanUps.push(() => rm(folder, { recursive: true, force: true }));
  const controller = new AbortController();
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  const serving = await serve({
    host: '127.0.0.1',
    port: 0,
    state: join(folder, 'state'),
    localSocket: false,
    signal: controller.signal,
    log: (text) => {
      lines.push(text);
      for (const look of waiting) look();
    },
    ...options,
  });
  cleanUps.push(async () => {
    controller.abort();
    await serving.closed;
  });
  const line = (part: string) =>
    new Promise<void>((resolve) => {
      const look = () => {
        if (!lines.some((text) => text.includes(part))) return;
        waiting.delete(look);
        resolve();
      };
      waiting.add(look);
      look();
    });
  return { ...serving, folder, lines, line };
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: { readonly code?: string; readonly message?: string };
}

function ask(
  url: string,
  {
    method = 'GET',
    headers = {},
    body,
  }: { method?: string; headers?: object; body?: unknown } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const request = httpRequest(
      url,
      {
        method,
        agent: false,
        headers: {
          ...(text === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
          ...headers,
        },
      },
      async (response) => {
        const { headers, statusCode: status } = response;
        if (headers['content-type'] === 'text/event-stream') {
          // It has no end.
          resolve({ status: status!, headers, body: {} });
          request.destroy();
          return;
        }
        let all = '';
        for await (const chunk of response) all += String(chunk);
        resolve({
          status: response.statusCode!,
          headers: response.headers,
          body: all.startsWith('{') ? JSON.parse(all) : {},
        });
      },
    );
    request.on('error', reject);
    request.end(text);
  });
}

const upgrade = (headers: object = {}) => ({
  headers: {
    connection: 'Upgrade',
    upgrade: 'websocket',
    'sec-websocket-version': '13',
    'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
    ...headers,
  },
});
const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const STUDY: StudyReport = {
  ...{ kind: 'search', state: 'running', experiment: 'regression', run: null, title: 't' },
  ...{ trials: { ended: 0, of: 3 }, headings: ['a'], rows: [['1']], advice: '', figures: [] },
  ...{ omitted: 0, runs: [] },
};
const RUN = { experiment: 'regression', experimentHash: 'hash', config: { epochsMax: 1 } };
/** So many guesses are too many, also where a minute goes by until all have come. */
const GUESSES = 80;
const FEW_REFUSALS = { refusalsPerSecondMax: 1 };

describe('roles', () => {
  const tokens = { token: 'o', workerToken: 'w', observerToken: 'r' };
  /** What each role gets: nobody, a wrong token, observer, worker, operator. */
  const read = [401, 401, 200, 403, 200];
  const change = [401, 401, 403, 403, 200];
  const anybody = [200, 200, 200, 200, 200];
  const TABLE: [method: string, path: string, statuses: number[]][] = [
    ['GET', '/health', [200, 200, 200, 200, 200]],
    ['GET', '/status', read],
    ['GET', '/runs', read],
    ['POST', '/runs', [401, 401, 403, 403, 201]],
    ['GET', '/runs/:id', read],
    ['GET', '/runs/:id/metrics', read],
    ['GET', '/runs/:id/data', read],
    ['GET', '/runs/:id/observations', read],
    ['GET', '/runs/:id/workers', read],
    ['GET', '/runs/:id/examples', read],
    ['GET', '/runs/:id/log', read],
    ['PATCH', '/runs/:id', change],
    ['GET', '/runs/:id/checkpoints', read],
    ['GET', '/runs/:id/checkpoints/:kind/file', read],
    ['POST', '/runs/:id/checkpoint', change],
    ['POST', '/runs/:id/test', change],
    ['GET', '/feed', read],
    ['GET', '/timeline', read],
    ['GET', '/metrics', read],
    ['GET', '/', anybody],
    ['GET', '/dashboard.js', anybody],
    ['GET', '/dashboard.css', anybody],
    ['GET', '/icon.svg', anybody],
    ['GET', '/join', anybody],
    ['GET', '/join.js', anybody],
    // There is none: whoever hears that was let in.
    ['GET', '/join/files/:name', [401, 401, 403, 404, 404]],
    ['POST', '/join/ticket', [401, 401, 403, 200, 200]],
    // A worker reads what its runs have, and an operator alone sends; this one sends no bytes.
    ['GET', '/bundles/:sha256', [401, 401, 403, 404, 404]],
    ['PUT', '/bundles/:sha256', [401, 401, 403, 403, 400]],
    ['GET', '/session', anybody],
    // Whose token it is stands in its body, and there it is an observer's.
    ['POST', '/session', anybody],
    ['DELETE', '/session', [204, 204, 204, 204, 204]],
    ['POST', '/runs/:id/stop', change],
    ['POST', '/runs/:id/resume', change],
    ['GET', '/studies', read],
    ['PUT', '/studies/:name', change],
    ['GET', '/studies/:name', [401, 401, 200, 403, 200]],
    ['DELETE', '/studies/:name', [401, 401, 403, 403, 204]],
    ['GET', '/openapi.json', read],
    ['GET', '/nowhere', [401, 401, 404, 403, 404]],
    ['DELETE', '/runs', [401, 401, 403, 403, 404]],
    // The last one: there is no such run any more.
    ['DELETE', '/runs/:id', [401, 401, 403, 403, 204]],
  ];

  test('each route lets in whom the table says, and the table has all routes', async () => {
    // Two of each five requests are refused, as fast as they are answered.
    const { url } = await start({ ...tokens, limits: { refusalsPerSecondMax: 1000 } });
    const operator = bearer('o');
    await ask(`${url}/runs`, { method: 'POST', headers: operator, body: { id: 'r', ...RUN } });
    await ask(`${url}/runs/r/stop`, { method: 'POST', headers: operator });
    const givens = [{}, bearer('wrong'), bearer('r'), bearer('w'), operator];
    for (const [method, path, statuses] of TABLE) {
      const seen: number[] = [];
      for (const headers of givens) {
        const name = path.startsWith('/join/') ? 'worker.js' : 's';
        const place = path
          .replace(':id', 'r')
          .replace(':kind', 'last')
          .replace(':name', name)
          .replace(':sha256', 'ab'.repeat(32));
        const bodies: Record<string, object> = {
          ...{ 'POST /runs': RUN, 'POST /session': { token: 'r' }, 'PUT /studies/:name': STUDY },
          ...{ 'PATCH /runs/:id': { name: 'Wide' } },
        };
        const body = bodies[`${method} ${path}`];
        const origin = path === '/session' ? { origin: url } : {};
        const answer = await ask(url + place, { method, headers: { ...headers, ...origin }, body });
        // There is no checkpoint: whoever hears that was let in.
        const missing = answer.body.code === 'DP_CHECKPOINT_MISSING';
        seen.push(missing ? 200 : answer.status);
        if (answer.status >= 400) expect(answer.body.code, `${method} ${path}`).toMatch(/^DP_/);
      }
      expect({ method, path, seen }).toEqual({ method, path, seen: statuses });
    }
    const { body } = await ask(`${url}/openapi.json`, { headers: operator });
    const { paths } = body as unknown as { paths: Record<string, object> };
    const routes = Object.entries(paths).flatMap(([path, methods]) =>
      Object.keys(methods).map(
        (method) => `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`,
      ),
    );
    const table = TABLE.map(([method, path]) => `${method} ${path}`);
    expect(routes.filter((route) => !table.includes(route))).toEqual([]);
  });

  test('a worker is let in with a worker’s or an operator’s token', async () => {
    const { url } = await start(tokens);
    for (const token of ['w', 'o']) {
      (await ProtocolWorker.connect(url, { token })).close();
    }
    const answers = await Promise.all(
      [{}, bearer('wrong'), bearer('r')].map((headers) => ask(`${url}/ws`, upgrade(headers))),
    );
    expect(answers.map(({ status, body }) => [status, body.code])).toEqual([
      [401, 'DP_UNAUTHORIZED'],
      [401, 'DP_UNAUTHORIZED'],
      [403, 'DP_FORBIDDEN'],
    ]);
  });

  test('a standby, which gets all parameters, is let in with an operator’s token alone', async () => {
    const { url } = await start(tokens);
    const follow = (headers: object) => ask(`${url}/standby`, upgrade(headers));
    const answers = await Promise.all([{}, bearer('wrong'), bearer('r'), bearer('w')].map(follow));
    expect(answers.map(({ status, body }) => [status, body.code])).toEqual([
      [401, 'DP_UNAUTHORIZED'],
      [401, 'DP_UNAUTHORIZED'],
      [403, 'DP_FORBIDDEN'],
      [403, 'DP_FORBIDDEN'],
    ]);
  });

  test('tokens change without a restart, and who came in with an old one has to leave', async () => {
    const secrets = await mkdtemp(join(tmpdir(), 'downpour-'));
    cleanUps.push(() => rm(secrets, { recursive: true, force: true }));
    const file = join(secrets, 'tokens');
    await writeFile(file, 'operator boss\nworker old\nworker both\n');
    const { url, line } = await start({ tokensFile: file });
    const old = await ProtocolWorker.connect(url, { token: 'old' });
    const both = await ProtocolWorker.connect(url, { token: 'both' });
    await writeFile(file, 'operator boss\nworker new\nworker both\n');
    await line('the tokens have changed: 3');
    await old.expect('error');
    expect(await old.next()).toEqual({ kind: 'closed', code: 4401, reason: 'DP_UNAUTHORIZED' });
    expect((await ask(`${url}/ws`, upgrade(bearer('old')))).status).toBe(401);
    (await ProtocolWorker.connect(url, { token: 'new' })).close();
    both.close();
    expect(await both.next()).toMatchObject({ kind: 'closed', code: 1005 });
  });
});

describe('a login', () => {
  const tokens = { token: 'o', workerToken: 'w', observerToken: 'r' };
  async function logIn(url: string, token: string): Promise<string> {
    const headers = { origin: url };
    const answer = await ask(`${url}/session`, { method: 'POST', headers, body: { token } });
    expect(answer.status).toBe(200);
    return answer.headers['set-cookie']![0]!;
  }
  const pairOf = (cookie: string) => cookie.split(';', 1)[0]!;

  test('stands for its token: what an observer may read, an operator change', async () => {
    const { url } = await start(tokens);
    const observer = await logIn(url, 'r');
    expect(observer).toMatch(/; HttpOnly; SameSite=Strict$/);
    const cookie = pairOf(observer);
    expect((await ask(`${url}/status`, { headers: { cookie } })).status).toBe(200);
    expect((await ask(`${url}/session`, { headers: { cookie } })).body).toEqual({
      ...{ role: 'observer', open: false, works: false },
    });
    const create = (headers: object) => ask(`${url}/runs`, { method: 'POST', headers, body: RUN });
    expect((await create({ cookie, origin: url })).status).toBe(403);
    const operator = pairOf(await logIn(url, 'o'));
    expect((await create({ cookie: operator, origin: url })).status).toBe(201);
  });

  test('counts for this server’s own pages alone, and lets no worker in', async () => {
    const { url } = await start(tokens);
    const cookie = pairOf(await logIn(url, 'o'));
    const port = Number(new URL(url).port);
    const create = (headers: object) => ask(`${url}/runs`, { method: 'POST', headers, body: RUN });
    // The same machine is not the same origin: cookies know no ports.
    for (const origin of [
      undefined,
      'null',
      `http://127.0.0.1:${port + 1}`,
      'http://evil.example',
    ]) {
      const answer = await create({ cookie, ...(origin === undefined ? {} : { origin }) });
      expect([answer.status, answer.body.code], origin).toEqual([403, 'DP_FORBIDDEN']);
    }
    const read = (site: string) =>
      ask(`${url}/status`, { headers: { cookie, 'sec-fetch-site': site } });
    expect((await read('same-origin')).status).toBe(200);
    for (const site of ['same-site', 'cross-site']) expect((await read(site)).status).toBe(403);
    expect((await ask(`${url}/ws`, upgrade({ cookie }))).status).toBe(401);
    const stranger = { origin: 'http://evil.example' };
    const foreign = await ask(`${url}/session`, {
      method: 'POST',
      headers: stranger,
      body: { token: 'o' },
    });
    expect(foreign.status).toBe(403);
  });

  test('to work is a worker’s or an operator’s, and a worker’s reads nothing', async () => {
    const { url } = await start(tokens);
    const attempt = (token: string) =>
      ask(`${url}/session`, {
        method: 'POST',
        headers: { origin: url },
        body: { token, work: true },
      });
    expect(await attempt('r')).toMatchObject({ status: 403, body: { code: 'DP_FORBIDDEN' } });
    expect((await attempt('o')).body).toEqual({ role: 'operator', open: false, works: true });
    const worker = await attempt('w');
    expect(worker.body).toEqual({ role: null, open: false, works: true });
    const cookie = pairOf(worker.headers['set-cookie']![0]!);
    expect((await ask(`${url}/status`, { headers: { cookie } })).status).toBe(403);
    expect((await ask(`${url}/session`, { headers: { cookie } })).body).toEqual(worker.body);
  });

  test('gets a page a ticket, which lets it in once and from this server alone', async () => {
    const { url } = await start(tokens);
    const headers = { origin: url };
    const body = { token: 'w', work: true };
    const login = await ask(`${url}/session`, { method: 'POST', headers, body });
    const cookie = pairOf(login.headers['set-cookie']![0]!);
    const ticket = async (origin: string) => {
      const answer = await ask(`${url}/join/ticket`, {
        method: 'POST',
        headers: { cookie, origin },
      });
      return { ...answer, ticket: (answer.body as { ticket?: string }).ticket! };
    };
    expect((await ticket('http://evil.example')).status).toBe(403);
    const shake = (given: string, origin = url) =>
      ask(
        `${url}/ws`,
        upgrade({ origin, 'sec-websocket-protocol': ticketProtocols(given).join(', ') }),
      );
    expect((await shake((await ticket(url)).ticket, 'http://evil.example')).status).toBe(403);
    expect((await shake('a-guess')).status).toBe(401);
    const { ticket: good } = await ticket(url);
    const page = new WebSocket(`${url.replace('http', 'ws')}/ws`, ticketProtocols(good), {
      origin: url,
    });
    const [{ headers: agreed }] = await once(page, 'upgrade');
    expect(agreed['sec-websocket-protocol']).toBe('downpour.ticket');
    expect((await shake(good)).status).toBe(401);
  });

  test('is refused to workers and to guesses, which are counted', async () => {
    const { url } = await start({ ...tokens, limits: FEW_REFUSALS });
    const attempt = (token: string) =>
      ask(`${url}/session`, { method: 'POST', headers: { origin: url }, body: { token } });
    expect(await attempt('w')).toMatchObject({ status: 403, body: { code: 'DP_FORBIDDEN' } });
    const guesses = Array.from({ length: GUESSES }, (_, i) => attempt(`guess ${i}`));
    const statuses = new Set((await Promise.all(guesses)).map(({ status }) => status));
    expect(statuses).toEqual(new Set([401, 429]));
  });

  test('ends with its token, and so does a feed that it opened', async () => {
    const secrets = await mkdtemp(join(tmpdir(), 'downpour-'));
    cleanUps.push(() => rm(secrets, { recursive: true, force: true }));
    const file = join(secrets, 'tokens');
    await writeFile(file, 'operator boss\nobserver old\n');
    const { url, line } = await start({ tokensFile: file });
    const cookie = pairOf(await logIn(url, 'old'));
    const feed = await fetch(`${url}/feed`, { headers: { cookie } });
    await writeFile(file, 'operator boss\nobserver new\n');
    await line('the tokens have changed');
    // To its end: the server closes it.
    expect(await feed.text()).toContain('data: {"server"');
    expect((await ask(`${url}/status`, { headers: { cookie } })).status).toBe(401);
  });
});

test('a worker whose token comes from a file goes on with the new one', async () => {
  const secrets = await mkdtemp(join(tmpdir(), 'downpour-'));
  cleanUps.push(() => rm(secrets, { recursive: true, force: true }));
  const file = join(secrets, 'tokens');
  await writeFile(file, 'worker old\n');
  const { url, line } = await start({ tokensFile: file });
  let token = 'old';
  let refused = () => {};
  const refusal = new Promise<void>((resolve) => {
    refused = resolve;
  });
  const stop = new AbortController();
  const client = new Client({
    server: url,
    token: () => token,
    hello: { worker: 'w', run: null, experiments: {}, engine: 'test', device: 'test' },
    signal: stop.signal,
    random: () => 0.01,
    log: (text) => {
      if (text.includes('DP_UNAUTHORIZED')) refused();
    },
  });
  expect((await client.next()).message.type).toBe('idle');
  await writeFile(file, 'worker new\n');
  await line('the tokens have changed');
  await refusal;
  token = 'new';
  expect((await client.next()).message.type).toBe('idle');
  await client.close();
});

test('a worker keeps its name and its process against other tokens, and hears why it is shut out', async () => {
  const secrets = await mkdtemp(join(tmpdir(), 'downpour-'));
  cleanUps.push(() => rm(secrets, { recursive: true, force: true }));
  const file = join(secrets, 'tokens');
  await writeFile(file, 'worker one\nworker two\noperator boss\n');
  const { url } = await start({ tokensFile: file });
  const client = createRestClient({ server: url, token: 'boss' });
  const problem = createProblem();
  const robust = { quarantineAfter: 1 };
  const config = { minibatchSize: 4, learningRate: 0.01, leaseSeconds: 60, robust };
  await client.createRun({ id: 'r', experiment: 'regression', experimentHash: 'hash', config });
  const owner = await ProtocolWorker.connect(url, { name: 'same', token: 'one' });
  const { incarnation } = owner;
  let work = await owner.enter(problem);
  const thief = await ProtocolWorker.connect(url, { name: 'same', token: 'two', incarnation });
  thief.hello();
  expect((await thief.expect('error')).code).toBe('DP_NAME_TAKEN');
  work = await owner.trainTo(problem, work, 2);
  owner.terminate();
  // The name is free then; what is done under it counts against the token that did it.
  let bad: ProtocolWorker;
  for (;;) {
    bad = await ProtocolWorker.connect(url, { name: 'same', token: 'two', incarnation });
    bad.hello();
    const said = await bad.next();
    if (said.kind === 'message' && said.message.type === 'assign') {
      bad.join(said.message, problem);
      break;
    }
  }
  const honest = await ProtocolWorker.connect(url, { name: 'honest', token: 'one' });
  let other = await honest.enter(problem);
  const given = await bad.expect('work');
  for (let sequence = 1; ; sequence++) {
    bad.send(
      {
        ...{ type: 'push', run: 'r', sequence, lease: given.leases[0]!.id, step: given.step },
        ...{ generation: given.generation, loss: null, computeMs: 1, encoding: 'f32' },
      } as WorkerMessage,
      new Float32Array(EXCHANGED),
    );
    const said = await bad.next();
    if (said.kind === 'closed' || said.message.type === 'error') break;
    other = await honest.trainTo(problem, other, other.step + 1);
  }
  const again = await ProtocolWorker.connect(url, { name: 'same', token: 'two' });
  again.hello();
  expect(await again.expect('error')).toMatchObject({
    code: 'DP_QUARANTINED',
    message: expect.stringContaining('bad pushes in a row'),
  });
  const back = await ProtocolWorker.connect(url, { name: 'same', token: 'one', incarnation });
  back.hello();
  expect((await back.expect('assign')).run).toBe('r');
  for (const worker of [honest, back, bad]) worker.terminate();
});

describe('limits', () => {
  test('of requests in a second', async () => {
    const { url } = await start({ limits: { requestsPerSecondMax: 5 } });
    const answers = await Promise.all(Array.from({ length: 50 }, () => ask(`${url}/status`)));
    const refused = answers.filter(({ status }) => status !== 200);
    expect(refused.length).toBeGreaterThan(0);
    expect(refused[0]).toMatchObject({ status: 429, body: { code: 'DP_LIMIT' } });
    // Health checks count for nobody.
    expect((await ask(`${url}/health`)).status).toBe(200);
  });

  test('of guesses at a token in a second', async () => {
    const { url } = await start({ token: 'o', limits: FEW_REFUSALS });
    const guesses = Array.from({ length: GUESSES }, (_, i) =>
      ask(`${url}/status`, { headers: bearer(`guess ${i}`) }),
    );
    const statuses = new Set((await Promise.all(guesses)).map(({ status }) => status));
    expect(statuses).toEqual(new Set([401, 429]));
    expect((await ask(`${url}/status`, { headers: bearer('o') })).status).toBe(200);
  });

  test('of connections with one token', async () => {
    const limits = { connectionsPerTokenMax: 2 };
    const { url } = await start({ token: 'o', workerToken: 'w', limits });
    const first = await ProtocolWorker.connect(url, { token: 'w' });
    const second = await ProtocolWorker.connect(url, { token: 'w' });
    const refused = await ask(`${url}/ws`, upgrade(bearer('w')));
    expect(refused).toMatchObject({ status: 429, body: { code: 'DP_LIMIT' } });
    (await ProtocolWorker.connect(url, { token: 'o' })).close();
    first.close();
    await expect
      .poll(async () => {
        const third = await ProtocolWorker.connect(url, { token: 'w' }).catch(() => null);
        third?.close();
        return third !== null;
      })
      .toBe(true);
    second.close();
  });

  test('of requests at the same time, for each token', async () => {
    const limits = { requestsUnderWayMax: 2 };
    const { url } = await start({ token: 'o', observerToken: 'l', limits });
    const endings = await Promise.all(
      [1, 2].map(async () => {
        const ending = new AbortController();
        const { signal } = ending;
        const feed = await fetch(`${url}/feed`, { headers: bearer('l'), signal });
        expect(feed.status).toBe(200);
        return ending;
      }),
    );
    const observe = (token: string) => ask(`${url}/runs`, { headers: bearer(token) });
    expect(await observe('l')).toMatchObject({
      status: 429,
      body: { code: 'DP_LIMIT', message: expect.stringContaining('2 requests of one token') },
    });
    expect((await observe('o')).status).toBe(200);
    endings[0]!.abort();
    await expect.poll(async () => (await observe('l')).status).toBe(200);
    expect((await observe('l')).status).toBe(200);
    endings[1]!.abort();
  });

  test('of runs', async () => {
    const { url } = await start({ limits: { runCountMax: 2 } });
    const create = () => ask(`${url}/runs`, { method: 'POST', body: RUN });
    expect([(await create()).status, (await create()).status]).toEqual([201, 201]);
    expect(await create()).toMatchObject({ status: 429, body: { code: 'DP_LIMIT' } });
  });

  test('of names, bodies and headers', async () => {
    const { url } = await start();
    const create = (body: object) => ask(`${url}/runs`, { method: 'POST', body });
    const name = 'a'.repeat(64);
    expect((await create({ ...RUN, id: name })).status).toBe(201);
    for (const id of [`${name}a`, '', '../up', 'A', 'a b']) {
      expect(await create({ ...RUN, id })).toMatchObject({
        status: 400,
        body: { code: 'DP_BODY_INVALID' },
      });
    }
    const long = await create({ ...RUN, experimentHash: 'x'.repeat(LIMITS.bodyBytesMax) });
    expect(long).toMatchObject({ status: 413, body: { code: 'DP_FRAME_TOO_LARGE' } });
    const most = LIMITS.requestHeaderBytesMax;
    expect((await ask(`${url}/status`, { headers: { 'x-a': 'a'.repeat(most / 2) } })).status).toBe(
      200,
    );
    expect(await ask(`${url}/status`, { headers: { 'x-a': 'a'.repeat(most) } })).toMatchObject({
      status: 431,
      body: { code: 'DP_HEADERS_TOO_LARGE' },
    });
  });

  test('of addresses: what is none, and names of any length, are refused as all else is', async () => {
    const { url } = await start({ token: 'o' });
    const headers = bearer('o');
    for (const path of [
      '/runs/%',
      '/runs/%E0%A4%A',
      `/runs/${'a'.repeat(5_000)}`,
      '/studies/%zz',
    ]) {
      const response = await fetch(`${url}${path}`, { headers });
      expect(await response.json(), path).toMatchObject({ code: 'DP_BODY_INVALID' });
      expect(response.status).toBe(400);
      expect(response.headers.get('x-content-type-options')).toBe('nosniff');
    }
    // Who has no token learns nothing from the length of a name.
    expect((await ask(`${url}/runs/${'a'.repeat(5_000)}`)).body.code).toBe('DP_UNAUTHORIZED');
  });

  test('of studies: their names, what they are made of, and how large they are', async () => {
    const { url, folder } = await start();
    const put = (name: string, body: object) =>
      ask(`${url}/studies/${name}`, { method: 'PUT', body });
    expect(await put('s', STUDY)).toMatchObject({ status: 200, body: { name: 's' } });
    for (const name of ['..%2Fup', 'A', `${'a'.repeat(65)}`, '.hidden']) {
      expect((await put(name, STUDY)).body.code, name).toBe('DP_BODY_INVALID');
    }
    const chart = { kind: 'chart', title: 't', x: { label: 'x' }, y: { label: 'y' }, series: [] };
    expect((await put('s', { ...STUDY, figures: [chart] })).status).toBe(200);
    const wrong = [
      { ...STUDY, script: 'x' },
      { ...STUDY, kind: 'Any Thing' },
      { ...STUDY, figures: [{ ...chart, kind: 'html' }] },
      { ...STUDY, figures: [{ ...chart, series: [{ name: 'n', points: [{ x: '1', y: 2 }] }] }] },
      { ...STUDY, rows: Array.from({ length: 2_001 }, () => []) },
    ];
    for (const body of wrong) {
      expect((await put('s', body)).body.code).toBe('DP_BODY_INVALID');
    }
    // A megabyte is more than other bodies may have.
    const rows = (bytes: number) =>
      Array.from({ length: 1_900 }, () =>
        Array.from({ length: 5 }, () => 'x'.repeat(bytes / 1_900 / 5)),
      );
    expect((await put('large', { ...STUDY, rows: rows(2 ** 21) })).status).toBe(200);
    const long = await put('large', { ...STUDY, rows: rows(LIMITS.studyBytesMax) });
    expect(long).toMatchObject({ status: 413, body: { code: 'DP_FRAME_TOO_LARGE' } });
    expect(long.body.message).toContain(String(LIMITS.studyBytesMax));
    expect((await readdir(join(folder, 'state', '.studies'))).sort()).toEqual([
      'large.json',
      's.json',
    ]);
  });

  test('of the time that headers may take', async () => {
    const { url } = await start({ limits: { requestHeaderMs: 200 } });
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => {
      text += String(chunk);
    });
    socket.write('GET /status HTTP/1.1\r\nx-slow: ');
    await once(socket, 'close');
    expect(text).toMatch(/^HTTP\/1\.1 408 /);
    expect(text).toContain('DP_REQUEST_TIMEOUT');
  });

  /** Sends a body a byte at a time for as long as it may. @returns what was answered, when the socket is closed. */
  async function drip(url: string, token: string): Promise<string> {
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => {
      text += String(chunk);
    });
    socket.on('error', () => {});
    const closed = new Promise((resolve) => socket.once('close', resolve));
    const head = `POST /runs HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${token}\r\n`;
    socket.write(`${head}content-type: application/json\r\ncontent-length: 100000\r\n\r\n{`);
    const timer = setInterval(() => socket.write(' '), 10);
    await closed;
    clearInterval(timer);
    return text;
  }

  test('of the time that a body may take', async () => {
    const { url } = await start({ token: 'o', limits: { requestHeaderMs: 200, requestMs: 400 } });
    const text = await drip(url, 'o');
    expect(text).toMatch(/^HTTP\/1\.1 408 /);
    expect(text).toContain('DP_REQUEST_TIMEOUT');
  });

  test('a body that is refused is not waited for', async () => {
    // Within a minute, that is: the test would time out before.
    const { url } = await start({ token: 'o', limits: { refusalsPerSecondMax: 1000 } });
    const text = await drip(url, 'wrong');
    expect(text).toMatch(/^HTTP\/1\.1 401 /);
    expect(text.toLowerCase()).toContain('connection: close');
  });

  /** What a request that is written by hand is answered. The server closes, since it is asked to. */
  async function answerTo(url: string, request: string): Promise<string> {
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => {
      text += String(chunk);
      // The client ends those that may stay open.
      if (/\r\n\r\n.*}$/s.test(text)) socket.end();
    });
    socket.on('error', () => {});
    socket.write(request);
    await once(socket, 'close');
    return text;
  }

  test('a request that offers HTTP/2 is served as it is, with its body', async () => {
    const { url } = await start();
    const offer =
      'connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n';
    const host = 'host: 127.0.0.1\r\n';
    const got = await answerTo(url, `GET /health HTTP/1.1\r\n${host}${offer}\r\n`);
    expect(got).toMatch(/^HTTP\/1\.1 200 OK/);
    expect(got).toContain('"status":"ok"');
    const body = JSON.stringify(RUN);
    const form = `content-type: application/json\r\ncontent-length: ${body.length}\r\n`;
    const made = await answerTo(url, `POST /runs HTTP/1.1\r\n${host}${offer}${form}\r\n${body}`);
    expect(made).toMatch(/^HTTP\/1\.1 201 /);
  });

  test('HTTP/1.0 upgrades, two hosts and bodies that are nested without end are 400', async () => {
    const { url } = await start();
    const socket = 'connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n';
    const key = `sec-websocket-key: ${'A'.repeat(22)}==\r\n`;
    const host = 'host: 127.0.0.1\r\n';
    for (const request of [
      `GET /ws HTTP/1.0\r\n${host}${socket}${key}\r\n`,
      `GET /ws HTTP/1.1\r\n${host}${host}${socket}${key}\r\n`,
      `GET /health HTTP/1.1\r\n${host}host: other\r\n\r\n`,
    ]) {
      expect(await answerTo(url, request)).toMatch(/^HTTP\/1\.1 400 /);
    }
    for (const nested of [
      '['.repeat(400_000),
      '{"a":'.repeat(150_000),
      `${'['.repeat(65)}${']'.repeat(65)}`,
    ]) {
      const answer = await fetch(`${url}/runs`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: nested,
      });
      expect(answer.status).toBe(400);
      expect(await answer.json()).toMatchObject({ code: 'DP_BODY_INVALID' });
    }
    expect((await ask(`${url}/health`)).status).toBe(200);
  });

  test('HEAD ends on every route', async () => {
    const { url } = await start();
    const openapi = await (await fetch(`${url}/openapi.json`)).json();
    const paths = [...Object.keys((openapi as { paths: object }).paths), '/', '/feed', '/health'];
    for (const path of paths) {
      const answer = await fetch(`${url}${path.replace(/\{[^}]*\}/g, 'x')}`, { method: 'HEAD' });
      expect(answer.status).toBeGreaterThanOrEqual(200);
      expect(await answer.text()).toBe('');
    }
  });

  test('what is no HTTP is answered with a code, and closed', async () => {
    const { url } = await start();
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    let text = '';
    socket.on('data', (chunk) => {
      text += String(chunk);
    });
    socket.write('\u0016\u0003\u0001 hello\r\n\r\n');
    await once(socket, 'close');
    expect(text).toMatch(/^HTTP\/1\.1 400 /);
    expect(text).toContain('DP_BODY_INVALID');
  });
});

describe('pages of others', () => {
  test('may neither read nor change nor work, with or without a name that leads here', async () => {
    const { url } = await start();
    const { host, port } = new URL(url);
    const foreign = { origin: 'https://evil.example' };
    const rebound = { host: `evil.example:${port}` };
    for (const headers of [foreign, rebound, { origin: 'null' }, { ...foreign, ...rebound }]) {
      const answers = [
        await ask(`${url}/runs`, { headers }),
        await ask(`${url}/runs/r/stop`, { method: 'POST', headers }),
        await ask(`${url}/ws`, upgrade(headers)),
      ];
      for (const { status, body } of answers) {
        expect([status, body.code]).toEqual([403, 'DP_FORBIDDEN']);
      }
    }
    const own = { origin: `http://${host}` };
    expect((await ask(`${url}/runs`, { headers: own })).status).toBe(200);
    const local = { host: `localhost:${port}` };
    expect((await ask(`${url}/runs`, { headers: local })).status).toBe(200);
  });

  test('with a token the server has any name', async () => {
    const { url } = await start({ token: 'o' });
    const headers = { ...bearer('o'), host: 'trainer.example' };
    expect((await ask(`${url}/runs`, { headers })).status).toBe(200);
  });
});

test('every answer says that it is not to be guessed at, framed, run or kept', async () => {
  const { url } = await start({ token: 'o' });
  const answers = [
    await ask(`${url}/health`),
    await ask(`${url}/status`),
    await ask(`${url}/nowhere`, { headers: bearer('o') }),
    await ask(`${url}/status`, { headers: bearer('o') }),
  ];
  expect(answers.map(({ status }) => status)).toEqual([200, 401, 404, 200]);
  for (const { headers } of answers) {
    expect(headers).toMatchObject({
      'x-content-type-options': 'nosniff',
      'content-security-policy': expect.stringContaining("default-src 'none'"),
      'x-frame-options': 'DENY',
      'referrer-policy': 'no-referrer',
      'cache-control': 'no-store',
    });
    expect(headers['strict-transport-security']).toBeUndefined();
  }
});

test('an observer sees a run, and no token in it', async () => {
  const { url } = await start({ token: 'o', observerToken: 'reader' });
  const created = await ask(`${url}/runs`, { method: 'POST', headers: bearer('o'), body: RUN });
  const { id } = created.body as unknown as RunSummary;
  const seen = await ask(`${url}/runs/${id}`, { headers: bearer('reader') });
  expect(seen.status).toBe(200);
  expect(JSON.stringify(seen.body)).not.toContain('reader');
});

describe('no name from the network reaches the file system', () => {
  const SECRET = 'the canary sings';
  const piece = fc.oneof(
    fc.constantFrom(
      '..',
      '.',
      '/',
      '\\',
      '%2e%2e',
      '%2f',
      '%00',
      '\0',
      '~',
      '$HOME',
      '|',
      '*',
      ' ',
    ),
    fc.constantFrom('runs', 'canary', 'canary.json', 'checkpoints', 'CON', 'con', 'r', '-', '_'),
    fc.constantFrom('__proto__', 'constructor', 'toString', 'Ⅱ', 'é', '\u202e', '\r\n', '\u0130'),
    fc.string({ unit: 'binary', maxLength: 6 }),
  );
  const name = fc.array(piece, { minLength: 1, maxLength: 8 }).map((pieces) => pieces.join(''));

  const encoded = (text: string) => encodeURIComponent(Buffer.from(text).toString());

  /** As it is, where HTTP can carry it: a client that normalises nothing. */
  function askRaw(
    url: string,
    method: string,
    path: string,
  ): Promise<{ status: number; text: string }> {
    const { hostname: host, port } = new URL(url);
    const sent = path.replace(/[^\x21-\x7e]/g, (character) => encoded(character));
    return new Promise((resolve, reject) => {
      const request = httpRequest(
        { host, port, method, path: sent, agent: false },
        async (response) => {
          let text = '';
          for await (const chunk of response) text += String(chunk);
          resolve({ status: response.statusCode!, text });
        },
      );
      request.on('error', reject);
      request.end();
    });
  }

  test('whatever runs and experiments are called, nothing is read or written but under the state', async () => {
    const { url, folder } = await start();
    await writeFile(join(folder, 'canary.json'), SECRET);
    const state = join(folder, 'state');
    await ask(`${url}/runs`, { method: 'POST', body: { ...RUN, id: 'known-run' } });
    const before = await readdir(folder);
    const known = new Set(await readdir(state));
    const created = new Set<string>();
    const pattern = new RegExp(NAME_PATTERN);
    await fc.assert(
      fc.asyncProperty(name, name, async (id, experiment) => {
        const bodies = [
          { ...RUN, id },
          { ...RUN, experiment },
          { ...RUN, experimentHash: id.slice(0, 100) },
          { ...RUN, fork: { run: id } },
          { ...RUN, fork: { run: 'known-run', checkpoint: id.slice(0, 200) } },
        ];
        for (const body of bodies) {
          const answer = await ask(`${url}/runs`, { method: 'POST', body });
          expect([201, 400, 404, 409]).toContain(answer.status);
          if (answer.status !== 201) expect(answer.body.code).toMatch(/^DP_/);
          else created.add((answer.body as unknown as RunSummary).id);
          expect(answer.body.code).not.toBe('DP_INTERNAL');
        }
        for (const path of [id, encoded(id)]) {
          for (const [method, rest] of [
            ['GET', ''],
            ['GET', '/checkpoints'],
            ['GET', '/checkpoints/last/file'],
            ['GET', `/checkpoints/${path}/file`],
            ['POST', '/stop'],
          ] as const) {
            const { status, text } = await askRaw(url, method, `/runs/${path}${rest}`);
            expect(status).toBeLessThan(500);
            expect(text).not.toContain(SECRET);
          }
        }
      }),
      { numRuns: 60 },
    );
    for (const id of created) expect(id).toMatch(pattern);
    expect((await readdir(folder)).sort()).toEqual(before.sort());
    expect(await readFile(join(folder, 'canary.json'), 'utf8')).toBe(SECRET);
    const strange = (await readdir(state)).filter(
      (entry) => !known.has(entry) && !pattern.test(entry),
    );
    expect(strange).toEqual([]);
  });
});

test('a worker in quarantine is sent away, and /workers says why', async () => {
  const { url } = await start();
  const problem = createProblem();
  const config = {
    epochsMax: 50,
    robust: { quarantineAfter: 2 },
    earlyStopping: { enabled: false },
  };
  const body = { ...RUN, config: { minibatchSize: 4, ...config } };
  const { id } = (await ask(`${url}/runs`, { method: 'POST', body })).body as { id?: string };
  const good = await ProtocolWorker.connect(url, { name: 'good' });
  let work = await good.enter(problem);
  const bad = await ProtocolWorker.connect(url, { name: 'bad' });
  const first = await bad.enter(problem);
  bad.push(problem, first, { loss: null });
  expect((await bad.expect('work')).acknowledgements[0]).toMatchObject({ outcome: 'rejected' });
  good.push(problem, work);
  work = { ...(await good.expect('work')) };
  expect(work.acknowledgements[0]).toMatchObject({ outcome: 'applied' });
  bad.push(problem, first, { loss: null });
  expect(await bad.expect('error')).toMatchObject({ code: 'DP_QUARANTINED' });
  expect(await bad.next()).toMatchObject({ kind: 'closed', code: 4403 });
  // Under a new incarnation it gets no work and is told why, whether it wants this run or any.
  for (const wanted of [null, id!]) {
    const again = await ProtocolWorker.connect(url, { name: 'bad' });
    again.hello('hash', wanted);
    expect(await again.expect('error')).toMatchObject({ code: 'DP_QUARANTINED' });
    expect(await again.next()).toMatchObject({ kind: 'closed', code: 4403 });
  }
  const { body: listed } = await ask(`${url}/runs/${id}/workers`);
  const { workers } = listed as unknown as { workers: WorkerSummary[] };
  const reasons = workers.map(({ worker, quarantine }) => [worker, quarantine]);
  expect(reasons).toContainEqual(['good', null]);
  expect(reasons).toContainEqual(['bad', expect.stringContaining('2 bad pushes in a row')]);
  good.close();
});
