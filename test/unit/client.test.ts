import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type WebSocket, WebSocketServer } from 'ws';
import { bytesOf, decodeFrame, encodeFrame, encodeHeader, floatsOf } from '../../shared/codec.ts';
import { Client, type ClientOptions } from '../../worker/client.ts';
import { BACKOFF, backoffMs, socketUrl } from '../../worker/servers.ts';

const HELLO = {
  worker: 'w1',
  run: null,
  experiments: { e: 'h' },
  engine: 'cpu',
  device: 'test',
};
const IDLE = { type: 'idle' };
const work = (step: number) => ({
  ...{ type: 'work', run: 'r', phase: 'training', step, generation: 1 },
  ...{ acknowledgements: [], leases: [], evaluation: null, encoding: 'f32', pull: null },
});
/** Pushes numbers as they are. */
function send(client: Client, header: Parameters<Client['push']>[0], values: Float32Array): number {
  return client.push(header, [values.byteLength], ([payload]) => payload!.set(bytesOf(values)));
}

const push = (lease: number) => ({
  ...{ run: 'r', lease, step: 0, generation: 1, loss: 1, computeMs: 1, encoding: 'f32' as const },
});

/** A server that does what the test says, on a port of its own. */
class ScriptedServer {
  readonly http: Server = createServer((_, response) => response.writeHead(404).end());
  readonly #sockets = new WebSocketServer({ noServer: true });
  readonly requests: IncomingMessage[] = [];
  /** When set, upgrades are answered with this HTTP status. */
  status: number | null = null;
  #waiting: ((connection: Connection) => void)[] = [];
  #connections: Connection[] = [];
  port = 0;

