import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { afterEach, describe, expect, test } from 'vitest';
import { WebSocket, WebSocketServer } from 'ws';
import { encodeFrame } from '../../shared/codec.ts';
import { errorText } from '../../shared/errors.ts';
import type { Connection, ConnectionEvents, FrameHeader } from '../../wire/connection.ts';
import { FRAME_HEAD_MAX, writeFrameHead } from '../../wire/frames.ts';
import { accept, type DialOptions, dial } from '../../wire/handshake.ts';
import { type ReadWay, tryStraight } from '../../wire/node-sockets.ts';
import { acceptSilent } from '../support/silent-socket.ts';

/** Both ends of a connection on real sockets, against each other and against the `ws` package. */

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** What has come, in order, to be waited for. */
class Inbox {
  readonly #items: unknown[] = [];
  #wake: (() => void) | null = null;
  put(item: unknown): void {
    this.#items.push(item);
    this.#wake?.();
  }
  async next(): Promise<unknown> {
    while (this.#items.length === 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#items.shift();
  }
}

const sumOf = (payload: Uint8Array) => payload.reduce((sum, value) => (sum + value) >>> 0, 7);
const shown = (header: FrameHeader, payload: Uint8Array) => [
  header.type,
  payload.length,
  sumOf(payload),
];

function collect(inbox: Inbox, more: Partial<ConnectionEvents> = {}): ConnectionEvents {
  return {
    land: (_, bytes) => ({ bytes: new Uint8Array(bytes ?? 1000), release() {} }),
    message(header, payload, landing) {
      inbox.put(shown(header, payload));
      landing?.release();
    },
    malformed: (error) => inbox.put(error.code),
    broken: (error) => inbox.put(error.code),
    alive() {},
    closed: (code, reason) => inbox.put(`closed ${code} ${reason}`.trim()),
    ...more,
  };
}

interface ServerOptions {
  readonly http?: Server;
  readonly way?: ReadWay;
  readonly closeMs?: number;
  readonly events?: (connection: Connection, inbox: Inbox) => Partial<ConnectionEvents>;
}

/** A server on a port of its own; `inbox` has what all its connections received. */
async function serve({ events, http = createServer(), ...options }: ServerOptions = {}) {
  const inbox = new Inbox();
  const connections: Connection[] = [];
  http.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    try {
      const connection = accept(request, socket as Socket, head, options)!;
      connections.push(connection);
      connection.start(collect(inbox, events?.(connection, inbox)));
    } catch (error) {
      socket.end(`HTTP/1.1 400 No\r\nconnection: close\r\n\r\n${errorText(error)}`);
    }
  });
  return { ...(await listening(http)), inbox, connections };
}

async function listening(http: Server): Promise<{ port: number; url: string }> {
  const sockets = new Set<Duplex>();
  http.on('connection', (socket) => sockets.add(socket));
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  cleanUps.push(async () => {
    for (const socket of sockets) socket.destroy();
    http.close();
    await once(http, 'close');
  });
  const { port } = http.address() as AddressInfo;
  return { port, url: `ws://127.0.0.1:${port}/ws` };
}

async function open(
  url: string,
  options: Partial<DialOptions> & { events?: Partial<ConnectionEvents> } = {},
): Promise<{ connection: Connection; inbox: Inbox }> {
  const inbox = new Inbox();
  const { events, ...rest } = options;
  return new Promise((resolve, reject) => {
    dial({
      url,
      handshakeMs: 60_000,
      ...rest,
      opened(connection) {
        cleanUps.push(() => connection.terminate());
        resolve({ connection, inbox });
        return collect(inbox, events);
      },
      failed: (error, status) => reject(Object.assign(error, { status })),
    });
  });
}

/** Raw bytes after a handshake of our own. */
async function openRaw(port: number): Promise<{ socket: Socket; rest: () => Promise<string> }> {
  const socket = connect(port, '127.0.0.1');
  cleanUps.push(() => socket.destroy());
  socket.write(
    'GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n' +
      'sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n',
  );
  const received: Buffer[] = [];
  socket.on('data', (data) => received.push(data));
  await once(socket, 'data');
  const rest = async () => {
    if (!socket.readableEnded) await once(socket, 'end');
    const all = Buffer.concat(received);
    return all.subarray(all.indexOf('\r\n\r\n') + 4).toString('hex');
  };
  return { socket, rest };
}

