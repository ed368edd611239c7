import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { FloodClient, type FloodRun, helloOf, joinOf, pushOf } from '../../bench/floods/client.ts';
import { type ServerProcess, startServer } from '../../bench/processes.ts';
import { type ServeOptions, serve } from '../../server/main.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { FACTS } from '../support/regression.ts';

/** Hostile clients on real sockets: what they may not take from honest workers, nor from the server. */

const ELEMENTS = 250_000;
const RUN: FloodRun = { run: 'r', experiment: 'e', experimentHash: 'h', elements: ELEMENTS };
const CONFIG: PartialConfig = {
  ...{ minibatchSize: 1, learningRate: 1e-6, stepsMax: 1_000_000, optimizer: { kind: 'sgd' } },
  ...{ checkpoint: { everySeconds: 3600 }, evaluateEverySteps: 1_000_000 },
  earlyStopping: { enabled: false },
};

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options: Partial<ServeOptions> = {}, id = RUN.run): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  const controller = new AbortController();
  const { signal } = controller;
  const { url, closed } = await serve({
    ...{ host: '127.0.0.1', port: 0, state: folder, signal },
    ...options,
  });
  cleanUps.push(async () => {
    controller.abort();
    await closed;
    await rm(folder, { recursive: true, force: true });
  });
  const rest = createRestClient({ server: url, ...(options.token && { token: options.token }) });
  await rest.createRun({ id, experiment: 'e', experimentHash: 'h', config: CONFIG });
  return url;
}

async function open(
  url: string,
  options: Parameters<typeof FloodClient.open>[1] = {},
): Promise<FloodClient> {
  const client = await FloodClient.open(url, options);
  cleanUps.push(() => client.destroy());
  return client;
}

const GRADIENT = new Uint8Array(4 * ELEMENTS);

/** A worker of the run: the first one creates its parameters. */
class Honest {
  readonly client: FloodClient;
  #work: { step: number; generation: number; leases: readonly { id: number }[] };
  #sequence = 0;

  private constructor(client: FloodClient, work: Honest['work']) {
    this.client = client;
    this.#work = work;
  }

  get work() {
    return this.#work;
  }

  static async enter(url: string, options: Parameters<typeof open>[1] = {}): Promise<Honest> {
    const client = await open(url, options);
    client.send(helloOf(client, RUN));
    await client.expect('assign');
    client.send(joinOf(RUN));
    let message = await client.next();
    if (message?.type === 'initialise') {
      client.send({ type: 'initialised', run: RUN.run, grant: message.grant }, GRADIENT);
      message = await client.expect('work');
    }
    if (message?.type !== 'work') throw new Error(`${message?.type} instead of work`);
    return new Honest(client, message);
  }

  /** Begins a push of its first minibatch. */
  begin(payloadBytes = GRADIENT.length): void {
    const { step, generation, leases } = this.#work;
    const push = pushOf(RUN, { lease: leases[0]!.id, step, generation }, ++this.#sequence);
    this.client.begin(push, payloadBytes);
  }

  /** @returns what became of it. */
  async answer(): Promise<string> {
    this.#work = await this.client.expect('work');
    const { acknowledgements } = this.#work as unknown as {
      acknowledgements: { outcome: string; message: string | null }[];
    };
    const [{ outcome, message }] = acknowledgements as [{ outcome: string; message: string }];
    return message ? `${outcome}: ${message}` : outcome;
  }

  async push(): Promise<string> {
    this.begin();
    this.client.write(GRADIENT);
    return this.answer();
  }
}

describe('rooms', () => {
  test('are not held by pushes that stop: workers go on, and the pushes that stopped may still end', async () => {
    const url = await start();
    const honest = await Honest.enter(url);
    expect(await honest.push()).toBe('applied');
    const slow: Honest[] = [];
    for (let i = 0; i < 70; i++) slow.push(await Honest.enter(url));
    for (const each of slow) {
      each.begin();
      each.client.write(GRADIENT.subarray(0, 300));
    }
    for (let i = 0; i < 30; i++) expect(await honest.push()).toBe('applied');
    const { connections } = await createRestClient({ server: url }).status();
    expect(connections.moved).toBeGreaterThan(0);
    for (const { client } of slow) client.write(GRADIENT.subarray(300));
    for (const each of slow) expect(await each.answer()).toBe('applied');
  });

  test('one that drips for as long as others work is applied in the end', async () => {
    const url = await start();
    const [honest, slow] = [await Honest.enter(url), await Honest.enter(url)];
    slow.begin();
    for (let at = 0; at < GRADIENT.length; at += 100_000) {
      slow.client.write(GRADIENT.subarray(at, at + 100_000));
      for (let i = 0; i < 5; i++) expect(await honest.push()).toBe('applied');
    }
    expect(await slow.answer()).toBe('applied');
  });
});

