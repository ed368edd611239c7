import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, get } from 'node:http';
import { type AddressInfo, connect as connectTo, createServer as createNetServer } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Serving, serve } from '../../server/main.ts';
import type { Health, Status } from '../../shared/rest.ts';
import {
  findLocalSocket,
  isOwnAddress,
  type LocalListener,
  listenLocally,
} from '../../wire/local-socket.ts';
import { Client, type ClientOptions, LOCAL_SOCKET_BYTES_MIN } from '../../worker/client.ts';

/** Workers and a server on one machine. */

const cleanUps: (() => unknown)[] = [];
const lines: string[] = [];
let temporary: string;
beforeEach(async () => {
  lines.length = 0;
  temporary = await mkdtemp(join(tmpdir(), 'dp-'));
  vi.stubEnv('TMPDIR', temporary);
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
  vi.unstubAllEnvs();
  await rm(temporary, { recursive: true, force: true });
});

async function start(options: { token?: string; localSocket?: boolean } = {}) {
  const controller = new AbortController();
  const serving: Serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state: join(temporary, 'state') },
    ...{ signal: controller.signal, log: (line) => lines.push(line), ...options },
  });
  const stop = async () => {
    controller.abort();
    await serving.closed;
  };
  cleanUps.push(stop);
  const health = async () => (await (await fetch(`${serving.url}/health`)).json()) as Health;
  return { url: serving.url, stop, health };
}

function connect(url: string, options: Partial<ClientOptions> = {}): Client {
  const client = new Client({
    server: url,
    hello: { worker: 'w1', run: null, experiments: {}, engine: 'cpu', device: 'test' },
    signal: new AbortController().signal,
    log: (line) => lines.push(line),
    random: () => 0,
    localSocketBytesMin: 0,
    ...options,
  });
  cleanUps.push(() => client.close());
  return client;
}

async function transports(url: string, token?: string): Promise<string[]> {
  const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
  const status = (await (await fetch(`${url}/status`, { headers })).json()) as Status;
  return status.workers.map((worker) => worker.transport);
}

test('a worker on the same machine finds the unix socket by itself', async () => {
  const { url, health } = await start();
  const path = (await health()).localSocket!;
  expect(statSync(path).isSocket()).toBe(true);
  expect(statSync(dirname(path)).mode & 0o777).toBe(0o700);
  await connect(url).next();
  expect(await transports(url)).toEqual(['unix']);
  expect(lines.some((line) => line.endsWith(`, over its unix socket ${path}`))).toBe(true);
});

test('it moves there for payloads that are large enough, and back for small ones', async () => {
  const { url } = await start();
  const client = connect(url, { localSocketBytesMin: LOCAL_SOCKET_BYTES_MIN });
  await client.next();
  expect(await client.suit(LOCAL_SOCKET_BYTES_MIN - 1)).toBe(false);
  expect(await transports(url)).toEqual(['tcp']);
  expect(await client.suit(LOCAL_SOCKET_BYTES_MIN)).toBe(true);
  expect((await client.next()).message.type).toBe('idle');
  expect((await transports(url)).sort()).toEqual(['unix']);
  expect(await client.suit(LOCAL_SOCKET_BYTES_MIN)).toBe(false);
  expect(await client.suit(10)).toBe(true);
  await client.next();
  expect(await transports(url)).toEqual(['tcp']);
});

test('it stays where there is no such socket', async () => {
  const { url } = await start({ localSocket: false });
  const client = connect(url, { localSocketBytesMin: LOCAL_SOCKET_BYTES_MIN });
  await client.next();
  expect(await client.suit(LOCAL_SOCKET_BYTES_MIN)).toBe(false);
  expect(client.connected).toBe(true);
});

test.each<[string, () => { localSocket?: boolean }]>([
  ['an option', () => ({ localSocket: false })],
  [
    'an environment variable',
    () => {
      vi.stubEnv('DOWNPOUR_LOCAL_SOCKET', '0');
      return {};
    },
  ],
])('%s turns it off, on either side', async (_, off) => {
  const { url } = await start();
  await connect(url, off()).next();
  expect(await transports(url)).toEqual(['tcp']);
  vi.unstubAllEnvs();
});

test('a server without one is reached over TCP', async () => {
  const { url, health } = await start({ localSocket: false });
  expect((await health()).localSocket).toBe(null);
  await connect(url).next();
  expect(await transports(url)).toEqual(['tcp']);
});

test('the token counts there as well', async () => {
  const { url, health } = await start({ token: 's3cret' });
  const path = (await health()).localSocket!;
  await expect(connect(url, { token: 'wrong' }).next()).rejects.toMatchObject({
    code: 'DP_UNAUTHORIZED',
  });
  const request = get({ socketPath: path, path: '/status' });
  const [response] = await once(request, 'response');
  expect(response.statusCode).toBe(401);
  response.resume();
  await connect(url, { token: 's3cret' }).next();
  expect(await transports(url, 's3cret')).toEqual(['unix']);
});