const floats = (length: number) => Float32Array.from({ length }, (_, i) => Math.sin(i));
const bytes = (values: Float32Array) => new Uint8Array(values.buffer);
const WAYS: readonly ReadWay[] = ['straight', 'copied'];

test('this Node reads sockets of the HTTP server straight into place', async () => {
  expect(await tryStraight()).toBe(null);
});

describe.each(WAYS)('payloads, %s', (way) => {
  test('frames of every size arrive in both directions', async () => {
    const server = await serve({
      way,
      events: (connection) => ({
        message(header, payload, landing) {
          // As the server does: the answer shares memory that is released when it has gone.
          connection.send({ ...header }, [payload.subarray(0, 8), payload.subarray(8)], () =>
            landing?.release(),
          );
        },
      }),
    });
    const { connection, inbox } = await open(server.url, { way });
    expect([connection.way, server.connections[0]!.way]).toEqual([way, way]);
    for (const size of [0, 1, 2, 100, 2_000, 16_000, 16_384, 100_000, 3_000_000]) {
      const payload = bytes(floats(size));
      connection.send({ type: 'push', size }, [payload]);
      expect(await inbox.next()).toEqual(['push', payload.length, sumOf(payload)]);
    }
    connection.close(1000, 'enough');
    expect(await inbox.next()).toBe('closed 1000 enough');
    expect(await server.inbox.next()).toBe('closed 1000 enough');
  });

  test('many small frames of one turn keep their order', async () => {
    const server = await serve({ way });
    const { connection } = await open(server.url, { way });
    const gone: number[] = [];
    for (let i = 0; i < 2_000; i++) {
      connection.send({ type: `n${i}` }, [Uint8Array.of(1, 2, 3, i % 256)], () => gone.push(i));
    }
    for (let i = 0; i < 2_000; i++) {
      expect(await server.inbox.next()).toEqual([`n${i}`, 4, 13 + (i % 256)]);
    }
    while (gone.length < 2_000) await new Promise(setImmediate);
    expect(gone).toEqual(gone.toSorted((a, b) => a - b));
  });

  test('reading stands still without a landing, and the sender notices', async () => {
    let free = false;
    const server = await serve({
      way,
      events: () => ({
        land: (_, n) => (free ? { bytes: new Uint8Array(n!), release() {} } : 'wait'),
      }),
    });
    const { connection } = await open(server.url, { way });
    const payload = bytes(floats(8_000_000));
    let gone = false;
    connection.send({ type: 'push' }, [payload], () => {
      gone = true;
    });
    connection.send({ type: 'after' });
    while (!server.connections[0]?.waiting) await new Promise(setImmediate);
    for (let i = 0; i < 50; i++) await new Promise(setImmediate);
    expect(gone).toBe(false);
    expect(connection.bufferedBytes).toBeGreaterThan(1e6);
    server.connections[0].retry();
    expect(server.connections[0].waiting).toBe(true);
    free = true;
    server.connections[0].retry();
    expect(await server.inbox.next()).toEqual(['push', payload.length, sumOf(payload)]);
    expect(await server.inbox.next()).toEqual(['after', 0, 7]);
    expect(gone).toBe(true);
    expect(connection.bufferedBytes).toBe(0);
  });

  test('a payload moves to another place while its socket waits for more of it', async () => {
    const [first, second] = [new Uint8Array(800_000), new Uint8Array(800_000)];
    const server = await serve({
      way,
      events: () => ({ land: () => ({ bytes: first, release() {} }) }),
    });
    const { socket } = await openRaw(server.port);
    const frame = encodeFrame({ type: 'push' }, floats(200_000));
    const head = new Uint8Array(FRAME_HEAD_MAX);
    const opcode = 2;
    const start = writeFrameHead(head, head.length, { opcode, length: frame.length, masked: true });
    socket.write(head.subarray(start));
    socket.write(frame.subarray(0, 500_000));
    const [connection] = server.connections;
    while ((connection!.coming?.bytes ?? 0) < 499_900) await new Promise(setImmediate);
    expect(connection!.move({ bytes: second, release() {} })).toBe(true);
    first.fill(7);
    socket.write(frame.subarray(500_000, 600_000));
    while (connection!.coming!.bytes < 599_900) await new Promise(setImmediate);
    // Once more, and back.
    expect(connection!.move({ bytes: first, release() {} })).toBe(true);
    second.fill(7);
    socket.write(frame.subarray(600_000));
    const payload = bytes(floats(200_000));
    expect(await server.inbox.next()).toEqual(['push', payload.length, sumOf(payload)]);
    expect(second.every((byte) => byte === 7)).toBe(true);
  });

  test('holding, a connection reads on when all that was sent has left', async () => {
    const answer = new Uint8Array(4_000_000);
    let answered = 0;
    const server = await serve({
      way,
      events: (connection) => ({
        message(_, __, landing) {
          landing?.release();
          answered++;
          connection.send({ type: 'work' }, [answer]);
          if (connection.bufferedBytes > answer.length + 1_000) connection.hold();
        },
      }),
    });
    const { socket } = await openRaw(server.port);
    socket.pause();
    const idle = encodeFrame({ type: 'idle' });
    const head = new Uint8Array(FRAME_HEAD_MAX);
    const start = writeFrameHead(head, head.length, {
      ...{ opcode: 2, length: idle.length, masked: true },
    });
    const ask = Buffer.concat([head.subarray(start), idle]);
    const COUNT = 50;
    for (let i = 0; i < COUNT; i++) socket.write(ask);
    const [connection] = server.connections;
    while (!connection!.holding) await new Promise(setImmediate);
    for (let i = 0; i < 50; i++) await new Promise(setImmediate);
    expect(answered).toBeLessThan(10);
    expect(connection!.bufferedBytes).toBeLessThan(3 * answer.length);
    socket.resume();
    while (answered < COUNT) await new Promise(setImmediate);
  });

  test('a landing that is waited for is not needed once the connection closes', async () => {
    const server = await serve({ way, events: () => ({ land: () => 'wait' }) });
    const { connection, inbox } = await open(server.url, { way });
    connection.send({ type: 'push' }, [bytes(floats(100_000))]);
    while (!server.connections[0]?.waiting) await new Promise(setImmediate);
    server.connections[0].close(4404, 'DP_RUN_UNKNOWN');
    expect(await inbox.next()).toBe('closed 4404 DP_RUN_UNKNOWN');
    expect(await server.inbox.next()).toBe('closed 4404 DP_RUN_UNKNOWN');
  });
});