describe('a payload', () => {
  test.each([
    ['hello', 'DP_FRAME_MALFORMED', 1007],
    ['evaluated', 'DP_FRAME_MALFORMED', 1007],
    ['observed', 'DP_FRAME_MALFORMED', 1007],
    ['leave', 'DP_FRAME_MALFORMED', 1007],
    ['nonsense', 'DP_FRAME_MALFORMED', 1007],
    // A `join` that says that it brings facts.
    ['join', 'DP_FRAME_MALFORMED', 1007],
  ] as const)('of %s is refused before it has come', async (type, code, close) => {
    const url = await start();
    const client = await open(url);
    client.send(helloOf(client, RUN));
    await client.expect('assign');
    client.begin(type === 'join' ? joinOf(RUN) : { type }, 500e6);
    client.write(GRADIENT);
    expect(await client.expect('error')).toMatchObject({
      code,
      message: expect.stringContaining('500000000 bytes; it has none'),
    });
    expect(await client.closed).toMatchObject({ code: close });
  });

  test('of facts has a limit, and another one once the run knows its own', async () => {
    const url = await start();
    const client = await open(url);
    client.send(helloOf(client, RUN));
    await client.expect('assign');
    client.begin({ ...joinOf(RUN), facts: 'json' }, 2 ** 26 + 8);
    expect(await client.expect('error')).toMatchObject({
      code: 'DP_FRAME_TOO_LARGE',
      message: expect.stringContaining('67108872 bytes; at most 67108867 are allowed'),
    });
    expect(await client.closed).toMatchObject({ code: 1009 });

    const assigned = async () => {
      const next = await open(url);
      next.send(helloOf(next, RUN));
      await next.expect('assign');
      return next;
    };
    const join = { ...joinOf(RUN), facts: 'json' };
    const first = await assigned();
    first.send(join, FACTS);
    await first.expect('initialise');
    const most = FACTS.length + 2 ** 20;
    const second = await assigned();
    second.begin(join, most + 4);
    expect(await second.expect('error')).toMatchObject({
      message: expect.stringContaining(`${most + 4} bytes; at most ${most} are allowed`),
    });
    // JSON may end in spaces.
    const longest = new Uint8Array(most).fill(0x20);
    longest.set(FACTS);
    const third = await assigned();
    third.send(join, longest);
    expect(await Promise.race([third.closed, wait(500)])).toBe(undefined);
  });

  test('of a push that is larger than any of the run is read past, and the push rejected', async () => {
    const url = await start();
    const honest = await Honest.enter(url);
    const large = 4 * (2 * ELEMENTS + 1);
    for (const [bytes, text] of [
      [large + 4, `the push has a payload of ${large + 4} bytes; the largest of this run's layout`],
      [large, `the gradient has ${large} bytes`],
    ] as const) {
      honest.begin(bytes);
      honest.client.write(new Uint8Array(bytes));
      expect(await honest.answer()).toContain(`rejected: ${text}`);
    }
    expect(await honest.push()).toBe('applied');
  });

  test('of initial parameters counts from the worker that was asked, and has the size of the run', async () => {
    const url = await start();
    const asked = await open(url);
    asked.send(helloOf(asked, RUN));
    await asked.expect('assign');
    asked.send(joinOf(RUN));
    const { grant } = await asked.expect('initialise');
    const other = await open(url);
    other.send(helloOf(other, RUN));
    await other.expect('assign');
    other.send(joinOf(RUN));
    // Nobody has asked it: read past, and the connection goes on.
    other.send({ type: 'initialised', run: RUN.run, grant }, GRADIENT);
    asked.begin({ type: 'initialised', run: RUN.run, grant }, GRADIENT.length + 4);
    expect(await asked.expect('error')).toMatchObject({ code: 'DP_FRAME_TOO_LARGE' });
    await asked.closed;
    const { grant: next } = await other.expect('initialise');
    other.send({ type: 'initialised', run: RUN.run, grant: next }, GRADIENT);
    await other.expect('work');
  });
});

test('a second join on one assignment is refused', async () => {
  const url = await start();
  const honest = await Honest.enter(url);
  honest.client.send(joinOf(RUN));
  expect(await honest.client.expect('error')).toMatchObject({ code: 'DP_PROTOCOL_ORDER' });
  expect(await honest.client.closed).toMatchObject({ code: 1002 });
});

