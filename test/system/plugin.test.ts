import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Fastify, { type FastifyInstance } from 'fastify';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { downpour } from '../../library/server.ts';
import { train } from '../../library/train.ts';
import { ownerOf } from '../../server/store/owner-address.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { defineExperiment } from '../../worker/experiment.ts';

// A parameter server as part of somebody else's app, which has routes, hooks and WebSockets of its own.

let app: FastifyInstance;
let state: string;
const lines: string[] = [];
beforeEach(() => {
  state = mkdtempSync(join(tmpdir(), 'downpour-plugin-'));
  lines.length = 0;
  app = Fastify({
    logger: { level: 'info', stream: { write: (line: string) => void lines.push(line) } },
  });
});
afterEach(async () => {
  await app.close();
  rmSync(state, { recursive: true, force: true });
});

async function listen(): Promise<string> {
  await app.listen({ host: '127.0.0.1', port: 0 });
  return `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
}

const line = defineExperiment({
  data: () => {
    const values = Float32Array.from({ length: 200 }, (_, i) => i / 200);
    const column = (numbers: Float32Array) => ({ values: numbers, shape: [200, 1] });
    return {
      train: { inputs: column(values), targets: column(values.map((x) => 3 * x - 1)) },
    };
  },
  model: ({ tf, inputShape }) =>
    tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape })] }),
  loss: 'meanSquaredError',
  config: { learningRate: 0.1, epochsMax: 3 },
});

describe('a parameter server in an app', () => {
  test('trains under its prefix, is in the log of the app, and closes with it', async () => {
    app.get('/', async () => 'home');
    await app.register(downpour, { prefix: '/training', state, token: 'secret' });
    const url = await listen();
    const result = await train(line, {
      ...{ server: `${url}/training`, token: 'secret', engine: 'cpu' },
    });
    expect(result.run.phase).toBe('finished');
    expect(await (await fetch(url)).text()).toBe('home');
    // Commands in its folder need not wait for an address.
    expect(await ownerOf(state)).toMatchObject({ kind: 'held', address: { url: null } });
    expect(lines.join('')).toMatch(/waiting → training/);
    await app.close();
    // Its state is free again.
    app = Fastify();
    await app.register(downpour, { prefix: '/again', state, token: 'secret' });
    const client = createRestClient({ server: `${await listen()}/again`, token: 'secret' });
    expect((await client.runs()).map(({ id }) => id)).toEqual([result.run.id]);
  });

  test('has the dashboard under its prefix, with names that are relative to it', async () => {
    await app.register(downpour, { prefix: '/training', state, token: 'secret' });
    const url = await listen();
    const page = await fetch(`${url}/training`);
    expect(page.url).toBe(`${url}/training/`);
    for (const [, name] of (await page.text()).matchAll(/(?:src|href)="([^"]+)"/g)) {
      expect((await fetch(new URL(name!, page.url))).status, name).toBe(200);
    }
  });

  test('changes nothing for routes that are not its own', async () => {
    app.post(
      '/echo',
      { schema: { body: { type: 'object', properties: { n: { type: 'number' } } } } },
      async (request) => request.body,
    );
    app.get('/fails', async () => {
      throw new Error('mine');
    });
    await app.register(downpour, { prefix: '/training', state, token: 'secret' });
    const url = await listen();
    const echo = await fetch(`${url}/echo`, {
      ...{ method: 'POST', body: '{"n":"5","more":1}' },
      headers: { 'content-type': 'application/json' },
    });
    // Fastify's own default converts.
    expect(await echo.json()).toEqual({ n: 5, more: 1 });
    expect(echo.headers.get('content-security-policy')).toBeNull();
    expect(await (await fetch(`${url}/fails`)).json()).toMatchObject({ message: 'mine' });
    expect(await (await fetch(`${url}/nowhere`)).json()).toMatchObject({ error: 'Not Found' });
    const ours = await fetch(`${url}/training/nowhere`, {
      headers: { authorization: 'Bearer secret' },
    });
    expect(await ours.json()).toMatchObject({ code: 'DP_NOT_FOUND' });
    // A mistyped field is refused by ours.
    const run = await fetch(`${url}/training/runs`, {
      ...{ method: 'POST', body: '{"experimnt":"x"}' },
      headers: { 'content-type': 'application/json', authorization: 'Bearer secret' },
    });
    expect(run.status).toBe(400);
  });

  test('lets in whom the app lets in, requests and WebSockets alike', async () => {
    app.addHook('onRequest', async (request, reply) => {
      if (request.headers['x-user'] === undefined) await reply.code(401).send({ who: 'nobody' });
    });
    await app.register(downpour, {
      ...{ prefix: '/training', state },
      authorize: ({ headers }) =>
        headers['x-user'] === 'ann' ? 'operator' : headers['x-user'] === 'ben' ? 'observer' : null,
    });
    const url = await listen();
    const ask = async (user: string | null, method = 'GET') => {
      const headers = user === null ? {} : { 'x-user': user };
      const path = method === 'GET' ? 'runs' : 'studies/none';
      return (await fetch(`${url}/training/${path}`, { method, headers })).status;
    };
    expect([await ask(null), await ask('eve'), await ask('ben'), await ask('ann')]).toEqual([
      ...[401, 401, 200, 200],
    ]);
    expect([await ask('ben', 'DELETE'), await ask('ann', 'DELETE')]).toEqual([403, 404]);
    const knock = (user: string | null) =>
      new Promise<number | 'open'>((done) => {
        const socket = new WebSocket(`${url.replace('http', 'ws')}/training/ws`, {
          headers: user === null ? {} : { 'x-user': user },
        });
        socket.on('open', () => {
          socket.close();
          done('open');
        });
        socket.on('unexpected-response', (_request, response) => {
          response.resume();
          done(response.statusCode!);
        });
        socket.on('error', () => {});
      });
    expect(await Promise.all([knock(null), knock('eve'), knock('ben'), knock('ann')])).toEqual([
      ...[401, 401, 403, 'open'],
    ]);
  });

  test('takes its own upgrades alone', async () => {
    let theirs = 0;
    app.server.on('upgrade', (request, socket) => {
      theirs++;
      socket.end(`HTTP/1.1 418 ${request.url}\r\n\r\n`);
    });
    await app.register(downpour, { prefix: '/training', state, token: 'secret' });
    const { port } = new URL(await listen());
    const upgrade = (path: string) =>
      new Promise<string>((done) => {
        let answer = '';
        const socket = connect(Number(port), '127.0.0.1', () => {
          socket.write(
            `GET ${path} HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n`,
          );
        });
        socket.on('data', (data) => {
          answer += data;
        });
        socket.on('close', () => done(answer.split('\r\n', 1)[0]!));
      });
    expect(await upgrade('/chat')).toBe('HTTP/1.1 418 /chat');
    expect(await upgrade('/training/ws')).toMatch(/401/);
    expect(theirs).toBe(1);
  });

  test('is refused where nothing says who may use it, or two things do', async () => {
    await expect(Fastify().register(downpour, { prefix: '/training', state })).rejects.toThrow(
      'the plugin has no access control',
    );
    await expect(
      Fastify().register(downpour, { prefix: '/a', state, token: 'x', authorize: () => null }),
    ).rejects.toThrow('choose who says');
  });
});