describe.each(WAYS)('the `ws` package, %s', (way) => {
  const payload = Buffer.from(bytes(floats(50_000)).buffer);
  const frame = Buffer.from(encodeFrame({ type: 'push' }, floats(50_000)));
  const PUSH = ['push', payload.length, sumOf(payload)];

  test.each([
    ['random masks', {}],
    ['deflate offered, and refused', { perMessageDeflate: true }],
  ])('as a client: %s', async (_, options) => {
    const server = await serve({
      way,
      events: (connection, inbox) => ({
        message(header, received, landing) {
          inbox.put(shown(header, received));
          connection.send({ ...header }, [received], () => landing?.release());
        },
      }),
    });
    const ws = new WebSocket(server.url, options);
    cleanUps.push(() => ws.terminate());
    await once(ws, 'open');
    expect(ws.extensions).toBe('');
    ws.send(frame);
    expect(await server.inbox.next()).toEqual(PUSH);
    const [echo] = (await once(ws, 'message')) as [Buffer];
    expect(echo.equals(frame)).toBe(true);
    // Fragments, cut through the header too.
    for (const [from, to] of [
      [0, 5],
      [5, 24],
      [24, 90_000],
      [90_000, 90_000],
      [90_000, frame.length],
    ] as const) {
      ws.send(frame.subarray(from, to), { fin: to === frame.length });
      if (from === 24) ws.ping('between');
    }
    expect(await server.inbox.next()).toEqual(PUSH);
    expect(String((await once(ws, 'pong'))[0])).toBe('between');
    server.connections[0]!.ping();
    await once(ws, 'ping');
    ws.close(4000, 'genug – ½');
    expect((await once(ws, 'close')).map(String)).toEqual(['4000', 'genug – ½']);
    expect(await server.inbox.next()).toBe('closed 4000 genug – ½');
  });

  test('as a server: fragments, pings, deflate on offer, and closing', async () => {
    const wss = new WebSocketServer({ port: 0, host: '127.0.0.1', perMessageDeflate: true });
    cleanUps.push(() => wss.close());
    await once(wss, 'listening');
    const connected = once(wss, 'connection') as Promise<[WebSocket]>;
    const { connection, inbox } = await open(
      `ws://127.0.0.1:${(wss.address() as AddressInfo).port}`,
      { way },
    );
    const [ws] = await connected;
    cleanUps.push(() => ws.terminate());
    connection.send({ type: 'push' }, [payload.subarray(0, 1000), payload.subarray(1000)]);
    expect(((await once(ws, 'message')) as [Buffer])[0].equals(frame)).toBe(true);
    ws.send(frame.subarray(0, 24), { fin: false });
    ws.send(frame.subarray(24), { fin: true });
    expect(await inbox.next()).toEqual(PUSH);
    ws.ping('x');
    expect(String((await once(ws, 'pong'))[0])).toBe('x');
    connection.ping();
    await once(ws, 'ping');
    ws.send('text');
    expect(await inbox.next()).toBe('DP_FRAME_MALFORMED');
    ws.close(1012, 'later');
    expect(await inbox.next()).toBe('closed 1012 later');
  });
});