test('who does not read its answers is not read either, and goes on when it reads again', async () => {
  const url = await start();
  const [honest, deaf] = [await Honest.enter(url), await Honest.enter(url)];
  deaf.client.deafen();
  const { leases } = deaf.work;
  const { step, generation } = deaf.work;
  const COUNT = 400;
  for (let i = 1; i <= COUNT; i++) {
    // Without a gradient: rejected, with the newest parameters.
    deaf.client.send(pushOf(RUN, { lease: leases[0]!.id, step, generation }, i));
    if (i % 4 === 0) expect(await honest.push()).toBe('applied');
  }
  const { connections } = await createRestClient({ server: url }).status();
  expect(connections.bytes).toBeLessThan(20e6);
  deaf.client.listen();
  let answered = 0;
  while (answered < COUNT) {
    const work = await deaf.client.expect('work');
    answered += work.acknowledgements.length;
  }
  expect(await honest.push()).toBe('applied');
});

describe('the memory of connections', () => {
  test('has one limit: the largest is closed with a code, and honest workers go on', async () => {
    const bytesMax = 20e6;
    const url = await start({
      limits: { memoryBytesMax: bytesMax },
      ...{ token: 'o', workerToken: 'w' },
    });
    const honest = await Honest.enter(url, { token: 'w' });
    const hostile: FloodClient[] = [];
    // 40 headers of 1 MB that never end.
    for (let i = 0; i < 40; i++) {
      const client = await open(url, { token: 'o' });
      client.beginHeader(1_000_000, 999_000);
      hostile.push(client);
    }
    const closed = async () => hostile.filter(({ ended }) => ended?.code === 1013).length;
    while ((await closed()) === 0) await wait(50);
    for (let i = 0; i < 10; i++) expect(await honest.push()).toBe('applied');
    const rest = createRestClient({ server: url, token: 'o' });
    const { connections } = await rest.status();
    expect(connections.bytesMax).toBe(bytesMax);
    expect(connections.closed).toBeGreaterThan(0);
    for (const client of hostile) client.destroy();
    while ((await rest.status()).connections.bytes > 2e6) await wait(50);
    expect(honest.client.ended).toBe(null);
  });

  test('is given back when workers have come, worked and gone', async () => {
    const url = await start();
    const workers: Honest[] = [];
    for (let i = 0; i < 5; i++) workers.push(await Honest.enter(url));
    for (const worker of workers) expect(await worker.push()).toBe('applied');
    workers[0]!.begin();
    workers[0]!.client.write(GRADIENT.subarray(0, 1000));
    for (const { client } of workers) client.destroy();
    const rest = createRestClient({ server: url });
    while ((await rest.status()).connections.bytes > 0) await wait(100);
  });
});

/** The process may grow by this beyond what is counted: sockets, code, garbage that is not collected yet. */
const RSS_GROWTH_MAX = 450e6;

test('of a process of its own, memory stays within the limit under floods that took gigabytes', async () => {
  const server: ServerProcess = await startServer();
  cleanUps.push(() => server.close());
  const { url, client: rest } = server;
  await rest.createRun({
    ...{ id: RUN.run, experiment: 'e', experimentHash: 'h' },
    config: CONFIG,
  });
  const honest = await Honest.enter(url);
  expect(await honest.push()).toBe('applied');
  const before = (await rest.status()).memoryBytes.rss;
  let most = 0;
  const chunk = new Uint8Array(2 ** 20);
  for (const [header, bytes] of [
    [{ type: 'observed' }, 2 ** 29],
    [pushOf(RUN, { lease: 0, step: 0, generation: 0 }, 1), 2 ** 29],
  ] as const) {
    const clients: FloodClient[] = [];
    for (let i = 0; i < 4; i++) {
      const client = (await Honest.enter(url)).client;
      client.begin(header, bytes);
      clients.push(client);
    }
    // 1.6 GB in all.
    for (let sent = 0; sent < 4e8 && clients.some(({ ended }) => !ended); sent += chunk.length) {
      for (const client of clients) client.write(chunk);
      await Promise.all(clients.map((client) => client.drained()));
      if (sent % 2 ** 26 === 0) most = Math.max(most, (await rest.status()).memoryBytes.rss);
    }
    expect(await honest.push()).toBe('applied');
    for (const client of clients) client.destroy();
  }
  expect((most - before) / 1e6, 'growth of the process, MB').toBeLessThan(RSS_GROWTH_MAX / 1e6);
});
