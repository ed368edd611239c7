import { createHash, randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { createConnection, isIP, type Socket } from 'node:net';
import { connect as connectTls, type ConnectionOptions as TlsOptions } from 'node:tls';
import { Connection, type ConnectionEvents, type ConnectionOptions } from './connection.ts';
import { copiesOnly, openInto, type Sink, type Way } from './node-sockets.ts';

/** The opening handshake of a WebSocket (RFC 6455, section 4), both ends. No extension is agreed on. */

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
const acceptOf = (key: string) =>
  createHash('sha1')
    .update(key + GUID)
    .digest('base64');

// The server's end.

/** What keeps a request from becoming a WebSocket, in words; or null. */
export function upgradeProblem(request: IncomingMessage): string | null {
  const { method, headers, httpVersion } = request;
  if (method !== 'GET') return `a WebSocket begins with GET, not ${method}`;
  if (httpVersion !== '1.1') return `a WebSocket begins with HTTP/1.1, not ${httpVersion}`;
  const doubled = hostProblem(request);
  if (doubled !== null) return doubled;
  if (headers.upgrade?.toLowerCase() !== 'websocket') {
    return `Upgrade is '${headers.upgrade}'; only 'websocket' is served`;
  }
  const version = headers['sec-websocket-version'];
  if (version !== '13') return `Sec-WebSocket-Version is '${version}'; only 13 is served`;
  if (!/^[A-Za-z0-9+/]{22}==$/.test(headers['sec-websocket-key'] ?? '')) {
    return 'Sec-WebSocket-Key is not the base64 of 16 bytes';
  }
  return null;
}

/** A proxy and a server that choose different ones of two Host headers take a request for two different ones. */
export function hostProblem({ rawHeaders }: IncomingMessage): string | null {
  const names = rawHeaders.filter((_, i) => i % 2 === 0);
  const count = names.filter((name) => name.toLowerCase() === 'host').length;
  return count > 1 ? `the request has ${count} Host headers; one is allowed` : null;
}

/** Answers a request that has no `upgradeProblem`. `start` the connection with what came behind it. */
export function accept(
  request: IncomingMessage,
  socket: Socket,
  options: Omit<ConnectionOptions, 'role'> & {
    /** Of those that it offers; null: none. */
    readonly protocol?: string | null;
  } = {},
): Connection {
  const protocol = options.protocol ? `Sec-WebSocket-Protocol: ${options.protocol}\r\n` : '';
  socket.write(
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      `Sec-WebSocket-Accept: ${acceptOf(request.headers['sec-websocket-key']!)}\r\n${protocol}\r\n`,
  );
  return new Connection(socket, { ...options, role: 'server' });
}

// The worker's end.

export interface DialOptions extends Omit<ConnectionOptions, 'role'> {
  /** `ws://…` or `wss://…` */
  readonly url: string;
  /** The unix socket that the server of this address listens on too; null: over TCP. */
  readonly path?: string | null;
  readonly headers?: Readonly<Record<string, string>>;
  readonly handshakeMs: number;
  readonly tls?: TlsOptions;
  /** The connection is open: what is sent now goes out first. */
  opened(connection: Connection): ConnectionEvents;
  /** There is none. @param status of HTTP, when the server answered something else. */
  failed(error: Error, status: number | null): void;
}

const ANSWER_BYTES_MAX = 16 * 1024;

/** Opens a connection to a server. Either `opened` or `failed` is called, once. */
export function dial(options: DialOptions): { abort(): void } {
  const url = new URL(options.url);
  const key = randomBytes(16).toString('base64');
  const memory = Buffer.alloc(ANSWER_BYTES_MAX);
  let length = 0;
  let settled = false;
  const fail = (error: Error, status: number | null = null) => {
    if (settled) return;
    settled = true;
    clearTimeout(timer);
    socket.destroy();
    options.failed(error, status);
  };
  const read = () => {
    const end = memory.subarray(0, length).indexOf('\r\n\r\n');
    if (end < 0) {
      if (length === memory.length) fail(new Error('the answer is not that of a WebSocket server'));
      return;
    }
    const { status, problem } = readAnswer(memory.toString('latin1', 0, end), key);
    if (problem !== null) {
      fail(new Error(problem), status);
      return;
    }
    settled = true;
    clearTimeout(timer);
    const connection = new Connection(socket, { ...options, role: 'client' });
    sink = connection.sink;
    connection.start(options.opened(connection), memory.subarray(end + 4, length), way);
  };
  const answer: Sink = {
    next: () => memory.subarray(length),
    filled(bytes) {
      length += bytes;
      if (!settled) read();
    },
    feed(chunk) {
      if (settled) return;
      const fits = Math.min(chunk.length, memory.length - length);
      memory.set(chunk.subarray(0, fits), length);
      length += fits;
      read();
      if (fits < chunk.length) sink.feed(chunk.subarray(fits));
    },
  };
  let sink = answer;
  const { socket, way } = openSocket(url, options, {
    next: () => sink.next(),
    filled: (bytes) => sink.filled(bytes),
    feed: (chunk) => sink.feed(chunk),
  });
  const timer = setTimeout(
    () => fail(new Error(`no answer to the handshake within ${options.handshakeMs / 1000} s`)),
    options.handshakeMs,
  );
  socket.on('error', (error) => fail(error));
  socket.on('close', () => fail(new Error('connection closed')));
  socket.write(requestOf(url, key, options.headers));
  return { abort: () => fail(new Error('aborted')) };
}

function openSocket(url: URL, options: DialOptions, sink: Sink): { socket: Socket; way: Way } {
  const secure = url.protocol === 'wss:';
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  const port = Number(url.port) || (secure ? 443 : 80);
  const address = options.path ? { path: options.path } : { host, port };
  if (!secure && options.way !== 'copied' && !copiesOnly()) {
    return { socket: openInto(address, sink), way: 'straight' };
  }
  // TLS decrypts into memory of its own.
  const socket = secure
    ? connectTls({ host, port, ...(isIP(host) ? {} : { servername: host }), ...options.tls })
    : createConnection(address);
  socket.on('data', (chunk: Buffer) => sink.feed(chunk));
  return { socket, way: 'copied' };
}

function requestOf(url: URL, key: string, headers: DialOptions['headers'] = {}): string {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  if (lines.some((line) => /[\r\n]/.test(line.slice(0, -2)))) {
    throw new TypeError('a header with a line break');
  }
  return (
    `GET ${url.pathname}${url.search} HTTP/1.1\r\nHost: ${url.host}\r\nUpgrade: websocket\r\n` +
    `Connection: Upgrade\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n` +
    `${lines.join('')}\r\n`
  );
}

/** @param text of the answer, without the empty line at its end. */
function readAnswer(text: string, key: string): { status: number; problem: string | null } {
  const [first = '', ...lines] = text.split('\r\n');
  const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(first)?.[1] ?? 0);
  if (status !== 101) {
    return { status, problem: status === 0 ? 'the answer is not HTTP' : `HTTP status ${status}` };
  }
  const headers = new Map<string, string>();
  for (const line of lines) {
    const colon = line.indexOf(':');
    headers.set(line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim());
  }
  let problem: string | null = null;
  if (headers.get('upgrade')?.toLowerCase() !== 'websocket') problem = 'no `Upgrade: websocket`';
  else if (headers.get('sec-websocket-accept') !== acceptOf(key)) problem = 'a wrong accept key';
  else if (headers.has('sec-websocket-extensions')) problem = 'an extension nobody asked for';
  return { status, problem: problem && `the answer to the handshake has ${problem}` };
}