test('a socket that nobody answers on any more is passed over for TCP', async () => {
  const { url } = await start();
  const { localSocket } = (await (await fetch(`${url}/health`)).json()) as Health;
  // A server in front of this one that tells where a dead one listened.
  const dead = join(dirname(localSocket!), 'dead.sock');
  const listener = createNetServer();
  listener.listen(dead);
  await once(listener, 'listening');
  const proxy = createServer((_, response) => response.end(JSON.stringify({ localSocket: dead })));
  const { hostname, port } = new URL(url);
  proxy.on('upgrade', (request, socket, head) => {
    const lines = [`GET ${request.url} HTTP/1.1`];
    for (let i = 0; i < request.rawHeaders.length; i += 2) {
      lines.push(`${request.rawHeaders[i]}: ${request.rawHeaders[i + 1]}`);
    }
    const to = connectTo(Number(port), hostname);
    to.write(`${lines.join('\r\n')}\r\n\r\n`);
    to.write(head);
    socket.pipe(to).pipe(socket);
    for (const end of [socket, to]) end.on('error', () => {});
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  cleanUps.push(() => proxy.close());
  listener.on('connection', (socket) => socket.destroy());
  cleanUps.push(() => listener.close());
  await connect(`ws://127.0.0.1:${(proxy.address() as AddressInfo).port}`).next();
  expect(lines).toContainEqual(expect.stringMatching(/dead\.sock does not answer .*; trying TCP/));
  expect(await transports(url)).toEqual(['tcp']);
});

test('it is gone when the server has stopped', async () => {
  const { stop, health } = await start();
  const path = (await health()).localSocket!;
  await stop();
  expect(existsSync(path)).toBe(false);
});

test('a worker comes back to a server that was started again', async () => {
  const first = await start();
  const client = connect(first.url);
  await client.next();
  await first.stop();
  const controller = new AbortController();
  const { port } = new URL(first.url);
  const again = await serve({
    ...{ host: '127.0.0.1', port: Number(port), state: join(temporary, 'state') },
    signal: controller.signal,
  });
  cleanUps.push(async () => {
    controller.abort();
    await again.closed;
  });
  await client.next();
  // It asked for the path just before the server was there, and connected just after.
  if (await client.suit(0)) await client.next();
  expect(await transports(again.url)).toEqual(['unix']);
});

describe('the folder of sockets', () => {
  const folder = () => join(temporary, `downpour-${process.getuid!()}`);
  const listen = async (in_ = temporary) => {
    const server = createServer();
    const listener = await listenLocally(server, in_);
    if ('path' in listener) cleanUps.push(() => listener.close());
    return listener;
  };

  test('sockets of servers that were killed are removed, those of living ones stay', async () => {
    const living = (await listen()) as LocalListener;
    const dead = createNetServer();
    const path = join(folder(), '7420-dead.sock');
    dead.listen(path);
    await once(dead, 'listening');
    // As a killed process leaves it: there, and nobody listens.
    const { linkSync } = await import('node:fs');
    const left = join(folder(), '7420-left.sock');
    linkSync(path, left);
    dead.close();
    await once(dead, 'close');
    const other = (await listen()) as LocalListener;
    expect(readdirSync(folder()).sort()).toEqual(
      [living.path, other.path].map((path) => path.slice(folder().length + 1)).sort(),
    );
  });

  test('one that others can enter is not used', async () => {
    mkdirSync(folder());
    chmodSync(folder(), 0o755);
    expect(await listen()).toEqual({ problem: `${folder()} is open to other users` });
  });

  test('a path too long for a socket is said so', async () => {
    const deep = join(temporary, 'x'.repeat(120));
    expect(await listen(deep)).toMatchObject({ problem: expect.stringMatching(/longer than 10/) });
    expect(existsSync(deep)).toBe(false);
  });

  test('a socket in an open folder is not trusted with a token', async () => {
    const open = join(temporary, 'open');
    mkdirSync(open);
    chmodSync(open, 0o777);
    const path = join(open, 'x.sock');
    const trap = createNetServer();
    trap.listen(path);
    await once(trap, 'listening');
    cleanUps.push(() => trap.close());
    const server = createServer((_, response) =>
      response.end(JSON.stringify({ localSocket: path })),
    );
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    cleanUps.push(() => server.close());
    const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
    expect(await findLocalSocket(url)).toBe(null);
    chmodSync(open, 0o700);
    expect(await findLocalSocket(url)).toBe(path);
  });
});

test('addresses of this machine', () => {
  expect(['localhost', '127.0.0.1', '127.1.2.3', '[::1]'].filter((a) => !isOwnAddress(a))).toEqual(
    [],
  );
  const own = Object.values(networkInterfaces()).flatMap((all) => all!.map((one) => one.address));
  expect(own.every(isOwnAddress)).toBe(true);
  expect(['192.0.2.7', 'example.org', '127.example.org'].filter(isOwnAddress)).toEqual([]);
});