  async start(port = 0): Promise<void> {
    this.http.on('upgrade', (request, socket, head) => {
      this.requests.push(request);
      if (this.status !== null) {
        socket.end(`HTTP/1.1 ${this.status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
        return;
      }
      this.#sockets.handleUpgrade(request, socket, head, (ws) => {
        const connection = new Connection(ws);
        const waiting = this.#waiting.shift();
        if (waiting) waiting(connection);
        else this.#connections.push(connection);
      });
    });
    this.http.listen(port, '127.0.0.1');
    await once(this.http, 'listening');
    this.port = (this.http.address() as AddressInfo).port;
  }

  /** The next worker that connects. */
  connection(): Promise<Connection> {
    const connection = this.#connections.shift();
    if (connection) return Promise.resolve(connection);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  async stop(): Promise<void> {
    for (const ws of this.#sockets.clients) ws.terminate();
    if (!this.http.listening) return;
    this.http.close();
    await once(this.http, 'close');
  }
}

class Connection {
  readonly ws: WebSocket;
  readonly closed: Promise<[number, string]>;
  #frames: { header: Record<string, unknown>; payload: Float32Array }[] = [];
  #waiting: (() => void) | null = null;
  constructor(ws: WebSocket) {
    this.ws = ws;
    this.closed = once(ws, 'close').then(([code, reason]) => [code, String(reason)]);
    ws.on('message', (data) => {
      const { header, payload } = decodeFrame(data as Buffer);
      this.#frames.push({ header, payload: floatsOf(payload) });
      this.#waiting?.();
    });
  }
  /** The next frame of the worker. */
  async frame(): Promise<{ header: Record<string, unknown>; payload: Float32Array }> {
    for (;;) {
      const frame = this.#frames.shift();
      if (frame) return frame;
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }
  send(message: object, payload?: Float32Array): void {
    this.ws.send(encodeFrame(message, payload));
  }
}

let server: ScriptedServer;
const clients: Client[] = [];
const lines: string[] = [];
beforeEach(async () => {
  lines.length = 0;
  server = new ScriptedServer();
  await server.start();
});
afterEach(async () => {
  for (const client of clients.splice(0)) await client.close();
  await server.stop();
});

function connect(options: Partial<ClientOptions> = {}): Client {
  const client = new Client({
    server: `ws://127.0.0.1:${server.port}`,
    hello: HELLO,
    signal: new AbortController().signal,
    log: (line) => lines.push(line),
    // No pause between attempts.
    random: () => 0,
    ...options,
  });
  clients.push(client);
  return client;
}

describe('the order of messages', () => {
  test('begins with hello, on the path /ws, with the token', async () => {
    const client = connect({ token: 'secret' });
    const { header } = await (await server.connection()).frame();
    expect(header).toEqual({ type: 'hello', ...HELLO, incarnation: client.incarnation });
    expect(header.incarnation).toMatch(/^[0-9a-f]{16}$/);
    expect(server.requests[0]!.url).toBe('/ws');
    expect(server.requests[0]!.headers.authorization).toBe('Bearer secret');
    expect(server.requests[0]!.headers['sec-websocket-extensions']).toBeUndefined();
  });

  test('hands messages over in their order, with payloads in one or two fragments', async () => {
    const client = connect();
    const connection = await server.connection();
    connection.send(IDLE);
    connection.send(work(1), Float32Array.of(1, 2));
    connection.ws.send(encodeHeader(work(2)), { binary: true, fin: false });
    connection.ws.send(bytesOf(new Float32Array(100_000).fill(3)), { binary: true, fin: true });
    expect((await client.next()).message).toEqual(IDLE);
    expect([...(await client.next()).payload]).toEqual([1, 2]);
    const { payload } = await client.next();
    expect(payload.length).toBe(100_000);
    expect(payload.at(-1)).toBe(3);
  });

  test('pushes count up, and carry the gradient as it was when pushed', async () => {
    const client = connect();
    const connection = await server.connection();
    await connection.frame();
    const gradient = Float32Array.of(1, 2, 3);
    expect(send(client, push(10), gradient)).toBe(1);
    gradient.fill(9);
    expect(send(client, push(11), gradient)).toBe(2);
    const one = await connection.frame();
    const two = await connection.frame();
    expect(one.header).toEqual({ type: 'push', ...push(10), sequence: 1 });
    expect([...one.payload]).toEqual([1, 2, 3]);
    expect(two.header.sequence).toBe(2);
    expect(client.unacknowledged.map(({ lease }) => lease)).toEqual([10, 11]);
    client.acknowledge({
      ...{ sequence: 1, outcome: 'applied', staleness: 0, code: null, message: null },
    });
    expect(client.unacknowledged.map(({ lease }) => lease)).toEqual([11]);
  });

  test('a large push arrives whole, and its memory is used again once acknowledged', async () => {
    const client = connect();
    const connection = await server.connection();
    await connection.frame();
    for (let i = 1; i <= 4; i++) {
      send(client, push(i), new Float32Array(300_000).fill(i));
      const { header, payload } = await connection.frame();
      expect([header.sequence, payload.length, payload[0], payload.at(-1)]).toEqual([
        ...[i, 300_000, i, i],
      ]);
      client.acknowledge({
        ...{ sequence: i, outcome: 'applied', staleness: 0, code: null, message: null },
      });
    }
  });
});

describe('a lost connection', () => {
  test('a payload that was ready is sent from where it is, again too, and released once, when it is acknowledged', async () => {
    const client = connect();
    const first = await server.connection();
    await first.frame();
    first.send(IDLE);
    await client.next();
    const values = new Float32Array(5_000).fill(0.5);
    let released = 0;
    const release = () => {
      released++;
    };
    const sequence = client.pushReady(push(10), [{ bytes: bytesOf(values), release }]);
    const before = await first.frame();
    expect(before.payload).toEqual(values);
    first.ws.terminate();

    const second = await server.connection();
    await second.frame();
    expect(client.resend('r')).toBe(1);
    expect(await second.frame()).toEqual(before);
    expect(released).toBe(0);
    const outcome = { outcome: 'applied', staleness: 0, code: null, message: null } as const;
    client.acknowledge({ sequence, ...outcome });
    client.acknowledge({ sequence, ...outcome });
    await expect.poll(() => released).toBe(1);
  });

  test('is opened again with the same incarnation, and what was not acknowledged is sent again', async () => {
    const client = connect();
    const first = await server.connection();
    const hello = await first.frame();
    first.send(IDLE);
    await client.next();
    send(client, push(10), Float32Array.of(1, 2));
    const before = await first.frame();
    first.ws.terminate();

    const second = await server.connection();
    expect((await second.frame()).header).toEqual(hello.header);
    expect(client.resend('r')).toBe(1);
    const again = await second.frame();
    expect(again).toEqual(before);
    expect(send(client, push(11), Float32Array.of(3, 4))).toBe(2);
  });

  test('keeps what is pushed while there is none', async () => {
    const client = connect();
    const first = await server.connection();
    await first.frame();
    first.ws.terminate();
    await first.closed;
    while (client.connected) await new Promise(setImmediate);
    send(client, push(10), Float32Array.of(5));
    const second = await server.connection();
    await second.frame();
    client.resend('r');
    expect([...(await second.frame()).payload]).toEqual([5]);
  });

  test('drops pushes of a run that the worker has left', async () => {
    const client = connect();
    const first = await server.connection();
    await first.frame();
    send(client, push(10), Float32Array.of(5));
    expect(client.resend('other')).toBe(0);
    expect(client.unacknowledged).toEqual([]);
  });

  test('makes messages of it that nobody has read void', async () => {
    const client = connect();
    const first = await server.connection();
    first.send(work(1));
    first.send(work(2));
    expect((await client.next()).message).toMatchObject({ step: 1 });
    first.ws.close(1012, 'server stops');
    await first.closed;
    const second = await server.connection();
    second.send(IDLE);
    expect((await client.next()).message).toEqual(IDLE);
  });

  test('is opened again after a server that was away', async () => {
    const client = connect({ random: () => 0.001 });
    const first = await server.connection();
    await first.frame();
    const { port } = server;
    await server.stop();
    server = new ScriptedServer();
    await server.start(port);
    const second = await server.connection();
    second.send(IDLE);
    expect((await client.next()).message).toEqual(IDLE);
    expect(lines.some((line) => line.includes('trying again'))).toBe(true);
  });

  test('pauses at random below a limit that doubles, up to a share of the time away', () => {
    const most = () => 1 - 2 ** -32;
    const { firstMs, soonMs, maxMs, awayShare } = BACKOFF;
    expect(backoffMs(0, () => 0, 0)).toBe(0);
    expect(backoffMs(0, most, 1e9)).toBeCloseTo(firstMs, 3);
    expect(backoffMs(3, () => 0.5, 1e9)).toBe(firstMs * 4);
    for (const attempt of [10, 100, 1e9]) {
      expect(backoffMs(attempt, most, 0)).toBeCloseTo(soonMs, 3);
      expect(backoffMs(attempt, most, 5_000 * awayShare)).toBeCloseTo(5_000, 3);
      expect(backoffMs(attempt, most, 1e9)).toBeCloseTo(maxMs, 3);
    }
  });

  test('tells how far a run was seen, also when the server that told it is gone', async () => {
    const client = connect();
    expect(client.seen('r')).toBeNull();
    const connection = await server.connection();
    connection.send(work(7));
    connection.send({ ...work(3), evaluation: { id: 1, part: 'validation' } });
    for (let i = 0; i < 2; i++) await client.next();
    expect(client.seen('r')).toEqual({ step: 7, generation: 1 });
    const { port } = server;
    await server.stop();
    expect(client.seen('r')).toEqual({ step: 7, generation: 1 });
    server = new ScriptedServer();
    await server.start(port);
    const second = await server.connection();
    second.send({ ...work(2), generation: 2 });
    await client.next();
    expect(client.seen('r')).toEqual({ step: 2, generation: 2 });
    expect(client.seen('q')).toBeNull();
  });
});

describe('what the worker cannot mend', () => {
  test.each([
    ['DP_RUN_UNKNOWN', 4404],
    ['DP_DATA_MISMATCH', 4409],
    ['DP_SESSION_REPLACED', 4409],
  ])('ends it with the code of the server: %s', async (code, close) => {
    const client = connect();
    const connection = await server.connection();
    connection.send({ type: 'error', code, message: 'so it is' });
    connection.ws.close(close, code);
    await expect(client.next()).rejects.toMatchObject({ code, message: 'so it is' });
  });

  test('but a push that crossed the end of its run is no reason to end', async () => {
    const client = connect();
    const first = await server.connection();
    await first.frame();
    send(client, push(10), Float32Array.of(5));
    client.forget(null);
    first.send({ type: 'error', code: 'DP_PROTOCOL_ORDER', message: "'push' for run 'r'" });
    first.ws.close(1002, 'DP_PROTOCOL_ORDER');
    const second = await server.connection();
    second.send(IDLE);
    expect((await client.next()).message).toEqual(IDLE);
    second.send({ type: 'error', code: 'DP_PROTOCOL_ORDER', message: 'now in earnest' });
    await expect(client.next()).rejects.toMatchObject({ message: 'now in earnest' });
  });

  test('a refused token, by HTTP status', async () => {
    server.status = 401;
    await expect(connect({ token: 'wrong' }).next()).rejects.toMatchObject({
      code: 'DP_UNAUTHORIZED',
      message: expect.stringContaining('DOWNPOUR_TOKEN'),
    });
  });

  test('a code that closes nothing is logged once, and the work goes on', async () => {
    const client = connect();
    const connection = await server.connection();
    for (let i = 0; i < 3; i++) {
      connection.send({ type: 'error', code: 'DP_GRADIENT_NOT_FINITE', message: 'infinite' });
    }
    connection.send(IDLE);
    expect((await client.next()).message).toEqual(IDLE);
    const told = lines.filter((line) => line.includes('DP_GRADIENT_NOT_FINITE infinite'));
    expect(told).toHaveLength(1);
  });

  test.each(['DP_LIMIT', 'DP_OF_A_LATER_RELEASE'])('tries again after %s', async (code) => {
    const client = connect();
    const first = await server.connection();
    first.send({ type: 'error', code, message: 'not now' });
    first.ws.close(1013, code);
    const second = await server.connection();
    second.send(IDLE);
    expect((await client.next()).message).toEqual(IDLE);
  });

  test.each<[string, Uint8Array | string, string]>([
    ['a text message', 'hello', 'DP_FRAME_MALFORMED'],
    ['garbage', Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9), 'DP_FRAME_MALFORMED'],
    ['another version', encodeFrame(IDLE).with(2, 99), 'DP_PROTOCOL_VERSION'],
    ['an unknown message', encodeFrame({ type: 'dance' }), 'DP_FRAME_MALFORMED'],
    ['a field too many', encodeFrame({ ...IDLE, extra: 1 }), 'DP_FRAME_MALFORMED'],
  ])('a server that speaks another language: %s', async (_, frame, code) => {
    const client = connect();
    const connection = await server.connection();
    connection.ws.send(frame);
    await expect(client.next()).rejects.toMatchObject({ code });
    expect((await connection.closed)[0]).toBe(1002);
  });

  test('a server that is not there within the patience', async () => {
    const { port } = server;
    await server.stop();
    let now = 0;
    const client = connect({
      server: `ws://127.0.0.1:${port}`,
      patienceMs: 5000,
      now: () => (now += 1000),
    });
    await expect(client.next()).rejects.toMatchObject({
      code: 'DP_SERVER_UNREACHABLE',
      message: expect.stringMatching(/no server at ws:.* within 5 s \(.*ECONNREFUSED/),
    });
  });
});

describe('ending', () => {
  test('an aborted signal ends the wait with its reason, and what was sent goes out', async () => {
    const stop = new AbortController();
    const client = connect({ signal: stop.signal });
    const connection = await server.connection();
    await connection.frame();
    const waiting = client.next();
    stop.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    client.send({ type: 'leave', failure: null });
    await client.close();
    expect((await connection.frame()).header).toEqual({ type: 'leave', failure: null });
    expect((await connection.closed)[0]).toBe(1000);
  });

  test('closing while there is no server leaves nothing behind', async () => {
    const { port } = server;
    await server.stop();
    const client = connect({ server: `ws://127.0.0.1:${port}`, random: () => 1 });
    await client.close();
  });
});

describe('the address of a server', () => {
  test.each([
    ['ws://a:1', 'ws://a:1/ws'],
    ['a:7420', 'ws://a:7420/ws'],
    ['http://a:1', 'ws://a:1/ws'],
    ['https://a', 'wss://a/ws'],
    ['wss://a/deep/ws', 'wss://a/deep/ws'],
    ['http://a:1/training', 'ws://a:1/training/ws'],
    ['http://a:1/training/', 'ws://a:1/training/ws'],
  ])('%s is %s', (given, url) => {
    expect(socketUrl(given)).toBe(url);
  });

  test.each(['ftp://a', 'ws://', ''])("'%s' is refused", (given) => {
    expect(() => socketUrl(given)).toThrow(/is not the address of a server/);
  });
});