const noOpenssl = spawnSync('openssl', ['version']).status !== 0 && !process.env.CI;
test.skipIf(noOpenssl)(
  'over TLS, payloads are copied once (openssl makes the certificate)',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'downpour-tls-'));
    cleanUps.push(() => rmSync(folder, { recursive: true }));
    const [keyFile, certFile] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
    const request = 'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1';
    const { status, stderr } = spawnSync(
      'openssl',
      `${request} -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout ${keyFile} -out ${certFile}`.split(
        ' ',
      ),
      { encoding: 'utf8' },
    );
    expect(status, stderr).toBe(0);
    const cert = readFileSync(certFile);
    const server = await serve({
      http: createTlsServer({ key: readFileSync(keyFile), cert }),
      events: (connection, inbox) => ({
        message(header, payload, landing) {
          inbox.put(shown(header, payload));
          connection.send({ ...header }, [payload], () => landing?.release());
        },
      }),
    });
    const { connection, inbox } = await open(server.url.replace('ws:', 'wss:'), {
      tls: { ca: cert },
    });
    expect([connection.way, server.connections[0]!.way]).toEqual(['copied', 'copied']);
    const payload = bytes(floats(1_000_000));
    connection.send({ type: 'push' }, [payload]);
    expect(await inbox.next()).toEqual(['push', payload.length, sumOf(payload)]);
    connection.close(1000);
    expect(await inbox.next()).toBe('closed 1000');
  },
);

