import type { IncomingMessage } from 'node:http';
import { createConnection, isIP, type Socket } from 'node:net';
import { connect as connectTls, type ConnectionOptions as TlsOptions } from 'node:tls';
import { WebSocket, WebSocketServer } from 'ws';
import { ASIDES, type Aside, asidesOf, TAKES_HEADER } from '../shared/asides.ts';
import { DownpourError } from '../shared/errors.ts';
import { TICKET_PROTOCOL, ticketOf } from '../shared/join.ts';
import { Connection, type ConnectionEvents, type ConnectionOptions } from './connection.ts';
import { copiesOnly, openInto, type ReadWay, type Sink } from './node-sockets.ts';
import { TEXT_BYTES_MAX } from './receiver.ts';
import { withCertificate } from './tls.ts';

/** The opening handshake of a WebSocket (RFC 6455, section 4), both ends, by `ws`. No extension is agreed on. */

/** Binary messages never reach `ws`; these are for the rest. */
const PROTOCOL = {
  perMessageDeflate: false,
  autoPong: false,
  maxPayload: TEXT_BYTES_MAX,
  maxFragments: 256,
  maxBufferedChunks: 1_024,
} as const;

// The server's end.

const upgrades = new WebSocketServer({
  ...PROTOCOL,
  noServer: true,
  clientTracking: false,
  handleProtocols: (_, { headers }) =>
    ticketOf(headers['sec-websocket-protocol']) === null ? false : TICKET_PROTOCOL,
});
upgrades.on('headers', (headers) => headers.push(`${TAKES_HEADER}: ${ASIDES.join(' ')}`));
upgrades.on('wsClientError', ({ message }) => {
  throw new DownpourError('DP_BODY_INVALID', `the request is no WebSocket's: ${message}`);
});

/** What keeps a request from becoming a WebSocket, beside what `ws` looks at, in words; or null. */
function upgradeProblem(request: IncomingMessage): string | null {
  const { headers, httpVersion } = request;
  if (httpVersion !== '1.1') return `a WebSocket begins with HTTP/1.1, not ${httpVersion}`;
  const doubled = hostProblem(request);
  if (doubled !== null) return doubled;
  const version = headers['sec-websocket-version'];
  if (version !== '13') return `Sec-WebSocket-Version is '${version}'; only 13 is served`;
  return null;
}

/** A proxy and a server that choose different ones of two Host headers take a request for two different ones. */
export function hostProblem({ rawHeaders }: IncomingMessage): string | null {
  const names = rawHeaders.filter((_, i) => i % 2 === 0);
  const count = names.filter((name) => name.toLowerCase() === 'host').length;
  return count > 1 ? `the request has ${count} Host headers; one is allowed` : null;
}

/**
 * Makes a connection of a request for one.
 * @param head what has been read behind it.
 * @returns null: its client has hung up. @throws DownpourError DP_BODY_INVALID: it is no WebSocket's; not answered yet.
 */
export function accept(
  request: IncomingMessage,
  socket: Socket,
  head: Buffer,
  options: Omit<ConnectionOptions, 'role'> = {},
): Connection | null {
  const problem = upgradeProblem(request);
  if (problem !== null) throw new DownpourError('DP_BODY_INVALID', problem);
  let connection: Connection | null = null;
  upgrades.handleUpgrade(request, socket, head, (ws) => {
    connection = new Connection(ws, socket, { ...options, role: 'server' });
  });
  return connection;
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
  /** The connection is open: what is sent now goes out first. @param takes asides that the server takes. */
  opened(connection: Connection, takes: ReadonlySet<Aside>): ConnectionEvents;
  /**
   * There is none. @param status of HTTP, when the server answered something else.
   * @param retryAfterSeconds before which the server wants to hear nothing; 0: it does not say.
   */
  failed(error: Error, status: number | null, retryAfterSeconds: number): void;
}

/** The answer to a handshake comes through here, of all connections one after another. */
const ANSWER = Buffer.allocUnsafeSlow(16 * 1024);

/** Opens a connection to a server. Either `opened` or `failed` is called, once. */
export function dial(options: DialOptions): { abort(): void } {
  const url = new URL(options.url);
  let opened: { readonly socket: Socket; readonly way: ReadWay } | null = null;
  let settled = false;
  const settle = () => {
    clearTimeout(timer);
    const first = !settled;
    settled = true;
    return first;
  };
  const fail = (error: Error, status: number | null = null, retryAfterSeconds = 0) => {
    if (!settle()) return;
    ws.terminate();
    options.failed(error, status, retryAfterSeconds);
  };
  // Until the handshake is done, `ws` is given all that the socket reads.
  let sink: Sink = {
    next: () => ANSWER,
    filled: (bytes) => opened!.socket.emit('data', Buffer.from(ANSWER.subarray(0, bytes))),
    feed() {},
  };
  const ws = new WebSocket(url, {
    ...PROTOCOL,
    ...(options.headers ? { headers: options.headers } : {}),
    createConnection: () => {
      opened = openSocket(url, options, {
        next: () => sink.next(),
        filled: (bytes) => sink.filled(bytes),
        feed: (chunk) => sink.feed(chunk),
      });
      return opened.socket;
    },
  });
  let takes: ReadonlySet<Aside> = new Set();
  ws.on('upgrade', ({ headers }) => {
    const named = headers[TAKES_HEADER];
    takes = asidesOf(typeof named === 'string' ? named : undefined);
  });
  ws.on('open', () => {
    if (!settle()) return;
    const { socket, way } = opened!;
    const connection = new Connection(ws, socket, { ...options, role: 'client' });
    sink = connection.sink;
    connection.start(options.opened(connection, takes), way === 'straight' ? way : undefined);
  });
  ws.on('unexpected-response', (_, { statusCode = 0, headers }) =>
    fail(new Error(`HTTP status ${statusCode}`), statusCode, retryAfterOf(headers['retry-after'])),
  );
  ws.on('error', (error) => {
    const told = url.protocol === 'wss:' ? withCertificate(error, options.tls ?? {}) : error;
    fail(isNoHttp(error) ? noHttp(error) : told);
  });
  const timer = setTimeout(
    () => fail(new Error(`no answer to the handshake within ${options.handshakeMs / 1000} s`)),
    options.handshakeMs,
  );
  return { abort: () => fail(new Error('aborted')) };
}

const RETRY_AFTER_MAX = 600;

/** Seconds; of a date, or of what is more than any server of ours says, as many as it may be. 0: there is none. */
function retryAfterOf(header: string | null | undefined): number {
  if (!header) return 0;
  return /^\d{1,9}$/.test(header) ? Math.min(Number(header), RETRY_AFTER_MAX) : RETRY_AFTER_MAX;
}

const isNoHttp = ({ code }: NodeJS.ErrnoException) => code?.startsWith('HPE_') ?? false;
const noHttp = (cause: Error) => new Error(`the answer is not HTTP: ${cause.message}`, { cause });

function openSocket(url: URL, options: DialOptions, sink: Sink): { socket: Socket; way: ReadWay } {
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
  return { socket, way: 'copied' };
}