describe('closing', () => {
  test.each<[string, string, string, string, string]>([
    [
      'a close frame is answered with its code',
      '8882 00000000 03e9',
      '8802 03e9',
      'closed 1001',
      '',
    ],
    ['one without a code, without one', '8880 00000000', '8800', 'closed 1005', ''],
    [
      'a broken protocol',
      '8380 00000000',
      '8802 03ea',
      'DP_FRAME_MALFORMED',
      'closed 1006 connection lost',
    ],
    [
      'text that is not UTF-8',
      '8181 00000000 ff',
      '8802 03ef',
      'DP_FRAME_MALFORMED',
      'closed 1006 connection lost',
    ],
    [
      'a message that is too large',
      '82ff 0000000080000000 00000000',
      '8802 03f1',
      'DP_FRAME_TOO_LARGE',
      'closed 1006 connection lost',
    ],
    [
      'a ping that comes with it',
      '8981 00000000 61 8880 00000000',
      '8a0161 8800',
      'closed 1005',
      '',
    ],
  ])('%s', async (_, sent, answered, first, second) => {
    for (const way of WAYS) {
      const server = await serve({ way });
      const { socket, rest } = await openRaw(server.port);
      socket.write(Buffer.from(sent.replaceAll(' ', ''), 'hex'));
      expect(await rest()).toBe(answered.replaceAll(' ', ''));
      socket.end();
      expect(await server.inbox.next()).toBe(first);
      if (second) expect(await server.inbox.next()).toBe(second);
    }
  });

  test('what was sent before a close goes out first, what comes after is dropped', async () => {
    const server = await serve({
      events: (connection) => ({
        message(header) {
          if (header.type !== 'first') throw new Error(`heard ${header.type}`);
          connection.send({ type: 'answer' }, [bytes(floats(500_000))]);
          connection.close(1002, 'DP_PROTOCOL_ORDER');
          connection.send({ type: 'never' });
        },
      }),
    });
    const { connection, inbox } = await open(server.url);
    connection.send({ type: 'first' });
    connection.send({ type: 'second' }, [bytes(floats(500_000))]);
    expect(await inbox.next()).toMatchObject(['answer', 2_000_000, expect.anything()]);
    expect(await inbox.next()).toBe('closed 1002 DP_PROTOCOL_ORDER');
    expect(await server.inbox.next()).toBe('closed 1002 DP_PROTOCOL_ORDER');
  });

  test.each(WAYS)('an end that does not answer is left after the time for it, %s', async (way) => {
    const server = await serve({ way, closeMs: 20 });
    const { socket } = await openRaw(server.port);
    server.connections[0]!.close(1000);
    expect(await server.inbox.next()).toBe('closed 1006 connection lost');
    if (!socket.destroyed) await once(socket, 'close');
  });

  test('an end that hangs up without a word', async () => {
    for (const way of WAYS) {
      const server = await serve({ way });
      const { socket } = await openRaw(server.port);
      // In the middle of a frame.
      socket.end(Buffer.from('82fe', 'hex'));
      expect(await server.inbox.next()).toBe('closed 1006 connection lost');
    }
  });

  test('an end that dies in the middle of a payload gives its landing back', async () => {
    for (const way of WAYS) {
      let out = 0;
      const server = await serve({
        way,
        events: () => ({
          land(_, n) {
            out++;
            return { bytes: new Uint8Array(n!), release: () => out-- };
          },
        }),
      });
      const { socket } = await openRaw(server.port);
      const frame = encodeFrame({ type: 'push' }, floats(1000));
      socket.write(Buffer.from('82ff00000000000f424800000000', 'hex'));
      socket.write(frame);
      while (out === 0) await new Promise(setImmediate);
      socket.resetAndDestroy();
      expect(await server.inbox.next()).toMatch(/^closed 1006 .*(ECONNRESET|lost)/);
      expect(out).toBe(0);
    }
  });

  test('what could not be sent any more is told as gone', async () => {
    const server = await serve({ events: () => ({ land: () => 'wait' }) });
    const { connection } = await open(server.url);
    let gone = 0;
    const count = () => gone++;
    connection.send({ type: 'push' }, [bytes(floats(8_000_000))], count);
    connection.send({ type: 'more' }, [], count);
    connection.terminate();
    connection.send({ type: 'late' }, [bytes(floats(10))], count);
    while (gone < 3) await new Promise(setImmediate);
    expect(gone).toBe(3);
  });

  test('a masked frame from a server breaks the connection', async () => {
    for (const way of WAYS) {
      const http = createServer();
      http.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
        accept(request, socket as Socket, head);
        socket.write(Buffer.from('8280 00000000'.replaceAll(' ', ''), 'hex'));
      });
      const { url } = await listening(http);
      const { inbox } = await open(url, { way, closeMs: 20 });
      expect(await inbox.next()).toBe('DP_FRAME_MALFORMED');
      expect(await inbox.next()).toBe('closed 1006 connection lost');
    }
  });

  test('a flood of pings costs the memory of a few pongs', async () => {
    const server = await serve();
    const { socket } = await openRaw(server.port);
    socket.pause();
    const ping = Buffer.concat([Buffer.from('89fd00000000', 'hex'), Buffer.alloc(125)]);
    const pings = Buffer.concat(Array.from({ length: 1000 }, () => ping));
    for (let i = 0; i < 100; i++) {
      await new Promise<void>((resolve) => socket.write(pings, () => resolve()));
      expect(server.connections[0]!.bufferedBytes).toBeLessThan(64 * 140);
    }
  });
});

describe('the handshake', () => {
  const BASE = {
    upgrade: 'websocket',
    connection: 'upgrade',
    'sec-websocket-version': '13',
    'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
  };
  test.each<[string, Record<string, string>, RegExp]>([
    ['another version', { 'sec-websocket-version': '8' }, /Version is '8'/],
    ['a short key', { 'sec-websocket-key': 'AAAA' }, /invalid Sec-WebSocket-Key/],
    ['another protocol', { upgrade: 'h2c' }, /Invalid Upgrade/],
    [
      'a list of subprotocols that is none',
      { 'sec-websocket-protocol': ',,' },
      /Invalid Sec-WebSocket-Protocol/,
    ],
  ])('%s is refused', async (_, changes, problem) => {
    const { port } = await serve();
    const socket = connect(port, '127.0.0.1');
    const lines = Object.entries({ host: 'x', ...BASE, ...changes }).map((line) => line.join(': '));
    socket.write(`GET /ws HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`);
    let answer = '';
    for await (const chunk of socket) answer += chunk;
    expect(answer).toMatch(/^HTTP\/1.1 400/);
    expect(answer).toMatch(problem);
  });

  test.each<[string, string, string, number | null]>([
    ['a refusal', 'HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n', 'HTTP status 401', 401],
    ['something else', 'SSH-2.0-OpenSSH_9.2\r\n\r\n', 'the answer is not HTTP: Parse Error', null],
    [
      'a wrong key',
      'HTTP/1.1 101 Ok\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n',
      'Invalid Sec-WebSocket-Accept header',
      null,
    ],
    [
      'another protocol',
      'HTTP/1.1 101 Ok\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n',
      'Invalid Upgrade header',
      null,
    ],
    ['no upgrade', 'HTTP/1.1 101 Ok\r\nX: y\r\n\r\n', 'HTTP status 101', 101],
    [
      'a header without end',
      `HTTP/1.1 101 Ok\r\nX: ${'x'.repeat(20_000)}`,
      'the answer is not HTTP: Parse Error: Header overflow',
      null,
    ],
    ['nothing', '', 'socket hang up', null],
  ])('a server that answers with %s', async (_, answer, message, status) => {
    const server = (await import('node:net')).createServer((socket) => {
      socket.on('error', () => {});
      socket.once('data', () => socket.end(answer));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    cleanUps.push(() => server.close());
    const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
    for (const way of WAYS) {
      await expect(open(url, { way })).rejects.toMatchObject({
        message: expect.stringContaining(message),
        status,
      });
    }
  });

  test('a server that says nothing is left after the time for it', async () => {
    const server = (await import('node:net')).createServer(() => {});
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    cleanUps.push(() => server.close());
    const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await expect(open(url, { handshakeMs: 30 })).rejects.toThrow('within 0.03 s');
  });

  test('messages may come in the same packet as the answer', async () => {
    const server = await serve({ events: () => ({}) });
    const { socket, rest } = await openRaw(server.port);
    expect(socket.writable).toBe(true);
    socket.end();
    await rest();
    for (const way of WAYS) {
      const eager = await serve({
        way,
        events: (connection) => {
          connection.send({ type: 'at-once' }, [bytes(floats(30_000))]);
          return {};
        },
      });
      const { inbox } = await open(eager.url, { way });
      expect(await inbox.next()).toMatchObject(['at-once', 120_000, expect.anything()]);
    }
  });
});

test('the end of what is there is told once, when the turn of the event loop ends', async () => {
  const told: string[] = [];
  const { connection } = acceptSilent();
  const events = collect(new Inbox(), {
    message: ({ type }, _, __, more) => told.push(`${type} ${more}`),
    drained: () => told.push('drained'),
  });
  connection.start(events, 'straight');
  const read = (frame: Uint8Array) => {
    for (let at = 0; at < frame.length; ) {
      const place = connection.sink.next();
      const count = Math.min(place.length, frame.length - at);
      place.set(frame.subarray(at, at + count));
      connection.sink.filled(count);
      at += count;
    }
  };
  const framed = (type: string, size: number) => {
    const message = encodeFrame({ type }, floats(size));
    const frame = new Uint8Array(FRAME_HEAD_MAX + message.length);
    const length = message.length;
    const start = writeFrameHead(frame, FRAME_HEAD_MAX, { opcode: 2, length, masked: true });
    frame.set(message, FRAME_HEAD_MAX);
    return frame.subarray(start);
  };
  // Read in place: what is behind them is not known.
  read(framed('first', 100_000));
  read(framed('second', 100_000));
  expect(told.filter((what) => what !== 'drained')).toEqual(['first true', 'second true']);
  expect(told.at(-1)).toBe('second true');
  expect(told.indexOf('first true') + 1).toBe(told.indexOf('second true'));
  await new Promise(setImmediate);
  expect(told.slice(-2)).toEqual(['second true', 'drained']);
  // Read by the way: what came in one piece is known to be all.
  told.length = 0;
  read(Buffer.concat([framed('third', 2), framed('fourth', 2)]));
  expect(told).toEqual(['third true', 'fourth false', 'drained']);
  connection.terminate();
});
